"""The devices that packets leave through: VXLAN and IPIP tunnels, and what is on those of WireGuard and TUN.

Ours: the links with the names that are wanted, and those with our alias; with them their MTU, their MAC address where
one is wanted, their addresses inside the networks, and what they make of router advertisements and of the reverse path.
Order: before far ends and routes. A device that is not wanted any more goes last.
Source: flannel's backends. A loose reverse-path filter is our own: with DirectRouting packets may come through
the tunnel that go past it.

A device that a flanneld before this daemon made is kept where it can be: with it stays what is on it, and no packet is
lost. What cannot be changed on it (VNI, port, local address, link below, learning, group policy) makes a new one of it.
A link of another kind under such a name is somebody else's: that is a matter for a person. A TUN device is made by the
proxy that reads it; until then it has nothing.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from ipaddress import IPv4Address

from tortie.base.addr import Net, net_around, within
from tortie.base.errors import ConfigError, Exists, KernelError, TortieError
from tortie.base.plan import Op, Verb
from tortie.dataplane.link_steps import (
    LOOSE,
    SETTINGS,
    Base,
    Key,
    LinkStage,
    LinkWork,
    Steps,
    Value,
    change,
    is_unknown,
    plan,
    setting,
    vxlan_base,
)
from tortie.flannel.own import alias, own_links
from tortie.flannel.state import Device, FlannelState, Ipip, Tun, Vxlan, Wireguard
from tortie.kernel import links
from tortie.kernel.links import Link
from tortie.kernel.live_links import LiveLinks
from tortie.kernel.netlink import Netlink

log = logging.getLogger(__name__)

KERNEL_PORT = 8472
"""Where the kernel sends VXLAN packets when nobody says where (`udp_port`, drivers/net/vxlan)."""
KINDS = {Vxlan: "vxlan", Ipip: "ipip", Wireguard: "wireguard", Tun: "tun"}
READ_ONLY = (errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Without IPv6 there is no such setting, and some containers may change none."""


def base_of(kind: Vxlan | Ipip | Wireguard | Tun) -> Base:
    """What a device is made with."""
    match kind:
        case Vxlan():
            port, learning, gbp = kind.port or KERNEL_PORT, int(kind.learning), int(kind.gbp)
            return Base("vxlan", kind.vni, port, str(kind.local), kind.parent, learning, gbp)
        case Ipip():
            return Base("ipip", local=str(kind.local))
    return Base(KINDS[type(kind)])


def settings_of(device: Device) -> dict[str, int]:
    """Of link_steps.SETTINGS."""
    match device.kind:
        case Vxlan(local=IPv4Address()):
            return {"accept_ra": 0, "rp_filter": LOOSE}
        case Vxlan():
            return {"accept_ra": 0}
        case Ipip():
            return {"rp_filter": LOOSE}
    return {}


def want_of(device: Device, mark: str) -> dict[Key, Value]:
    """The device, thing by thing, in the order in which it is made."""
    name = device.name
    wanted: dict[Key, Value] = {(name, "link"): base_of(device.kind)}
    if mark:
        wanted[name, "alias"] = mark
    if device.mac:
        wanted[name, "mac"] = device.mac
    wanted[name, "mtu"] = device.mtu
    wanted |= {(name, what): value for what, value in settings_of(device).items()}
    wanted |= {(name, str(address)): "address" for address in device.addresses}
    wanted[name, "up"] = 1
    return wanted


def have_of(link: Link, addresses: Iterable[str]) -> dict[Key, Value]:
    """The same of a device that is there, without its settings. `addresses` are those that are ours to judge."""
    name = link.name
    there: dict[Key, Value] = {(name, "link"): _made_with(link), (name, "mac"): link.mac, (name, "mtu"): link.mtu}
    if link.alias:
        there[name, "alias"] = link.alias
    if link.up:
        there[name, "up"] = 1
    return there | {(name, address): "address" for address in addresses}


