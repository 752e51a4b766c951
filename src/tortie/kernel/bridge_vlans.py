"""The VLANs of a bridge's port: which of them it carries, with tags or without, and which one untagged frames are of.

They count where the bridge has `vlan_filtering`; a kernel without it (CONFIG_BRIDGE_VLAN_FILTERING) refuses to change
them. Source: linux/if_bridge.h, IFLA_BRIDGE_VLAN_*.
"""

from __future__ import annotations

import errno
import struct

from tortie.base.errors import KernelError, NotFound, NotSupported
from tortie.base.record import record
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.codec import attributes
from tortie.kernel.netlink.tables import AF_BRIDGE, LINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK

LOWEST, HIGHEST = 1, 4094

_IFLA_AF_SPEC = 26  # linux/if_link.h
_IFLA_BRIDGE_VLAN_INFO = 2  # linux/if_bridge.h
_RTEXT_FILTER_BRVLAN = 1 << 1  # linux/rtnetlink.h
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 1 << 1, 1 << 2, 1 << 3, 1 << 4  # BRIDGE_VLAN_INFO_*
_ATTRIBUTE = struct.Struct("=HH")
_INFO = struct.Struct("=HH")  # struct bridge_vlan_info: flags, vid
_IFINFOMSG = 16  # bytes of struct ifinfomsg


@record(frozen=True, slots=True)
class Vlan:
    """A VLAN that a port carries. `pvid`: untagged frames that come in are of it; `untagged`: it goes out untagged."""

    vid: int
    pvid: bool = False
    untagged: bool = False


def list_vlans(nl: Netlink, index: int) -> list[Vlan]:
    """Those of the port with this index, in ascending order; none for what is no port."""
    body = LINK.pack({"ifi_family": AF_BRIDGE, "ext_mask": _RTEXT_FILTER_BRVLAN})
    found: list[Vlan] = []
    for message in nl.dump(RTM_GETLINK, body, "bridge vlan show"):
        payload = message.payload
        if len(payload) < _IFINFOMSG or struct.unpack_from("=4xi", payload)[0] != index:
            continue
        for _, spec in attributes(payload[_IFINFOMSG:], {_IFLA_AF_SPEC}):
            for _, info in attributes(spec, {_IFLA_BRIDGE_VLAN_INFO}):
                flags, vid = _INFO.unpack(info)
                found.append(Vlan(vid, bool(flags & _PVID), bool(flags & _UNTAGGED)))
    return sorted(found, key=lambda vlan: vlan.vid)


def add_vlan(nl: Netlink, index: int, vlan: Vlan) -> None:
    """The port carries the VLAN; how, is changed if it does already. Raises NotSupported, NotFound without the port."""
    flags = _PVID * vlan.pvid | _UNTAGGED * vlan.untagged
    words = f"bridge vlan add vid {vlan.vid} dev if{index}" + " pvid" * vlan.pvid + " untagged" * vlan.untagged
    _change(nl, RTM_SETLINK, index, [(flags, vlan.vid)], words)


def delete_all(nl: Netlink, index: int) -> None:
    """The port carries no VLAN at all. Raises NotSupported, NotFound without the port."""
    every = [(_RANGE_BEGIN, LOWEST), (_RANGE_END, HIGHEST)]
    _change(nl, RTM_DELLINK, index, every, f"bridge vlan del vid {LOWEST}-{HIGHEST} dev if{index}")


def _change(nl: Netlink, type: int, index: int, infos: list[tuple[int, int]], doing: str) -> None:
    nested = b"".join(_attribute(_IFLA_BRIDGE_VLAN_INFO, _INFO.pack(*info)) for info in infos)
    body = LINK.pack({"ifi_family": AF_BRIDGE, "ifi_index": index}) + _attribute(_IFLA_AF_SPEC, nested)
    try:
        nl.request(type, 0, body, doing)
    except KernelError as why:
        if why.errno == errno.EOPNOTSUPP:
            raise NotSupported(f"{doing}: this kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)") from None
        if why.errno == errno.ENODEV:
            raise NotFound(str(why)) from None
        raise


def _attribute(number: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), number) + value
