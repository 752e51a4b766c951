"""An agent that follows the cluster by way of a fan-out server: pods come, policy reaches the kernel, servers go."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_node import RED, Node, Sandbox, Site, environment, pod, site_in, soon
from conftest import Ns

from tortie.model.document import convert
from tortie.model.policy import NetworkPolicy
from tortie.model.store import Store

pytestmark = pytest.mark.root


class Server:
    """`tortie fanout` on a site's datastore."""

    def __init__(self, site: Site) -> None:
        self.address = f"unix:{site.directory}/fanout.sock"
        self.log = site.directory / "fanout.log"
        self._words = [
            *("fanout", "--datastore", str(site.datastore), "--listen", self.address, "--leave", "1"),
            *("--health-port", "0", "--metrics-port", "0"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tortie.cli.main", *self._words]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())

    def end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path) as site:
        site.set_up()
        site.write(pod("web"))
        yield site


@pytest.fixture
def server(site: Site) -> Iterator[Server]:
    found = Server(site)
    found.start()
    yield found
    found.end(signal.SIGKILL)


def policy(name: str) -> NetworkPolicy:
    spec = {"selector": "all()", "types": ["Ingress"], "ingress": [{"action": "Allow"}]}
    return convert(NetworkPolicy, {"metadata": {"name": name, "namespace": RED}, "spec": spec})


async def test_an_agent_and_its_servers(site: Site, server: Server, make_ns) -> None:
    node = site.node("node1", "--no-bgp", "--fanout", server.address).start()
    ns: Ns = make_ns()
    async with site.store() as store:
        sandbox = Sandbox(node, "web", ns)
        await sandbox.add()
        assert by_way_of(node) == 1
        await reaches(node, store, "served")
        server.end(signal.SIGKILL)
        await reaches(node, store, "alone")
        assert "no fan-out server answers: the datastore is followed itself" in node.messages()
        server.start()
        await soon(lambda: by_way_of(node), lambda times: times == 2, "the agent is back")
        await reaches(node, store, "again")
        await sandbox.delete()


def by_way_of(node: Node) -> int:
    """How often it has come to a server."""
    return sum(message.startswith("the cluster is followed by way of") for message in node.messages())


async def reaches(node: Node, store: Store, name: str) -> None:
    """A policy gets into the kernel."""
    await store.create(policy(name))
    await soon(lambda: name in node.ns.run("nft", "list", "table", "inet", "tortie"), what=f"policy {name}")
