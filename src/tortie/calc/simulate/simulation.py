"""A cluster that exists only on paper: manifests in, answers about connections out. No cluster, no root, no kernel.

    files ─► Documents ─► admission, defaults ─► what is only named is implied ─► Cluster ─► Explainer

Whatever `tortie apply` would refuse is refused here, with the same words. Implied are namespaces, with their label
`kubernetes.io/metadata.name`, service accounts, nodes, and an endpoint for every pod. Beside the pods there is
`outside`, a host of the internet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, NotFound, suggest
from tortie.calc.admission import Objects, Offline, admit, bootstrap, companions
from tortie.calc.cluster import Cluster
from tortie.calc.defaults import defaulted
from tortie.calc.explain import Explainer, Explanation, Party
from tortie.calc.simulate import workloads
from tortie.calc.simulate.files import Documents, read_all
from tortie.calc.simulate.slices import slices, with_addresses
from tortie.calc.simulate.workloads import Given
from tortie.calc.workloads import refreshed
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.k8s import K8sNode, Namespace, Pod, ServiceAccount
from tortie.model.kinds import KINDS
from tortie.model.meta import Metadata, Resource
from tortie.model.node import Node
from tortie.model.policy import Profile, protocol_number
from tortie.model.service import EndpointSlice, Service
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.translate import namespace_profile, service_account_profile

OUTSIDE = "outside"
OUTSIDE_IPS: tuple[IP, ...] = (parse_ip("198.51.100.9"), parse_ip("2001:db8:9::9"))
"""Where a lab has its outside host, too: addresses for documentation, RFC 5737 and RFC 3849."""

SERVICE_PREFIX = "svc/"

DEFAULT_PORT = 80
"""Of a pod that declares none."""

Key = tuple[type[Resource], str, str]
"""Kind, namespace and name of an object."""


@dataclass(frozen=True, slots=True, order=True)
class Port:
    """A port that somebody declares. `protocol` in lower case: tcp, udp, sctp."""

    port: int
    protocol: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}"


class Simulation:
    """One moment of a cluster that is described, not run."""

    def __init__(self, objects: Objects) -> None:
        """Of objects as a datastore has them, none missing."""
        self.objects = objects
        self.pods = {(pod.namespace, pod.name): pod for pod in objects.all(Pod)}
        self.skipped: Mapping[str, int] = {}
        """Kinds of documents that mean nothing to the network, with how many of each there were."""
        self.written: Mapping[Key, tuple[Given, ...]] = {}
        """Objects as they were written, with where; more than one where later ones replaced earlier ones."""
        self.cluster = Cluster(None)
        for one in _everything(self.objects):
            self.cluster.put(one)
        kinds: tuple[type[Resource], ...] = (Service, EndpointSlice, Node, K8sNode, BlockAffinity)
        also = [one for kind in kinds for one in objects.all(kind)]
        self.explainer = Explainer(self.cluster, also)

    @classmethod
    def read(
        cls, paths: Iterable[str | Path] | str | Path, onto: Iterable[Resource] = (), like: Simulation | None = None
    ) -> Simulation:
        """Of the manifests in files and directories, put over what `onto` says is there already.

        Pods have the addresses that they have in `like`. Raises an ExceptionGroup with a ConfigError for each document
        that is wrong, or one ConfigError.
        """
        return cls.of_documents(read_all([paths] if isinstance(paths, str | Path) else paths), onto, like)

    @classmethod
    def of(cls, resources: Iterable[Resource]) -> Simulation:
        """Of objects as a user would write them."""
        return cls.of_documents(Documents(tuple(Given(workloads.placed(one)) for one in resources), {}))

    @classmethod
    def of_documents(
        cls, documents: Documents, onto: Iterable[Resource] = (), like: Simulation | None = None
    ) -> Simulation:
        """Raises an ExceptionGroup with a ConfigError for each document that is wrong."""
        everything, written = _admitted(documents.given, Objects(onto))
        simulation = cls.of_stored(everything, like)
        simulation.skipped, simulation.written = documents.skipped, written
        return simulation

    @classmethod
    def of_stored(cls, resources: Iterable[Resource], like: Simulation | None = None) -> Simulation:
        """Of objects as a datastore has them, and all that they only name."""
        objects = Objects(resources)
        for one in [*_implied(objects, like.endpoints if like is not None else {})]:
            objects.put(one)
        for one in [*_behind(objects)]:
            objects.put(one)
        return cls(objects)

    @cached_property
    def endpoints(self) -> Mapping[str, WorkloadEndpoint]:
        """Every endpoint by the name of its party: `web/frontend`."""
        every = self.objects.all(WorkloadEndpoint)
        named = {f"{one.namespace}/{one.spec.pod}": one for one in every if one.spec.interface_name}
        return dict(sorted(named.items()))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every pod with a network, host networks too, in order."""
        hosts = {f"{namespace}/{name}" for (namespace, name), pod in self.pods.items() if pod.spec.host_network}
        return tuple(sorted({*self.endpoints, *hosts}))

    @property
    def problems(self) -> Mapping[str, str]:
        """Objects that count as absent, by title, with the reason."""
        return self.cluster.problems

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """The nodes, as `node/NAME`, if policy has to do with them: if there are host endpoints."""
        return tuple(f"node/{name}" for name in self.cluster.nodes()) if self.objects.all(HostEndpoint) else ()

    def party(self, text: str) -> Party:
        """`namespace/pod`, `pod` (of namespace default), `outside` or an address. Raises NotFound, ConfigError."""
        name = text if "/" in text else f"default/{text}"
        namespace, _, pod = name.partition("/")
        found = self.pods.get((namespace, pod))
        if found is not None and found.spec.host_network:
            node = found.spec.node_name or self.cluster.nodes()[0]
            ips = (self.cluster.address_of(node, version) for version in (4, 6))
            return Party(name, tuple(parse_ip(ip) for ip in ips if ip), node)
        if text == OUTSIDE and name not in self.endpoints:
            return Party(OUTSIDE, OUTSIDE_IPS)
        try:
            return self.explainer.party(text)
        except NotFound as error:
            hint = suggest(name, (*self.names, OUTSIDE))
            raise NotFound(f"{error}, {hint}" if hint else str(error)) from None

    def ports(self, name: str) -> tuple[Port, ...]:
        """What a pod declares, by number; nothing for what is no pod."""
        namespace, _, pod = name.partition("/")
        found, endpoint = self.pods.get((namespace, pod)), self.endpoints.get(name)
        ports: set[Port] = set()
        if found is not None:
            containers = (*found.spec.containers, *found.spec.init_containers)
            ports |= {Port(p.container_port, p.protocol.lower(), p.name) for one in containers for p in one.ports}
        elif endpoint is not None:
            ports |= {Port(p.port, str(p.protocol).lower(), p.name) for p in endpoint.spec.ports}
        return tuple(sorted(ports))

    def port(self, destination: str, protocol: str, port: int | str) -> int:
        """The number of a port, which may be given by the name that the destination declares. Raises ConfigError."""
        if isinstance(port, str) and not port.isdecimal():
            declared = self.ports(destination)
            wanted = protocol_number(protocol)
            for one in declared:
                if one.name == port and protocol_number(one.protocol) == wanted:
                    return one.port
            named = ", ".join(f"{one.name} ({one})" for one in declared if one.name) or "no named port"
            raise ConfigError(f'{destination} declares no {protocol} port "{port}"; it declares {named}')
        number = int(port)
        if not 0 <= number <= 65535:
            raise ConfigError(f"{number} is not a port: 0 to 65535")
        return number

    def labels(self, name: str) -> Mapping[str, str]:
        """What selectors see of a pod: its own labels, over those that its profiles give it."""
        return self.inherited(self.endpoints[name])

    def inherited(self, endpoint: WorkloadEndpoint | HostEndpoint) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for profile in reversed(endpoint.spec.profiles):
            found |= self.profile_labels(profile)
        return found | endpoint.labels

    def profile_labels(self, profile: str) -> Mapping[str, str]:
        """The labels that endpoints of a profile inherit."""
        return self._profile_labels.get(profile, {})

    @cached_property
    def _profile_labels(self) -> Mapping[str, Mapping[str, str]]:
        found = {one.name: one.spec.labels_to_apply for one in self.objects.all(Profile)}
        found |= {f"kns.{one.name}": namespace_profile(one)[1] for one in self.objects.all(Namespace)}
        accounts = self.objects.all(ServiceAccount)
        return found | {f"ksa.{one.namespace}.{one.name}": service_account_profile(one)[1] for one in accounts}

    def explain(
        self,
        source: str | Party,
        destination: str | Party,
        protocol: str = "tcp",
        port: int | str = DEFAULT_PORT,
        version: int | None = None,
    ) -> Explanation:
        """What becomes of the first packet of a connection, over IPv4 if both ends have it and nothing else is asked.

        Of a service with several backends it is the one that is denied, if one is. Raises NotFound for a pod that there
        is not, ConfigError for what makes no sense.
        """
        every = self.explanations(source, destination, protocol, port, (4, 6) if version is None else (version,))
        first = [one for one in every if one.version == every[0].version]
        return next((one for one in first if not one.allowed), first[0])

    def explanations(
        self,
        source: str | Party,
        destination: str | Party,
        protocol: str = "tcp",
        port: int | str = DEFAULT_PORT,
        versions: Sequence[int] = (4, 6),
    ) -> list[Explanation]:
        """The same for each IP version that both ends have, and each backend of a service; at least one."""
        start = self.party(source) if isinstance(source, str) else source
        found = []
        for end, number in self._ends(start, destination, protocol, port):
            both = [version for version in self.explainer.versions(start, end) if version in versions]
            found += [self.explainer.explain(start, end, protocol, number, version) for version in both]
        if not found:
            names = " and ".join(end if isinstance(end, str) else end.name for end in (source, destination))
            raise ConfigError(f"{names} have no addresses of the same IP version")
        return found

    def _ends(
        self, source: Party, destination: str | Party, protocol: str, port: int | str
    ) -> Iterator[tuple[Party, int]]:
        """Who is meant, with the port's number: of a service every backend that the source may get."""
        if isinstance(destination, Party) or not destination.startswith(SERVICE_PREFIX):
            party = self.party(destination) if isinstance(destination, str) else destination
            yield party, self.port(party.name, protocol, port)
        elif isinstance(port, int) or port.isdecimal():
            yield from ((one, int(port)) for one in self.explainer.parties(destination, protocol, int(port), source))
        else:
            yield from ((one, 0) for one in self.explainer.parties(f"{destination}:{port}", protocol, 0, source))


