"""The flows that connection tracking knows: listing those of some addresses, and deleting.

A table may have hundreds of thousands of entries, of which a question concerns few. They are read as the kernel sends
them, 32 KiB at a time, and one that concerns nobody is passed over after a look at its four addresses; of those that
differ in nothing but who opened them, one is read.
Source of the layouts: linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h; of their order, which only speed depends
on, ctnetlink_fill_info (net/netfilter/nf_conntrack_netlink.c).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import KernelError, NotSupported
from tortie.base.flow import ICMP, ICMP6, Flow, Way
from tortie.kernel.netlink import Netlink, Request, codec
from tortie.kernel.netlink.codec import (
    BE16,
    BE32,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    U8,
    U32,
    Record,
    Table,
    attributes,
    outcome,
)
from tortie.kernel.netlink.tables import AF_INET, AF_INET6, AF_UNSPEC

NETLINK_NETFILTER = 12  # linux/netlink.h
_CTNETLINK = 1 << 8  # NFNL_SUBSYS_CTNETLINK (linux/netfilter/nfnetlink.h)
CT_NEW, CT_GET, CT_DELETE = _CTNETLINK, _CTNETLINK | 1, _CTNETLINK | 2  # IPCTNL_MSG_CT_*
IPS_EXPECTED, IPS_SEEN_REPLY, IPS_DST_NAT = 1, 1 << 1, 1 << 5  # linux/netfilter/nf_conntrack_common.h

_ADDRESSES = Table(
    "linux/netfilter/nfnetlink_conntrack.h CTA_IP_*",
    {1: ("src", codec.IP), 2: ("dst", codec.IP), 3: ("src6", codec.IP), 4: ("dst6", codec.IP)},
)
_ENDS = Table(
    "linux/netfilter/nfnetlink_conntrack.h CTA_PROTO_*",
    {
        1: ("num", U8),
        2: ("sport", BE16),
        3: ("dport", BE16),
        4: ("icmp_id", BE16),
        5: ("icmp_type", U8),
        6: ("icmp_code", U8),
        7: ("icmp6_id", BE16),
        8: ("icmp6_type", U8),
        9: ("icmp6_code", U8),
    },
)
_TUPLE = Table("linux/netfilter/nfnetlink_conntrack.h CTA_TUPLE_*", {1: ("ip", _ADDRESSES), 2: ("proto", _ENDS)})
_FILTER = Table("linux/netfilter/nfnetlink_conntrack.h CTA_FILTER_*", {1: ("orig_flags", U32), 2: ("reply_flags", U32)})
_ONLY_PROTOCOL = {"orig_flags": 1 << 3, "reply_flags": 0}  # CTA_FILTER_F_CTA_PROTO_NUM (net/netfilter/nf_internals.h)
_ONLY_FROM = {  # CTA_FILTER_F_CTA_IP_SRC
    "orig": {"orig_flags": 1 << 0, "reply_flags": 0},
    "reply": {"orig_flags": 0, "reply_flags": 1 << 0},
}
ENTRY = Record(
    "=BBH",  # struct nfgenmsg (linux/netfilter/nfnetlink.h); res_id is nobody's here
    ("nfgen_family", "version", "res_id"),
    Table(
        "linux/netfilter/nfnetlink_conntrack.h CTA_*",
        {
            1: ("orig", _TUPLE),
            2: ("reply", _TUPLE),
            3: ("status", BE32),
            7: ("timeout", BE32),
            12: ("id", BE32),
            18: ("zone", BE16),
            25: ("filter", _FILTER),
            26: ("status_mask", BE32),
        },
    ),
)

_HEADER = struct.Struct("=HH")  # struct nlattr (linux/netlink.h)
_ORIG, _REPLY, _NESTED = 1, 2, 0x8000
_WIDTH = {AF_INET: 4, AF_INET6: 16}
# A whole tuple: source, destination, protocol and ports, with the headers before each of them passed over.
_LAYOUTS = {AF_INET: struct.Struct(">12x4s4x4s8xB7xH6xH2x"), AF_INET6: struct.Struct(">12x16s4x16s8xB7xH6xH2x")}
_FLAT = (3, 12, 18)  # CTA_STATUS, CTA_ID, CTA_ZONE
# Both tuples and the status behind them: the headers of all three, to whom the flow was opened, who replies.
_ENDS_LAYOUTS = {
    family: struct.Struct(
        f">4x4s8x{width}x4x{width}s8xB7x2x6xH2x"  # nfgenmsg, CTA_TUPLE_ORIG
        f"4s8x{width}s4x{width}x8xx7xH6x2x2x"  # CTA_TUPLE_REPLY
        "4sI"  # CTA_STATUS
    )
    for family, width in _WIDTH.items()
}
_ENDS_HEADERS = {
    family: (
        _HEADER.pack(_LAYOUTS[family].size, _ORIG | _NESTED),
        _HEADER.pack(_LAYOUTS[family].size, _REPLY | _NESTED),
        _HEADER.pack(8, 3),
    )
    for family in _WIDTH
}

FEW = 4
"""Addresses for which it is quicker to have the kernel look twice for each than to be told of all flows once."""
MOST_KINDS = 1 << 14
"""How many answers of a judge are remembered while one listing lasts."""

Ends = tuple[bytes, int, int, bytes, int, int]
"""To whom a flow was opened (address, protocol, port), who replies (address, port), and IPS_SEEN_REPLY or 0."""


class Conntrack(Netlink):
    """The connection tracking of a network namespace (path or descriptor; None: that of the calling thread)."""

    def __init__(self, netns: str | int | None = None) -> None:
        super().__init__(netns, NETLINK_NETFILTER)

    def __enter__(self) -> Conntrack:
        return self

    def flows(
        self,
        ips: Collection[IP] | None = None,
        protocol: int = 0,
        judge: Callable[[Flow], bool] | None = None,
        *,
        unanswered: bool = False,
    ) -> Iterator[Flow]:
        """Every flow that has one of the addresses at any of its ends; all flows with None.

        They come while the kernel lists: one that begins or ends meanwhile may be among them or not. `protocol`: others
        need not come, and with a kernel from 5.8 on do not. `unanswered`: the same of those that were answered or sent
        elsewhere, from 5.15 on. `judge` says which ones come; it is asked once for all that were opened to one place
        and are answered from one, and must not care who opened them. With it the addresses are of these two.
        Raises NotSupported on a kernel that does not tell.
        """
        wanted = None if ips is None else {ip.packed for ip in ips}
        payloads = self._listed(protocol, wanted, unanswered)
        if judge is None:
            yield from (decode(one) for one in payloads if wanted is None or _concerns(one, wanted))
        else:
            yield from _judged(payloads, wanted, judge)

    def flows_from(self, ips: Collection[IP]) -> Iterator[Flow]:
        """Every flow in which packets come from one of the addresses, whoever opened it; some perhaps twice.

        Of a FEW a kernel from 5.8 on is asked one after the other: it passes over the flows of others itself. Raises
        NotSupported on one that does not tell.
        """
        sources = frozenset(ips)
        asked = [_from(ip, end) for ip in sources for end in _ONLY_FROM]
        whole = [ENTRY.pack({"nfgen_family": AF_UNSPEC})]
        packed = {ip.packed for ip in sources}
        for question in asked if len(sources) <= FEW else whole:
            every = (decode(one) for one in self._dumped(question) if _concerns(one, packed))
            yield from (flow for flow in every if not sources.isdisjoint((flow.opened.source, flow.reply.source)))

    def _listed(self, protocol: int, wanted: set[bytes] | None, unanswered: bool) -> Iterator[bytes]:
        asked: dict[str, Any] = {"status": 0, "status_mask": IPS_SEEN_REPLY | IPS_DST_NAT} if unanswered else {}
        if not protocol:
            yield from self._dumped(ENTRY.pack({"nfgen_family": AF_UNSPEC, **asked}))
            return
        asked |= {"orig": {"proto": {"num": protocol}}, "filter": _ONLY_PROTOCOL}
        for family, width in _WIDTH.items():  # the kernel takes no tuple without
            if wanted is None or any(len(ip) == width for ip in wanted):
                yield from self._dumped(ENTRY.pack({"nfgen_family": family, **asked}))

    def _dumped(self, asked: bytes) -> Iterator[bytes]:
        doing = "conntrack -L"
        sequence = self._send(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, asked, doing)
        while True:
            for message in self._receive(doing):
                if message.sequence != sequence:
                    continue  # of a listing that nobody read to its end
                if message.type in (NLMSG_DONE, NLMSG_ERROR):
                    _check(*outcome(message), doing)
                    return
                yield message.payload

    def delete(self, flows: Iterable[Flow]) -> list[tuple[Flow, KernelError]]:
        """Delete these flows; those that could not be. One that is gone, or is another by now, is deleted."""
        every = list(flows)
        failed = self.batch([Request(CT_DELETE, 0, encode(flow), flow) for flow in every])
        return [(every[index], error) for index, error in failed if error.errno != errno.ENOENT]


def _from(ip: IP, end: str) -> bytes:
    """Asks for the flows of which one end's packets come from an address."""
    family, field = (AF_INET, "src") if ip.version == 4 else (AF_INET6, "src6")
    return ENTRY.pack({"nfgen_family": family, end: {"ip": {field: str(ip)}}, "filter": _ONLY_FROM[end]})


