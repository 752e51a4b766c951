"""Probes of containers from inside of a network namespace in which somebody answers, or does not."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tortie.kernel import links, netns
from tortie.kernel.netlink import Netlink
from tortie.lab.probing import PASSED, Check, Connect, Get, Inside, Run, passes
from tortie.lab.readiness import Readiness
from tortie.lab.responder import Responder
from tortie.model.document import read
from tortie.model.k8s import Pod

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

SECONDS = 20.0
PAGES = """
import http.server, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(self.path.rpartition("/")[2]))
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", 8000), Page).serve_forever()
"""


@pytest.fixture
def path() -> Iterator[str]:
    name = f"tt-probing-{os.getpid()}"
    netns.create(name)
    try:
        with Netlink(netns.path(name)) as nl:
            links.set_up(nl, "lo")
        yield netns.path(name)
    finally:
        netns.delete(name)


@pytest.fixture
async def answered(path: str, tmp_path: Path) -> AsyncIterator[str]:
    responder = Responder("red/web", "node1", tmp_path / "log")
    assert await responder.start(path, (("TCP", 8080),)) == []
    try:
        yield path
    finally:
        await responder.close()


async def passed_at_last(check: Check, inside: Inside) -> None:
    for _ in range(400):
        if await passes(check, inside, SECONDS) == PASSED:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{check} is never passed")


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_a_connection(answered: str, ip: str) -> None:
    inside = Inside(answered, ip)
    assert await passes(Connect(8080), inside, SECONDS) == PASSED
    assert await passes(Connect(8081), inside, SECONDS) == "TCP to port 8081: Connection refused"


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_a_page(answered: str, ip: str) -> None:
    inside = Inside(answered, ip)
    assert await passes(Get(8080, "/ready"), inside, SECONDS) == PASSED
    refused = await passes(Get(8081), inside, SECONDS)
    assert "GET http://" in refused
    assert "8081" in refused


async def test_the_status_of_a_page_counts(path: str) -> None:
    with netns.entered(path):
        server = await asyncio.create_subprocess_exec(sys.executable, "-c", PAGES)
    try:
        inside = Inside(path, "127.0.0.1")
        await passed_at_last(Connect(8000), inside)
        assert await passes(Get(8000, "/204"), inside, SECONDS) == PASSED
        assert await passes(Get(8000, "302"), inside, SECONDS) == PASSED, "a redirect is not followed"
        assert await passes(Get(8000, "/503"), inside, SECONDS) == "GET http://127.0.0.1:8000/503: status 503"
    finally:
        server.kill()
        await server.wait()


async def test_a_program_in_the_namespace(path: str) -> None:
    inside = Inside(path, "127.0.0.1", env={"WORD": "ready"})
    assert await passes(Run(("sh", "-c", "test $WORD = ready")), inside, SECONDS) == PASSED
    links_seen = "test $(ls /sys/class/net | wc -w) -ge 1; ip -br link | grep -c . | grep -qx 1"
    assert await passes(Run(("sh", "-c", links_seen)), inside, SECONDS) == PASSED, "nothing but lo"
    failed = await passes(Run(("sh", "-c", "echo first; echo not yet; exit 3")), inside, SECONDS)
    assert failed == "sh: exit status 3: not yet"
    assert "no-such-program" in await passes(Run(("no-such-program",)), inside, SECONDS)


async def test_a_program_sees_what_the_container_sees(path: str, tmp_path: Path) -> None:
    with netns.entered(path):
        own = await asyncio.create_subprocess_exec(
            "unshare", "--uts", "sh", "-c", "echo web-7 >/proc/sys/kernel/hostname; exec sleep 60"
        )
    try:
        inside = Inside(path, "127.0.0.1", pid=own.pid, cwd=str(tmp_path))
        await passed_at_last(Run(("sh", "-c", "test $(uname -n) = web-7")), inside)
        assert await passes(Run(("sh", "-c", f"test $PWD = {tmp_path}")), inside, SECONDS) == PASSED
    finally:
        own.kill()
        await own.wait()


async def test_what_takes_too_long_fails_and_ends(path: str) -> None:
    inside = Inside(path, "127.0.0.1")
    assert await passes(Run(("sh", "-c", "sleep 600 & wait")), inside, 0.2) == "no answer in 0.2 s"
    assert netns.pids_in(path) == [], "what it has started is gone, too"


def _pod(probe: dict[str, Any], status: dict[str, Any]) -> Pod:
    container = {"name": "main", "readinessProbe": probe | {"failureThreshold": 1, "periodSeconds": 1}}
    found = read(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "web", "namespace": "red"},
            "spec": {"containers": [container]},
            "status": status,
        }
    )
    assert isinstance(found, Pod)
    return found


async def test_a_pod_becomes_ready_and_is_no_longer(path: str, tmp_path: Path) -> None:
    told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    readiness = Readiness(told.put_nowait)
    file = tmp_path / "ready"
    pod = _pod({"exec": {"command": ["test", "-e", str(file)]}}, {"phase": "Pending"})
    running = {"main": Inside(path, "127.0.0.1")}

    async def late() -> dict[str, str]:
        """What is said once something has changed."""
        async with asyncio.timeout(SECONDS):
            assert await told.get() == ("red", "web")
        return readiness.late(pod, "one", running)

    try:
        assert readiness.late(pod, "one", running) == {"main": ""}
        assert await late() == {"main": "test: exit status 1"}
        file.touch()
        assert await late() == {}
        file.unlink()
        assert await late() == {"main": "test: exit status 1"}
        assert readiness.late(pod, "one", {}) == {"main": "not running"}
        file.touch()
        assert readiness.late(pod, "one", running) == {"main": ""}, "what was started again begins anew"
        assert await late() == {}
    finally:
        readiness.forget(("red", "web"))


async def test_a_status_is_believed_once(path: str) -> None:
    readiness = Readiness(lambda key: None)
    pod = _pod({"tcpSocket": {"port": 80}, "initialDelaySeconds": 600}, {"phase": "Running", "podIP": "10.0.0.1"})
    running = {"main": Inside(path, "127.0.0.1")}
    try:
        assert readiness.late(pod, "one", running) == {}, "an earlier kubelet has found it ready"
        readiness.stop(("red", "web"))
        assert readiness.late(pod, "one", running) == {"main": ""}, "its network was made anew"
    finally:
        readiness.forget(("red", "web"))


async def test_a_namespace_that_is_gone(path: str) -> None:
    inside = Inside(f"{path}-gone", "127.0.0.1")
    for check in (Connect(80), Get(80), Run(("true",))):
        assert await passes(check, inside, SECONDS) != PASSED
