"""The agent's socket against callers that are broken or hostile.

Each is refused in the protocol's words and in its time, with one line in the log, and the next pod gets its network as
if nothing had been.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_node import RED, Node, Sandbox, Site, is_strange, nothing_left, pod, site_in, until
from callers import ADD, CHUNKED, answer, configuration, connect, request, say
from conftest import Ns

from nobody import as_nobody
from tortie.agent.server import MAX_BODY
from tortie.cni.spec import CniError, Code
from tortie.kernel import netns
from tortie.kernel.serving import MAX_CONNECTIONS, MAX_HEADERS, MAX_LINE, REQUEST_SECONDS
from tortie.model.k8s import Pod
from tortie.model.store import Store

pytestmark = pytest.mark.root

IDLE = 600
SWARM = 3000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        site.write(pod("web"))
        site.node("node1", "--no-bgp", "--health-port", "0").start()
        yield site


@pytest.fixture
def node(site: Site) -> Node:
    return site.nodes[0]


@pytest.fixture(autouse=True)
async def lives_on(node: Node, store: Store, make_ns: Callable[..., Ns]) -> AsyncIterator[None]:
    """After every test: no traceback, nothing left, and a pod is connected and taken away by the same agent."""
    assert node.process is not None
    yield
    assert node.process.poll() is None
    assert [line for line in node.log.splitlines() if is_strange(line)] == []
    await nothing_left(node, store)
    web = Sandbox(node, "web", make_ns())
    await web.add()
    await web.check()
    await web.delete()
    await nothing_left(node, store)


def warnings(node: Node) -> list[str]:
    lines = [json.loads(line) for line in node.log.splitlines()]
    return [line["message"] for line in lines if line["level"] == "warning"]


def refused(node: Node, data: bytes, code: int, says: str, status: int = 500) -> None:
    """This very refusal, and one line in the log that says the same."""
    before = len(warnings(node))
    got, error = say(node, data)
    assert (got, error.get("code")) == (status, code), error
    assert says in error["msg"] + error.get("details", "")
    [line] = until(lambda: warnings(node)[before:], what="the refusal is logged")
    assert len(line) < 1500


# --- who may call -------------------------------------------------------------------------------------------------


def test_only_root_may_connect(node: Node) -> None:
    sock = node.run_dir / "agent.sock"
    assert oct(sock.stat().st_mode & 0o7777) == "0o600"
    assert (sock.stat().st_uid, node.run_dir.stat().st_uid) == (0, 0)
    program = f"import socket; socket.socket(socket.AF_UNIX).connect({str(sock)!r})"
    done = subprocess.run(  # one who may pass every directory: it is the socket that refuses
        as_nobody(sys.executable, "-I", "-S", "-c", program), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("PermissionError")


def test_run_directory_that_the_agent_makes_is_roots(site: Site) -> None:
    fresh = site.node("fresh", "--no-bgp", "--health-port", "0", "--metrics-port", "0", ipv4="192.0.2.9/24")
    run_dir = site.directory / "made" / "run"
    words = fresh.command("--run-dir", str(run_dir))
    old = os.umask(0)
    try:
        fresh.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        os.umask(old)
    until((run_dir / "agent.sock").exists, what="it listens")
    assert oct(run_dir.stat().st_mode & 0o777) == "0o700"
    assert oct((run_dir / "agent.sock").stat().st_mode & 0o777) == "0o600"


# --- calls that are wrong -----------------------------------------------------------------------------------------

CALLS: dict[str, tuple[dict[str, str | bytes], bytes | None, int, str]] = {
    "no configuration": ({}, b"", Code.DECODING_FAILURE, "unexpected end of JSON input"),
    "half a configuration": ({}, configuration()[:-5], Code.DECODING_FAILURE, "unexpected end of JSON input"),
    "not JSON": ({}, b"<xml/>", Code.DECODING_FAILURE, "invalid character '<'"),
    "not text": ({}, bytes(range(256)), Code.DECODING_FAILURE, "error unmarshall network config"),
    "a list": ({}, b"[1]", Code.DECODING_FAILURE, "cannot unmarshal array"),
    "too deep": ({}, b"[" * 100_000, Code.DECODING_FAILURE, "exceeded max depth"),
    "endless number": ({}, b'{"mtu": ' + b"9" * 10_000 + b"}", Code.DECODING_FAILURE, "error unmarshall"),
    "no name": ({}, configuration(name=""), Code.INVALID_CONFIG, "missing network name"),
    "odd name": ({}, configuration(name="../../etc"), Code.INVALID_CONFIG, "invalid characters found in network name"),
    "a version to come": (
        {},
        configuration(cniVersion="9.9.9"),
        Code.INCOMPATIBLE_VERSION,
        "incompatible CNI",
    ),
    "no verb": ({"CNI_COMMAND": ""}, None, Code.INVALID_ENVIRONMENT, "[CNI_COMMAND] missing"),
    "unknown verb": ({"CNI_COMMAND": "STEAL"}, None, Code.INVALID_ENVIRONMENT, "unknown CNI_COMMAND: STEAL"),
    "no container": ({"CNI_CONTAINERID": ""}, None, Code.INVALID_ENVIRONMENT, "[CNI_CONTAINERID] missing"),
    "container that is a path": ({"CNI_CONTAINERID": "../x"}, None, Code.INVALID_ENVIRONMENT, "in containerID"),
    "container of odd bytes": ({"CNI_CONTAINERID": b"a\xff\xfe"}, None, Code.INVALID_ENVIRONMENT, "in containerID"),
    "container in quotes": ({"CNI_CONTAINERID": 'a"; drop'}, None, Code.INVALID_ENVIRONMENT, "in containerID"),
    "interface that is a path": ({"CNI_IFNAME": "a/b"}, None, Code.INVALID_ENVIRONMENT, "interface name contains /"),
    "interface that is above": ({"CNI_IFNAME": ".."}, None, Code.INVALID_ENVIRONMENT, "interface name is . or .."),
    "interface too long": ({"CNI_IFNAME": "e" * 16}, None, Code.INVALID_ENVIRONMENT, "interface name is too long"),
    "no namespace": ({"CNI_NETNS": ""}, None, Code.INVALID_ENVIRONMENT, "[CNI_NETNS] missing"),
    "arguments without values": ({"CNI_ARGS": "K8S_POD_NAME"}, None, Code.INTERNAL, "ARGS: invalid pair"),
    "arguments without end": ({"CNI_ARGS": "=;" * 20_000}, None, Code.INTERNAL, "ARGS: invalid pair"),
    "value of another type": ({}, configuration(mtu="big"), Code.INTERNAL, "cannot unmarshal string into field mtu"),
    "pools of another type": ({}, configuration(ipam={"ipv4_pools": [1]}), Code.INTERNAL, "must be a list of strings"),
}


@pytest.mark.parametrize("what", CALLS)
def test_call_that_is_wrong(node: Node, what: str) -> None:
    env, body, code, says = CALLS[what]
    refused(node, request(ADD | env, configuration() if body is None else body), code, says)


@pytest.mark.parametrize(
    "changes",
    [{"mtu": -1}, {"mtu": 10**30}, {"mtu": 2**31}, {"num_queues": 10**9}, {"num_queues": 2**40}, {"mtu": 1}],
    ids=str,
)
def test_number_that_no_kernel_takes(node: Node, make_ns: Callable[..., Ns], changes: dict[str, Any]) -> None:
    before = len(warnings(node))
    status, error = say(node, request(ADD | {"CNI_NETNS": make_ns().path}, configuration(**changes)))
    assert (status, error["code"]) in {(500, Code.INTERNAL), (500, Code.INVALID_CONFIG)}
    assert "unexpected" not in error["msg"]
    assert len(warnings(node)) == before + 1


def test_plugin_that_is_not_ours(node: Node) -> None:
    for name in ("bridge", "calico-ipamX", "%63alico%00", "-"):
        says = "this agent serves the plugins calico and calico-ipam"
        refused(node, request(ADD, configuration(), name), Code.INVALID_ENVIRONMENT, says)


@pytest.mark.parametrize(
    ("method", "plugin", "status"),
    [("GET", "calico", 405), ("DELETE", "calico", 405), ("POST", "calico/x", 404), ("POST", "../node", 404)],
)
def test_method_or_path_that_nobody_serves(node: Node, method: str, plugin: str, status: int) -> None:
    says = f"this agent does not serve {method}"
    refused(node, request(ADD, configuration(), plugin, method), Code.INVALID_ENVIRONMENT, says, status)


# --- namespaces that are none -------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Paths that could be meant as CNI_NETNS, with what is there."""
    (tmp_path / "file").write_text("not a namespace")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    kinds = ("file", "fifo", "loop", "socket", "file/below", "x" * 300)
    found = {kind[:10]: str(tmp_path / kind) for kind in kinds}
    return found | {"directory": str(tmp_path), "mnt": "/proc/self/ns/mnt", "tty": "/dev/tty", "relative": "here"}


