"""What policy says about the pairs of a matrix, and why: the explainer's answers, for every pair at once.

Where plugins alone connect pods nobody enforces policy; there the networks' configurations say what to expect.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tortie.base.errors import NotFound
from tortie.calc.cluster import INPUTS, Cluster
from tortie.calc.explain import Explainer, Explanation, Party
from tortie.lab.cluster import answering_nodes, endpoints
from tortie.lab.matrix import Matrix, Outcome, Pair
from tortie.lab.places import opened
from tortie.lab.probe import TIMEOUT, Endpoint, Protocol, measure
from tortie.lab.reach import Foretold, foretold
from tortie.lab.state import LabDirectory
from tortie.lab.topology import OUTSIDE, Topology
from tortie.model.k8s import Pod
from tortie.model.meta import Resource
from tortie.model.store import Store

SETTLING = 15.0
"""Seconds that neighbours and switches may take to know of one another."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Explanations by pair. `rejecting`: a denial refuses instead of dropping."""

    explanations: dict[Pair, Explanation]
    rejecting: bool

    @property
    def expected(self) -> dict[Pair, bool]:
        return {pair: explanation.allowed for pair, explanation in self.explanations.items()}

    @property
    def why(self) -> dict[Pair, str]:
        """The decisive reason of every pair."""
        return {pair: explanation.decisive.reason for pair, explanation in self.explanations.items()}


async def verdicts(
    store: Store, everyone: Sequence[Endpoint], protocol: Protocol, version: int, port: int | None
) -> Verdicts:
    """Policy's view of every pair, as the datastore is now.

    Left out is what policy alone does not decide: from outside to a pod, for the gateway has no route there.
    """
    cluster = Cluster(None)
    for resource in await _inputs(store):
        cluster.put(resource)
    explainer = Explainer(cluster)
    parties = {endpoint.name: _party(explainer, endpoint, version) for endpoint in everyone}
    found: dict[Pair, Explanation] = {}
    for source in everyone:
        for to in everyone:
            a, b = parties[source.name], parties[to.name]
            if source is to or a is None or b is None or (source.name == OUTSIDE and b.is_pod):
                continue
            number = 0 if protocol == "icmp" else to.port(protocol, port)
            found[source.name, to.name] = explainer.explain(a, b, protocol, number, version)
    return Verdicts(found, cluster.settings().deny == "Reject")


def _party(explainer: Explainer, endpoint: Endpoint, version: int) -> Party | None:
    """A pod, or just an address: a pod in its node's own network has no endpoint."""
    address = endpoint.address(version)
    if not address:
        return None
    try:
        return explainer.party(endpoint.name if "/" in endpoint.name else address)
    except NotFound:
        return explainer.party(address)


async def _inputs(store: Store) -> Iterable[Resource]:
    return [resource for kind in INPUTS for resource in (await store.list(kind)).items]


@dataclass(frozen=True, slots=True)
class Compared:
    """What the packets did and what policy says, or the networks' configurations, of the same moment if nobody changed
    the cluster meanwhile."""

    matrix: Matrix
    verdicts: Verdicts | Foretold

    @property
    def disagreements(self) -> list[Pair]:
        return self.matrix.disagreements(self.verdicts.expected)


async def compared(
    directory: LabDirectory, protocol: Protocol, version: int, port: int | None = None, seconds: float = TIMEOUT
) -> Compared:
    """Probes every pair of a lab, each for so long, and asks policy about it. Raises ConfigError without a lab or with
    too few pods."""
    lab = directory.read()
    async with opened(directory) as store:
        pods = (await store.list(Pod)).items
        everyone = endpoints(lab, pods)
        said = None if lab.blueprint.plugins_alone else await verdicts(store, everyone, protocol, version, port)
    if said is None:
        return await _on_plugins_alone(lab, everyone, pods, protocol, version, port, seconds)
    measured = await measure(everyone, protocol, version, port, seconds)
    return Compared(replace(measured, rejecting=said.rejecting), said)


async def settled(directory: LabDirectory, protocol: Protocol = "tcp", version: int = 4) -> Compared:
    """The first comparison without a disagreement in which whoever is reached answers, or after some time the last one:
    a network takes a moment, and so does a kubelet that has just been started. Each time probes have longer, as a busy
    machine may need."""
    deadline = time.monotonic() + SETTLING
    seconds = TIMEOUT
    while True:
        found = await compared(directory, protocol, version, seconds=seconds)
        seconds *= 2
        silent = any(one.outcome is Outcome.REFUSED for one in found.matrix.results.values())
        if not (found.disagreements or silent) or time.monotonic() > deadline:
            return found


async def _on_plugins_alone(
    lab: Topology,
    some: Sequence[Endpoint],
    pods: Iterable[Pod],
    protocol: Protocol,
    version: int,
    port: int | None,
    seconds: float,
) -> Compared:
    """With the nodes between the pods and the outside host."""
    everyone = [*some[:-1], *answering_nodes(lab), some[-1]]
    said = foretold(lab, everyone, {f"{pod.namespace}/{pod.name}": pod for pod in pods}, version)
    measured = await measure(everyone, protocol, version, port, seconds)
    return Compared(replace(measured, judge="network", notes=said.notes(measured)), said)