def _check(code: int, words: str, doing: str) -> None:
    if code in (errno.EINVAL, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP):
        raise NotSupported("this kernel does not tell which connections it tracks: it lacks nf_conntrack_netlink")
    if code:
        raise KernelError(code, doing, words)


def _judged(payloads: Iterable[bytes], wanted: set[bytes] | None, judge: Callable[[Flow], bool]) -> Iterator[Flow]:
    known: dict[Ends, bool] = {}
    for payload in payloads:
        ends = _ends(payload)
        if ends is None:
            flow = decode(payload) if wanted is None or _concerns(payload, wanted) else None
            if flow is not None and judge(flow):
                yield flow
            continue
        if wanted is not None and ends[0] not in wanted and ends[3] not in wanted:
            continue
        verdict = known.get(ends)
        if verdict is False:
            continue
        flow = decode(payload)
        if verdict is None:
            verdict = judge(flow)
            if len(known) < MOST_KINDS:
                known[ends] = verdict
        if verdict:
            yield flow


def _ends(payload: bytes) -> Ends | None:
    """None for what is not laid out as usual, as what has no ports or is in a zone."""
    layout = _ENDS_LAYOUTS.get(payload[0])
    if layout is None or len(payload) < layout.size:
        return None
    orig, ip, protocol, port, reply, replier, reply_port, head, status = layout.unpack_from(payload)
    if (orig, reply, head) != _ENDS_HEADERS[payload[0]]:
        return None
    return ip, protocol, port, replier, reply_port, status & IPS_SEEN_REPLY


