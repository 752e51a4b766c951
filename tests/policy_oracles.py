"""Three answers to what becomes of a probe: the verdict on values, the tracer on the rendered rules, and real packets.

The third is `netns/town.py`'s. Each answer is a Prediction; whoever compares them shows all, and the smallest datastore
in which they still differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from policy_places import HOST_ACTION, IPIP, NODE, NOT_OBEYED, PLACES, PODS, UDP, UPLINK, Chance
from policy_worlds import Probe, some_odd_probe, some_resources
from tortie.base.addr import parse_ip
from tortie.calc.cluster import Cluster
from tortie.calc.hosts import covered
from tortie.calc.state import DesiredState
from tortie.model.document import dump_yaml
from tortie.model.meta import Resource
from tortie.policy.rules import DIRECTIONS, Direction, rule_id, staged_end_id
from tortie.policy.verdict import (
    NO_TIERS,
    Contains,
    HostClass,
    Packet,
    Verdict,
    judge,
    judge_host,
    membership,
)
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import Ruleset
from tortie.testing.tracer import Trace, Tracer, host_of

EARLY: tuple[HostClass, HostClass] = ("untracked", "preDNAT")
Decision = tuple[str, bool]
"""A rule, "" where none decides, and whether the packet goes on."""
INTERFACES = {UPLINK: frozenset(PLACES[NODE].ips.values()), "lo": frozenset((parse_ip("127.0.0.1"), parse_ip("::1")))}
"""Of the node, with their addresses."""
Render = Callable[[DesiredState], Ruleset]


def rendered(state: DesiredState) -> Ruleset:
    """As the node's agent has it."""
    return NftRenderer().render(state, INTERFACES)


@dataclass(frozen=True)
class Prediction:
    """What becomes of a probe: the rules that decide on its way, and whether it arrives."""

    rules: tuple[str, ...]
    arrives: bool

    def agrees(self, other: Prediction) -> bool:
        return self.arrives == other.arrives and sorted(self.rules) == sorted(other.rules)

    def __str__(self) -> str:
        return f"{'arrives' if self.arrives else 'does not arrive'}: {', '.join(self.rules) or 'no rule decides'}"


class World:
    """One datastore with the first two answers to any probe."""

    def __init__(
        self,
        resources: Iterable[Resource],
        state: DesiredState | None = None,
        render: Render = rendered,
    ) -> None:
        self.resources = list(resources)
        self.state = state_of(self.resources) if state is None else state
        self.undecided = undecided(self.state)
        self._contains: Contains = membership(lambda ref: self.state.sets[ref])
        self._hosts = covered(self.state, INTERFACES)
        self.render = render
        self._tracer = Tracer(render(self.state), host_of(self.state, {UPLINK: PLACES[NODE].ips.values()}, UPLINK))

    @property
    def has_hosts(self) -> bool:
        return bool(self.state.host_endpoints)

    @property
    def has_untracked(self) -> bool:
        """Whether somebody's connections are not tracked: the answers in them meet policy like questions."""
        return any(host.untracked != NO_TIERS for host in self.state.host_endpoints.values())

    def judged(self, probe: Probe) -> Prediction:
        """By the meaning of policy."""
        rules: list[str] = []
        for rule, allowed in self._decisions(probe):
            rules += [rule] if rule else []
            if not allowed:
                return Prediction(tuple(rules), False)
        return Prediction(tuple(rules), True)

    def _decisions(self, probe: Probe) -> Iterator[Decision]:
        if probe.source == NODE:
            yield from self._outgoing(probe)
        if probe.source != NODE or probe.destination == NODE:
            yield from self._incoming(probe)

    def is_tracked(self, probe: Probe) -> bool:
        """Whether the kernel keeps a connection of it: not if it is allowed before connection tracking."""
        comes = probe.source != NODE
        interface = interface_of(*((probe.source, probe.destination) if comes else (probe.destination, probe.source)))
        early = self._at_host(probe, interface, "untracked", "ingress" if comes else "egress")
        return not (early and early.policy and early.allowed)

    def _incoming(self, probe: Probe) -> Iterator[Decision]:
        """Every decision on the way of what comes to the node, in order."""
        pod, came = probe.source in PODS, interface_of(probe.source, probe.destination)
        accepted = False
        for kind in EARLY:
            if not accepted and (verdict := self._at_host(probe, came, kind, "ingress")):
                yield verdict.rule, verdict.allowed
                accepted = bool(verdict.policy)
        if probe.destination == NODE and not pod:
            if not accepted and (verdict := self._at_host(probe, came, "normal", "ingress")):
                yield verdict.rule, verdict.allowed
            return
        if not accepted and probe.destination != NODE and (v := self._at_host(probe, came, "forward", "ingress")):
            yield v.rule, v.allowed
        if pod:
            yield from self._from_pod(probe)
        if probe.destination == NODE:
            yield (HOST_ACTION, False) if self.state.settings.endpoint_to_host == "Drop" else ("", True)
            return
        if probe.destination in PODS:
            yield self._at_pod(probe, probe.destination, "ingress")
        if verdict := self._at_host(probe, interface_of(probe.destination, probe.source), "forward", "egress"):
            yield verdict.rule, verdict.allowed

    def _outgoing(self, probe: Probe) -> Iterator[Decision]:
        """The same for what the node itself sends. Its own pods it reaches whatever policy says."""
        goes = interface_of(probe.destination, probe.source)
        early = self._at_host(probe, goes, "untracked", "egress")
        if early:
            yield early.rule, early.allowed
        if probe.destination not in PODS and not (early and early.policy):
            verdict = self._at_host(probe, goes, "normal", "egress")
            if verdict:
                yield verdict.rule, verdict.allowed

    def _from_pod(self, probe: Probe) -> Iterator[Decision]:
        settings = self.state.settings
        if (probe.protocol, probe.what) == (UDP, settings.vxlan_port) and not settings.allow_vxlan:
            yield "VXLAN from a pod", False
        elif probe.protocol == IPIP and not settings.allow_ipip:
            yield "IPIP from a pod", False
        else:
            yield self._at_pod(probe, probe.source, "egress")

    def _at_pod(self, probe: Probe, name: str, direction: Direction) -> Decision:
        policy = self.state.endpoints[PLACES[name].interface].policy
        verdict = judge(packet_of(probe), policy, direction, self._contains)
        return verdict.rule, verdict.allowed

    def _at_host(self, probe: Probe, interface: str, kind: HostClass, direction: Direction) -> Verdict | None:
        """What the host endpoint of an interface says, if it has one."""
        host = self._hosts[interface] if interface in self._hosts else self._hosts.get("*")
        if host is None:
            return None
        return judge_host(packet_of(probe), host, kind, direction, self._contains, self.state.settings.failsafes)

    def trace(self, probe: Probe, state: str = "new") -> Trace:
        return self._tracer.trace(
            packet_of(probe), "" if probe.source == NODE else interface_of(probe.source, NODE), state=state
        )

    def traced(self, probe: Probe) -> Prediction:
        """By the rules for the kernel."""
        trace = self.trace(probe)
        counted = (rule for rule in trace.counters.elements() if rule not in self.undecided)
        return Prediction(tuple(sorted(counted)), trace.allowed)

    def differ(self, probe: Probe) -> bool:
        """Whether the two do not agree."""
        return not self.judged(probe).agrees(self.traced(probe))


