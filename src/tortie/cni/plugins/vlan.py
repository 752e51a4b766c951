"""vlan: a link in the pod that is one VLAN of a link of the host: tagged on the wire, plain in the pod.

    wire ── tag 100 ── master (eth0) ── pod's eth0

Fields: `master`, `vlanId` (0 to 4094), `mtu`, `linkInContainer`, `ipam`. Source: plugins/main/vlan of the CNI reference
plugins.
"""

from __future__ import annotations

from tortie.cni import child, delegate
from tortie.cni.interface import (
    attached,
    check_interface,
    configure,
    failed,
    find_link,
    open_pod,
    top_level_dns,
)
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Interface, Result, prev_result
from tortie.cni.spec import Call, CniError, member
from tortie.kernel.netlink import Netlink

KIND = "vlan"
LAST_ID = 4094


class Settings:
    """What the configuration says, but for the MTU. Raises CniError."""

    __slots__ = ("id", "in_container", "master")

    def __init__(self, call: Call) -> None:
        self.master = member(call.conf, "master", str, "")
        if not self.master:
            raise failed('"master" field is required. It specifies the host interface name to create the VLAN for')
        self.id = member(call.conf, "vlanId", int, 0)
        if not 0 <= self.id <= LAST_ID:
            raise failed(f"invalid VLAN ID {self.id} (must be between 0 and 4095 inclusive)")
        self.in_container = member(call.conf, "linkInContainer", bool, False)


def add(call: Call) -> Result:
    settings = Settings(call)
    with Netlink() as host, open_pod(call) as pod, Undo() as undo:
        nl = pod.nl if settings.in_container else host
        master = find_link(nl, settings.master)
        if master is None:
            raise failed(child.NOT_THERE)
        mtu = child.mtu(call.conf, master)
        own = child.make(pod, nl, undo, call.ifname, KIND, {"id": settings.id}, parent=master.index, mtu=mtu)
        try:
            ipam = delegate.ipam_add(call)
        except CniError as error:
            raise failed(f"failed to execute IPAM delegate: {error.msg}") from None
        undo.then(delegate.ipam_delete, call)
        if not ipam.ips:
            raise failed("IPAM plugin returned missing IP config")
        interface = Interface(own.name, own.mac, sandbox=call.netns)
        result = attached(ipam, [interface], 0, top_level_dns(call))
        child.announce(pod, own.name)
        configure(pod, own.name, result)
        return result


def delete(call: Call) -> None:
    child.remove(call)


def check(call: Call) -> None:
    settings = Settings(call)
    previous = prev_result(call)
    with Netlink() as host, open_pod(call) as pod:
        link, previous = child.checked(call, pod, previous, KIND, "vlan: Required prevResult missing")
        if link.info.get("id") != settings.id:
            raise failed(f"Container VLAN id {link.info.get('id')} does not match expected value: {settings.id}")
        child.check_parent(pod.nl if settings.in_container else host, link, settings.master)
        check_interface(pod, call.ifname, previous)


def gc(call: Call) -> None:
    delegate.ipam_gc(call)


def status(call: Call) -> None:
    settings = Settings(call)
    child.status(call, KIND, "" if settings.in_container else settings.master)


PLUGIN = Plugin("vlan", add, delete, check, gc, status)
