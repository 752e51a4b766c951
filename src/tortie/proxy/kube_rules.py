"""kube-proxy's chains in iptables, and how they go: with what jumps to them, and nothing else.

    iptables-nft     tables `ip nat`, `ip6 filter`, ...   listed and changed by nft: no program of iptables is needed
    iptables-legacy  the kernel's own tables              iptables-legacy-save, iptables-legacy-restore --noflush

A chain is kube-proxy's by its whole name or by how that is made, not by KUBE- alone: kube-router's are KUBE-ROUTER-*,
KUBE-POD-FW-* and KUBE-NWPLCY-*, and they are policy. Those of the kubelet go as well. Its canaries are among them, by
which it notices within a minute, and makes its own again.

What stays, because connections or the node would suffer:

    KUBE-FORWARD     where everything else that is forwarded is dropped: it is what lets services' packets through
    KUBE-FIREWALL    while packets to 127.0.0.0/8 are routed (kube-proxy sets route_localnet), against which it is
    KUBE-MARK-*      to which rules of others jump (portmap's externalSetMarkChain)

Source: pkg/proxy/iptables, pkg/proxy/ipvs and pkg/kubelet/kubelet_network_linux.go of Kubernetes 1.9 to 1.32.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tortie.base.errors import KernelError, NotFound, NotSupported, Unavailable
from tortie.kernel import iptables, nft
from tortie.kernel.netns import entered

log = logging.getLogger(__name__)

Variant = Literal["nft", "legacy"]
FAMILIES = ("ip", "ip6")
TABLES = ("nat", "filter", "mangle")
LEGACY = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}
"""The programs that see legacy tables."""
SECONDS = 60.0
"""For another program that holds the lock of legacy iptables: kube-proxy itself, with ten thousand services."""
ATTEMPTS = 3
"""Somebody else may change a table between our look at it and our transaction."""

OF_IPVS = ("KUBE-LOAD-BALANCER", "KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER",
           "KUBE-IPVS-OUT-FILTER")  # fmt: skip
"""Chains that kube-proxy has in mode ipvs alone."""
OF_BOTH = ("KUBE-SERVICES", "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY")
_OF_IPTABLES = re.compile(r"KUBE-(NODEPORTS|EXTERNAL-SERVICES|(SVC|SVL|EXT|XLB|SEP|FW)-[A-Z0-9]{16})")
_REST = ("KUBE-FORWARD", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-MARK-DROP", "KUBE-FIREWALL",
         "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT")  # fmt: skip
"""Made by the kubelet as well, or kept by us: no sign of a kube-proxy."""
_MAY_STAY = frozenset({"KUBE-FORWARD", "KUBE-FIREWALL", "KUBE-MARK-MASQ", "KUBE-MARK-DROP"})
"""Chains that jump to no other chain of these."""
_JUMP = re.compile(r"^-A (?P<chain>\S+) (?:.* )?-[jg] (?P<target>\S+)$")


# --- deciding -----------------------------------------------------------------------------------------------------


def is_theirs(chain: str) -> bool:
    """
    >>> is_theirs("KUBE-SVC-NPX46M4PTMTKRN6Y"), is_theirs("KUBE-FIREWALL"), is_theirs("KUBE-ROUTER-INPUT")
    (True, True, False)
    """
    return sign(chain) != "" or chain in _REST


def sign(chain: str) -> Literal["", "iptables", "ipvs", "both"]:
    """Of which mode of kube-proxy a chain is a sign."""
    if chain in OF_BOTH:
        return "both"
    if chain in OF_IPVS:
        return "ipvs"
    return "iptables" if _OF_IPTABLES.fullmatch(chain) else ""


@dataclass(frozen=True, slots=True)
class Jump:
    """A rule of `chain` that goes on in `target`. `rule`: its handle (nft), or the rule as iptables-save prints it."""

    chain: str
    target: str
    rule: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table of iptables. `policies` are those of its base chains, "drop" or "accept". `jumps` are all that begin
    outside of kube-proxy's chains."""

    variant: Variant
    family: str
    name: str
    chains: tuple[str, ...] = ()
    policies: Mapping[str, str] = field(default_factory=dict)
    jumps: tuple[Jump, ...] = ()

    @property
    def title(self) -> str:
        return f"{'iptables' if self.family == 'ip' else 'ip6tables'}-{self.variant} -t {self.name}"


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes of a table. `obstacles`: why it cannot."""

    table: Table
    jumps: tuple[Jump, ...] = ()
    chains: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.jumps or self.chains)

    def script(self) -> str:
        """For `nft -f`, or for `iptables-legacy-restore --noflush`: one transaction."""
        return "".join(f"{line}\n" for line in (self._nft() if self.table.variant == "nft" else self._legacy()))

    def _nft(self) -> Iterator[str]:
        table = f"{self.table.family} {self.table.name}"
        yield from (f"delete rule {table} {jump.chain} handle {jump.rule}" for jump in self.jumps)
        yield from (f"flush chain {table} {chain}" for chain in self.chains)
        yield from (f"delete chain {table} {chain}" for chain in self.chains)

    def _legacy(self) -> Iterator[str]:
        yield f"*{self.table.name}"
        yield from (f"-D{jump.rule.removeprefix('-A')}" for jump in self.jumps)
        yield from (f"-F {chain}" for chain in self.chains)
        yield from (f"-X {chain}" for chain in self.chains)
        yield "COMMIT"


def removal(table: Table, *, localnet: bool = False) -> Removal:
    """What of a table goes. `localnet`: packets to 127.0.0.0/8 are routed on this machine."""
    theirs = [chain for chain in table.chains if is_theirs(chain)]
    foreign = {jump.target: jump.chain for jump in table.jumps if jump.chain not in table.policies}
    stays = {chain for chain in theirs if chain in foreign}
    if table.policies.get("FORWARD") == "drop":
        stays.add("KUBE-FORWARD")
    if localnet and table.family == "ip":
        stays.add("KUBE-FIREWALL")
    stays.intersection_update(theirs)
    obstacles = [
        f"{table.title}: {foreign[chain]}, a chain of somebody else, jumps to {chain}: delete that rule first"
        for chain in sorted(stays - _MAY_STAY)
    ]
    return Removal(
        table,
        tuple(jump for jump in table.jumps if jump.chain in table.policies and jump.target not in stays),
        tuple(chain for chain in theirs if chain not in stays),
        tuple(sorted(stays)),
        tuple(obstacles),
    )


def of_nft(family: str, name: str, chains: Iterable[Mapping[str, Any]], rules: Iterable[Mapping[str, Any]]) -> Table:
    """A table as nft lists its chains and rules as JSON; rules of kube-proxy's chains may be missing."""
    chains = list(chains)
    policies = {chain["name"]: str(chain.get("policy", "accept")) for chain in chains if "hook" in chain}
    jumps = tuple(
        Jump(rule["chain"], target, str(rule["handle"]))
        for rule in rules
        if not is_theirs(rule["chain"])
        for target in _targets(rule)
        if is_theirs(target)
    )
    return Table("nft", family, name, tuple(chain["name"] for chain in chains), policies, jumps)


