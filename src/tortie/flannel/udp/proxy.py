"""The proxy, seen from the daemon: started with what it works on, told tables, asked what it counted.

    start ─► TUN device, UDP socket, raw socket ──descriptors──► the program (proxy.c)
    put_table, counters ──► kind, length, body ──► it ──► kind, length, body

It ends when its end of the socket between the two closes, that is, with the daemon, however that ends.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from weakref import WeakValueDictionary

from tortie.base.errors import Exists, KernelError, Unavailable
from tortie.flannel.udp import tun
from tortie.kernel.netns import OWN

COUNTERS = (
    "sent_packets", "sent_bytes", "sent_calls", "sent_not_ipv4", "sent_malformed", "sent_unreachable", "sent_expired",
    "sent_refused", "received_packets", "received_bytes", "received_calls", "received_not_ipv4", "received_malformed",
    "received_stranger", "received_expired", "received_refused", "last_stranger",
)  # fmt: skip
"""In the order of outlet.h. `calls` are system calls; what comes after them was dropped. The last is an address."""
ABILITIES = ("tso", "uso", "gso", "gro")
"""In the order of kernel.h; `start` may be told to do without one."""

TABLE, COUNTS, CAN = 1, 2, 3
_HEAD = struct.Struct("=II")  # kind, bytes that follow
_ENTRY = struct.Struct("=4s4sHBx")  # struct entry of table.h; the port is put in network byte order
PATIENCE = 5.0
"""Seconds for an answer, which takes less than a thousandth where a processor is free."""
ENDING = 1.0
"""Seconds for one that no longer listens to us to have ended: a killed one has closed what it had before it is gone."""
BUFFER = 4 << 20
"""Bytes of the socket's buffers: a flood of some milliseconds."""
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h


@dataclass(frozen=True, slots=True)
class Way:
    """A subnet, and the node that it is reached by."""

    subnet: IPv4Network
    node: IPv4Address
    port: int


def dump(local: IPv4Address, ways: Iterable[Way]) -> bytes:
    """A table as the proxy takes it. `local` is the address that ICMP messages come from."""
    entries = (
        _ENTRY.pack(way.subnet.network_address.packed, way.node.packed, socket.htons(way.port), way.subnet.prefixlen)
        for way in ways
    )
    return local.packed + b"".join(entries)


class Proxy:
    """One that was started. Every method raises Unavailable when it has ended, or does not answer."""

    def __init__(self, device: str, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.device = device
        self._process = process
        self._control = control
        self._why = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> str:
        """Why, in a line; "" while it runs and answers. One that did not answer has ended for us."""
        status = self._process.poll()
        if status is not None and not self._why:
            assert self._process.stderr is not None
            said = self._process.stderr.read().decode(errors="replace").strip()
            self._why = said or (f"signal {-status}" if status < 0 else f"exit status {status}")
        return self._why

    def put_table(self, local: IPv4Address, ways: Iterable[Way]) -> None:
        """This one and no other from now on."""
        self._ask(TABLE, dump(local, ways))

    def counters(self) -> dict[str, int]:
        return dict(zip(COUNTERS, struct.unpack(f"={len(COUNTERS)}Q", self._ask(COUNTS)), strict=True))

    def abilities(self) -> frozenset[str]:
        """What it makes use of."""
        found = struct.unpack(f"={len(ABILITIES)}i", self._ask(CAN))
        return frozenset(name for name, can in zip(ABILITIES, found, strict=True) if can)

    def close(self) -> None:
        """It ends, and the device is free. Again, if need be."""
        self._control.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.ended()  # who asks afterwards finds it said
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _ask(self, kind: int, body: bytes = b"") -> bytes:
        if self._why:
            raise Unavailable(f"the proxy of {self.device} has ended: {self._why}")
        try:
            self._control.sendall(_HEAD.pack(kind, len(body)) + body)
            answered, length = _HEAD.unpack(self._receive(_HEAD.size))
            answer = self._receive(length)
        except OSError as error:
            self._control.close()  # what it may still say would be taken for the answer to the next question
            self._why = self._silence(error)
            raise Unavailable(f"the proxy of {self.device} does not answer: {self._why}") from None
        assert answered == kind
        return answer

    def _silence(self, error: OSError) -> str:
        """Why there was no answer."""
        if isinstance(error, TimeoutError):
            return self.ended() or "no answer in time"
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING)
        return self.ended() or "it no longer listens"

    def _receive(self, length: int) -> bytes:
        got = b""
        while len(got) < length:
            more = self._control.recv(length - len(got))
            if not more:
                raise ConnectionResetError("it has ended")
            got += more
        return got


_started: WeakValueDictionary[tuple[int, str], Proxy] = WeakValueDictionary()
"""What this process runs, by network namespace and alias."""


def start(program: Path, alias: str, local: IPv4Address, port: int, without: str = "") -> Proxy:
    """Starts it in the network namespace of this thread. Packets wait in it for the first table.

    One that this process has for the same network ends first: a daemon whose node has another address begins anew.
    Raises Exists when another program reads the device or has the port, NotSupported, KernelError.
    """
    key = os.stat(OWN).st_ino, alias
    if key in _started:
        _started.pop(key).close()
    device, name = tun.open_device(alias)
    try:
        with _udp(local, port) as udp, _icmp() as icmp:
            process, control = _spawn(program, (device, udp.fileno(), icmp.fileno()), without)
    finally:
        os.close(device)
    _started[key] = made = Proxy(name, process, control)
    return made


def _spawn(program: Path, fds: Sequence[int], without: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, and our end of its standard input. Raises KernelError."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    with theirs:
        try:
            process = subprocess.Popen(
                [str(program), *(str(fd) for fd in fds), without],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=fds,
                start_new_session=True,  # an interrupt of the daemon's terminal is for the daemon
            )
        except OSError as error:
            ours.close()
            raise KernelError(error.errno or 0, f"start {program}") from None
    return process, ours


def _icmp() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except OSError as error:
        raise KernelError(error.errno or 0, "open a raw socket for ICMP") from None


def _udp(local: IPv4Address, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        for forced, asked in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                made.setsockopt(socket.SOL_SOCKET, forced, BUFFER)
            except PermissionError:  # root of a container with users of its own: what net.core allows
                made.setsockopt(socket.SOL_SOCKET, asked, BUFFER)
        made.bind((str(local), port))
    except OSError as error:
        made.close()
        if error.errno != errno.EADDRINUSE:
            raise KernelError(error.errno or 0, f"bind {local}:{port}") from None
        raise Exists(f"UDP port {port} of {local} is in use by another program: stop it, or set Backend.Port") from None
    return made
