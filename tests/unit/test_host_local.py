"""What host-local decides: ranges with their defaults, and which address is next; and its directory of files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.cni.plugins import host_local
from tortie.cni.plugins.host_local import opened
from tortie.cni.ranges import Range, RangeSet, next_free, read_range, read_set
from tortie.cni.span import Ip, Span, cidr, ip
from tortie.cni.spec import Call, CniError


def call(directory: Path, ipam: dict[str, Any], command: str = "ADD", container: str = "ctr1", **conf: Any) -> Call:
    body = {"cniVersion": "1.1.0", "name": "net1", **conf, "ipam": {"dataDir": str(directory), **ipam}}
    return Call(command, container, ifname="eth0", conf=body, cni_version="1.1.0", network="net1")


# --- ranges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "span", "gateway"),
    [
        ({"subnet": "10.1.2.0/24"}, "10.1.2.1-10.1.2.254", "10.1.2.1"),
        ({"subnet": "10.1.2.0/24", "gateway": "10.9.9.9"}, "10.1.2.1-10.1.2.254", "10.9.9.9"),
        ({"subnet": "10.1.2.0/30"}, "10.1.2.1-10.1.2.2", "10.1.2.1"),
        ({"subnet": "fd00::/64"}, "fd00::1-fd00::ffff:ffff:ffff:ffff", "fd00::1"),
        ({"subnet": "fd00::/126"}, "fd00::1-fd00::3", "fd00::1"),
        (
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.0", "rangeEnd": "10.1.2.255"},
            "10.1.2.0-10.1.2.255",
            "10.1.2.1",
        ),
        ({"SUBNET": "10.1.2.0/24", "rangestart": "10.1.2.9", "RangeEnd": ""}, "10.1.2.9-10.1.2.254", "10.1.2.1"),
    ],
)
def test_a_range(conf: dict[str, str], span: str, gateway: str) -> None:
    found = read_range(conf)
    assert (str(found.span), str(found.gateway)) == (span, gateway)


@pytest.mark.parametrize(
    ("conf", "why"),
    [
        ({"subnet": "10.1.2.0/31"}, "Network 10.1.2.0/31 too small to allocate from"),
        ({"subnet": "fd00::/127"}, "Network fd00::/127 too small to allocate from"),
        (
            {"subnet": "10.1.2.5/24"},
            "Network has host bits set. For a subnet mask of length 24 the network address is 10.1.2.0",
        ),
        ({"subnet": "10.1.2"}, "invalid CIDR address: 10.1.2"),
        ({"rangeStart": "10.1.2.1"}, "a range needs a subnet"),
        ({"subnet": "10.1.2.0/24", "gateway": "x"}, "invalid IP address: x"),
        ({"subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1"}, "RangeStart 10.1.3.1 not in network 10.1.2.0/24"),
        ({"subnet": "10.1.2.0/24", "rangeStart": "fd00::1"}, "RangeStart fd00::1 not in network 10.1.2.0/24"),
        (
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"},
            "RangeStart 10.1.2.9 not in network 10.1.2.0/24",
        ),
        ({"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.0"}, "RangeEnd 10.1.2.0 not in network 10.1.2.0/24"),
    ],
)
def test_what_is_no_range(conf: dict[str, str], why: str) -> None:
    with pytest.raises((ValueError, CniError)) as error:
        read_range(conf)
    assert str(error.value) == why


@pytest.mark.parametrize(
    ("subnets", "why"),
    [
        ([], "empty range set"),
        (["10.1.2.0/24", "fd00::/64"], "mixed address families"),
        (["10.1.2.0/24", "10.1.2.0/25"], "subnets 10.1.2.1-10.1.2.254 and 10.1.2.1-10.1.2.126 overlap"),
    ],
)
def test_what_is_no_range_set(subnets: list[str], why: str) -> None:
    with pytest.raises(ValueError) as error:
        read_set([{"subnet": each} for each in subnets])
    assert str(error.value) == why


# --- the next address ---------------------------------------------------------------------------------------------


def tiny(*ends: tuple[int, int]) -> RangeSet:
    """Ranges among the addresses 10.0.0.0 to 10.0.0.255, by their last bytes; the first address is the gateway."""
    base = ip("10.0.0.0")
    return tuple(
        Range(cidr("10.0.0.0/24"), Span(base.plus(first), base.plus(last)), base.plus(first)) for first, last in ends
    )


def as_go_walks(ranges: RangeSet, taken: set[str], last: Ip | None) -> Ip | None:
    """Address by address: the reading of the specification that `next_free` is held against."""
    every = [(each, Ip(n)) for each in ranges for n in range(each.span.first.number, each.span.last.number + 1)]
    at = next((i for i, (_, one) in enumerate(every) if one == last), -1)
    for one, address in every[at + 1 :] + every[: at + 1]:
        if address != one.gateway and str(address) not in taken:
            return address
    return None


@given(
    st.sets(st.integers(0, 30)),
    st.one_of(st.none(), st.integers(0, 40)),
    st.sampled_from([((0, 9),), ((5, 5),), ((0, 9), (20, 29)), ((20, 22), (3, 5), (10, 10))]),
)
def test_the_next_address_is_the_one_that_a_walk_finds(
    numbers: set[int], last: int | None, ends: tuple[tuple[int, int], ...]
) -> None:
    base, ranges = ip("10.0.0.0"), tiny(*ends)
    taken = {str(base.plus(each)) for each in numbers}
    before = None if last is None else base.plus(last)
    found = next_free(ranges, taken, before)
    assert (found and found[1]) == as_go_walks(ranges, taken, before)


def test_the_end_of_all_addresses() -> None:
    whole = read_set([{"subnet": "ff00::/8"}])
    last = whole[0].span.last
    assert str(last) == "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    found = next_free(whole, set(), last)
    assert found is not None
    assert str(found[1]) == "ff00::2"


def test_a_huge_range_costs_what_is_held() -> None:
    ranges = read_set([{"subnet": "fd00::/64"}])
    base = ip("fd00::")
    taken = {str(base.plus(n)) for n in range(2, 10_002)}
    begun = time.perf_counter()
    found = next_free(ranges, taken, None)
    assert time.perf_counter() - begun < 1
    assert found is not None
    assert found[1] == base.plus(10_002)
    full = {str(base.plus(n)) for n in range(1 << 10)}
    assert next_free(read_set([{"subnet": "fd00::/118"}]), full, base.plus(77)) is None


# --- the files ----------------------------------------------------------------------------------------------------

IPAM = {"subnet": "10.1.2.0/24"}


def test_files_are_what_go_writes(tmp_path: Path) -> None:
    result = host_local.add(call(tmp_path, IPAM))
    assert [(each.address, each.gateway) for each in result.ips] == [("10.1.2.2/24", "10.1.2.1")]
    there = tmp_path / "net1"
    assert (there / "10.1.2.2").read_bytes() == b"ctr1\r\neth0"
    assert (there / "last_reserved_ip.0").read_bytes() == b"10.1.2.2"
    assert (there / "lock").read_bytes() == b""
    modes = {each.name: each.stat().st_mode & 0o777 for each in there.iterdir()}
    assert modes == {"10.1.2.2": 0o600, "last_reserved_ip.0": 0o600, "lock": 0o750, ".boot": 0o600}
    assert there.stat().st_mode & 0o777 == 0o755


def test_a_failure_takes_back_only_what_this_call_took(tmp_path: Path) -> None:
    both = {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/126"}]]}
    host_local.add(call(tmp_path, {"ranges": [both["ranges"][0]]}))  # what ctr1 has
    for other in ("a", "b"):
        host_local.add(call(tmp_path, {"ranges": [both["ranges"][1]]}, container=other))
    with pytest.raises(CniError, match=r"failed to allocate for range 0: 10.1.2.2 has been allocated to ctr1"):
        host_local.add(call(tmp_path, both))
    wish = {"runtimeConfig": {"ips": ["10.1.2.9"]}}
    why = "failed to allocate for range 1: no IP addresses available in range set: fd00::1-fd00::3"
    with pytest.raises(CniError, match=why):
        host_local.add(call(tmp_path, both, **wish))
    held = sorted(each.name for each in (tmp_path / "net1").iterdir() if each.name[0] in "1f")
    assert held == ["10.1.2.2", "fd00::2", "fd00::3"]
    with pytest.raises(CniError, match=r"failed to allocate all requested IPs: 10.9.9.9 10.9.9.8"):
        host_local.add(call(tmp_path, IPAM, container="c", runtimeConfig={"ips": ["10.9.9.9", "10.9.9.8"]}))
    assert len(list((tmp_path / "net1").glob("10.*"))) == 1


def test_odd_files_disturb_nobody(tmp_path: Path) -> None:
    there = tmp_path / "net1"
    (there / "10.1.2.2").mkdir(parents=True)
    (there / "10.1.2.3").symlink_to("nowhere")
    os.mkfifo(there / "10.1.2.4")
    (there / "10.1.2.5").write_bytes(b"\xff\xfe" * 9000)
    (there / "10.1.2.6").write_bytes(b"")  # of a plugin that was killed between making and writing it
    (there / "readme").write_text("ctr1\r\neth0")
    (there / "last_reserved_ip.0").write_bytes(b"\xffnonsense")
    (there / "last_reserved_ip.1").mkdir()
    (there / ".boot").write_bytes(b"\0\0\0")
    assert host_local.add(call(tmp_path, IPAM)).ips[0].address == "10.1.2.6/24"
    host_local.check(call(tmp_path, IPAM, "CHECK"))
    wish = {"runtimeConfig": {"ips": ["10.1.2.3"]}}
    with pytest.raises(CniError, match=r"requested IP address 10.1.2.3 is not available"):
        host_local.add(call(tmp_path, IPAM, container="b", **wish))
    host_local.delete(call(tmp_path, IPAM, "DEL"))
    host_local.gc(call(tmp_path, IPAM, "GC", **{"cni.dev/valid-attachments": None}))
    assert not (there / "10.1.2.6").exists()
    assert (there / "readme").exists()
    host_local.status(call(tmp_path, IPAM, "STATUS"))


def test_an_empty_file_that_is_asked_for_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "net1").mkdir()
    (tmp_path / "net1" / "10.1.2.50").write_bytes(b"")
    assert host_local.add(call(tmp_path, IPAM, runtimeConfig={"ips": ["10.1.2.50/8"]})).ips[0].address == "10.1.2.50/24"


def test_an_invalid_range_is_no_reason_to_keep_an_address(tmp_path: Path) -> None:
    host_local.add(call(tmp_path, IPAM))
    host_local.delete(call(tmp_path, {"subnet": "10.1.2.5/33"}, "DEL"))
    assert not (tmp_path / "net1" / "10.1.2.2").exists()
    host_local.delete(call(tmp_path / "not-there", {"ranges": 7}, "DEL"))
    assert not (tmp_path / "not-there").exists()


def test_gc_frees_what_is_not_listed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        host_local.add(call(tmp_path, IPAM, container=name))
    (tmp_path / "net1" / "10.1.2.90").write_text("a")  # as was written long ago
    (tmp_path / "net1" / "10.1.2.91").write_text("gone")
    with pytest.raises(ConfigError, match=r"GC needs cni.dev/valid-attachments"):
        host_local.gc(call(tmp_path, IPAM, "GC"))
    valid = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]
    host_local.gc(call(tmp_path, IPAM, "GC", **{"cni.dev/valid-attachments": valid}))
    assert sorted(each.name for each in (tmp_path / "net1").glob("10.*")) == ["10.1.2.2", "10.1.2.90"]


def test_status(tmp_path: Path) -> None:
    small = {"subnet": "10.1.2.0/30"}
    host_local.status(call(tmp_path, small, "STATUS"))
    host_local.add(call(tmp_path, small))
    with pytest.raises(CniError) as error:
        host_local.status(call(tmp_path, small, "STATUS"))
    assert (error.value.code, error.value.msg) == (50, "no IP addresses available in range set: 10.1.2.1-10.1.2.2")
    (tmp_path / "file").write_text("")
    with pytest.raises(CniError) as error:
        host_local.status(call(tmp_path / "file", small, "STATUS"))
    assert (error.value.code, error.value.msg) == (50, f"mkdir {tmp_path}/file/net1: not a directory")


# --- reboots ------------------------------------------------------------------------------------------------------

FORMER = "boot 00000000-1111-2222-3333-444444444444"
LONG_AGO = 1_000_000_000_000_000_000


def reboot(there: Path) -> None:
    """As if all that is there had been written under another boot of the machine, long ago, in the order it was."""
    earlier = time.time_ns() - LONG_AGO
    times = {each: each.stat().st_mtime_ns - earlier for each in there.iterdir()}
    (there / ".boot").write_text(FORMER)
    for each, when in times.items():
        os.utime(each, ns=(when, when))


def test_a_reboot_frees_what_was_reserved(tmp_path: Path) -> None:
    for name in ("a", "b"):
        host_local.add(call(tmp_path, IPAM, container=name))
    reboot(tmp_path / "net1")
    assert host_local.add(call(tmp_path, IPAM, container="c")).ips[0].address == "10.1.2.4/24"  # still round robin
    assert [each.name for each in (tmp_path / "net1").glob("10.*")] == ["10.1.2.4"]
    assert host_local.add(call(tmp_path, IPAM, container="d")).ips[0].address == "10.1.2.5/24"


def test_what_was_reserved_after_the_reboot_stays(tmp_path: Path) -> None:
    there = tmp_path / "net1"
    host_local.add(call(tmp_path, IPAM, container="a"))
    reboot(there)
    (there / "10.1.2.77").write_bytes(b"new\r\neth0")  # Go's host-local was here first
    host_local.add(call(tmp_path, IPAM, container="b"))
    assert sorted(each.name for each in there.glob("10.*")) == ["10.1.2.3", "10.1.2.77"]


def test_nothing_is_freed_when_told_not_to(tmp_path: Path) -> None:
    host_local.add(call(tmp_path, IPAM, container="a"))
    reboot(tmp_path / "net1")
    host_local.add(call(tmp_path, {**IPAM, "reclaim": False}, container="b"))
    assert (tmp_path / "net1" / "10.1.2.2").exists()


def test_a_full_range_is_ready_after_a_reboot(tmp_path: Path) -> None:
    small = {"subnet": "10.1.2.0/30"}
    host_local.add(call(tmp_path, small))
    reboot(tmp_path / "net1")
    host_local.status(call(tmp_path, small, "STATUS"))


def test_what_go_left_before_we_came_stays(tmp_path: Path) -> None:
    there = tmp_path / "net1"
    there.mkdir()
    (there / "10.1.2.2").write_bytes(b"old\r\neth0")
    os.utime(there / "10.1.2.2", ns=(LONG_AGO, LONG_AGO))
    assert host_local.add(call(tmp_path, IPAM)).ips[0].address == "10.1.2.3/24"


def test_a_range_from_one_end_to_the_other(tmp_path: Path) -> None:
    conf = json.loads((Path(__file__).parents[2] / "examples/cases/ipvlan-l2/single.conf").read_text())
    given = [host_local.add(call(tmp_path, conf["ipam"], container=f"c{n}")).ips[0].address for n in range(122)]
    assert given == [f"10.211.55.{n}/24" for n in range(129, 251)]
    with pytest.raises(CniError, match=r"no IP addresses available in range set: 10.211.55.129-10.211.55.250"):
        host_local.add(call(tmp_path, conf["ipam"], container="late"))


def test_ten_thousand_reservations(tmp_path: Path) -> None:
    there = tmp_path / "net1"
    there.mkdir()
    base = ip("fd00::")
    for n in range(2, 10_002):
        (there / str(base.plus(n))).write_bytes(b"%064d\r\neth0" % n)
    begun = time.perf_counter()
    found = host_local.add(call(tmp_path, {"subnet": "fd00::/64"}))
    took = time.perf_counter() - begun
    assert found.ips[0].address == f"{base.plus(10_002)}/64"
    assert took < 5, took


def test_an_opened_directory_is_locked(tmp_path: Path) -> None:
    import fcntl

    with opened(str(tmp_path / "net1")), (tmp_path / "net1" / "lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
