"""The chains of `inet tortie-services`: the hooks, which look entrances up, and a chain for each shape of entrance.

    packet      prerouting, output                                 input, forward, output        postrouting
    priority    P - 9             P             P + 2              -110, -110, P + 11            srcnat
                restricted ─►     services ─►   scratch ─►         unserved ─►                   masquerade
                from<net>: drop   to4-3: dnat   priority := 0      refuse, drop                  marked or hairpin

P is -101, one step before kube-proxy's own, unless somebody says otherwise. The hooks of policy come after P: they see
pods, not services; those of mangle in prerouting come before, and see the service.

What is asked for at an address that is translated has left `unserved` behind: it sees what nobody answers for.

The two dice of a chain: while an element goes, a packet may have thrown for three backends where there are two by now.
The second throw finds the first backend, which is there as long as there is any.

Affinity needs the answer of one map in the key of another. Between the two it lies in the packet's priority, which has
32 bits and which nothing has used so far: who is forwarded gets a priority later, and `scratch` puts it back to none.

What rules remember clients by may be 16 bytes long: nft 1.0.6 sets no more registers aside, and ends the process that
asks for more. So IPv6 clients are told apart by hashes: two with the same would get the same backend, or forget theirs,
nothing worse. And in the key of `ids6` the address comes last: what a part begins behind may be 16 bytes, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tortie.base.addr import Net
from tortie.render.match import FAMILY
from tortie.render.members import ADDRESS, element
from tortie.render.proxy.elements import REFUSE, Shape, Shared, Sources, map_name
from tortie.render.ruleset import Chain, Set

TABLE = "inet tortie-services"
"""Everything in this table is ours, and all that we do about services is in it."""
PRIORITY = -101
"""Of the hooks that translate: before kube-proxy's, whose is -100."""

MASQUERADE = 0x4000
"""The bit of the mark by which a packet that is translated asks for our address: kube-proxy's bit."""
MARKED = f"{MASQUERADE:#010x}"
UNMARKED = f"{0xFFFFFFFF & ~MASQUERADE:#010x}"

CLIENTS = 1 << 20
"""Clients that are remembered of each kind. A map that rules write to must have an end; who finds no room has no
affinity. All other maps have none: the kernel makes them larger as they fill."""

_LOOPBACK = {4: "127.0.0.0/8", 6: "::1"}
_PORTS = "inet_proto . inet_service"
_DICE = "numgen random mod"
_ANY = 0xFFFFFFFF
_SEED = "0x7a11"  # any that is the same in all rules, and after a restart
_MARK = f"meta mark set meta mark | {MARKED}"
_NONE = "meta priority set none"


def key_type(version: int, *, at_port: bool) -> str:
    """What an entrance is looked up by."""
    ports = "meta l4proto . th dport"
    return ports if at_port else f"{FAMILY[version]} daddr . {ports}"


def declared_maps() -> dict[str, Set]:
    """All maps and sets, empty.

    A number that dice throw has no type that nft can name: only by an expression can such a key be declared. All others
    are declared by type; nft 1.0.6 reads the second expression of a transaction in the light of the first, and refuses.
    """
    found: dict[str, Set] = {}
    for version, address in ADDRESS.items():
        for at_port in (False, True):
            for kind, spec in _kinds(version, at_port=at_port).items():
                found[map_name(kind, version, at_port=at_port)] = Set(spec, is_map=True)
        found[f"restricted{version}"] = Set(f"type {address} . {_PORTS} : verdict;", is_map=True)
        found[f"cluster-ips{version}"] = Set(f"type {address};")
        found[f"hairpin{version}"] = Set(f"type {address} . {address};")
        found[f"pods{version}"] = Set(f"type {address}; flags interval;")
    return found


