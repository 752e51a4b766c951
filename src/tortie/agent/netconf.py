"""The `calico` plugin's configuration, as upstream's conflists write it, read from a CNI call.

Keys match in any case and unknown ones are ignored, as Go decodes; a known key with a value of another type fails the
call, whether or not it has an effect here. docs/cni.md says of every key what is done with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tortie.cni.external import ExternalDataplane, external_dataplane
from tortie.cni.spec import Call, CniError, Code, load_args, lookup, member, quote

STATUS_DIR = Path("/var/run/calico/endpoint-status")
CALICO_IPAM, HOST_LOCAL = "calico-ipam", "host-local"
DEVICE_TYPES = {"": "veth", "veth": "veth", "netkit": "netkit"}
ARGS = ("K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID", "IP", "CNI_TEST_NAMESPACE")

WITHOUT_EFFECT: Mapping[str, type] = {
    "nodename_file": str, "nodename_file_optional": bool, "ipam_lock_file": str,
    "datastore_type": str, "etcd_endpoints": str, "etcd_discovery_srv": str, "etcd_scheme": str, "etcd_authority": str,
    "etcd_key_file": str, "etcd_cert_file": str, "etcd_ca_cert_file": str, "calico_api_group": str,
    "qps": float, "burst": int,
    "mode": str, "vxlan_mac_prefix": str, "vxlan_vni": int, "windows_use_single_network": bool,
    "windows_pod_deletion_timestamp_timeout": int, "windows_disable_default_deny_all_policy": bool,
    "windows_loopback_DSR": bool,
    "policy.k8s_api_root": str, "policy.k8s_auth_token": str, "policy.k8s_client_certificate": str,
    "policy.k8s_client_key": str, "policy.k8s_certificate_authority": str,
    "kubernetes.k8s_api_root": str, "runtimeConfig.dns": dict,
}  # fmt: skip
"""What concerns a plugin that speaks to a datastore itself, or Windows: of the right type it is fine, that is all."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """Where the calls of a network are logged besides the agent's own log; `path` "" is nowhere. `level` is a word."""

    path: str = ""
    level: str = "info"
    megabytes: int = 100
    days: int = 30
    count: int = 10


@dataclass(frozen=True, slots=True)
class NetConf:
    """What of the configuration and arguments decides about a container. `pools` are names or CIDRs; none: any."""

    network: str
    pod: str
    namespace: str
    """Both are "" or both are not: what is no Kubernetes pod has neither."""
    mtu: int
    num_queues: int
    ip_forwarding: bool
    ipv4: bool
    ipv6: bool
    pools4: tuple[str, ...]
    pools6: tuple[str, ...]
    ip: str = ""
    """The very address that the caller asks for."""
    dataplane: ExternalDataplane | None = None
    """Who connects pods instead of us."""
    may_skip_ipam: bool = False
    may_float: bool = False
    """What `feature_control` lets pods ask for: addresses outside IPAM, floating IPs."""
    policy_type: str = "k8s"
    """k8s: labels, profiles and annotations are the pod's; "": one profile, named after the network."""
    ipam_type: str = CALICO_IPAM
    """That, or the executable that assigns addresses instead of us."""
    kubeconfig: bool = False
    kubernetes_node: str = ""
    """Whose Kubernetes Node has the pod CIDRs, when it is called otherwise than this node."""
    nodename: str = ""
    """The node that the configuration is for, if it says so."""
    device_type: str = "veth"
    require_mtu_file: bool = False
    readiness_gates: tuple[str, ...] = ()
    policy_timeout: int = 0
    """Seconds; 0 leaves it to us."""
    status_dir: Path | None = None
    """Where a file says that an endpoint's policy is in the kernel, if somebody looks for it."""
    include_default_routes: bool = False
    log: LogFile = LogFile()
    pod_uid: str = ""
    test_namespace: str = ""
    labels: tuple[tuple[str, str], ...] = field(default=())
    """Of a container that is no pod, as Mesos gives them."""

    @property
    def is_pod(self) -> bool:
        return bool(self.pod)

    @property
    def reads_pod(self) -> bool:
        """Whether labels, profiles and annotations come from Kubernetes' objects."""
        return self.is_pod and self.policy_type == "k8s"

    @property
    def reads_namespace(self) -> bool:
        """Whether pools may choose pods by their namespace."""
        return self.is_pod and (self.policy_type == "k8s" or self.kubeconfig)

    @property
    def assigns(self) -> bool:
        """Whether addresses are ours to assign."""
        return self.ipam_type == CALICO_IPAM