def _targets(rule: Mapping[str, Any]) -> Iterator[str]:
    for one in rule.get("expr", ()):
        if isinstance(one, dict):
            yield from (one[word]["target"] for word in ("jump", "goto") if word in one)


def of_save(saved: str, family: str, name: str) -> Table:
    """A table as iptables-legacy-save prints it."""
    chains: list[str] = []
    policies: dict[str, str] = {}
    jumps: list[Jump] = []
    for line in saved.splitlines():
        if line.startswith(":"):
            chain, policy, *_ = line[1:].split()
            chains.append(chain)
            if policy != "-":
                policies[chain] = policy.lower()
        elif (match := _JUMP.match(line)) and is_theirs(match["target"]) and not is_theirs(match["chain"]):
            jumps.append(Jump(match["chain"], match["target"], line))
    return Table("legacy", family, name, tuple(chains), policies, tuple(jumps))


# --- looking ------------------------------------------------------------------------------------------------------


def signs(listed: Iterable[Mapping[str, Any]] | None = None, netns: str | None = None) -> dict[str, tuple[str, ...]]:
    """Names of kube-proxy's chains by the title of their table, where there are any. Rules are not read: there may be
    a hundred thousand. `listed`: what nft lists of chains, if that is known already. Raises KernelError."""
    if listed is None:
        listed = nft.list_json(["list", "chains"], netns)
    found: dict[str, list[str]] = {}
    for item in listed:
        chain = item.get("chain")
        if chain is not None and chain["family"] in FAMILIES and chain["table"] in TABLES and is_theirs(chain["name"]):
            found.setdefault(Table("nft", chain["family"], chain["table"]).title, []).append(chain["name"])
    with nullcontext() if netns is None else entered(netns):
        for table in _legacy():
            if names := [chain for chain in table.chains if is_theirs(chain)]:
                found[table.title] = names
    return {title: tuple(names) for title, names in found.items()}


