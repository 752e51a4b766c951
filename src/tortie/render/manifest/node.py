"""The DaemonSet `tortie-node`: the agent, BIRD and the CNI plugin on every Linux node.

    init: plugin     copies the plugin, of which no file holds a credential, and the conflist to the host
    init: cluster    makes the cluster's first objects where there are none
    tortie-node      the agent and BIRD

Names: ours, so that it is told apart from Calico's `calico-node`, which it takes the place of. The two are never on a
node together: each pod of ours keeps away from pods labelled `k8s-app: calico-node`, and the scheduler keeps those
away from ours. Environment variables, ConfigMap, tolerations, priority and ports are Calico's.
"""

from __future__ import annotations

from typing import Any

from tortie.render.manifest.access import NODE
from tortie.render.manifest.options import NAMESPACE, NOBODY, Options
from tortie.render.manifest.text import WHY

CONFIG = "calico-config"
ETCD_SECRET = "calico-etcd-secrets"
ETCD_FILES = "/calico-secrets"
HEALTH_PORT = 9099
RUN, LIB = "/run/tortie", "/var/lib/calico"
BIN_DIR, NET_DIR = "/opt/cni/bin", "/etc/cni/net.d"
BUNDLED = ("portmap", "loopback", "host-local", "bandwidth", "tuning")
"""Plugins that networks name beside ours, out of the image's containernetworking-plugins: copied where the host has
none."""

CAPABILITIES = {
    "NET_ADMIN": "links, addresses, routes, neighbours, nftables, traffic control, connection tracking",
    "NET_RAW": "asking by ARP and ICMP whether an address is taken, and whether the way to other nodes is open",
    "NET_BIND_SERVICE": "BIRD listens on port 179",
    "SYS_ADMIN": "entering a pod's network namespace (setns), and making /proc/sys writable for this container",
}
"""What the agent needs of root, and why. It is not privileged: no devices, no modules, no other process, no host's
files but those below."""

WRITABLE_PROC = "mount -o remount,bind,rw /proc/sys"
"""A container's /proc/sys is read-only unless it is privileged. Its own mount of it alone becomes writable, of which
net/ is the host's, the container being in the host's network namespace."""


def daemon_set(options: Options) -> dict[str, Any]:
    """The workload as a document."""
    labels = {"k8s-app": NODE}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NODE, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {"metadata": {"labels": labels}, "spec": _pod(options)},
        },
    }


