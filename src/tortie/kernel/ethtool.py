"""What a link leaves to its hardware, by the names that `ethtool -k` has: read, and switched on or off.

    names of features ─► the bit of one ─► GFEATURES / SFEATURES

The kernel's names are asked for each time: the bits differ from kernel to kernel. Source: linux/ethtool.h.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
from fcntl import ioctl

from tortie.base.errors import KernelError, NotFound, NotSupported
from tortie.kernel.netns import entered

CHECKSUMS = "tx-checksum-ip-generic"
"""Checksums of what is sent: of TCP and UDP, of either IP version, and of what is inside of a tunnel."""

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_SS_FEATURES = 4
_NAME_BYTES = 32
_SSET_INFO = struct.Struct("=IIQI")  # cmd, reserved, sset_mask, one count
_STRINGS = struct.Struct("=III")  # cmd, string_set, len; the names follow
_FEATURES = struct.Struct("=II")  # cmd, size; blocks of 32 bits follow
_GET_BLOCK = struct.Struct("=IIII")  # available, requested, active, never_changed
_SET_BLOCK = struct.Struct("=II")  # valid, requested
_IFREQ = struct.Struct("=16sQ16x")


def feature(link: str, name: str, *, netns: str | int | None = None) -> bool:
    """Whether it is on. Raises NotFound, NotSupported for a feature that this kernel does not know, KernelError."""
    with entered(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        block, bit, blocks = _place(sock, link, name)
        blank = _FEATURES.pack(_GFEATURES, blocks) + bytes(blocks * _GET_BLOCK.size)
        answer = _ask(sock, link, blank, f"ethtool -k {link}")
        _, _, active, _ = _GET_BLOCK.unpack_from(answer, _FEATURES.size + block * _GET_BLOCK.size)
        return bool(active & bit)


def set_feature(link: str, name: str, on: bool, *, netns: str | int | None = None) -> None:
    """Raises as `feature` does, and NotSupported where the link cannot have it so."""
    doing = f"ethtool -K {link} {name} {'on' if on else 'off'}"
    with entered(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        block, bit, blocks = _place(sock, link, name)
        wanted = [(0, 0)] * blocks
        wanted[block] = (bit, bit if on else 0)
        words = b"".join(_SET_BLOCK.pack(*one) for one in wanted)
        _ask(sock, link, _FEATURES.pack(_SFEATURES, blocks) + words, doing)
    if feature(link, name, netns=netns) != on:
        raise NotSupported(f"{doing}: {link} does not let it be changed")


def _place(sock: socket.socket, link: str, name: str) -> tuple[int, int, int]:
    """The block that a feature is in, its bit there, and how many blocks there are."""
    doing = f"ethtool -k {link}"
    answer = _ask(sock, link, _SSET_INFO.pack(_GSSET_INFO, 0, 1 << _SS_FEATURES, 0), doing)
    count = _SSET_INFO.unpack(answer)[3]
    blank = _STRINGS.pack(_GSTRINGS, _SS_FEATURES, count) + bytes(count * _NAME_BYTES)
    words = _ask(sock, link, blank, doing)[_STRINGS.size :]
    names = [words[at : at + _NAME_BYTES].partition(b"\0")[0].decode() for at in range(0, len(words), _NAME_BYTES)]
    if name not in names:
        raise NotSupported(f"{doing}: this kernel does not know {name}")
    index = names.index(name)
    return index // 32, 1 << index % 32, (count + 31) // 32


def _ask(sock: socket.socket, link: str, request: bytes, doing: str) -> bytes:
    """The request as the kernel leaves it."""
    data = array.array("B", request)
    try:
        ioctl(sock, _SIOCETHTOOL, _IFREQ.pack(link.encode(), data.buffer_info()[0]))
    except OSError as why:
        if why.errno == errno.ENODEV:
            raise NotFound(f"{doing}: there is no link {link}") from None
        raise KernelError(why.errno or errno.EIO, doing) from None
    return data.tobytes()