def _concerns(payload: bytes, wanted: set[bytes]) -> bool:
    """Whether one of the four addresses is wanted. What is not laid out as usual is decoded to be sure."""
    width = _WIDTH.get(payload[0], 0)
    at = 4  # behind nfgenmsg
    for number in (_ORIG, _REPLY):
        try:
            length, kind = _HEADER.unpack_from(payload, at)
        except struct.error:
            return True
        if kind != number | _NESTED or not width:
            return True
        # tuple, addresses and first address have a header each; the second address has one, too
        first = at + 3 * _HEADER.size
        second = first + width + _HEADER.size
        if payload[first : first + width] in wanted or payload[second : second + width] in wanted:
            return True
        at += length + -length % 4
    return False


def decode(payload: bytes) -> Flow:
    """The flow in the body of a message. Raises ValueError for what is malformed."""
    found = _with_ports(payload)
    if found is not None:
        return found
    values = ENTRY.unpack(payload)
    if "orig" not in values or "reply" not in values:
        raise ValueError("an entry of connection tracking without both of its tuples")
    status, zone, number = (values.get(name, 0) for name in ("status", "zone", "id"))
    return Flow(
        _way(values["orig"]),
        _way(values["reply"]),
        bool(status & IPS_EXPECTED),
        zone,
        number,
        bool(status & IPS_SEEN_REPLY),
    )


def _with_ports(payload: bytes) -> Flow | None:
    """The same a tenth as long, for nearly all: no tuple but one of a protocol with ports has this length."""
    layout = _LAYOUTS.get(payload[0])
    if layout is None or len(payload) < 4 + 2 * layout.size:
        return None
    ways: list[Way] = []
    for number in (_ORIG, _REPLY):
        at = 4 + len(ways) * layout.size
        if _HEADER.unpack_from(payload, at) != (layout.size, number | _NESTED):
            return None
        source, destination, protocol, source_port, destination_port = layout.unpack_from(payload, at)
        ways.append(Way(_ip(source), _ip(destination), protocol, source_port, destination_port))
    rest = dict(attributes(payload[4 + 2 * layout.size :], _FLAT))
    status, number, zone = (int.from_bytes(rest.get(one, b""), "big") for one in _FLAT)
    return Flow(ways[0], ways[1], bool(status & IPS_EXPECTED), zone, number, bool(status & IPS_SEEN_REPLY))


@lru_cache(maxsize=1 << 12)
def _ip(packed: bytes) -> IP:
    return ip_address(packed)


def _way(values: dict[str, Any]) -> Way:
    ip, proto = values.get("ip", {}), values.get("proto", {})
    source, destination = ip.get("src") or ip.get("src6"), ip.get("dst") or ip.get("dst6")
    if source is None or destination is None:
        raise ValueError("a tuple of connection tracking without addresses")
    return Way(
        parse_ip(source),
        parse_ip(destination),
        proto.get("num", 0),
        proto.get("sport", 0),
        proto.get("dport", 0),
        proto.get("icmp_type", proto.get("icmp6_type", 0)),
        proto.get("icmp_code", proto.get("icmp6_code", 0)),
        proto.get("icmp_id", proto.get("icmp6_id", 0)),
    )


def encode(flow: Flow) -> bytes:
    """The body of a message that means this flow: without a tuple the kernel would take it to mean all of them."""
    return ENTRY.pack(
        {
            "nfgen_family": AF_INET if flow.opened.source.version == 4 else AF_INET6,
            "orig": _tuple(flow.opened),
            "zone": flow.zone or None,
            "id": flow.number or None,
        }
    )


def _tuple(way: Way) -> dict[str, Any]:
    six = "" if way.source.version == 4 else "6"
    proto: dict[str, int] = {"num": way.protocol}
    if way.protocol in (ICMP, ICMP6):
        word = "icmp" if way.protocol == ICMP else "icmp6"
        proto |= {f"{word}_id": way.icmp_id, f"{word}_type": way.icmp_type, f"{word}_code": way.icmp_code}
    else:
        proto |= {"sport": way.source_port, "dport": way.destination_port}
    return {"ip": {f"src{six}": str(way.source), f"dst{six}": str(way.destination)}, "proto": proto}
