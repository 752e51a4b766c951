"""Addresses on links, IPv4 and IPv6 alike, as text with their prefix length: `10.0.0.1/24`, `fd00::1/64`."""

from __future__ import annotations

import errno

from tortie.base.errors import ConfigError, Exists, KernelError, NotFound
from tortie.base.record import record
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.codec import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from tortie.kernel.netlink.tables import (
    ADDRESS,
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_NEWADDR,
    SCOPES,
    scope_number,
)

TYPE_CHECKING = False  # as in netlink.codec
if TYPE_CHECKING:
    from collections.abc import Mapping


class AddressFlag:
    """IFA_F_* of linux/if_addr.h."""

    SECONDARY = 0x01  # of an IPv6 address: TEMPORARY
    NODAD = 0x02
    OPTIMISTIC = 0x04
    DADFAILED = 0x08
    HOMEADDRESS = 0x10
    DEPRECATED = 0x20
    TENTATIVE = 0x40
    PERMANENT = 0x80
    MANAGETEMPADDR = 0x100
    NOPREFIXROUTE = 0x200
    MCAUTOJOIN = 0x400
    STABLE_PRIVACY = 0x800


@record(frozen=True, slots=True)
class Address:
    """An address on the link with this index. `scope` is as `ip` says it; `peer` is the far end's, if it has one."""

    index: int
    ip: str
    scope: str = "global"
    flags: int = 0
    peer: str = ""

    @property
    def usable(self) -> bool:
        """Not still being probed for a duplicate, nor found to be one."""
        return not self.flags & (AddressFlag.TENTATIVE | AddressFlag.DADFAILED)


def decode(payload: bytes) -> Address:
    """The address in the body of an RTM_NEWADDR or RTM_DELADDR message."""
    values = ADDRESS.unpack(payload)
    ip = values.get("local") or values.get("address", "")
    far = values.get("address", "")
    length = values["ifa_prefixlen"]
    scope = values["ifa_scope"]
    return Address(
        index=values["ifa_index"],
        ip=f"{ip}/{length}",
        scope=SCOPES.get(scope, str(scope)),
        flags=values.get("flags", values["ifa_flags"]),
        peer=f"{far}/{length}" if far != ip else "",
    )


def list_addresses(nl: Netlink, index: int | None = None, *, family: int = AF_UNSPEC) -> list[Address]:
    """The addresses of the namespace, or of one link; none when there is no such link."""
    body = ADDRESS.pack({"ifa_family": family, "ifa_index": index or 0})
    doing = "ip address show" + (f" dev if{index}" if index else "")
    try:
        found = [decode(message.payload) for message in nl.dump(RTM_GETADDR, body, doing)]
    except KernelError as why:
        if why.errno == errno.ENODEV:
            return []
        raise
    return [address for address in found if index is None or address.index == index]


def add_address(
    nl: Netlink,
    index: int,
    ip: str,
    *,
    scope: str = "global",
    nodad: bool = False,
    noprefixroute: bool = False,
    peer: str = "",
    replace: bool = False,
) -> None:
    """Adds an address to the link with this index. `nodad`: an IPv6 one is usable at once, not probed for duplicates.

    Raises Exists, unless `replace`; NotFound without the link; ConfigError when the text is no address.
    """
    flags = AddressFlag.NODAD * nodad | AddressFlag.NOPREFIXROUTE * noprefixroute
    values = {"ifa_scope": scope_number(scope), "flags": flags or None}
    words = f"scope {scope}" + " nodad" * nodad + " noprefixroute" * noprefixroute
    how = NLM_F_REPLACE if replace else NLM_F_EXCL
    doing = f"ip address {'replace' if replace else 'add'} {_words(ip, peer)} dev if{index} {words}"
    _ask(nl, RTM_NEWADDR, NLM_F_CREATE | how, {**_body(index, ip, peer), **values}, doing)


def delete_address(nl: Netlink, index: int, ip: str, *, peer: str = "") -> None:
    """Deletes an address. Raises NotFound without the address or the link."""
    _ask(nl, RTM_DELADDR, 0, _body(index, ip, peer), f"ip address delete {_words(ip, peer)} dev if{index}")


def _words(ip: str, peer: str) -> str:
    return f"{ip.partition('/')[0]} peer {peer}" if peer else ip


def _body(index: int, ip: str, peer: str) -> dict[str, int | str]:
    local, _, length = ip.partition("/")
    far, _, far_length = peer.partition("/")
    family, bits = (AF_INET6, 128) if ":" in local else (AF_INET, 32)
    length = far_length if far else length
    if length and not (length.isdecimal() and int(length) <= bits):
        raise ConfigError(f'"{peer or ip}" does not end in a prefix length of 0 to {bits}')
    return {
        "ifa_family": family,
        "ifa_prefixlen": int(length) if length else bits,
        "ifa_index": index,
        "local": local,
        "address": far or local,
    }


def _ask(nl: Netlink, type: int, flags: int, values: Mapping[str, int | str | None], doing: str) -> None:
    try:
        body = ADDRESS.pack(values)
    except ValueError as why:
        raise ConfigError(str(why), doing) from None
    try:
        nl.request(type, flags, body, doing)
    except KernelError as why:
        if why.errno in (errno.ENODEV, errno.EADDRNOTAVAIL):
            raise NotFound(str(why)) from None
        if why.errno == errno.EEXIST:
            raise Exists(str(why)) from None
        raise
