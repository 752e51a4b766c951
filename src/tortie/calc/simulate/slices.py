"""What Kubernetes would make of the services of a simulation: addresses of their own, and slices of what is behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from tortie.calc.endpoint_slices import Declared, Ports, changes, declared, ports_at
from tortie.calc.service_addresses import Ranges, addressed
from tortie.model.k8s import Pod
from tortie.model.policy import PROTOCOLS, protocol_number
from tortie.model.service import Endpoint, EndpointSlice, Service
from tortie.model.workload import WorkloadEndpoint

_NAMES = {number: name for name, number in PROTOCOLS.items()}


def with_addresses(services: Iterable[Service]) -> Iterator[Service]:
    """The services that have no address yet, with one of each family that they want."""
    for outcome in addressed(services, Ranges(), (4, 6)):
        if outcome.after is not outcome.before:
            yield outcome.after


def slices(
    services: Iterable[Service],
    there: Iterable[EndpointSlice],
    endpoints: Iterable[WorkloadEndpoint],
    pods: Mapping[tuple[str, str], Pod],
) -> Iterator[EndpointSlice]:
    """Of services that select pods and have no slices yet. Pods whose ports have other numbers are in other slices."""
    there = list(there)
    known = {(one.namespace, one.service) for one in there}
    taken: dict[str, set[str]] = defaultdict(set)
    for one in there:
        taken[one.namespace].add(one.name)
    every: dict[str, list[WorkloadEndpoint]] = defaultdict(list)
    for endpoint in endpoints:
        every[endpoint.namespace].append(endpoint)
    for service in services:
        selector = service.spec.selector
        if not selector or (service.namespace, service.name) in known:
            continue
        behind: dict[tuple[int, Ports], list[Endpoint]] = defaultdict(list)
        for endpoint in every[service.namespace]:
            if selector.items() <= endpoint.labels.items():
                has = _declared(endpoint, pods.get((endpoint.namespace, endpoint.spec.pod)))
                ports = ports_at(service.spec.ports, has)
                for ip in endpoint.spec.ips:
                    behind[ip.version, ports].append(Endpoint(addresses=(str(ip),), node_name=endpoint.spec.node))
        if behind:
            yield from (change.slice for change in changes(service, behind, (), taken[service.namespace]))


def _declared(endpoint: WorkloadEndpoint, pod: Pod | None) -> Declared:
    if pod is not None:
        return declared(pod)
    named = ((port.name, protocol_number(port.protocol), port.port) for port in endpoint.spec.ports)
    return {(name, _NAMES[number]): port for name, number, port in named if number in _NAMES}
