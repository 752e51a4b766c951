"""bridge: connects the pod by a pair of links to a bridge of the host, which may be the pods' gateway.

    pod: eth0 ═══ veth1a2b3c4d ─┐
                                ├─ cni0 (10.1.2.1/24) ── the host's routes, ipMasq
    pod: eth0 ═══ veth5e6f7a8b ─┘

Fields: `bridge`, `isGateway`, `isDefaultGateway`, `forceAddress`, `ipMasq`, `ipMasqBackend`, `mtu`, `hairpinMode`,
`promiscMode`, `vlan`, `vlanTrunk`, `preserveDefaultVlan`, `macspoofchk`, `enabledad`, `disableContainerInterface`,
`portIsolation`, `ipam`, `dns`; a MAC address in CNI_ARGS, `args.cni.mac` or `runtimeConfig.mac`.

The bridge outlives its pods. Source: plugins/main/bridge of the CNI reference plugins.
"""

from __future__ import annotations

import errno
import sys
import time

from tortie.base.errors import Exists, KernelError, NotFound, NotSupported
from tortie.base.record import record
from tortie.cni import bridge_ports, delegate, masquerade, spoof, veth
from tortie.cni.attachments import all_of, valid_attachments
from tortie.cni.bridge_ports import Port
from tortie.cni.interface import (
    Pod,
    attached,
    check_interface,
    configure,
    failed,
    find_link,
    open_pod,
    own_interface,
    top_level_dns,
)
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Address, Dns, Interface, Result, Route, prev_result
from tortie.cni.span import Cidr, cidr, ip
from tortie.cni.spec import Call, CniError, Code, member, quote
from tortie.kernel import addresses, links
from tortie.kernel.links import Link
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import RT_TABLE_MAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_BRIDGE = "cni0"
IN_POD = 2
"""The pod's interface among those of a result: bridge, host's end, pod's end."""

PAUSES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.03, 0.05, 0.1, 0.3, 0.5, 0.5, 1.0)
"""Seconds to wait for a port to work, between looking; in all as long as the Go plugin."""

ANY = {"4": "0.0.0.0/0", "6": "::/0"}


@record(frozen=True, slots=True)
class Settings:
    """What the configuration says, checked."""

    bridge: str
    mtu: int
    mac: str
    port: Port
    is_gateway: bool
    is_default_gateway: bool
    forces_address: bool
    masquerades: bool
    promisc: bool
    checks_mac: bool
    detects_duplicates: bool
    stays_down: bool
    has_addresses: bool
    dns: Dns


def settings(call: Call) -> Settings:
    """Raises CniError."""
    conf = call.conf
    port = bridge_ports.read_port(conf)
    plain, default = (member(conf, key, bool, False) for key in ("isGateway", "isDefaultGateway"))
    found = Settings(
        bridge=member(conf, "bridge", str, "") or DEFAULT_BRIDGE,
        mtu=member(conf, "mtu", int, 0),
        mac=veth.asked_mac(call),
        port=port,
        is_gateway=plain or default,
        is_default_gateway=default,
        forces_address=member(conf, "forceAddress", bool, False),
        masquerades=masquerade.wanted(call),
        promisc=member(conf, "promiscMode", bool, False),
        checks_mac=member(conf, "macspoofchk", bool, False),
        detects_duplicates=member(conf, "enabledad", bool, False),
        stays_down=member(conf, "disableContainerInterface", bool, False),
        has_addresses=bool(delegate.ipam_type(call)),
        dns=top_level_dns(call),
    )
    if found.stays_down and found.has_addresses:
        raise failed("cannot use IPAM when DisableContainerInterface flag is set")
    if port.hairpin and found.promisc:
        raise failed("cannot set hairpin mode and promiscuous mode at the same time")
    return found


# --- what an attachment gets --------------------------------------------------------------------------------------


def with_gateways(ipam: Result, want: Settings) -> Result:
    """The addresses with the gateway that the bridge is to be, and the default routes through it."""
    if not want.is_gateway:
        return ipam
    ips = tuple(
        Address(each.address, each.gateway or _first_of(cidr(each.address)), each.interface, each.extra)
        for each in ipam.ips
    )
    routes = ipam.routes
    if want.is_default_gateway:
        for family in ("4", "6"):
            gateway = next((each.gateway for each in ips if each.family == family), "")
            routes = with_default(routes, ANY[family], gateway) if gateway else routes
    return Result(ipam.interfaces, ips, routes, ipam.dns, ipam.extra)


