"""Real daemons, ours, on the nodes of `flannel_nodes`: subnets from Kubernetes' Nodes in an embedded datastore, or
from etcd.

    town = Town(wire, directory, "vxlan"); one = town.node(1); one.start(); one.until_ready(); ...
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flannel_nodes import NETWORK, NETWORK6, FlannelNode, Wire, network_config, subnet6_of, subnet_of
from tortie.base.errors import NotFound
from tortie.model.k8s import K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata
from tortie.store import open_store

PATIENCE = 20.0
TORTIE = str(Path(sys.executable).parent / "tortie")
FLANNELD = (sys.executable, "-m", "tortie.flannel")
"""What `tortie flanneld` runs; it starts in less time than that."""


def until(what: str, holds: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `holds` says, once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return found


@dataclass
class Town:
    """One network. `flags` are every daemon's; `dual`: both IP versions."""

    wire: Wire
    directory: Path
    backend: str = "vxlan"
    options: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ("-kube-subnet-mgr",)
    dual: bool = False
    daemons: list[Daemon] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.configure()

    @property
    def datastore(self) -> str:
        return str(self.directory / "store.db")

    @property
    def net_conf(self) -> Path:
        return self.directory / "net-conf.json"

    def configure(self) -> None:
        document: dict[str, Any] = {"Network": str(NETWORK), "Backend": {"Type": self.backend, **self.options}}
        if self.dual:
            document |= {"EnableIPv6": True, "IPv6Network": str(NETWORK6)}
        self.net_conf.write_text(json.dumps(document))

    def node(self, number: int, *flags: str) -> Daemon:
        """A node with its Node in Kubernetes, and a daemon that does not run yet."""
        asyncio.run(self._register(number))
        node = self.wire.node(number, network_config(self.backend, v6=self.dual))
        daemon = Daemon(self, node, flags)
        self.daemons.append(daemon)
        return daemon

    async def _register(self, number: int) -> None:
        nets = [str(subnet_of(number)), *([str(subnet6_of(number))] if self.dual else [])]
        store = open_store(self.datastore)
        try:
            spec = K8sNodeSpec(pod_cidr=nets[0], pod_cidrs=tuple(nets))
            await store.create(K8sNode(metadata=Metadata(name=f"node{number}"), spec=spec))
        finally:
            await store.close()

    def remove(self, number: int) -> None:
        """The Node is deleted from Kubernetes."""

        async def delete() -> None:
            store = open_store(self.datastore)
            try:
                await store.delete(K8sNode, f"node{number}")
            except NotFound:
                pass
            finally:
                await store.close()

        asyncio.run(delete())

    def annotations(self, number: int) -> dict[str, str]:
        async def read() -> dict[str, str]:
            store = open_store(self.datastore)
            try:
                return dict((await store.get(K8sNode, f"node{number}")).metadata.annotations)
            finally:
                await store.close()

        return asyncio.run(read())

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.kill()


@dataclass
class Daemon:
    """One on a node."""

    town: Town
    node: FlannelNode
    flags: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> Path:
        return self.town.directory / f"node{self.node.number}"

    @property
    def subnet_file(self) -> Path:
        return self.directory / "subnet.env"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self) -> Daemon:
        self.directory.mkdir(exist_ok=True)
        kube = ("-datastore", self.town.datastore, "-net-config-path", str(self.town.net_conf))
        words = [
            *("ip", "netns", "exec", self.node.ns.name, *FLANNELD, *self.town.flags),
            *(kube if "-kube-subnet-mgr" in self.town.flags else ()),
            *("-subnet-file", str(self.subnet_file), "-iface", "eth0", *self.flags),
        ]
        environment = os.environ | {"NODE_NAME": f"node{self.node.number}"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        return self

    def until_ready(self) -> Daemon:
        until(f"node {self.node.number} is ready: {self.said()}", self.is_ready)
        return self

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        status, _ = self.ask("/readyz")
        return status == 200

    def ask(self, what: str) -> tuple[int, str]:
        """Over the Unix socket; (0, "") while there is nobody."""
        connection = http.client.HTTPConnection("localhost", timeout=5)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(5)
            connection.sock.connect(str(self.subnet_file.with_suffix(".sock")))
            connection.request("GET", what)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        status, text = self.ask("/status")
        assert status == 200, self.said()
        found: dict[str, Any] = json.loads(text)
        return found

    def knows(self, *numbers: int) -> None:
        """Waits until exactly these other nodes have their ways."""
        wanted = {str(subnet_of(number)) for number in numbers}

        def holds() -> bool:
            found = {one["subnet"] for one in self.status()["neighbours"] if one["path"]}
            return found == wanted and not self.status()["failures"]

        until(f"node {self.node.number} knows {sorted(wanted)}", holds)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """As an operator does; its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(PATIENCE)
