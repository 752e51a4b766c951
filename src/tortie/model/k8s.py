"""The Kubernetes objects we act on: Namespace, ServiceAccount, Pod, Node, NetworkPolicy, and KubeVirt's machines.

Fields that no network cares about are named (so that a misspelt one is found) but not looked into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from msgspec import UNSET, UnsetType, field

from tortie.base.addr import parse_net, within
from tortie.base.errors import ConfigError
from tortie.model.meta import (
    LABEL_KEY,
    LABEL_VALUE,
    Kind,
    OwnerReference,
    Port,
    Problem,
    Resource,
    Value,
    cidr_problem,
)
from tortie.model.policy import PORT_NAME, protocol_number

Other = Any | UnsetType
"""A field that is kept as it is."""


def label_problems(key: str, values: Iterable[str]) -> Iterator[str]:
    """Why no object can carry such a label."""
    if not LABEL_KEY.match(key):
        yield f'"{key}" is not a label name'
    for value in values:
        if not LABEL_VALUE.match(value):
            yield f'"{value}" is not a label value: at most 63 of letters, digits, "-_."'


class LabelSelectorRequirement(Value, frozen=True, kw_only=True):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def problems(self) -> Iterator[Problem]:
        for problem in label_problems(self.key, self.values):
            yield "", problem
        if self.operator in ("In", "NotIn") and not self.values:
            yield "values", f"operator {self.operator} needs at least one value"
        if self.operator in ("Exists", "DoesNotExist") and self.values:
            yield "values", f"operator {self.operator} takes no values"


class LabelSelector(Value, frozen=True, kw_only=True):
    match_labels: dict[str, str] = field(default_factory=dict)
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()

    def problems(self) -> Iterator[Problem]:
        for key, value in self.match_labels.items():
            for problem in label_problems(key, (value,)):
                yield f"matchLabels[{key}]", problem


class NamespaceSpec(Value, frozen=True, kw_only=True):
    finalizers: tuple[str, ...] = ()


class Namespace(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(api_version="v1", kind="Namespace", plural="namespaces", aliases=("namespace", "ns"))
    spec: NamespaceSpec = NamespaceSpec()
    status: Any = None


class ServiceAccount(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="v1",
        kind="ServiceAccount",
        plural="serviceaccounts",
        namespaced=True,
        aliases=("serviceaccount", "sa"),
    )
    secrets: Other = UNSET
    image_pull_secrets: Other = UNSET
    automount_service_account_token: bool | None = None


class ContainerPort(Value, frozen=True, kw_only=True):
    container_port: Port
    name: str = ""
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    host_port: Port = 0
    host_ip: str = field(name="hostIP", default="")

    def problems(self) -> Iterator[Problem]:
        if self.container_port == 0:
            yield "containerPort", "must be from 1 to 65535"
        if self.name and not PORT_NAME.match(self.name):
            yield "name", f'"{self.name}" is not a port name'


class EnvVar(Value, frozen=True, kw_only=True):
    name: str
    value: str = ""
    value_from: Other = UNSET


class HTTPHeader(Value, frozen=True, kw_only=True):
    name: str
    value: str = ""


class HTTPGetAction(Value, frozen=True, kw_only=True):
    port: int | str
    path: str = ""
    host: str = ""
    scheme: Literal["", "HTTP", "HTTPS"] = ""
    http_headers: tuple[HTTPHeader, ...] = ()

    def problems(self) -> Iterator[Problem]:
        yield from _probed_port(self.port)


class TCPSocketAction(Value, frozen=True, kw_only=True):
    port: int | str
    host: str = ""

    def problems(self) -> Iterator[Problem]:
        yield from _probed_port(self.port)


class ExecAction(Value, frozen=True, kw_only=True):
    command: tuple[str, ...] = ()


def _probed_port(port: int | str) -> Iterator[Problem]:
    if isinstance(port, int) and not 1 <= port <= 65535:
        yield "port", f"{port} is not from 1 to 65535"
    if isinstance(port, str) and not PORT_NAME.match(port):
        yield "port", f'"{port}" is neither a number nor a port name'


class Probe(Value, frozen=True, kw_only=True):
    """How a container is asked for its health. Times in seconds; the defaults are Kubernetes'."""

    http_get: HTTPGetAction | None = None
    tcp_socket: TCPSocketAction | None = None
    exec: ExecAction | None = None
    grpc: Other = UNSET
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: Other = UNSET

    def problems(self) -> Iterator[Problem]:
        ways = (self.http_get, self.tcp_socket, self.exec, None if self.grpc is UNSET else self.grpc)
        if sum(way is not None for way in ways) != 1:
            yield "", "give one of httpGet, tcpSocket, exec, grpc"
        if self.initial_delay_seconds < 0:
            yield "initialDelaySeconds", f"{self.initial_delay_seconds} is negative"
        for name, value in (
            ("timeoutSeconds", self.timeout_seconds),
            ("periodSeconds", self.period_seconds),
            ("successThreshold", self.success_threshold),
            ("failureThreshold", self.failure_threshold),
        ):
            if value < 1:
                yield name, f"{value} is not at least 1"