OPENED = ("file", "fifo", "directory", "mnt")
UNOPENED = ("loop", "socket", "file/below", "x" * 10, "tty", "relative")
"""Of these the kernel gives nobody a descriptor; the error is its own, as upstream's is."""


@pytest.mark.parametrize("kind", OPENED + UNOPENED)
def test_namespace_that_is_none(node: Node, places: dict[str, str], kind: str) -> None:
    began = time.monotonic()
    code = Code.INVALID_CONFIG if kind in OPENED else Code.INTERNAL
    refused(node, request(ADD | {"CNI_NETNS": places[kind]}, configuration()), code, places[kind][:80])
    delete = ADD | {"CNI_COMMAND": "DEL", "CNI_NETNS": places[kind]}
    assert say(node, request(delete, configuration())) == (200, {})
    assert time.monotonic() - began < 3


def test_namespace_that_is_the_nodes_own(node: Node) -> None:
    says = "plugin's netns and netns from CNI_NETNS should not be the same"
    refused(node, request(ADD | {"CNI_NETNS": node.ns.path}, configuration()), Code.INVALID_NETNS, says)


# --- what is no call at all ---------------------------------------------------------------------------------------

GARBAGE = {
    "zeros": bytes(1000),
    "TLS": bytes.fromhex("16030100a5010000a10303") + os.urandom(160),
    "no HTTP": b"hello, is it you?\r\n\r\n",
    "HTTP/9": b"POST /cni/calico HTTP/9.9\r\n\r\n",
    "two lengths": b"POST /cni/calico HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "negative length": b"POST /cni/calico HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "control characters": request(ADD | {"CNI_ARGS": b"K8S_POD_NAME=a\x01b"}, configuration()),
    "NUL": request(ADD | {"CNI_NETNS": b"/run/netns/a\0b"}, configuration()),
    "folded header": request(ADD | {"CNI_ARGS": b"a=b\r\n c=d"}, configuration()),
    "header without name": request(ADD, configuration(), more=[b": nobody"]),
    "long header": request(ADD | {"CNI_ARGS": "a=" + "b" * 2 * MAX_LINE}, configuration()),
    "long path": request(ADD, configuration(), "c" * 2 * MAX_LINE),
    "many headers": request(ADD, configuration(), more=[b"X-%d: y" % i for i in range(4 * MAX_HEADERS)]),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_not_http(node: Node, what: str) -> None:
    refused(node, GARBAGE[what], Code.INVALID_ENVIRONMENT, "not a request that the agent can read: ", 400)


def test_configuration_that_is_too_large(node: Node) -> None:
    says = f"the network configuration is larger than {MAX_BODY} bytes"
    for size in (MAX_BODY + 1, 64 * MAX_BODY):
        body = configuration().ljust(size)
        refused(node, request(ADD, body), Code.INVALID_CONFIG, says)
    assert say(node, request(ADD, configuration().ljust(MAX_BODY)))[1]["code"] != Code.INVALID_CONFIG


def test_configuration_that_never_says_how_large_it_is(node: Node) -> None:
    body = (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 64
    refused(node, CHUNKED + body, Code.INVALID_CONFIG, "is larger than")


def test_configuration_that_unpacks_to_more(node: Node) -> None:
    body = b"\x1f\x8b" + bytes(100)
    refused(node, request(ADD, body, more=[b"Content-Encoding: gzip"]), Code.DECODING_FAILURE, "error unmarshall")


def test_plugin_says_what_the_agent_refuses(node: Node) -> None:
    """By way of the executable: its exit status is 1 and the error is the agent's."""
    env = ADD | {"TORTIE_AGENT_SOCKET": str(node.run_dir / "agent.sock")}
    body = configuration().ljust(2 * MAX_BODY)
    done = subprocess.run([node.site.stub], env=env, input=body, capture_output=True, timeout=30, check=False)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, Code.INVALID_CONFIG)


# --- callers who do not go on -------------------------------------------------------------------------------------


class Slow(threading.Thread):
    """Says something, then goes on as slowly as it may; measures how long it was suffered."""

    def __init__(self, node: Node, begins: bytes, goes_on: bytes = b"", every: float = 0.5) -> None:
        super().__init__()
        self.node, self.begins, self.goes_on, self.every = node, begins, goes_on, every
        self.heard = b""
        self.seconds = 0.0

    def run(self) -> None:
        began = time.monotonic()
        with connect(self.node, 60) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(self.begins)
            sock.settimeout(self.every if self.goes_on else 60)
            while True:
                try:
                    if not (chunk := sock.recv(1 << 16)):
                        break
                    self.heard += chunk
                except TimeoutError:
                    sock.sendall(self.goes_on)
        self.seconds = time.monotonic() - began


async def test_callers_who_stop_in_the_middle_are_dropped(node: Node, store: Store, make_ns: Callable[..., Ns]) -> None:
    """While they are there, pods come and go as ever."""
    whole = request(ADD, configuration())
    slow = {
        "silent": Slow(node, b""),
        "half a head": Slow(node, whole[:60]),
        "half a body": Slow(node, whole[:-10]),
        "head byte by byte": Slow(node, whole[:60], b"x"),
        "body byte by byte": Slow(node, request(ADD, bytes(1000))[:-999], b" "),
        "broken chunks": Slow(node, CHUNKED + b"2\r\n{}\r\n", b"zz\r\n"),
        "endless headers": Slow(node, b"POST /cni/calico HTTP/1.0\r\n", b"X: y\r\n"),
        "after a question": Slow(node, b"GET /liveness HTTP/1.1\r\nHost: a\r\n\r\n"),
    }
    for one in slow.values():
        one.start()
    web = Sandbox(node, "web", make_ns())
    began = time.monotonic()
    while time.monotonic() - began < REQUEST_SECONDS - 1:
        await web.add()
        await web.delete()
    assert all(one.is_alive() for one in slow.values())
    for name, one in slow.items():
        one.join(REQUEST_SECONDS)
        assert not one.is_alive(), name
        assert REQUEST_SECONDS - 0.5 < one.seconds < REQUEST_SECONDS + 3, (name, one.seconds)
    for name in ("half a body", "body byte by byte", "broken chunks"):
        status, error = answer(slow[name].heard)
        assert (status, error["code"], error["msg"]) == (
            500,
            Code.IO_FAILURE,
            f"the network configuration did not arrive within {REQUEST_SECONDS:g} s",
        )
    assert slow["after a question"].heard.startswith(b"HTTP/1.1 200 OK")
    assert slow["silent"].heard == b""


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many as there may be: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_more_callers_than_there_is_room_for(
    node: Node, store: Store, make_ns: Callable[..., Ns], many_files: None
) -> None:
    """Those that are too many are turned away at once, and those that stay silent lose their places: nobody has to
    end them. The agent keeps files for its own work."""
    with contextlib.ExitStack() as stack:
        swarm = [stack.enter_context(connect(node)) for _ in range(SWARM)]
        turned_away = [sock for sock in swarm if is_closed(sock)]
        assert SWARM - MAX_CONNECTIONS <= len(turned_away) < SWARM
        assert node.process is not None
        files = f"/proc/{node.process.pid}/fd"
        until(lambda: len(os.listdir(files)), lambda count: count < MAX_CONNECTIONS + 100, "it turns the rest away")
        [complaint] = [line for line in warnings(node) if "callers are there already" in line]
        assert str(MAX_CONNECTIONS) in complaint
        web = Sandbox(node, "web", make_ns())
        began = time.monotonic()
        while (code := await attempt(web)) != 0:
            assert code == Code.TRY_AGAIN_LATER
            assert time.monotonic() - began < REQUEST_SECONDS + 3
            await asyncio.sleep(0.2)
        await web.delete()


async def attempt(sandbox: Sandbox) -> int:
    """ADD; 0, or the error's code."""
    try:
        await sandbox.add()
    except CniError as error:
        return error.code
    return 0


def is_closed(sock: socket.socket) -> bool:
    """By the other end, within a moment."""
    sock.settimeout(0.01)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


async def test_callers_who_go_away(node: Node, store: Store, make_ns: Callable[..., Ns]) -> None:
    """In the middle of the head, of the body, of the work, and of the answer. A call that has come whole is done."""
    web = Sandbox(node, "web", make_ns())
    env = ADD | {"CNI_CONTAINERID": web.container_id, "CNI_NETNS": web.path(None)}
    whole = request(env, configuration())
    before = len(warnings(node))
    for length in range(0, len(whole), 7):
        with connect(node) as sock:
            sock.sendall(whole[:length])
    assert node.links() == set()
    assert all("did not arrive" in line or "cannot read" in line for line in warnings(node)[before:])
    with connect(node) as sock:
        sock.sendall(whole)
    until(node.links, what="the call that came whole is done")
    await web.delete()


# --- the ports ----------------------------------------------------------------------------------------------------


def test_port_for_metrics_outlives_silent_callers(node: Node, many_files: None) -> None:
    """It is open to pods, too: whoever fills it must not take from the agent what ADD needs."""
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            sock = ported(node)
            stack.enter_context(sock)
        assert node.process is not None
        files = f"/proc/{node.process.pid}/fd"
        until(lambda: len(os.listdir(files)), lambda count: count < MAX_CONNECTIONS + 100, "it turns the rest away")
        assert node.ask("/liveness")[0] == 200
    until(lambda: node.ask_port(9091, "/metrics")[0], lambda status: status == 200, "it answers again")


def ported(node: Node) -> socket.socket:
    with netns.entered(node.ns.path):
        return socket.create_connection(("127.0.0.1", 9091), 10)


async def test_pod_is_still_in_the_datastore(store: Store) -> None:
    """Nothing of all this has changed what the cluster is."""
    assert (await store.get(Pod, "web", RED)).spec.node_name == "node1"
