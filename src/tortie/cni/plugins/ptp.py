"""ptp: connects the pod by a pair of links that is a network of its own: all that it sends goes to the host.

    pod: eth0 10.1.2.5/24 ═══ veth1a2b3c4d 10.1.2.1/32 :host
      10.1.2.1 dev eth0 scope link               10.1.2.5 dev veth1a2b3c4d
      10.1.2.0/24 via 10.1.2.1

Two pods of one subnet reach each other through the host, which routes. Fields: `ipMasq`, `ipMasqBackend`, `mtu`, `ipam`
(required), `dns`. Source: plugins/main/ptp of the CNI reference plugins.
"""

from __future__ import annotations

from tortie.base.errors import ConfigError, Exists, KernelError, NotFound
from tortie.cni import delegate, masquerade, veth
from tortie.cni.attachments import all_of, valid_attachments
from tortie.cni.interface import (
    Pod,
    attached,
    check_interface,
    configure,
    failed,
    open_pod,
    own_interface,
    top_level_dns,
)
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Address, Dns, Interface, Result, Route, prev_result
from tortie.cni.span import cidr
from tortie.cni.spec import Call, member
from tortie.kernel import addresses, links
from tortie.kernel.links import Link
from tortie.kernel.netlink import Netlink
from tortie.kernel.plain_routes import LINK, PlainRoute, add_route, delete_route, list_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

IN_POD = 1
"""The pod's interface among those of a result: host's end, pod's end."""


def add(call: Call) -> Result:
    masquerades, mtu, dns = masquerade.wanted(call), member(call.conf, "mtu", int, 0), top_level_dns(call)
    with Netlink() as host, open_pod(call) as pod, Undo() as undo:
        ipam = delegate.ipam_add(call)
        undo.then(delegate.ipam_delete, call)
        _check_addresses(ipam)
        veth.forward({each.family for each in ipam.ips})
        port = veth.make(call, host, pod, undo, mtu=mtu)
        end = links.get_link(pod.nl, call.ifname)
        made = (Interface(port.name, port.mac), Interface(end.name, end.mac, sandbox=call.netns))
        result = attached(ipam, made, IN_POD, dns if dns != Dns() else ipam.dns)
        _configure_pod(pod, end, result)
        _configure_host(host, port, result)
        if masquerades:
            undo.then(masquerade.tear_down, call)
            masquerade.set_up(call, (each.address for each in result.ips))
        return result


def _check_addresses(ipam: Result) -> None:
    if not ipam.ips:
        raise failed("IPAM plugin returned missing IP config")
    for each in ipam.ips:
        if not each.gateway:
            raise failed(f"IPAM plugin returned no gateway for {each.address}, by which ptp reaches everything")


# --- addresses and routes -----------------------------------------------------------------------------------------


def to_gateway(result: Result, dev: int) -> list[PlainRoute]:
    """The pod's ways to its gateways, which are no neighbours but by these routes, and through them to its subnets."""
    first: dict[str, PlainRoute] = {}
    then: dict[str, PlainRoute] = {}
    for each in result.ips:
        own = cidr(each.address)
        alone, subnet = f"{each.gateway}/{own.bits}", f"{own.network}/{own.length}"
        first.setdefault(alone, PlainRoute(alone, dev=dev, src=str(own.ip), scope=LINK))
        if own.length < own.bits:
            then.setdefault(subnet, PlainRoute(subnet, dev=dev, via=each.gateway, src=str(own.ip)))
    return [*first.values(), *then.values()]


def with_ways(result: Result) -> Result:
    """No addresses, and the routes each with the gateway that it goes through: what is configured last."""
    first = {each.family: each.gateway for each in reversed(result.ips)}
    routes = tuple(
        Route(each.dst, each.gw or first.get("6" if ":" in each.dst else "4", ""), *_rest(each))
        for each in result.routes
    )
    return Result(result.interfaces, (), routes)


def _rest(route: Route) -> tuple[int, int, int, int | None, int | None]:
    return route.mtu, route.advmss, route.priority, route.table, route.scope


