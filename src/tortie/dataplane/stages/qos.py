"""Bandwidth of pods: token buckets on their interfaces.

    to the pod      cali…: root tbf
    from the pod    cali…: ingress ─ filter: redirect ─► bwcali… (ifb): root tbf ─► back to where it came from

Ours: on the interfaces of pods (`cali*`) a root tbf with the handle ca11:, and filters that redirect to an ifb of
ours, at whatever preference; the ifbs themselves, which are all links called `bwcali…`. Somebody else's tbf on a pod's
interface stays until the pod gets a limit.
Order: after routes: an interface that is not there yet is shaped when it appears. Packets flow unshaped rather than not
at all when a kernel cannot shape; the failure says what it lacks.
Source: Calico's Felix for the names and for what a burst, a peak rate and 25 ms of latency mean. Three things are
better done otherwise: what waits is bounded by what one burst of packets needs (Felix adds the bucket's size in ticks
to it as if they were bytes, half a gigabyte by default); a bucket holds at least a packet, else nothing ever passes;
and a peak rate that rounds to the rate is none.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tortie.base.errors import Exists, KernelError, NotFound, NotSupported, TortieError
from tortie.base.plan import Op, Plan, Verb, diff
from tortie.calc.qos import Limits
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel import links, tc
from tortie.kernel.netlink import Netlink
from tortie.model.workload import INTERFACE_PREFIX

IFB_PREFIX = "bwcali"
HANDLE = 0xCA110000
"""`ca11:`: by it we know our own."""
PREF = 0xCA11
"""After filters of others."""
LATENCY = 0.025
"""Seconds that a packet may wait; Calico's."""
ETHERNET_HEADER = 14
LARGEST_PACKETS = 2 * 65536
"""Bytes: two packets as large as segmentation offload makes them. A shorter queue would never take a second one."""


@dataclass(frozen=True, slots=True)
class Ifb:
    """A link to shape on; down it would swallow everything."""

    mtu: int
    up: bool = True

    def __str__(self) -> str:
        return f"mtu {self.mtu} type ifb"


@dataclass(frozen=True, slots=True)
class Redirect:
    """Everything that comes from a pod goes to an ifb; "" is one that is gone."""

    ifb: str


Key = tuple[str, str, int]
"""What it is (`ifb`, `tbf` or `redirect`), the name of the link that it is or is on, and a redirect's preference."""
Thing = Ifb | tc.TokenBucket | Redirect


def plan(want: Mapping[Key, Thing], have: Mapping[Key, Thing]) -> Plan[Key, Thing]:
    """The steps from what is to what should be. A bucket goes with its ifb, which is deleted last: a filter that leads
    to nowhere drops what it gets."""
    dying = {key[1] for key in have if key[0] == "ifb" and key not in want}
    rest = {key: thing for key, thing in have.items() if key[0] != "tbf" or key[1] not in dying}
    order = ("redirect", "tbf", "ifb")
    return diff(want, {key: rest[key] for key in sorted(rest, key=lambda key: (order.index(key[0]), key))}, _words)


def _words(verb: Verb, key: Key, thing: Thing) -> str:
    _, name, pref = key
    match thing:
        case Ifb() if verb is Verb.DELETE:
            return f"ip link del {name}"
        case Ifb() if verb is Verb.ADD:
            return f"ip link add {name} {thing} && ip link set {name} up"
        case Ifb():
            return f"ip link set {name} mtu {thing.mtu} up"
        case Redirect():
            where = f"dev {name} ingress pref {pref}"
            if verb is Verb.DELETE:
                return f"tc filter del {where}"
            return f"tc filter replace {where} u32 match u32 0 0 action mirred egress redirect dev {thing.ifb}"
        case _ if verb is Verb.DELETE:
            return f"tc qdisc del dev {name} root"
        case _:
            return f"tc qdisc replace dev {name} root handle ca11: {thing}"


def ifb_name(interface: str) -> str:
    """The ifb of a pod's interface.

    >>> ifb_name("cali0123456789a")
    'bwcali627a0cdce'
    """
    digest = hashlib.sha512(interface.encode()).hexdigest()
    return (IFB_PREFIX + digest)[: links.LONGEST_NAME]


