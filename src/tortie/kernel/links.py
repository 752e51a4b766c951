"""Network links: what is there, and making, changing, moving and deleting them.

A link is given by name, or by index where one is at hand. One that is not there is NotFound, whatever was asked of it.
"""

from __future__ import annotations

import _socket as socket  # as in netlink.codec
import _struct as struct
import errno
import os

from tortie.base.errors import Exists, KernelError, NotFound
from tortie.base.record import field, record
from tortie.kernel import netns as namespaces
from tortie.kernel.netlink import Netlink, Request
from tortie.kernel.netlink.codec import NLM_F_CREATE, NLM_F_EXCL, TEXT, attributes
from tortie.kernel.netlink.tables import (
    IFF_ALLMULTI,
    IFF_LOWER_UP,
    IFF_PROMISC,
    IFF_UP,
    LINK,
    NETKIT_L2,
    NETKIT_PASS,
    OPERSTATES,
    RTEXT_FILTER_SKIP_STATS,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
    RTM_SETLINK,
)

TYPE_CHECKING = False  # as in netlink.codec
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

IANA_VXLAN_PORT = 4789  # RFC 7348; the kernel's own default is 8472
_STATE = struct.Struct("=4xiI4x")  # ifi_index and ifi_flags of struct ifinfomsg (linux/rtnetlink.h)
_IFLA_IFNAME = frozenset({3})
_IFINFOMSG = struct.Struct("=4xi8x")  # ifi_index of struct ifinfomsg (linux/rtnetlink.h)
LONGEST_NAME = 15  # IFNAMSIZ (linux/if.h) less the NUL


@record(frozen=True, slots=True)
class Link:
    """A link as the kernel tells of it. Indexes are 0 where there is none.

    `parent` is the link below (vlan, macvlan, vxlan) or a veth's peer, an index in the namespace `peer_netns` (an id
    that only means something in the namespace that was asked; None: the same namespace). `info` is the kind's own
    settings under the kernel's names: `id`, `local`, `port` of a vxlan, `mode` of a macvlan. `port` is those of a
    bridge's port.
    """

    index: int
    name: str
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    up: bool = False
    carrier: bool = False
    operstate: str = "UNKNOWN"
    master: int = 0
    parent: int = 0
    peer_netns: int | None = None
    alias: str = ""
    promisc: bool = False
    info: Mapping[str, Any] = field(default_factory=dict, hash=False)
    port: Mapping[str, Any] = field(default_factory=dict, hash=False)
    allmulti: bool = False
    txqlen: int = 0


def decode(payload: bytes) -> Link:
    """The link in the body of an RTM_NEWLINK or RTM_DELLINK message."""
    values = LINK.unpack(payload)
    info = values.get("linkinfo", {})
    data, port = info.get("data"), info.get("slave_data")
    state = values.get("operstate", 0)
    return Link(
        index=values["ifi_index"],
        name=values.get("ifname", ""),
        kind=info.get("kind", ""),
        mac=values.get("address", ""),
        mtu=values.get("mtu", 0),
        up=bool(values["ifi_flags"] & IFF_UP),
        carrier=bool(values["ifi_flags"] & IFF_LOWER_UP),
        operstate=OPERSTATES[state] if state < len(OPERSTATES) else str(state),
        master=values.get("master", 0),
        parent=values.get("link", 0) or (data.get("link", 0) if isinstance(data, dict) else 0),  # a tunnel's is there
        peer_netns=values.get("link_netnsid"),
        alias=values.get("ifalias", ""),
        promisc=bool(values["ifi_flags"] & IFF_PROMISC),
        info=data if isinstance(data, dict) else {},
        port=port if isinstance(port, dict) else {},
        allmulti=bool(values["ifi_flags"] & IFF_ALLMULTI),
        txqlen=values.get("txqlen", 0),
    )


def state(payload: bytes) -> tuple[int, str, bool]:
    """Index, name, and whether it is up, of the link in such a message: a tenth of the time that all of it takes."""
    index, flags = _STATE.unpack_from(payload)
    name = next((value for _, value in attributes(payload[_STATE.size :], _IFLA_IFNAME)), b"")
    return index, TEXT.unpack(name), bool(flags & IFF_UP)