def _pod(options: Options) -> dict[str, Any]:
    chosen = {"kubernetes.io/os": "linux"} | dict(label.split("=", 1) for label in options.node_selector)
    return {
        "nodeSelector": chosen,
        "hostNetwork": True,
        "serviceAccountName": NODE,
        "priorityClassName": "system-node-critical",
        "tolerations": [
            {WHY: "A node without a network is made one with: whatever keeps other pods away.", **_any("NoSchedule")},
            {"key": "CriticalAddonsOnly", "operator": "Exists"},
            _any("NoExecute"),
        ],
        "affinity": {"podAntiAffinity": _apart()},
        "terminationGracePeriodSeconds": 10,
        "securityContext": {"fsGroup": NOBODY, "seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [_plugin(options), *([] if options.policy_only else [_cluster(options)])],
        "containers": [_agent(options)],
        "volumes": _volumes(options),
    }


def _any(effect: str) -> dict[str, str]:
    return {"effect": effect, "operator": "Exists"}


def _apart() -> dict[str, Any]:
    others = {"matchExpressions": [{"key": "k8s-app", "operator": "In", "values": ["calico-node", "canal"]}]}
    term = {
        WHY: "Never beside another program that connects the same pods, whichever way it was installed.",
        "labelSelector": others,
        "namespaces": [NAMESPACE, "calico-system"],
        "topologyKey": "kubernetes.io/hostname",
    }
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def _plugin(options: Options) -> dict[str, Any]:
    """Puts the plugin where the container runtime looks for it."""
    bundled = f"[ -e /host{BIN_DIR}/$one ] || cp /usr/lib/cni/$one /host{BIN_DIR}/"
    install = f"tortie cni install --bin-dir /host{BIN_DIR} --net-dir /host{NET_DIR}"
    script = f"for one in {' '.join(BUNDLED)}; do {bundled}; done; exec {install}"
    return {
        "name": "install-cni",
        "image": options.where,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", script],
        "env": [
            {"name": "CNI_CONF_NAME", "value": "10-calico.conflist"},
            _from_config("CNI_NETWORK_CONFIG", "cni_network_config"),
            _from_node("KUBERNETES_NODE_NAME"),
            _from_config("CNI_MTU", "veth_mtu"),
            {"name": "SLEEP", "value": "false"},
        ],
        "securityContext": contained("DAC_OVERRIDE") | {"runAsUser": 0},
        "volumeMounts": [_mount("cni-bin-dir", f"/host{BIN_DIR}"), _mount("cni-net-dir", f"/host{NET_DIR}")],
    }


def _cluster(options: Options) -> dict[str, Any]:
    """Whoever starts first says that there is a cluster. What is there already stays as it is."""
    first = "{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: default}}"
    words = "tortie --allow-version-mismatch create --skip-exists -f -"
    return {
        "name": "first-objects",
        "image": options.where,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", f"echo '{first}' | {words}"],
        **endpoint(),
        "env": datastore(options),
        "securityContext": contained() | {"runAsNonRoot": True, "runAsUser": NOBODY, "runAsGroup": NOBODY},
        "volumeMounts": secret_mounts(options),
    }


def _agent(options: Options) -> dict[str, Any]:
    run = ["tortie", "agent"]
    health = {"httpGet": {"host": "127.0.0.1", "path": "/liveness", "port": HEALTH_PORT}}
    ready = ["tortie", "node", "health", "--felix-ready"]
    if options.backend == "bird":
        ready.append("--bird-ready")
    found = {
        "name": NODE,
        "image": options.where,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", f"{WRITABLE_PROC} && exec {' '.join(run)}"],
        **endpoint(),
        "env": [*datastore(options), *_environment(options)],
        "ports": [{"name": "health", "containerPort": HEALTH_PORT}],
        "livenessProbe": {
            **health, "periodSeconds": 10, "initialDelaySeconds": 10, "failureThreshold": 6, "timeoutSeconds": 10,
        },
        "readinessProbe": {"exec": {"command": ready}, "periodSeconds": 10, "timeoutSeconds": 10},
        "resources": {
            WHY: "No limits: a node that is short of memory or time must not lose its network first.",
            "requests": {"cpu": "250m", "memory": "160Mi"},
        },
        "securityContext": {
            WHY: "Not privileged. " + " ".join(f"{name}: {why}." for name, why in CAPABILITIES.items())
            + " AppArmor's default profile forbids mount, whatever the capabilities.",
            **contained(*CAPABILITIES),
            "runAsUser": 0,
            "appArmorProfile": {"type": "Unconfined"},
        },
        "volumeMounts": _mounts(options),
    }  # fmt: skip
    if options.backend != "none":  # the condition is somebody else's where the network is
        found["lifecycle"] = {"preStop": {"exec": {"command": ["tortie", "node", "shutdown"]}}}
    return found


def contained(*capabilities: str) -> dict[str, Any]:
    """Next to nothing is allowed. An API server refuses SYS_ADMIN beside what would forbid to gain privileges."""
    added = {"add": list(capabilities)} if capabilities else {}
    return {
        **({} if "SYS_ADMIN" in capabilities else {"allowPrivilegeEscalation": False}),
        "capabilities": {"drop": ["ALL"], **added},
        "readOnlyRootFilesystem": True,
    }


def endpoint() -> dict[str, Any]:
    """Where Kubernetes' API is, for clusters without kube-proxy. The ConfigMap need not be there."""
    return {"envFrom": [{"configMapRef": {"name": "kubernetes-services-endpoint", "optional": True}}]}


def _from_config(name: str, key: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"configMapKeyRef": {"name": CONFIG, "key": key}}}


def _from_node(name: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}


def datastore(options: Options) -> list[dict[str, Any]]:
    """Which datastore, for all programs of the cluster."""
    if options.datastore == "kubernetes":
        return [
            {"name": "DATASTORE_TYPE", "value": "kubernetes"},
            {WHY: "In the words of the command's own --datastore.", "name": "TORTIE_DATASTORE", "value": "kubernetes:"},
        ]
    files = (("ETCD_CA_CERT_FILE", "etcd_ca"), ("ETCD_CERT_FILE", "etcd_cert"), ("ETCD_KEY_FILE", "etcd_key"))
    return [
        {"name": "DATASTORE_TYPE", "value": "etcdv3"},
        {"name": "TORTIE_DATASTORE", "value": "etcd:"},
        _from_config("ETCD_ENDPOINTS", "etcd_endpoints"),
        *((_from_config(name, key) for name, key in files) if options.tls else ()),
    ]


