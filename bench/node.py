"""A node under measurement: a network namespace, an agent in it, and the CNI plugin that talks to that agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from bench.plugin import Network
from tortie.calc.admission import bootstrap
from tortie.calc.defaults import defaulted
from tortie.cni.install import build_stub
from tortie.kernel import links, netns
from tortie.kernel.netlink import Netlink
from tortie.lab import agents
from tortie.model.ipam import EncapMode, IPPool, IPPoolSpec
from tortie.model.k8s import Container, Pod, PodSpec
from tortie.model.meta import Metadata, Resource
from tortie.store import open_store

POOL, POOL6 = "10.90.0.0/16", "fd00:90::/56"
READY_SECONDS = 600.0 if "STOCKVM" in os.environ else 30.0  # an emulated processor takes its time
TORTIE = Path(sys.executable).with_name("tortie")


class NotReady(Exception):
    """The agent does not come up: there is nothing to measure."""


class Memory(NamedTuple):
    """Of a process, in MB: what it has in memory now, and the most that it ever had."""

    now: float
    peak: float


def memory_of(pid: int) -> Memory:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Memory(*(int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")))


def program_environment() -> dict[str, str]:
    """Ours, but for what would make Python compile every module at each start, which no installed program does."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def cluster_objects(tunnel: str = "") -> tuple[Resource, ...]:
    """An empty cluster with a pool of either family. `tunnel`: `vxlan` or `ipip` for IPv4, "" for none."""
    four = IPPoolSpec(
        cidr=POOL, ipip_mode=_mode(tunnel == "ipip"), vxlan_mode=_mode(tunnel == "vxlan"), nat_outgoing=True
    )
    six = IPPoolSpec(cidr=POOL6, ipip_mode="Never", vxlan_mode="Never", nat_outgoing=True)
    pools = (IPPool(metadata=Metadata(name=name), spec=spec) for name, spec in (("pool4", four), ("pool6", six)))
    return (*bootstrap(uuid4().hex), *(defaulted(one, None) for one in pools))


def _mode(wanted: bool) -> EncapMode:
    return "Always" if wanted else "Never"


def pod_object(name: str, node: str, **labels: str) -> Pod:
    spec = PodSpec(node_name=node, containers=(Container(name="main", image="busybox"),))
    return Pod(metadata=Metadata(name=name, namespace="default", labels=labels), spec=spec)


def write(datastore: Path, objects: Iterable[Resource]) -> None:
    """Creates objects in a datastore, which is made if it is missing."""

    async def create() -> None:
        store = open_store(datastore)
        try:
            for each in objects:
                await store.create(each)
        finally:
            await store.close()

    asyncio.run(create())


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace with loopback up, its path; afterwards everything that runs in it is killed."""
    path = netns.create(name)
    try:
        with Netlink(path) as nl:
            links.set_up(nl, "lo")
        yield path
    finally:
        for pid in netns.pids_in(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        netns.delete(name)


class Node:
    """An agent on a datastore, in a namespace (a path) that is there already."""

    def __init__(self, name: str, netns_path: str, datastore: Path, directory: Path) -> None:
        self.name = name
        self.netns = netns_path
        self.datastore = datastore
        self.run_dir = directory / name
        self._process: subprocess.Popen[bytes] | None = None
        self._stub = build_stub(directory / "bin")

    @property
    def socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def log(self) -> Path:
        return self.run_dir / "agent.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def cpu(self) -> float:
        """Seconds of CPU that the agent has taken so far: /proc/PID/task/*/schedstat, nanoseconds first."""
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def memory(self) -> Memory:
        assert self._process is not None
        return memory_of(self._process.pid)

    @contextlib.contextmanager
    def agent(
        self,
        *,
        ipv4: str,
        ipv6: str = "",
        bgp: bool = False,
        program: Sequence[str] = (str(TORTIE), "agent"),
        patience: float = READY_SECONDS,
    ) -> Iterator[None]:
        """Runs the agent meanwhile, by a program that takes its options. Raises NotReady."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        argv = [
            "nsenter", f"--net={self.netns}", *program, "--node", self.name, "--datastore", str(self.datastore),
            "--run-dir", str(self.run_dir), "--ipv4", ipv4, "--ipv6", ipv6,
            "--bgp" if bgp else "--no-bgp", "--connect-delay", "0", "--health-port", "0", "--metrics-port", "0",
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, env=program_environment())
        try:
            self._await_ready(patience)
            yield
        finally:
            self._process.terminate()
            self._process.wait()

    def _await_ready(self, patience: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + patience
        while not (state := agents.state_of(self.socket)).ready:
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = (self.log.read_text().strip().splitlines() or [state.why])[-1]
                raise NotReady(f"the agent of {self.name} is not ready: {last}")
            time.sleep(0.02)

    def network(self, *, ipv4: bool = True, ipv6: bool = False) -> Network:
        """The plugin, configured for the families that are wanted."""
        conf = {
            "cniVersion": "1.0.0",
            "name": "k8s-pod-network",
            "type": "calico",
            "ipam": {"type": "calico-ipam", "assign_ipv4": str(ipv4).lower(), "assign_ipv6": str(ipv6).lower()},
            "policy": {"type": "k8s"},
        }
        return Network(self._stub, conf, self.netns, {"TORTIE_AGENT_SOCKET": str(self.socket)})
