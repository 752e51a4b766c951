"""One try to open a TCP connection, and what came of it: how far away a BGP peer that does not answer is.

    SYN ─► nothing        silent        dropped on the way, or there: a firewall, a signature (MD5), a TTL
        ─► RST            refused       the machine is there, and nobody listens
        ─► ICMP           unreachable   a router, or our own neighbour table, says so
        ─► SYN+ACK, FIN   closed        somebody listens, and will not have us
        ─► SYN+ACK, ...   open          and acknowledges our FIN
                          deaf          and does not

Blocks, for `timeout` and twice `LISTEN` seconds at most. Nothing but its end is ever said over a connection.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from contextlib import suppress

from tortie.base.addr import IP
from tortie.base.dialled import Answer, Dialled

TIMEOUT = 1.2
"""Seconds for an answer: the kernel sends its second SYN after one."""
LISTEN = 0.3
"""Seconds in which a peer that does not want us hangs up."""

_TCP_MD5SIG = 14  # linux/tcp.h
_FIN_WAIT1 = 4  # TCP_FIN_WAIT1 (include/net/tcp_states.h); tcpi_state is the first byte of struct tcp_info
_MD5_KEY_BYTES = 80  # TCP_MD5SIG_MAXKEYLEN
_SOCKADDR_STORAGE = 128
_SIGNATURE = struct.Struct(f"={_SOCKADDR_STORAGE}sBBHi{_MD5_KEY_BYTES}s")  # struct tcp_md5sig
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
_GONE = (errno.ECONNRESET, errno.EPIPE)


def dial(
    ip: IP,
    port: int,
    *,
    source: IP | None = None,
    ttl: int | None = None,
    password: str | None = None,
    timeout: float = TIMEOUT,
) -> Answer:
    """Connects from `source` (None: the kernel's choice), every packet with this TTL, signed with the password."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            _prepare(sock, ip, source, ttl, password)
            sock.settimeout(timeout)
            sock.connect((str(ip), port))
        except TimeoutError:
            return Answer(Dialled.SILENT)
        except ConnectionRefusedError:
            return Answer(Dialled.REFUSED)
        except OSError as error:
            words = error.strerror or str(error)
            if error.errno in _GONE:
                return Answer(Dialled.CLOSED, words)
            return Answer(Dialled.UNREACHABLE if error.errno in _UNREACHABLE else Dialled.FAILED, words)
        return _listen(sock)


def _prepare(sock: socket.socket, ip: IP, source: IP | None, ttl: int | None, password: str | None) -> None:
    if ttl is not None:
        if ip.version == 4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
    if password is not None:
        key = password.encode()[:_MD5_KEY_BYTES]
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_MD5SIG, _SIGNATURE.pack(_address(ip), 0, 0, len(key), 0, key))
    if source is not None:
        sock.bind((str(source), 0))


def _address(ip: IP) -> bytes:
    """struct sockaddr_in or sockaddr_in6 without a port."""
    if ip.version == 4:
        return struct.pack("=HH", socket.AF_INET, 0) + ip.packed
    return struct.pack("=HHI", socket.AF_INET6, 0, 0) + ip.packed


def _listen(sock: socket.socket) -> Answer:
    """Whether who accepted stays: it says something, or at least does not hang up."""
    sock.settimeout(LISTEN)
    try:
        if not sock.recv(1):
            return Answer(Dialled.CLOSED)
    except TimeoutError:
        pass
    except OSError as error:
        return Answer(Dialled.CLOSED, error.strerror or "")
    try:
        return Answer(Dialled.OPEN if _is_heard(sock) else Dialled.DEAF)
    finally:
        with suppress(OSError):  # end with a reset: nothing of this stays, here or there
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _is_heard(sock: socket.socket) -> bool:
    """Whether the far end's kernel acknowledges our end of the connection."""
    with suppress(OSError):  # it is gone already, by a reset
        sock.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + LISTEN
    while time.monotonic() < deadline:
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _FIN_WAIT1:
            return True
        time.sleep(0.02)
    return False
