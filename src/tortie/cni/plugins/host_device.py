"""host-device: moves a network device of the host into the pod, and back again.

    host: eth1 ──ADD──► pod: CNI_IFNAME, alias "eth1" ──DEL──► host: eth1, down

Fields: one of `device` (name), `hwaddr`, `kernelpath` (below /sys/devices), `pciBusID`, or `runtimeConfig.deviceID` (of
PCI or of the auxiliary bus), which counts more; `ipam`. Without `ipam` the device is set up and that is all. Of a PCI
device that a driver for user space has (DPDK) there are addresses only, as it is no network device.

The name on the host is kept in the link's alias, which goes where the link goes. Name and namespace change in one step,
so nobody ever sees the device under the pod's name on the host. Source: plugins/main/host-device of the CNI reference
plugins.
"""

from __future__ import annotations

import os

from tortie.base.errors import Exists, KernelError, NotFound
from tortie.cni import child, delegate, span
from tortie.cni.attachments import all_of
from tortie.cni.interface import (
    attached,
    check_interface,
    configure,
    failed,
    find_link,
    open_pod,
    own_interface,
    pod_if_there,
    top_level_dns,
)
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Interface, Result, prev_result
from tortie.cni.spec import Call, CniError, Code, member, quote
from tortie.kernel import links, netns
from tortie.kernel.netlink import Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tortie.cni.interface import Pod

PCI, AUXILIARY, DEVICES = "/sys/bus/pci/devices", "/sys/bus/auxiliary/devices", "/sys/devices/"
USER_SPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")
FIELDS = ("device", "hwaddr", "kernelpath", "pciBusID")


class Device:
    """Which device the configuration means. Raises CniError."""

    __slots__ = ("auxiliary", "mac", "name", "path", "pci")

    def __init__(self, call: Call) -> None:
        said = {key: member(call.conf, key, str, "") for key in FIELDS}
        wanted = member(member(call.conf, "runtimeConfig", dict, {}), "deviceID", str, "")
        self.auxiliary = ""
        if wanted:
            said = dict.fromkeys(FIELDS, "")
            if os.path.isdir(f"{PCI}/{_part(wanted)}"):
                said["pciBusID"] = wanted
            elif os.path.isdir(f"{AUXILIARY}/{_part(wanted)}"):
                self.auxiliary = wanted
            else:
                raise failed(f"runtime config DeviceID {wanted} not found or unsupported")
        elif len([value for value in said.values() if value]) != 1:
            raise failed('specify either "device", "hwaddr", "kernelpath" or "pciBusID"')
        self.name, self.mac, self.path, self.pci = (said[key] for key in FIELDS)

    @property
    def in_user_space(self) -> bool:
        """Whether a driver for user space has it."""
        if not self.pci:
            return False
        try:
            return os.path.basename(os.readlink(f"{PCI}/{_part(self.pci)}/driver")) in USER_SPACE_DRIVERS
        except OSError:
            return False

    def find(self, host: Netlink) -> links.Link:
        """The link on the host. Raises CniError."""
        if self.name:
            found, why = find_link(host, self.name), child.NOT_THERE
        elif self.mac:
            found, why = self._with_mac(host), "failed to find physical interface"
        else:
            root = self._root()
            names = _below(root)
            found = next((link for link in (find_link(host, each) for each in names) if link is not None), None)
            why = f"failed to find network devices at {quote(f'{root}/net')}"
        if found is None:
            word = self.name or self.mac or self.path or self.pci or self.auxiliary
            raise CniError(Code.INTERNAL, f"failed to find host device: {why}", f"{word} is not on this host")
        return found

    def _with_mac(self, host: Netlink) -> links.Link | None:
        try:
            mac = span.mac(self.mac)
        except ValueError as error:
            raise failed(
                f"failed to find host device: failed to parse MAC address {quote(self.mac)}: {error}"
            ) from None
        return next((each for each in links.list_links(host) if each.mac == mac), None)

    def _root(self) -> str:
        """The device's directory in sysfs."""
        if not self.path:
            return f"{PCI}/{_part(self.pci)}" if self.pci else f"{AUXILIARY}/{_part(self.auxiliary)}"
        root = os.path.normpath(self.path)
        if not root.startswith(DEVICES):
            why = f"kernel device path {quote(self.path)} must be absolute and begin with {DEVICES}"
            raise failed(f"failed to find host device: {why}")
        return root


def _below(root: str) -> list[str]:
    """The names of a device's links in sysfs; of a virtio device they are one directory further down."""
    within = [entry for entry in _entries(root) if entry.startswith("virtio")]
    names = [name for each in (root, *(f"{root}/{entry}" for entry in within)) for name in _entries(f"{each}/net")]
    above, name = os.path.split(root)
    return [name, *names] if os.path.basename(above) == "net" else names  # it is the link's own directory