class Devices(LinkStage):
    name = "devices"

    def __init__(self, netns: str | None = None) -> None:
        super().__init__(LiveLinks(netns), netns)
        self._fixed: set[Key] = set()
        """Settings that cannot be changed here."""

    def plan(self, state: FlannelState) -> LinkWork:
        self._live.refresh()
        problems: list[TortieError] = []
        want: dict[Key, Value] = {}
        have: dict[Key, Value] = {}
        for device in state.devices:
            try:
                link = self._link(device)
            except TortieError as problem:
                problems.append(problem)
                continue
            if link is not None:
                have |= self._observe(link, device, state.networks)
            if link is not None or not isinstance(device.kind, Tun):
                want |= want_of(device, alias(state))
        want = {key: value for key, value in want.items() if key not in self._fixed}
        wanted = {device.name for device in state.devices}
        for name, link in own_links(state, self._live.links.values()).items():
            if name not in wanted:
                have[name, "link"] = Base(link.kind)
        # Only links and addresses are taken away: a MAC address that nobody asked for stays.
        have = {key: value for key, value in have.items() if key in want or key[1] == "link" or value == "address"}
        return LinkWork(plan(want, have), tuple(problems))

    def _link(self, device: Device) -> Link | None:
        """The link that is there under its name. Raises ConfigError, NotSupported."""
        kind, link = KINDS[type(device.kind)], self._live.named(device.name)
        if link is not None and link.kind != kind:
            text = f"{device.name} is a link of type {link.kind or 'device'}, where one of type {kind} is to be"
            raise ConfigError(f"{text}: remove it (ip link delete {device.name}), or give it another name")
        if link is None:
            self._not_missing(kind)
        return link

    def _observe(self, link: Link, device: Device, networks: Iterable[Net]) -> dict[Key, Value]:
        """Addresses outside of the networks are left alone."""
        wanted = {str(address) for address in device.addresses}
        addresses = (one.ip for one in self._live.addresses(link.index))
        judged = [ip for ip in addresses if ip in wanted or any(within(_host(ip), network) for network in networks)]
        found = have_of(link, judged)
        for what in settings_of(device):
            value = setting(link.name, what, self._netns)
            if value is not None:
                found[link.name, what] = value
        return found

    def forget(self) -> None:
        super().forget()
        self._fixed.clear()

    def _apply(self, nl: Netlink, op: Op[Key, Value], steps: Steps) -> None:
        name, what = op.key
        if isinstance(op.want, Base):
            if op.verb is Verb.CHANGE:
                links.delete_link(nl, name)
            mac = next((str(one.want) for one in steps if one.key == (name, "mac") and one.want), "")
            _make_link(nl, name, op.want, mac)
            return
        try:
            change(nl, op, self._netns)
        except KernelError as problem:
            if what not in SETTINGS or problem.errno not in READ_ONLY:
                raise
            self._fixed.add(op.key)
            log.debug("%s: left as it is", problem)

    def _explained(self, op: Op[Key, Value], problem: TortieError) -> TortieError:
        """What is a matter for a person: a kind of link that the kernel does not know, a tunnel that somebody has."""
        name, base = op.key[0], op.want
        if not isinstance(base, Base):
            return problem
        if is_unknown(problem):
            text = f"{name}: this kernel has no {base.kind}: modprobe {base.kind}, or choose another backend"
            return self._lacking(base.kind, text)
        others = [link.name for link in self._live.links.values() if _same_packets(link, base)]
        if isinstance(problem, Exists) and others:
            remedy = "remove it, or choose another VNI or port" if base.kind == "vxlan" else "remove it"
            return Exists(f"{name}: {others[0]} has its packets ({base}): {remedy}")
        return problem


def _made_with(link: Link) -> Base:
    if link.kind == "vxlan":
        return vxlan_base(link)
    if link.kind != "ipip":
        return Base(link.kind)
    local, remote = (str(link.info.get(which) or "").removeprefix("0.0.0.0") for which in ("local", "remote"))
    return Base("ipip", local=local, remote=remote)


def _same_packets(link: Link, base: Base) -> bool:
    if base.kind == "vxlan":
        return link.kind == "vxlan" and (link.info.get("id"), link.info.get("port")) == (base.vni, base.port)
    return link.kind == base.kind and link.info.get("local") == base.local


def _make_link(nl: Netlink, name: str, base: Base, mac: str) -> None:
    """With its MAC address from the beginning: udev gives those that have none one of its own."""
    if base.kind == "vxlan":
        learning, gbp = bool(base.learning), bool(base.gbp)
        links.create_vxlan(nl, name, base.vni, base.local, base.port, base.parent, mac=mac, learning=learning, gbp=gbp)
    else:
        links.create_link(nl, name, base.kind, {"local": base.local} if base.local else None)


def _host(ip: str) -> Net:
    return net_around(ip.partition("/")[0])