def _kinds(version: int, *, at_port: bool) -> dict[str, str]:
    """The declarations of maps that there are for addresses, and again for ports alone."""
    address = ADDRESS[version]
    where = _PORTS if at_port else f"{address} . {_PORTS}"
    numbered = f"typeof {key_type(version, at_port=at_port)} . {_DICE} {_ANY}"
    answer = f"{FAMILY[version]} daddr . th dport"
    kinds = {
        "services": f"type {where} : verdict;",
        "unserved": f"type {where} : verdict;",
        "clients": f"{_client_key(version, at_port=at_port)}; size {CLIENTS}; flags dynamic,timeout;",
    }
    for scope in ("", "local-"):
        kinds["locals" if scope else "backends"] = f"{numbered} : {answer}; counter;"
        kinds[f"{scope}ids"] = f"typeof {id_key(version, f'{_DICE} {_ANY}', at_port=at_port)} : meta priority;"
        kinds[f"{scope}sticky"] = f"type {where} . classid : {address} . inet_service; counter;"
    return kinds


def _client_key(version: int, *, at_port: bool) -> str:
    """A hash is declared as dice: both are numbers, and of a declared hash nft 1.0.6 cannot list the map."""
    if version == 4:
        return f"type ipv4_addr . {_PORTS if at_port else f'ipv4_addr . {_PORTS}'} : classid"
    number = f" . {_DICE} {_ANY}"
    return f"typeof meta l4proto . th dport{number if at_port else number * 2} : meta priority"


def client(version: int, *, at_port: bool) -> str:
    """Who is remembered: an address, at an entrance."""
    if version == 4:
        return f"ip saddr . {key_type(version, at_port=at_port)}"
    hashes = (f"jhash ip6 {end} mod {_ANY} seed {_SEED}" for end in (("saddr",) if at_port else ("saddr", "daddr")))
    return " . ".join(("meta l4proto . th dport", *hashes))


def id_key(version: int, number: str, *, at_port: bool) -> str:
    """What leads to a backend's identity. An IPv6 address comes last."""
    if version == 4 or at_port:
        return f"{key_type(version, at_port=at_port)} . {number}"
    return f"meta l4proto . th dport . {number} . ip6 daddr"


MAPS = declared_maps()
OF_PACKETS = frozenset(name for name in MAPS if "clients" in name)
"""Maps that rules write to, for which there is nothing to put in."""


def base_chains(
    node_ports: Iterable[Net] | None, priority: int = PRIORITY, *, scratch: bool = False
) -> dict[str, Chain]:
    """The hooks. `node_ports`: at which of this node's addresses those are. `scratch`: some entrance has affinity."""
    nets = None if node_ports is None else list(node_ports)
    services = tuple(_look_up("services", nets))
    restricted = tuple(
        f"ct state new {key_type(version, at_port=False)} vmap @restricted{version}" for version in FAMILY
    )
    unserved = ("ct state new ct status ! dnat jump unserved",)
    chains = {
        "filter-prerouting": Chain(restricted, _hook("filter", "prerouting", priority - 9)),
        "filter-local": Chain(restricted, _hook("filter", "output", priority - 9)),
        "nat-prerouting": Chain(services, _hook("nat", "prerouting", priority)),
        "nat-output": Chain(services, _hook("nat", "output", priority)),
        "filter-input": Chain(unserved, _hook("filter", "input", -110)),
        "filter-forward": Chain(unserved, _hook("filter", "forward", -110)),
        "filter-output": Chain(unserved, _hook("filter", "output", priority + 11)),
        "nat-postrouting": Chain(tuple(_postrouting()), _hook("nat", "postrouting", 100)),
        "unserved": Chain((*_look_up("unserved", nets), *_unknown_ports())),
        REFUSE: Chain(("meta l4proto tcp counter reject with tcp reset", "counter reject with icmpx port-unreachable")),
    }
    if scratch:
        reset = (f"ct state new ct status dnat meta priority != none {_NONE}",)
        chains["scratch-prerouting"] = Chain(reset, _hook("filter", "prerouting", priority + 2))
        chains["scratch-output"] = Chain(reset, _hook("filter", "output", priority + 2))
    return chains


def _hook(kind: str, hook: str, priority: int) -> str:
    return f"type {kind} hook {hook} priority {priority}; policy accept;"


