"""What `kubectl apply` installs: a cluster's whole network as one stream of YAML, made from the options of an operator.

    options ──► checked ─┬─► crds                                          (render.crds: from the model's types)
                         ├─► accounts, roles ◄─ access: who reads what     (from the agent's own list of inputs)
                         ├─► ConfigMap calico-config                       (network of the nodes, backend, MTU)
                         ├─► DaemonSet tortie-node, Deployment tortie-controllers
                         └─► with flannel: what kube-flannel.yml has     (alone, or beside the agents: canal)

Source: the inventory of Calico's calico.yaml, and of its variants calico-vxlan, calico-policy-only and calico-etcd.
"""

from __future__ import annotations

from typing import Any

import tortie
from tortie.render.crds import crds
from tortie.render.manifest import access, config, controllers, fanout, flannel, node
from tortie.render.manifest.options import NAMESPACE, Options, checked
from tortie.render.manifest.text import text, without_comments

__all__ = ["NAMESPACE", "Options", "checked", "documents", "head", "manifest", "without_comments"]


def documents(options: Options) -> list[dict[str, Any]]:
    """All of them, those first that others need. Raises ConfigError."""
    options = checked(options)
    if options.network == "flannel":
        return flannel.documents(options)
    return [*_with_agents(options.agents), *(flannel.documents(options) if options.network == "canal" else ())]


def _with_agents(options: Options) -> list[dict[str, Any]]:
    return [
        controllers.disruption_budget(),
        *access.documents(options),
        config.config_map(options),
        *(crds() if options.datastore == "kubernetes" else ()),
        *fanout.documents(options),
        node.daemon_set(options),
        controllers.deployment(options),
    ]


def manifest(options: Options, command: str = "tortie manifest") -> str:
    """The stream. `command` is what makes it again. Raises ConfigError."""
    return text(documents(options), head(checked(options), command))


def head(options: Options, command: str) -> str:
    """What a reader is told first."""
    lines = [
        f"Tortie {tortie.__version__}: a Kubernetes cluster's network. Made by: {command}",
        "Apply with: kubectl apply -f FILE",
    ]
    if options.tls:
        files = " ".join(f"--from-file={name}=FILE" for name in ("etcd-ca", "etcd-cert", "etcd-key"))
        lines.append(f"Before that: kubectl -n {NAMESPACE} create secret generic {node.ETCD_SECRET} {files}")
    return "\n".join(lines)
