"""Whether what follows a connection's first packet goes past the rules: by the flow table of each node that forwards it
from a pod or to one."""

from __future__ import annotations

from collections.abc import Iterator

from tortie.calc.explain.explanation import Past
from tortie.calc.explain.party import Party
from tortie.calc.explain.picture import Picture
from tortie.calc.flow_tables import looked_at, without

TCP = 6
BY_TABLE = "once it is established, past the rules by a flow table"
BY_RULES = "every packet by the rules"


def past_the_rules(picture: Picture, source: Party, destination: Party, protocol: int) -> Iterator[Past]:
    """Of an allowed connection; nothing of nodes where nobody wants flow tables."""
    for node, pods in _forwarding(source, destination).items():
        settings = picture.settings(node)
        if not settings.flow_tables:
            continue
        why = without(settings) or ("only TCP goes past them" if protocol != TCP else "")
        stays = [(pod, looked_at(picture.state.endpoints[pod.interface].qos)) for pod in pods]
        why = why or "; ".join(f"{pod.name} stays out of the flow table: {reason}" for pod, reason in stays if reason)
        reason = f"{BY_RULES}: {why}" if why else BY_TABLE
        yield Past(node, not why, reason, tuple(pod.interface for pod in pods))


def _forwarding(source: Party, destination: Party) -> dict[str, list[Party]]:
    """By node the pods between which and others it forwards packets, in the order in which they come by: what a node
    itself says or hears is not forwarded, nor what a pod says to itself."""
    found: dict[str, list[Party]] = {}
    if source.interface == destination.interface:
        return found
    for pod, other in ((source, destination), (destination, source)):
        if pod.is_pod and (other.is_pod or other.node != pod.node):
            found.setdefault(pod.node, []).append(pod)
    return found