def _configure_pod(pod: Pod, end: Link, result: Result) -> None:
    """Addresses; the kernel's routes to their subnets go for ours; then the routes that the address plugin wants."""
    pod.try_sysctl(f"net/ipv6/conf/{end.name}/accept_dad", 0)  # nobody else is on this link: it would cost 2 s
    pod.try_sysctl(f"net/ipv4/conf/{end.name}/arp_notify", 1)
    configure(pod, end.name, Result(result.interfaces, result.ips))
    for each in result.ips:
        own = cidr(each.address)
        if own.length < own.bits:
            _delete_kernels(pod, f"{own.network}/{own.length}", end.index, own.bits)
    for route in to_gateway(result, end.index):
        try:
            add_route(pod.nl, route)
        except (KernelError, Exists) as why:
            raise failed(f"failed to add route {route}: {why}") from None
    configure(pod, end.name, with_ways(result))


def _delete_kernels(pod: Pod, subnet: str, dev: int, bits: int) -> None:
    try:
        delete_route(pod.nl, PlainRoute(subnet, dev=dev))
    except NotFound:
        pass
    except KernelError as why:
        raise failed(f"failed to delete route {subnet}: {why}") from None


def _configure_host(host: Netlink, port: Link, result: Result) -> None:
    """The gateways' addresses, and the routes to the pod's."""
    for gateway in {f"{each.gateway}/{cidr(each.address).bits}": None for each in result.ips}:
        try:
            # Nobody else is on this link to have the address, and the pod's first packets must not wait for the trial.
            addresses.add_address(host, port.index, gateway, nodad=True)
        except (KernelError, ConfigError, NotFound, Exists) as why:
            raise failed(f"failed to add IP addr ({gateway}) to veth: {why}") from None
    for each in result.ips:
        own = cidr(each.address)
        try:
            add_route(host, PlainRoute(f"{own.ip}/{own.bits}", dev=port.index, scope=LINK))
        except Exists:
            pass
        except KernelError as why:
            raise failed(f"failed to add route on host: {why}") from None


# --- verbs --------------------------------------------------------------------------------------------------------


def delete(call: Call) -> None:
    """Every step whatever becomes of the others. The rest of the configuration need not be right."""
    with Netlink() as host:
        all_of(
            lambda: delegate.ipam_delete(call),
            lambda: veth.delete(call, host),
            lambda: masquerade.tear_down(call) if member(call.conf, "ipMasq", bool, False) else None,
        )


def check(call: Call) -> None:
    masquerades = masquerade.wanted(call)
    with Netlink() as host, open_pod(call) as pod:
        delegate.ipam_check(call)
        result = prev_result(call)
        mine = own_interface(call, result, "ptp: Required prevResult missing")
        assert result is not None
        ips = [each for each in result.ips if each.interface in (None, result.interfaces.index(mine))]
        port = veth.check(host, pod, call.ifname, mine)
        if port.name not in {each.name for each in result.interfaces if not each.sandbox}:
            raise failed(f"ptp: the other end of {call.ifname} is {port.name}, which is not in prevResult")
        check_interface(pod, call.ifname, result)
        _check_host(host, port, ips)
    if masquerades:
        masquerade.check(call, (each.address for each in ips))


def _check_host(host: Netlink, port: Link, ips: Sequence[Address]) -> None:
    """The host's side of the pod's addresses: the gateways, and the routes."""
    there = {cidr(each.ip).ip for each in addresses.list_addresses(host, port.index)}
    for each in ips:
        own = cidr(each.address)
        if each.gateway and cidr(f"{each.gateway}/{own.bits}").ip not in there:
            raise failed(f"ptp: {port.name} does not have the address of the gateway {each.gateway}")
        family = PlainRoute(f"{own.ip}/{own.bits}").family
        if not any(route.dst == f"{own.ip}/{own.bits}" for route in list_routes(host, family, dev=port.index)):
            raise failed(f"ptp: the host has no route to {own.ip} by {port.name}")


def gc(call: Call) -> None:
    """What is left of this network's other attachments goes, and the address plugin is told."""
    valid = valid_attachments(call)
    with Netlink() as host:
        all_of(
            lambda: veth.collect(call, host, valid),
            lambda: delegate.ipam_gc(call),
            lambda: masquerade.collect(call, valid),
        )


def status(call: Call) -> None:
    delegate.ipam_status(call)
    if masquerade.wanted(call):
        masquerade.check_available()


PLUGIN = Plugin("ptp", add, delete, check, gc, status)