def _look_up(kind: str, node_ports: list[Net] | None) -> Iterator[str]:
    """By address and port, then, at addresses of this node, by port."""
    for version in FAMILY:
        yield f"{key_type(version, at_port=False)} vmap @{map_name(kind, version, at_port=False)}"
    for version, family in FAMILY.items():
        where = f"{family} daddr != {_LOOPBACK[version]}"
        if node_ports is not None:
            mine = [str(net) for net in node_ports if net.version == version]
            if not mine:
                continue
            where += f" {family} daddr {{ {', '.join(mine)} }}"
        vmap = f"{key_type(version, at_port=True)} vmap @{map_name(kind, version, at_port=True)}"
        yield f"fib daddr type local {where} {vmap}"


def _unknown_ports() -> Iterator[str]:
    yield from (f"{family} daddr @cluster-ips{version} goto {REFUSE}" for version, family in FAMILY.items())


def _postrouting() -> Iterator[str]:
    """Only a connection's first packet comes here."""
    yield f"meta mark & {MARKED} == {MARKED} meta mark set meta mark & {UNMARKED} counter masquerade fully-random"
    for version, family in FAMILY.items():
        yield f"ct status dnat {family} saddr . {family} daddr @hairpin{version} counter masquerade fully-random"


def shared_chain(one: Shared, *, masquerade_all: bool = False) -> Chain:
    if isinstance(one, Sources):
        return Chain(tuple(_from(one)))
    return Chain(tuple(_to_local(one) if one.local is not None else _to_all(one, masquerade_all=masquerade_all)))


def _from(sources: Sources) -> Iterator[str]:
    """Pods and the node itself are no exception, as with kube-proxy."""
    if sources.nets:
        yield f"{FAMILY[sources.version]} saddr {{ {', '.join(map(element, sources.nets))} }} return"
    yield "counter drop"


def _to_all(one: Shape, *, masquerade_all: bool) -> Iterator[str]:
    # A pod of another node may come to our NodePort: its answers must find their way back through here.
    anybody = masquerade_all or one.at_port
    yield _MARK if anybody else f"{FAMILY[one.version]} saddr != @pods{one.version} {_MARK}"
    yield from _pick(one, one.backends, "")


def _to_local(one: Shape) -> Iterator[str]:
    """Pods and the node itself are not outside."""
    yield f"{FAMILY[one.version]} saddr @pods{one.version} goto {one.to_all.chain}"
    yield f"fib saddr type local goto {one.to_all.chain}"
    if one.local:
        yield from _pick(one, one.local, "local")


def _pick(one: Shape, number: int, scope: str) -> Iterator[str]:
    """Throw the dice, and translate."""
    if one.affinity:
        yield from _pick_again(one, number, scope)
        return
    for sides in dict.fromkeys((number, 1)):
        yield _translate(one, f"{_DICE} {sides}", one.map("locals" if scope else "backends"))


def _pick_again(one: Shape, number: int, scope: str) -> Iterator[str]:
    """The same for the same client as last time, as long as that one is there."""
    ids, sticky = (one.map(f"{scope}-{kind}" if scope else kind) for kind in ("ids", "sticky"))
    who, clients = client(one.version, at_port=one.at_port), one.map("clients")
    remember = f"update @{clients} {{ {who} timeout {one.affinity}s : meta priority }}"
    yield _NONE
    yield f"meta priority set {who} map @{clients}"
    yield f"meta priority != none {remember}"
    yield _translate(one, "meta priority", sticky)
    yield f"delete @{clients} {{ {who} : meta priority }}"  # `update` leaves the answer of one that is there
    yield _NONE
    for sides in dict.fromkeys((number, 1)):
        unless = "" if sides == number else "meta priority none "
        by = id_key(one.version, f"{_DICE} {sides}", at_port=one.at_port)
        yield f"{unless}meta priority set {by} map @{ids}"
    yield remember
    yield _translate(one, "meta priority", sticky)
    yield _NONE


def _translate(one: Shape, by: str, name: str) -> str:
    return f"dnat {FAMILY[one.version]} to {key_type(one.version, at_port=one.at_port)} . {by} map @{name}"