def _environment(options: Options) -> list[dict[str, Any]]:
    """Of the agent, with the names that calico/node gives its variables."""
    first = {
        "WAIT_FOR_DATASTORE": "true",
        "CLUSTER_TYPE": "k8s,bgp" if options.backend == "bird" else "k8s",
        "CALICO_DISABLE_FILE_LOGGING": "true",
        "FELIX_DEFAULTENDPOINTTOHOSTACTION": "ACCEPT",
        "FELIX_HEALTHENABLED": "true",
        "FELIX_IPV6SUPPORT": "true" if options.pool(6) else "false",
    }
    found: list[dict[str, Any]] = [
        _from_node("NODENAME"),
        _from_node("CALICO_K8S_NODE_REF"),
        _from_config("CALICO_NETWORKING_BACKEND", "calico_backend"),
        *({"name": name, "value": value} for name, value in first.items()),
    ]
    if options.fanout:
        found.append(_from_config("FELIX_TYPHAK8SSERVICENAME", "typha_service_name"))
    found += [_from_config(name, "veth_mtu") for name in ("FELIX_IPINIPMTU", "FELIX_VXLANMTU", "FELIX_WIREGUARDMTU")]
    if options.policy_only:
        values = {"IP": "", "NO_DEFAULT_POOLS": "true", "USE_POD_CIDR": "true", "CALICO_MANAGE_CNI": "false"}
        if options.elsewhere:
            values["TORTIE_CLUSTER_CIDR"] = ",".join(map(str, options.elsewhere))
        return found + [{"name": name, "value": value} for name, value in values.items()]
    return found + [{"name": name, "value": value} for name, value in _pools(options).items()] + _routes(options)


def _pools(options: Options) -> dict[str, str]:
    """How nodes find their addresses, and what the first pools are like."""
    mode = "CrossSubnet" if options.encapsulation.endswith("CrossSubnet") else "Always"
    ipip = mode if options.encapsulation.startswith("IPIP") else "Never"
    vxlan = mode if options.encapsulation.startswith("VXLAN") else "Never"
    found = {"IP": "autodetect"} if options.pool(4) or not options.pool(6) else {"IP": "none"}
    if options.pool(6):
        found["IP6"] = "autodetect"
        if not options.pool(4):
            found |= {"CALICO_ROUTER_ID": "hash", "CALICO_IPV4POOL_CIDR": "none"}
    found |= {"CALICO_IPV4POOL_IPIP": ipip, "CALICO_IPV4POOL_VXLAN": vxlan, "CALICO_IPV6POOL_VXLAN": vxlan}
    for version in (4, 6):
        if cidr := options.pool(version):
            found[f"CALICO_IPV{version}POOL_CIDR"] = cidr
    return found | ({"CALICO_IPV6POOL_NAT_OUTGOING": "true"} if options.pool(6) else {})


def _routes(options: Options) -> list[dict[str, Any]]:
    if options.bgp or options.encapsulation != "None":
        return []
    why = "Without BGP and without a tunnel agents route to one another: all nodes must be on one network."
    return [{WHY: why, "name": "FELIX_PROGRAMCLUSTERROUTES", "value": "Enabled"}]


_HOST: tuple[tuple[str, str, str, str], ...] = (
    ("run", RUN, "DirectoryOrCreate", "The socket of the plugin, and BIRD's files."),
    ("lib", LIB, "DirectoryOrCreate", "The node's name and the pods' MTU, for this program and for others."),
    ("netns", "/run/netns", "DirectoryOrCreate", "Pods' network namespaces, where containerd and CRI-O keep them."),
    ("cni-bin-dir", BIN_DIR, "DirectoryOrCreate", ""),
    ("cni-net-dir", NET_DIR, "DirectoryOrCreate", ""),
    ("host-local", "/var/lib/cni/networks", "DirectoryOrCreate", "Addresses of host-local: taken over, or shared."),
    ("cni-log-dir", "/var/log/calico/cni", "DirectoryOrCreate", "The log that the network's configuration names."),
)


def _volumes(options: Options) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        ({WHY: why} if why else {}) | {"name": name, "hostPath": {"path": path, "type": kind}}
        for name, path, kind, why in _HOST
    ]
    found.append({"name": "tmp", "emptyDir": {}})
    return [*found, *secret_volumes(options)]


def _mounts(options: Options) -> list[dict[str, Any]]:
    return [
        _mount("run", RUN),
        _mount("lib", LIB),
        {WHY: "Namespaces of pods that come later are seen, too.", **_mount("netns", "/run/netns")}
        | {"mountPropagation": "HostToContainer"},
        {WHY: "For networks whose IPAM is another plugin.", **_mount("cni-bin-dir", BIN_DIR), "readOnly": True},
        {**_mount("cni-net-dir", NET_DIR), "readOnly": True},
        _mount("host-local", "/var/lib/cni/networks"),
        _mount("cni-log-dir", "/var/log/calico/cni"),
        _mount("tmp", "/tmp"),
        *secret_mounts(options),
    ]


def _mount(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "mountPath": path}


def secret_mounts(options: Options) -> list[dict[str, Any]]:
    return [{"name": "etcd-certs", "mountPath": ETCD_FILES, "readOnly": True}] if options.tls else []


def secret_volumes(options: Options) -> list[dict[str, Any]]:
    """etcd's certificates. 0440: who is not root has the group of the volume."""
    secret = {"secretName": ETCD_SECRET, "defaultMode": 0o440}
    return [{"name": "etcd-certs", "secret": secret}] if options.tls else []