# --- asking -------------------------------------------------------------------------------------------------------


def list_links(nl: Netlink, *, kind: str = "", master: int = 0) -> list[Link]:
    """The links of the namespace in the order of their indexes, if wanted only those of a kind or on a bridge."""
    body = LINK.pack(
        {
            "ext_mask": RTEXT_FILTER_SKIP_STATS,
            "master": master or None,
            "linkinfo": {"kind": kind} if kind else None,
        }
    )
    every = (decode(message.payload) for message in nl.dump(RTM_GETLINK, body, "ip link show"))
    # The kernel does not filter by a kind of which it has not loaded the driver.
    found = (link for link in every if (not kind or link.kind == kind) and (not master or link.master == master))
    return sorted(found, key=lambda link: link.index)


def names(netns: str | int | None = None) -> dict[int, str]:
    """The names by index, and nothing else: a tenth of the time that `list_links` takes. `netns` is a path or a
    descriptor; None is the calling thread's."""
    with namespaces.entered(netns):
        return dict(socket.if_nameindex())


def index_here(name: str) -> int:
    """The index of a link in the calling thread's namespace; 0 when it is not there."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def get_link(nl: Netlink, link: str | int) -> Link:
    """One link by name or index. Raises NotFound."""
    return decode(_get(nl, link))


def link_index(nl: Netlink, name: str) -> int:
    """The index of a link. Raises NotFound."""
    return int(_IFINFOMSG.unpack_from(_get(nl, name))[0])


def _get(nl: Netlink, link: str | int) -> bytes:
    values = {**_which(link), "ext_mask": RTEXT_FILTER_SKIP_STATS}
    return _ask(nl, RTM_GETLINK, 0, values, f"ip link show {_word(link)}")[0]


# --- making -------------------------------------------------------------------------------------------------------


def create_link(
    nl: Netlink,
    name: str,
    kind: str,
    data: Mapping[str, Any] | None = None,
    *,
    parent: int = 0,
    parent_netns: int | None = None,
    netns: int | None = None,
    mtu: int = 0,
    mac: str = "",
    num_queues: int = 0,
) -> None:
    """Makes a link of any kind. Raises Exists.

    `data` is the kind's settings under the names of `tables.LINK_DATA`. `parent` is the index of the link below (in the
    namespace with the id `parent_netns`), `netns` a descriptor of the namespace to make it in. Zeroes mean the kernel's
    choice.
    """
    values = {
        "ifname": name,
        "link": parent or None,
        "link_netnsid": parent_netns,
        "net_ns_fd": netns,
        **_settings(mtu, mac, num_queues),
        "linkinfo": {"kind": kind, "data": data or None},
    }
    doing = f"ip link add {name}" + (f" link {_word(parent)}" if parent else "") + f" type {kind}"
    try:
        _ask(nl, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, values, doing)
    except NotFound as why:  # ENODEV: not this link, which is new, but the one below
        raise KernelError(errno.ENODEV, doing, str(why).removeprefix(f"{doing}: ")) from None


def create_veth(
    nl: Netlink,
    name: str,
    peer: str,
    *,
    peer_netns: int | None = None,
    mtu: int = 0,
    num_queues: int = 1,
    mac: str = "",
    peer_mac: str = "",
) -> None:
    """A pair of links, the peer in the namespace whose descriptor is given. Raises Exists when either name is taken."""
    other = {"ifname": peer, "net_ns_fd": peer_netns, **_settings(mtu, peer_mac, num_queues)}
    create_link(nl, name, "veth", {"peer": other}, mtu=mtu, mac=mac, num_queues=num_queues)


def create_netkit(
    nl: Netlink,
    name: str,
    peer: str,
    *,
    peer_netns: int | None = None,
    mtu: int = 0,
    num_queues: int = 1,
    mac: str = "",
    peer_mac: str = "",
) -> None:
    """The same as `create_veth` of netkit, with Ethernet headers and passing everything: `name` is the primary.

    Raises KernelError with EOPNOTSUPP by a kernel that has none.
    """
    other = {"ifname": peer, "net_ns_fd": peer_netns, **_settings(mtu, peer_mac, num_queues)}
    data = {"peer": other, "mode": NETKIT_L2, "policy": NETKIT_PASS, "peer_policy": NETKIT_PASS}
    create_link(nl, name, "netkit", data, mtu=mtu, mac=mac, num_queues=num_queues)


def create_bridge(nl: Netlink, name: str, mtu: int = 0, *, mac: str = "", vlan_filtering: bool = False) -> None:
    """A bridge. Its MTU is the one given until a port joins, then its smallest port's, unless `set_mtu` is used."""
    create_link(nl, name, "bridge", {"vlan_filtering": 1} if vlan_filtering else None, mtu=mtu, mac=mac)


