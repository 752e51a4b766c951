"""What kube-flannel.yml has, run by our image: a Namespace, who may do what, a ConfigMap and a DaemonSet.

    init: install-cni-plugin   puts the plugin `flannel` on the host, and others of the image where the host has none
    init: install-cni          the conflist, which makes the node ready
    kube-flannel               flanneld: this node's pod CIDR, the ways to the other nodes'
    cni-plugins                serves the plugin's calls: the host has no Python

Names, labels, files and annotations are kube-flannel's: applied over it, nodes change one after the other, and nodes of
both are one network. Beside agents (canal) the plugin is theirs, and of all this only flanneld is left.
"""

from __future__ import annotations

import json
from typing import Any

from tortie.render.manifest.access import READ, Grant, bound
from tortie.render.manifest.node import BIN_DIR, NET_DIR, contained, endpoint
from tortie.render.manifest.options import Options
from tortie.render.manifest.text import WHY

NAMESPACE = "kube-flannel"
ACCOUNT = "flannel"
CONFIG, DAEMON_SET = "kube-flannel-cfg", "kube-flannel-ds"
CONFLIST = "10-flannel.conflist"
CONFIG_DIR, RUN = "/etc/kube-flannel", "/run/flannel"
PLUGINS_RUN = "/run/tortie"
TUN = "/dev/net/tun"
HEALTH_PORT = 8081
OWN, BUNDLED = ("flannel",), ("bridge", "host-local", "portmap", "loopback")
"""Plugins of ours, and those out of the image's containernetworking-plugins that are copied where the host has none."""

FLANNELD = {
    "NET_ADMIN": "links, addresses, routes, neighbours, nftables",
    "NET_RAW": "asking by ICMP whether the way to other nodes is open",
}
"""What flanneld needs of root, and why."""
PLUGINS = {
    "NET_ADMIN": "a pod's link, addresses and routes",
    "NET_RAW": "telling neighbours of a pod's address",
    "SYS_ADMIN": "entering the namespaces of the runtime that calls and of the pod (setns)",
    "SYS_CHROOT": "entering a mount namespace",
    "DAC_OVERRIDE": "the runtime's directories, whoever they belong to",
}
"""What plugins need, which on other nodes are processes of the container runtime."""


def documents(options: Options) -> list[dict[str, Any]]:
    """Beside agents or alone, as the options say."""
    return [
        _namespace(),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}},
        *bound("ClusterRole", ACCOUNT, grants(), NAMESPACE),
        _config_map(options),
        _daemon_set(options),
    ]


def _namespace() -> dict[str, Any]:
    labels = {"k8s-app": "flannel", "pod-security.kubernetes.io/enforce": "privileged"}
    why = "The host's network and files are what this is about: pods of other levels may have neither."
    return {WHY: why, "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def grants() -> list[Grant]:
    """Of flanneld."""
    return [
        Grant("Subnets of all nodes, and how they are reached: specs and annotations.", "", ("nodes",), READ),
        Grant(
            "How this node is reached is annotations of its Node; that its network is there is a condition.",
            "",
            ("nodes/status",),
            ("patch",),
        ),
        Grant(
            "Which node it is on: asked by nodes that still run flannel's own image. Ours is told.",
            "",
            ("pods",),
            ("get",),
        ),
    ]


def _config_map(options: Options) -> dict[str, Any]:
    conflist = {} if options.network == "canal" else {"cni-conf.json": _json(network())}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG, "namespace": NAMESPACE, "labels": _labels()},
        "data": {**conflist, "net-conf.json": _json(net_conf(options))},
    }


def network() -> dict[str, Any]:
    """The conflist of every node."""
    flannel = {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"name": "cbr0", "cniVersion": "0.3.1", "plugins": [flannel, portmap]}


def net_conf(options: Options) -> dict[str, Any]:
    """The network's configuration."""
    found: dict[str, Any] = {}
    for net in options.flannel_nets:
        found |= {"Network": str(net)} if net.version == 4 else {"EnableIPv6": True, "IPv6Network": str(net)}
    return found | {"EnableNFTables": False, "Backend": {"Type": options.flannel_backend}}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _labels() -> dict[str, str]:
    return {"tier": "node", "app": "flannel", "k8s-app": "flannel"}


# --- the workload -------------------------------------------------------------------------------------------------


