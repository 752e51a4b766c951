"""What the server checks of any object's metadata, and of some kinds' specs, before it writes."""

from __future__ import annotations

import random
import re
from typing import Any

import msgspec

from kube_api.kinds import Kind
from kube_api.statuses import Cause, forbidden_field, invalid_value, required, unsupported_value

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
ANNOTATIONS = 256 * 1024
"""Bytes that all annotations of an object may have together."""
LARGEST = 1024 * 1024
"""Bytes of data in a Secret or ConfigMap."""

SUBDOMAIN_WORDS = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_WORDS = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
DNS_1035_WORDS = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
QUALIFIED_WORDS = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
VALUE_WORDS = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)


def generated_name(base: str) -> str:
    return base[:58] + "".join(random.choices(_LETTERS, k=5))


def metadata_problems(kind: Kind, obj: dict[str, Any]) -> list[Cause]:
    metadata = obj["metadata"]
    found = name_problems(kind, metadata.get("name") or "")
    for key, value in (metadata.get("labels") or {}).items():
        found += _key_problems("metadata.labels", key)
        if len(value) > 63:
            found.append(invalid_value("metadata.labels", f'"{value}"', "must be no more than 63 bytes"))
        elif not _LABEL_VALUE.fullmatch(value):
            found.append(invalid_value("metadata.labels", f'"{value}"', VALUE_WORDS))
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        found += _key_problems("metadata.annotations", key.lower())
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > ANNOTATIONS:
        found.append(
            Cause("metadata.annotations", "FieldValueTooLong", f"Too long: may not be more than {ANNOTATIONS} bytes")
        )
    for number, name in enumerate(metadata.get("finalizers") or ()):
        found += _key_problems(f"metadata.finalizers[{number}]", name)
    for number, owner in enumerate(metadata.get("ownerReferences") or ()):
        found += [
            required(f"metadata.ownerReferences[{number}].{name}", f"{name} must not be empty")
            for name in ("apiVersion", "kind", "name", "uid")
            if not owner.get(name)
        ]
    return found


def name_problems(kind: Kind, name: str) -> list[Cause]:
    if not name:
        return [required("metadata.name", "name or generateName is required")]
    if kind.group == "rbac.authorization.k8s.io":
        if name in (".", "..") or "/" in name or "%" in name:
            return [invalid_value("metadata.name", f'"{name}"', "may not contain '/' or '%'")]
        return []
    if kind.kind == "Namespace":
        pattern, most, words = _DNS_LABEL, 63, LABEL_WORDS
    elif kind.kind == "Service":
        pattern, most, words = _DNS_1035, 63, DNS_1035_WORDS
    else:
        pattern, most, words = _SUBDOMAIN, 253, SUBDOMAIN_WORDS
    found = []
    if len(name) > most:
        found.append(invalid_value("metadata.name", f'"{name}"', f"must be no more than {most} bytes"))
    if not pattern.fullmatch(name):
        found.append(invalid_value("metadata.name", f'"{name}"', words))
    return found


def _key_problems(field: str, key: str) -> list[Cause]:
    prefix, slash, name = key.rpartition("/")
    if slash and (not prefix or len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix)):
        return [invalid_value(field, f'"{key}"', f"prefix part {SUBDOMAIN_WORDS}")]
    if not name or len(name) > 63:
        why = "name part must be no more than 63 bytes" if name else "name part must be non-empty"
        return [invalid_value(field, f'"{key}"', why)]
    return [] if _QUALIFIED.fullmatch(name) else [invalid_value(field, f'"{key}"', QUALIFIED_WORDS)]


def undecodable(kind: Kind, obj: dict[str, Any]) -> str:
    """Why Go could not read this object, or nothing. What schemas cannot say: times of a certain form."""
    if kind.kind == "Lease":
        for name in ("acquireTime", "renewTime"):
            text = (obj.get("spec") or {}).get(name)
            if text is not None and not _MICRO_TIME.fullmatch(text):
                return f'parsing time "{text}" as "2006-01-02T15:04:05.000000Z07:00": cannot parse it'
    return ""