def tables(netns: str | None = None) -> tuple[Table, ...]:
    """Every table that has chains of kube-proxy or of the kubelet. Raises KernelError, NotSupported."""
    return tuple(table for table in _all_tables(netns) if any(map(is_theirs, table.chains)))


def _all_tables(netns: str | None) -> Iterator[Table]:
    for family in FAMILIES:
        for name in TABLES:
            if table := _nft_table(family, name, netns):
                yield table
    with nullcontext() if netns is None else entered(netns):
        legacy = list(_legacy())
    yield from legacy


def _nft_table(family: str, name: str, netns: str | None) -> Table | None:
    """Of kube-proxy's own chains only the names are read."""
    listed = nft.list_json(["list", "chains", family], netns)
    chains = [item["chain"] for item in listed if "chain" in item and item["chain"]["table"] == name]
    if not any(is_theirs(chain["name"]) for chain in chains):
        return None
    rules = [
        item["rule"]
        for chain in chains
        if not is_theirs(chain["name"])
        for item in nft.list_json(["-a", "list", "chain", family, name, chain["name"]], netns)
        if "rule" in item
    ]
    return of_nft(family, name, chains, rules)


def _legacy() -> Iterator[Table]:
    """Of the calling thread's namespace. No table is made: to look into one that is not there would make it."""
    for family, program in LEGACY.items():
        for name in _legacy_names(family):
            if name in TABLES:
                try:
                    yield of_save(iptables.run([f"{program}-save", "-t", name], seconds=2 * SECONDS), family, name)
                except NotSupported as error:
                    log.debug("the table %s of %s is not looked into: %s", name, program, error)


def _legacy_names(family: str) -> list[str]:
    try:
        return Path(f"/proc/thread-self/net/{family}_tables_names").read_text().split()
    except OSError:
        return []


def unseen(netns: str | None = None) -> tuple[str, ...]:
    """Tables of legacy iptables that are there and cannot be looked into, as lines."""
    import shutil

    with nullcontext() if netns is None else entered(netns):
        return tuple(
            f"legacy iptables has tables ({', '.join(names)}), and {program}-save is not installed to look for "
            "kube-proxy's chains in them: apt-get install iptables"
            for family, program in LEGACY.items()
            if (names := _legacy_names(family)) and shutil.which(f"{program}-save") is None
        )


def routes_localnet(netns: str | None = None) -> bool:
    """Whether packets to 127.0.0.0/8 are routed: kube-proxy sets it for NodePorts at that address."""
    with nullcontext() if netns is None else entered(netns):
        try:
            return Path("/proc/sys/net/ipv4/conf/all/route_localnet").read_text().strip() != "0"
        except OSError:
            return False


# --- doing --------------------------------------------------------------------------------------------------------


def clear(variant: Variant, family: str, name: str, netns: str | None = None) -> None:
    """Takes kube-proxy's chains out of a table; what is gone is gone. Raises KernelError, NotSupported, Unavailable."""
    for attempt in range(1, ATTEMPTS + 1):
        doing = _now(variant, family, name, netns)
        if doing is None or not doing:
            return
        if doing.obstacles:
            raise Unavailable(doing.obstacles[0])
        try:
            _apply(doing, netns)
        except KernelError:
            if attempt == ATTEMPTS:
                raise
        else:
            log.info("removed %d chains of kube-proxy: %s", len(doing.chains), doing.table.title)


def _now(variant: Variant, family: str, name: str, netns: str | None) -> Removal | None:
    try:
        found = [
            table for table in tables(netns) if (table.variant, table.family, table.name) == (variant, family, name)
        ]
    except NotFound:
        return None
    return removal(found[0], localnet=routes_localnet(netns)) if found else None


def _apply(doing: Removal, netns: str | None) -> None:
    if doing.table.variant == "nft":
        nft.apply(doing.script(), netns)
        return
    with nullcontext() if netns is None else entered(netns):
        restore = f"{LEGACY[doing.table.family]}-restore"
        iptables.run([restore, "--noflush", "--wait", f"{SECONDS:.0f}"], doing.script(), 2 * SECONDS)