def _everything(objects: Objects) -> list[Resource]:
    return [one for kind in KINDS for one in objects.all(kind)]


def _admitted(given: Sequence[Given], there: Objects) -> tuple[list[Resource], dict[Key, tuple[Given, ...]]]:
    """Everything as it would be stored over what is there, and what was written.

    Raises an ExceptionGroup with a ConfigError for each document that apply would refuse.
    """
    view = Offline([*bootstrap("0" * 32), *_everything(there)])
    written: dict[Key, tuple[Given, ...]] = {}
    wrong: list[ConfigError] = []
    for one in sorted(workloads.without_doubles(given, there), key=lambda one: KINDS.index(type(one.resource))):
        new = one.resource
        try:
            stored = admit(new, Objects.get(view, type(new), new.name, new.namespace), view)
        except ConfigError as error:
            wrong.append(error.within(one.source, new.title))
            continue
        if isinstance(new, Pod) and isinstance(stored, Pod):
            stored = replace(stored, status=new.status)  # an exported pod says which addresses it has
        for put in (stored, *companions(stored)):
            view.put(put)
        key = type(stored), stored.namespace, stored.name
        written[key] = (*written.get(key, ()), one)
    if wrong:
        raise ExceptionGroup("documents are wrong", wrong)
    for endpoint in there.all(WorkloadEndpoint):
        pod = view.get(Pod, endpoint.spec.pod, endpoint.namespace)
        rewritten = (Pod, endpoint.namespace, endpoint.spec.pod) in written
        if pod is not None and rewritten and (WorkloadEndpoint, endpoint.namespace, endpoint.name) not in written:
            view.put(refreshed(endpoint, pod))
    return _everything(view), written


