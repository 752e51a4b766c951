"""A packet on its way through the hooks: what the rules may ask about it, and what they have done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tortie.base.addr import IP, Net, host_net, parse_net
from tortie.calc.state import DesiredState
from tortie.policy.verdict import Packet
from tortie.testing.tracer.datatypes import CT_STATE, CT_STATUS, TCP_FLAG
from tortie.testing.tracer.elements import Elements

WITH_PORTS = frozenset((6, 17, 33, 132, 136))
NO_PORT = -1
"""Of a protocol without ports the kernel reads whatever is at their place: no set of ports holds that."""

NEW, INVALID, UNTRACKED = (CT_STATE.symbols[name] for name in ("new", "invalid", "untracked"))
DNAT, SNAT = CT_STATUS.symbols["dnat"], CT_STATUS.symbols["snat"]
SYN = TCP_FLAG.symbols["syn"]
LOOPBACK = "lo"
_ALL = parse_net("0.0.0.0/0"), parse_net("::/0")


@dataclass(frozen=True)
class Host:
    """What the ruleset does not say: the machine's own addresses by interface, and where other addresses are."""

    addresses: Mapping[IP, str]
    routes: tuple[tuple[Net, str], ...]

    def is_local(self, ip: IP) -> bool:
        return ip in self.addresses or ip.is_loopback

    def interface_to(self, ip: IP) -> str:
        """The interface through which a packet for `ip` leaves, `lo` for an own address, "" where no route leads."""
        if self.is_local(ip):
            return LOOPBACK
        matching = ((net.prefixlen, interface) for net, interface in self.routes if ip in net)
        return max(matching, default=(0, ""))[1]

    def own(self, interface: str, version: int) -> IP | None:
        """The address with which the machine speaks through an interface: what masquerading puts in."""
        mine = [(name != interface, ip) for ip, name in self.addresses.items() if ip.version == version]
        return min(mine, key=lambda entry: entry[0])[1] if mine else None


class Flight:
    """Everything a rule may read or write. Addresses are numbers, as the elements of sets are."""

    __slots__ = (
        "counters", "ct_mark", "ct_state", "ct_status", "daddr", "decided", "dport", "dscp", "host", "icmp_code",
        "icmp_type", "iif", "l4proto", "mark", "oif", "original", "packet", "saddr", "sets", "settled", "sport",
        "tcp_flags", "tracked", "version",
    )  # fmt: skip

    def __init__(self, packet: Packet, interface: str, host: Host, sets: Callable[[str], Elements]) -> None:
        self.packet, self.host, self.sets = packet, host, sets
        self.version, self.l4proto = packet.version, packet.protocol
        self.saddr, self.daddr = int(packet.source), int(packet.destination)
        self.original = self.saddr, self.daddr
        ports = packet.protocol in WITH_PORTS
        self.sport = packet.source_port if ports else NO_PORT
        self.dport = packet.destination_port if ports else NO_PORT
        self.icmp_type, self.icmp_code = packet.icmp_type, packet.icmp_code
        self.iif, self.oif = interface, ""
        self.ct_state, self.tcp_flags = NEW, SYN
        self.mark = self.ct_status = self.ct_mark = self.dscp = 0
        self.tracked = False
        self.settled: set[str] = set()
        """The ends that NAT has decided about, whatever it has decided."""
        self.counters: Counter[str] = Counter()
        self.decided = ""
        """The comment of the rule that ended it, or of the one that led to there."""

    @property
    def source(self) -> IP:
        return IPv4Address(self.saddr) if self.version == 4 else IPv6Address(self.saddr)

    @property
    def destination(self) -> IP:
        return IPv4Address(self.daddr) if self.version == 4 else IPv6Address(self.daddr)

    @property
    def state(self) -> int:
        """As `ct state` reads it: before connection tracking there is none."""
        return self.ct_state if self.tracked or self.ct_state == UNTRACKED else INVALID

    @property
    def connection(self) -> bool:
        """Whether the packet belongs to a connection that the kernel knows by now."""
        return self.tracked and self.ct_state not in (UNTRACKED, INVALID)

    def translatable(self, end: str) -> bool:
        """Whether NAT may replace this end now: of a connection's first packet, once."""
        return self.tracked and self.ct_state == NEW and end not in self.settled

    def leave(self, end: str) -> None:
        """A hook is over in which NAT may have replaced this end."""
        self.tracked = True
        self.settled.add(end)

    def notrack(self) -> None:
        if not self.tracked:
            self.ct_state = UNTRACKED

    def translate(self, *, source: int | None = None, destination: int | None = None, port: int | None = None) -> None:
        """NAT of one end."""
        if source is not None:
            self.saddr, self.ct_status = source, self.ct_status | SNAT
            self.settled.add("source")
            self.sport = self.sport if port is None else port
        if destination is not None:
            self.daddr, self.ct_status = destination, self.ct_status | DNAT
            self.settled.add("destination")
            self.dport = self.dport if port is None else port


def host_of(state: DesiredState, addresses: Mapping[str, Iterable[IP]], uplink: str = "eth0") -> Host:
    """The machine that `state` is for: its pods are behind their interfaces, everything else behind `uplink`.

    `addresses` are the machine's own, by interface.
    """
    pods = tuple((host_net(ip), one.interface) for one in state.endpoints.values() for ip in one.ips)
    return Host({ip: name for name, ips in addresses.items() for ip in ips}, (*pods, *((net, uplink) for net in _ALL)))
