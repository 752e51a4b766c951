"""flannel's own daemon beside ours: the interface that it takes, and the tables that it writes, which ours replace.

FLANNELD names flannel's own daemon, a release of 2025 or later.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from etcd_server import ETCD, ETCDCTL, needs_etcd
from namespaces import Ns, namespaces
from tortie.base.errors import ConfigError
from tortie.dataplane.converge import converge
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.interface import choose, look
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.options import parse
from tortie.flannel.rules import tables
from tortie.flannel.stages.rules import Rules
from tortie.flannel.state import FlannelState

FLANNELD = os.environ.get("FLANNELD", "")
SECONDS = 20.0
N4, N6 = ip_network("10.5.0.0/16"), ip_network("fc00:5::/48")
V4, V6 = Family(N4, 24, N4[256], N4[-256]), Family(N6, 64, N6[1 << 64], N6[-(1 << 64)])

pytestmark = [
    pytest.mark.root,
    needs_etcd,
    pytest.mark.skipif(not FLANNELD, reason="FLANNELD does not name flannel's own daemon"),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ns]:
    """eth0 and eth1 with two IPv4 addresses and an IPv6 one each, and an etcd on its loopback."""
    with closing(namespaces()) as made:
        ns = next(made)()
        for number in (0, 1):
            ns.ip("link", "add", f"eth{number}", "type", "veth", "peer", "name", f"wire{number}")
            ns.ip("link", "set", f"wire{number}", "up")
            ns.ip("link", "set", f"eth{number}", "up")
            for host in (7, 77):
                ns.ip("address", "add", f"192.0.{number}.{host}/24", "dev", f"eth{number}")
            ns.ip("address", "add", f"2001:db8:{number}::7/64", "dev", f"eth{number}", "nodad")
        ns.ip("route", "add", "default", "via", "192.0.1.1")
        ns.ip("route", "add", "198.51.100.0/24", "via", "192.0.0.1", "src", "192.0.0.77")
        ns.ip("-6", "route", "add", "default", "via", "2001:db8:1::1")
        directory = tmp_path_factory.mktemp("etcd")
        words = ["ip", "netns", "exec", ns.name, str(ETCD), "--data-dir", str(directory / "data"), "--log-level=error"]
        with (directory / "log").open("ab") as log:
            etcd = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield ns
        finally:
            etcd.send_signal(signal.SIGKILL)
            etcd.wait(SECONDS)


def configure(ns: Ns, dual: bool) -> None:
    document = {"Network": str(N4), "EnableNFTables": True, "Backend": {"Type": "host-gw"}}
    document |= {"EnableIPv6": True, "IPv6Network": str(N6)} if dual else {}
    ctl = ("env", "ETCDCTL_API=3", str(ETCDCTL))
    deadline = time.monotonic() + SECONDS
    while "OK" not in ns.run(*ctl, "put", "/coreos.com/network/config", json.dumps(document), check=False):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ns.run(*ctl, "del", "--prefix", "/coreos.com/network/subnets/")


def flanneld(ns: Ns, directory: Path, *flags: str, until: str) -> str:
    """What it logs until a line of it says so, or it has ended."""
    path = directory / "flanneld.log"
    words = ["ip", "netns", "exec", ns.name, FLANNELD, "-ip-masq", "-subnet-file", str(directory / "subnet.env")]
    with path.open("wb") as log:
        process = subprocess.Popen([*words, *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + SECONDS
        while not re.search(until, text := path.read_text(errors="replace")) and process.poll() is None:
            assert time.monotonic() < deadline, text
            time.sleep(0.02)
        return path.read_text(errors="replace")
    finally:
        process.kill()  # it may wait for etcd for long when it is told to end
        process.wait(SECONDS)


CHOICES = [
    [],
    ["-iface=eth0"],
    ["-iface=192.0.0.7"],
    ["-iface=192.0.0.77"],
    ["-iface=wlan0", "-iface=eth0"],
    ["-iface-regex=^192\\.0\\.0"],
    ["-iface-regex=^eth0$"],
    ["-iface-regex=^wl", "-iface-regex=77$"],
    ["-iface-regex=eth0", "-iface=eth1"],
    ["-iface-can-reach=198.51.100.9"],
    ["-iface-can-reach=192.0.1.9"],
    ["-public-ip=192.0.0.77"],
    ["-iface=wlan0"],
]
TAKEN = re.compile(r"Using interface with name (\S+) and address (\S+)\n")


@pytest.mark.parametrize("flags", CHOICES, ids=" ".join)
def test_the_interface_and_the_address_that_flanneld_takes(machine: Ns, tmp_path: Path, flags: list[str]) -> None:
    configure(machine, dual=False)
    said = flanneld(machine, tmp_path, *flags, until="Using interface|Failed to find interface")
    taken = TAKEN.search(said)
    options = parse(flags, {})
    sight = look(options.iface_can_reach, machine.path)
    if taken is None:
        with pytest.raises(ConfigError, match="Failed to find interface to use that matches the interfaces and/or reg"):
            choose(options, NetworkConfig(V4, None, ""), sight)
        assert "Failed to find interface to use that matches the interfaces and/or regexes provided" in said
    else:
        ours = choose(options, NetworkConfig(V4, None, ""), sight)
        assert (ours.name, ours.ipv4) == (taken[1], ip_address(taken[2]))


@pytest.mark.parametrize("dual", [False, True], ids=["IPv4", "both"])
def test_the_tables_that_flanneld_writes_are_replaced(machine: Ns, tmp_path: Path, dual: bool) -> None:
    configure(machine, dual)
    flanneld(machine, tmp_path, until="flannel is ready")
    theirs = shape(machine)
    subnets = dict(line.split("=") for line in (tmp_path / "subnet.env").read_text().splitlines())
    four = ip_network(subnets["FLANNEL_SUBNET"], strict=False)
    six = ip_network(subnets["FLANNEL_IPV6_SUBNET"], strict=False) if dual else None
    config = NetworkConfig(V4, V6 if dual else None, "host-gw")
    wanted = FlannelState(rules=tables(config, Lease(four, six, Attrs()), masq=True, forward=True))
    assert converge([Rules(machine.path)], wanted) == []
    ours = shape(machine)
    assert {key: value for key, value in theirs.items() if key[1] or dual or key[0] == "flannel-ipv4"} == ours
    listed = machine.run("nft", "list", "ruleset")
    assert "meta mark 0x00004000 return" not in listed
    machine.run("nft", "flush", "ruleset")


def shape(ns: Ns) -> dict[tuple[str, str], tuple[object, ...]]:
    """Tables (chain "") and chains with their hooks and comments."""
    found: dict[tuple[str, str], tuple[object, ...]] = {}
    for item in json.loads(ns.run("nft", "-j", "list", "ruleset"))["nftables"]:
        for kind in ("table", "chain"):
            if kind in item:
                one = item[kind]
                table, chain = (one["name"], "") if kind == "table" else (one["table"], one["name"])
                found[table, chain] = tuple(one.get(key) for key in ("family", "type", "hook", "prio", "policy"))
    return found
