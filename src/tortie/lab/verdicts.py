"""What policy says about the pairs of a matrix, and why: the explainer's answers, for every pair at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tortie.base.errors import NotFound
from tortie.calc.cluster import INPUTS, Cluster
from tortie.calc.explain import Explainer, Explanation, Party
from tortie.lab.cluster import endpoints
from tortie.lab.matrix import Matrix, Pair
from tortie.lab.places import opened
from tortie.lab.probe import Endpoint, Protocol, measure
from tortie.lab.state import LabDirectory
from tortie.lab.topology import OUTSIDE
from tortie.model.k8s import Pod
from tortie.model.meta import Resource
from tortie.model.store import Store


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
    """What the packets did and what policy says, of the same moment if nobody changed the cluster meanwhile."""

    matrix: Matrix
    verdicts: Verdicts

    @property
    def disagreements(self) -> list[Pair]:
        return self.matrix.disagreements(self.verdicts.expected)


async def compared(directory: LabDirectory, protocol: Protocol, version: int, port: int | None = None) -> Compared:
    """Probes every pair of a lab, and asks policy about it. Raises ConfigError without a lab or with too few pods."""
    lab = directory.read()
    async with opened(directory) as store:
        everyone = endpoints(lab, (await store.list(Pod)).items)
        said = await verdicts(store, everyone, protocol, version, port)
    measured = await measure(everyone, protocol, version, port)
    return Compared(replace(measured, rejecting=said.rejecting), said)
