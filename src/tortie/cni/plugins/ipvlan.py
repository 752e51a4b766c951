"""ipvlan: a link in the pod that shares the MAC address of a link of the host, and is told from it by its IP addresses.

    wire ── master (eth0) ─┬─ pod A's eth0        l2: ARP, the pods are in the master's network
                           └─ pod B's eth0        l3, l3s: no ARP, no broadcast; the pods' own network is routed

Fields: `master`, `mode` (l2, l3, l3s), `mtu`, `linkInContainer`, `ipam`; and ours: `submode` (bridge, private, vepa),
`force`, `defaultRoute`, `clusterRoutes`, `hostAccess`, `hostAddress`, as docs/plugins/ipvlan.md has them.

Mode and submode are the master's, not a child's: a child with another one would silently turn all there are. So the
children that there are, in whatever namespace, are looked at first. Source: plugins/main/ipvlan of the CNI reference
plugins.
"""

from __future__ import annotations

from tortie.cni import child, delegate, sibling
from tortie.cni.attachments import all_of
from tortie.cni.interface import (
    attached,
    check_interface,
    configure,
    default_interface,
    failed,
    open_pod,
    top_level_dns,
)
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Interface, Result, prev_result
from tortie.cni.spec import Call, CniError, Code, member, quote
from tortie.kernel import children, links
from tortie.kernel.netlink import Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tortie.cni.interface import Pod

KIND = "ipvlan"
MODES = {"l2": 0, "l3": 1, "l3s": 2}
"""enum ipvlan_mode (linux/if_link.h)."""
SUBMODES = {"bridge": 0, "private": 1, "vepa": 2}
"""IPVLAN_F_PRIVATE, IPVLAN_F_VEPA (linux/if_link.h)."""


class Settings:
    """What the configuration says. Raises CniError."""

    __slots__ = ("force", "host_access", "in_container", "master", "mode", "submode")

    def __init__(self, call: Call) -> None:
        conf = call.conf
        self.master = member(conf, "master", str, "")
        self.mode = member(conf, "mode", str, "") or "l2"
        if self.mode not in MODES:
            raise failed(f"unknown ipvlan mode: {quote(self.mode)}")
        self.submode = member(conf, "submode", str, "") or "bridge"
        if self.submode not in SUBMODES:
            raise CniError(Code.INVALID_CONFIG, f"unknown ipvlan submode: {quote(self.submode)}")
        self.in_container = member(conf, "linkInContainer", bool, False)
        self.force = member(conf, "force", bool, False)
        self.host_access = sibling.wanted(call)
        if self.host_access and (self.in_container or self.submode != "bridge"):
            why = "the master is in the container" if self.in_container else f"submode {self.submode} keeps it apart"
            raise CniError(Code.INVALID_CONFIG, f'hostAccess "sibling" cannot be: {why}')

    @property
    def arp(self) -> bool:
        return self.mode == "l2"

    @property
    def data(self) -> dict[str, int]:
        return {"mode": MODES[self.mode], "flags": SUBMODES[self.submode]}

    def sibling(self, call: Call, master: str) -> sibling.Sibling:
        address = sibling.own_address(call) or ("" if self.arp else sibling.ROUTED_ADDRESS)
        return sibling.Sibling(KIND, self.mode, self.data, master, address, self.arp)


def add(call: Call) -> Result:
    settings = Settings(call)
    previous = prev_result(call)
    with Netlink() as host, open_pod(call) as pod, Undo() as undo:
        nl = pod.nl if settings.in_container else host
        master = child.master(nl, _master(settings, nl, previous))
        own = _make(call, settings, pod, nl, master, undo)
        if not delegate.ipam_type(call) and previous is not None and previous.ips:
            ipam = previous
        else:
            ipam = child.addresses(call, undo)
        interface = Interface(own.name, own.mac, sandbox=call.netns)
        result = attached(ipam, [interface], 0, top_level_dns(call))
        routes = child.device_routes(call, result, not settings.arp)
        child.announce(pod, own.name)
        configure(pod, own.name, result)
        child.add_device_routes(pod, own, routes)
        if settings.host_access:
            sibling.connect(host, pod, undo, settings.sibling(call, master.name), own, result)
        return Result(result.interfaces, result.ips, (*result.routes, *routes), result.dns, result.extra)


def _master(settings: Settings, nl: Netlink, previous: Result | None) -> str:
    """The master's name: as configured, as the plugin before made it, or that of the default route."""
    if settings.master:
        return settings.master
    if previous is None:
        return default_interface(nl)
    if len(previous.interfaces) != 1 or not previous.interfaces[0].name:
        raise failed("chained master failure. PrevResult lacks a single named interface")
    return previous.interfaces[0].name


def _make(call: Call, settings: Settings, pod: Pod, nl: Netlink, master: links.Link, undo: Undo) -> links.Link:
    mtu = member(call.conf, "mtu", int, 0)
    with children.Alone():
        if not settings.force:
            _guard(settings, nl, master)
        return child.make(pod, nl, undo, call.ifname, KIND, settings.data, parent=master.index, mtu=mtu)


def _guard(settings: Settings, nl: Netlink, master: links.Link) -> None:
    """Raises CniError when a child more would turn those that there are."""
    there = next(children.children(nl, master.index, KIND, elsewhere=not settings.in_container), None)
    if there is None:
        return
    have, want = _names(there), (settings.mode, settings.submode)
    if have != want:
        raise failed(
            f"{master.name} has ipvlan children in mode {' '.join(have)}, and they would all be switched to "
            f'{" ".join(want)}: a master has one mode; take another master or that mode, or say "force": true'
        )


def _names(link: links.Link) -> tuple[str, str]:
    """Mode and submode of a link."""
    mode = {number: name for name, number in MODES.items()}.get(link.info.get("mode", 0), "?")
    submode = {number: name for name, number in SUBMODES.items()}.get(link.info.get("flags", 0), "?")
    return mode, submode


def delete(call: Call) -> None:
    child.remove(call, lambda: sibling.leave(call, KIND))


def check(call: Call) -> None:
    settings = Settings(call)
    previous = prev_result(call)
    with Netlink() as host, open_pod(call) as pod:
        link, previous = child.checked(call, pod, previous, KIND)
        mode, submode = _names(link)
        if mode != settings.mode:
            raise failed(f"Container IPVlan mode {mode} does not match expected value: {settings.mode}")
        if submode != settings.submode:
            raise failed(f"Container IPVlan submode {submode} does not match expected value: {settings.submode}")
        nl = pod.nl if settings.in_container else host
        if settings.master:
            child.check_parent(nl, link, settings.master)
        check_interface(pod, call.ifname, previous)
        if settings.host_access:
            master = links.get_link(host, link.parent).name
            sibling.check(host, settings.sibling(call, master), previous)


def gc(call: Call) -> None:
    all_of(lambda: sibling.prune(KIND), lambda: delegate.ipam_gc(call))


def status(call: Call) -> None:
    settings = Settings(call)
    child.status(call, KIND, "" if settings.in_container else settings.master)


PLUGIN = Plugin("ipvlan", add, delete, check, gc, status)