def _daemon_set(options: Options) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": DAEMON_SET, "namespace": NAMESPACE, "labels": _labels()},
        "spec": {
            "selector": {"matchLabels": {"app": "flannel"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {"metadata": {"labels": _labels()}, "spec": _pod(options)},
        },
    }


def _pod(options: Options) -> dict[str, Any]:
    alone = options.network == "flannel"
    chosen = {"kubernetes.io/os": "linux"} | dict(label.split("=", 1) for label in options.node_selector)
    why = "A node without a network is made one with: whatever keeps other pods away."
    return {
        "nodeSelector": chosen,
        "hostNetwork": True,
        "serviceAccountName": ACCOUNT,
        "priorityClassName": "system-node-critical",
        "tolerations": [
            {WHY: why, "effect": "NoSchedule", "operator": "Exists"},
            {"effect": "NoExecute", "operator": "Exists"},
        ],
        "terminationGracePeriodSeconds": 10,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        **({"initContainers": [_plugin(options), _conflist(options)]} if alone else {}),
        "containers": [_flanneld(options), *([_served(options)] if alone else [])],
        "volumes": _volumes(options),
    }


def _container(name: str, options: Options, capabilities: dict[str, str] | None = None) -> dict[str, Any]:
    """One that is root, with these capabilities and their reasons."""
    held = capabilities or {}
    said = {WHY: "Not privileged. " + " ".join(f"{one}: {why}." for one, why in held.items())} if held else {}
    return {
        "name": name,
        "image": options.where,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {**said, **contained(*(held or ("DAC_OVERRIDE",))), "runAsUser": 0},
    }


def _plugin(options: Options) -> dict[str, Any]:
    bundled = f"[ -e /host{BIN_DIR}/$one ] || cp /usr/lib/cni/$one /host{BIN_DIR}/"
    install = f"tortie cni install --plugins {','.join(OWN)} --force --bin-dir /host{BIN_DIR}"
    script = f"for one in {' '.join(BUNDLED)}; do {bundled}; done; exec {install}"
    return {
        **_container("install-cni-plugin", options),
        "command": ["/bin/sh", "-c", script],
        "volumeMounts": [_mount("cni-plugin", f"/host{BIN_DIR}")],
    }


def _conflist(options: Options) -> dict[str, Any]:
    """Whole or not at all: the runtime takes what it finds, half a file included."""
    staged, file = f"/host{NET_DIR}/.{CONFLIST}", f"/host{NET_DIR}/{CONFLIST}"
    script = f"cp {CONFIG_DIR}/cni-conf.json {staged} && mv -f {staged} {file}"
    return {
        **_container("install-cni", options),
        "command": ["/bin/sh", "-c", script],
        "volumeMounts": [_mount("cni", f"/host{NET_DIR}"), _mount("flannel-cfg", CONFIG_DIR)],
    }


def _flanneld(options: Options) -> dict[str, Any]:
    args = ["--ip-masq", "--kube-subnet-mgr", "--healthz-ip=127.0.0.1", f"--healthz-port={HEALTH_PORT}"]
    if options.network == "canal":
        args.append("--ip-blackhole-route")
    tun = [_mount("tun", TUN)] if options.flannel_backend == "udp" else []
    return {
        **_container("kube-flannel", options, FLANNELD),
        "command": ["tortie", "flanneld"],
        "args": args,
        **endpoint(),
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "livenessProbe": {
            **_probe("/healthz"), "periodSeconds": 10, "initialDelaySeconds": 10, "failureThreshold": 6,
        },
        "readinessProbe": _probe("/readyz"),
        "resources": {
            WHY: "No limits: a node that is short of memory or time must not lose its network first.",
            "requests": {"cpu": "100m", "memory": "80Mi"},
        },
        "volumeMounts": [_mount("run", RUN), _mount("flannel-cfg", CONFIG_DIR), _mount("tmp", "/tmp"), *tun],
    }  # fmt: skip


def _probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"host": "127.0.0.1", "path": path, "port": HEALTH_PORT}, "timeoutSeconds": 5}


def _served(options: Options) -> dict[str, Any]:
    return {
        **_container("cni-plugins", options, PLUGINS),
        "command": ["tortie", "cni", "serve", "--socket", f"{PLUGINS_RUN}/plugins.sock"],
        "resources": {"requests": {"cpu": "10m", "memory": "40Mi"}},
        "volumeMounts": [_mount("plugins", PLUGINS_RUN), _mount("tmp", "/tmp")],
    }


def _volumes(options: Options) -> list[dict[str, Any]]:
    tun = ("tun", TUN, "CharDevice", "udp's packets go by it; a runtime that keeps containers from it has no udp.")
    every = (
        ("run", RUN, "DirectoryOrCreate", "The node's subnet, for the plugin; keys; who asks how flanneld is."),
        ("cni-plugin", BIN_DIR, "DirectoryOrCreate", ""),
        ("cni", NET_DIR, "DirectoryOrCreate", ""),
        ("plugins", PLUGINS_RUN, "DirectoryOrCreate", "The socket of the plugins' server."),
    )
    hosts = [
        *(every if options.network == "flannel" else every[:1]),
        *([tun] if options.flannel_backend == "udp" else []),
    ]
    return [
        *(
            ({WHY: why} if why else {}) | {"name": name, "hostPath": {"path": path, "type": kind}}
            for name, path, kind, why in hosts
        ),
        {"name": "flannel-cfg", "configMap": {"name": CONFIG}},
        {"name": "tmp", "emptyDir": {}},
    ]


def _mount(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "mountPath": path}