def with_default(routes: tuple[Route, ...], dst: str, gateway: str) -> tuple[Route, ...]:
    """The routes with a default one through the gateway, if none has a gateway. One that the address plugin gives
    without is the very same route, which the kernel takes only once: it gets the gateway."""
    if any(each.gw and each.dst == dst for each in routes):
        return routes
    for number, each in enumerate(routes):
        if each.dst == dst and not each.priority and each.table in (None, RT_TABLE_MAIN):
            through = Route(dst, gateway, each.mtu, each.advmss, each.priority, each.table, each.scope, each.extra)
            return (*routes[:number], through, *routes[number + 1 :])
    return (*routes, Route(dst, gateway))


def _first_of(subnet: Cidr) -> str:
    return str(subnet.network.plus(1))


def gateways(result: Result) -> tuple[Cidr, ...]:
    """The bridge's addresses: each gateway with the prefix length of its pod's address."""
    found = {f"{each.gateway}/{each.address.partition('/')[2]}": None for each in result.ips if each.gateway}
    return tuple(cidr(each) for each in found)


def conflicts(wanted: Cidr, there: Sequence[Cidr]) -> tuple[Cidr, ...]:
    """Which addresses stand in the way of a gateway: every other IPv4 one, and IPv6 ones of an overlapping subnet."""
    if wanted in there:
        return ()
    return tuple(each for each in there if each.bits == wanted.bits and (wanted.bits == 32 or each.overlaps(wanted)))


# --- the bridge ---------------------------------------------------------------------------------------------------


def ensure_bridge(host: Netlink, want: Settings, undo: Undo) -> Link:
    """The bridge, made if it is not there, and up. Raises CniError."""
    try:
        bridge = find_link(host, want.bridge)
        if bridge is None:
            try:
                _create_bridge(host, want)
                undo.then(_remove_if_unused, host, want.bridge)
                if not want.detects_duplicates:
                    veth.skip_trial(want.bridge)
            except Exists:
                pass  # by another pod's ADD, meanwhile
            bridge = links.get_link(host, want.bridge)
        if bridge.kind != "bridge":
            raise failed(f"{quote(want.bridge)} already exists but is not a bridge")
        if want.port.has_vlans and not bridge.info.get("vlan_filtering"):
            what = f"ip link set {bridge.name} type bridge vlan_filtering 1"
            sys.stderr.write(f"VLANs of {bridge.name} do not count: {what}\n")
        if want.promisc:
            links.set_promisc(host, bridge.index, True)
        veth.listen_to_nobody(bridge.name)
        links.set_up(host, bridge.index)
    except (CniError, KernelError, NotFound, NotSupported) as why:
        raise failed(f"failed to create bridge {quote(want.bridge)}: {why}") from None
    return bridge


def _create_bridge(host: Netlink, want: Settings) -> None:
    filters = want.port.has_vlans
    try:
        links.create_bridge(host, want.bridge, want.mtu, vlan_filtering=filters)
    except KernelError as why:
        if filters and why.errno == errno.EOPNOTSUPP:
            raise failed("this kernel's bridges have no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)") from None
        raise


def _remove_if_unused(host: Netlink, name: str) -> None:
    """Takes back a bridge that this ADD made, with its leg in a VLAN, unless another pod has come to it."""
    bridge = find_link(host, name)
    if bridge is None:
        return
    legs = [each for each in links.list_links(host, kind="veth") if each.name.startswith(f"{name}.")]
    if {each.index for each in links.list_links(host, master=bridge.index)} <= {each.parent for each in legs}:
        links.delete_link(host, bridge.index)
        for each in legs:
            links.delete_link(host, each.index)


def join(host: Netlink, want: Settings, port: Link, bridge: Link, undo: Undo) -> Link:
    """Makes the link a port of the bridge; the bridge, which may be a new one by then. Raises CniError."""
    try:
        try:
            links.set_master(host, port.index, bridge.index)
        except (KernelError, NotFound):
            if find_link(host, want.bridge) is not None:
                raise
            bridge = ensure_bridge(host, want, undo)  # another pod's ADD has just taken back the one that it had made
            links.set_master(host, port.index, bridge.index)
    except (KernelError, NotFound) as why:
        raise failed(f"failed to connect {quote(port.name)} to bridge {want.bridge}: {why}") from None
    bridge_ports.configure_port(host, port, want.port)
    return bridge


