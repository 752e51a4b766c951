"""What rules tell a log group (`log group 86`), as netfilter sends it to the one program that listens to the group.

The kernel numbers what it sends, so that what did not fit into the socket's buffer is known by count.
Source: linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_log.h.
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from tortie.base.errors import KernelError, NotSupported, Unavailable
from tortie.kernel.netlink.codec import (
    BE16,
    BE32,
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    RAW,
    U8,
    Message,
    Record,
    Table,
    outcome,
    pack_message,
    unpack_messages,
)
from tortie.kernel.netlink.listener import DATAGRAM, Listener
from tortie.kernel.netlink.socket import open_socket

NETLINK_NETFILTER = 12  # linux/netlink.h
NFNL_SUBSYS_ULOG = 4 << 8
NFULNL_MSG_PACKET, NFULNL_MSG_CONFIG = NFNL_SUBSYS_ULOG, NFNL_SUBSYS_ULOG | 1
NFULNL_CFG_CMD_BIND = 1
NFULNL_COPY_PACKET = 2
NFULNL_CFG_F_SEQ = 1

# Network byte order throughout, but for the bytes of a packet. struct nfgenmsg: family, version, resource (the group)
_GENERAL = (">BBH", ("family", "version", "group"))
CONFIG = Record(
    *_GENERAL,
    Table(
        "linux/netfilter/nfnetlink_log.h: NFULA_CFG_*",
        {
            1: ("command", U8),
            2: ("mode", RAW),  # struct nfulnl_msg_config_mode: copy range, mode, padding
            3: ("buffer", BE32),
            4: ("timeout", BE32),
            5: ("threshold", BE32),
            6: ("flags", BE16),
        },
    ),
)
PACKET = Record(
    *_GENERAL,
    Table(
        "linux/netfilter/nfnetlink_log.h: NFULA_*",
        {
            1: ("packet", RAW),  # struct nfulnl_msg_packet_hdr: protocol, hook, padding
            2: ("mark", BE32),
            3: ("timestamp", RAW),  # struct nfulnl_msg_packet_timestamp: seconds, microseconds
            4: ("indev", BE32),
            5: ("outdev", BE32),
            9: ("payload", RAW),
            12: ("sequence", BE32),
        },
    ),
)
HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress")  # enum nf_inet_hooks (linux/netfilter.h)

COPIED = 128
"""Bytes of each packet."""
WAIT = 10
"""Hundredths of a second that the kernel may gather messages before it sends them."""
GATHERED = 64
"""Messages after which it does not wait."""
_BUFFER = 1 << 15  # bytes of messages that the kernel gathers: GATHERED of them, and some room
_DATAGRAMS_PER_READ = 64  # so that one read does not keep an event loop for long
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Logged:
    """One packet. Interfaces are 0 where it has none; `time` is seconds since 1970, None where the kernel says none."""

    hook: str
    mark: int
    indev: int
    outdev: int
    payload: bytes
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """So many messages did not fit into the socket's buffer."""

    count: int


class Reader(Listener):
    """Listens to a group of a namespace (None: the calling thread's) from when it is made.

    Raises NotSupported where the kernel has no log groups, Unavailable when somebody else listens. The kernel forgets
    the listener with the socket.
    """

    def __init__(self, group: int, netns: str | int | None = None) -> None:
        self._group = group
        self._next = 0
        try:
            super().__init__(open_socket(netns, NETLINK_NETFILTER))
        except OSError as why:
            raise NotSupported(f"this kernel has no netfilter sockets: {why.strerror}") from None
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(_ANSWER_SECONDS)
            self._socket.send(pack_message(NFULNL_MSG_CONFIG, NLM_F_REQUEST | NLM_F_ACK, 1, binding(group)))
            self._await_binding()
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def read(self) -> list[Logged | Lost]:
        """What is waiting, in order, and no more than some hundred messages of it; never waits."""
        found: list[Logged | Lost] = []
        for data, sender, _ in self._waiting(f"reading log group {self._group}", _DATAGRAMS_PER_READ):
            # How much was lost, the next message's number tells.
            if not sender:  # from the kernel, not from another process
                for message in unpack_messages(data):
                    found.extend(self._take_in(message))
        return found

    def _take_in(self, message: Message) -> Iterator[Logged | Lost]:
        if message.type != NFULNL_MSG_PACKET:
            return
        sequence, logged = decode(message.payload)
        missing = (sequence - self._next) % (1 << 32)
        self._next = (sequence + 1) % (1 << 32)
        if missing:
            yield Lost(missing)
        yield logged

    def _await_binding(self) -> None:
        while True:
            try:
                data = self._socket.recv(DATAGRAM)
            except TimeoutError:
                raise KernelError(errno.ETIMEDOUT, f"listening to log group {self._group}") from None
            for message in unpack_messages(data):
                if message.type == NLMSG_ERROR:
                    self._bound(*outcome(message))
                    return
                deque(self._take_in(message), maxlen=0)  # told before we were: nobody has asked for it yet

    def _bound(self, number: int, words: str) -> None:
        if number in (errno.EPERM, errno.EBUSY):  # EPERM: its owner is another socket, or we may not at all
            raise Unavailable(f"another program listens to netfilter's log group {self._group}, or we may not")
        if number in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
            raise NotSupported("this kernel has no log groups: it lacks nfnetlink_log")
        if number:
            raise KernelError(number, f"listening to log group {self._group}", words)


def binding(group: int) -> bytes:
    """The request to listen to a group."""
    return CONFIG.pack(
        {
            "group": group,
            "command": NFULNL_CFG_CMD_BIND,
            "mode": struct.pack(">IBx", COPIED, NFULNL_COPY_PACKET),
            "buffer": _BUFFER,
            "timeout": WAIT,
            "threshold": GATHERED,
            "flags": NFULNL_CFG_F_SEQ,
        }
    )


def decode(payload: bytes) -> tuple[int, Logged]:
    """A message's number and what it tells. Raises ValueError."""
    values = PACKET.unpack(payload)
    header = values.get("packet", b"")
    hook = header[2] if len(header) > 2 else len(HOOKS)
    time = values.get("timestamp", b"")
    seconds, microseconds = struct.unpack(">QQ", time) if len(time) == 16 else (0, 0)
    return values.get("sequence", 0), Logged(
        HOOKS[hook] if hook < len(HOOKS) else "",
        values.get("mark", 0),
        values.get("indev", 0),
        values.get("outdev", 0),
        values.get("payload", b""),
        seconds + microseconds / 1e6 if seconds else None,
    )
