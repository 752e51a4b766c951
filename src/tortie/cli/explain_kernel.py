"""What nodes' agents say of their kernels, put beside what an explanation predicts: counters, rules, routes, and what
differs. A node whose agent cannot be asked is compared with nothing: the prediction stands without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tortie.agent.client import ask
from tortie.base.errors import TortieError
from tortie.cli.explain_services import ServicesOf, asked_about, doors_of
from tortie.cli.node import sockets

if TYPE_CHECKING:
    from tortie.calc.explain import Explainer, Explanation, Route
    from tortie.calc.explain.services import Door
    from tortie.calc.state import Settings

ALIVE, ANSWER = 3.0, 20.0
"""Seconds to wait for a word of an agent, and for it to list what its kernel has, which is much on a large node."""
OWN_CHAINS = ("fw-", "tw-", "pi-", "po-")
"""How the chains of pods and policies begin, which the datastore alone decides about."""
SERVERS = ("etcd:", "kubernetes:")
"""How datastores begin that are no file."""


@dataclass(frozen=True, slots=True)
class Read:
    """The datastore as it was read: which it is, what follows from it, the settings by node, and by kind the highest
    revision."""

    datastore: str
    explainer: Explainer
    settings: Mapping[str, Settings]
    revisions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernels have. `rules` and `services` are by node, `routes` by what was asked.

    `differences` is what is not as predicted; `silent` are the nodes whose agents do not answer, with the reason.
    """

    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    routes: Mapping[Route, Mapping[str, Any]] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
    silent: Mapping[str, str] = field(default_factory=dict)
    services: Mapping[str, ServicesOf] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    """By node why it has no flow table, where it should have one."""

    def counter(self, node: str, rule: str) -> dict[str, Any] | None:
        """Packets and bytes of a rule; None where nobody can tell."""
        told = self.rules.get(node, {}).get(rule) if rule else None
        return {"packets": told["packets"], "bytes": told["bytes"]} if told is not None else None

    def texts(self, node: str, rule: str) -> list[str]:
        """The rule as the kernel lists it, one line for each kernel rule of that name."""
        return list(self.rules.get(node, {}).get(rule, {}).get("kernel", ()))

    def led(self, node: str, door: Door | None) -> int | None:
        """How many connections a node has led to a service's backend; None where nobody can tell."""
        told = self.services.get(node)
        return told.connections(door) if told is not None and door is not None else None

    def unserved(self, node: str, door: Door | None) -> str:
        """Why Tortie does not serve services on a node, "" if it does, or nobody can tell."""
        told = self.services.get(node)
        return told.off if told is not None and door is not None else ""


def kernel_of(explanations: Sequence[Explanation], read: Read, lab: str) -> Kernel:
    """Asks every node on the way. One whose agent follows another datastore has nothing to do with this."""
    rules: dict[str, Mapping[str, Any]] = {}
    routes: dict[Route, Mapping[str, Any]] = {}
    differences: list[str] = []
    silent: dict[str, str] = {}
    services: dict[str, ServicesOf] = {}
    without: dict[str, str] = {}
    for node, path in _agents(lab, silent).items():
        try:
            ask(path, "/liveness", ALIVE)
            told = _ask_rules(path, node, explanations)
            if not same_datastore(str(told.get("datastore", "")), read.datastore):
                continue
            rules[node] = told["rules"]
            differences += (f"{node}: {text}" for text in differing(node, told, explanations, read))
            without[node] = told.get("flowTable", {}).get("why", "")
            doors = doors_of(node, explanations)
            if doors:
                services[node] = asked_about(path, doors)
                differences += (f"{node}: {text}" for door in doors for text in services[node].differing(door))
            for route in {route for one in explanations for route in one.routes if route.node == node}:
                routes[route] = _ask_route(path, route)
                differences += (f"{node}: {text}" for text in astray(route, routes[route]))
        except TortieError as error:
            silent[node] = str(error)
    return Kernel(rules, routes, tuple(dict.fromkeys(differences)), silent, services, without)


def same_datastore(one: str, other: str) -> bool:
    """Whether two datastores are one; of an agent that does not say it is taken to be, and so are two of servers of a
    kind: each program may have a way of its own to them."""
    if one.startswith(SERVERS):
        return other.startswith(one.partition(":")[0])
    return not one or Path(one.removeprefix("sqlite:")).resolve() == Path(other.removeprefix("sqlite:")).resolve()


def _agents(lab: str, silent: dict[str, str]) -> dict[str, Path]:
    """The sockets of agents by node; on a node of its own, that node's only."""
    try:
        known = sockets(lab)
    except TortieError:
        return {}
    found: dict[str, Path] = {}
    for name, path in known.items():
        try:
            found[name if path.parent.name == name else str(ask(path, "/node", ALIVE)["node"])] = path
        except TortieError as error:
            silent[name] = str(error)
    return found


def _names(node: str, explanations: Iterable[Explanation]) -> list[str]:
    steps = [step for one in explanations for step in one.steps if step.node == node]
    every = [rule for step in steps for rule in (step.rule, *(note.rule for note in step.notes)) if rule]
    return list(dict.fromkeys(every))


