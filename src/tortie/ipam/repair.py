"""What `ipam check --fix` would do about what it finds. Pure: repairs are values, in the order in which they are made.

Every repair is a step that some process of the cluster could take at any time, made by compare-and-swap on what was
read, so nobody has to stop for it. What only a person can judge (blocks that overlap, an address that two endpoints
have, objects with wrong names, owners that cannot be asked) is reported and left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tortie.base.addr import IP, Net, parse_net
from tortie.base.errors import ConfigError
from tortie.ipam import names
from tortie.ipam.allocation import Allocation
from tortie.ipam.block import is_empty, problems
from tortie.ipam.leak import GRACE, Verdict, in_the_way, leaks, reclaimable
from tortie.ipam.mended import mended
from tortie.ipam.owner import Owner, confirmed
from tortie.ipam.survey import Survey, endpoint_ips
from tortie.ipam.use import unallocated
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle
from tortie.model.workload import WorkloadEndpoint

NETWORK = "k8s-pod-network"
"""The network in Calico's conflist, the first part of the handles of its containers."""


@dataclass(frozen=True)
class MendBlock:
    """A block that contradicts itself."""

    block: IPAMBlock
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return f"mend {self.block.title}: {'; '.join(self.problems)}"


@dataclass(frozen=True)
class DropAffinity:
    """A claim to a block that is not there, or that is another's."""

    affinity: BlockAffinity

    def __str__(self) -> str:
        return f"delete {self.affinity.title}: block {self.affinity.spec.cidr} is not {self.affinity.spec.node}'s"


@dataclass(frozen=True)
class FinishClaim:
    """A claim that was given up half-way, by its owner's death or while it was released."""

    affinity: BlockAffinity

    def __str__(self) -> str:
        return f"confirm {self.affinity.title}, which is {self.affinity.spec.state}"


@dataclass(frozen=True)
class Claim:
    """A block in use whose owner has no claim to it, so that nobody routes it."""

    owner: Owner
    net: Net

    def __str__(self) -> str:
        return f"create BlockAffinity {names.affinity_name(self.owner.name, self.net)}: block {self.net} has none"


@dataclass(frozen=True)
class Disown:
    """A block whose owner has no claim to it, and is gone or does not use it."""

    block: IPAMBlock

    def __str__(self) -> str:
        verb = "delete" if is_empty(self.block.spec) else "take the owner from"
        return f"{verb} {self.block.title}: {self.block.spec.affinity} has no affinity to it"


@dataclass(frozen=True)
class CountUp:
    """A handle that does not know what it holds: releasing it would leave the address behind."""

    handle: str
    net: Net
    held: int
    known: int

    def __str__(self) -> str:
        return f'count {self.held} addresses of {self.net} in IPAMHandle "{self.handle}", which counts {self.known}'


@dataclass(frozen=True)
class Recount:
    """A handle that counts more than it holds."""

    handle: IPAMHandle
    held: Mapping[str, int]

    def __str__(self) -> str:
        if not any(self.held.values()):
            return f"delete {self.handle.title}: it holds nothing"
        counts = ", ".join(f"{count} in {cidr}" for cidr, count in self.held.items())
        return f"count what {self.handle.title} holds: {counts}"


@dataclass(frozen=True)
class Adopt:
    """An endpoint with an address that IPAM would give to the next pod."""

    endpoint: WorkloadEndpoint
    ip: IP
    handle: str

    @property
    def attrs(self) -> dict[str, str]:
        spec = self.endpoint.spec
        return {"node": spec.node, "pod": spec.pod, "namespace": self.endpoint.namespace}

    def __str__(self) -> str:
        return f"assign {self.ip} to {self.endpoint.title}, which has it"


@dataclass(frozen=True)
class DropEndpoint:
    """An endpoint whose pod does not need it any more, in the way of the release of its addresses."""

    endpoint: WorkloadEndpoint

    def __str__(self) -> str:
        return f"delete {self.endpoint.title}: its pod is gone"


@dataclass(frozen=True)
class Reclaim:
    """An address that nobody uses."""

    allocation: Allocation
    reason: str

    def __str__(self) -> str:
        return f"release {self.allocation.ip}: {self.reason}"


Repair = MendBlock | DropAffinity | FinishClaim | Claim | Disown | CountUp | Recount | Adopt | DropEndpoint | Reclaim


