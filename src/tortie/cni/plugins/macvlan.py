"""macvlan: a link in the pod with a MAC address of its own, on top of a link of the host.

    wire ── master (eth0) ─┬─ pod A's eth0        to others the pods are machines on the master's wire
                           └─ pod B's eth0

Fields: `master`, `mode` (bridge, private, vepa, passthru), `mtu`, `mac`, `bcqueuelen`, `linkInContainer`, `ipam`; and
ours: `clusterRoutes`, `hostAccess`, `hostAddress`, as docs/plugins/macvlan.md has them. Without `ipam` the link is set
up and that is all. Source: plugins/main/macvlan of the CNI reference plugins.
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
    find_link,
    open_pod,
    top_level_dns,
)
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Interface, Result, prev_result
from tortie.cni.spec import Call, CniError, Code, load_args, member, quote
from tortie.kernel import links
from tortie.kernel.netlink import Netlink

KIND = "macvlan"
MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
"""enum macvlan_mode (linux/if_link.h)."""


class Settings:
    """What the configuration says, but for what the master has a say in. Raises CniError."""

    __slots__ = ("host_access", "in_container", "master", "mode", "queue")

    def __init__(self, call: Call) -> None:
        self.master = member(call.conf, "master", str, "")
        self.mode = member(call.conf, "mode", str, "") or "bridge"
        if self.mode not in MODES:
            raise failed(f"unknown macvlan mode: {quote(self.mode)}")
        self.in_container = member(call.conf, "linkInContainer", bool, False)
        self.queue = member(call.conf, "bcqueuelen", int, 0)
        self.host_access = sibling.wanted(call)
        if self.host_access and (self.in_container or self.mode != "bridge"):
            why = "the master is in the container" if self.in_container else f"mode {self.mode} keeps it apart"
            raise CniError(Code.INVALID_CONFIG, f'hostAccess "sibling" cannot be: {why}')

    @property
    def data(self) -> dict[str, int]:
        number = MODES[self.mode]
        return {"mode": number, "bc_queue_len": self.queue} if self.queue else {"mode": number}

    def sibling(self, call: Call, master: str) -> sibling.Sibling:
        return sibling.Sibling(KIND, self.mode, self.data, master, sibling.own_address(call), True)


def add(call: Call) -> Result:
    settings = Settings(call)
    with Netlink() as host, open_pod(call) as pod, Undo() as undo:
        nl = pod.nl if settings.in_container else host
        master = find_link(nl, settings.master or default_interface(nl))
        if master is None:
            raise failed(child.NOT_THERE)
        mtu, mac = child.mtu(call.conf, master), _mac(call)
        own = child.make(pod, nl, undo, call.ifname, KIND, settings.data, parent=master.index, mtu=mtu, mac=mac)
        interface = Interface(own.name, own.mac, sandbox=call.netns)
        child.announce(pod, own.name)
        if not delegate.ipam_type(call):
            links.set_up(pod.nl, own.index)
            result = Result((interface,), dns=top_level_dns(call))
            result.dump(call.cni_version)  # an old version cannot say it; now it can be taken back
            return result
        result = attached(child.addresses(call, undo), [interface], 0, top_level_dns(call))
        routes = child.device_routes(call, result, False)
        configure(pod, own.name, result)
        child.add_device_routes(pod, own, routes)
        if settings.host_access:
            sibling.connect(host, pod, undo, settings.sibling(call, master.name), own, result)
        return Result(result.interfaces, result.ips, (*result.routes, *routes), result.dns, result.extra)


def _mac(call: Call) -> str:
    """The MAC address asked for; "" for the kernel's choice. The runtime's word counts most."""
    args = load_args(call.args_text, ("MAC",))
    runtime = member(member(call.conf, "runtimeConfig", dict, {}), "mac", str, "")
    text = runtime or args.get("MAC", "") or member(call.conf, "mac", str, "")
    return child.hardware_address(text) if text else ""


def delete(call: Call) -> None:
    child.remove(call, lambda: sibling.leave(call, KIND))


def check(call: Call) -> None:
    settings = Settings(call)
    previous = prev_result(call)
    with Netlink() as host, open_pod(call) as pod:
        link, previous = child.checked(call, pod, previous, KIND, "required prevResult missing")
        mode = {number: name for name, number in MODES.items()}.get(link.info.get("mode", 0), "?")
        if mode != settings.mode:
            raise failed(f"Container macvlan mode {mode} does not match expected value: {settings.mode}")
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


PLUGIN = Plugin("macvlan", add, delete, check, gc, status)