def _implied(objects: Objects, like: Mapping[str, WorkloadEndpoint]) -> Iterator[Resource]:
    """What is only named: namespaces, service accounts, nodes, the endpoints of pods."""
    every, pods = _everything(objects), objects.all(Pod)
    names = {one.namespace for one in every if one.namespace} | {one.name for one in objects.all(Namespace)}
    for name in sorted(names):
        if objects.get(Namespace, name) is None:
            yield defaulted(Namespace(metadata=Metadata(name=name)), None)
    accounts = {(name, "default") for name in names} | {(pod.namespace, pod.service_account) for pod in pods}
    for namespace, name in sorted(accounts):
        if objects.get(ServiceAccount, name, namespace) is None:
            yield ServiceAccount(metadata=Metadata(name=name, namespace=namespace))
    hosts = objects.all(HostEndpoint)
    named = (*(pod.spec.node_name for pod in pods), *(one.spec.node for one in hosts))
    known = {one.spec.node: one.spec.ips for one in hosts if one.spec.ips}
    nodes = list(workloads.nodes(objects.all(Node), objects.all(K8sNode), named, known))
    yield from nodes
    attached = {(one.namespace, one.spec.pod) for one in objects.all(WorkloadEndpoint)}
    missing = [
        pod
        for pod in pods
        if (pod.namespace, pod.name) not in attached and not pod.spec.host_network and not pod.finished
    ]
    on = sorted(node.name for node in (*objects.all(Node), *nodes))
    yield from workloads.endpoints(missing, workloads.pod_nets(objects.all(IPPool)), on, like)


def _behind(objects: Objects) -> Iterator[Resource]:
    """What Kubernetes adds to services."""
    services, pods = objects.all(Service), {(pod.namespace, pod.name): pod for pod in objects.all(Pod)}
    yield from with_addresses(services)
    yield from slices(services, objects.all(EndpointSlice), objects.all(WorkloadEndpoint), pods)
