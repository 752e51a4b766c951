"""Probes with real packets: from inside each source's namespace to every destination, all at once.

TCP connects, asks, and reads who answers; UDP asks and reads; ICMP is an echo request. A probe's socket is opened in
the source's namespace by a thread that goes there and comes back; waiting is one event loop's affair.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from tortie.base.errors import ConfigError
from tortie.kernel import netns
from tortie.lab.matrix import Matrix, Outcome, Pair, Result
from tortie.lab.responder import parse_answer

Protocol = Literal["tcp", "udp", "icmp"]

TIMEOUT = 1.2  # seconds: long enough for one SYN sent again after a second, as a busy machine may need
PARALLEL = 400  # sockets at once, below the usual limit of 1024 descriptors
QUESTION = b"who?\n"
_ECHO_REQUEST = {4: 8, 6: 128}  # RFC 792, RFC 4443
_ECHO_REPLY = {4: 0, 6: 129}
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENONET}
_REFUSED = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EACCES}  # EACCES: ICMPv6 "administratively prohibited"
# linux/in.h, linux/in6.h: tell a datagram's sender of every ICMP error, not only of those that end a connection
_RECEIVE_ERRORS = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Somebody in the lab. `answers` is false for one that runs a program of its own: who answers is not checked."""

    name: str
    netns_path: str
    ipv4: str = ""
    ipv6: str = ""
    ports: tuple[tuple[str, int], ...] = ()
    answers: bool = True

    def address(self, version: int) -> str:
        return self.ipv4 if version == 4 else self.ipv6

    def port(self, protocol: str, wanted: int | None) -> int:
        """The port to probe: the one that is wanted, else this endpoint's first of the protocol, else 80."""
        own = (port for name, port in self.ports if name.lower() == protocol)
        return wanted if wanted is not None else next(own, 80)


async def measure(
    endpoints: Sequence[Endpoint],
    protocol: Protocol = "tcp",
    version: int = 4,
    port: int | None = None,
    seconds: float = TIMEOUT,
) -> Matrix:
    """Probes every pair of those that have an address of the family, each for so long. Raises ConfigError when there
    are not two."""
    named = [endpoint for endpoint in endpoints if endpoint.address(version)]
    if len(named) < 2:
        raise ConfigError(f"running pods with an IPv{version} address: {len(named)}; a matrix takes two")
    places = asyncio.Semaphore(PARALLEL)
    pairs = [(source, to) for source in named for to in named if source is not to]
    probes = (_probe(source, to, protocol, version, port, places, seconds) for source, to in pairs)
    results = await asyncio.gather(*probes)
    what = f"{'ICMP echo' if protocol == 'icmp' else protocol.upper()} over IPv{version}"
    if protocol != "icmp":
        what += f", port {port}" if port is not None else ", each pod's first port"
    by_pair: dict[Pair, Result] = {
        (source.name, to.name): result for (source, to), result in zip(pairs, results, strict=True)
    }
    return Matrix(what, tuple(endpoint.name for endpoint in named), by_pair)


async def probe(
    source: Endpoint, to: Endpoint, protocol: Protocol = "tcp", version: int = 4, port: int | None = None
) -> Result:
    """One pair."""
    return await _probe(source, to, protocol, version, port, asyncio.Semaphore(1))


async def _probe(
    source: Endpoint,
    to: Endpoint,
    protocol: Protocol,
    version: int,
    port: int | None,
    places: asyncio.Semaphore,
    seconds: float = TIMEOUT,
) -> Result:
    async with places:
        try:
            sock = await asyncio.to_thread(_open, source.netns_path, protocol, version)
        except Exception as error:
            return Result(Outcome.FAILED, str(error))
        with sock:
            try:
                async with asyncio.timeout(seconds):
                    target = (to.address(version), 0 if protocol == "icmp" else to.port(protocol, port))
                    if protocol == "icmp":
                        return await _echo(sock, target, version)
                    return await _ask(sock, target, to)
            except TimeoutError:
                return Result(Outcome.TIMEOUT)
            except OSError as error:
                return _of_error(error)


def _of_error(error: OSError) -> Result:
    if error.errno in _REFUSED:
        return Result(Outcome.REFUSED, "" if error.errno == errno.ECONNREFUSED else error.strerror or "")
    return Result(Outcome.UNREACHABLE if error.errno in _UNREACHABLE else Outcome.FAILED, error.strerror or str(error))


