"""Traffic control: token buckets, the ingress hook, and a filter there that sends everything through another link.

A queueing discipline shapes what leaves by a link. What arrives by one is shaped on its detour through an `ifb`.
Handles, parents and preferences are numbers as the kernel has them: 0xca110000 is `ca11:`, 0xffffffff is `root`.
"""

from __future__ import annotations

import _struct as struct
import errno

from tortie.base.errors import KernelError, NotSupported
from tortie.base.record import record
from tortie.kernel.netlink import Netlink
from tortie.kernel.netlink.codec import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE
from tortie.kernel.netlink.tables import (
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_GETQDISC,
    RTM_GETTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    TC,
    TC_ACT_STOLEN,
    TC_H_INGRESS,
    TC_H_ROOT,
    TC_INGRESS_FILTERS,
    TC_LINKLAYER_ETHERNET,
    TCA_EGRESS_REDIR,
)

TYPE_CHECKING = False  # as in netlink.codec
if TYPE_CHECKING:
    from typing import Any

TICK = 64
"""Nanoseconds: PSCHED_SHIFT (net/pkt_sched.h)."""
MOST = 2**32 - 1
_INGRESS_HANDLE = 0xFFFF0000
_EVERY_PROTOCOL = 0x0300  # htons(ETH_P_ALL) (linux/if_ether.h)
_HOOKS = ("ingress", "clsact")  # the two disciplines that have filters for what arrives
# struct tc_u32_sel with one tc_u32_key (linux/pkt_cls.h), which compares nothing: TC_U32_TERMINAL, one key
_EVERYTHING = struct.pack("=BBBxHHhhIIIii", 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@record(frozen=True, slots=True)
class TokenBucket:
    """A `tbf`. Rates in bytes/s, `buffer` and `peak_buffer` in ticks at them, `limit` in bytes that may wait. No peak
    is 0."""

    rate: int
    buffer: int
    limit: int
    peak: int = 0
    peak_buffer: int = 0

    def __str__(self) -> str:
        text = f"tbf rate {8 * self.rate}bit burst {size_of(self.buffer, self.rate)} limit {self.limit}"
        return f"{text} peakrate {8 * self.peak}bit mtu {size_of(self.peak_buffer, self.peak)}" if self.peak else text


@record(frozen=True, slots=True)
class Qdisc:
    """A queueing discipline of a link; `bucket` where it is a tbf."""

    dev: int
    kind: str
    handle: int
    parent: int
    bucket: TokenBucket | None = None

    @property
    def is_root(self) -> bool:
        return self.parent == TC_H_ROOT

    @property
    def is_hook(self) -> bool:
        return self.kind in _HOOKS


@record(frozen=True, slots=True)
class Filter:
    """A filter of the ingress hook; `redirect` is the link that it sends everything to, 0 for one that went away, None
    where a filter does something else."""

    pref: int
    kind: str
    redirect: int | None = None


def ticks(size: int, rate: int) -> int:
    """How long `size` bytes take at `rate` bytes/s, at least a tick, as much as the kernel's field can hold at most."""
    return min(max(1, -(-size * 1_000_000_000 // (rate * TICK))), MOST)


def size_of(ticks: int, rate: int) -> int:
    """The bytes that `ticks` are at `rate` bytes/s."""
    return ticks * TICK * rate // 1_000_000_000


def list_qdiscs(nl: Netlink) -> list[Qdisc]:
    """Those of all links, but for defaults that the kernel does not speak of."""
    found = (TC.unpack(message.payload) for message in nl.dump(RTM_GETQDISC, TC.pack({}), "tc qdisc show"))
    return [Qdisc(one["tcm_ifindex"], one["kind"], one["tcm_handle"], one["tcm_parent"], _bucket(one)) for one in found]


def replace_bucket(nl: Netlink, dev: int, handle: int, bucket: TokenBucket) -> None:
    """Makes the link's root such a tbf, or changes it. Raises NotSupported by a kernel without tbf."""
    parms = {
        "linklayer": TC_LINKLAYER_ETHERNET,
        "rate": min(bucket.rate, MOST),
        "peak_linklayer": TC_LINKLAYER_ETHERNET,
        "peakrate": min(bucket.peak, MOST),
        "limit": bucket.limit,
        "buffer": bucket.buffer,
        "mtu": bucket.peak_buffer,
    }
    options = {
        "parms": parms,
        "rate64": bucket.rate if bucket.rate > MOST else None,
        "prate64": bucket.peak if bucket.peak > MOST else None,
    }
    values = {"tcm_ifindex": dev, "tcm_handle": handle, "tcm_parent": TC_H_ROOT, "kind": "tbf", "options": options}
    doing = f"tc qdisc replace dev if{dev} root {bucket}"
    _ask(nl, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, values, doing, "sch_tbf (CONFIG_NET_SCH_TBF)")


def delete_root(nl: Netlink, dev: int) -> None:
    """The link gets the kernel's default back."""
    _ask(nl, RTM_DELQDISC, 0, {"tcm_ifindex": dev, "tcm_parent": TC_H_ROOT}, f"tc qdisc del dev if{dev} root")


def add_ingress(nl: Netlink, dev: int) -> None:
    """The hook for filters of what arrives. Raises NotSupported by a kernel without it."""
    values = {"tcm_ifindex": dev, "tcm_handle": _INGRESS_HANDLE, "tcm_parent": TC_H_INGRESS, "kind": "ingress"}
    doing = f"tc qdisc add dev if{dev} ingress"
    _ask(nl, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, values, doing, "sch_ingress (CONFIG_NET_SCH_INGRESS)")


def delete_ingress(nl: Netlink, dev: int) -> None:
    """The hook goes, and every filter in it; but not one that somebody made as a clsact."""
    values = {"tcm_ifindex": dev, "tcm_handle": _INGRESS_HANDLE, "tcm_parent": TC_H_INGRESS, "kind": "ingress"}
    try:
        _ask(nl, RTM_DELQDISC, 0, values, f"tc qdisc del dev if{dev} ingress")
    except KernelError as why:
        if why.errno != errno.EINVAL:
            raise


def list_filters(nl: Netlink, dev: int) -> list[Filter]:
    """The filters of a link's ingress hook, which must be there, one of each preference, in the order of these."""
    body = TC.pack({"tcm_ifindex": dev, "tcm_parent": TC_INGRESS_FILTERS})
    found: dict[int, Filter] = {}
    for message in nl.dump(RTM_GETTFILTER, body, f"tc filter show dev if{dev} ingress"):
        one = TC.unpack(message.payload)
        pref = one["tcm_info"] >> 16
        if pref not in found or found[pref].redirect is None:  # the kernel speaks of a u32's hash tables as well
            found[pref] = Filter(pref, one["kind"], _target(one))
    return [found[pref] for pref in sorted(found)]


def redirect(nl: Netlink, dev: int, target: int, pref: int) -> None:
    """Everything that arrives by the link leaves by `target` first. Raises NotSupported by a kernel that cannot."""
    action = {
        "kind": "mirred",
        "options": {"parms": {"action": TC_ACT_STOLEN, "eaction": TCA_EGRESS_REDIR, "ifindex": target}},
    }
    values = {
        **_filter(dev, pref),
        "kind": "u32",
        "options": {"selector": _EVERYTHING, "actions": {"first": action}},
    }
    doing = (
        f"tc filter add dev if{dev} ingress pref {pref} u32 match u32 0 0 action mirred egress redirect dev if{target}"
    )
    missing = "cls_u32 and act_mirred (CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED)"
    _ask(nl, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, values, doing, missing)


def delete_filters(nl: Netlink, dev: int, pref: int) -> None:
    """Those of the link's ingress hook that have this preference."""
    _ask(nl, RTM_DELTFILTER, 0, _filter(dev, pref), f"tc filter del dev if{dev} ingress pref {pref}")


def _filter(dev: int, pref: int) -> dict[str, Any]:
    return {"tcm_ifindex": dev, "tcm_parent": TC_INGRESS_FILTERS, "tcm_info": pref << 16 | _EVERY_PROTOCOL}


def _target(values: dict[str, Any]) -> int | None:
    """Where a filter sends things, if it does."""
    options = values.get("options")
    action = options.get("actions", {}).get("first", {}) if isinstance(options, dict) else {}
    if action.get("kind") != "mirred":
        return None
    parms = action["options"]["parms"]
    return int(parms["ifindex"]) if parms["eaction"] == TCA_EGRESS_REDIR else None


def _bucket(values: dict[str, Any]) -> TokenBucket | None:
    options = values.get("options")
    if values["kind"] != "tbf" or not isinstance(options, dict):
        return None
    parms = options["parms"]
    return TokenBucket(
        options.get("rate64", parms["rate"]),
        parms["buffer"],
        parms["limit"],
        options.get("prate64", parms["peakrate"]),
        parms["mtu"],
    )


def _ask(nl: Netlink, type: int, flags: int, values: dict[str, Any], doing: str, missing: str = "") -> None:
    """`missing` is what a kernel lacks that does not know the kind."""
    try:
        nl.request(type, flags, TC.pack(values), doing)
    except KernelError as why:
        if missing and why.errno in (errno.ENOENT, errno.EOPNOTSUPP):
            raise NotSupported(f"{doing}: this kernel lacks {missing}") from None
        raise