def state_of(resources: Iterable[Resource]) -> DesiredState:
    cluster = Cluster("node")
    for resource in resources:
        cluster.put(resource)
    state = cluster.state()
    assert all(title.startswith(NOT_OBEYED) for title in cluster.problems), cluster.problems
    return state


def interface_of(name: str, other: str) -> str:
    """Where the node has somebody; itself, as seen by itself, at the loopback interface."""
    if name == other:
        return "lo"
    return PLACES[name].interface if name in PODS else UPLINK


def packet_of(probe: Probe) -> Packet:
    ends = PLACES[probe.source].ips[probe.version], PLACES[probe.destination].ips[probe.version]
    if probe.is_icmp:
        return Packet(*ends, probe.protocol, icmp_type=probe.what, icmp_code=probe.code)
    return Packet(*ends, probe.protocol, probe.source_port, probe.what)


def undecided(state: DesiredState) -> set[str]:
    """The names of the rules that count and have not the last word: of Log and Pass, of staged policies."""
    rules = {
        rule_id(policy.key, direction, i)
        for policy in state.policies.values()
        for direction in DIRECTIONS
        for i, rule in enumerate(policy.rules(direction))
        if rule.action in ("Log", "Pass") or policy.staged is not None
    }
    ends = {
        staged_end_id(tier.name, endpoint.interface, direction)
        for endpoint in state.endpoints.values()
        for direction in DIRECTIONS
        for tier in (endpoint.policy.staging.tiers(direction) if endpoint.policy.staging is not None else ())
    }
    return rules | ends


@dataclass
class Count:
    """Cases, and how many of them arrived."""

    cases: int = 0
    arrived: int = 0


def verdict_and_tracer(rng: Chance, probes: int, count: Count) -> str:
    """Ask both about some probes in a new datastore: "" when they agree, else what there is to see."""
    world = World(some_resources(rng))
    for _ in range(probes):
        probe = some_odd_probe(rng, hosts=world.has_hosts)
        judged = world.judged(probe)
        count.cases += 1
        count.arrived += judged.arrives
        if not judged.agrees(world.traced(probe)):
            return report(smallest(world, probe), probe)
    return ""


# --- what is shown when they differ ---


def minimal(resources: list[Resource], wrong: Callable[[list[Resource]], bool]) -> list[Resource]:
    """The fewest of the resources, and of their rules, with which it is still wrong."""
    found, before = resources, None
    while found != before:
        before = found
        for candidate in _smaller(found):
            if wrong(candidate):
                found = candidate
                break
    return found


def _smaller(resources: list[Resource]) -> Iterator[list[Resource]]:
    for i, one in enumerate(resources):
        others = resources[:i], resources[i + 1 :]
        yield [*others[0], *others[1]]
        for direction in DIRECTIONS:
            rules = getattr(getattr(one, "spec", None), direction, ())
            for index in range(len(rules)):
                spec = replace(one.spec, **{direction: rules[:index] + rules[index + 1 :]})  # type: ignore[attr-defined]
                yield [*others[0], replace(one, spec=spec), *others[1]]  # type: ignore[type-var]


def smallest(world: World, probe: Probe) -> World:
    """The smallest world in which the verdict and the tracer differ about the probe, as they do in this one."""

    def wrong(resources: list[Resource]) -> bool:
        with contextlib.suppress(KeyError):  # it takes both ends of a probe to be asked about
            return World(resources, render=world.render).differ(probe)
        return False

    return World(minimal(world.resources, wrong), render=world.render)


def report(world: World, probe: Probe, packets: str = "") -> str:
    """The datastore, the connection and every answer."""
    answers = [f"verdict: {world.judged(probe)}", f"tracer:  {world.traced(probe)}"]
    if packets:
        answers.append(f"packets: {packets}")
    return "\n".join((dump_yaml(*world.resources), str(probe), *answers, "", str(world.trace(probe))))
