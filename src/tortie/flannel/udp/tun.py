"""The TUN device of the proxy, which stays, with its addresses and routes, when nobody reads it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from fcntl import ioctl

from tortie.base.errors import Exists, KernelError, NotSupported
from tortie.kernel import links
from tortie.kernel.links import Link
from tortie.kernel.netlink import Netlink

DEVICE = "/dev/net/tun"
NAMES = tuple(f"flannel{number}" for number in range(32))
"""What flanneld calls its device: the first of these that is not another's."""

# linux/if_tun.h
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
IFREQ = struct.Struct("16sH22x")  # name and flags of struct ifreq (linux/if.h)


def candidates(there: Mapping[str, Link], alias: str) -> Iterator[str]:
    """Names to try, in this order: the device that has our alias; one that is not there, or that has none: what a
    daemon left before it said whose it is."""
    own = [link.name for link in there.values() if link.kind == "tun" and link.alias == alias]
    yield from own
    for name in NAMES if not own else ():
        link = there.get(name)
        if link is None or (link.kind == "tun" and not link.alias):
            yield name


def open_device(alias: str) -> tuple[int, str]:
    """The device, made if there is none, and its name. In the network namespace of this thread.

    Raises Exists when somebody else reads it, NotSupported, KernelError.
    """
    with Netlink() as nl:
        there = {link.name: link for link in links.list_links(nl)}
        busy = ""
        for name in candidates(there, alias):
            try:
                fd = _open(name)
            except BlockingIOError:
                busy = busy or name
                continue
            if name not in there or there[name].alias != alias:
                links.set_alias(nl, name, alias)
            return fd, name
    raise Exists(f"{busy or NAMES[0]} is in use by another program: stop it, or remove the device")


def _open(name: str) -> int:
    """Raises BlockingIOError when somebody reads it."""
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise NotSupported(f"this kernel has no {DEVICE}: modprobe tun, or choose another backend") from None
        raise KernelError(error.errno or 0, f"open {DEVICE}") from None
    try:
        ioctl(fd, TUNSETIFF, IFREQ.pack(name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
        ioctl(fd, TUNSETPERSIST, 1)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EBUSY:
            raise BlockingIOError(error.errno, os.strerror(error.errno)) from None
        raise KernelError(error.errno or 0, f"ip tuntap add dev {name} mode tun vnet_hdr") from None
    return fd
