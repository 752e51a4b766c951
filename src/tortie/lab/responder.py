"""What runs in a pod that says nothing else: answers on its ports with who it is and whom it saw.

    $ curl http://10.244.1.5/                  red/web on node2 saw 10.244.0.3 port 41234
    $ nc 10.244.1.5 80 </dev/null              the same line
    $ echo hello | nc -u 10.244.1.5 53         the same line

The sockets are opened inside the pod's network namespace and stay in it; all are served by one event loop outside, so a
pod costs a few file descriptors and no process. One socket per port answers both families.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address
from pathlib import Path
from typing import TextIO

from tortie.kernel import netns

_SPEAKS_FIRST = 0.2  # seconds after which a silent TCP client is told anyway
_HTTP_SECONDS = 5.0
_HTTP_BYTES = 1 << 16
_BACKLOG = 128
_HTTP = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) (\S+) HTTP/1\.[01]\r?\n")
_ANSWER = re.compile(r"(\S+) on (\S+) saw (\S+) port (\d+)\n?")

# linux/in6.h; Python knows them only where the C library's headers had them.
_IPV6_RECVPKTINFO, _IPV6_PKTINFO = 49, 50
_PKTINFO = struct.Struct("16sI")  # struct in6_pktinfo: address, interface index


@dataclass(frozen=True, slots=True)
class Answer:
    """What a responder says."""

    name: str
    node: str
    caller: str
    port: int

    def __str__(self) -> str:
        return f"{self.name} on {self.node} saw {self.caller} port {self.port}\n"


def parse_answer(data: bytes) -> Answer | None:
    """An answer read back, or None for anything else. An HTTP reply's head is skipped."""
    match = _ANSWER.fullmatch(data.rpartition(b"\r\n\r\n")[2].decode("utf-8", "replace"))
    return Answer(match[1], match[2], match[3], int(match[4])) if match else None


def plain(address: str) -> str:
    """An address as people write it: a socket of both families shows IPv4 as `::ffff:10.0.0.1`."""
    if "%" in address or ":" not in address:
        return address.partition("%")[0]
    mapped = IPv6Address(address).ipv4_mapped
    return str(mapped or address)


class Responder:
    """Answers as `name` on `node` in one network namespace until it is closed."""

    def __init__(self, name: str, node: str, log: Path) -> None:
        self.name = name
        self.node = node
        self._log_path = log
        self._log: TextIO | None = None
        self._servers: list[asyncio.Server] = []
        self._datagrams: list[socket.socket] = []
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, netns_path: str, ports: Iterable[tuple[str, int]]) -> list[str]:
        """Begins to answer; the complaints about ports on which it cannot, one line each."""
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self._log_path.open("a", buffering=1, encoding="utf-8")
        sockets, complaints = await asyncio.to_thread(_listen, netns_path, tuple(ports))
        for sock in sockets:
            if sock.type == socket.SOCK_STREAM:
                self._servers.append(await asyncio.start_server(self._connected, sock=sock, backlog=_BACKLOG))
            else:
                self._datagrams.append(sock)
                asyncio.get_running_loop().add_reader(sock, self._datagram, sock)
        for complaint in complaints:
            self._note(complaint)
        return complaints

    async def close(self) -> None:
        for sock in self._datagrams:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        for server in self._servers:
            server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self._servers.clear()
        self._datagrams.clear()
        if self._log:
            self._log.close()
            self._log = None

    def _note(self, text: str) -> None:
        if self._log:
            self._log.write(f"{datetime.now().astimezone().isoformat(timespec='milliseconds')} {text}\n")

    def _answer(self, protocol: str, caller: tuple[str, int], port: int, asked: str = "") -> bytes:
        answer = Answer(self.name, self.node, plain(caller[0]), caller[1])
        self._note(f"{protocol} from {answer.caller} port {answer.port} to port {port}{asked and ' '}{asked}")
        return str(answer).encode()

    # --- TCP --------------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went away, or never finished its request
        finally:
            self._open.discard(task)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller, port = writer.get_extra_info("peername"), writer.get_extra_info("sockname")[1]
        first = b""
        with suppress(TimeoutError):
            first = await asyncio.wait_for(reader.read(_HTTP_BYTES), _SPEAKS_FIRST)
        if not _HTTP.match(first):
            writer.write(self._answer("TCP", caller, port))
        else:
            async with asyncio.timeout(_HTTP_SECONDS):
                while b"\r\n\r\n" not in first and len(first) < _HTTP_BYTES:
                    more = await reader.read(_HTTP_BYTES)
                    if not more:
                        break
                    first += more
            writer.write(self._http(first, caller, port))
        await writer.drain()

    def _http(self, request: bytes, caller: tuple[str, int], port: int) -> bytes:
        match = _HTTP.match(request)
        assert match is not None
        method, target = match[1].decode(), match[2].decode("utf-8", "replace")
        body = self._answer("HTTP", caller, port, f"{method} {target}")
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == "HEAD" else body)

    # --- UDP --------------------------------------------------------------------------------------------------------

    def _datagram(self, sock: socket.socket) -> None:
        """One datagram, answered from the very address that it came to: a node has several."""
        with suppress(OSError):  # the answer could not be sent; an ICMP error from an earlier one came in
            data, ancillary, _, caller = sock.recvmsg(_HTTP_BYTES, socket.CMSG_SPACE(_PKTINFO.size))
            if parse_answer(data):
                return  # two responders must not talk to each other for ever
            source = [
                (level, kind, _PKTINFO.pack(_PKTINFO.unpack(value)[0], 0))
                for level, kind, value in ancillary
                if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO)
            ]
            sock.sendmsg([self._answer("UDP", caller, sock.getsockname()[1])], source, 0, caller)


def _listen(netns_path: str, ports: tuple[tuple[str, int], ...]) -> tuple[list[socket.socket], list[str]]:
    """The sockets that could be opened in the namespace, and what is wrong with the others."""
    openers: dict[str, Callable[[int], socket.socket]] = {"TCP": _listen_tcp, "UDP": _listen_udp}
    sockets: list[socket.socket] = []
    complaints: list[str] = []
    with netns.entered(netns_path):
        for protocol, port in sorted(set(ports)):
            if protocol not in openers:
                complaints.append(f"nothing answers on {protocol} port {port}: only TCP and UDP are answered")
                continue
            try:
                sockets.append(openers[protocol](port))
            except OSError as error:
                complaints.append(f"nothing answers on {protocol} port {port}: {error.strerror}")
    return sockets, complaints


def _listen_tcp(port: int) -> socket.socket:
    sock = _wildcard(socket.SOCK_STREAM, port)
    sock.listen(_BACKLOG)
    return sock


def _listen_udp(port: int) -> socket.socket:
    return _wildcard(socket.SOCK_DGRAM, port)


def _wildcard(kind: socket.SocketKind, port: int) -> socket.socket:
    """Bound to the port on every address of both families, or of IPv4 where the kernel has no IPv6."""
    try:
        sock = socket.socket(socket.AF_INET6, kind)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        sock = socket.socket(socket.AF_INET, kind)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if kind == socket.SOCK_STREAM else 0)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if kind == socket.SOCK_DGRAM:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
        sock.bind(("", port))
    except OSError:
        sock.close()
        raise
    return sock