class Container(Value, frozen=True, kw_only=True):
    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    ports: tuple[ContainerPort, ...] = ()
    env: tuple[EnvVar, ...] = ()
    env_from: Other = UNSET
    resources: Other = UNSET
    resize_policy: Other = UNSET
    restart_policy: Other = UNSET
    restart_policy_rules: Other = UNSET
    volume_mounts: Other = UNSET
    volume_devices: Other = UNSET
    liveness_probe: Other = UNSET
    readiness_probe: Probe | UnsetType = UNSET
    startup_probe: Other = UNSET
    lifecycle: Other = UNSET
    termination_message_path: Other = UNSET
    termination_message_policy: Other = UNSET
    image_pull_policy: Other = UNSET
    security_context: Other = UNSET
    stdin: Other = UNSET
    stdin_once: Other = UNSET
    tty: Other = UNSET


class PodSpec(Value, frozen=True, kw_only=True):
    containers: tuple[Container, ...]
    init_containers: tuple[Container, ...] = ()
    node_name: str = ""
    service_account_name: str = ""
    service_account: str = ""
    host_network: bool = False
    hostname: str = ""
    subdomain: str = ""
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    termination_grace_period_seconds: int | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    volumes: Other = UNSET
    ephemeral_containers: Other = UNSET
    active_deadline_seconds: Other = UNSET
    dns_policy: Other = UNSET
    dns_config: Other = UNSET
    automount_service_account_token: Other = UNSET
    host_pid: Other = field(name="hostPID", default=UNSET)
    host_ipc: Other = field(name="hostIPC", default=UNSET)
    host_users: Other = UNSET
    share_process_namespace: Other = UNSET
    security_context: Other = UNSET
    image_pull_secrets: Other = UNSET
    affinity: Other = UNSET
    scheduler_name: Other = UNSET
    scheduling_gates: Other = UNSET
    tolerations: Other = UNSET
    host_aliases: Other = UNSET
    priority_class_name: Other = UNSET
    priority: Other = UNSET
    preemption_policy: Other = UNSET
    readiness_gates: Other = UNSET
    runtime_class_name: Other = UNSET
    enable_service_links: Other = UNSET
    overhead: Other = UNSET
    topology_spread_constraints: Other = UNSET
    set_hostname_as_fqdn: Other = field(name="setHostnameAsFQDN", default=UNSET)
    hostname_override: Other = UNSET
    os: Other = UNSET
    resource_claims: Other = UNSET
    resources: Other = UNSET
    workload_ref: Other = UNSET

    def problems(self) -> Iterator[Problem]:
        if not self.containers:
            yield "containers", "needs at least one container"
        names = [container.name for container in (*self.containers, *self.init_containers)]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield "containers", f'two containers are named "{name}"'


class PodIP(Value, frozen=True, kw_only=True):
    ip: str = ""