def _part(name: str) -> str:
    """A name that is one part of a path. Raises CniError."""
    if "/" in name or "\0" in name or name in (".", ".."):
        raise failed(f"runtime config DeviceID {name} not found or unsupported")
    return name


def _entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def add(call: Call) -> Result:
    device = Device(call)
    if device.in_user_space:
        return _addresses_only(call, device)
    with Netlink() as host, open_pod(call) as pod, Undo() as undo:
        link = device.find(host)
        _move_in(host, pod, undo, link, call.ifname)
        interface = Interface(call.ifname, link.mac, sandbox=call.netns)
        if not delegate.ipam_type(call):
            links.set_up(pod.nl, call.ifname)
            result = Result((interface,), dns=top_level_dns(call))
            result.dump(call.cni_version)  # an old version cannot say it; now it can be taken back
            return result
        result = attached(child.addresses(call, undo), [interface], 0, top_level_dns(call))
        configure(pod, call.ifname, result)
        return result


def _addresses_only(call: Call, device: Device) -> Result:
    with Undo() as undo:
        interface = Interface(call.ifname, sandbox=call.netns, pci_id=device.pci)
        ipam = child.addresses(call, undo) if delegate.ipam_type(call) else Result()
        result = attached(ipam, [interface], 0, top_level_dns(call))
        result.dump(call.cni_version)
        return result


def _move_in(host: Netlink, pod: Pod, undo: Undo, link: links.Link, ifname: str) -> None:
    """Raises CniError. What was up comes back up when it has to."""
    if find_link(pod.nl, ifname) is not None:
        raise failed(f"failed to rename {quote(link.name)} to {quote(ifname)}: file exists")
    try:
        if link.up:
            links.set_down(host, link.index)
            undo.then(links.set_up, host, link.name)
        links.set_alias(host, link.index, link.name)
        undo.then(links.set_alias, host, link.name, link.alias)
        links.move(host, link.index, pod.fd, ifname if ifname != link.name else None)
    except (KernelError, Exists, NotFound) as error:
        raise failed(f"failed to move {quote(link.name)} to container: {child.words(error)}") from None
    undo.then(_move_out, pod, ifname, link.name)


def _move_out(pod: Pod, ifname: str, name: str) -> None:
    """Back into the namespace of this process, down. Raises KernelError, Exists when the name is taken there."""
    home = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        links.set_down(pod.nl, ifname)
        links.move(pod.nl, ifname, home, name if name != ifname else None)
    finally:
        os.close(home)


def delete(call: Call) -> None:
    """The device first, then its addresses; what is gone is gone."""

    def device() -> None:
        pod = pod_if_there(call)
        if pod is not None:
            with pod, Netlink() as host:
                _give_back(call, host, pod)

    def given() -> None:
        if delegate.ipam_type(call):
            delegate.ipam_delete(call)

    all_of(device, given)


def _give_back(call: Call, host: Netlink, pod: Pod) -> None:
    """Raises CniError for a device whose name on the host is not known, or taken."""
    link = find_link(pod.nl, call.ifname)
    if link is None:
        return
    name = link.alias or member(call.conf, "device", str, "")
    if not name:
        raise failed(f"failed to find original ifname for {quote(call.ifname)} (alias is not set)")
    if find_link(host, name) is not None:
        raise failed(f"failed to move {quote(call.ifname)} back: the host has another {quote(name)}")
    try:
        _move_out(pod, call.ifname, name)
        links.set_alias(host, name, "")
    except (KernelError, Exists, NotFound) as error:
        raise failed(f"failed to move {quote(call.ifname)} back as {quote(name)}: {child.words(error)}") from None


def check(call: Call) -> None:
    device = Device(call)
    previous = prev_result(call)
    with open_pod(call) as pod:
        if delegate.ipam_type(call):
            delegate.ipam_check(call)
        interface = own_interface(call, previous)
        assert previous is not None  # own_interface has seen it
        if device.in_user_space:
            return
        link = find_link(pod.nl, call.ifname)
        if link is None:
            raise failed(f"Container Interface name in prevResult: {interface.name} not found")
        if not link.up:
            raise failed(f"Interface {link.name} is down")
        if interface.mac and interface.mac.lower() != link.mac:
            raise failed(f"Interface {link.name} Mac {interface.mac} doesn't match container Mac: {link.mac}")
        if device.name and link.alias != device.name:
            raise failed(f"Interface {link.name} was not moved from {quote(device.name)} of the host")
        check_interface(pod, call.ifname, previous)


def gc(call: Call) -> None:
    delegate.ipam_gc(call)


def status(call: Call) -> None:
    """Nothing of the device: it may be in a pod, as it should be, and the runtime says which only with a pod."""
    delegate.ipam_status(call)


PLUGIN = Plugin("host-device", add, delete, check, gc, status)
