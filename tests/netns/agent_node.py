"""Nodes with a real agent for tests: a namespace, `tortie agent` in it on an SQLite file, and a runtime that calls it.

Site ── store.db, the stub, the runtime's cache            Node ── namespace, run directory, agent
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from namespaces import Ns
from tortie.base.addr import parse_net
from tortie.calc.admission import bootstrap
from tortie.calc.defaults import defaulted
from tortie.cni.conflist import ConfList, load_conflist
from tortie.cni.install import build_stub
from tortie.cni.runtime import Runtime
from tortie.ipam.check import Finding, check
from tortie.kernel import netns
from tortie.model.document import parse
from tortie.model.ipam import BlockAffinity, IPAMBlock, IPAMHandle, IPPool, IPPoolSpec
from tortie.model.k8s import Container, Namespace, Pod, PodSpec
from tortie.model.meta import Metadata, Resource
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint, interface_name
from tortie.store import open_store

T = TypeVar("T")

NETWORK = "k8s-pod-network"
POOL4, POOL6 = "10.65.0.0/16", "fd00:65::/48"
RED = "red"
PROGRAM, TORTIE = ("tortie.agent",), ("tortie.cli.main", "agent")
PATIENCE = 20.0
"""Seconds until what should come about has not."""
READY = "tortie-ready-"
"""How the handles begin under which agents hold addresses ready."""
_serial = itertools.count(1)
_sites: list[Any] = []


def environment() -> dict[str, str]:
    """Ours, but for what would make Python compile every module at each start, which no installed program does."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def until(look: Callable[[], T], want: Callable[[T], bool] = bool, what: str = "", seconds: float = PATIENCE) -> T:
    """What `look` returns once it is as wanted."""
    deadline = time.monotonic() + seconds
    while not want(seen := look()):
        assert time.monotonic() < deadline, f"{what}: after {seconds:g} s still {seen}"
        time.sleep(0.02)
    return seen


async def soon(look: Callable[[], Any], want: Callable[[Any], bool] = bool, what: str = "") -> Any:
    """`until` for a test that is a coroutine; `look` may be one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        seen = look()
        if asyncio.iscoroutine(seen):
            seen = await seen
        if want(seen):
            return seen
        assert time.monotonic() < deadline, f"{what}: after {PATIENCE:g} s still {seen}"
        await asyncio.sleep(0.02)


def container_id() -> str:
    return secrets.token_hex(32)


def pod(name: str, node: str = "node1", namespace: str = RED, labels: Mapping[str, str] | None = None) -> Pod:
    metadata = Metadata(name=name, namespace=namespace, labels=dict(labels or {}))
    return Pod(metadata=metadata, spec=PodSpec(node_name=node, containers=(Container(name="main"),)))


def pool(name: str, cidr: str, block_size: int | None = None, **fields: Any) -> IPPool:
    spec = IPPoolSpec(cidr=cidr, block_size=block_size, ipip_mode="Never", vxlan_mode="Never", **fields)
    return defaulted(IPPool(metadata=Metadata(name=name), spec=spec), None)


def is_strange(line: str) -> bool:
    """Whether a line of an agent's log is none of its own, or of a bug."""
    try:
        return "exception" in json.loads(line)
    except ValueError:
        return True


# --- a site -------------------------------------------------------------------------------------------------------


