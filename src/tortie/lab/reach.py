"""Who can reach whom where CNI plugins alone connect pods, and why not: what a matrix is held against. Pure.

    pod ── pod of the same node     ipvlan, macvlan bridge: switched in the driver; macvlan private, vepa: never
    pod ── pod of another node      on the LAN, or by routes: of the nodes, and of the pod
    pod ── its own node             ipvlan, macvlan: never, unless the node has a sibling of the pod's interface
    pod ── others                   by the pod's default route
    flannel                         all reach all, but pods are not reached from outside

Of what a configuration does not settle, nothing is expected: own routes of IPAM, plugins that a lab knows nothing of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tortie.base.addr import Net
from tortie.lab.blueprint import Blueprint
from tortie.lab.matrix import Matrix, Pair
from tortie.lab.networks import PARENTED, NodeNetwork, networks, pod_nets
from tortie.lab.probe import Endpoint
from tortie.lab.topology import OUTSIDE, Topology
from tortie.model.k8s import Pod

BRIDGED = "bridge"
KNOWN = (*PARENTED, BRIDGED)
_SILENT = ("private", "vepa")
"""Modes of macvlan in which pods of one node do not hear one another: the LAN's switch sends nothing back."""
_TAKEN_OVER = "passthru"
"""The mode of macvlan in which a pod takes the node's interface over."""
_NO_SIBLING = (
    "pods of one node do not reach one another: macvlan's mode {mode} leaves that to the switch, and it does not"
)
_OWN_NODE = (
    "a node and its own pods do not reach each other: children of {type} exchange no packets with their parent's own "
    'stack. "hostAccess": "sibling" in the configuration mends it'
)
_BY_ROUTER = (
    "a node and its own pods reach each other by way of the router alone, which sends their packets back to the node; "
    '"hostAccess": "sibling" in the configuration gives them a way of their own'
)
_POSSIBLE = ("", _BY_ROUTER)
_HIDDEN = (
    "pods are not reached from outside: nobody there has a route to them, and they leave with their node's address"
)
_NO_ROUTES = "pods of other nodes are not reached: no node and no pod has a route to the others' networks"


@dataclass(frozen=True, slots=True)
class Foretold:
    """What to expect of pairs, and the reason for those that should not reach each other, or do so in a strange way."""

    expected: Mapping[Pair, bool]
    why: Mapping[Pair, str] = field(default_factory=dict)
    rejecting: bool = False

    def notes(self, matrix: Matrix) -> tuple[str, ...]:
        """The reasons, each once, of what was probed and is as expected."""
        results = matrix.results.items()
        said = (self.why[pair] for pair, one in results if pair in self.why and one.passed is self.expected[pair])
        return tuple(dict.fromkeys(said))


@dataclass(frozen=True, slots=True)
class Party:
    """An end of a pair. `node` is a pod's, or a node's own name, "" outside."""

    name: str
    node: str
    is_pod: bool = False


def foretold(lab: Topology, everyone: Sequence[Endpoint], pods: Mapping[str, Pod], version: int) -> Foretold:
    """For all pairs of endpoints with an address of that family; `pods` by namespace/name."""
    found, nets = networks(lab), pod_nets(lab)
    parties = [_party(one.name, pods) for one in everyone if one.address(version)]
    expected: dict[Pair, bool] = {}
    why: dict[Pair, str] = {}
    for source in parties:
        for to in parties:
            said = _reaches(lab, found, nets, source, to) if source is not to else None
            if said is not None:
                expected[source.name, to.name] = said in _POSSIBLE
                if said:
                    why[source.name, to.name] = said
    return Foretold(expected, why)


def _party(name: str, pods: Mapping[str, Pod]) -> Party:
    """A pod in its node's own network is the node, as far as packets go."""
    pod = pods.get(name)
    if pod is None:
        return Party(name, "" if name == OUTSIDE else name)
    return Party(name, pod.spec.node_name, is_pod=not pod.spec.host_network)


def _reaches(
    lab: Topology, found: Mapping[str, NodeNetwork], nets: Mapping[str, Sequence[Net]], source: Party, to: Party
) -> str | None:
    """One of _POSSIBLE for a pair that should reach each other, why not for one that cannot, None if nobody knows."""
    pods = [one for one in (source, to) if one.is_pod]
    if lab.blueprint.flannel is not None:
        return _HIDDEN if source.name == OUTSIDE and to.is_pod else ""
    if any(one.node and found[one.node].mode == _TAKEN_OVER for one in (source, to)):
        return None
    if not pods:
        return ""
    if any(found[pod.node].type not in KNOWN for pod in pods):
        return None
    if source.node == to.node:
        return _at_home(lab, found[source.node], len(pods) == 2)
    return _apart(lab, found, nets, pods, OUTSIDE in (source.name, to.name))


def _at_home(lab: Topology, network: NodeNetwork, both_pods: bool) -> str:
    if network.type == BRIDGED:
        return ""
    if both_pods:
        return _NO_SIBLING.format(mode=network.mode) if network.mode in _SILENT else ""
    if network.host_access:
        return ""
    return _BY_ROUTER if network.routed and _router_told(lab) else _OWN_NODE.format(type=network.type)


def _apart(
    lab: Topology,
    found: Mapping[str, NodeNetwork],
    nets: Mapping[str, Sequence[Net]],
    pods: Sequence[Party],
    outside: bool,
) -> str | None:
    """Of ends on different nodes, or one of them outside."""
    own = [found[pod.node] for pod in pods]
    if any(not network.nets for network in own):
        return None
    on_lan = all(nets.get(pod.node) == () for pod in pods)
    if on_lan and not outside:
        return ""
    if not on_lan and (not nets or any(one.type in PARENTED and not one.routed for one in own)):
        return None  # the same network on several nodes, or one of which the LAN has no gateway
    if not on_lan and not _routes(lab.blueprint, own):
        return _NO_ROUTES if not outside and len(pods) == 2 else None
    if outside and not on_lan and not _router_told(lab):
        return None
    return "" if all(_has_default(lab, network) for network in own) else None


def _routes(blueprint: Blueprint, found: Sequence[NodeNetwork]) -> bool:
    """Whether somebody tells nodes where the others' pods are."""
    by_lab = blueprint.cni is not None and blueprint.cni.routes
    return by_lab or all(network.auto_routes for network in found)


def _router_told(lab: Topology) -> bool:
    return lab.blueprint.cni is not None and lab.blueprint.cni.routes


def _has_default(lab: Topology, network: NodeNetwork) -> bool:
    """The lab gives pods of ipvlan's routed modes one if nobody else does."""
    given = network.routed and lab.blueprint.cni is not None and (lab.blueprint.cni.routes or network.auto_routes)
    return network.default or given
