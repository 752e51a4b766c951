"""The responder as clients see it: real sockets from another namespace, both families, HTTP, TCP and UDP on a port."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tortie.kernel import netns
from tortie.lab.responder import Answer, Responder, parse_answer, plain

pytestmark = pytest.mark.root

SERVER, CLIENT = ("10.9.0.1", "fd00:9::1"), ("10.9.0.2", "fd00:9::2")
SECOND = ("10.9.0.11", "fd00:9::11")


@pytest.fixture
def pair(make_ns: Callable[..., Any]) -> tuple[Any, Any]:
    """Two namespaces on one wire; the server has a second address of each family."""
    server, client = make_ns("server"), make_ns("client")
    server.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client.name)
    for ns, addresses in ((server, (*SERVER, *SECOND)), (client, CLIENT)):
        ns.ip("link", "set", "eth0", "up")
        for address in addresses:
            length = "64" if ":" in address else "24"
            ns.ip("address", "add", f"{address}/{length}", "dev", "eth0", *(["nodad"] if ":" in address else []))
    return server, client


@asynccontextmanager
async def answering(ns: Any, log: Path, ports: tuple[tuple[str, int], ...]) -> AsyncIterator[list[str]]:
    responder = Responder("red/web", "node2", log)
    complaints = await responder.start(ns.path, ports)
    try:
        yield complaints
    finally:
        await responder.close()


def exchange(client: Any, kind: socket.SocketKind, address: str, port: int, data: bytes) -> bytes:
    """What comes back when this is sent; over TCP until the server closes."""
    with netns.entered(client.path):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    with sock:
        sock.settimeout(3)
        sock.connect((address, port))
        if data:
            sock.send(data)
        if kind == socket.SOCK_DGRAM:
            return sock.recv(4096)
        received = b""
        while more := sock.recv(4096):
            received += more
        return received


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
async def test_who_answers_and_whom_it_saw(pair: tuple[Any, Any], tmp_path: Path, family: int) -> None:
    server, client = pair
    async with answering(server, tmp_path / "log", (("TCP", 80), ("UDP", 80))) as complaints:
        assert complaints == []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            said = parse_answer(await asyncio.to_thread(exchange, client, kind, SERVER[family], 80, b"hello\n"))
            assert said is not None
            assert (said.name, said.node, said.caller) == ("red/web", "node2", CLIENT[family])
            assert f"from {CLIENT[family]} port {said.port} to port 80" in (tmp_path / "log").read_text()


async def test_a_silent_tcp_client_is_told_too(pair: tuple[Any, Any], tmp_path: Path) -> None:
    server, client = pair
    async with answering(server, tmp_path / "log", (("TCP", 8080),)):
        said = await asyncio.to_thread(exchange, client, socket.SOCK_STREAM, SERVER[0], 8080, b"")
        assert said.startswith(b"red/web on node2 saw 10.9.0.2 port ")


async def test_an_http_client_gets_http_on_the_same_port(pair: tuple[Any, Any], tmp_path: Path) -> None:
    server, client = pair
    async with answering(server, tmp_path / "log", (("TCP", 80),)):
        command = ["ip", "netns", "exec", client.name, "busybox", "wget", "-q", "-O", "-", "http://10.9.0.1/some/page"]
        page = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, timeout=5)
        assert page.stdout.startswith(b"red/web on node2 saw 10.9.0.2 port ")
        assert "GET /some/page" in (tmp_path / "log").read_text()
        head = await asyncio.to_thread(
            exchange, client, socket.SOCK_STREAM, SERVER[1], 80, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert head.endswith(b"\r\n\r\n")


async def test_a_datagram_is_answered_from_the_address_it_came_to(pair: tuple[Any, Any], tmp_path: Path) -> None:
    server, client = pair
    async with answering(server, tmp_path / "log", (("UDP", 53),)):
        for address in (*SERVER, *SECOND):  # `exchange` connects its socket, so it hears no other address
            assert await asyncio.to_thread(exchange, client, socket.SOCK_DGRAM, address, 53, b"?")


async def test_two_responders_do_not_talk_to_each_other_for_ever(pair: tuple[Any, Any], tmp_path: Path) -> None:
    server, client = pair
    answer = str(Answer("red/other", "node1", "10.9.0.1", 80)).encode()
    async with answering(server, tmp_path / "log", (("UDP", 80),)):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                asyncio.to_thread(_short_exchange, client, answer),
                5,
            )


def _short_exchange(client: Any, data: bytes) -> bytes:
    with netns.entered(client.path), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        sock.sendto(data, (SERVER[0], 80))
        return sock.recv(4096)


async def test_a_taken_port_is_a_line_and_the_others_answer(pair: tuple[Any, Any], tmp_path: Path) -> None:
    server, client = pair
    async with (
        answering(server, tmp_path / "log", (("TCP", 80),)),
        answering(server, tmp_path / "log2", (("TCP", 80), ("TCP", 81), ("SCTP", 5))) as complaints,
    ):
        assert complaints == [
            "nothing answers on SCTP port 5: only TCP and UDP are answered",
            "nothing answers on TCP port 80: Address already in use",
        ]
        assert await asyncio.to_thread(exchange, client, socket.SOCK_STREAM, SERVER[0], 81, b"\n")


async def test_after_close_the_port_is_free_and_clients_are_gone(pair: tuple[Any, Any], tmp_path: Path) -> None:
    server, client = pair
    async with answering(server, tmp_path / "log", (("TCP", 80),)):
        pass
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(exchange, client, socket.SOCK_STREAM, SERVER[0], 80, b"\n")
    async with answering(server, tmp_path / "log", (("TCP", 80),)) as complaints:
        assert complaints == []


def test_addresses_as_people_write_them() -> None:
    assert [plain(text) for text in ("::ffff:10.0.0.1", "fe80::1%eth0", "fd00::1", "10.0.0.1")] == [
        "10.0.0.1",
        "fe80::1",
        "fd00::1",
        "10.0.0.1",
    ]
    assert parse_answer(b"HTTP/1.1 404 Not Found\r\n\r\nnope") is None
