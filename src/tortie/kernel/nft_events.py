"""What others do to a table of nftables, as the kernel tells it: one `Change` for each transaction of somebody else's.

    NEWRULE NEWRULE ... (one transaction)  NEWGEN (its end, and the program's name)

Every message carries the port of the netlink socket that asked for the change. No two sockets of a namespace have the
same, so it tells our own transactions from all others, where a process id would not: in a container the kernel knows
us by another one. Of what happens in other tables no more than the datagram is read.
Source: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from enum import IntEnum

from tortie.kernel.events import Overrun
from tortie.kernel.netlink.codec import HEADER_SIZE, NLMSG_OVERRUN, TEXT, Message, attributes, unpack_messages
from tortie.kernel.netlink.listener import Listener
from tortie.kernel.netlink.socket import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK
from tortie.kernel.netns import entered

NETLINK_NETFILTER = 12  # linux/netlink.h
NFNLGRP_NFTABLES = 7
NFNL_SUBSYS_NFTABLES = 10
FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}  # NFPROTO_* (linux/netfilter.h)


class NfMessage(IntEnum):
    """Of enum nf_tables_msg_types what matters here. In a message's type the subsystem is in the byte above."""

    NEWRULE, DELRULE = 6, 8
    NEWSET, DELSET = 9, 11
    NEWSETELEM, DELSETELEM = 12, 14
    NEWGEN = 15


_GENERAL = 4  # bytes of struct nfgenmsg: family, version, resource
_TABLE = 1  # NFTA_TABLE_NAME, and the table in messages about what is in one
_NAME = 2  # NFTA_RULE_CHAIN, NFTA_SET_NAME, NFTA_SET_ELEM_LIST_SET
_ANONYMOUS = "__"
_GEN_PROC_NAME = 3  # NFTA_GEN_PROC_NAME
_KIND_AND_PORT = struct.Struct("=4xH6xI")  # nlmsghdr.nlmsg_type, nlmsg_pid
_PORT_AT = 12

_SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 33, 26  # asm-generic/socket.h
RECEIVE_BUFFER = 16 << 20
"""Room for a transaction of 100,000 elements; it is only taken while they wait."""
MANY = 2_000
"""Parts of the table after which a transaction counts as one that touched all of it."""


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction of somebody else's that touched the table: these chains got or lost rules, these sets elements.

    `whole`: more than that; chains or sets, or all of it, came, changed or went.
    """

    chains: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    whole: bool = False
    program: str = ""


@dataclass(slots=True)
class _Transaction:
    """What has been told of one so far."""

    chains: set[str] = field(default_factory=set)
    sets: set[str] = field(default_factory=set)
    whole: bool = False
    parts: int = 0
    kind: int = 0
    prefix: bytes = b""
    """How a message of the same chain or set begins as the last one: with the names of table and chain or set."""

    @property
    def enough(self) -> bool:
        """Whether it is no use to look at the rest of it."""
        return self.whole or self.parts >= MANY


class Monitor(Listener):
    """Listens from when it is made to what happens to a table (`inet tortie`) of a namespace; as `events.Monitor`.

    Transactions of this process's sockets, and of whom it is told to `ignore`, do not count, and mostly do not get as
    far: they may be so large that they would crowd out others. `everybody`: they count, too.
    """

    def __init__(self, table: str, netns: str | int | None = None, *, everybody: bool = False) -> None:
        self.table = table
        family, name = table.split()
        self._family = FAMILIES[family]
        self._name = name
        self._mark = name.encode() + b"\0"
        self._everybody = everybody
        self._ports: frozenset[int] = frozenset()
        self._ignored: deque[int] = deque(maxlen=8)
        self._open: dict[int, _Transaction] = {}
        """By the port that asked for it; until the end of it is told."""
        with nullcontext() if netns is None else entered(netns):
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            super().__init__(socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER))
        with suppress(PermissionError):
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
        if not everybody:
            self._filter()
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)

    def ignore(self, port: int) -> None:
        """From any thread: what this one asks for from now on is our own. A program's port is its process id."""
        self._ignored.append(port)
        with suppress(OSError):  # closed meanwhile
            self._filter()

    def _filter(self) -> None:
        """Have the kernel drop what these have asked for, before it waits for us: a filter of linux/filter.h."""
        self._ports = frozenset(_netfilter_ports())
        ports = [*self._ports, *self._ignored]
        load, equal, give = 0x20, 0x15, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
        steps = [(load, 0, 0, _PORT_AT)]
        steps += [(equal, len(ports) - number, 0, socket.htonl(port)) for number, port in enumerate(ports)]
        steps += [(give, 0, 0, 0xFFFFFFFF), (give, 0, 0, 0)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
        program = struct.pack("HP", len(steps), ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def _is_own(self, port: int) -> bool:
        """Also of a socket that is newer than the filter."""
        if self._everybody:
            return False
        if port not in self._ports and port not in self._ignored:
            self._ports = frozenset(_netfilter_ports())
        return port in self._ports or port in self._ignored

    def read(self) -> list[Change | Overrun]:
        """What is waiting, in order, and no more than a few hundred datagrams of it; never waits."""
        found: list[Change | Overrun] = []
        for data, sender, lost in self._waiting("nft monitor"):
            if lost:
                self._open.clear()
                found.append(Overrun())
            elif not sender:  # from the kernel, not from another process
                found.extend(self._take_in(data))
        return found

    def _take_in(self, data: bytes) -> Iterator[Change | Overrun]:
        """A datagram holds messages of one transaction, or one that says something else."""
        if len(data) < HEADER_SIZE:
            return
        kind, port = _KIND_AND_PORT.unpack_from(data)
        if kind == NLMSG_OVERRUN:
            yield Overrun()
        elif kind == NFNL_SUBSYS_NFTABLES << 8 | NfMessage.NEWGEN:
            done = self._open.pop(port, None)
            if done is not None:
                yield _ended(done, data[HEADER_SIZE:])
        elif kind >> 8 == NFNL_SUBSYS_NFTABLES and self._mark in data:
            begun = self._open.get(port)
            if not (begun.enough if begun is not None else self._is_own(port)):
                for message in unpack_messages(data):
                    self._note(message)

    def _note(self, message: Message) -> None:
        kind, one = message.type & 0xFF, self._open.get(message.port)
        if one is not None and kind == one.kind and message.payload.startswith(one.prefix):
            return
        values = dict(attributes(message.payload[_GENERAL:], (_TABLE, _NAME)))
        if message.payload[0] != self._family or TEXT.unpack(values.get(_TABLE, b"")) != self._name:
            return
        one = self._open.setdefault(message.port, _Transaction())
        one.parts += 1
        name = TEXT.unpack(values.get(_NAME, b""))
        one.kind, one.prefix = kind, message.payload[: _GENERAL + sum(map(_room, values.values()))]
        match kind:
            case NfMessage.NEWRULE | NfMessage.DELRULE:
                one.chains.add(name)
            case NfMessage.NEWSETELEM | NfMessage.DELSETELEM:
                one.sets.add(name)
            case NfMessage.NEWSET | NfMessage.DELSET if name.startswith(_ANONYMOUS):
                pass  # it came or went with its rule
            case _:
                one.whole = True


def _room(value: bytes) -> int:
    """What an attribute takes: its header, and the value to the next multiple of four."""
    return 4 + len(value) + -len(value) % 4


def _ended(done: _Transaction, payload: bytes) -> Change:
    values = dict(attributes(payload[_GENERAL:]))
    program = TEXT.unpack(values.get(_GEN_PROC_NAME, b""))
    return Change(frozenset(done.chains), frozenset(done.sets), done.enough, program)


def _netfilter_ports() -> Iterator[int]:
    """The library that writes for us does not say which socket is its own; all of ours will do.

    No descriptor is copied: to close a copy would give up what locks this process has on the file (SQLite has some).
    """
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile, or no socket
            found = socket.socket(fileno=int(entry))
            try:
                if (found.family, found.proto) == (socket.AF_NETLINK, NETLINK_NETFILTER):
                    yield found.getsockname()[0]
            finally:
                found.detach()
