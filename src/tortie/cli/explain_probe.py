"""`tortie explain --probe`: a real packet in a lab, and whether it does what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tortie.agent.client import ask
from tortie.base.errors import ConfigError, TortieError
from tortie.cli.datastore import locate
from tortie.cli.node import sockets

if TYPE_CHECKING:
    from tortie.calc.explain import Explanation, Party, Step
    from tortie.lab.probe import Endpoint, Protocol
    from tortie.lab.topology import Topology
    from tortie.model.k8s import Pod


@dataclass(frozen=True, slots=True)
class Probed:
    """What became of a probe, and where that is not what was predicted."""

    version: int
    result: str
    differences: tuple[str, ...]


def probed(explanations: Sequence[Explanation], lab: str, *, rejecting: bool) -> list[Probed]:
    """One probe for each explanation, one after the other. Raises ConfigError for what a lab cannot send."""
    import asyncio

    from tortie.lab.state import LabDirectory

    for one in explanations:
        if one.protocol not in ("tcp", "udp", "icmp"):
            raise ConfigError("a probe is of tcp, udp or icmp", "--probe")
    directory = LabDirectory(_lab(lab))
    return [asyncio.run(_probe(one, directory, rejecting, _chances(one, explanations))) for one in explanations]


def _lab(lab: str) -> str:
    """The lab whose datastore is asked. Raises ConfigError when it is none's."""
    where = Path(locate("", lab))
    if where.parent.parent.name != "lab":
        raise ConfigError("only a lab can be probed: name one with --lab", "--probe")
    return where.parent.name


def _chances(one: Explanation, explanations: Sequence[Explanation]) -> Sequence[Explanation]:
    """All that may become of the same packet: it goes to any backend of a service."""
    key = one.source, one.destination.service, one.version, one.port
    every = [each for each in explanations if (each.source, each.destination.service, each.version, each.port) == key]
    return every if one.destination.service else [one]


async def _probe(one: Explanation, directory: Any, rejecting: bool, chances: Sequence[Explanation]) -> Probed:
    from tortie.lab.places import opened
    from tortie.lab.probe import probe
    from tortie.model.k8s import Pod

    topology = directory.read()
    async with opened(directory) as store:
        pods = (await store.list(Pod)).items
    protocol: Protocol = one.protocol  # type: ignore[assignment]
    source, to = (_endpoint(party, topology, pods, one.version) for party in (one.source, one.destination))
    before = _counts(one, directory.name)
    result = await probe(source, to, protocol, one.version, one.port)
    grown = _grown(one, before, _counts(one, directory.name))
    differences = []
    if not any(result.agrees(each.allowed, rejecting or _rejects(each)) for each in chances):
        policy = "allowed" if one.allowed else "denied"
        differences.append(f"the connection is {policy}, and a real packet found: {result}")
    elif len(chances) == 1 and not grown:
        step = one.decisive
        differences.append(f"{step.node}: rule {step.rule} did not count the packet that was sent")
    return Probed(one.version, str(result), tuple(differences))


def _rejects(one: Explanation) -> bool:
    """Whether it is a service that nobody serves, and who asks is told so."""
    lead = one.destination.translation(one.version)
    if lead is None or not lead.refused:
        return False
    return lead.door is None or (lead.door.backend is None and not lead.door.drops)


def _counts(one: Explanation, lab: str) -> dict[tuple[str, str], int]:
    """Packets by node and rule, of what should count a new connection."""
    found: dict[tuple[str, str], int] = {}
    known = sockets(lab)
    for step in one.steps:
        if step.rule and step.node in known:
            try:
                counted = ask(known[step.node], "/counters")
            except TortieError:
                continue
            found[step.node, step.rule] = counted.get(_fit(step), {}).get("packets", 0)
    return found


def _fit(step: Step) -> str:
    from tortie.render.match import fit

    return fit(step.rule)


def _grown(one: Explanation, before: dict[tuple[str, str], int], after: dict[tuple[str, str], int]) -> bool:
    """Whether the rule that decides has counted; True where nobody can tell."""
    place = one.decisive.node, one.decisive.rule
    return place not in before or place not in after or after[place] > before[place]


def _endpoint(party: Party, topology: Topology, pods: Sequence[Pod], version: int) -> Endpoint:
    """Raises ConfigError for who has no place in the lab."""
    from dataclasses import replace

    from tortie.lab.cluster import endpoints, node_endpoint

    lead = party.translation(version)
    address = str(lead.address if lead is not None else party.ip(version))
    four, six = (address, "") if version == 4 else ("", address)
    for known in endpoints(topology, pods):
        if known.name == party.name or known.address(version) == address:
            # Of a service any backend may answer: which one is chance.
            return replace(known, ipv4=four, ipv6=six, answers=known.answers and not party.service)
    for host in topology.nodes:
        if host.name == party.node and not party.is_pod:
            return replace(node_endpoint(host), ipv4=four, ipv6=six)
    if party.service:  # it has an address, and nobody behind it
        return replace(node_endpoint(topology.nodes[0]), name=party.name, ipv4=four, ipv6=six)
    raise ConfigError(f"{party.name} is nobody in lab {topology.name}", "--probe")