class Site:
    """What the nodes share."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.datastore = directory / "store.db"
        self.stub = build_stub(directory / "bin")
        self.nodes: list[Node] = []
        _sites.append(self)

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        store = open_store(self.datastore)
        try:
            yield store
        finally:
            await store.close()

    def write(self, *resources: Resource) -> None:
        """Create them; for the time before a test, when no loop runs."""

        async def create() -> None:
            async with self.store() as store:
                for one in resources:
                    await store.create(one)

        asyncio.run(create())

    def set_up(self) -> None:
        """A cluster with a pool of each family and the namespace red."""
        red = Namespace(metadata=Metadata(name=RED, labels={"kubernetes.io/metadata.name": RED}))
        self.write(*bootstrap("0" * 32), pool("pool4", POOL4), pool("pool6", POOL6), red)

    def node(self, name: str = "node1", *words: str, ipv4: str = "192.0.2.1/24", ipv6: str = "") -> Node:
        ns = Ns(f"tt-{os.getpid()}-{name}-{next(_serial)}")
        subprocess.run(["ip", "netns", "add", ns.name], check=True, timeout=30)
        made = Node(self, name, ns, [*words, "--ipv4", ipv4, "--ipv6", ipv6])
        self.nodes.append(made)
        ns.ip("link", "set", "lo", "up")
        return made

    def close(self) -> None:
        """All of it goes; no agent may have met what it did not expect."""
        _sites.remove(self)
        for node in self.nodes:
            node.close()
        strange = [line for node in self.nodes for line in node.log.splitlines() if is_strange(line)]
        assert not strange, "\n".join(strange)


@contextlib.contextmanager
def site_in(directory: Path) -> Iterator[Site]:
    site = Site(directory)
    try:
        yield site
    finally:
        site.close()


# --- a node -------------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A namespace with an agent. `words` are more of its command line; `program` is what a person would start, or what
    programs start because it is there sooner."""

    site: Site
    name: str
    ns: Ns
    words: list[str]
    program: tuple[str, ...] = PROGRAM
    process: subprocess.Popen[bytes] | None = None

    @property
    def run_dir(self) -> Path:
        return self.site.directory / self.name

    @property
    def log(self) -> str:
        file = self.run_dir / "agent.log"
        return file.read_text() if file.exists() else ""

    def messages(self) -> list[str]:
        return [json.loads(line)["message"] for line in self.log.splitlines() if line.startswith("{")]

    @property
    def bird_pid(self) -> int:
        """0 while there is none."""
        try:
            return int((self.run_dir / "bird.ctl.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def command(self, *more: str) -> list[str]:
        own = ["--node", self.name, "--datastore", str(self.site.datastore), "--run-dir", str(self.run_dir)]
        words = (*self.program, *own, "--connect-delay", "0", "--no-defaults", *self.words, *more)
        return ["nsenter", f"--net={self.ns.path}", sys.executable, "-m", *words]

    def spawn(self, *more: str) -> None:
        self.run_dir.mkdir(exist_ok=True)
        with (self.run_dir / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(self.command(*more), stdout=log, stderr=log, env=environment())

    def start(self, *more: str) -> Node:
        """Returns when the agent says that it is ready."""
        self.spawn(*more)
        self.await_ready()
        return self

    def await_ready(self) -> None:
        def ready() -> bool:
            assert self.process is None or self.process.poll() is None, f"the agent ended: {self.log}"
            return self.ask("/readiness")[0] == 200

        until(ready, what=f"{self.name} is ready")

    def signal(self, number: signal.Signals) -> int:
        """Ends the agent; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def kill(self) -> None:
        assert self.signal(signal.SIGKILL) == -signal.SIGKILL

    def restart(self) -> None:
        self.kill()
        self.start()

    def run_once(self, *more: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """An agent that is expected to end by itself: exit status, and what it said but for its log."""
        whole = environment() | dict(env or {})
        done = subprocess.run(self.command(*more), capture_output=True, text=True, timeout=30, env=whole, check=False)
        return done.returncode, "\n".join(line for line in done.stderr.splitlines() if not line.startswith("{"))

    def close(self) -> None:
        """Everything that runs in the namespace ends, and the namespace goes."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        pids = self.ns._ip("netns", "pids", self.ns.name).split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.ns.name], check=False, timeout=30)

    # --- asking ---

    def ask(self, target: str) -> tuple[int, str]:
        """Status and body from the agent's socket; (0, why) when it does not answer."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(10)
        try:
            sock.connect(str(self.run_dir / "agent.sock"))
        except OSError as error:
            sock.close()
            return 0, str(error)
        return _get(sock, target)

    def ask_port(self, port: int, target: str) -> tuple[int, str]:
        with netns.entered(self.ns.path):
            sock = socket.create_connection(("127.0.0.1", port), 10)
        return _get(sock, target)

    def runtime(self, **environment: str) -> Runtime:
        """As the container runtime of this node does it."""
        agent = {"TORTIE_AGENT_SOCKET": str(self.run_dir / "agent.sock"), **environment}
        cache = self.site.directory / f"cache-{self.name}"
        prefix = ["nsenter", f"--net={self.ns.path}"]
        return Runtime([str(self.site.stub.parent)], cache, agent, prefix, timeout=60)

    # --- what is in the kernel ---

    def links(self) -> set[str]:
        return {link["ifname"] for link in self.ns.json("link", "show") if link["ifname"].startswith("cali")}

    def routes(self) -> set[tuple[str, str]]:
        """Destination and interface of what leads to pods."""
        every = [route for version in (4, 6) for route in self.ns.json(f"-{version}", "route", "show")]
        return {
            (route["dst"], route["dev"])
            for route in every
            if route.get("dev", "").startswith("cali") and route["protocol"] != "kernel"
        }

    def dispatched(self) -> set[str]:
        """The interfaces whose policy is known."""
        found: set[str] = set()
        for name in ("from-workload", "to-workload"):
            listed = json.loads(self.ns.run("nft", "-j", "list", "map", "inet", "tortie", name))["nftables"]
            found |= {key for item in listed if "map" in item for key, _ in item["map"].get("elem", [])}
        return found


def _get(sock: socket.socket, target: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("agent")
    connection.sock = sock
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


# --- containers ---------------------------------------------------------------------------------------------------


def conflist(
    version: str = "1.0.0", *, ipv4: bool = True, ipv6: bool = True, name: str = NETWORK, **more: Any
) -> ConfList:
    ipam = {"type": "calico-ipam", "assign_ipv4": str(ipv4).lower(), "assign_ipv6": str(ipv6).lower()}
    ipam |= more.pop("ipam", {})
    plugin = {"type": "calico", "ipam": ipam, "policy": {"type": "k8s"}, **more}
    return load_conflist({"name": name, "cniVersion": version, "plugins": [plugin]})


@dataclass
class Sandbox:
    """A container of a pod: its id, its namespace, and the calls about it."""

    node: Node
    pod: str
    ns: Ns | None
    namespace: str = RED
    container_id: str = field(default_factory=container_id)
    conflist: ConfList = field(default_factory=conflist)
    ifname: str = "eth0"

    @property
    def host_ifname(self) -> str:
        return interface_name(self.namespace, self.pod)

    @property
    def where(self) -> dict[str, Any]:
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.namespace,
            "K8S_POD_NAME": self.pod,
            "K8S_POD_INFRA_CONTAINER_ID": self.container_id,
        }
        return {"container_id": self.container_id, "ifname": self.ifname, "args": args}

    def path(self, netns: str | None) -> str:
        return netns if netns is not None else self.ns.path if self.ns else ""

    async def add(self, netns: str | None = None) -> dict[str, Any]:
        return await self.node.runtime().add(self.conflist, netns=self.path(netns), **self.where)

    async def delete(self, netns: str | None = None) -> None:
        await self.node.runtime().delete(self.conflist, netns=self.path(netns), **self.where)

    async def check(self) -> None:
        await self.node.runtime().check(self.conflist, netns=self.path(None), **self.where)


def ips(result: Mapping[str, Any]) -> list[str]:
    """The addresses of a result, without their prefix lengths."""
    return [address["address"].partition("/")[0] for address in result["ips"]]


async def settled() -> None:
    """Until the datastore has been told of every pod that is connected."""
    nodes = [node for site in _sites for node in site.nodes]
    running = [node.run_dir for node in nodes if node.process is not None and node.process.poll() is None]
    await soon(lambda: [file for one in running for file in one.glob("pending/*")], lambda left: not left, "notes")


async def endpoints(store: Store, node: str = "node1") -> dict[str, WorkloadEndpoint]:
    """Those of a node, by pod."""
    await settled()
    every = (await store.list(WorkloadEndpoint)).items
    return {one.spec.pod: one for one in every if one.spec.node == node}


async def held(store: Store) -> dict[str, set[str]]:
    """Addresses by handle, as the blocks have it, without those that are held ready."""
    await settled()
    return {handle: ips for handle, ips in (await assigned(store)).items() if not handle.startswith(READY)}


async def assigned(store: Store) -> dict[str, set[str]]:
    """Addresses by handle, as the blocks have it."""
    found: dict[str, set[str]] = {}
    for block in (await store.list(IPAMBlock)).items:
        for ordinal, index in enumerate(block.spec.allocations):
            if index is not None:
                handle = block.spec.attributes[index].handle_id or ""
                found.setdefault(handle, set()).add(str(parse_net(block.spec.cidr)[ordinal]))
    return found


async def ipam_findings(store: Store) -> list[Finding]:
    blocks = (await store.list(IPAMBlock)).items
    handles = (await store.list(IPAMHandle)).items
    affinities = (await store.list(BlockAffinity)).items
    return check(blocks, handles, affinities)


async def nothing_left(node: Node, store: Store, *but: Sandbox) -> None:
    """Of everything that ADD makes there is only what belongs to these attachments."""
    await nothing_harmful_left(node, store, *but)
    assert await handles(store) == {f"{one.conflist.name}.{one.container_id}".lower() for one in but}
    await soon(lambda: ipam_findings(store), lambda found: not found, "what is held ready fits together")


async def handles(store: Store) -> set[str]:
    """All but those of what is held ready."""
    names = {handle.name for handle in (await store.list(IPAMHandle)).items}
    return {name for name in names if not name.startswith(READY)}


async def nothing_harmful_left(node: Node, store: Store, *but: Sandbox) -> None:
    """The same, but for what costs nobody an address: a handle that counts addresses it has not got."""
    interfaces = {one.host_ifname for one in but}
    assert node.links() == interfaces
    assert set(await endpoints(store, node.name)) == {one.pod for one in but}
    assert set(await held(store)) == {f"{one.conflist.name}.{one.container_id}" for one in but}
    assert [str(finding) for finding in await ipam_findings(store) if not finding.harmless] == []
    await soon(node.dispatched, lambda seen: seen == interfaces, "policy of interfaces")
    await soon(node.routes, lambda seen: {dev for _, dev in seen} == interfaces, "routes of interfaces")


# --- traffic ------------------------------------------------------------------------------------------------------


def udp(ns: Ns, ip: str = "", port: int = 0) -> socket.socket:
    """A socket in the namespace, bound to the address (none: any) and port (0: any)."""
    v6 = ":" in ip
    with netns.entered(ns.path):
        made = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    made.bind((ip or ("::" if v6 else "0.0.0.0"), port))
    return made


class Stream:
    """Numbered datagrams one way, from a pod to another, for as long as the block lasts.

    Nothing comes back, so that connection tracking never calls the flow established: policy judges every packet.
    """

    def __init__(self, source: Ns, target: Ns, ip: str, port: int = 5000, interval: float = 0.002) -> None:
        self._out = udp(source, "::" if ":" in ip else "0.0.0.0")
        self._in = udp(target, ip, port)
        self._to = (ip, port)
        self._interval = interval
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=one) for one in (self._send, self._receive)]
        self.sent = 0
        self.received: set[int] = set()
        self.refused: dict[int, str] = {}

    @property
    def lost(self) -> list[int]:
        return [number for number in range(self.sent) if number not in self.received]

    def __enter__(self) -> Stream:
        self._in.settimeout(0.2)
        for thread in reversed(self._threads):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()

    def _send(self) -> None:
        began = time.monotonic()
        while not self._stop.is_set():
            try:
                self._out.sendto(self.sent.to_bytes(4, "big"), self._to)
            except OSError as error:
                self.refused[self.sent] = str(error)
            self.sent += 1
            self._stop.wait(max(0.0, began + self.sent * self._interval - time.monotonic()))

    def _receive(self) -> None:
        """A little longer than is sent."""
        while True:
            try:
                self.received.add(int.from_bytes(self._in.recv(100), "big"))
            except TimeoutError:
                if self._stop.is_set():
                    return


def documents(text: str) -> list[Resource]:
    return parse(text)


async def apply(store: Store, text: str) -> None:
    """Create what a YAML text has."""
    for one in parse(text):
        await store.create(one)


@contextlib.asynccontextmanager
async def applied(store: Store, text: str) -> AsyncIterator[None]:
    """Created for the time of the block."""
    made = parse(text)
    for one in made:
        await store.create(one)
    try:
        yield
    finally:
        for one in made:
            await store.delete(type(one), one.name, one.namespace)


def fails_plainly(error: pytest.ExceptionInfo[Any]) -> str:
    """The error's text, which is one line."""
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    return text