def create_vxlan(
    nl: Netlink,
    name: str,
    vni: int,
    local: str = "",
    port: int = IANA_VXLAN_PORT,
    parent: int = 0,
    *,
    mtu: int = 0,
    mac: str = "",
    learning: bool = False,
    gbp: bool = False,
    udp_csum: bool | None = None,
) -> None:
    """A VXLAN tunnel to whomever its forwarding entries name. `parent` is the index of the link it goes out of."""
    data = {
        "id": vni,
        "link": parent or None,
        "local6" if ":" in local else "local": local or None,
        "port": port,
        "learning": int(learning),
        "gbp": gbp,
        "udp_csum": None if udp_csum is None else int(udp_csum),
    }
    create_link(nl, name, "vxlan", data, mtu=mtu, mac=mac)


def delete_link(nl: Netlink, link: str | int) -> None:
    """Deletes a link, and its peer if it is one of a pair. Raises NotFound."""
    _ask(nl, RTM_DELLINK, 0, _which(link), f"ip link delete {_word(link)}")


def delete_links(nl: Netlink, every: Sequence[str | int]) -> None:
    """Deletes many links and their peers in one step: the kernel waits once for all of them. Those that are not there
    are passed over. Raises KernelError, EOPNOTSUPP when one of them cannot be deleted; then all are there.

    They are put into a group of their own first, under a number that nobody else has chosen.
    """
    group = int.from_bytes(os.urandom(4), "big") >> 1 | 1 << 30  # those that people give by hand are small
    words = f"group {group}"
    joining = [
        Request(RTM_SETLINK, 0, LINK.pack({**_which(one), "group": group}), f"ip link set {_word(one)} {words}")
        for one in every
    ]
    if len(nl.batch(joining)) < len(every):
        _ask(nl, RTM_DELLINK, 0, {"group": group}, f"ip link delete {words}")


# --- changing -----------------------------------------------------------------------------------------------------


def set_up(nl: Netlink, link: str | int) -> None:
    _set(nl, link, {"ifi_flags": IFF_UP, "ifi_change": IFF_UP}, "up")


def set_down(nl: Netlink, link: str | int) -> None:
    _set(nl, link, {"ifi_flags": 0, "ifi_change": IFF_UP}, "down")


def set_promisc(nl: Netlink, link: str | int, on: bool) -> None:
    _set(nl, link, {"ifi_flags": IFF_PROMISC * on, "ifi_change": IFF_PROMISC}, f"promisc {'on' if on else 'off'}")


def set_allmulti(nl: Netlink, link: str | int, on: bool) -> None:
    values = {"ifi_flags": IFF_ALLMULTI * on, "ifi_change": IFF_ALLMULTI}
    _set(nl, link, values, f"allmulticast {'on' if on else 'off'}")


def set_txqlen(nl: Netlink, link: str | int, packets: int) -> None:
    """How many packets may wait to be sent."""
    _set(nl, link, {"txqlen": packets}, f"txqueuelen {packets}")


def set_mac(nl: Netlink, link: str | int, mac: str) -> None:
    _set(nl, link, {"address": mac}, f"address {mac}")


