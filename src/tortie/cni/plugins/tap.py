"""tap: a tap device in the pod, whose other end a program opens: a virtual machine, say, that is to be on the network.

    program ── /dev/net/tun ── pod's eth0 (── a bridge in the pod, if `bridge` names one)

Fields: `mac`, `mtu`, `multiQueue`, `owner`, `group`, `selinuxContext`, `bridge`, `ipam`. Without `ipam` the device is
set up and that is all. It is made through /dev/net/tun, as netlink makes none, and stays when we close it. Source:
plugins/main/tap of the CNI reference plugins.
"""

from __future__ import annotations

import errno
import os
import struct
from fcntl import ioctl

from tortie.base.errors import Exists, KernelError, NotFound
from tortie.cni import child, delegate
from tortie.cni.interface import (
    attached,
    check_interface,
    configure,
    failed,
    open_pod,
    temporary_name,
    top_level_dns,
)
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Interface, Result, prev_result
from tortie.cni.spec import Call, CniError, Code, load_args, lookup, member, quote
from tortie.kernel import links
from tortie.kernel.netns import entered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tortie.cni.interface import Pod

KIND = "tun"
"""What the kernel calls both, tun and tap devices."""
DEVICE = "/dev/net/tun"

# linux/if_tun.h
TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETGROUP = 0x400454CA, 0x400454CB, 0x400454CC, 0x400454CE
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
_IFREQ = struct.Struct("16sH22x")  # name and flags of struct ifreq (linux/if.h)
_LABEL = "/proc/thread-self/attr/exec"
"""The SELinux context of the next program that is started; a tap device has that of the program that makes it."""


class Settings:
    """What the configuration says. Raises CniError. `owner` and `group` are numbers, None for root's only."""

    __slots__ = ("bridge", "context", "group", "mac", "mtu", "multi_queue", "owner")

    def __init__(self, call: Call) -> None:
        conf = call.conf
        self.multi_queue = member(conf, "multiQueue", bool, False)
        self.mtu = member(conf, "mtu", int, 0)
        self.owner = _number(call, "owner")
        self.group = _number(call, "group")
        self.context = member(conf, "selinuxContext", str, "")
        self.bridge = member(conf, "bridge", str, "")
        args = load_args(call.args_text, ("MAC",))
        runtime = member(member(conf, "runtimeConfig", dict, {}), "mac", str, "")
        mac = runtime or args.get("MAC", "") or member(conf, "mac", str, "")
        self.mac = child.hardware_address(mac) if mac else ""


def add(call: Call) -> Result:
    settings = Settings(call)
    with open_pod(call) as pod, Undo() as undo:
        own = _make(pod, settings, undo, call.ifname)
        interface = Interface(own.name, own.mac, sandbox=call.netns)
        child.announce(pod, own.name)
        if not delegate.ipam_type(call):
            links.set_up(pod.nl, own.index)
            result = Result((interface,), dns=top_level_dns(call))
            result.dump(call.cni_version)  # an old version cannot say it; now it can be taken back
            return result
        result = attached(child.addresses(call, undo), [interface], 0, top_level_dns(call))
        # Until a program opens the device nobody can be asked for a duplicate: an IPv6 address would never settle.
        pod.try_sysctl(f"net/ipv6/conf/{own.name}/accept_dad", 0)
        configure(pod, own.name, result)
        return result


def _make(pod: Pod, settings: Settings, undo: Undo, ifname: str) -> links.Link:
    name = temporary_name()
    (_make_labelled if settings.context else _make_device)(pod, settings, name)
    index = links.link_index(pod.nl, name)
    undo.then(links.delete_link, pod.nl, index)
    try:
        if settings.mac:
            links.set_mac(pod.nl, index, settings.mac)
        if settings.mtu:
            links.set_mtu(pod.nl, index, settings.mtu)
    except KernelError as error:
        raise CniError(Code.INTERNAL, f"failed to create tap: {child.words(error)}", str(error)) from None
    try:
        links.rename(pod.nl, index, ifname)
    except (KernelError, Exists) as error:
        raise failed(f"failed to rename tap to {quote(ifname)}: {child.words(error)}") from None
    if settings.bridge:
        try:
            links.set_master(pod.nl, index, settings.bridge)
        except (KernelError, NotFound) as error:
            raise failed(f"failed to set tap master to {quote(settings.bridge)}: {child.words(error)}") from None
    return links.get_link(pod.nl, index)


def _make_device(pod: Pod, settings: Settings, name: str) -> None:
    """Through the device file, which is of the namespace that it is opened in. Raises CniError."""
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE * settings.multi_queue
    try:
        with entered(pod.fd):
            fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            ioctl(fd, TUNSETIFF, _IFREQ.pack(name.encode(), flags))
            for request, number in ((TUNSETOWNER, settings.owner), (TUNSETGROUP, settings.group)):
                if number is not None:
                    ioctl(fd, request, number)
            ioctl(fd, TUNSETPERSIST, 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise _refused(error) from None


def _refused(error: OSError) -> CniError:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return failed(f"failed to create tap: {child.lack('tap')}; there must be {DEVICE}")
    return failed(f"failed to create tap: {child.words(error)}")


def _make_labelled(pod: Pod, settings: Settings, name: str) -> None:
    """With the SELinux context asked for: by a program that has it. Raises CniError."""
    import subprocess

    command = ["ip", "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"]
    command += ["multi_queue"] if settings.multi_queue else []
    command += ["user", str(settings.owner)] if settings.owner is not None else []
    command += ["group", str(settings.group)] if settings.group is not None else []
    try:
        with open(_LABEL, "w", encoding="utf-8") as label:
            label.write(settings.context)
    except OSError as error:
        why = "this kernel runs without SELinux" if error.errno in (errno.EINVAL, errno.ENOENT) else error.strerror
        raise failed(f"failed to set the SELinux context {quote(settings.context)}: {why}") from None
    with entered(pod.fd):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise failed(f"failed to create tap: {done.stderr.strip()}")


def _number(call: Call, key: str) -> int | None:
    """The number of a user or a group. Raises CniError."""
    if lookup(call.conf, key) is None:
        return None
    number = member(call.conf, key, int, 0)
    if not 0 <= number < 1 << 32:
        raise failed(f"failed to load netconf: json: cannot unmarshal number {number} into field {key} of type uint32")
    return number


def delete(call: Call) -> None:
    child.remove(call)


def check(call: Call) -> None:
    settings = Settings(call)
    previous = prev_result(call)
    with open_pod(call) as pod:
        link, previous = child.checked(call, pod, previous, KIND)
        if settings.mtu and link.mtu != settings.mtu:
            raise failed(f"Interface {link.name} has MTU {link.mtu}, expected {settings.mtu}")
        if settings.bridge and link.master != links.link_index(pod.nl, settings.bridge):
            raise failed(f"Interface {link.name} is no port of {quote(settings.bridge)}")
        check_interface(pod, call.ifname, previous)


def gc(call: Call) -> None:
    delegate.ipam_gc(call)


def status(call: Call) -> None:
    Settings(call)
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise CniError(Code.NOT_AVAILABLE, _refused(error).msg) from None
    delegate.ipam_status(call)


PLUGIN = Plugin("tap", add, delete, check, gc, status)