def repairs(survey: Survey, grace: timedelta = GRACE) -> tuple[Repair, ...]:
    """Everything that can be repaired. A leak must be older than `grace` by its own time, or of a node that is gone."""
    return (
        *_blocks(survey.blocks, survey.now),
        *_affinities(survey),
        *_unclaimed(survey),
        *_lost(survey),
        *_adoptions(survey),
        *_leaks(survey, grace),
        *overcounts(survey),
    )


def held_by_handle(survey: Survey) -> Mapping[tuple[str, str], int]:
    """How many addresses a handle (by object name) holds in a block (by CIDR)."""
    live = (each for group in survey.by_handle.values() for each in group if not each.reserved)
    return Counter((each.handle_key, each.block) for each in live)


def _blocks(blocks: tuple[IPAMBlock, ...], now: datetime) -> Iterator[Repair]:
    for block in blocks:
        try:
            found = tuple(problems(block.spec, now))
        except ConfigError:
            continue  # its CIDR is none: nobody knows which addresses these are
        if found and mended(block.spec, now) is not block.spec:
            yield MendBlock(block, found)


def _owners(survey: Survey) -> dict[Net, str | None]:
    return {parse_net(block.spec.cidr): block.spec.affinity for block in survey.blocks if _named_well(block)}


def _named_well(block: IPAMBlock) -> bool:
    try:
        return block.name == names.block_name(block.spec.net)
    except ConfigError:
        return False


def _affinities(survey: Survey) -> Iterator[Repair]:
    owners = _owners(survey)
    for affinity in survey.affinities:
        owner, net = Owner.of(affinity), parse_net(affinity.spec.cidr)
        if affinity.name != names.affinity_name(owner.name, net):
            continue
        if owners.get(net) != str(owner):
            yield DropAffinity(affinity)
        elif not confirmed(affinity):
            yield FinishClaim(affinity)


def _unclaimed(survey: Survey) -> Iterator[Repair]:
    claimed = {(str(Owner.of(each)), parse_net(each.spec.cidr)) for each in survey.affinities}
    for block in survey.blocks:
        affinity = block.spec.affinity
        if not affinity or not _named_well(block) or (affinity, block.spec.net) in claimed:
            continue
        owner = Owner.parse(affinity)
        there = owner.type == "virtual" or owner.name in survey.node_names
        yield Claim(owner, block.spec.net) if there and not is_empty(block.spec) else Disown(block)


def _lost(survey: Survey) -> Iterator[Repair]:
    known = {(handle.name, cidr): count for handle in survey.handles for cidr, count in handle.spec.block.items()}
    spelling = {each.handle_key: each.handle for group in survey.by_handle.values() for each in group}
    for (name, cidr), count in held_by_handle(survey).items():
        if known.get((name, cidr), 0) < count:
            yield CountUp(spelling[name] or name, parse_net(cidr), count, known.get((name, cidr), 0))


def overcounts(survey: Survey) -> Iterator[Recount]:
    """Handles that count more than they hold: an assignment under way, or one that died, or a release that did."""
    held = held_by_handle(survey)
    for handle in survey.handles:
        if handle.name != names.handle_name(handle.spec.handle_id):
            continue
        counts = {cidr: held.get((handle.name, cidr), 0) for cidr in handle.spec.block}
        if not counts or any(handle.spec.block[cidr] > count for cidr, count in counts.items()):
            yield Recount(handle, counts)


def _adoptions(survey: Survey) -> Iterator[Repair]:
    taken: set[IP] = set()
    for endpoint, ip in unallocated(survey):
        if ip not in taken and len(survey.users[ip]) == 1:
            taken.add(ip)
            yield Adopt(endpoint, ip, _handle_of(endpoint, survey))


def _handle_of(endpoint: WorkloadEndpoint, survey: Survey) -> str:
    """The handle of the container's other addresses, else the one that it has in Calico's network."""
    container = endpoint.spec.container_id
    others = (each.handle for each in survey.allocations if each.ip in endpoint_ips(endpoint))
    return next((handle for handle in others if handle and handle.endswith(f".{container}")), f"{NETWORK}.{container}")


def _leaks(survey: Survey, grace: timedelta) -> Iterator[Repair]:
    found = leaks(survey)

    def due(each: Allocation, why: Verdict) -> bool:
        return why.node_gone or (each.since is not None and survey.now - each.since > grace)

    doomed = reclaimable(survey, found.values(), due)
    yield from map(DropEndpoint, in_the_way(survey, doomed))
    yield from (Reclaim(each, found[each.key][1].reason) for each in doomed)
