"""`tortie dns` as clients see it: a process in a network namespace, real sockets from another one, busybox' nslookup, a
second server for names elsewhere, and what happens to it: floods, a datastore that goes, SIGKILL, SIGTERM."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from namespaces import Ns, namespaces
from tortie.kernel import netns
from tortie.model.document import read
from tortie.model.service import SERVICE_NAME, Service
from tortie.store import open_store

pytestmark = pytest.mark.root

SERVER, SECOND, CLIENT, OTHER = "10.9.0.1", "10.9.0.11", "10.9.0.2", "10.9.0.53"
SERVER6, CLIENT6 = "fd00:9::1", "fd00:9::2"
READY, HEALTH, METRICS = 8181, 8080, 9153
WEB = "web.red.svc.cluster.local"
PATIENCE = 30.0


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds:.0f} s"
        time.sleep(0.05)


def service(name: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "red"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def slice_(owner: str, *ips: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"{owner}-a", "namespace": "red", "labels": {SERVICE_NAME: owner}},
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in ips],
        "ports": [{"name": "http", "port": 80}],
    }  # fmt: skip


OURS = (
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}},
    service("web", clusterIPs=["10.96.0.5", "fd00:10:96::5"], ports=[{"name": "http", "port": 80}]),
    service("many", clusterIP="None"),
    slice_("many", *(f"10.244.1.{number}" for number in range(1, 200))),
    service("ext", type="ExternalName", externalName="far.red.svc.example.test"),
)  # fmt: skip
THEIRS = (service("far", clusterIP="192.0.2.7"),)


def write(database: Path, *documents: dict[str, Any]) -> None:
    async def create() -> None:
        store = open_store(str(database))
        for document in documents:
            await store.create(read(document))
        await store.close()

    asyncio.run(create())


@dataclass
class Daemon:
    """A `tortie dns`."""

    ns: Ns
    log: Path
    words: tuple[str, ...]
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        argv = [sys.executable, "-m", "tortie.cli.main", "dns", *self.words]
        with self.log.open("ab") as log, netns.entered(self.ns.path):
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def get(self, port: int, path: str) -> tuple[int, str]:
        """What its page says; 0 where nobody answers."""
        with netns.entered(self.ns.path):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as found:
                    return found.status, found.read().decode()
            except HTTPError as error:
                return error.code, error.read().decode()
            except OSError as error:
                return 0, str(error)

    def figure(self, name: str) -> float:
        lines = self.get(METRICS, "/metrics")[1].splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith(name))


@contextmanager
def running(ns: Ns, log: Path, *words: str, wait: bool = True) -> Iterator[Daemon]:
    daemon = Daemon(ns, log, words)
    daemon.start()
    try:
        if wait:
            until(lambda: daemon.get(READY, "/ready")[0] == 200)
        yield daemon
    finally:
        with suppress(ProcessLookupError):
            daemon.process.kill()
        daemon.process.wait()


@dataclass
class World:
    server: Ns
    client: Ns
    daemon: Daemon
    database: Path
    folder: Path

    def ask(self, name: str, kind: str = "A", at: str = SERVER, tcp: bool = False, **how: Any) -> dns.message.Message:
        """Of a server, from the client. An answer from another address than was asked is none."""
        query = dns.message.make_query(name, kind, **how)
        with netns.entered(self.client.path):
            return (dns.query.tcp if tcp else dns.query.udp)(query, at, timeout=PATIENCE)

    def data(self, name: str, kind: str = "A", **how: Any) -> list[str]:
        return sorted(str(one) for rrset in self.ask(name, kind, **how).answer for one in rrset)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server on two addresses of a namespace, a client in another, and a server that knows other names in a third.
    Shared by the tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("dns")
    with ExitStack() as stack:
        make = stack.enter_context(contextmanager(namespaces)())
        server, client, other = make("server"), make("client"), make("other")
        _wire(
            server, client, "eth0", (f"{SERVER}/24", f"{SECOND}/24", f"{SERVER6}/64"), (f"{CLIENT}/24", f"{CLIENT6}/64")
        )
        _wire(server, other, "eth1", ("10.9.1.1/24",), (f"{OTHER}/32", "10.9.1.2/24"))
        server.ip("route", "add", f"{OTHER}/32", "via", "10.9.1.2")
        other.ip("route", "add", "default", "via", "10.9.1.1")
        write(folder / "ours.db", *OURS)
        write(folder / "theirs.db", *THEIRS)
        theirs = ("--datastore", str(folder / "theirs.db"), "--zone", "example.test", "--forward", "none")
        ours = ("--datastore", str(folder / "ours.db"), "--forward", f"10.9.1.9,{OTHER}")  # nobody is at the first
        stack.enter_context(running(other, folder / "theirs.log", *theirs))
        daemon = stack.enter_context(running(server, folder / "ours.log", *ours))
        yield World(server, client, daemon, folder / "ours.db", folder)


def _wire(one: Ns, two: Ns, name: str, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    one.ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", two.name)
    for ns, link, addresses in ((one, name, ours), (two, "eth0", theirs)):
        ns.ip("link", "set", link, "up")
        for address in addresses:
            ns.ip("address", "add", address, "dev", link, *(["nodad"] if ":" in address else []))


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_nslookup_of_busybox(world: World) -> None:
    said = world.client.run("busybox", "nslookup", WEB, SERVER)
    assert "Address: 10.96.0.5" in said
    assert "Address: fd00:10:96::5" in said
    assert f"name = {WEB}" in world.client.run("busybox", "nslookup", "10.96.0.5", SERVER)
    said = world.client.run("busybox", "nslookup", "-type=srv", f"_http._tcp.{WEB}", SERVER)
    assert f"service = 0 100 80 {WEB}" in said
    assert "NXDOMAIN" in world.client.run("busybox", "nslookup", f"no.{WEB}", SERVER, check=False)


@pytest.mark.parametrize("at", [SERVER, SECOND, SERVER6])
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_every_address_answers_from_itself(world: World, at: str, tcp: bool) -> None:
    assert world.data(WEB, at=at, tcp=tcp) == ["10.96.0.5"]
    assert world.data(WEB, "AAAA", at=at, tcp=tcp) == ["fd00:10:96::5"]


def test_what_is_cut_off_over_udp_is_whole_over_tcp(world: World) -> None:
    short = world.ask("many.red.svc.cluster.local")
    assert short.flags & dns.flags.TC
    assert len(world.data("many.red.svc.cluster.local", tcp=True)) == 199


def test_many_questions_on_one_connection_are_all_answered(world: World) -> None:
    queries = [dns.message.make_query(f"10-244-2-{number}.red.pod.cluster.local", "A") for number in range(200)]
    for number, query in enumerate(queries):
        query.id = number  # by chance two would have the same
    with netns.entered(world.client.path):
        connection = socket.create_connection((SERVER, 53), timeout=PATIENCE)
    with connection:
        connection.sendall(b"".join(one.to_wire(prepend_length=True) for one in queries))
        answers = {}
        for _ in queries:
            found, _ = dns.query.receive_tcp(connection, time.time() + PATIENCE)
            answers[found.id] = str(found.answer[0][0])
    assert len(answers) == len({one.id for one in queries})
    assert set(answers.values()) == {f"10.244.2.{number}" for number in range(200)}


def test_connections_that_say_nothing_and_those_that_say_nonsense_hinder_nobody(world: World) -> None:
    with ExitStack() as stack, netns.entered(world.client.path):
        for data in (b"", b"\0", b"\xff\xff" + b"x" * 100, b"\0\3abc", os.urandom(40)):
            each = stack.enter_context(socket.create_connection((SERVER, 53), timeout=10))
            each.sendall(data)
        assert world.data(WEB, tcp=True) == ["10.96.0.5"]


def test_who_takes_all_connections_keeps_only_himself_from_asking(world: World) -> None:
    """Each says a little, and never comes to an end of it."""
    with ExitStack() as stack:
        with netns.entered(world.client.path):
            for _ in range(300):
                stack.enter_context(socket.create_connection((SERVER, 53), timeout=10)).sendall(b"\0\x30half")
        with netns.entered(world.server.path):
            found = dns.query.tcp(dns.message.make_query(WEB, "A"), SECOND, timeout=PATIENCE, source=SERVER)
        assert str(found.answer[0][0]) == "10.96.0.5"
        assert world.data(WEB) == ["10.96.0.5"]
    assert f"{CLIENT} has 64 connections open" in world.daemon.log.read_text()


def test_who_asks_and_never_listens_costs_one_answer(world: World) -> None:
    """And everybody else is served meanwhile. Each answer has 200 addresses."""
    query = dns.message.make_query("many.red.svc.cluster.local", "A").to_wire()
    framed = len(query).to_bytes(2, "big") + query
    status = Path(f"/proc/{world.daemon.process.pid}/status")

    def resident() -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1])

    before = resident()
    with ExitStack() as stack, netns.entered(world.client.path):
        for _ in range(20):
            each = stack.enter_context(socket.create_connection((SERVER, 53), timeout=10))
            each.setblocking(False)
            with suppress(BlockingIOError):
                each.send(framed * 1000)
        assert world.data(WEB) == ["10.96.0.5"]
    assert resident() - before < 50_000
    until(lambda: world.data(WEB, tcp=True) == ["10.96.0.5"])


def test_a_flood_of_random_bytes_does_no_harm(world: World) -> None:
    chance = random.Random(7)
    with netns.entered(world.client.path), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        for _ in range(3000):
            with suppress(BlockingIOError):
                flood.sendto(chance.randbytes(chance.randrange(60)), (SERVER, 53))
    assert world.data(WEB) == ["10.96.0.5"]
    assert world.daemon.process.poll() is None


def test_a_zone_is_given_to_nobody(world: World) -> None:
    for kind in ("AXFR", "IXFR"):
        found = world.ask("cluster.local", kind, tcp=True)
        assert found.rcode() == dns.rcode.REFUSED


# --- names elsewhere --------------------------------------------------------------------------------------------------


def test_names_elsewhere_are_asked_of_others_and_remembered(world: World) -> None:
    name = "far.red.svc.example.test"
    assert world.data(name) == ["192.0.2.7"]
    sent = world.daemon.figure("coredns_forward_requests_total")
    assert world.data(name) == ["192.0.2.7"]
    assert world.daemon.figure("coredns_forward_requests_total") == sent
    found = world.ask("no.red.svc.example.test")
    assert found.rcode() == dns.rcode.NXDOMAIN
    assert found.authority[0].name.to_text() == "example.test."
    assert found.flags & dns.flags.RA
    assert not found.flags & dns.flags.AA


def test_an_alias_of_a_name_elsewhere_comes_with_its_address(world: World) -> None:
    found = world.ask("ext.red.svc.cluster.local")
    assert [str(each[0]) for each in found.answer] == ["far.red.svc.example.test.", "192.0.2.7"]


def test_a_name_that_nobody_knows_about_failed(world: World) -> None:
    assert world.ask("example.org").rcode() == dns.rcode.REFUSED, "what the last server said"


# --- what happens to it -----------------------------------------------------------------------------------------------


def test_a_change_is_answered_soon(world: World) -> None:
    assert world.ask("new.red.svc.cluster.local").rcode() == dns.rcode.NXDOMAIN
    write(world.database, service("new", clusterIP="10.96.0.77"))
    until(lambda: world.data("new.red.svc.cluster.local") == ["10.96.0.77"])

    async def delete() -> None:
        store = open_store(str(world.database))
        await store.delete(Service, "new", "red")
        await store.close()

    asyncio.run(delete())
    until(lambda: world.ask("new.red.svc.cluster.local").rcode() == dns.rcode.NXDOMAIN)


def test_probes_and_figures(world: World) -> None:
    assert world.daemon.get(HEALTH, "/health") == (200, "OK")
    assert world.daemon.get(READY, "/ready") == (200, "OK")
    assert world.daemon.figure("tortie_dns_services") >= 3
    assert world.daemon.figure('coredns_dns_requests_total{proto="udp",type="A"}') > 0


@pytest.fixture
def own(world: World) -> tuple[Path, tuple[str, ...]]:
    """A datastore of one's own, and options of a server at another address of the server's namespace."""
    database = world.folder / f"own{time.monotonic_ns()}.db"
    write(database, *OURS)
    quiet = ("--health-port", "0", "--metrics-port", "0", "--ready-port", "8282")
    return database, ("--datastore", str(database), "--listen", f"{SECOND}:5353", "--forward", "none", *quiet)


def at_second(world: World, name: str = WEB, seconds: float = PATIENCE) -> str:
    """What a server of one's own says; "" where none answers."""
    query = dns.message.make_query(name, "A")
    with netns.entered(world.client.path), suppress(OSError, dns.exception.Timeout):
        found = dns.query.udp(query, SECOND, port=5353, timeout=seconds)
        return str(found.answer[0][0]) if found.answer else dns.rcode.to_text(found.rcode())
    return ""


