"""kube-flannel's account and Nodes, in an API server that authorises."""

from __future__ import annotations

from typing import Any

SPACE, ACCOUNT = "kube-flannel", "flannel"
PREFIX = "flannel.alpha.coreos.com/"
MAC = '{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}'
NET = '{"Network": "10.244.0.0/16", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}'
RULES = (
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
)
"""Those of kube-flannel's manifest."""


def account() -> list[dict[str, Any]]:
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT}
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": SPACE}
    rbac = "rbac.authorization.k8s.io/v1"
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": SPACE}},
        {"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": ACCOUNT}, "rules": list(RULES)},
        {"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": ACCOUNT}, "roleRef": role,
         "subjects": [subject]},
    ]  # fmt: skip


def node(name: str, *cidrs: str, **annotations: str) -> dict[str, Any]:
    """Without `cidrs` node n7 has 10.244.7.0/24. Annotations are flannel's, `_` for `-`."""
    cidrs = cidrs or (f"10.244.{name[1:]}.0/24",)
    said = {"node.alpha.kubernetes.io/ttl": "0"}  # Kubernetes' own; without any, flanneld crashes
    said |= {PREFIX + key.replace("_", "-"): value for key, value in annotations.items()}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "annotations": said},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "images": [{"names": ["a"]}]}}  # fmt: skip


def flannels(name: str, **more: str) -> dict[str, Any]:
    said = {"backend_type": "vxlan", "backend_data": MAC, "public_ip": f"192.0.2.{name[1:]}"}
    return node(name, **{**said, "kube_subnet_manager": "true", **more})