def put_gateway(host: Netlink, link: Link, wanted: Cidr, want: Settings) -> None:
    """Gives the bridge, or its leg in a VLAN, a gateway's address. Raises CniError."""
    there = [cidr(each.ip) for each in addresses.list_addresses(host, link.index) if each.scope != "link"]
    if wanted in there:
        return
    for each in conflicts(wanted, there):
        if not want.forces_address:
            text = f"{quote(link.name)} already has an IP address different from {wanted}"
            raise failed(f"failed to set bridge addr: {text}")
        try:
            addresses.delete_address(host, link.index, str(each))
        except NotFound:
            pass
    try:
        # Nobody waits until an IPv6 address is tried out, and without it the pod's first packets would be lost.
        addresses.add_address(host, link.index, str(wanted), nodad=not want.detects_duplicates)
    except Exists:
        pass  # by another pod's ADD, meanwhile
    except (KernelError, NotFound) as why:
        raise failed(f"failed to set bridge addr: could not add IP address to {quote(link.name)}: {why}") from None
    # A MAC address that was set stays; else the bridge has the lowest of its ports', and changes it with them. One that
    # its last port had left has none, and has the new port's by now.
    own = link.mac if link.mac.strip("0:") else links.get_link(host, link.index).mac
    links.set_mac(host, link.index, own)


def wait_for(host: Netlink, port: Link) -> Link:
    """The port once it works. Raises CniError after 2.5 s."""
    for pause in PAUSES:
        time.sleep(pause)
        port = links.get_link(host, port.index)
        if port.operstate == "UP":
            return port
    raise failed(f"bridge port in error state: {port.operstate.lower()}")


# --- verbs --------------------------------------------------------------------------------------------------------


def add(call: Call) -> Result:
    want = settings(call)
    with Netlink() as host, open_pod(call) as pod, Undo() as undo:
        bridge = ensure_bridge(host, want, undo)
        port = veth.make(call, host, pod, undo, mtu=want.mtu, mac=want.mac)
        bridge = join(host, want, port, bridge, undo)
        end = links.get_link(pod.nl, call.ifname)
        if want.checks_mac:
            undo.then(spoof.tear_down, call)
            spoof.set_up(call, port.name, end.mac)
        result, leg = Result(), None
        if want.has_addresses:
            result = delegate.ipam_add(call)
            undo.then(delegate.ipam_delete, call)
            result, leg = _put_addresses(call, want, (host, pod, undo), result, bridge)
        elif not want.stays_down:
            links.set_up(pod.nl, call.ifname)
        if not want.stays_down:
            port = wait_for(host, port)
        bridge = links.get_link(host, bridge.index)
        made = [_said(bridge), _said(port), Interface(end.name, end.mac, sandbox=call.netns)]
        result = attached(result, made + ([_said(leg)] if leg else []), IN_POD, _dns(want, result))
        if not result.ips:
            result.dump(call.cni_version)  # an old version cannot say it, which is better known before it is too late
        return result


def _said(link: Link) -> Interface:
    return Interface(link.name, link.mac)


def _dns(want: Settings, result: Result) -> Dns:
    return want.dns if want.dns != Dns() else result.dns


def _put_addresses(
    call: Call, want: Settings, where: tuple[Netlink, Pod, Undo], ipam: Result, bridge: Link
) -> tuple[Result, Link | None]:
    """What the pod and the bridge get; the result, which is completed, and the bridge's leg in a VLAN if it has one."""
    host, pod, undo = where
    if not ipam.ips:
        raise failed("IPAM plugin returned missing IP config")
    result = with_gateways(ipam, want)
    _set_sysctls(pod, call.ifname, want)
    placed = attached(result, (Interface(""), Interface(""), Interface(call.ifname)), IN_POD, Dns())
    configure(pod, call.ifname, placed)
    leg = None
    if want.is_gateway:
        if want.port.vlan:
            leg = bridge_ports.make_leg(host, bridge, want.port, undo)
        for each in gateways(result):
            put_gateway(host, leg or bridge, each, want)
        veth.forward({each.family for each in result.ips})
    if want.masquerades:
        undo.then(masquerade.tear_down, call)
        masquerade.set_up(call, (each.address for each in result.ips))
    return result, leg


