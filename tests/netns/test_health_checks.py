"""What load balancers and kubelets are told at a node's ports: real sockets in a namespace of two addresses."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Any

import pytest

from namespaces import Ns
from tortie.calc.proxy.state import HealthCheck, ProxyState, Served, ServiceKey
from tortie.kernel.netns import entered
from tortie.proxy import health_checks
from tortie.proxy.health_checks import HealthChecks, Pulse, checks

pytestmark = pytest.mark.root

FOUR, SIX = "192.0.2.1", "2001:db8::1"
A, B = ("shop", "a"), ("shop", "b")


def state(**local: tuple[int, int]) -> ProxyState:
    """Services of the namespace shop by name: port and local endpoints."""
    served = {}
    for name, (port, count) in local.items():
        key: ServiceKey = "shop", name
        served[key] = Served(key, (), (IPv4Address("10.96.0.1"),), HealthCheck(port, count))
    return ProxyState(services=served)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(port: int, host: str = FOUR, path: str = "/", method: str = "GET") -> Reply:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    text = await asyncio.wait_for(reader.read(), 20)  # to the end: one question a connection
    writer.close()
    if not text:
        raise ConnectionResetError
    head, _, body = text.partition(b"\r\n\r\n")
    first, *lines = head.decode().splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    return Reply(int(first.split()[1]), {name.lower(): value for name, value in headers.items()}, body)


async def until(holds: Callable[[], Awaitable[Any]], what: str) -> Any:
    async with asyncio.timeout(30):
        while True:
            with suppress(OSError):
                if found := await holds():
                    return found
            await asyncio.sleep(0.02)
    pytest.fail(what)


async def refused(port: int) -> bool:
    try:
        await ask(port)
    except ConnectionRefusedError:
        return True
    return False


@pytest.fixture
def node(ns: Ns) -> Ns:
    ns.ip("addr", "add", f"{FOUR}/32", "dev", "lo")
    ns.ip("addr", "add", f"{SIX}/128", "dev", "lo", "nodad")
    return ns


Scene = Callable[[HealthChecks], Awaitable[None]]


def play(ns: Ns, scene: Scene, **more: Any) -> None:
    """With a HealthChecks that runs in the namespace."""

    async def run() -> None:
        served = HealthChecks(**{"healthz_port": 0, "again": 0.1, **more})
        task = asyncio.create_task(served.run())
        try:
            await scene(served)
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    with entered(ns.path):
        asyncio.run(run())


def listened(ns: Ns) -> set[int]:
    return {int(line.split()[3].rpartition(":")[2]) for line in ns.run("ss", "-Hlnt").splitlines()}


def test_as_kube_proxy_answers(node: Ns) -> None:
    async def scene(served: HealthChecks) -> None:
        served.update(state(a=(30100, 2), b=(30101, 0)))
        for host in (FOUR, SIX, "127.0.0.1", "::1"):
            reply = await until(lambda host=host: ask(30100, host, "/any/path?x=1"), "an answer")
            assert reply.status == 200
            assert reply.json == {
                "service": {"namespace": "shop", "name": "a"},
                "localEndpoints": 2,
                "serviceProxyHealthy": True,
            }
            assert reply.headers["content-type"] == "application/json"
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["x-load-balancing-endpoint-weight"] == "2"
        reply = await until(lambda: ask(30101), "an answer")
        assert (reply.status, reply.json["localEndpoints"]) == (503, 0)
        assert reply.headers["x-load-balancing-endpoint-weight"] == "0"
        head = await ask(30100, method="HEAD")
        assert (head.status, head.body) == (200, b"")

    play(node, scene)


def test_what_is_not_in_the_kernel_is_not_well(node: Ns) -> None:
    well = [False]

    async def scene(served: HealthChecks) -> None:
        served.update(state(a=(30100, 2)))
        reply = await until(lambda: ask(30100), "an answer")
        assert (reply.status, reply.json["serviceProxyHealthy"], reply.json["localEndpoints"]) == (503, False, 2)
        well[0] = True
        assert (await ask(30100)).status == 200

    play(node, scene, pulse=Pulse(healthy=lambda: well[0]))


def test_ports_come_change_and_go(node: Ns) -> None:
    async def scene(served: HealthChecks) -> None:
        served.update(state(a=(30100, 1)))
        await until(lambda: ask(30100), "an answer")
        served.update(state(a=(30100, 0)))
        assert (await ask(30100)).status == 503
        served.update(state(a=(30105, 1), b=(30106, 1)))
        await until(lambda: ask(30105), "the new port")
        await until(lambda: refused(30100), "the old one is closed")
        assert (await ask(30106)).json["service"]["name"] == "b"
        served.update(ProxyState())
        await until(lambda: refused(30105), "closed")
        assert await refused(30106)

    play(node, scene)
    assert listened(node) == set()


def test_a_port_goes_from_one_service_to_another(node: Ns) -> None:
    async def scene(served: HealthChecks) -> None:
        served.update(state(b=(30100, 1)))
        await until(lambda: ask(30100), "an answer")
        served.update(state(a=(30100, 3), b=(30100, 1)))
        assert (await ask(30100)).json["service"]["name"] == "a"
        served.update(state(b=(30100, 1)))
        assert (await ask(30100)).json["service"]["name"] == "b"

    play(node, scene)
    assert checks(state(b=(1, 1), a=(1, 3)))[1][0] == A


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_taken_port_is_said_once_and_tried_again(node: Ns, caplog: pytest.LogCaptureFixture, host: str) -> None:
    """As long as kube-proxy has it."""
    with entered(node.path):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        theirs = socket.create_server((host, 30100), family=family)

    async def scene(served: HealthChecks) -> None:
        served.update(state(a=(30100, 1), b=(30101, 1)))
        await until(lambda: ask(30101), "the other port")
        await asyncio.sleep(0.5)
        assert "Service shop/a" in served.failures[30100]
        theirs.close()
        await until(lambda: ask(30100), "the port that was taken")
        assert served.failures == {}

    with closing(theirs), caplog.at_level(logging.WARNING):
        play(node, scene)
    lines = [record.getMessage() for record in caplog.records if "30100" in record.getMessage()]
    assert len(lines) == 1
    assert "Address already in use" in lines[0]


def test_the_proxys_own_port(node: Ns) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
    eligible, well = [True], [True]
    pulse = Pulse(lambda: well[0], lambda: eligible[0], lambda: now)

    async def scene(served: HealthChecks) -> None:
        assert await refused(10256)
        served.update(ProxyState())
        reply = await until(lambda: ask(10256, path="/healthz"), "an answer")
        time = "2026-01-02 03:04:05.000678 +0000 UTC"
        assert (reply.status, reply.json) == (200, {"lastUpdated": time, "currentTime": time, "nodeEligible": True})
        assert reply.headers["content-type"] == "application/json"
        eligible[0] = False
        reply = await ask(10256, SIX, "/healthz")
        assert (reply.status, reply.json["nodeEligible"]) == (503, False)
        reply = await ask(10256, path="/livez")
        assert (reply.status, reply.json) == (200, {"lastUpdated": time, "currentTime": time})
        well[0] = False
        assert (await ask(10256, path="/livez")).status == 503
        assert (await ask(10256, path="/metrics")).status == 404
        served.update(None)
        await until(lambda: refused(10256), "somebody else serves")

    play(node, scene, healthz_port=10256, pulse=pulse)


def test_callers_who_are_no_load_balancers(node: Ns, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(served: HealthChecks) -> None:
        served.update(state(a=(30100, 1)))
        await until(lambda: ask(30100), "an answer")
        for said in (b"\x00\xff\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection(FOUR, 30100)
            writer.write(said)
            with suppress(ConnectionError):
                assert b" 400 " in (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n")[0]
            writer.close()
        assert (await ask(30100)).status == 200

    with caplog.at_level(logging.ERROR):
        play(node, scene)
    assert caplog.text == ""


def test_more_callers_than_there_is_room_for_are_turned_away(node: Ns) -> None:
    async def scene(served: HealthChecks) -> None:
        served.update(state(a=(30100, 1)))
        await until(lambda: ask(30100), "an answer")
        silent = [await asyncio.open_connection(FOUR, 30100) for _ in range(health_checks.MAX_CALLERS)]
        await until(lambda: turned_away(30100), "no room")
        for _, writer in silent:
            writer.close()
        assert await until(lambda: ask(30100), "room again")

    play(node, scene)


async def turned_away(port: int) -> bool:
    reader, writer = await asyncio.open_connection(FOUR, port)
    try:
        return await asyncio.wait_for(reader.read(), 5) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    finally:
        writer.close()


def test_who_says_nothing_is_hung_up_on(node: Ns) -> None:
    async def scene(served: HealthChecks) -> None:
        served.update(state(a=(30100, 1)))
        await until(lambda: ask(30100), "an answer")
        reader, writer = await asyncio.open_connection(FOUR, 30100)
        writer.write(b"GET / HT")
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()

    play(node, scene, call_seconds=0.3)


def test_without_ipv6(node: Ns) -> None:
    node.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")

    async def scene(served: HealthChecks) -> None:
        served.update(state(a=(30100, 1)))
        assert (await until(lambda: ask(30100), "an answer")).status == 200

    play(node, scene)


def test_four_hundred_ports(node: Ns) -> None:
    wanted = state(**{f"s{i}": (31000 + i, i % 2) for i in range(400)})

    async def scene(served: HealthChecks) -> None:
        served.update(wanted)
        assert (await until(lambda: ask(31399), "the last")).status == 200
        assert (await ask(31398)).status == 503
        assert len(listened(node)) == 400

    play(node, scene)
    assert listened(node) == set()
