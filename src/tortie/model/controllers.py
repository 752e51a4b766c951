"""KubeControllersConfiguration: what the controllers of the cluster are to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from msgspec import UNSET, field

from tortie.model.k8s import Other
from tortie.model.meta import Kind, Port, Problem, Resource, Value, cidr_problem, duration_problem

Switch = Literal["Enabled", "Disabled"]


class HostEndpointTemplate(Value, frozen=True, kw_only=True):
    """A host endpoint for every node that is selected, by its addresses in some networks or by an interface's name."""

    generate_name: str
    interface_cidrs: tuple[str, ...] = field(name="interfaceCIDRs", default=())
    interface_pattern: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    node_selector: str = ""

    def problems(self) -> Iterator[Problem]:
        if not self.generate_name:
            yield "generateName", "is required: it becomes a part of the host endpoints' names"
        if not self.interface_cidrs and not self.interface_pattern:
            yield "interfaceCIDRs", "or interfacePattern is required: which of a node's interfaces are meant"
        for i, net in enumerate(self.interface_cidrs):
            yield from cidr_problem(f"interfaceCIDRs[{i}]", net)
        try:
            re.compile(self.interface_pattern)
        except re.error as error:
            yield "interfacePattern", f'"{self.interface_pattern}" is not a regular expression: {error}'


class AutoHostEndpointConfig(Value, frozen=True, kw_only=True):
    auto_create: Switch | None = None
    create_default_host_endpoint: Switch | None = None
    templates: tuple[HostEndpointTemplate, ...] = ()


class NodeControllerConfig(Value, frozen=True, kw_only=True):
    reconciler_period: str | None = None
    sync_labels: Switch | None = None
    host_endpoint: AutoHostEndpointConfig = AutoHostEndpointConfig()
    leak_grace_period: str | None = None

    def problems(self) -> Iterator[Problem]:
        yield from duration_problem("reconcilerPeriod", self.reconciler_period)
        yield from duration_problem("leakGracePeriod", self.leak_grace_period)


class LoadBalancerControllerConfig(Value, frozen=True, kw_only=True):
    assign_ips: Literal["AllServices", "RequestedServicesOnly"] | None = field(name="assignIPs", default=None)


class ControllersConfig(Value, frozen=True, kw_only=True):
    """Those that are acted on are typed; the others have no work where Kubernetes' own objects are read."""

    node: NodeControllerConfig = NodeControllerConfig()
    load_balancer: LoadBalancerControllerConfig = LoadBalancerControllerConfig()
    policy: Other = UNSET
    workload_endpoint: Other = UNSET
    service_account: Other = UNSET
    namespace: Other = UNSET
    migration: Other = UNSET


class KubeControllersConfigurationSpec(Value, frozen=True, kw_only=True):
    log_severity_screen: str = ""
    health_checks: Switch | None = None
    etcd_v3_compaction_period: str | None = field(name="etcdV3CompactionPeriod", default=None)
    prometheus_metrics_port: Port | None = None
    debug_profile_port: Port | None = None
    controllers: ControllersConfig = ControllersConfig()

    def problems(self) -> Iterator[Problem]:
        yield from duration_problem("etcdV3CompactionPeriod", self.etcd_v3_compaction_period)


class KubeControllersConfiguration(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="KubeControllersConfiguration",
        plural="kubecontrollersconfigurations",
        aliases=("kubecontrollersconfiguration", "kubecontrollersconfig"),
    )
    spec: KubeControllersConfigurationSpec = KubeControllersConfigurationSpec()
    status: Any = None

    def problems(self) -> Iterator[Problem]:
        if self.name != "default":
            yield "metadata.name", f'"{self.name}" must be "default": there is one only'
