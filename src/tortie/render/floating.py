"""Floating IPs in nftables: an external address that leads to a pod, from anywhere, the pod itself included.

    prerouting, output (nat)   to an external address ─► to the pod's own          maps floating4, floating6
    postrouting (nat)          from a pod to itself   ─► from its external address  sets hairpin4, hairpin6

Policy comes after the first and before the second: it sees the pod's own address at both ends. What a pod sends of its
own accord keeps its address, as Calico has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tortie.base.addr import IP
from tortie.calc.state import LocalEndpoint
from tortie.render.match import FAMILY
from tortie.render.members import ADDRESS
from tortie.render.ruleset import Chain, Set


def floating_chains() -> dict[str, Chain]:
    """The hooks that translate destinations. They are there always: an empty map costs a lookup per connection."""
    rules = tuple(f"dnat {family} to {family} daddr map @floating{version}" for version, family in FAMILY.items())
    return {
        "nat-prerouting": Chain(rules, "type nat hook prerouting priority dstnat; policy accept;"),
        # nft has a name for this priority, dstnat, in prerouting only.
        "nat-output": Chain(rules, "type nat hook output priority -100; policy accept;"),
    }


def hairpin_rules() -> Iterator[str]:
    """For the postrouting chain: a pod that reaches itself must not see its own address as the peer's."""
    for version, family in FAMILY.items():
        yield (
            f"{family} saddr . {family} daddr @hairpin{version}"
            f' counter snat {family} to {family} saddr map @hairpins{version} comment "floating IP, to itself"'
        )


def floating_sets(endpoints: Iterable[LocalEndpoint]) -> dict[str, Set]:
    """External to internal, and for hairpins internal to external. Of several claims the lowest address wins."""
    pairs = sorted({pair for endpoint in endpoints for pair in endpoint.nats}, key=_order)
    outward: dict[IP, IP] = {}
    inward: dict[IP, IP] = {}
    for external, internal in pairs:
        inward.setdefault(external, internal)
        if inward[external] == internal:
            outward.setdefault(internal, external)
    sets: dict[str, Set] = {}
    for version, address in ADDRESS.items():
        mine = {external: internal for external, internal in inward.items() if external.version == version}
        back = {internal: external for internal, external in outward.items() if external.version == version}
        spec = f"type {address} : {address};"
        sets[f"floating{version}"] = Set(spec, _elements(mine), is_map=True)
        sets[f"hairpins{version}"] = Set(spec, _elements(back), is_map=True)
        loops = frozenset(f"{internal} . {internal}" for internal in back)
        sets[f"hairpin{version}"] = Set(f"type {address} . {address};", loops)
    return sets


def _elements(mapping: dict[IP, IP]) -> frozenset[str]:
    return frozenset(f"{key} : {value}" for key, value in mapping.items())


def _order(pair: tuple[IP, IP]) -> tuple[int, int, int]:
    external, internal = pair
    return external.version, int(internal), int(external)
