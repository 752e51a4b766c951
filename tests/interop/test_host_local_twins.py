"""Our host-local and Go's over one data directory: what one writes the other reads, and neither gives out twice."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import GO, Caller, Said, put
from tortie.kernel import netns

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (GO / "host-local").exists(), reason="needs containernetworking-plugins"),
]

HOST = f"twins-{os.getpid()}"
LAN = {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "rangeEnd": "10.1.2.13"}
DUAL = {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64"}, {"subnet": "fd01::/64"}]]}


@dataclass(frozen=True)
class Twin:
    caller: Caller
    data: Path

    def __call__(self, command: str, ipam: dict[str, Any], container: str = "c", **how: Any) -> Said:
        conf = {"cniVersion": "1.0.0", "name": "net1", **how.pop("conf", {})}
        conf["ipam"] = {"type": "host-local", "dataDir": str(self.data), **ipam}
        return self.caller(command, conf, container=container, netns="/run/netns/x", type="host-local", **how)

    def add(self, ipam: dict[str, Any], container: str, **how: Any) -> list[str]:
        said = self("ADD", ipam, container, **how)
        assert said.code == 0, said
        return [each["address"].partition("/")[0] for each in said.doc["ips"]]

    def delete(self, ipam: dict[str, Any], container: str) -> None:
        assert self("DEL", ipam, container) == Said(0, "", "")


Pair = tuple[Twin, Twin]


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caller, Caller]]:
    netns.create(HOST)
    yield Caller(put(tmp_path_factory.mktemp("bin")), HOST), Caller(GO, HOST)
    netns.delete(HOST)


@pytest.fixture(params=["ours first", "theirs first"])
def pair(callers: tuple[Caller, Caller], tmp_path: Path, request: pytest.FixtureRequest) -> Pair:
    """Two plugins over one directory, the one of the test's `a` and the one of its `b`; and the other way round."""
    found = [Twin(caller, tmp_path) for caller in callers]
    return (found[0], found[1]) if request.param == "ours first" else (found[1], found[0])


def held(twin: Twin) -> dict[str, bytes]:
    """What is reserved, and what is remembered."""
    files = sorted((twin.data / "net1").iterdir())
    return {each.name: each.read_bytes() for each in files if each.name not in ("lock", ".boot")}


def test_they_take_turns(pair: Pair) -> None:
    a, b = pair
    assert [a.add(LAN, "1"), b.add(LAN, "2"), a.add(LAN, "3")] == [["10.1.2.10"], ["10.1.2.11"], ["10.1.2.12"]]
    b.delete(LAN, "1")
    assert b.add(LAN, "4") == ["10.1.2.13"]
    assert a.add(LAN, "5") == ["10.1.2.10"]
    said = [twin("ADD", LAN, "6") for twin in pair]
    assert said[0] == said[1]
    assert said[0].error[1].endswith("no IP addresses available in range set: 10.1.2.10-10.1.2.13")
    twice = [twin("ADD", LAN, "5") for twin in pair]
    assert twice[0] == twice[1]
    assert "duplicate allocation" in twice[0].error[1]
    a.delete(LAN, "2")
    b.delete(LAN, "4")
    assert b("CHECK", LAN, "3").code == 0
    assert [twin("CHECK", LAN, "4").error for twin in pair] == [
        (999, "host-local: Failed to find address added by container 4")
    ] * 2
    assert a.add(LAN, "7") == ["10.1.2.11"]
    assert b.add(LAN, "8") == ["10.1.2.13"]


def test_two_families_and_addresses_by_name(pair: Pair) -> None:
    a, b = pair
    assert a.add(DUAL, "1") == ["10.1.2.2", "fd00::2"]
    wish = {"runtimeConfig": {"ips": ["10.1.2.99", "fd01::5/64"]}}
    assert b.add(DUAL, "2", conf=wish) == ["10.1.2.99", "fd01::5"]
    taken = [twin("ADD", DUAL, "3", conf=wish) for twin in pair]
    assert taken[0] == taken[1]
    assert taken[0].error[1].startswith("failed to allocate for range 0: requested IP address 10.1.2.99 is not")
    assert a.add(DUAL, "3") == ["10.1.2.100", "fd01::6"]
    assert b.add(DUAL, "4", CNI_ARGS="IP=fd00::1:0") == ["10.1.2.101", "fd00::1:0"]
    assert a.add(DUAL, "5") == ["10.1.2.102", "fd00::1:1"]
    for container in "12345":
        (a if container in "24" else b).delete(DUAL, container)
    assert held(a) == {"last_reserved_ip.0": b"10.1.2.102", "last_reserved_ip.1": b"fd00::1:1"}


