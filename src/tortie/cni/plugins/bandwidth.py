"""bandwidth: limits what goes to and comes from a container. Chained behind a plugin that makes a veth pair.

    ingressRate, ingressBurst    to the container: bits per second, and bits at once
    egressRate, egressBurst      from the container
    runtimeConfig.bandwidth      the same four, when none of them is in the configuration itself

    host: veth ── root 1: tbf ─────────────────────────────────► eth0 of the container
          veth ── ingress ffff:, u32 0 0 ─► ifb bwp<hash> ── root 1: tbf ◄── eth0 of the container

Both happen on the host's end of the pair, which takes its share along when it goes; the ifb is deleted by DEL. Its
alias says whose it is, by which GC finds those that were left. Source: plugins/meta/bandwidth of the CNI reference
plugins.
"""

from __future__ import annotations

from tortie.base.errors import Exists, KernelError, NotFound, NotSupported
from tortie.base.record import record
from tortie.cni import owner
from tortie.cni.interface import delete_if_there, failed, find_link, hashed, open_pod
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Interface, Result, prev_result
from tortie.cni.spec import SUPPORTED_VERSIONS, Call, CniError, Code, lookup, member
from tortie.kernel import links, netns, tc
from tortie.kernel.netlink import Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERSIONS = SUPPORTED_VERSIONS[2:]
KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
HANDLE = 0x10000
"""`1:`"""
PREFERENCE = 1
LATENCY = 25_000
"""Microseconds that a packet may wait, which the queue is made for."""
MOST_BURST = 2**32 - 1
"""Bytes."""
IFB = "bwp"


@record(frozen=True, slots=True)
class Limit:
    """Bits per second, and bits that may go at once."""

    rate: int
    burst: int


@record(frozen=True, slots=True)
class Limits:
    """None is no limit."""

    ingress: Limit | None
    egress: Limit | None

    @property
    def none(self) -> bool:
        return self.ingress is None and self.egress is None


# --- deciding -----------------------------------------------------------------------------------------------------


def limits(conf: Mapping[str, Any]) -> Limits:
    """Those of the configuration; of the runtime if there are none. Raises CniError."""
    there = any(lookup(conf, key) for key in KEYS)
    source = conf if there else member(member(conf, "runtimeConfig", dict, {}), "bandwidth", dict, {})
    numbers = [member(source, key, int, 0) for key in KEYS]
    for key, number in zip(KEYS, numbers, strict=True):
        if number < 0:
            raise failed(f"failed to load netconf: json: cannot unmarshal number {number} into field {key}: below 0")
    return Limits(_limit(*numbers[:2]), _limit(*numbers[2:]))


def _limit(rate: int, burst: int) -> Limit | None:
    if rate and not burst:
        raise failed("if rate is set, burst must also be set")
    if burst and not rate:
        raise failed("if burst is set, rate must also be set")
    if burst // 8 >= MOST_BURST:
        raise failed("burst cannot be more than 4GB")
    if rate and (rate < 8 or burst < 8):
        raise failed(f"rate {rate} and burst {burst} are in bits, and must be a byte (8) at least")
    return Limit(rate, burst) if rate else None


