"""What the interface plugins have in common: the pod's namespace, names, and putting a result onto an interface.

    open_pod ─► (the plugin makes its link) ─► delegate.ipam_add ─► configure ─► Result
    ADD fails: plugin.Undo takes back; CHECK: check_interface reads back what ADD said

Source: pkg/ipam, pkg/ip and pkg/ns of the CNI reference plugins, whose texts the errors are.
"""

from __future__ import annotations

import os
import sys
import time

from tortie.base.errors import ConfigError, Exists, KernelError, NotFound
from tortie.cni.result import Address, Dns, Interface, Result, Route
from tortie.cni.spec import Call, lookup, quote
from tortie.cni.spec import failed as failed
from tortie.kernel import addresses, links, netns, sysctl
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.tables import AF_INET, AF_INET6, RT_TABLE_MAIN
from tortie.kernel.plain_routes import PlainRoute, add_route, list_routes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

NO_RESULT = "Required prevResult missing"
"""Of a CHECK without the result of ADD. The texts are those of the reference plugins."""
DEFAULTS = ("0.0.0.0/0", "::/0")
SETTLE_SECONDS, SETTLE_PAUSE = 5.0, 0.05
"""How long an IPv6 address may be tentative, as in the Go plugins."""


class Pod:
    """A pod's network namespace, open: `path` as the runtime named it, `fd`, and `nl`, rtnetlink inside of it."""

    __slots__ = ("fd", "nl", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.nl = Netlink(fd)

    def __enter__(self) -> Pod:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.nl.close()
        os.close(self.fd)

    def sysctl(self, path: str, value: str | int) -> None:
        """Sets `net/...` inside. Raises KernelError."""
        sysctl.write(path, value, netns=self.fd)

    def try_sysctl(self, path: str, value: str | int) -> None:
        """The same where it may well not be there."""
        try:
            self.sysctl(path, value)
        except KernelError:
            pass


def open_pod(call: Call) -> Pod:
    """The namespace of an ADD or a CHECK. Raises CniError when there is none at the path."""
    try:
        return Pod(call.netns, netns.open_ns(call.netns))
    except NotFound:
        why = f"failed to Statfs {quote(call.netns)}: no such file or directory"
    except (ConfigError, KernelError) as error:
        why = str(error)
    raise failed(f"failed to open netns {quote(call.netns)}: {why}")


def pod_if_there(call: Call) -> Pod | None:
    """The namespace of a DEL; None when it is gone, or was never said. Raises CniError for a path to something else."""
    if not call.netns:
        return None
    try:
        return Pod(call.netns, netns.open_ns(call.netns))
    except NotFound:
        return None
    except (ConfigError, KernelError) as error:
        raise failed(str(error)) from None


def temporary_name() -> str:
    """`veth` and 8 random hexadecimal digits: a name until the link has its own, or of a pair's end on the host."""
    return f"veth{os.urandom(4).hex()}"


def hashed(length: int, prefix: str, text: str) -> str:
    """`prefix` and as much of the SHA-512 of `text` as makes `length` characters."""
    # hashlib's own, without what else hashlib imports
    if sys.version_info >= (3, 12):
        from _sha2 import sha512
    else:
        from _sha512 import sha512  # type: ignore[import-not-found]

    digest: str = sha512(text.encode()).hexdigest()
    return (prefix + digest)[:length]


def find_link(nl: Netlink, name: str) -> links.Link | None:
    try:
        return links.get_link(nl, name)
    except NotFound:
        return None


def delete_if_there(nl: Netlink, name: str) -> None:
    try:
        links.delete_link(nl, name)
    except NotFound:
        pass


def default_interface(nl: Netlink) -> str:
    """The name of the link that the first default route of any family leaves by. Raises CniError when there is none."""
    for family in (AF_INET, AF_INET6):
        for route in list_routes(nl, family):
            if route.dst in DEFAULTS and route.dev and route.type == "unicast":
                return links.get_link(nl, route.dev).name
    raise failed("no default route interface found")


# --- results ------------------------------------------------------------------------------------------------------


def top_level_dns(call: Call) -> Dns:
    """The `dns` of the configuration itself."""
    return Result.load({"cniVersion": "1.0.0", "dns": lookup(call.conf, "dns", {})}).dns


def attached(ipam: Result, interfaces: Sequence[Interface], index: int, dns: Dns) -> Result:
    """An address plugin's result with interfaces, the addresses being on the one with this index."""
    ips = tuple(Address(each.address, each.gateway, index, each.extra) for each in ipam.ips)
    return Result(tuple(interfaces), ips, ipam.routes, dns, ipam.extra)


# --- configuring --------------------------------------------------------------------------------------------------


def configure(pod: Pod, ifname: str, result: Result) -> None:
    """Gives the interface the addresses and routes of the result that are its own, and sets it up.

    A route without gateway goes through the first gateway of its family among the addresses. Raises CniError.
    """
    if not result.interfaces:
        raise failed("no interfaces to configure")
    link = find_link(pod.nl, ifname)
    if link is None:
        raise failed(f"failed to lookup {quote(ifname)}: Link not found")
    gateways = {"4": "", "6": ""}
    prepared = False
    for ip in result.ips:
        if ip.interface is None:
            continue
        if not 0 <= ip.interface < len(result.interfaces) or result.interfaces[ip.interface].name != ifname:
            raise failed(f"failed to add IP addr {ip.address} to {quote(ifname)}: invalid interface index")
        if ip.family == "6" and not prepared:
            _prepare_ipv6(pod, ifname)
            prepared = True
        _add_address(pod, link, ip.address)
        gateways[ip.family] = gateways[ip.family] or ip.gateway
    links.set_up(pod.nl, link.index)
    if gateways["6"]:
        settle(pod.nl, link.index, ifname)
    for route in result.routes:
        _add_route(pod, link, route, gateways)


def _prepare_ipv6(pod: Pod, ifname: str) -> None:
    for name in ("lo", ifname):
        path = f"net/ipv6/conf/{name}/disable_ipv6"
        try:
            if sysctl.read(path, netns=pod.fd) != "0":
                pod.sysctl(path, 0)
        except KernelError as error:
            raise failed(f"failed to enable IPv6 for interface {quote(name)}: {error}") from None
    pod.try_sysctl(f"net/ipv6/conf/{ifname}/keep_addr_on_down", 1)


def _add_address(pod: Pod, link: links.Link, address: str) -> None:
    try:
        addresses.add_address(pod.nl, link.index, address)
    except (KernelError, ConfigError, NotFound) as error:
        raise failed(f"failed to add IP addr {address} to {quote(link.name)}: {error}") from None


def _add_route(pod: Pod, link: links.Link, route: Route, gateways: dict[str, str]) -> None:
    via = route.gw or gateways["6" if ":" in route.dst else "4"]
    wanted = PlainRoute(
        route.dst,
        dev=link.index,
        via=via,
        metric=route.priority,
        table=route.table if route.table is not None else RT_TABLE_MAIN,
        scope=route.scope,
        mtu=route.mtu,
        advmss=route.advmss,
    )
    try:
        add_route(pod.nl, wanted, "append")
    except (KernelError, ConfigError, Exists) as error:
        why = os.strerror(error.errno).lower() if isinstance(error, KernelError) and error.errno else str(error)
        why = "file exists" if isinstance(error, Exists) else why
        raise failed(f"failed to add route '{route.dst} via {via or 'none'} dev {link.name}': {why}") from None


def settle(nl: Netlink, index: int, ifname: str) -> None:
    """Waits until no address of the link is tentative. Raises CniError for a duplicate, and after 5 seconds."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = addresses.list_addresses(nl, index, family=AF_INET6)
        for each in found:
            if each.flags & addresses.AddressFlag.DADFAILED:
                raise failed(f"failed to settle addresses on {quote(ifname)}: {each.ip} is a duplicate (dadfailed)")
        tentative = [each.ip for each in found if not each.usable]
        if not tentative:
            return
        if time.monotonic() > deadline:
            raise failed(f"failed to settle addresses on {quote(ifname)}: {tentative[0]} is still tentative")
        time.sleep(SETTLE_PAUSE)


# --- checking -----------------------------------------------------------------------------------------------------


def own_interface(call: Call, result: Result | None, missing: str = NO_RESULT) -> Interface:
    """The interface of a result that is in the pod. Raises CniError: no result, another sandbox, no such interface."""
    if result is None:
        raise failed(missing)
    for interface in result.interfaces:
        if interface.name == call.ifname and interface.sandbox:
            if interface.sandbox != call.netns:
                raise failed(f"Sandbox in prevResult {interface.sandbox} doesn't match configured netns: {call.netns}")
            return interface
    raise failed(f"Interface {call.ifname} not found in prevResult")


def check_interface(pod: Pod, ifname: str, result: Result) -> None:
    """The addresses and routes of the result are there. Raises CniError naming the first that is not."""
    link = find_link(pod.nl, ifname)
    if link is None:
        raise failed(f"Interface {ifname} not found")
    there = {each.ip for each in addresses.list_addresses(pod.nl, link.index)}
    for ip in _addresses_of(result, ifname):
        if canonical(ip.address) not in there:
            raise failed(f"Failed to match addr {ip.address} on interface {ifname}")
    known = [each for family in (AF_INET, AF_INET6) for each in list_routes(pod.nl, family, table=0)]
    for route in result.routes:
        table = route.table if route.table is not None else RT_TABLE_MAIN
        if not any(_is(each, route, table) for each in known):
            raise failed(f"Expected Route {{Dst:{route.dst} GW:{route.gw or '<nil>'}}} not found in routing table")


def _addresses_of(result: Result, ifname: str) -> Iterator[Address]:
    for ip in result.ips:
        if ip.interface is None or (
            0 <= ip.interface < len(result.interfaces) and result.interfaces[ip.interface].name == ifname
        ):
            yield ip


def _is(there: PlainRoute, wanted: Route, table: int) -> bool:
    if there.table != table or there.dst != canonical(wanted.dst):
        return False
    return there.dst in DEFAULTS or not wanted.gw or there.via == canonical(wanted.gw)


def canonical(text: str) -> str:
    """An address or CIDR as the kernel writes it: `FD00::0/64` is `fd00::/64`. What is neither stays as it is."""
    import _socket

    address, slash, length = text.partition("/")
    family = AF_INET6 if ":" in address else AF_INET
    try:
        return _socket.inet_ntop(family, _socket.inet_pton(family, address)) + slash + length
    except (OSError, ValueError):  # ValueError: with a NUL in it
        return text
