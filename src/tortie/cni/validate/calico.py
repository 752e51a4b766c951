"""The fields of `calico` and `calico-ipam`, as docs/cni.md has them, those without effect included."""

from __future__ import annotations

from tortie.cni.validate.fields import Field, Fields, choice, each, flag, group, text, whole


def _url(value: str) -> str:
    return "" if value.startswith(("http://", "https://")) else f'"{value}" is not a URL of http or https'


def _yes_or_no(default: str) -> Field:
    """A string, unlike anywhere else."""
    return choice("true", "false", default=default)


CALICO: Fields = {
    "mtu": whole(0, 65535, "the node's"),
    "require_mtu_file": flag(),
    "num_queues": whole(0, 4096, "1"),
    "device_type": choice("veth", "netkit", default="veth"),
    "container_settings": group({"allow_ip_forwarding": flag()}),
    "feature_control": group({"ip_addrs_no_ipam": flag(), "floating_ips": flag()}),
    "include_default_routes": flag(),
    "policy": group(
        {
            "type": choice("k8s"),
            **{
                name: text()
                for name in (
                    "k8s_api_root",
                    "k8s_auth_token",
                    "k8s_client_certificate",
                    "k8s_client_key",
                    "k8s_certificate_authority",
                )
            },
        }
    ),
    "readiness_gates": each(text("", _url)),
    "policy_setup_timeout_seconds": whole(),
    "endpoint_status_dir": text("/var/run/calico/endpoint-status"),
    "dataplane_options": group(),
    "log_file_path": text(),
    "log_level": text("info"),
    "log_file_max_size": whole(),
    "log_file_max_age": whole(),
    "log_file_max_count": whole(),
    "nodename": text(),
    "hostname": text(),
    "kubernetes": group({"kubeconfig": text(), "node_name": text(), "k8s_api_root": text()}),
    **{
        name: text()
        for name in (
            "nodename_file",
            "ipam_lock_file",
            "datastore_type",
            "etcd_endpoints",
            "etcd_discovery_srv",
            "etcd_scheme",
            "etcd_authority",
            "etcd_key_file",
            "etcd_cert_file",
            "etcd_ca_cert_file",
            "calico_api_group",
            "mode",
            "vxlan_mac_prefix",
        )
    },
    "nodename_file_optional": flag(),
    "qps": Field("number"),
    "burst": whole(),
    "vxlan_vni": whole(),
    "windows_use_single_network": flag(),
    "windows_pod_deletion_timestamp_timeout": whole(),
    "windows_disable_default_deny_all_policy": flag(),
    "windows_loopback_DSR": flag(),
}
CALICO_IPAM: Fields = {
    "type": text("calico-ipam"),
    "assign_ipv4": _yes_or_no("true"),
    "assign_ipv6": _yes_or_no("false"),
    "ipv4_pools": each(text()),
    "ipv6_pools": each(text()),
}
POD_CIDRS = {"usePodCidr": "4", "usePodCidrIPv6": "6"}
"""Words that stand for the node's pod CIDRs in `subnet` of host-local, under `calico`; with the family."""
