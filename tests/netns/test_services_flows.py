"""Flows that lead to no backend: a client that goes on sending from one socket gets one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from service_ground import (
    CLUSTER_IP,
    NODE,
    PATIENCE,
    TCP,
    UDP,
    Ground,
    backends,
    built_ground,
    entrance,
    frontend,
    pod,
    served,
    state_of,
)

from tortie.base.addr import parse_ip
from tortie.base.flow import Flow
from tortie.calc.proxy.state import ProxyState
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.stale_flows import StaleFlows
from tortie.kernel.conntrack import Conntrack

pytestmark = pytest.mark.root

SEEN = (
    "add table inet seen\nadd chain inet seen c { type filter hook forward priority 0; }\n"
    "add rule inet seen c ct state new counter\n"
)
"""Connections are tracked while nobody serves."""
BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module")
def built() -> Iterator[Ground]:
    with built_ground() as ground:
        yield ground


@pytest.fixture
def ground(built: Ground) -> Iterator[Ground]:
    yield built
    built.apply(None)
    with Conntrack(built.spaces["node"].path) as tracked:
        assert tracked.delete(list(tracked.flows())) == []


@pytest.fixture
def flows(ground: Ground) -> StaleFlows:
    return StaleFlows(ground.spaces["node"].path)


def dns(version: int, *names: str) -> ProxyState:
    answers = backends(version, *names)
    return state_of(
        served(
            "dns",
            entrance("ClusterIP", frontend(version, CLUSTER_IP[version], 53, UDP), answers),
            entrance("NodePort", frontend(version, None, 30053, UDP), answers),
            entrance("ClusterIP", frontend(version, CLUSTER_IP[version], 80, TCP), answers),
        )
    )


def apply(ground: Ground, flows: StaleFlows, state: ProxyState | None) -> int:
    """How many flows were deleted."""
    before = flows.deleted
    assert converge([ground.stage, flows], state) == []
    return flows.deleted - before


def answer(one: socket.socket) -> str:
    one.settimeout(PATIENCE)
    one.send(b"hello")
    return one.recv(100).decode().split()[0]


def known(ground: Ground, protocol: int = UDP) -> int:
    with Conntrack(ground.spaces["node"].path) as tracked:
        return sum(1 for one in tracked.flows(None, protocol) if one.opened.protocol == protocol)


@BOTH
def test_client_with_one_socket_moves_when_its_backend_goes(ground: Ground, flows: StaleFlows, version: int) -> None:
    apply(ground, flows, dns(version, "one"))
    with (
        ground.open("client", version, UDP) as pods,
        ground.open("outside", version, UDP) as outside,
        ground.open("node", version, UDP) as node,
        ground.open("client", version, TCP) as stream,
    ):
        pods.connect((CLUSTER_IP[version], 53))
        outside.connect((NODE[version], 30053))
        node.connect((CLUSTER_IP[version], 53))
        stream.connect((CLUSTER_IP[version], 80))
        assert stream.recv(100).startswith(b"one")
        assert {answer(pods), answer(outside), answer(node)} == {"one"}
        assert apply(ground, flows, dns(version, "one", "two")) == 0
        assert {answer(pods), answer(outside), answer(node)} == {"one"}, "a flow stays with its backend"
        assert apply(ground, flows, dns(version, "two")) == 3
        assert {answer(pods), answer(outside), answer(node)} == {"two"}
        stream.sendall(b"TCP ends by itself")
        assert stream.recv(100) == b"TCP ends by itself"


@BOTH
def test_first_state_finds_what_went_stale_before(ground: Ground, flows: StaleFlows, version: int) -> None:
    ground.apply(dns(version, "one"))
    with ground.open("client", version, UDP) as one:
        one.connect((CLUSTER_IP[version], 53))
        assert answer(one) == "one"
        assert apply(ground, flows, dns(version, "two")) == 1
        assert answer(one) == "two"
        ground.apply(dns(version, "one"))
        assert answer(one) == "two", "nobody looked"
        flows.forget()
        assert apply(ground, flows, dns(version, "one")) == 1
        assert answer(one) == "one"


@BOTH
def test_flow_that_was_there_before_the_service(ground: Ground, flows: StaleFlows, version: int) -> None:
    """It was sent to the frontend untranslated, and nobody answered."""
    node = ground.spaces["node"]
    node.run("nft", "-f", "-", stdin=SEEN)
    try:
        with ground.open("client", version, UDP) as one:
            one.connect((CLUSTER_IP[version], 53))
            one.settimeout(0.3)
            one.send(b"hello")
            assert known(ground) == 1
            with pytest.raises(OSError):
                one.recv(100)
            assert apply(ground, flows, dns(version, "one")) == 1
            assert answer(one) == "one"
    finally:
        node.run("nft", "delete", "table", "inet", "seen")


@BOTH
def test_call_that_began_before_the_service(ground: Ground, flows: StaleFlows, version: int) -> None:
    """Its next attempt, a second later, gets a backend."""
    node = ground.spaces["node"]
    node.run("nft", "-f", "-", stdin=SEEN)
    try:
        with ground.open("client", version, TCP) as one:
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.connect((CLUSTER_IP[version], 80))
            assert known(ground, TCP) == 1
            assert apply(ground, flows, dns(version, "one")) == 1
            one.settimeout(PATIENCE)
            assert one.recv(100).startswith(b"one")
            assert apply(ground, flows, dns(version, "two")) == 0
    finally:
        node.run("nft", "delete", "table", "inet", "seen")


def test_flows_of_others_are_nobodys_business(ground: Ground, flows: StaleFlows) -> None:
    apply(ground, flows, dns(4, "one"))
    with ground.open("client", 4, UDP) as one, ground.open("client", 4, UDP) as other:
        one.connect((pod("two", 4), 8080))
        other.connect((CLUSTER_IP[4], 53))
        assert answer(one) == "two"
        assert answer(other) == "one"
        assert apply(ground, flows, dns(4, "two")) == 1
        assert known(ground) == 1
        assert apply(ground, flows, None) == 0
        assert known(ground) == 1
        assert apply(ground, flows, dns(4)) == 0


def test_more_than_are_held_at_a_time(ground: Ground) -> None:
    flows, number = StaleFlows(ground.spaces["node"].path, most=50), 170
    apply(ground, flows, dns(4, "one"))
    sockets = [ground.open("client", 4, UDP) for _ in range(number)]
    try:
        for one in sockets:
            one.connect((CLUSTER_IP[4], 53))
            one.send(b"hello")
        assert known(ground) == number
        assert apply(ground, flows, dns(4, "two")) == number
        assert known(ground) == 0
    finally:
        for one in sockets:
            one.close()


@BOTH
def test_flows_that_differ_in_who_opened_them_are_judged_once(ground: Ground, version: int) -> None:
    ground.apply(dns(version, "one"))
    asked: list[Flow] = []

    def stays(flow: Flow) -> bool:
        asked.append(flow)
        return flow.answered

    with contextlib.ExitStack() as stack:
        for number in range(20):
            one = stack.enter_context(ground.open("client", version, UDP))
            one.connect((CLUSTER_IP[version], 53 if number % 2 else 54))
            if number % 2:
                assert answer(one) == "one"
            else:
                with contextlib.suppress(OSError):
                    one.send(b"nobody is there")
        there = parse_ip(CLUSTER_IP[version])
        with Conntrack(ground.spaces["node"].path) as tracked:
            every = [flow for flow in tracked.flows([there], UDP) if flow.answered]
            assert len(every) == 10
            assert set(tracked.flows([there], UDP, stays)) == set(every)
            assert len(asked) == len({flow.opened.destination_port for flow in asked}) > 0
            by_backend = [every[0].reply.source]
            assert len([*tracked.flows(by_backend, UDP, stays)]) == 10
            assert [*tracked.flows([every[0].opened.source], UDP, stays)] == [], "who opened it does not count"


@BOTH
def test_of_tcp_the_kernel_tells_what_nobody_answered(ground: Ground, version: int) -> None:
    """Since 5.15; before, it tells of all."""
    ground.apply(dns(version, "one"))
    with (
        ground.open("client", version, TCP) as served_,
        ground.open("client", version, TCP) as plain,
        ground.open("client", version, TCP) as early,
    ):
        served_.connect((CLUSTER_IP[version], 80))
        assert served_.recv(100).startswith(b"one")
        plain.connect((pod("one", version), 8080))
        assert plain.recv(100).startswith(b"one")
        ground.apply(None)
        ground.spaces["node"].run("nft", "-f", "-", stdin=SEEN)
        try:
            early.setblocking(False)
            with pytest.raises(BlockingIOError):
                early.connect((CLUSTER_IP[version], 81))
            with Conntrack(ground.spaces["node"].path) as tracked:
                assert len([*tracked.flows(None, TCP)]) >= 3
                (only,) = tracked.flows(None, TCP, unanswered=True)
            assert (only.opened.destination_port, only.answered) == (81, False)
        finally:
            ground.spaces["node"].run("nft", "delete", "table", "inet", "seen")
