"""How a cluster is furnished with the manifest, and what is asked of it: what its administrator, its kubelets and its
scheduler do, for tests that live in it as users."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import yaml

from kube_api.server import NAMESPACES
from kube_cluster import PROGRAMS, Container, Machine, Sandbox, Server
from namespaces import Ns

KUBECTL = shutil.which("kubectl")
PLUGINS = Path("/usr/lib/cni")
CRD, V1 = "crd.projectcalico.org/v1", "v1"
MANIFEST = ("manifest", "--pool", "10.65.0.0/16", "--encapsulation", "None")
SHOP, DOOMED = "shop", "doomed"
NODE, CONTROLLERS = "tortie-node", "tortie-controllers"
PATIENCE = 30.0
PROBE = f"GET /apis/{CRD}/clusterinformations/default"
"""By which an agent sees now and then whether this is still its cluster."""
DIVIDER = "-- next --\n"
COMMANDS = f"""
import sys
from tortie.cli.main import main
for line in sys.argv[1:]:
    sys.stdout.write({DIVIDER!r})
    if main(line.split()):
        sys.exit(line)
"""
TAINTS = [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]


async def soon(look: Callable[[], Any], want: Callable[[Any], bool] = bool, what: str = "") -> Any:
    """What `look` returns, in a thread, once it is as wanted."""
    deadline = time.monotonic() + PATIENCE
    while not want(seen := await asyncio.to_thread(look)):
        assert time.monotonic() < deadline, f"{what}: after {PATIENCE:g} s still {seen}"
        await asyncio.sleep(0.05)
    return seen


# --- the cluster --------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    server: Server
    directory: Path
    nodes: list[Machine]
    make_ns: Callable[..., Ns]
    text: str
    """What `tortie manifest` prints."""

    def workload(self, kind: str) -> dict[str, Any]:
        """As the server has it."""
        name = {"DaemonSet": NODE, "Deployment": CONTROLLERS}[kind]
        return self.server.get(f"{kind.lower()}s", name, "kube-system")

    def agent(self, node: Machine) -> Container:
        """Its newest."""
        return next(one for one in reversed(node.containers) if one.name == NODE)

    def status(self, node: Machine) -> Any:
        return asked(node, "/status")

    def admin(self, *commands: str) -> list[str]:
        """What each command of ours says to the administrator, with his kubeconfig; one process runs all of them."""
        return self._run([sys.executable, "-c", COMMANDS, *commands]).split(DIVIDER)[1:]

    def kubectl(self, *words: str) -> None:
        assert KUBECTL is not None
        self._run([KUBECTL, "--cache-dir", str(self.directory / "cache"), *words])

    def _run(self, command: list[str]) -> str:
        told = {"PATH": PROGRAMS, "KUBECONFIG": str(self.directory / "admin"), "DATASTORE_TYPE": "kubernetes"}
        enter = ["nsenter", f"--net={self.server.ns.path}"]
        done = subprocess.run([*enter, *command], capture_output=True, text=True, timeout=60, env=told, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def pod(self, node: Machine, name: str, namespace: str = SHOP, *, uid: str = "", **metadata: Any) -> Sandbox:
        """Written as a user and a scheduler do; `uid` is the kubelet's, if that is another."""
        spec = {"nodeName": node.name, "containers": [{"name": "main", "image": "x"}]}
        made = self.server.create(
            "v1", "Pod", name, namespace, spec=spec, metadata=metadata, status={"phase": "Pending"}
        )
        return Sandbox(node, namespace, name, uid or made["metadata"]["uid"], self.make_ns(name))

    async def running(self, node: Machine, name: str, namespace: str = SHOP, **more: Any) -> Sandbox:
        sandbox = self.pod(node, name, namespace, **more)
        await sandbox.attach()
        sandbox.report()
        return sandbox

    async def gone(self, *sandboxes: Sandbox) -> None:
        """Deleted by a user, ended by their kubelets."""
        for one in sandboxes:
            await one.detach()
            self.server.delete("pods", one.name, one.namespace)

    @asynccontextmanager
    async def policy(self, name: str, **spec: Any) -> AsyncIterator[None]:
        """A Kubernetes NetworkPolicy for the time of the block."""
        self.server.create("networking.k8s.io/v1", "NetworkPolicy", name, SHOP, spec=spec)
        yield
        self.server.delete("networkpolicies.networking.k8s.io", name, SHOP)

    def handles(self, pool: str) -> set[str]:
        """Who has addresses of a pool."""
        blocks = [one["spec"] for one in self.server.do(self.server.api.list, "ipamblocks")]
        inside = [one for one in blocks if ip_network(one["cidr"]).subnet_of(ip_network(pool))]
        return {
            block["attributes"][index]["handle_id"]
            for block in inside
            for index in block["allocations"]
            if index is not None
        }

    async def rested(self, quiet: float = 0.3) -> None:
        """Until agents have nothing to tell, and asked for nothing for so many seconds."""
        for node in self.nodes:
            await soon(lambda node=node: self.status(node)["cni"], lambda cni: cni["ready"] > 2 and not cni["pending"])
        count, since = -1, 0.0
        while time.monotonic() - since < quiet:
            if (now := len(self.server.asked(NODE))) != count:
                count, since = now, time.monotonic()
            await asyncio.sleep(0.05)


