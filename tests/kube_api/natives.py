"""Built-in kinds: what Go's types read, and what the server fills in."""

from __future__ import annotations

import base64
import uuid
from ipaddress import IPv4Address
from typing import Any

from kube_api import validation
from kube_api.kinds import Kind
from kube_api.native_types import TYPES, check

_STRINGS = (
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
)
_MAPS = ("labels", "annotations")
_LISTS = ("finalizers", "ownerReferences", "managedFields")
_NUMBERS = ("generation", "deletionGracePeriodSeconds")
_OWNER = frozenset({"apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"})
FIRST_SERVICE = IPv4Address("10.96.0.10")


def metadata_undecodable(metadata: Any) -> str:
    """Why Go could not read this metadata, or nothing."""
    if not isinstance(metadata, dict):
        return "json: cannot unmarshal into Go struct field .metadata of type v1.ObjectMeta"
    for name, value in metadata.items():
        if value is None:
            continue
        wanted: Any = object
        if name in _STRINGS:
            wanted = str
        elif name in _MAPS:
            wanted = dict
        elif name in _LISTS:
            wanted = list
        elif name in _NUMBERS:
            wanted = int
        if not isinstance(value, wanted):
            return _unmarshal(value, f"ObjectMeta.metadata.{name}", wanted)
        if name in _MAPS:
            for inner in value.values():
                if inner is not None and not isinstance(inner, str):
                    return _unmarshal(inner, f"ObjectMeta.metadata.{name}", str)
    return ""


def _unmarshal(value: Any, field: str, wanted: type) -> str:
    names = {str: "string", bool: "bool", int: "number", float: "number", dict: "object", list: "array"}
    kinds = {str: "string", dict: "map[string]string", list: "[]string", int: "int64"}
    return (
        f"json: cannot unmarshal {names.get(type(value), 'null')} into Go struct field {field} of type "
        f"{kinds.get(wanted, 'string')}"
    )


def tidy_metadata(metadata: dict[str, Any]) -> list[str]:
    """Take out what ObjectMeta does not know, and what Go leaves out when it is empty; returns the unknown paths."""
    known = {*_STRINGS, *_MAPS, *_LISTS, *_NUMBERS}
    unknown = [f"metadata.{name}" for name in metadata if name not in known]
    for name in list(metadata):
        if name not in known or metadata[name] in (None, "", {}, []):
            del metadata[name]
    for name in _MAPS:
        if name in metadata:
            metadata[name] = {key: value if value is not None else "" for key, value in metadata[name].items()}
    return unknown


def read(kind: Kind, obj: dict[str, Any]) -> list[str]:
    """What Go's types make of the object: nulls and unknown fields go. Returns the paths of the unknown.

    Raises Refusal (400) when a value has the wrong type.
    """
    return check(kind, obj, validation.undecodable(kind, obj)) if kind.kind in TYPES else []


def complete(kind: Kind, obj: dict[str, Any], old: dict[str, Any] | None) -> None:
    """Fill in what the server fills in."""
    fill = _FILL.get(kind.kind)
    if fill is not None and not kind.custom:
        fill(obj)
        if old is not None and kind.kind == "Service" and old["spec"].get("clusterIP"):
            obj["spec"].setdefault("clusterIP", old["spec"]["clusterIP"])


def _defaults(value: dict[str, Any], **defaults: Any) -> None:
    for name, default in defaults.items():
        value.setdefault(name, default)


def _namespace(obj: dict[str, Any]) -> None:
    obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
    _defaults(obj.setdefault("spec", {}), finalizers=["kubernetes"])
    _defaults(obj.setdefault("status", {}), phase="Active")


def _pod(obj: dict[str, Any]) -> None:
    pod_spec(obj["spec"])
    spec = obj["spec"]
    _defaults(spec, serviceAccountName="default", serviceAccount=spec.get("serviceAccountName", "default"))
    _defaults(spec, preemptionPolicy="PreemptLowerPriority", priority=0)
    _defaults(obj.setdefault("status", {}), phase="Pending", qosClass="BestEffort")


