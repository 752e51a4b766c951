"""Services with a real agent, and with `tortie proxy` alone: restarts under load, kube-proxy's rules beside ours, a
takeover by command, questions and metrics."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from agent_node import Node, Site, environment, is_strange, pool, site_in, until
from msgspec.structs import replace

from tortie.agent.client import tell
from tortie.base.errors import NotFound, TortieError
from tortie.cli.main import main
from tortie.kernel import netns
from tortie.model.k8s import K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata
from tortie.model.service import SERVICE_NAME, Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, ServiceSpec
from tortie.store import open_store

pytestmark = pytest.mark.root

VIP, PORT, OTHER = "10.96.7.7", 80, "10.96.7.8"
BACKENDS = ("10.65.9.1", "10.65.9.2", "10.65.9.3")
TABLE = ("inet", "tortie-services")
KUBE_PROXY = "add table ip kube-proxy; add chain ip kube-proxy services"
SERVERS = """
import socketserver, sys, threading
class Answer(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(self.server.server_address[0].encode() + b"\\n")
class Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address, request_queue_size = True, True, 1000
for ip in sys.argv[1:]:
    threading.Thread(target=Server((ip, 8080), Answer).serve_forever).start()
print("ready", flush=True)
"""


def service(name: str = "web", ip: str = VIP) -> Service:
    spec = ServiceSpec(cluster_ip=ip, cluster_ips=(ip,), ports=(ServicePort(port=PORT, target_port=8080),))
    return Service(metadata=Metadata(name=name, namespace="red"), spec=spec)


def slice_of(*ips: str, name: str = "web") -> EndpointSlice:
    metadata = Metadata(name=f"{name}-1", namespace="red", labels={SERVICE_NAME: name})
    endpoints = tuple(Endpoint(addresses=(ip,), node_name="node1") for ip in ips)
    return EndpointSlice(metadata=metadata, address_type="IPv4", endpoints=endpoints, ports=(EndpointPort(port=8080),))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path) as site:
        site.set_up()
        site.write(pool("services", "10.96.200.0/24", allowed_uses=("LoadBalancer",)), service(), slice_of(*BACKENDS))
        yield site


@pytest.fixture
def node(site: Site) -> Iterator[Node]:
    """Its backends are processes of its own, behind addresses on lo."""
    node = site.node("node1", "--no-bgp", "--proxy-health-port", "10256")
    for ip in ("192.0.2.1", *BACKENDS):
        node.ns.ip("addr", "add", f"{ip}/32", "dev", "lo")
    node.ns.ip("route", "add", "10.96.0.0/16", "dev", "lo", "src", "192.0.2.1")
    command = ["nsenter", f"--net={node.ns.path}", sys.executable, "-c", SERVERS, *BACKENDS]
    servers = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert servers.stdout is not None
    assert servers.stdout.readline() == "ready\n"
    yield node
    servers.kill()
    servers.wait()
    servers.stdout.close()


def connected(node: Node, ip: str = VIP, port: int = PORT) -> socket.socket:
    with netns.entered(node.ns.path):
        return socket.create_connection((ip, port), 3)


def who(connection: socket.socket) -> str:
    connection.sendall(b"who?\n")
    return connection.recv(64).decode().strip()


def asked(node: Node) -> str:
    """Who answers a new connection, or why nobody does."""
    try:
        with connected(node) as connection:
            return who(connection)
    except OSError as error:
        return str(error)


def services_of(node: Node, query: str = "") -> dict[str, Any]:
    status, body = node.ask(f"/services{query}")
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


def tables(node: Node) -> set[tuple[str, str]]:
    listed = json.loads(node.ns.run("nft", "-j", "list", "tables"))["nftables"]
    return {(one["table"]["family"], one["table"]["name"]) for one in listed if "table" in one}


async def change(site: Site, *ips: str) -> None:
    store = open_store(site.datastore)
    try:
        there = await store.get(EndpointSlice, "web-1", "red")
        await store.update(replace(there, endpoints=slice_of(*ips).endpoints))
    finally:
        await store.close()


class Flood:
    """New connections one after the other, from a thread, until it is left; `errors` and `seen` say how they fared."""

    def __init__(self, node: Node) -> None:
        self.seen: list[tuple[float, str]] = []
        self.errors: list[str] = []
        self._node = node
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with netns.entered(self._node.ns.path):
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    with socket.create_connection((VIP, PORT), 3) as connection:
                        self.seen.append((began, who(connection)))
                except OSError as error:
                    self.errors.append(str(error))


async def test_restart_and_a_backend_that_went_meanwhile(site: Site, node: Node) -> None:
    node.start()
    until(lambda: asked(node), lambda answer: answer in BACKENDS, "the service answers")
    with contextlib.ExitStack() as stack:
        kept: dict[str, socket.socket] = {}
        while set(kept) != set(BACKENDS):
            connection = stack.enter_context(connected(node))
            kept.setdefault(who(connection), connection)
        with Flood(node) as flood:
            node.kill()
            await change(site, *BACKENDS[1:])
            node.start()
            until(lambda: services_of(node)["services"][0]["entrances"][0]["backends"], lambda b: len(b) == 2)
            until(lambda: "10.65.9.1" not in node.ns.run("nft", "list", "map", *TABLE, "backends4"))
            began = time.monotonic()
            until(lambda: len([1 for at, _ in flood.seen if at > began]) > 200)
        assert flood.errors == []
        assert {answer for at, answer in flood.seen if at > began} == set(BACKENDS[1:])
        assert {ip: who(connection) for ip, connection in kept.items()} == {ip: ip for ip in BACKENDS}


def test_what_is_told(site: Site, node: Node) -> None:
    node.start()
    until(lambda: asked(node), lambda answer: answer in BACKENDS)
    for _ in range(9):
        asked(node)
    found = services_of(node, "?namespace=red&name=web")
    assert (found["node"], found["asked"], found["on"], found["kubeProxy"]) == ("node1", "auto", True, [])
    (one,) = found["services"]
    (entrance,) = one["entrances"]
    assert entrance["frontend"] == f"{VIP}:80/tcp"
    assert sum(backend["connections"] for backend in entrance["backends"]) >= 10
    assert services_of(node, "?services=none")["services"] == []
    status, body = node.ask_port(10256, "/healthz")
    assert status == 200, body
    assert "kubeproxy_services 1.0" in node.ask_port(9091, "/metrics")[1]
    assert node.ask("/readiness")[0] == 200


def test_who_is_not_asked_to_serve_does_not(site: Site, node: Node) -> None:
    node.start("--services", "on")
    until(lambda: asked(node), lambda answer: answer in BACKENDS)
    node.kill()
    node.start("--services", "off")
    until(lambda: TABLE not in tables(node), what="the table of an earlier life goes")
    assert not services_of(node)["on"]


def test_takeover_beside_rules_of_a_kube_proxy(site: Site, node: Node) -> None:
    node.ns.run("nft", KUBE_PROXY)
    node.start()
    found = until(lambda: services_of(node), lambda found: bool(found["kubeProxy"]))
    assert not found["on"]
    assert "takeover" in found["why"]
    assert TABLE not in tables(node)
    tortie(node, "services", "takeover", "--yes")
    assert asked(node) in BACKENDS
    assert ("ip", "kube-proxy") not in tables(node)
    node.kill()
    node.ns.run("nft", KUBE_PROXY)
    node.start()
    assert services_of(node)["asked"] == "on", "what a person chose outlives the agent"
    until(lambda: asked(node), lambda answer: answer in BACKENDS)


def test_takeovers_at_once_and_an_agent_that_dies_in_one(site: Site, node: Node) -> None:
    """They are made one after the other, and what was cut short is finished by the same command."""
    node.ns.run("nft", KUBE_PROXY)
    node.start()
    until(lambda: bool(services_of(node)["kubeProxy"]))
    path = node.run_dir / "agent.sock"
    with ThreadPoolExecutor(8) as several:
        words = ["/services/takeover?yes=1"] * 6 + ["/services/takeover?plan=1"] * 2
        answers = list(several.map(lambda what: tell(path, what, 60), words))
    assert [answer["done"] for answer in answers] == [True] * 6 + [False] * 2
    assert {step["state"] for answer in answers[6:] for step in answer["steps"]} == {"planned"}
    assert asked(node) in BACKENDS
    tortie(node, "services", "release", "--yes")
    assert TABLE not in tables(node)

    node.ns.run("nft", KUBE_PROXY)
    with ThreadPoolExecutor(1) as one, contextlib.suppress(TortieError):
        cut = one.submit(tell, path, "/services/takeover?yes=1", 60)
        until(lambda: (node.run_dir / "services").read_text() == "on\n")
        node.kill()
        cut.result()
    node.start()
    until(lambda: asked(node), lambda answer: answer in BACKENDS)
    assert "# done" in tortie(node, "services", "takeover", "--yes")
    assert ("ip", "kube-proxy") not in tables(node)
    with pytest.raises(TortieError, match='"plan=true" is not understood'):
        tell(path, "/services/takeover?plan=true")


def tortie(node: Node, *words: str, where: str = "agent.sock", status: int = 0) -> str:
    command = [sys.executable, "-m", "tortie.cli.main", *words, "--socket", str(node.run_dir / where)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


# --- the proxy alone ----------------------------------------------------------------------------------------------


def proxy(node: Node, *words: str) -> subprocess.Popen[bytes]:
    node.run_dir.mkdir(exist_ok=True)
    own = ["--datastore", str(node.site.datastore), "--node", "node1", "--run-dir", str(node.run_dir)]
    own += ["--lib-dir", str(node.run_dir), "--cluster-cidr", "10.65.0.0/16"]
    command = ["nsenter", f"--net={node.ns.path}", sys.executable, "-m", "tortie.cli.main", "proxy", *own, *words]
    with (node.run_dir / "proxy.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment())


async def test_proxy_alone(site: Site, node: Node) -> None:
    running = proxy(node)
    try:
        until(lambda: asked(node), lambda answer: answer in BACKENDS, (node.run_dir / "proxy.log").read_text())
        with Flood(node) as flood:
            running.kill()
            running.wait()
            await change(site, BACKENDS[2])
            running = proxy(node)
            until(lambda: BACKENDS[0] not in node.ns.run("nft", "list", "map", *TABLE, "backends4"))
            assert {asked(node) for _ in range(20)} == {BACKENDS[2]}
        assert flood.errors == []
        assert proxy(node).wait(20) != 0
        assert f"a proxy runs already in {node.run_dir}, pid" in (node.run_dir / "proxy.log").read_text()
        assert "there is no kube-proxy here" in tortie(node, "services", "status", where="proxy.sock")
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
        assert asked(node) == BACKENDS[2], "what is in the kernel stays"
        assert not [line for line in (node.run_dir / "proxy.log").read_text().splitlines() if "Traceback" in line]
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()


async def test_a_node_that_leaves_gets_nobody_new_from_load_balancers(site: Site, node: Node) -> None:
    def health(path: str) -> tuple[int, bool | None]:
        done = node.ns.run("curl", "-s", "-w", "\\n%{http_code}", f"http://127.0.0.1:10256{path}", check=False)
        body, _, code = done.rpartition("\n")
        return int(code), json.loads(body).get("nodeEligible") if body else None

    tainted = K8sNodeSpec(taints=[{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}])
    async with site.store() as store:
        await store.create(K8sNode(metadata=Metadata(name="elsewhere"), spec=tainted))
        running = proxy(node)
        try:
            until(lambda: health("/healthz"), lambda found: found == (200, True))
            here = await store.create(K8sNode(metadata=Metadata(name="node1"), spec=tainted))
            until(lambda: health("/healthz"), lambda found: found == (503, False))
            assert health("/livez") == (200, None)
            assert asked(node) in BACKENDS, "who comes all the same is served"
            here = await store.update(replace(here, spec=K8sNodeSpec()))
            until(lambda: health("/healthz"), lambda found: found == (200, True))
            await store.update(replace(here, spec=tainted))
            until(lambda: health("/healthz"), lambda found: found == (503, False))
            await store.delete(K8sNode, "node1")
            await store.delete(K8sNode, "elsewhere")
            await change(site, BACKENDS[2])
            until(lambda: asked(node), lambda answer: answer == BACKENDS[2])
            assert health("/healthz") == (503, False), "it is gone, and does not come back"
        finally:
            running.send_signal(signal.SIGTERM)
            assert running.wait(20) == 0
            for name in ("node1", "elsewhere"):
                with contextlib.suppress(NotFound):
                    await store.delete(K8sNode, name)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--services", "yes"], '--services: "yes" is not one of auto, on, off'),
        (["--nodeport-addresses", "300.0.0.0/8"], "--nodeport-addresses: "),
        (["--cluster-cidr", "10.0.0.0/99"], "--cluster-cidr: "),
    ],
)
def test_proxy_is_told_nonsense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert main(["proxy", "--datastore", str(tmp_path / "x.db"), *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert line in said


# --- two of them in one network namespace ---------------------------------------------------------------------------


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which is there no longer when the block is left."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Successor(Node):
    """A node's next agent, with files of its own."""

    @property
    def run_dir(self) -> Path:
        return self.site.directory / "successor"


def handle(node: Node) -> int:
    """Of the table: another one, if it was deleted and made again."""
    listed = json.loads(node.ns.run("nft", "-j", "list", "tables"))["nftables"]
    (found,) = (one["table"]["handle"] for one in listed if one.get("table", {}).get("name") == TABLE[1])
    return int(found)


def quiet(node: Node) -> bool:
    """Whether nobody writes the table for as long as two would need to repair it five times."""
    watch = ["timeout", "1", "nft", "monitor"]
    return TABLE[1] not in node.ns.run(*watch, check=False)


async def test_a_proxy_beside_an_agent_that_serves(site: Site, node: Node) -> None:
    node.start()
    until(lambda: asked(node), lambda answer: answer in BACKENDS)
    assert node.process is not None
    assert proxy(node).wait(60) == 2
    (line,) = [one for one in (node.run_dir / "proxy.log").read_text().splitlines() if not one.startswith("{")]
    assert f"services are served on this node already, by process {node.process.pid} (tortie agent)" in line
    assert "stop that one, or have it serve none (--services off)" in line
    assert asked(node) in BACKENDS
    assert quiet(node)
    node.kill()
    with ended(proxy(node)):
        await change(site, BACKENDS[2])
        until(lambda: BACKENDS[0] not in node.ns.run("nft", "list", "map", *TABLE, "backends4"))


async def test_an_agent_beside_a_proxy_waits_for_it(site: Site, node: Node) -> None:
    """Everything else of the agent's is there meanwhile, and once it serves no connection was lost."""
    with ended(proxy(node, "--metrics-port", "0")) as other:
        until(lambda: asked(node), lambda answer: answer in BACKENDS, (node.run_dir / "proxy.log").read_text())
        node.start()
        table = handle(node)
        found = until(lambda: services_of(node), lambda found: bool(found["failures"]))
        who = f"process {other.pid} (tortie proxy)"
        assert (found["on"], found["why"], found["servedBy"]) == (False, f"{who} serves them", who)
        assert found["failures"] == [
            f"services: {who} writes table inet tortie-services: stop that one, or serve none here (--services off)"
        ]
        status = tortie(node, "services", "status", status=1)
        assert who in status
        assert "nobody serves" not in status
        with pytest.raises(TortieError, match=rf"served here by process {other.pid} \(tortie proxy\): stop that one"):
            tell(node.run_dir / "agent.sock", "/services/takeover?yes=1", 60)
        assert not (node.run_dir / "services").exists(), "nothing was done"
        assert quiet(node)
        assert "repairing" not in node.log
        assert node.ask_port(10256, "/healthz")[0] == 200, "the proxy's, which still runs"
        with Flood(node) as flood:
            other.kill()
            other.wait()
            await change(site, BACKENDS[2])
            until(lambda: services_of(node)["on"])
            until(lambda: BACKENDS[0] not in node.ns.run("nft", "list", "map", *TABLE, "backends4"))
            until(lambda: flood.seen[-1][1], lambda answer: answer == BACKENDS[2])
        assert flood.errors == []
        assert handle(node) == table
    found = until(lambda: services_of(node), lambda found: not found["failures"])
    assert (found["why"], found["servedBy"]) == ("there is no kube-proxy here", "")
    until(lambda: node.ask_port(10256, "/healthz")[0], lambda status: status == 200, "its own by now")
    said = [line for line in node.messages() if "tortie proxy" in line]
    assert len(said) < 5, "not at every try"


def test_an_agent_that_serves_none_lets_a_proxy_do_it(site: Site, node: Node) -> None:
    """However often either is killed and starts."""
    node.start("--services", "off")
    with ended(proxy(node)) as other:
        until(lambda: asked(node), lambda answer: answer in BACKENDS, (node.run_dir / "proxy.log").read_text())
        table = handle(node)
        assert quiet(node)
        found = services_of(node)
        assert (found["asked"], found["on"], found["failures"]) == ("off", False, [])
        assert found["servedBy"] == f"process {other.pid} (tortie proxy)"
        tortie(node, "services", "status")
        node.kill()
        node.start("--services", "off")
        until(lambda: services_of(node)["why"], lambda why: why == "asked for: off")
        assert quiet(node)
        other.kill()
        other.wait()
        with ended(proxy(node)):
            until(lambda: services_of(node)["servedBy"])
            assert handle(node) == table
            assert asked(node) in BACKENDS


def test_an_agent_that_replaces_another_waits_for_its_end(site: Site, node: Node) -> None:
    """As in an upgrade: the new one is there before the old one has ended."""
    node.start()
    until(lambda: asked(node), lambda answer: answer in BACKENDS)
    assert node.process is not None
    table, who = handle(node), f"process {node.process.pid} (tortie agent) serves them"
    new = Successor(site, "node1", node.ns, [*node.words, "--health-port", "0", "--metrics-port", "0"])
    new.spawn()
    assert new.process is not None
    with ended(new.process):
        new.await_ready()
        until(lambda: services_of(new)["why"], lambda why: why == who)
        with Flood(node) as flood:
            assert node.signal(signal.SIGTERM) == 0
            until(lambda: services_of(new), lambda found: found["on"] and not found["failures"])
            until(lambda: len(flood.seen) > 200)
        assert flood.errors == []
        assert handle(node) == table
    assert not [line for line in new.log.splitlines() if is_strange(line)]
