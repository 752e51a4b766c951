"""The ConfigMap `calico-config`: what installations change most, under the names that Calico's manifests gave it."""

from __future__ import annotations

import json
from typing import Any

from tortie.render.manifest.access import FANOUT
from tortie.render.manifest.node import CONFIG, ETCD_FILES
from tortie.render.manifest.options import NAMESPACE, Options


def config_map(options: Options) -> dict[str, Any]:
    """The document."""
    etcd: dict[str, str] = {}
    if options.datastore == "etcd":
        names = ("etcd-ca", "etcd-cert", "etcd-key") if options.tls else ()
        etcd = {"etcd_endpoints": ",".join(options.etcd_endpoints)}
        etcd |= {name.replace("-", "_"): f"{ETCD_FILES}/{name}" for name in names}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG, "namespace": NAMESPACE},
        "data": {
            **etcd,
            "typha_service_name": FANOUT if options.fanout else "none",
            "calico_backend": options.backend,
            "veth_mtu": str(options.mtu),
            "cni_network_config": template(options),
        },
    }


def template(options: Options) -> str:
    """The text of the conflist, in which a number is to take the place of `__CNI_MTU__`."""
    return json.dumps(network(options), indent=2).replace('"__CNI_MTU__"', "__CNI_MTU__") + "\n"


def network(options: Options) -> dict[str, Any]:
    """The conflist of every node; `__NAMES__` are filled in there. It is Calico's, so that a cluster may have nodes of
    both; the file with a credential that it names is for Calico's plugin. Ours neither writes nor reads one."""
    calico: dict[str, Any] = {
        "type": "calico",
        "log_level": "info",
        "log_file_path": "/var/log/calico/cni/cni.log",
        "datastore_type": "kubernetes" if options.datastore == "kubernetes" else "etcdv3",
        "nodename": "__KUBERNETES_NODE_NAME__",
        "mtu": "__CNI_MTU__",
        "ipam": _ipam(options),
        "policy": {"type": "k8s"},
        "kubernetes": {"kubeconfig": "__KUBECONFIG_FILEPATH__"},
    }
    portmap = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
    return {"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [calico, portmap]}


def _ipam(options: Options) -> dict[str, Any]:
    if options.policy_only:
        return {"type": "host-local", "subnet": "usePodCidr"}
    found = {"type": "calico-ipam"}
    if options.pool(6):
        found |= {"assign_ipv4": str(bool(options.pool(4))).lower(), "assign_ipv6": "true"}
    return found