def asked(node: Machine, question: str) -> Any:
    """An agent's answer over its socket; {} when there is none."""
    connection = http.client.HTTPConnection("agent")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(10)
    try:
        connection.sock.connect(str(node.host("/run/tortie/agent.sock")))
        connection.request("GET", question)
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()


def wired(make: Callable[..., Ns], directory: Path) -> tuple[Server, list[Machine]]:
    """The server on its bridge, and two nodes with a cable to it."""
    ns = make("api")
    ns.ip("link", "add", "br0", "type", "bridge")
    ns.ip("link", "set", "br0", "up")
    ns.ip("addr", "add", "192.0.2.100/24", "dev", "br0")
    server, nodes = Server(ns), []
    for number in (1, 2):
        own, name = make(f"node{number}"), f"node{number}"
        ns.ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", own.name)
        ns.ip("link", "set", name, "master", "br0", "up")
        own.ip("addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
        own.ip("link", "set", "eth0", "up")
        (directory / name).mkdir()
        nodes.append(Machine(server, name, own, directory / name))
    return server, nodes


def apply(cluster: Cluster) -> None:
    """A dry run that changes nothing, then the manifest itself, as an administrator does it. Its namespace comes before
    both: what is in one that is not there yet cannot be tried."""
    file = cluster.directory / "tortie.yaml"
    file.write_text(cluster.text)
    every = list(yaml.safe_load_all(cluster.text))
    for one in (one for one in every if one["kind"] == "Namespace"):
        assert cluster.server.ask("POST", where(one), one).status == 201
    documents = [one for one in every if one["kind"] != "Namespace"]
    before = cluster.server.api.revision
    for one in documents:
        answer = cluster.server.ask("POST", where(one), one, dryRun="All", fieldValidation="Strict")
        assert answer.status == 201, (one["kind"], one["metadata"], answer.body)
        assert "Warning" not in answer.headers, answer.headers["Warning"]
    if KUBECTL is not None:
        cluster.kubectl("apply", "--dry-run=server", "-f", str(file))
    assert cluster.server.api.revision == before
    if KUBECTL is not None:
        cluster.kubectl("apply", "-f", str(file))
        return
    for one in documents:
        assert cluster.server.ask("POST", where(one), one).status == 201


def where(one: dict[str, Any]) -> str:
    """The path of the collection that an object belongs to."""
    version, kind = one["apiVersion"], one["kind"].lower()
    plural = f"{kind[:-1]}ies" if kind.endswith("cy") else f"{kind}s"
    namespace = one["metadata"].get("namespace", "")
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def furnish(cluster: Cluster) -> None:
    """What kubelets, Kubernetes' controllers and users bring."""
    for name in NAMESPACES:
        cluster.server.create("v1", "ServiceAccount", "default", name)
    for node in cluster.nodes:
        labels = {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux"}
        status = {"conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady"}]}
        spec = {"taints": TAINTS}
        cluster.server.create("v1", "Node", node.name, metadata={"labels": labels}, spec=spec, status=status)
    for name in (SHOP, DOOMED):
        cluster.server.create("v1", "Namespace", name, metadata={"labels": {"kubernetes.io/metadata.name": name}})
        cluster.server.create("v1", "ServiceAccount", "default", name)


def begin(cluster: Cluster) -> None:
    """The pods of the manifest, as two kubelets start them."""
    daemons = cluster.workload("DaemonSet")
    for name in ("install-cni", "first-objects"):
        for one in [node.start(daemons, name) for node in cluster.nodes]:
            one.wait()
    agents = [node.start(daemons, NODE) for node in cluster.nodes]
    controllers = cluster.nodes[0].start(cluster.workload("Deployment"), CONTROLLERS)
    deadline = time.monotonic() + PATIENCE
    while not all(asked(node, "/status").get("cni", {}).get("serves") for node in cluster.nodes):
        for one in (*agents, controllers):
            assert one.process.poll() is None, f"{one.name} ended: {one.log}"
        assert time.monotonic() < deadline, [one.log for one in agents]
        time.sleep(0.05)
