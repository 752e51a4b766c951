"""Whose interface a call is about: a Kubernetes pod's, or that of a container that is no pod.

          namespace            WorkloadEndpoint                       host interface
pod       the pod's            <node>-k8s-<pod>-eth0                  cali<SHA-1 of namespace.pod>[:11]
container default              <node>-cni-<container id>-<interface>  cali<container id, or its SHA-1>[:11]
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from tortie.agent.netconf import NetConf
from tortie.base.errors import ConfigError
from tortie.calc.workloads import ENDPOINT
from tortie.cni.spec import Call
from tortie.model.workload import WorkloadEndpoint, container_interface_name, endpoint_name, interface_name
from tortie.policy.translate import NAMESPACE

POD, CONTAINER = "k8s", "cni"
"""Orchestrators."""
DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Workload:
    """`name` is the pod's or the container's id, `interface` the host's end."""

    node: str
    orchestrator: str
    namespace: str
    name: str
    interface: str
    ifname: str
    """The interface in the container that a call names."""

    @property
    def title(self) -> str:
        return f"{self.namespace}/{self.name}" if self.orchestrator == POD else f"container {self.name}"

    @property
    def endpoint(self) -> str:
        """A pod has one endpoint, of one name, whatever its interface is called."""
        return ENDPOINT if self.orchestrator == POD else self.ifname

    @property
    def endpoint_name(self) -> str:
        """Raises ConfigError where a part would run into the dashes between the parts."""
        whose = "pod" if self.orchestrator == POD else "container id"
        for what, part in (("node", self.node), (whose, self.name), ("interface", self.endpoint)):
            if part.startswith("-") or part.endswith("-"):
                raise ConfigError(f'"{part}" begins or ends with a dash', what)
        return endpoint_name(self.node, self.orchestrator, self.name, self.endpoint)


def workload_of(node: str, call: Call, conf: NetConf) -> Workload:
    if conf.is_pod:
        interface = interface_name(conf.namespace, conf.pod)
        return Workload(node, POD, conf.namespace, conf.pod, interface, call.ifname)
    given = [sanitised(value) for key, value in conf.labels if key == NAMESPACE]
    namespace = next(filter(None, reversed(given)), "") or conf.test_namespace or DEFAULT_NAMESPACE
    interface = container_interface_name(call.container_id)
    return Workload(node, CONTAINER, namespace, call.container_id, interface, call.ifname)


def container_labels(labels: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Mesos' labels, which may hold anything, as labels of an endpoint."""
    found = {sanitised(key): sanitised(value) for key, value in labels if key != NAMESPACE}
    found.pop("", None)
    return found


def sanitised(text: str) -> str:
    """As Calico makes a label of what Mesos allows.

    >>> sanitised("//my/val/"), sanitised("m$y.val")
    ('my.val', 'm-y.val')
    """
    text = re.sub(r"[^-_.a-zA-Z0-9]+", "-", text.replace("/", "."))
    return re.sub(r"[-.]*\.[-.]*", ".", text).strip(".-")


def owner_of(endpoint: WorkloadEndpoint) -> Workload:
    """Whose endpoint it is."""
    spec = endpoint.spec
    if spec.orchestrator == POD:
        interface = interface_name(endpoint.namespace, spec.pod)
        return Workload(spec.node, POD, endpoint.namespace, spec.pod, interface, spec.endpoint)
    interface = container_interface_name(spec.container_id)
    return Workload(spec.node, CONTAINER, endpoint.namespace, spec.container_id, interface, spec.endpoint)


def is_of(endpoint: WorkloadEndpoint, container_id: str) -> bool:
    """Whether it is a container's that is no pod."""
    return endpoint.spec.orchestrator == CONTAINER and endpoint.spec.container_id == container_id


def status_file(workload: Workload) -> str:
    """The name of the file that says that an endpoint's policy is in the kernel: Calico's escaped key."""
    whose = f"{workload.namespace}/{workload.name}" if workload.orchestrator == POD else workload.name
    return " ".join(quote(part, safe="$&+:=@") for part in (workload.orchestrator, whose, workload.endpoint))