def spec_problems(kind: Kind, obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    """What is wrong with a built-in kind's spec, in itself or as a successor of `old`."""
    check = _CHECKS.get(kind.kind)
    return check(obj, old) if check and not kind.custom else []


_POD_MUTABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")
_POD_WORDS = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def _pod(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    containers = spec.get("containers") or []
    found = [] if containers else [required("spec.containers")]
    seen: set[str] = set()
    for number, container in enumerate(containers):
        at, name = f"spec.containers[{number}]", container.get("name") or ""
        if not name:
            found.append(required(f"{at}.name"))
        elif not _DNS_LABEL.fullmatch(name) or len(name) > 63:
            found.append(invalid_value(f"{at}.name", f'"{name}"', LABEL_WORDS))
        if name in seen:
            found.append(Cause(f"{at}.name", "FieldValueDuplicate", f'Duplicate value: "{name}"'))
        seen.add(name)
        if not container.get("image"):
            found.append(required(f"{at}.image"))
    if old is not None and _frozen_pod(spec) != _frozen_pod(old.get("spec") or {}):
        found.append(forbidden_field("spec", _POD_WORDS))
    return found


def _frozen_pod(spec: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in spec.items() if name not in _POD_MUTABLE}
    for name in ("containers", "initContainers"):
        if kept.get(name):
            kept[name] = [{key: value for key, value in one.items() if key != "image"} for one in kept[name]]
    return kept


def _node(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    spec, before = obj.get("spec") or {}, (old or {}).get("spec") or {}
    found = []
    for number, taint in enumerate(spec.get("taints") or ()):
        effects = ("NoSchedule", "PreferNoSchedule", "NoExecute")
        if taint.get("effect") not in effects:
            shown = f'"{taint.get("effect") or ""}"'
            found.append(unsupported_value(f"spec.taints[{number}].effect", shown, effects))
        found += _key_problems(f"spec.taints[{number}].key", taint.get("key") or "")
    if old is not None:
        words = "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig"
        for name in ("podCIDR", "podCIDRs", "providerID"):
            if before.get(name) and spec.get(name) != before[name]:
                found.append(forbidden_field(f"spec.{name}", f"{words} feature gate is enabled)"))
    return found


def _service(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    spec, before = obj.get("spec") or {}, (old or {}).get("spec") or {}
    kinds = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
    found = []
    if spec.get("type", "ClusterIP") not in kinds:
        found.append(unsupported_value("spec.type", f'"{spec["type"]}"', kinds))
    if not spec.get("ports") and spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        found.append(required("spec.ports"))
    for number, port in enumerate(spec.get("ports") or ()):
        if not 1 <= port.get("port", 0) <= 65535:
            at = f"spec.ports[{number}].port"
            found.append(invalid_value(at, str(port.get("port", 0)), "must be between 1 and 65535, inclusive"))
        if len(spec["ports"]) > 1 and not port.get("name"):
            found.append(required(f"spec.ports[{number}].name"))
    if before.get("clusterIP") and spec.get("clusterIP") != before["clusterIP"]:
        shown = msgspec.json.encode(spec.get("clusterIP")).decode()
        found.append(invalid_value("spec.clusterIPs[0]", shown, "may not change once set"))
    return found


def _lease(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = []
    seconds, times = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if seconds is not None and seconds <= 0:
        found.append(invalid_value("spec.leaseDurationSeconds", str(seconds), "must be greater than 0"))
    if times is not None and times < 0:
        found.append(invalid_value("spec.leaseTransitions", str(times), "must be greater than or equal to 0"))
    return found


def _network_policy(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    found = []
    spec = obj.get("spec") or {}
    for number, name in enumerate(spec.get("policyTypes") or ()):
        if name not in ("Ingress", "Egress"):
            found.append(unsupported_value(f"spec.policyTypes[{number}]", f'"{name}"', ("Egress", "Ingress")))
    for way, side in (("ingress", "from"), ("egress", "to")):
        for number, rule in enumerate(spec.get(way) or ()):
            for place, peer in enumerate(rule.get(side) or ()):
                at = f"spec.{way}[{number}].{side}[{place}]"
                if not peer:
                    found.append(required(at, "must specify a peer"))
                elif "ipBlock" in peer and len(peer) > 1:
                    found.append(forbidden_field(at, "may not specify both ipBlock and another peer"))
    return found


def _data(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    data = {**(obj.get("data") or {}), **(obj.get("binaryData") or {})}
    found = []
    if sum(len(value) for value in data.values()) > LARGEST * 4 // 3:
        found.append(Cause("data", "FieldValueTooLong", f"Too long: may not be more than {LARGEST} bytes"))
    if (old or {}).get("immutable") and (old or {}).get("data") != obj.get("data"):
        found.append(forbidden_field("data", "field is immutable when `immutable` is set"))
    if old is not None and obj["kind"] == "Secret" and obj.get("type") != old.get("type"):
        found.append(invalid_value("type", f'"{obj.get("type")}"', "field is immutable"))
    return found


def _binding(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    if old is not None and obj.get("roleRef") != old.get("roleRef"):
        shown = msgspec.json.encode(obj.get("roleRef")).decode()
        return [invalid_value("roleRef", shown, "cannot change roleRef")]
    return [] if (obj.get("roleRef") or {}).get("name") else [required("roleRef.name")]


def _endpoint_slice(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    kinds = ("FQDN", "IPv4", "IPv6")
    if obj.get("addressType") not in kinds:
        return [unsupported_value("addressType", f'"{obj.get("addressType") or ""}"', kinds)]
    if old is not None and old.get("addressType") != obj["addressType"]:
        return [invalid_value("addressType", f'"{obj["addressType"]}"', "field is immutable")]
    return []


def _workload(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    chosen = (spec.get("selector") or {}).get("matchLabels") or {}
    own = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    found = []
    if not spec.get("selector"):
        found.append(required("spec.selector"))
    elif any(own.get(key) != value for key, value in chosen.items()):
        shown = msgspec.json.encode(own).decode()
        found.append(
            invalid_value("spec.template.metadata.labels", shown, "`selector` does not match template `labels`")
        )
    if old is not None and (old.get("spec") or {}).get("selector") != spec.get("selector"):
        found.append(
            invalid_value("spec.selector", msgspec.json.encode(spec.get("selector")).decode(), "field is immutable")
        )
    inner = _pod(spec.get("template") or {}, None)
    return found + [Cause(f"spec.template.{one.field}", one.reason, one.message) for one in inner]


def _priority(obj: dict[str, Any], old: dict[str, Any] | None) -> list[Cause]:
    value = obj.get("value", 0)
    if old is not None and old.get("value", 0) != value:
        return [forbidden_field("value", "may not be changed in an update.")]
    if value > 1_000_000_000 and not obj["metadata"]["name"].startswith("system-"):
        return [forbidden_field("value", "maximum allowed value of a user defined priority is 1000000000")]
    return []


_CHECKS = {
    "Pod": _pod,
    "Node": _node,
    "Service": _service,
    "Lease": _lease,
    "NetworkPolicy": _network_policy,
    "Secret": _data,
    "ConfigMap": _data,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "EndpointSlice": _endpoint_slice,
    "DaemonSet": _workload,
    "Deployment": _workload,
    "PriorityClass": _priority,
}
