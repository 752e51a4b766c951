"""`tortie uninstall` on a node of flannel's: what our flanneld and its plugin made goes, and what another flannel made,
on a machine where ours has never been, stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from conftest import Ns

from tortie.agent.uninstall import FLANNEL_NOTE
from tortie.cni.install import install_plugins
from tortie.dataplane.removal import FLANNEL_ALIAS, FLANNEL_RULES, FLANNEL_TABLES
from tortie.flannel.config import checked, parse
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.own import alias
from tortie.flannel.rules import TABLES, tables
from tortie.flannel.state import PROTOCOL, FlannelState
from tortie.kernel.netlink.tables import RTPROT_FLANNEL

pytestmark = pytest.mark.root

SUBNET_ENV = """FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.1.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""


@pytest.fixture
def node(make_ns: Callable[..., Ns]) -> Ns:
    """With an uplink, and a bridge that is somebody else's."""
    ns = make_ns("node")
    ns.ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for name in ("up0", "up1"):
        ns.ip("link", "set", name, "up")
    ns.ip("address", "add", "192.0.2.1/24", "dev", "up0")
    ns.ip("link", "add", "docker0", "type", "bridge")
    ns.ip("address", "add", "172.17.0.1/16", "dev", "docker0")
    return ns


def flannel(ns: Ns, proto: str, comment: str, alias: str = "") -> None:
    """What a flanneld makes on a node, and the bridge of its pods with one of them."""
    ns.ip("link", "add", "flannel.1", "type", "vxlan", "id", "1", "dstport", "8472", "local", "192.0.2.1")
    if alias:
        ns.ip("link", "set", "flannel.1", "alias", alias)
    ns.ip("link", "set", "flannel.1", "up")
    ns.ip("address", "add", "10.5.1.0/32", "dev", "flannel.1")
    ns.ip("route", "add", "10.5.2.0/24", "via", "10.5.2.0", "dev", "flannel.1", "onlink", "proto", proto)
    ns.ip("link", "add", "cni0", "type", "bridge")
    ns.ip("address", "add", "10.5.1.1/24", "dev", "cni0")
    ns.ip("link", "set", "cni0", "up")
    ns.ip("link", "add", "veth1", "master", "cni0", "type", "veth", "peer", "name", "pod1")
    for table in TABLES.values():
        ns.run("nft", "add", "table", *table.split())
        ns.run("nft", "add", "chain", *table.split(), "postrtg")
        ns.run("nft", "add", "rule", *table.split(), "postrtg", "counter", "accept", "comment", f'"{comment}"')


def tortie(ns: Ns, folder: Path, *words: str, status: int = 0) -> str:
    places = [f"--{name}-dir={folder / name}" for name in ("run", "lib", "bin", "net", "flannel")]
    command = ["nsenter", f"--net={ns.path}", sys.executable, "-m", "tortie.cli.main", "uninstall", *words, *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def files(folder: Path, plugin: bool) -> None:
    for name in ("flannel", "net", "bin"):
        (folder / name).mkdir()
    (folder / "flannel/subnet.env").write_text(SUBNET_ENV)
    (folder / "net/10-flannel.conflist").write_text("{}")
    (folder / "net/20-others.conflist").write_text("{}")
    if plugin:
        install_plugins(folder / "bin", ["flannel"], compiler="", packed=False)


def state(ns: Ns) -> tuple[set[str], set[str], set[str]]:
    """Links, nft tables, routes that are not the kernel's."""
    tables = json.loads(ns.run("nft", "-j", "list", "tables"))["nftables"]
    return (
        {link["ifname"] for link in ns.json("link", "show")},
        {f"{item['table']['family']} {item['table']['name']}" for item in tables if "table" in item},
        {route["dst"] for route in ns.json("route", "show") if route["protocol"] != "kernel"},
    )


OURS = "flanneld masq: own pods to pods"
CLEAN = ({"lo", "up0", "up1", "docker0"}, set[str](), set[str]())


def test_the_words_are_flanneld_s() -> None:
    assert RTPROT_FLANNEL == PROTOCOL
    assert {name.split()[1] for name in TABLES.values()} == set(FLANNEL_TABLES)
    config = checked(parse('{"Network": "10.5.0.0/16"}', "test"))
    lease = Lease(IPv4Network("10.5.1.0/24"), None, Attrs())
    text = tables(config, lease, masq=True, forward=True)["ip flannel-ipv4"]
    assert all(f'comment "{begin}' in text for begin in FLANNEL_RULES)
    assert alias(FlannelState(networks=(IPv4Network("10.5.0.0/16"),))).startswith(FLANNEL_ALIAS)


def test_all_of_ours_goes(node: Ns, tmp_path: Path) -> None:
    flannel(node, "70", OURS, "tortie flannel 10.5.0.0/16")
    node.ip("route", "add", "blackhole", "10.5.1.0/24", "metric", "4000", "proto", "70")
    files(tmp_path, plugin=True)
    before = state(node)
    plan = [line for line in tortie(node, tmp_path, "--plan").splitlines() if not line.startswith("#")]
    assert state(node) == before
    assert plan == [
        f"rm {tmp_path}/net/10-flannel.conflist",
        f"rm {tmp_path}/bin/flannel",
        "nft delete table ip flannel-ipv4",
        "nft delete table ip6 flannel-ipv6",
        "ip route del 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 70 onlink",
        "ip route del blackhole 10.5.1.0/24 proto 70 metric 4000",
        "ip link delete veth1",
        "ip link delete flannel.1",
        "ip link delete cni0",
        f"rm -r {tmp_path}/flannel",
    ]
    assert "containers are connected: 1 (veth1)" in tortie(node, tmp_path, "--apply", status=1)
    assert state(node) == before
    assert tortie(node, tmp_path, "--apply", "--force") == "removed\n"
    assert state(node) == CLEAN
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["net/20-others.conflist"]
    assert tortie(node, tmp_path, "--verify") == "there is nothing of ours\n"


def test_one_that_was_cut_short_is_finished_by_the_next(node: Ns, tmp_path: Path) -> None:
    """Nothing is left in the kernel that would tell whose the rest is."""
    flannel(node, "70", OURS, "tortie flannel 10.5.0.0/16")
    for link in ("veth1", "flannel.1"):
        node.ip("link", "delete", link)
    for table in TABLES.values():
        node.run("nft", "delete", "table", *table.split())
    files(tmp_path, plugin=False)
    (tmp_path / "flannel" / FLANNEL_NOTE).touch()
    tortie(node, tmp_path, "--apply")
    assert state(node) == CLEAN
    assert not (tmp_path / "flannel").exists()


def test_another_flannels_things_stay_where_ours_has_never_been(node: Ns, tmp_path: Path) -> None:
    flannel(node, "boot", "flanneld masq")
    files(tmp_path, plugin=False)
    (tmp_path / "bin/flannel").write_bytes(b"another's program")
    before = state(node)
    assert tortie(node, tmp_path, "--plan") == "# there is nothing of ours\n"
    assert tortie(node, tmp_path, "--apply", "--force") == "there is nothing of ours\n"
    assert state(node) == before
    assert (tmp_path / "flannel/subnet.env").exists()
    assert (tmp_path / "net/10-flannel.conflist").exists()