def pod_spec(spec: dict[str, Any]) -> None:
    _defaults(spec, restartPolicy="Always", terminationGracePeriodSeconds=30, dnsPolicy="ClusterFirst")
    _defaults(spec, securityContext={}, schedulerName="default-scheduler", enableServiceLinks=True)
    for container in (*spec.get("containers", ()), *spec.get("initContainers", ())):
        tag = container.get("image", "").rpartition(":")[2]
        _defaults(
            container,
            imagePullPolicy="Always" if tag == "latest" or ":" not in container.get("image", "") else "IfNotPresent",
            resources={},
            terminationMessagePath="/dev/termination-log",
            terminationMessagePolicy="File",
        )
        for port in container.get("ports", ()):
            _defaults(port, protocol="TCP")
            if spec.get("hostNetwork"):
                _defaults(port, hostPort=port.get("containerPort"))


def _workload(obj: dict[str, Any]) -> None:
    pod_spec(obj["spec"]["template"].setdefault("spec", {}))
    obj["spec"]["template"].setdefault("metadata", {}).setdefault("creationTimestamp", None)
    _defaults(obj["spec"], revisionHistoryLimit=10)
    obj.setdefault("status", {})


def _daemon_set(obj: dict[str, Any]) -> None:
    _workload(obj)
    _defaults(
        obj["spec"], updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    )
    counts = ("currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady")
    _defaults(obj["status"], **dict.fromkeys(counts, 0))


def _deployment(obj: dict[str, Any]) -> None:
    _workload(obj)
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
    _defaults(obj["spec"], replicas=1, strategy=rolling, progressDeadlineSeconds=600)


def _service(obj: dict[str, Any]) -> None:
    spec = obj["spec"]
    _defaults(spec, type="ClusterIP", sessionAffinity="None", internalTrafficPolicy="Cluster")
    if spec["type"] != "ExternalName":
        number = uuid.UUID(obj["metadata"]["uid"]).int % 1_000_000
        _defaults(spec, clusterIP=str(FIRST_SERVICE + number))
        _defaults(spec, clusterIPs=[spec["clusterIP"]], ipFamilyPolicy="SingleStack")
        family = "IPv6" if ":" in spec["clusterIP"] else "IPv4"
        _defaults(spec, ipFamilies=[family])
    if spec["type"] in ("LoadBalancer", "NodePort"):
        _defaults(spec, externalTrafficPolicy="Cluster")
    if spec["type"] == "LoadBalancer":
        _defaults(spec, allocateLoadBalancerNodePorts=True)
    for port in spec.get("ports", ()):
        _defaults(port, protocol="TCP", targetPort=port["port"])
    _defaults(obj.setdefault("status", {}), loadBalancer={})


def _secret(obj: dict[str, Any]) -> None:
    for name, text in (obj.pop("stringData", None) or {}).items():
        obj.setdefault("data", {})[name] = base64.b64encode(text.encode()).decode()
    _defaults(obj, type="Opaque")


def _network_policy(obj: dict[str, Any]) -> None:
    spec = obj["spec"]
    _defaults(spec, podSelector={}, policyTypes=["Ingress", "Egress"] if "egress" in spec else ["Ingress"])
    for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
        for port in rule.get("ports", ()):
            _defaults(port, protocol="TCP")


def _binding(obj: dict[str, Any]) -> None:
    group = "rbac.authorization.k8s.io"
    _defaults(obj["roleRef"], apiGroup=group)
    for subject in obj.get("subjects", ()):
        if subject.get("kind") in ("User", "Group"):
            _defaults(subject, apiGroup=group)


def _endpoint_slice(obj: dict[str, Any]) -> None:
    obj.setdefault("endpoints", None)
    obj.setdefault("ports", None)
    for port in obj["ports"] or ():
        _defaults(port, protocol="TCP", name="")


def _priority(obj: dict[str, Any]) -> None:
    _defaults(obj, preemptionPolicy="PreemptLowerPriority")


_FILL = {
    "Namespace": _namespace,
    "Pod": _pod,
    "DaemonSet": _daemon_set,
    "Deployment": _deployment,
    "Service": _service,
    "Secret": _secret,
    "NetworkPolicy": _network_policy,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "EndpointSlice": _endpoint_slice,
    "PriorityClass": _priority,
}