def test_killed_and_started_again_it_answers_as_before(world: World, own: tuple[Path, tuple[str, ...]]) -> None:
    with running(world.server, world.folder / "own.log", *own[1], wait=False) as daemon:
        until(lambda: at_second(world, seconds=0.5) == "10.96.0.5")
        assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
        assert at_second(world, seconds=0.5) == ""
        daemon.start()
        until(lambda: at_second(world, seconds=0.5) == "10.96.0.5")
        assert at_second(world, "example.com") == "REFUSED"
        with netns.entered(world.client.path):
            connection = socket.create_connection((SECOND, 5353), timeout=PATIENCE)
        with connection:
            connection.sendall(dns.message.make_query(WEB, "A").to_wire(prepend_length=True))
            assert connection.recv(512)
            assert daemon.stop() == 0, "whoever may still ask"
        assert "Traceback" not in daemon.log.read_text()


def test_a_datastore_that_goes_takes_no_name_along(world: World, own: tuple[Path, tuple[str, ...]]) -> None:
    database, words = own
    with running(world.server, world.folder / "own.log", *words, wait=False):
        until(lambda: at_second(world, seconds=0.5) == "10.96.0.5")
        for path in database.parent.glob(f"{database.name}*"):
            path.unlink()
        write(database)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            assert at_second(world) == "10.96.0.5"
            time.sleep(0.1)