def _set_sysctls(pod: Pod, ifname: str, want: Settings) -> None:
    if want.detects_duplicates:
        pod.try_sysctl(f"net/ipv6/conf/{ifname}/enhanced_dad", 1)
    pod.try_sysctl(f"net/ipv6/conf/{ifname}/accept_dad", int(want.detects_duplicates))
    pod.try_sysctl(f"net/ipv4/conf/{ifname}/arp_notify", 1)


def delete(call: Call) -> None:
    """Every step whatever becomes of the others. The rest of the configuration need not be right."""

    def addresses_too() -> None:
        if delegate.ipam_type(call):
            delegate.ipam_delete(call)

    def rules_too() -> None:
        all_of(
            lambda: spoof.tear_down(call) if member(call.conf, "macspoofchk", bool, False) else None,
            lambda: masquerade.tear_down(call) if member(call.conf, "ipMasq", bool, False) else None,
        )

    with Netlink() as host:
        all_of(lambda: veth.delete(call, host), addresses_too, rules_too)


def check(call: Call) -> None:
    want = settings(call)
    with Netlink() as host, open_pod(call) as pod:
        if want.has_addresses:
            delegate.ipam_check(call)
        result = prev_result(call)
        mine = own_interface(call, result)
        assert result is not None
        ips = [each for each in result.ips if each.interface in (None, result.interfaces.index(mine))]
        bridge = _check_bridge(host, want, result)
        if want.stays_down:
            return
        port = veth.check(host, pod, call.ifname, mine)
        if port.name not in {each.name for each in result.interfaces if not each.sandbox}:
            raise failed(f"CNI veth created for bridge {want.bridge} was not found")
        if port.master != bridge.index:
            raise failed(f"Interface {port.name} is not a port of bridge {want.bridge}")
        bridge_ports.check_port(host, port, want.port)
        check_interface(pod, call.ifname, result)
        if want.is_gateway:
            _check_gateways(host, f"{bridge.name}.{want.port.vlan}" if want.port.vlan else bridge.name, ips)
    if want.checks_mac and not spoof.is_there(call, port.name, mine.mac):
        raise failed(f"Interface {port.name} is not kept from other MAC addresses than {mine.mac}")
    if want.masquerades:
        masquerade.check(call, (each.address for each in ips))


def _check_bridge(host: Netlink, want: Settings, result: Result) -> Link:
    said = next((each for each in result.interfaces if each.name == want.bridge and not each.sandbox), None)
    bridge = find_link(host, want.bridge)
    if said is None or bridge is None:
        raise failed(f"Interface name {want.bridge} not found")
    if bridge.kind != "bridge":
        raise failed(f"Interface {want.bridge} does not have link type of bridge")
    # Without an address of its own, a bridge has the lowest MAC address of its ports: another one with other pods.
    if want.is_gateway and not want.port.vlan and said.mac and said.mac.lower() != bridge.mac:
        raise failed(f"Bridge interface {want.bridge} Mac doesn't match: {said.mac}")
    if bridge.promisc != want.promisc:
        modes = f"{want.promisc} doesn't match current state: {bridge.promisc}".lower()
        raise failed(f"Bridge interface {want.bridge} configured Promisc Mode {modes}")
    return bridge


def _check_gateways(host: Netlink, name: str, ips: Sequence[Address]) -> None:
    link = find_link(host, name)
    there = {cidr(each.ip).ip for each in addresses.list_addresses(host, link.index)} if link else set()
    for each in ips:
        if each.gateway and ip(each.gateway) not in there:
            raise failed(f"Bridge interface {name} does not have the address of the gateway {each.gateway}")


def gc(call: Call) -> None:
    """Pairs and masquerading of this network's other attachments go; MAC checks, whose names say no network, when
    their port is gone; and the address plugin is told."""
    valid = valid_attachments(call)
    with Netlink() as host:
        all_of(
            lambda: veth.collect(call, host, valid),
            lambda: delegate.ipam_gc(call),
            lambda: masquerade.collect(call, valid),
            lambda: spoof.collect(valid, {each.name for each in links.list_links(host)}),
        )


def status(call: Call) -> None:
    want = settings(call)
    delegate.ipam_status(call)
    with Netlink() as host:
        bridge = find_link(host, want.bridge)
        if bridge is not None and bridge.kind != "bridge":
            raise CniError(Code.NOT_AVAILABLE, f"{quote(want.bridge)} already exists but is not a bridge")
    if want.masquerades or want.checks_mac:
        masquerade.check_available()


PLUGIN = Plugin("bridge", add, delete, check, gc, status)
