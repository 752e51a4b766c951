"""Which addresses nobody uses any more. Pure; source: Calico's garbage collection, whose questions come in this order.

reserved by Windows ─► not ours       no handle, no owner that can be asked ─► unknown, never released
of a tunnel         ─► used while its node is there
held ready          ─► used while its node is there
of a machine        ─► leaked if the machine of KubeVirt's is gone, whatever becomes of its pods
of a pod            ─► leaked if the pod is gone, runs elsewhere, was evicted, or has other addresses

Better than Calico: an endpoint that is alive keeps its addresses whatever its pod's status says, and one that is dead
goes before them, so that no node forwards an address to two pods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from tortie.base.errors import ConfigError
from tortie.ipam.allocation import Allocation, Key
from tortie.ipam.names import machine_handle, machine_network
from tortie.ipam.survey import Survey, pod_ips
from tortie.model.k8s import Pod
from tortie.model.workload import WorkloadEndpoint

GRACE = timedelta(minutes=15)
"""Calico's leakGracePeriod: how long an address must look leaked before it is released."""

MACHINE_GRACE = timedelta(minutes=5)
"""How long at least, if it was a virtual machine's."""

KUBERNETES = "k8s"
"""The orchestrator whose endpoints have a Pod that says whether they are alive."""


class Standing(StrEnum):
    """What is to be thought of an allocation."""

    USED = "used"
    LEAKED = "leaked"
    UNKNOWN = "unknown"
    RESERVED = "reserved"
    COOLING = "cooling"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`node_gone`: a leak of a node that is no more, which needs no grace. `least`: one that needs so much at least."""

    standing: Standing
    reason: str
    node_gone: bool = False
    least: timedelta = timedelta()

    @property
    def leaked(self) -> bool:
        return self.standing is Standing.LEAKED


def verdict(each: Allocation, survey: Survey) -> Verdict:
    """Whether an allocation is in use, and why."""
    if each.cooling:
        return Verdict(Standing.COOLING, f"released at {each.released_at}")
    if each.reserved:
        return Verdict(Standing.RESERVED, "Windows keeps it for itself")
    for endpoint in survey.users.get(each.ip, ()):
        if why_dead(endpoint, survey) is None:
            return Verdict(Standing.USED, f"{endpoint.title} has it")
    if not each.handle:
        return Verdict(Standing.UNKNOWN, "it has no handle")
    if each.of_machine:
        return _of_machine(each, survey)
    if each.pod is not None:
        return _of_pod(each, each.pod, survey)
    if each.tunnel and each.node:
        return _of_node(each, f"the {each.attrs['type']} of node {each.node}", survey)
    if each.ready and each.node:
        return _of_node(each, f"node {each.node} holds it ready for a pod to come", survey)
    return Verdict(Standing.UNKNOWN, "it was assigned neither to a pod nor to a tunnel")


def held_ready(each: Allocation, survey: Survey) -> bool:
    """Whether a node that is there holds it for pods to come, and no endpoint has it yet."""
    return each.ready and each.node in survey.node_names and each.ip not in survey.users


def _of_machine(each: Allocation, survey: Survey) -> Verdict:
    """Between two pods of its machine an address has no owner noted, and only its handle says whose it is."""
    assert each.handle is not None
    network = machine_network(each.handle)
    named = (name for name in survey.machine_names if network and machine_handle(network, *name) == each.handle)
    name = next(named, each.machine)
    title = f"the virtual machine {'/'.join(name)}" if name else f"a virtual machine, by its handle {each.handle}"
    if survey.machines is None:
        return Verdict(Standing.UNKNOWN, f"it belongs to {title}, and nobody can tell whether that exists")
    if name in survey.machine_names:
        return Verdict(Standing.USED, f"it belongs to {title}")
    return Verdict(Standing.LEAKED, f"it belonged to {title}, which is gone", least=MACHINE_GRACE)


def _of_node(each: Allocation, use: str, survey: Survey) -> Verdict:
    if each.node in survey.node_names:
        return Verdict(Standing.USED, use)
    return Verdict(Standing.LEAKED, f"node {each.node} is gone", node_gone=True)


def _of_pod(each: Allocation, name: tuple[str, str], survey: Survey) -> Verdict:
    pod, title = survey.pods_by_name.get(name), f"Pod {name[0]}/{name[1]}"
    gone = bool(each.node) and each.node not in survey.node_names
    dead = why_gone(pod, each.node)
    if pod is None or dead:
        also = f", and so is node {each.node}" if gone and pod is None else ""
        return Verdict(Standing.LEAKED, f"{title} {dead}{also}", gone)
    try:
        ips = pod_ips(pod)
    except ConfigError as error:
        return Verdict(Standing.USED, f"{title} reports addresses that cannot be read: {error}")
    if not ips:
        return Verdict(Standing.USED, f"{title} reports no address yet")
    if evicted(pod):
        return Verdict(Standing.LEAKED, f"{title} was evicted", gone)
    if each.ip not in ips:
        return Verdict(Standing.LEAKED, f"{title} has {', '.join(map(str, ips))}", gone)
    return Verdict(Standing.USED, f"{title} reports it")


def why_gone(pod: Pod | None, node: str) -> str:
    """Why what was made for a pod on a node is not that pod's any more; empty if it may be."""
    if pod is None:
        return "is gone"
    where = pod.spec.node_name
    return f"runs on node {where}" if where and node and where != node else ""


def evicted(pod: Pod) -> bool:
    return pod.status.phase == "Failed" and pod.status.reason == "Evicted"


def why_dead(endpoint: WorkloadEndpoint, survey: Survey) -> str | None:
    """Why an endpoint's pod does not need it any more. None if it does, or if nobody can tell."""
    spec = endpoint.spec
    if spec.orchestrator != KUBERNETES or not spec.pod:
        return None
    pod = survey.pods_by_name.get((endpoint.namespace, spec.pod))
    dead = why_gone(pod, spec.node) or ("was evicted" if pod is not None and evicted(pod) else "")
    return f"Pod {endpoint.namespace}/{spec.pod} {dead}" if dead else None


def leaks(survey: Survey) -> dict[Key, tuple[Allocation, Verdict]]:
    """Every allocation that nobody uses."""
    judged = ((each, verdict(each, survey)) for each in survey.allocations)
    return {each.key: (each, found) for each, found in judged if found.leaked}


def reclaimable(
    survey: Survey, found: Iterable[tuple[Allocation, Verdict]], due: Callable[[Allocation, Verdict], bool]
) -> tuple[Allocation, ...]:
    """The leaks that are due, without those whose handle holds something that is not: a container goes as a whole."""
    ripe = {each.key: each for each, why in found if due(each, why)}
    return tuple(
        each for each in ripe.values() if all(other.key in ripe for other in survey.by_handle.get(each.handle_key, ()))
    )


def in_the_way(survey: Survey, releases: Iterable[Allocation]) -> tuple[WorkloadEndpoint, ...]:
    """The dead endpoints that still have addresses that are to be released: they go first."""
    found = {}
    for each in releases:
        for endpoint in survey.users.get(each.ip, ()):
            found[endpoint.namespace, endpoint.name] = endpoint
    return tuple(found.values())
