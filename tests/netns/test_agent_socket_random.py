"""The agent's socket at random: whatever is said to it, it answers or closes, has no bug, and goes on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from agent_node import Node, Sandbox, is_strange, nothing_left, pod, site_in
from callers import ADD, configuration, connect, heard, request, say
from conftest import Ns
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tortie.agent.server import HEADERS
from tortie.model.store import Store

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        site.write(pod("web"))
        yield site.node("node1", "--no-bgp", "--health-port", "0").start()


@pytest.fixture
async def store(node: Node) -> AsyncIterator[Store]:
    async with node.site.store() as store:
        yield store


@pytest.fixture(autouse=True)
async def lives_on(node: Node, store: Store, make_ns: Callable[..., Ns]) -> AsyncIterator[None]:
    """Afterwards: no traceback, nothing left, and the same agent connects a pod."""
    yield
    assert node.process is not None
    assert node.process.poll() is None
    assert [line for line in node.log.splitlines() if is_strange(line)] == []
    await nothing_left(node, store)
    web = Sandbox(node, "web", make_ns())
    await web.add()
    await web.delete()


VERBS = ("", "ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
ARGUMENTS = ("K8S_POD_NAME=web;K8S_POD_NAMESPACE=red", "K8S_POD_NAME=web", "IP=10.65.0.9", "a=b=c", "1", "true")
WORDS = st.sampled_from((*VERBS, *ARGUMENTS, "eth0", "..", "/", "/proc/self/ns/mnt", "/dev/null", "c0ffee"))
BYTES = st.binary(max_size=60).map(lambda data: bytes(byte for byte in data if byte not in b"\r\n\0"))
VALUES = st.one_of(WORDS.map(str.encode), WORDS.map(str.encode), BYTES)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), WORDS)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
KEYS = ("cniVersion", "name", "type", "ipam", "policy", "mtu", "num_queues", "container_settings", "feature_control")
MORE_KEYS = ("cni.dev/valid-attachments", "dataplane_options", "nodename", "log_level", "Ipam", "prevResult")
CONFIGURATIONS = st.one_of(
    st.dictionaries(st.sampled_from((*KEYS, *MORE_KEYS)), JSON, max_size=5).map(lambda more: configuration(**more)),
    st.dictionaries(
        st.sampled_from(("type", "assign_ipv4", "ipv4_pools", "ipv6_pools", "subnet")), JSON, max_size=4
    ).map(lambda ipam: configuration(ipam={"type": "calico-ipam", **ipam})),
    st.binary(max_size=200),
)
MORE_HEADERS = (
    *(b"Upgrade: websocket", b"Connection: upgrade", b"Connection: keep-alive", b"Expect: 100-continue"),
    *(b"Transfer-Encoding: chunked", b"Content-Encoding: deflate", b"Host: a", b"Cookie: =;;"),
)
CALLERS = st.builds(
    request,
    st.dictionaries(st.sampled_from(sorted(HEADERS)), VALUES),
    CONFIGURATIONS,
    st.sampled_from(["calico", "calico", "calico-ipam", "bridge", "", "a/b", "%00", "é".encode().decode("latin-1")]),
    st.sampled_from(["POST", "POST", "POST", "GET", "CONNECT", "BREW"]),
    st.lists(st.sampled_from(MORE_HEADERS), max_size=3),
)
AT_RANDOM = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@AT_RANDOM
@given(data=CALLERS)
@example(data=request(ADD, configuration(), more=[b"Upgrade: x", b"Connection: upgrade"]) + b"\0 trailing")
def test_any_call_is_answered(node: Node, data: bytes) -> None:
    """With a result, or with an error that a runtime understands and that no bug has made."""
    status, body = say(node, data)
    assert status, "closed without an answer"
    if status != 200:
        assert set(body) <= {"code", "msg", "details"}
        assert isinstance(body["code"], int)
        assert body["msg"]
        assert not body["msg"].startswith("unexpected ")


@AT_RANDOM
@given(data=st.lists(st.one_of(st.binary(max_size=80), CALLERS, st.just(b"\r\n")), max_size=4).map(b"".join))
def test_any_bytes_do_no_harm(node: Node, data: bytes) -> None:
    with connect(node) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        heard(sock)