class PodCondition(Value, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """`status` is True, False or Unknown."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""


class PodStatus(Value, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """What the lab and Kubernetes write back; fields that we do not use are dropped."""

    phase: str = ""
    message: str = ""
    reason: str = ""
    pod_ip: str = field(name="podIP", default="")
    pod_ips: tuple[PodIP, ...] = field(name="podIPs", default=())
    host_ip: str = field(name="hostIP", default="")
    start_time: str = ""
    conditions: tuple[PodCondition, ...] = ()


class Pod(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(api_version="v1", kind="Pod", plural="pods", namespaced=True, aliases=("pod", "po"))
    spec: PodSpec
    status: PodStatus = PodStatus()

    @property
    def service_account(self) -> str:
        return self.spec.service_account_name or self.spec.service_account or "default"

    @property
    def finished(self) -> bool:
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def ready(self) -> bool:
        """What its condition Ready says; where it has none, it is ready when it runs and has an address."""
        for one in self.status.conditions:
            if one.type == "Ready":
                return one.status == "True"
        return self.status.phase == "Running" and bool(self.status.pod_ip or self.status.pod_ips)


TO_BE_DELETED = "ToBeDeletedByClusterAutoscaler"
"""The taint of a node that the cluster's autoscaler is about to delete."""


class K8sNodeSpec(Value, frozen=True, kw_only=True):
    pod_cidr: str = field(name="podCIDR", default="")
    pod_cidrs: tuple[str, ...] = field(name="podCIDRs", default=())
    provider_id: Other = field(name="providerID", default=UNSET)
    unschedulable: bool = False
    taints: Other = UNSET
    config_source: Other = UNSET
    external_id: Other = field(name="externalID", default=UNSET)


class K8sNode(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(api_version="v1", kind="Node", plural="nodes", aliases=("k8snode", "nodes.v1"))
    spec: K8sNodeSpec = K8sNodeSpec()
    status: Any = None

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """Where its pods have their addresses; who is older says one alone, in another field."""
        return self.spec.pod_cidrs or tuple(filter(None, [self.spec.pod_cidr]))

    @property
    def leaving(self) -> bool:
        """Whether it is being deleted, or about to be."""
        taints = self.spec.taints if isinstance(self.spec.taints, list) else []
        doomed = any(isinstance(taint, dict) and taint.get("key") == TO_BE_DELETED for taint in taints)
        return doomed or self.metadata.deletion_timestamp is not None


class IPBlock(Value, frozen=True, kw_only=True):
    cidr: str
    except_: tuple[str, ...] = field(name="except", default=())

    def problems(self) -> Iterator[Problem]:
        yield from cidr_problem("cidr", self.cidr)
        for i, cidr in enumerate(self.except_):
            yield from cidr_problem(f"except[{i}]", cidr)
            try:
                inside = within(parse_net(cidr), parse_net(self.cidr))
            except ConfigError:
                continue
            if not inside or cidr == self.cidr:
                yield f"except[{i}]", f'"{cidr}" must be strictly inside "{self.cidr}"'


class NetworkPolicyPeer(Value, frozen=True, kw_only=True):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None

    def problems(self) -> Iterator[Problem]:
        if self.ip_block is not None and (self.pod_selector is not None or self.namespace_selector is not None):
            yield "ipBlock", "cannot be combined with podSelector or namespaceSelector"
        if self == NetworkPolicyPeer():
            yield "", "give podSelector, namespaceSelector or ipBlock"


class NetworkPolicyPort(Value, frozen=True, kw_only=True):
    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None

    def problems(self) -> Iterator[Problem]:
        if self.protocol is not None and self.protocol not in ("TCP", "UDP", "SCTP"):
            yield "protocol", f'"{self.protocol}" is not one of TCP, UDP, SCTP'
        if isinstance(self.port, int) and not 1 <= self.port <= 65535:
            yield "port", f"{self.port} is not from 1 to 65535"
        if isinstance(self.port, str) and not PORT_NAME.match(self.port):
            yield "port", f'"{self.port}" is neither a number nor a port name'
        if self.end_port is not None:
            if not isinstance(self.port, int):
                yield "endPort", "needs a numeric port"
            elif not self.port <= self.end_port <= 65535:
                yield "endPort", f"{self.end_port} is not from {self.port} to 65535"

    @property
    def protocol_name(self) -> str:
        assert protocol_number(self.protocol or "TCP") is not None
        return self.protocol or "TCP"


class IngressRule(Value, frozen=True, kw_only=True):
    ports: tuple[NetworkPolicyPort, ...] = ()
    from_: tuple[NetworkPolicyPeer, ...] = field(name="from", default=())


class EgressRule(Value, frozen=True, kw_only=True):
    ports: tuple[NetworkPolicyPort, ...] = ()
    to: tuple[NetworkPolicyPeer, ...] = ()


class K8sNetworkPolicySpec(Value, frozen=True, kw_only=True):
    pod_selector: LabelSelector = LabelSelector()
    ingress: tuple[IngressRule, ...] = ()
    egress: tuple[EgressRule, ...] = ()
    policy_types: tuple[Literal["Ingress", "Egress"], ...] = ()


class K8sNetworkPolicy(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="networking.k8s.io/v1",
        kind="NetworkPolicy",
        plural="networkpolicies",
        namespaced=True,
        aliases=("knp", "k8snetworkpolicy", "kubernetesnetworkpolicy"),
    )
    spec: K8sNetworkPolicySpec = K8sNetworkPolicySpec()
    status: Any = None


class VirtualMachine(Resource, frozen=True, kw_only=True):
    """A machine of KubeVirt's, running or not. Its instance and its instance's pods have its name in theirs."""

    KIND: ClassVar[Kind] = Kind(
        api_version="kubevirt.io/v1",
        kind="VirtualMachine",
        plural="virtualmachines",
        namespaced=True,
        aliases=("virtualmachine", "vm", "vms"),
    )
    spec: Any = None
    status: Any = None


class VirtualMachineInstance(Resource, frozen=True, kw_only=True):
    """A machine that runs. It outlives its pods: after a migration or a restart it has another one."""

    KIND: ClassVar[Kind] = Kind(
        api_version="kubevirt.io/v1",
        kind="VirtualMachineInstance",
        plural="virtualmachineinstances",
        namespaced=True,
        aliases=("virtualmachineinstance", "vmi", "vmis"),
    )
    spec: Any = None
    status: Any = None

    @property
    def machine(self) -> OwnerReference | None:
        """The VirtualMachine that it is of, if it is of one."""
        owners = self.metadata.owner_references
        return next((owner for owner in owners if owner.kind == VirtualMachine.KIND.kind), None)

    @property
    def node(self) -> str:
        """Where it runs, as KubeVirt says; "" while it does not say."""
        status = self.status if isinstance(self.status, dict) else {}
        return str(status.get("nodeName") or "")
