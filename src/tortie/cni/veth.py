"""The pair of links between a pod and the host, for the plugins that make one.

    pod: eth0 ──────────── veth1a2b3c4d :host        alias "cni NETWORK CONTAINER INTERFACE"

The alias of the host's end says whose it is: `ip link` shows it, and by it the pair is found without the pod's
namespace. What the Go plugins made has none and is left alone.
"""

from __future__ import annotations

import os

from tortie.base.errors import Exists, KernelError, NotFound
from tortie.cni import span
from tortie.cni.interface import Pod, delete_if_there, failed, find_link, pod_if_there, temporary_name
from tortie.cni.spec import Call, load_args, member, quote
from tortie.kernel import links, netns, sysctl
from tortie.kernel.netlink import Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tortie.cni.attachments import Attachments
    from tortie.cni.plugin import Undo
    from tortie.cni.result import Interface

TRIES = 10
"""How many random names are tried."""

_ALIAS = "cni"
_LONGEST_ALIAS = 255  # IFALIASZ (linux/if.h) less the NUL


def make(call: Call, host: Netlink, pod: Pod, undo: Undo, *, mtu: int = 0, mac: str = "") -> links.Link:
    """Makes the pair, the pod's end under its name and down; the host's end, which is up. Raises CniError.

    `mtu` is of both ends, `mac` of the pod's; 0 and "" leave them to the kernel.
    """
    name = pair(host, pod.nl, call.ifname, undo, mtu=mtu, mac=mac)
    links.set_alias(host, name, alias(call.network, call.container_id, call.ifname))
    return set_up(host, name)


def pair(
    host: Netlink, inside: Netlink, ifname: str, undo: Undo, *, name: str = "", mtu: int = 0, mac: str = ""
) -> str:
    """A pair made from `inside`, where its end is `ifname`; the name of the host's end, or a random one. Both are down.

    Raises CniError.
    """
    ns = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for tried in range(TRIES):
            peer = name or temporary_name()
            try:
                links.create_veth(inside, ifname, peer, peer_netns=ns, mtu=mtu, num_queues=0, mac=mac)
            except Exists:
                if find_link(inside, ifname) or name or tried == TRIES - 1:
                    text = f"container veth name ({quote(ifname)}) peer provided ({quote(peer)}) already exists"
                    raise failed(text) from None
            except (KernelError, NotFound) as why:
                raise failed(f"failed to make veth pair: {why}") from None
            else:
                undo.then(delete_if_there, host, peer)
                return peer
    finally:
        os.close(ns)
    raise AssertionError("unreachable")


def set_up(host: Netlink, name: str) -> links.Link:
    """The host's end, up."""
    listen_to_nobody(name)
    skip_trial(name)
    links.set_up(host, name)
    return links.get_link(host, name)


def listen_to_nobody(name: str) -> None:
    """The host takes no routes from whoever plays the router behind this link."""
    _try_ipv6(name, "accept_ra", 0)


def skip_trial(name: str) -> None:
    """The link-local address can be used at once. Without one the host asks nobody behind the link for neighbours, and
    the first packets to a pod would wait a second or two for it."""
    _try_ipv6(name, "accept_dad", 0)


def _try_ipv6(name: str, setting: str, value: int) -> None:
    try:
        sysctl.write(f"net/ipv6/conf/{name}/{setting}", value)
    except KernelError:
        pass  # a kernel without IPv6


def asked_mac(call: Call) -> str:
    """The MAC address that is asked for: in `runtimeConfig.mac`, else `args.cni.mac`, else CNI_ARGS; "" for none.

    Raises CniError for what is none.
    """
    by_args = load_args(call.args_text, ("MAC",)).get("MAC", "")
    by_conf = member(member(member(call.conf, "args", dict, {}), "cni", dict, {}), "mac", str, "")
    mac = member(member(call.conf, "runtimeConfig", dict, {}), "mac", str, "") or by_conf or by_args
    try:
        return span.mac(mac) if mac else ""
    except ValueError as error:
        raise failed(f"failed to make veth pair: {error}") from None


# --- whose it is --------------------------------------------------------------------------------------------------


def alias(network: str, container: str, ifname: str) -> str:
    """None of the three can hold a blank. Too long a one says nothing, as half a name might be another's."""
    text = f"{_ALIAS} {network} {container} {ifname}"
    return text if len(text.encode("utf-8", "surrogateescape")) <= _LONGEST_ALIAS else ""


def delete(call: Call, host: Netlink) -> None:
    """Deletes the pair, by the pod's end or, when its namespace is gone or not said, by the host's. Raises CniError."""
    pod = pod_if_there(call)
    if pod is not None:
        with pod:
            delete_if_there(pod.nl, call.ifname)
            return
    mine = alias(call.network, call.container_id, call.ifname)
    for link in _veths(host):
        if mine and link.alias == mine:
            delete_if_there(host, link.name)


def collect(call: Call, host: Netlink, valid: Attachments) -> None:
    """Deletes the pairs of this network that are of no valid attachment."""
    for link in _veths(host):
        words = link.alias.split(" ")
        if words[:2] == [_ALIAS, call.network] and len(words) == 4 and (words[2], words[3]) not in valid:
            delete_if_there(host, link.name)


def _veths(host: Netlink) -> Iterator[links.Link]:
    yield from links.list_links(host, kind="veth")


# --- checking -----------------------------------------------------------------------------------------------------


def check(host: Netlink, pod: Pod, ifname: str, said: Interface) -> links.Link:
    """The pod's end is a veth with the MAC address of the result; the host's end. Raises CniError."""
    link = find_link(pod.nl, ifname)
    if link is None:
        raise failed(f"Interface name {ifname} not found")
    if link.kind != "veth":
        raise failed(f"Error: Container interface {ifname} not of type veth")
    if said.mac and said.mac.lower() != link.mac:
        raise failed(f"Interface {ifname} Mac {said.mac} doesn't match container Mac: {link.mac}")
    if not link.up:
        raise failed(f"Interface {ifname} is down")
    try:
        peer = links.get_link(host, link.parent)
    except NotFound:
        raise failed(f"Unable to obtain veth peer index for veth {ifname}") from None
    if peer.kind != "veth" or peer.parent != link.index:
        raise failed(f"Unable to obtain veth peer index for veth {ifname}")
    return peer


def forward(families: set[str]) -> None:
    """The host forwards packets of these families, "4" and "6". Raises CniError."""
    for family in sorted(families):
        path = "net/ipv6/conf/all/forwarding" if family == "6" else "net/ipv4/ip_forward"
        try:
            if sysctl.read(path) != "1":
                sysctl.write(path, 1)
        except KernelError as why:
            raise failed(f"failed to enable forwarding: {why}") from None
