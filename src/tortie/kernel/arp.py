"""Who else has an IPv4 address of ours: an ARP probe, which no neighbour remembers (RFC 5227, 2.1.1)."""

from __future__ import annotations

import select
import socket
import struct
import time
from ipaddress import IPv4Address

TIMEOUT = 0.5
"""Seconds for an answer; two probes are sent in them."""

_ETH_P_ARP = 0x0806  # linux/if_ether.h
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")  # ethernet header and ARP for IPv4 over ethernet
_REQUEST, _REPLY = 1, 2
_BROADCAST = b"\xff" * 6


def others(ip: IPv4Address, interface: str, mac: str, timeout: float = TIMEOUT) -> frozenset[str]:
    """The MAC addresses that answer for `ip` on a link, whose own is `mac`. Raises OSError for a link without ARP."""
    own = bytes.fromhex(mac.replace(":", ""))
    probe = _FRAME.pack(_BROADCAST, own, _ETH_P_ARP, 1, 0x0800, 6, 4, _REQUEST, own, bytes(4), bytes(6), ip.packed)
    found: set[str] = set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP)) as sock:
        sock.bind((interface, _ETH_P_ARP))
        began = time.monotonic()
        for part in (1, 2):
            sock.send(probe)
            deadline = began + timeout * part / 2
            while (left := deadline - time.monotonic()) > 0 and select.select([sock], [], [], left)[0]:
                found |= _claims(sock.recv(128), ip, own)
    return frozenset(found)


def _claims(frame: bytes, ip: IPv4Address, own: bytes) -> set[str]:
    """Who says in this frame that the address is his: in a reply, a request or an announcement."""
    if len(frame) < _FRAME.size:
        return set()
    *_, sender, address, _, _ = _FRAME.unpack_from(frame)
    return {sender.hex(":")} if address == ip.packed and sender != own else set()