def _interfaces(node: str, explanations: Iterable[Explanation]) -> list[str]:
    found = (step.interface for one in explanations for step in one.steps if step.node == node and step.interface)
    return list(dict.fromkeys(found))


def _ask_rules(path: Path, node: str, explanations: Sequence[Explanation]) -> Mapping[str, Any]:
    names, interfaces = _names(node, explanations), _interfaces(node, explanations)
    if not names and not interfaces and not any(route.node == node for one in explanations for route in one.routes):
        return {"rules": {}, "differences": [], "chains": {}, "interfaces": []}
    query = urlencode([*(("rule", name) for name in names), *(("interface", one) for one in interfaces)])
    told: Mapping[str, Any] = ask(path, f"/rules?{query}", ANSWER)
    if "rules" in told:
        return told
    counted = ask(path, "/counters", ANSWER)  # an agent of before
    return {"rules": {name: counted[name] for name in names if name in counted}, "differences": [], "chains": {}}


def _ask_route(path: Path, route: Route) -> Mapping[str, Any]:
    question = {"destination": str(route.destination)}
    if route.interface:
        question |= {"source": str(route.source), "interface": route.interface}
    answer: Mapping[str, Any] = ask(path, f"/path?{urlencode(question)}", ANSWER)
    return answer


def differing(node: str, told: Mapping[str, Any], explanations: Sequence[Explanation], read: Read) -> Iterator[str]:
    """Where what an agent says of itself and of its kernel is not as predicted."""
    yield from _standing(told, read.revisions)
    yield from _policies(told, node, explanations, read)
    yield from told["differences"]
    yield from _missing(told, node, explanations)
    yield from _not_past(told, node, explanations)


def _standing(told: Mapping[str, Any], at: Mapping[str, int]) -> Iterator[str]:
    if "inSync" not in told:
        return
    if not told["inSync"]:
        yield "the agent has not read all of the datastore yet"
        return
    yield from (f"the agent could not do all that it should: {failure}" for failure in told["failures"])
    for kind, revision in at.items():
        read = told["revisions"].get(kind, 0)
        if read < revision:
            yield f"the agent is behind: it has read {kind} up to revision {read}, the datastore is at {revision}"
    if not told["enforced"]:
        yield "the agent has read more than it has put into the kernel so far"


def _policies(told: Mapping[str, Any], node: str, explanations: Sequence[Explanation], read: Read) -> Iterator[str]:
    """What the agent makes of the datastore, and what we do."""
    if not told.get("inSync"):
        return
    for interface in _interfaces(node, explanations):
        if interface not in told["interfaces"]:
            yield f"the agent knows no endpoint with interface {interface}"
            continue
        for name, rules in _chains_of(read.explainer, interface, read.settings[node]).items():
            if told["chains"].get(name) != rules:
                yield f"the agent makes something else of the datastore than this prediction: chain {name}"


def _chains_of(explainer: Explainer, interface: str, settings: Settings) -> dict[str, list[str]]:
    """The chains of a pod and of the policies that it consults, as its node should have them."""
    from tortie.render.nft import NftRenderer
    from tortie.render.part import part

    state = explainer.state
    endpoint = state.endpoints[interface]
    policy = endpoint.policy
    keys = {one.key for tier in (*policy.ingress, *policy.egress) for one in tier.policies}
    keys |= {profile.key for _, profile in policy.profiles if profile is not None}
    mine = {key: state.policies[key] for key in keys if key in state.policies}
    alone = replace(
        state, endpoints={interface: endpoint}, policies=mine, sets={}, settings=settings, host_endpoints={}
    )
    ruleset = part(NftRenderer().render(alone), [interface])
    return {name: list(chain.rules) for name, chain in ruleset.chains.items() if name.startswith(OWN_CHAINS)}


def _missing(told: Mapping[str, Any], node: str, explanations: Sequence[Explanation]) -> Iterator[str]:
    for name in _names(node, explanations):
        if not told["rules"].get(name, {}).get("kernel", ["?"]):
            yield f"rule {name} is not in the kernel"


def _not_past(told: Mapping[str, Any], node: str, explanations: Sequence[Explanation]) -> Iterator[str]:
    """Pods whose packets are not looked for in the flow table of the kernel, as they should be."""
    table = told.get("flowTable", {})  # none of an agent of before
    every = {past for one in explanations for past in one.past if past.node == node and past.past}
    interfaces = sorted({interface for past in every for interface in past.interfaces})
    if interfaces and table and not table["asked"]:
        yield "the agent makes something else of the datastore than this prediction: it wants no flow table"
    elif table and not table["why"]:
        yield from (f"flow table: {one} is not in it" for one in interfaces if one not in table["links"])


def astray(route: Route, told: Mapping[str, Any]) -> Iterator[str]:
    """Where the kernel's route is not the one that is expected."""
    if "error" in told:
        yield f"no route to {route.destination}: {told['error']}"
    elif route.out and told.get("dev") != route.out:
        yield f"{route.destination} goes by {told.get('route')}, not out of {route.out}"
    elif route.block is not None and str(told.get("to", "")).endswith("/0"):
        yield f"no route to block {route.block} of {route.owner}: {route.destination} goes by {told.get('route')}"