def set_mtu(nl: Netlink, link: str | int, mtu: int) -> None:
    _set(nl, link, {"mtu": mtu}, f"mtu {mtu}")


def set_alias(nl: Netlink, link: str | int, alias: str) -> None:
    """The alias, a note of up to 255 bytes that stays with the link; empty takes it away."""
    _set(nl, link, {"ifalias": alias}, f'alias "{alias}"')


def set_master(nl: Netlink, link: str | int, bridge: str | int | None) -> None:
    """Makes the link a port of the bridge (name or index), or of none."""
    index = 0 if bridge is None else bridge if isinstance(bridge, int) else link_index(nl, bridge)
    _set(nl, link, {"master": index}, f"master {_word(bridge)}" if bridge else "nomaster")


def set_bridge_port(nl: Netlink, link: str | int, **settings: bool) -> None:
    """Settings of a bridge's port: `hairpin`, `learning`, `isolated`, ... as in `tables.IFLA_BRIDGE_PORT`."""
    data = {name: int(on) for name, on in settings.items()}
    words = " ".join(f"{name} {'on' if on else 'off'}" for name, on in settings.items())
    info = {"slave_kind": "bridge", "slave_data": data}
    # Only RTM_NEWLINK looks at a port's settings; without NLM_F_CREATE it makes nothing.
    _ask(nl, RTM_NEWLINK, 0, {**_which(link), "linkinfo": info}, f"ip link set {_word(link)} type bridge_slave {words}")


def rename(nl: Netlink, link: str | int, name: str) -> None:
    """Gives the link another name. Raises Exists."""
    values = {"ifi_index": _index(nl, link), "ifname": name}
    _ask(nl, RTM_SETLINK, 0, values, f"ip link set {_word(link)} name {name}")


def move(nl: Netlink, link: str | int, netns: int, new_name: str | None = None) -> None:
    """Moves the link into the namespace (descriptor), where it is down and without addresses, if wanted renamed.

    Raises Exists when its name is taken there.
    """
    doing = f"ip link set {_word(link)} netns /proc/self/fd/{netns}" + (f" name {new_name}" if new_name else "")
    _ask(nl, RTM_SETLINK, 0, {"ifi_index": _index(nl, link), "net_ns_fd": netns, "ifname": new_name}, doing)


# --- the request they all make ------------------------------------------------------------------------------------


def _which(link: str | int) -> dict[str, Any]:
    return {"ifi_index": link} if isinstance(link, int) else {"ifname": link}


def _word(link: str | int | None) -> str:
    """A link in the words of `ip`, which takes `if7` for the link with index 7."""
    return f"if{link}" if isinstance(link, int) else str(link)


def _index(nl: Netlink, link: str | int) -> int:
    return link if isinstance(link, int) else link_index(nl, link)


def _settings(mtu: int, mac: str, num_queues: int) -> dict[str, Any]:
    return {
        "mtu": mtu or None,
        "address": mac or None,
        "num_tx_queues": num_queues or None,
        "num_rx_queues": num_queues or None,
    }


def _set(nl: Netlink, link: str | int, values: Mapping[str, Any], words: str) -> None:
    _ask(nl, RTM_SETLINK, 0, {**_which(link), **values}, f"ip link set {_word(link)} {words}")


def _ask(nl: Netlink, type: int, flags: int, values: Mapping[str, Any], doing: str) -> list[bytes]:
    name = values.get("ifname") or ""
    if len(name.encode()) > LONGEST_NAME:
        raise KernelError(errno.ERANGE, doing, f'"{name}" is longer than a link\'s name can be, {LONGEST_NAME} bytes')
    try:
        body = LINK.pack(values)
    except ValueError as why:
        raise KernelError(errno.EINVAL, doing, str(why)) from None
    try:
        return [message.payload for message in nl.request(type, flags, body, doing)]
    except KernelError as why:
        if why.errno == errno.ENODEV:
            raise NotFound(str(why)) from None
        if why.errno == errno.EEXIST:
            raise Exists(str(why)) from None
        raise
