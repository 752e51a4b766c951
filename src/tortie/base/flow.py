"""A flow as connection tracking knows it: who opened it, to whom, and where its replies come from."""

from __future__ import annotations

from dataclasses import dataclass, field

from tortie.base.addr import IP

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
PROTOCOLS = {ICMP: "icmp", TCP: "tcp", UDP: "udp", 33: "dccp", 47: "gre", ICMP6: "icmpv6", 132: "sctp", 136: "udplite"}
"""In the words of conntrack(8), by number (IANA)."""


@dataclass(frozen=True, slots=True)
class Way:
    """One direction of a flow. Ports are 0 where the protocol has none; the ICMP fields are those of a request."""

    source: IP
    destination: IP
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    icmp_type: int = 0
    icmp_code: int = 0
    icmp_id: int = 0


@dataclass(frozen=True, slots=True)
class Flow:
    """`opened` is the direction of the first packet as it was sent, `reply` that of the answers as they come back:
    where an address was translated on the way, one is not the other turned round.

    `related` is one that another flow has announced, such as the data of FTP. `number` is the kernel's for this entry.
    `answered`: a reply was seen.
    """

    opened: Way
    reply: Way
    related: bool = False
    zone: int = 0
    number: int = 0
    answered: bool = field(default=False, compare=False)

    @property
    def arrival(self) -> Way:
        """The first packet after destinations are translated and before sources are: as policy saw it."""
        opened, reply = self.opened, self.reply
        return Way(
            opened.source,
            reply.source,
            opened.protocol,
            opened.source_port,
            reply.source_port,
            opened.icmp_type,
            opened.icmp_code,
            opened.icmp_id,
        )

    def __str__(self) -> str:
        """What deletes it, as conntrack(8) has it."""
        way = self.opened
        words = [f"conntrack -D -p {PROTOCOLS.get(way.protocol, way.protocol)} -s {way.source} -d {way.destination}"]
        if way.source_port or way.destination_port:
            words.append(f"--sport {way.source_port} --dport {way.destination_port}")
        if way.protocol in (ICMP, ICMP6):
            words.append(f"--icmp-type {way.icmp_type} --icmp-code {way.icmp_code} --icmp-id {way.icmp_id}")
        if self.zone:
            words.append(f"--zone {self.zone}")
        return " ".join(words)