def bucket(limit: Limit) -> tc.TokenBucket:
    """The queueing discipline of a limit, computed in whole microseconds as the Go plugin does it."""
    rate, burst = limit.rate // 8, limit.burst // 8
    microseconds = min(burst * 1_000_000 // rate, tc.MOST)
    ticks = min(microseconds * 1000 // tc.TICK, tc.MOST)
    return tc.TokenBucket(rate, ticks, min(rate * LATENCY // 1_000_000 + burst, tc.MOST))


def ifb_names(call: Call) -> tuple[str, str]:
    """The Go plugin's, and one for where another interface of the container in the same network has that already."""
    both = call.network + call.container_id
    return hashed(15, IFB, both), hashed(15, IFB, f"{both} {call.ifname}")


def own_ifb(call: Call, host: Netlink) -> links.Link | None:
    """The attachment's. One without an alias is the Go plugin's, which does not tell interfaces apart."""
    found = (find_link(host, name) for name in ifb_names(call))
    return next((each for each in found if each is not None and _may_be_of(call, each)), None)


def _may_be_of(call: Call, ifb: links.Link) -> bool:
    return ifb.alias in ("", owner.of(call))


# --- the pair -----------------------------------------------------------------------------------------------------


def host_end(call: Call, result: Result, host: Netlink) -> links.Link:
    """The host's end of the container's pair, which the plugin before has named. Raises CniError."""
    if not result.interfaces:
        raise failed("no interfaces provided")
    with open_pod(call) as pod:
        inside = find_link(pod.nl, call.ifname)
    if inside is None:
        raise failed(f"container interface {call.ifname} has no veth peer: Link not found")
    if inside.kind != "veth":
        raise failed(f"container interface {call.ifname} has no veth peer: it is a {inside.kind or 'device'}")
    try:
        outside = links.get_link(host, inside.parent)
    except NotFound:
        outside = None
    if outside is None or outside.kind != "veth" or outside.parent != inside.index:
        raise failed(f"veth peer with index {inside.parent} is not in host ns")
    if not any(each.name == outside.name and not each.sandbox for each in result.interfaces):
        raise failed("no veth peer of container interface found in host ns")
    return outside


def root_bucket(host: Netlink, dev: int) -> tc.TokenBucket | None:
    """The tbf that is the root of a link."""
    return next((each.bucket for each in tc.list_qdiscs(host) if each.dev == dev and each.is_root), None)


# --- the verbs ----------------------------------------------------------------------------------------------------


def add(call: Call) -> Result:
    wanted, result = limits(call.conf), prev_result(call)
    if result is None:
        raise failed("must be called as chained plugin")
    if wanted.none:
        return result
    interfaces = result.interfaces
    with Netlink() as host, Undo() as undo:
        veth = host_end(call, result, host)
        if wanted.ingress is not None:
            _shape(host, veth.index, wanted.ingress, undo)
        if wanted.egress is not None:
            ifb = _add_ifb(call, host, veth, wanted.egress, undo)
            interfaces = (*interfaces, Interface(ifb.name, ifb.mac))
    return Result(interfaces, result.ips, result.routes, result.dns, result.extra)


def _shape(host: Netlink, dev: int, limit: Limit, undo: Undo) -> None:
    if root_bucket(host, dev) is not None:
        raise failed("create qdisc: file exists")
    tc.replace_bucket(host, dev, HANDLE, bucket(limit))
    undo.then(tc.delete_root, host, dev)


def _add_ifb(call: Call, host: Netlink, veth: links.Link, limit: Limit, undo: Undo) -> links.Link:
    """The detour of what comes from the container. Raises CniError, KernelError."""
    name, other = ifb_names(call)
    there = find_link(host, name)
    if there is not None and not _may_be_of(call, there):
        name = other
    try:
        links.create_link(host, name, "ifb", mtu=veth.mtu)
    except Exists:
        raise failed(f"create ifb {name}: file exists") from None
    except KernelError as why:
        raise _no_ifb(why) from None
    undo.then(delete_if_there, host, name)
    links.set_txqlen(host, name, 0)
    links.set_alias(host, name, owner.of(call))
    links.set_up(host, name)
    ifb = links.get_link(host, name)
    _shape(host, ifb.index, limit, undo)
    tc.add_ingress(host, veth.index)
    undo.then(tc.delete_ingress, host, veth.index)
    tc.redirect(host, veth.index, ifb.index, PREFERENCE)
    return ifb


def _no_ifb(why: KernelError) -> Exception:
    import errno

    if why.errno != errno.EOPNOTSUPP:
        return why
    return NotSupported(f'{why.doing}: this kernel has no ifb: load the module "ifb" (modprobe ifb)')


def delete(call: Call) -> None:
    with Netlink() as host:
        ifb = own_ifb(call, host)
        if ifb is not None:
            delete_if_there(host, ifb.name)


def check(call: Call) -> None:
    wanted, result = limits(call.conf), prev_result(call)
    if result is None:
        raise failed("must be called as a chained plugin")
    if wanted.none:
        return
    with Netlink() as host:
        veth = host_end(call, result, host)
        if wanted.ingress is not None:
            _check_bucket(host, veth, wanted.ingress)
        if wanted.egress is not None:
            ifb = own_ifb(call, host)
            if ifb is None:
                raise failed(f"get ifb device: Link not found: {ifb_names(call)[0]}")
            _check_bucket(host, ifb, wanted.egress)
            _check_detour(host, veth, ifb)


def _check_bucket(host: Netlink, link: links.Link, limit: Limit) -> None:
    there, wanted = root_bucket(host, link.index), bucket(limit)
    if there is None:
        raise failed(f"no tbf is the root of {link.name}")
    for what, one, other in (
        ("Rate", there.rate, wanted.rate),
        ("Limit", there.limit, wanted.limit),
        ("Buffer", there.buffer, wanted.buffer),
    ):
        if one != other:
            raise failed(f"{what} doesn't match")


def _check_detour(host: Netlink, veth: links.Link, ifb: links.Link) -> None:
    hooked = any(each.dev == veth.index and each.is_hook for each in tc.list_qdiscs(host))
    if not hooked or all(each.redirect != ifb.index for each in tc.list_filters(host, veth.index)):
        raise failed(f"what arrives by {veth.name} is not redirected to {ifb.name}")


def gc(call: Call) -> None:
    """Deletes the ifbs of this network's other attachments. Those that the Go plugin made say nothing, and stay."""
    is_stale = owner.stale(call)
    with Netlink() as host:
        for link in links.list_links(host, kind="ifb"):
            if link.name.startswith(IFB) and is_stale(link.alias):
                delete_if_there(host, link.name)


def status(call: Call) -> None:
    """Raises CniError 50 where the kernel cannot do it, which is found out by doing it in a namespace that goes."""
    limits(call.conf)
    try:
        netns.apart(_try)
    except (KernelError, NotSupported) as why:
        raise CniError(Code.NOT_AVAILABLE, f"bandwidth cannot limit anything: {why}") from None


def _try() -> None:
    with Netlink() as nl:
        try:
            links.create_link(nl, IFB, "ifb")
        except KernelError as why:
            raise _no_ifb(why) from None
        index = links.link_index(nl, IFB)
        tc.replace_bucket(nl, index, HANDLE, bucket(Limit(8_000_000, 1_000_000)))
        tc.add_ingress(nl, index)
        tc.redirect(nl, index, index, PREFERENCE)


PLUGIN = Plugin("bandwidth", add, delete, check, gc, status, VERSIONS)