def test_a_file_that_nobody_has_made_yet_is_waited_for(world: World, own: tuple[Path, tuple[str, ...]]) -> None:
    database = world.folder / "later" / "store.db"
    with running(world.server, world.folder / "own.log", "--datastore", str(database), *own[1][2:], wait=False):
        until(lambda: at_second(world, seconds=0.5) == "SERVFAIL")
        until(lambda: f"there is no {database} yet" in (world.folder / "own.log").read_text())
        assert not database.parent.exists()
        write(database, *OURS)
        until(lambda: at_second(world, seconds=0.5) == "10.96.0.5")


def test_before_the_cluster_is_known_it_is_not_ready_and_denies_nothing(world: World) -> None:
    words = ("--datastore", "etcd:http://127.0.0.1:1", "--listen", f"{SECOND}:5353", "--health-port", "8282")
    others = ("--ready-port", "8283", "--metrics-port", "0", "--forward", "none", "--leave", "600")
    with running(world.server, world.folder / "own.log", *words, *others, wait=False) as daemon:
        until(lambda: at_second(world, seconds=0.5) == "SERVFAIL")
        until(lambda: daemon.get(8282, "/health") == (200, "OK"))
        until(lambda: daemon.get(8283, "/ready") == (503, "the services are not known yet"))
        daemon.process.send_signal(signal.SIGTERM)
        until(lambda: daemon.get(8283, "/ready")[1] == "stopping")
        assert at_second(world) == "SERVFAIL", "it goes on answering for a while"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--listen", f"{SERVER}:53"), f"--listen: {SERVER}:53: cannot listen: Address already in use"),
        (("--listen", "192.0.2.1"), "--listen: 192.0.2.1:53: cannot listen: Cannot assign requested address"),
        (("--listen", "web"), '--listen: "web" is not where a name server can be'),
        (("--listen", f"{SECOND}:5354", "--forward", f"{SECOND}:5354"), "is this server itself"),
        (("--listen", f"{SECOND}:5354", "--zone", "a..b"), '--zone: "a..b" is no domain'),
    ],
)
def test_mistakes_are_one_line(world: World, words: tuple[str, ...], complaint: str) -> None:
    argv = [sys.executable, "-m", "tortie.cli.main", "dns", "--datastore", str(world.database), "--log-level", "error"]
    with netns.entered(world.server.path):
        done = subprocess.run([*argv, *words], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