def test_equal_bytes(callers: tuple[Caller, Caller], tmp_path: Path) -> None:
    twins = [Twin(caller, tmp_path / str(n)) for n, caller in enumerate(callers)]
    for twin in twins:
        twin.add(DUAL, "ctr1")
        twin.add(DUAL, "ctr2", ifname="net1")
    assert held(twins[0]) == held(twins[1])
    modes = [{p.name: p.stat().st_mode & 0o777 for p in (twin.data / "net1").iterdir()} for twin in twins]
    assert modes[0].pop(".boot") == 0o600
    assert modes[0].keys() == modes[1].keys()
    assert modes[0]["lock"] == modes[1]["lock"] == 0o750


WRONG = [
    {"subnet": "10.1.2"},
    {"subnet": "10.1.2.5/24"},
    {"subnet": "10.1.2.0/31"},
    {"subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1"},
    {"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.0"},
    {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.20", "rangeEnd": "10.1.2.10"},
    {"subnet": "10.1.2.0/24", "rangeStart": "fd00::1"},
    {"subnet": "10.1.2.0/24", "gateway": "x"},
    {"subnet": "10.1.2.0/24", "routes": [{"dst": "0.0.0.0"}]},
    {"subnet": "10.1.2.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": "x"}]},
    {"ranges": []},
    {"ranges": [[]]},
    {"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]]},
    {"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.2.0/25"}]]},
    {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.2.0/25"}]]},
    {"subnet": "10.1.2.0/24", "resolvConf": "/not/there"},
]


def test_they_refuse_in_the_same_words(callers: tuple[Caller, Caller], tmp_path: Path) -> None:
    ours, theirs = (Twin(caller, tmp_path) for caller in callers)
    for ipam in WRONG:
        assert ours("ADD", ipam) == theirs("ADD", ipam)
    for args in ("FOO", "FOO=BAR", "IgnoreUnknown=yes", "IP=foo", "IP=10.1.2.10;MAC=1"):
        assert ours("ADD", LAN, CNI_ARGS=args) == theirs("ADD", LAN, CNI_ARGS=args)
    for ips in (["foo"], ["10.1.2.1"], ["10.9.9.9"], ["10.1.2.255"]):
        for conf in ({"args": {"cni": {"ips": ips}}}, {"runtimeConfig": {"ips": ips}}):
            assert ours("ADD", LAN, conf=conf) == theirs("ADD", LAN, conf=conf)


def test_fifty_at_once_of_both(pair: Pair) -> None:
    net = {"subnet": "10.1.2.0/26"}  # 61 addresses
    with ThreadPoolExecutor(8) as pool:
        found = [each for some in pool.map(lambda n: pair[n % 2].add(net, f"c{n}"), range(50)) for each in some]
        assert len(set(found)) == 50
        list(pool.map(lambda n: pair[(n + 1) % 2].delete(net, f"c{n}"), range(50)))
    assert list(held(pair[0])) == ["last_reserved_ip.0"]


def test_who_waits_for_the_lock(callers: tuple[Caller, Caller], tmp_path: Path) -> None:
    twins = [Twin(caller, tmp_path) for caller in callers]
    (tmp_path / "net1").mkdir()
    with (tmp_path / "net1" / "lock").open("w") as lock, ThreadPoolExecutor(2) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        calls = [pool.submit(twin.add, LAN, str(n)) for n, twin in enumerate(twins)]
        time.sleep(0.5)
        assert not any(each.done() for each in calls)
        assert not held(twins[0])
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert sorted(each.result() for each in calls) == [["10.1.2.10"], ["10.1.2.11"]]


def test_ten_thousand_reservations_cost_no_more_than_with_go(callers: tuple[Caller, Caller], tmp_path: Path) -> None:
    """Both read every file to see whether the container has an address already."""
    twins = [Twin(caller, tmp_path) for caller in callers]
    (tmp_path / "net1").mkdir()
    for n in range(10_000):
        (tmp_path / "net1" / f"fd00::{n + 2:x}").write_bytes(b"%064x\r\neth0" % n)
    net = {"subnet": "fd00::/64"}
    took: list[list[float]] = [[], []]
    for n in range(3):
        for i, twin in enumerate(twins):
            begun = time.perf_counter()
            twin.add(net, f"{i}{n}")
            took[i].append(time.perf_counter() - begun)
    ours, theirs = (min(each) for each in took)
    assert ours < 3 * theirs + 0.2, (ours, theirs)
    print(f"\nADD beside 10,000 reservations: ours {ours * 1000:.0f} ms, Go's {theirs * 1000:.0f} ms")


def test_our_file_is_nothing_to_go(callers: tuple[Caller, Caller], tmp_path: Path) -> None:
    ours, theirs = (Twin(caller, tmp_path) for caller in callers)
    ours.add(LAN, "1")
    boot = (tmp_path / "net1" / ".boot").read_bytes()
    assert boot.startswith(b"boot ")
    assert (
        subprocess.run(["cat", "/proc/sys/kernel/random/boot_id"], capture_output=True, check=True).stdout.strip()
        in boot
    )
    theirs.add(LAN, "2")
    theirs.delete(LAN, "1")
    assert (tmp_path / "net1" / ".boot").read_bytes() == boot
