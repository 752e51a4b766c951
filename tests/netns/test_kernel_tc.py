"""Traffic control against the kernel, read back with `tc -j`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import Ns

from tortie.base.errors import KernelError
from tortie.kernel import links, tc
from tortie.kernel.netlink import Netlink

pytestmark = pytest.mark.root

HANDLE = 0xCA110000
BUCKETS = (
    tc.TokenBucket(rate=1_250_000, buffer=1_250_000, limit=131_250),
    tc.TokenBucket(rate=125, buffer=tc.MOST, limit=34_359),
    tc.TokenBucket(rate=1_000_000, buffer=15_625_000, limit=125_000, peak=2_000_000, peak_buffer=11_829),
    tc.TokenBucket(rate=10**15 // 8, buffer=68, limit=tc.MOST, peak=1010 * 10**12 // 8, peak_buffer=1),
)


@pytest.fixture
def ns(make_ns: Callable[..., Ns]) -> Ns:
    """With a veth, and an ifb."""
    made = make_ns()
    made.ip("link", "add", "v0", "type", "veth", "peer", "v1")
    made.ip("link", "add", "if0", "type", "ifb")
    return made


def qdiscs(ns: Ns, dev: str = "v0") -> list[dict[str, Any]]:
    listed = json.loads(ns.run("tc", "-j", "qdisc", "show", "dev", dev))
    return [one for one in listed if one["kind"] != "noqueue"]


def test_a_bucket_is_read_back_as_it_was_written(ns: Ns) -> None:
    """Every field of it, or a stage that compares would write it again and again."""
    with Netlink(ns.path) as nl:
        index = links.link_index(nl, "v0")
        for bucket in (*BUCKETS, *reversed(BUCKETS)):
            tc.replace_bucket(nl, index, HANDLE, bucket)
            (found,) = [one for one in tc.list_qdiscs(nl) if one.dev == index and one.is_root]
            assert found == tc.Qdisc(index, "tbf", HANDLE, 0xFFFFFFFF, bucket)
            (shown,) = qdiscs(ns)
            assert (shown["kind"], shown["handle"], shown["root"]) == ("tbf", "ca11:", True)
            assert shown["options"]["rate"] == bucket.rate
        tc.delete_root(nl, index)
    assert qdiscs(ns) == []


def test_tc_shows_what_was_meant(ns: Ns) -> None:
    with Netlink(ns.path) as nl:
        tc.replace_bucket(nl, links.link_index(nl, "v0"), HANDLE, BUCKETS[0])
        tc.replace_bucket(nl, links.link_index(nl, "if0"), HANDLE, BUCKETS[2])
    (first,), (second,) = qdiscs(ns), qdiscs(ns, "if0")
    assert first["options"] == {"rate": 1_250_000, "burst": 100_000, "lat": 25_000}
    assert "rate 8Mbit burst 1000000b peakrate 16Mbit minburst 1514b" in ns.run("tc", "qdisc", "show", "dev", "if0")
    assert second["options"]["burst"] == 1_000_000


def test_the_words_are_tcs(ns: Ns) -> None:
    """What a bucket prints as is what `tc` takes, and leads to the same, but that `tc` counts in microseconds."""
    with Netlink(ns.path) as nl:
        index = links.link_index(nl, "v0")
        for bucket in (BUCKETS[0], BUCKETS[2]):
            ns.run("tc", "qdisc", "replace", "dev", "v0", "root", "handle", "ca11:", *str(bucket).split())
            (read,) = [one.bucket for one in tc.list_qdiscs(nl) if one.dev == index]
            assert read is not None
            assert replace(read, peak_buffer=0) == replace(bucket, peak_buffer=0)
            assert abs(read.peak_buffer - bucket.peak_buffer) * tc.TICK < 1000


def test_a_redirect_and_its_hook(ns: Ns) -> None:
    with Netlink(ns.path) as nl:
        index, target = links.link_index(nl, "v0"), links.link_index(nl, "if0")
        tc.add_ingress(nl, index)
        with pytest.raises(KernelError, match=r"tc qdisc add dev if\d+ ingress: "):
            tc.add_ingress(nl, index)
        assert [one.is_hook for one in tc.list_qdiscs(nl) if one.dev == index] == [True]
        assert tc.list_filters(nl, index) == []
        ns.run("tc", "filter", "add", "dev", "v0", "ingress", "pref", "9", "u32", "match", "u32", "0", "0",
               "action", "mirred", "egress", "mirror", "dev", "lo")  # fmt: skip
        tc.redirect(nl, index, target, 0xCA11)
        assert tc.list_filters(nl, index) == [tc.Filter(9, "u32"), tc.Filter(0xCA11, "u32", target)]
        shown = json.loads(ns.run("tc", "-j", "filter", "show", "dev", "v0", "ingress", "pref", str(0xCA11)))
        (rule,) = [one["options"] for one in shown if "actions" in one.get("options", {})]
        assert rule["match"] == {"value": "0", "mask": "0", "offmask": "", "off": 0}
        (action,) = rule["actions"]
        assert (action["mirred_action"], action["direction"], action["to_dev"]) == ("redirect", "egress", "if0")
        assert action["control_action"] == {"type": "stolen"}
        links.delete_link(nl, "if0")
        assert tc.list_filters(nl, index)[1] == tc.Filter(0xCA11, "u32", 0)
        tc.delete_filters(nl, index, 0xCA11)
        assert tc.list_filters(nl, index) == [tc.Filter(9, "u32")]
        tc.delete_ingress(nl, index)
    assert qdiscs(ns) == []


def test_a_clsact_of_somebody_else_serves_and_stays(ns: Ns) -> None:
    ns.run("tc", "qdisc", "add", "dev", "v0", "clsact")
    with Netlink(ns.path) as nl:
        index, target = links.link_index(nl, "v0"), links.link_index(nl, "if0")
        tc.redirect(nl, index, target, 5)
        assert tc.list_filters(nl, index) == [tc.Filter(5, "u32", target)]
        tc.delete_filters(nl, index, 5)
        tc.delete_ingress(nl, index)
    assert [one["kind"] for one in qdiscs(ns)] == ["clsact"]


@pytest.mark.parametrize(("size", "rate"), [(1514, 125), (1514, 10**14), (100_000, 1_250_000), (2**32 - 1, 10**6)])
def test_ticks_hold_as_many_bytes(size: int, rate: int) -> None:
    ticks = tc.ticks(size, rate)
    assert tc.size_of(ticks, rate) >= size or ticks == tc.MOST
    assert tc.size_of(ticks - 1, rate) < size