def bucket(limits: Limits, mtu: int) -> tc.TokenBucket:
    """The token bucket of a direction that has a bandwidth, for packets of up to `mtu` bytes."""
    packet = mtu + ETHERNET_HEADER
    rate, peak = limits.bandwidth // 8, limits.peakrate // 8
    buffer = tc.ticks(max(limits.burst // 8, packet), rate)
    limit = min(int(rate * LATENCY) + min(tc.size_of(buffer, rate), LARGEST_PACKETS), tc.MOST)
    if peak <= rate:
        return tc.TokenBucket(rate, buffer, limit)
    return tc.TokenBucket(rate, buffer, limit, peak, tc.ticks(max(limits.minburst, packet), peak))


class Qos:
    name = "qos"
    guard = False

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._nothing = False
        """The last look found nothing of ours: there is nothing to look for while nobody has a limit."""

    def select(self, state: DesiredState, mtus: Mapping[str, int]) -> dict[Key, Thing]:
        """What of the state is ours, on the interfaces that are there, given the MTUs of those that have a limit."""
        want: dict[Key, Thing] = {}
        for name in sorted(state.endpoints.keys() & mtus.keys()):
            qos, mtu = state.endpoints[name].qos, mtus[name]
            if qos.egress.bandwidth:
                ifb = ifb_name(name)
                want["ifb", ifb, 0] = Ifb(mtu)
                want["tbf", ifb, 0] = bucket(qos.egress, mtu)
                want["redirect", name, PREF] = Redirect(ifb)
            if qos.ingress.bandwidth:
                want["tbf", name, 0] = bucket(qos.ingress, mtu)
        return want

    def observe(self, nl: Netlink, names: Mapping[int, str]) -> dict[Key, Thing]:
        """What is ours in the kernel. `names` are those of all links."""
        have: dict[Key, Thing] = {}
        for link in _found(nl, (name for name in names.values() if name.startswith(IFB_PREFIX))):
            have["ifb", link.name, 0] = Ifb(link.mtu, link.up)
        for qdisc in tc.list_qdiscs(nl):
            name = names.get(qdisc.dev, "")
            if not name.startswith((INTERFACE_PREFIX, IFB_PREFIX)):
                continue
            if qdisc.bucket is not None and qdisc.is_root and qdisc.handle == HANDLE:
                have["tbf", name, 0] = qdisc.bucket
            if qdisc.is_hook:
                for pref, target in _redirects(tc.list_filters(nl, qdisc.dev), names):
                    have["redirect", name, pref] = Redirect(target)
        return have

    def plan(self, state: DesiredState) -> Plan[Key, Thing]:
        limited = [
            name for name, one in state.endpoints.items() if one.qos.ingress.bandwidth or one.qos.egress.bandwidth
        ]
        if self._nothing and not limited:
            return Plan()
        names = links.names(self._netns)
        with Netlink(self._netns) as nl:
            there = set(names.values())
            mtus = {link.name: link.mtu for link in _found(nl, (name for name in limited if name in there))}
            have = self.observe(nl, names)
        self._nothing = not have and not limited
        return plan(self.select(state, mtus), have)

    def make(self, work: Work) -> None:
        """All of it; when something fails, also what else there is to unmake before the first error is raised."""
        assert isinstance(work, Plan)
        if errors := self._apply([op for op in work if op.makes]):
            self._apply([op for op in work if not op.makes])
            raise errors[0]

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Plan)
        if errors := self._apply([op for op in work if not op.makes]):
            raise errors[0]

    def forget(self) -> None:
        self._nothing = False

    def _apply(self, ops: list[Op[Key, Thing]]) -> list[TortieError]:
        """What could not be done. An interface that went away needs nothing more."""
        errors: list[TortieError] = []
        if ops:
            index = {name: number for number, name in links.names(self._netns).items()}
            with Netlink(self._netns) as nl:
                for op in ops:
                    try:
                        _carry_out(nl, op, index)
                    except NotFound:
                        pass
                    except KernelError as error:
                        if error.errno not in (errno.ENODEV, errno.ENOENT):
                            errors.append(KernelError(error.errno or 0, op.text, error.detail))
                    except NotSupported as error:
                        errors.append(error)
        return errors


def _carry_out(nl: Netlink, op: Op[Key, Thing], index: dict[str, int]) -> None:
    """One step. `index` is that of each link; an ifb that is made is added to it. Raises NotFound for one without."""
    kind, name, pref = op.key
    if kind == "ifb" and isinstance(op.want, Ifb):
        if op.have is None:
            _create_ifb(nl, name)
            index[name] = links.link_index(nl, name)
        links.set_mtu(nl, name, op.want.mtu)
        links.set_up(nl, name)
        return
    if name not in index:
        raise NotFound(name)
    if kind == "ifb":
        links.delete_link(nl, name)
    elif isinstance(op.want, tc.TokenBucket):
        tc.replace_bucket(nl, index[name], HANDLE, op.want)
    elif kind == "tbf":
        tc.delete_root(nl, index[name])
    else:
        _redirect(nl, index, op.want, op.have, name, pref)


def _create_ifb(nl: Netlink, name: str) -> None:
    try:
        links.create_link(nl, name, "ifb")
    except Exists:
        pass
    except KernelError as why:
        if why.errno != errno.EOPNOTSUPP:
            raise
        text = "this kernel has no ifb, on which what a pod sends is shaped: modprobe ifb (CONFIG_IFB)"
        raise NotSupported(f"{why.doing}: {text}") from None


def _redirect(
    nl: Netlink, index: Mapping[str, int], want: Thing | None, have: Thing | None, name: str, pref: int
) -> None:
    """The hook comes with the first filter in it, and goes with the last."""
    if have is not None:
        tc.delete_filters(nl, index[name], pref)
    if isinstance(want, Redirect):
        if want.ifb not in index:
            raise NotFound(want.ifb)
        try:
            tc.add_ingress(nl, index[name])
        except KernelError as why:
            if why.errno != errno.EEXIST:
                raise
        tc.redirect(nl, index[name], index[want.ifb], pref)
    elif not tc.list_filters(nl, index[name]):
        tc.delete_ingress(nl, index[name])


def _redirects(filters: list[tc.Filter], names: Mapping[int, str]) -> Iterator[tuple[int, str]]:
    """Preference and ifb of those that lead to an ifb of ours, or to one that is gone."""
    for one in filters:
        target = names.get(one.redirect or 0, "")
        if one.redirect is not None and (not target or target.startswith(IFB_PREFIX)):
            yield one.pref, target


def _found(nl: Netlink, names: Iterator[str]) -> Iterator[links.Link]:
    """The links that are there."""
    for name in names:
        try:
            yield links.get_link(nl, name)
        except NotFound:
            continue
