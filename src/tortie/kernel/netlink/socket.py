"""The rtnetlink socket: one request, a dump, or thousands of requests pipelined, in this or another namespace."""

from __future__ import annotations

import _socket as socket  # as in codec
import _struct as struct
import errno
import time

from tortie.base.errors import KernelError
from tortie.base.record import record
from tortie.kernel import netns as namespaces
from tortie.kernel.netlink.codec import (
    HEADER_SIZE,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    Message,
    outcome,
    pack_message,
    unpack_messages,
)

TYPE_CHECKING = False  # as in codec
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

# socket options of SOL_NETLINK (linux/netlink.h, linux/socket.h, asm-generic/socket.h)
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_DROP_MEMBERSHIP = 2
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
_SO_RCVBUFFORCE = 33

RECEIVE_BUFFER = 1 << 20
_DATAGRAM = 1 << 16  # the kernel makes dump datagrams of at most 32 KiB

# A failure comes back as one small datagram; so many of them fit even into an unprivileged socket's receive buffer.
_CHUNK_MESSAGES = 256
_CHUNK_BYTES = 1 << 16  # well below the default send buffer of 208 KiB

_DUMP_TRIES = 16
_DUMP_PAUSE = 0.01  # seconds longer each time, 1.2 in all: whoever changes thousands of objects is done then
_ANSWER_SECONDS = 10  # the kernel answers while it is asked; waiting at all means that an answer was lost


@record(frozen=True, slots=True)
class Request:
    """One of many requests. `str(doing)` is what is being done in the words of `ip`, asked for only on failure."""

    type: int
    flags: int
    payload: bytes
    doing: object


