"""What this kernel can do, found by trying in a namespace of its own that goes again; modules are loaded by that."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tortie.base.errors import Exists, KernelError
from tortie.kernel import links, netns, nft
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.codec import NLM_F_CREATE
from tortie.kernel.netlink.tables import RTM_NEWQDISC, TC, TC_H_ROOT

LINK_KINDS = ("vxlan", "ipip", "wireguard")
"""Kinds of links that are tried."""
_DATA = {"vxlan": {"id": 4096, "port": links.IANA_VXLAN_PORT}}
_NEVER = (errno.EOPNOTSUPP, errno.ENOENT, errno.ENODEV)
_PROBE_TABLE = """table inet tortie-doctor {
  chain c {
    type filter hook forward priority 0
    ct state invalid drop
  }
}
"""
_PROBE_FLOW_TABLE = """add table inet tortie-doctor
add flowtable inet tortie-doctor f { hook ingress priority 0; devices = { lo }; }
add chain inet tortie-doctor c { type filter hook forward priority 0; }
add rule inet tortie-doctor c ct state established flow add @f
"""
_BTF = Path("/sys/kernel/btf/vmlinux")
_IP_VS = (Path("/proc/net/ip_vs"), Path("/sys/module/ip_vs"))


def features() -> dict[str, bool]:
    """By name: nft, the LINK_KINDS, netem, ip_vs, BTF, flow tables.

    Raises KernelError for who may not make a namespace."""
    found = {"nft": nft.takes(_PROBE_TABLE)}

    def look() -> None:
        with Netlink() as nl:
            found.update({kind: _has_kind(nl, kind) for kind in LINK_KINDS})
            found["netem"] = _has_netem(nl)

    try:
        netns.apart(look)
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, "unshare --net") from None
    return found | {"ip_vs": _has_ip_vs(), "BTF": _BTF.exists(), "flow tables": has_flow_tables()}


def has_flow_tables() -> bool:
    """Whether nftables can be told of connections that go past it; the modules are loaded by that."""
    return nft.takes(_PROBE_FLOW_TABLE)


def has_link_kind(kind: str) -> bool:
    """Whether links of a kind can be made here; its module is loaded by that. Raises KernelError."""
    found: list[bool] = []

    def look() -> None:
        with Netlink() as nl:
            found.append(_has_kind(nl, kind))

    try:
        netns.apart(look)
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, "unshare --net") from None
    return found[0]


def _has_kind(nl: Netlink, kind: str) -> bool:
    try:
        links.create_link(nl, "probe0", kind, _DATA.get(kind))
        links.delete_link(nl, "probe0")
    except Exists:
        return True
    except KernelError as error:
        return error.errno not in _NEVER
    return True


def _has_netem(nl: Netlink) -> bool:
    """Without options, which netem refuses; a kernel that lacks it says so before it looks at them."""
    values = {"tcm_ifindex": links.link_index(nl, "lo"), "tcm_parent": TC_H_ROOT, "kind": "netem"}
    try:
        nl.request(RTM_NEWQDISC, NLM_F_CREATE, TC.pack(values), "tc qdisc add dev lo root netem")
    except KernelError as error:
        return error.errno not in _NEVER
    return True


def _has_ip_vs() -> bool:
    if any(path.exists() for path in _IP_VS):
        return True
    modules = Path("/lib/modules") / os.uname().release
    try:
        return "/ip_vs.ko" in (modules / "modules.dep").read_text() + (modules / "modules.builtin").read_text()
    except OSError:
        return False