def _open(netns_path: str, protocol: Protocol, version: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    icmp = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    kinds = {"tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0), "icmp": (socket.SOCK_RAW, icmp)}
    with netns.entered(netns_path):
        sock = socket.socket(family, *kinds[protocol])
    sock.setblocking(False)
    return sock


async def _ask(sock: socket.socket, target: tuple[str, int], to: Endpoint) -> Result:
    """A connection, a question, and an answer from the right one. An ICMP error comes back as the socket's own."""
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, target)
    if sock.type == socket.SOCK_DGRAM:
        sock.setsockopt(*_RECEIVE_ERRORS[4 if sock.family == socket.AF_INET else 6], 1)
    if not to.answers and sock.type == socket.SOCK_STREAM:
        return Result(Outcome.CONNECTED)
    await loop.sock_sendall(sock, QUESTION)
    said = await loop.sock_recv(sock, 4096)
    answer = parse_answer(said)
    if not to.answers or (answer and answer.name == to.name):
        return Result(Outcome.CONNECTED, f"seen as {answer.caller}" if answer else "")
    return Result(Outcome.WRONG, answer.name if answer else repr(said[:40]))


async def _echo(sock: socket.socket, target: tuple[str, int], version: int) -> Result:
    """One echo request, and its reply; a raw socket hears those of others too."""
    loop = asyncio.get_running_loop()
    _connect_raw(sock, target, version)
    token = os.urandom(8)
    await loop.sock_sendall(sock, echo_request(version, int.from_bytes(token[:2]), 1, token))
    while True:
        packet = await loop.sock_recv(sock, 4096)
        reply = packet[(packet[0] & 15) * 4 :] if version == 4 else packet  # IPv4 raw sockets deliver the IP header
        if reply[:1] == bytes([_ECHO_REPLY[version]]) and reply.endswith(token):
            return Result(Outcome.CONNECTED)


def _connect_raw(sock: socket.socket, target: tuple[str, int], version: int) -> None:
    """From then on errors are wanted: before it is connected a raw socket would hear those of everybody's packets."""
    sock.connect(target)
    sock.setsockopt(*_RECEIVE_ERRORS[version], 1)


def echo_request(version: int, identifier: int, sequence: int, payload: bytes) -> bytes:
    """An ICMP echo request. The kernel computes the checksum of ICMPv6, over a header that only it knows."""
    header = struct.pack("!BBHHH", _ECHO_REQUEST[version], 0, 0, identifier, sequence)
    if version == 6:
        return header + payload
    return header[:2] + struct.pack("!H", _checksum(header + payload)) + header[4:] + payload


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True, slots=True)
class Losses:
    """What a steady stream of pings found. Times are seconds."""

    sent: int
    lost: int
    longest_gap: float

    def __str__(self) -> str:
        return f"{self.sent} pings, {self.lost} lost, longest silence {self.longest_gap * 1000:.0f} ms"


async def ping_steadily(netns_path: str, address: str, interval: float, stop: asyncio.Event) -> Losses:
    """Pings until `stop`, then waits a moment for the last replies."""
    version = 6 if ":" in address else 4
    sock = await asyncio.to_thread(_open, netns_path, "icmp", version)
    loop = asyncio.get_running_loop()
    token = os.urandom(6)
    answered: dict[int, float] = {}

    async def listen() -> None:
        while True:
            packet = await loop.sock_recv(sock, 4096)
            reply = packet[(packet[0] & 15) * 4 :] if version == 4 else packet
            if reply[:1] == bytes([_ECHO_REPLY[version]]) and reply[8:14] == token:
                answered.setdefault(struct.unpack_from("!I", reply, 14)[0], loop.time())

    with sock:
        _connect_raw(sock, (address, 0), version)
        listener = asyncio.create_task(listen(), name="ping replies")
        began = loop.time()
        sent = 0
        while not stop.is_set():
            payload = token + struct.pack("!I", sent)
            with suppress(OSError):  # no route for a moment: a ping that is not answered
                await loop.sock_sendall(sock, echo_request(version, 1, sent & 0xFFFF, payload))
            sent += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, began + sent * interval - loop.time()))
        await asyncio.sleep(TIMEOUT / 2)
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
    times = sorted(answered.values())
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return Losses(sent, sent - len(answered), max(gaps, default=0.0))