def open_socket(netns: str | int | None = None, protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    """A netlink socket in the namespace (path or descriptor; None: the calling thread's), its options set."""
    if netns is None:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    else:
        with namespaces.entered(netns):
            return open_socket(None, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:  # without CAP_NET_ADMIN: as much as net.core.rmem_max allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
        sock.setsockopt(SOL_NETLINK, option, 1)
    return sock


class Netlink:
    """Requests to rtnetlink, one at a time: not to be shared by threads.

    `netns` is the namespace the socket is opened in (path or descriptor) and stays in, whatever the thread does.
    """

    def __init__(self, netns: str | int | None = None, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = open_socket(netns, protocol)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _ANSWER_SECONDS, 0))
        self._buffer = bytearray(_DATAGRAM)
        self._sequence = 0
        self._watching = False  # we are in a multicast group
        self._changed = False  # and something was heard there

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, type: int, flags: int, payload: bytes, doing: object) -> list[Message]:
        """Asks and waits for the acknowledgement; what came before it. Raises KernelError in the kernel's words."""
        sequence = self._send(type, NLM_F_REQUEST | NLM_F_ACK | flags, payload, doing)
        replies: list[Message] = []
        while True:
            for message in self._receive(doing):
                if message.sequence != sequence:
                    continue  # left over from a request that was given up
                if message.type == NLMSG_ERROR:
                    _check(message, doing)
                    return replies
                replies.append(message)

    def dump(self, type: int, payload: bytes, doing: object, *, watch: int = 0) -> Iterator[Message]:
        """Every object of a table. When the kernel says that the table changed half way, it is read again.

        Of some tables the kernel does not say so. `watch` is the multicast group (RTNLGRP_*) that tells of the changes
        of such a one: a message in it during the dump means the same.
        """
        for attempt in range(_DUMP_TRIES):
            time.sleep(_DUMP_PAUSE * attempt)
            self._changed = False
            messages, interrupted = (
                self._dump_heard(watch, type, payload, doing) if watch else self._dump_once(type, payload, doing)
            )
            if not interrupted and not self._changed:
                return iter(messages)
        raise KernelError(
            errno.EINTR, str(doing), f"the table changed during each of {_DUMP_TRIES} attempts to list it"
        )

    def batch(self, requests: Sequence[Request]) -> list[tuple[int, KernelError]]:
        """Many requests in order, hundreds per system call; (index, error) of those that failed, the rest is done."""
        failures: list[tuple[int, KernelError]] = []
        start = 0
        while start < len(requests):
            end, size = start, 0
            while end < len(requests) and end - start < _CHUNK_MESSAGES and size < _CHUNK_BYTES:
                size += HEADER_SIZE + len(requests[end].payload)
                end += 1
            failures += self._chunk(requests, start, end)
            start = end
        return failures

    def _chunk(self, requests: Sequence[Request], start: int, end: int) -> list[tuple[int, KernelError]]:
        """Only the last asks for an acknowledgement: the kernel answers in order, and reports failures unasked."""
        first = self._next(end - start)
        parts: list[bytes] = []
        for index in range(start, end):
            request = requests[index]
            flags = NLM_F_REQUEST | request.flags | (NLM_F_ACK if index == end - 1 else 0)
            parts.append(pack_message(request.type, flags, first + index - start, request.payload))
        self._send_bytes(b"".join(parts), requests[start].doing)
        failures: list[tuple[int, KernelError]] = []
        while True:
            for message in self._receive(requests[start].doing):
                index = start + message.sequence - first
                if message.type != NLMSG_ERROR or not start <= index < end:
                    continue
                code, words = outcome(message)
                if code:
                    failures.append((index, KernelError(code, str(requests[index].doing), words)))
                if index == end - 1:
                    return failures

    def _dump_once(self, type: int, payload: bytes, doing: object) -> tuple[list[Message], bool]:
        sequence = self._send(type, NLM_F_REQUEST | NLM_F_DUMP, payload, doing)
        messages: list[Message] = []
        interrupted = False
        while True:
            for message in self._receive(doing):
                if message.sequence != sequence:
                    continue
                interrupted = interrupted or message.interrupted
                if message.type in (NLMSG_DONE, NLMSG_ERROR):
                    _check(message, doing)
                    return messages, interrupted
                messages.append(message)

    def _dump_heard(self, group: int, type: int, payload: bytes, doing: object) -> tuple[list[Message], bool]:
        """In the multicast group meanwhile; nothing of it is left in the queue afterwards to crowd out answers."""
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        self._watching = True
        try:
            return self._dump_once(type, payload, doing)
        finally:
            self._watching = False
            self._socket.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, group)
            self._drain()

    def _drain(self) -> None:
        while True:
            try:
                self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as why:
                if why.errno != errno.ENOBUFS:  # which only says that there was more
                    raise

    def _next(self, count: int) -> int:
        """The first of `count` fresh sequence numbers in a row."""
        if self._sequence + count >= 1 << 32:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first

    def _send(self, type: int, flags: int, payload: bytes, doing: object) -> int:
        sequence = self._next(1)
        self._send_bytes(pack_message(type, flags, sequence, payload), doing)
        return sequence

    def _send_bytes(self, data: bytes, doing: object) -> None:
        try:
            self._socket.send(data)
        except OSError as why:
            raise KernelError(why.errno or errno.EIO, str(doing)) from None

    def _receive(self, doing: object) -> list[Message]:
        """The messages of the kernel's next datagram."""
        try:
            length, _, flags, (port, groups) = self._socket.recvmsg_into([self._buffer])
        except OSError as why:
            if why.errno == errno.ENOBUFS and self._watching:
                self._changed = True  # more changes than there was room for; the answer is not among what was lost
                return []
            words = "the kernel did not answer" if why.errno == errno.EAGAIN else ""
            raise KernelError(why.errno or errno.EIO, str(doing), words) from None
        if port or groups:  # from another process, not from the kernel; or no answer, but what `watch` listens for
            self._changed = self._changed or not port
            return []
        if flags & socket.MSG_TRUNC:
            raise KernelError(errno.EMSGSIZE, str(doing), f"the answer is longer than {len(self._buffer)} bytes")
        messages = list(unpack_messages(bytes(memoryview(self._buffer)[:length])))
        if any(message.type == NLMSG_OVERRUN for message in messages):
            raise KernelError(errno.ENOBUFS, str(doing))
        return [message for message in messages if message.type != NLMSG_NOOP]


def _check(message: Message, doing: object) -> None:
    code, words = outcome(message)
    if code:
        raise KernelError(code, str(doing), words)
