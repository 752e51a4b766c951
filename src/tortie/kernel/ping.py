"""Echo requests of any size that no router may cut to pieces: does it answer, and how large may a packet be?"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import time

from tortie.base.addr import IP

TIMEOUT = 0.7
"""Seconds for an answer; between nodes of a cluster it takes a few milliseconds."""
TRIES = 2
LEAST = {4: 576, 6: 1280}
"""Bytes of a packet that every IPv4 host and every IPv6 link must carry (RFC 791, RFC 8200)."""

_HEADERS = {4: 28, 6: 48}  # IP and ICMP
_ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_REQUEST = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _IPV6_DONTFRAG, _PROBE = 10, 23, 62, 3  # linux/in.h, linux/in6.h
_serial = itertools.count(1)


def answers(ip: IP, source: IP | None = None, size: int = 84, tries: int = TRIES, timeout: float = TIMEOUT) -> bool:
    """Whether `ip` answers an echo request of `size` bytes, IP header included. Raises OSError where none can be sent;
    False for one that is larger than the link it would leave by."""
    version = ip.version
    identifier, sequence = os.getpid() & 0xFFFF, next(_serial) & 0xFFFF
    with _socket(version, source) as sock:
        packet = _request(version, identifier, sequence, max(0, size - _HEADERS[version]))
        for _ in range(tries):
            try:
                sock.sendto(packet, (str(ip), 0))
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    return False
                raise
            if _heard(sock, ip, identifier, sequence, time.monotonic() + timeout):
                return True
    return False


def largest(ip: IP, source: IP | None, most: int) -> int:
    """Bytes of the largest packet up to `most` that gets there uncut, and back; 0 when not even the least does."""
    least = LEAST[ip.version]
    if answers(ip, source, most):
        return most
    if most <= least or not answers(ip, source, least):
        return 0
    low, high = least, most
    while high - low > 1:
        middle = (low + high) // 2
        if answers(ip, source, middle, tries=1, timeout=0.3):
            low = middle
        else:
            high = middle
    return low


def _socket(version: int, source: IP | None) -> socket.socket:
    if version == 4:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PROBE)
    else:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PROBE)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
    if source is not None:
        try:
            sock.bind((str(source), 0))
        except OSError:
            sock.close()
            raise
    return sock


def _request(version: int, identifier: int, sequence: int, length: int) -> bytes:
    """With its checksum, which for IPv6 the kernel fills in."""
    body = bytes(length)
    head = _ECHO.pack(_REQUEST[version], 0, 0, identifier, sequence)
    if version == 6:
        return head + body
    return _ECHO.pack(_REQUEST[4], 0, checksum(head + body), identifier, sequence) + body


def checksum(data: bytes) -> int:
    """The Internet's (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _heard(sock: socket.socket, ip: IP, identifier: int, sequence: int, deadline: float) -> bool:
    """A raw socket hears every echo reply of the machine: ours is told by its sender and its numbers."""
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            data, sender = sock.recvfrom(1 << 16)
        except OSError:  # no answer in time, or the kernel has heard an ICMP error
            return False
        if ip.version == 4:
            data = data[(data[0] & 0xF) * 4 :]
        if sender[0].partition("%")[0] == str(ip) and len(data) >= _ECHO.size:
            kind, _, _, *numbers = _ECHO.unpack_from(data)
            if kind == _REPLY[ip.version] and numbers == [identifier, sequence]:
                return True
    return False