def read_netconf(call: Call) -> NetConf:
    """Raises CniError 999 for values of the wrong type, 7 for those that mean nothing."""
    conf = call.conf
    ipam, policy, kubernetes, settings, features = (
        member(conf, key, dict, {}) for key in ("ipam", "policy", "kubernetes", "container_settings", "feature_control")
    )
    there = {key.casefold() for key in conf}
    for path, kind in WITHOUT_EFFECT.items():
        *outer, key = path.split(".")
        if (outer or [key])[0].casefold() in there:
            member(member(conf, outer[0], dict, {}) if outer else conf, key, kind, None)
    args = load_args(f"IgnoreUnknown=1;{call.args_text}" if call.args_text else "", ARGS)
    pod, namespace = args.get("K8S_POD_NAME", ""), args.get("K8S_POD_NAMESPACE", "")
    return NetConf(
        call.network,
        pod if namespace else "",
        namespace if pod else "",
        _not_negative(member(conf, "mtu", int, 0), "mtu"),
        max(1, member(conf, "num_queues", int, 1)),
        member(settings, "allow_ip_forwarding", bool, False),
        # Strings, not booleans: only the exact words count.
        member(ipam, "assign_ipv4", str, "true") != "false",
        member(ipam, "assign_ipv6", str, "false") == "true",
        _strings(ipam, "ipv4_pools", "ipam."),
        _strings(ipam, "ipv6_pools", "ipam."),
        args.get("IP", ""),
        external_dataplane(conf),
        member(features, "ip_addrs_no_ipam", bool, False),
        member(features, "floating_ips", bool, False),
        policy_type=_policy_type(policy),
        ipam_type=member(ipam, "type", str, "") or CALICO_IPAM,
        kubeconfig=bool(member(kubernetes, "kubeconfig", str, "")),
        kubernetes_node=member(kubernetes, "node_name", str, ""),
        nodename=member(conf, "nodename", str, "") or member(conf, "hostname", str, ""),
        device_type=_device_type(conf),
        require_mtu_file=member(conf, "require_mtu_file", bool, False),
        readiness_gates=_gates(conf),
        policy_timeout=_not_negative(
            member(conf, "policy_setup_timeout_seconds", int, 0), "policy_setup_timeout_seconds"
        ),
        status_dir=_status_dir(conf),
        include_default_routes=member(conf, "include_default_routes", bool, False),
        log=_log_file(conf),
        pod_uid=args.get("K8S_POD_UID", ""),
        test_namespace=args.get("CNI_TEST_NAMESPACE", ""),
        labels=_labels(conf),
    )


def _policy_type(policy: Mapping[str, Any]) -> str:
    found = member(policy, "type", str, "")
    if found not in ("", "k8s"):
        raise CniError(Code.INVALID_CONFIG, f'policy.type: {quote(found)} is not known: write "k8s", or leave it out')
    return found


def _device_type(conf: Mapping[str, Any]) -> str:
    found = member(conf, "device_type", str, "")
    if found not in DEVICE_TYPES:
        raise CniError(Code.INVALID_CONFIG, f'device_type: {quote(found)} is not known: write "veth" or "netkit"')
    return DEVICE_TYPES[found]


def _gates(conf: Mapping[str, Any]) -> tuple[str, ...]:
    gates = _strings(conf, "readiness_gates")
    for gate in gates:
        try:
            url = urlsplit(gate)
            good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            good = False
        if not good:
            text = f"readiness_gates: {quote(gate)} is not a URL such as http://localhost:9099/readiness"
            raise CniError(Code.INVALID_CONFIG, text)
    return gates


def _status_dir(conf: Mapping[str, Any]) -> Path | None:
    """Only who waits for the file, or says where, looks for it."""
    told = member(conf, "endpoint_status_dir", str, "")
    if told:
        return Path(told)
    return STATUS_DIR if member(conf, "policy_setup_timeout_seconds", int, 0) else None


def _log_file(conf: Mapping[str, Any]) -> LogFile:
    size, age, count = (
        _not_negative(member(conf, key, int, 0), key)
        for key in ("log_file_max_size", "log_file_max_age", "log_file_max_count")
    )
    level = member(conf, "log_level", str, "").lower()
    default = LogFile()
    return LogFile(
        member(conf, "log_file_path", str, ""),
        level if level in ("debug", "info", "error") else default.level,
        size or default.megabytes,
        age or default.days,
        count or default.count,
    )


def _labels(conf: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    where: Any = conf
    for key in ("args", "org.apache.mesos", "network_info", "labels"):
        where = member(where, key, dict, {})
    listed: list[Any] = member(where, "labels", list, [])
    if not all(isinstance(one, dict) for one in listed):
        raise CniError(Code.INTERNAL, "failed to load netconf: labels must be a list of objects with key and value")
    return tuple((member(one, "key", str, ""), member(one, "value", str, "")) for one in listed)


def _not_negative(number: int, key: str) -> int:
    if number < 0:
        raise CniError(Code.INVALID_CONFIG, f"{key}: {number} is negative")
    return number


def _strings(conf: Any, key: str, where: str = "") -> tuple[str, ...]:
    found = lookup(conf, key, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise CniError(Code.INTERNAL, f"failed to load netconf: {where}{key} must be a list of strings")
    return tuple(found)
