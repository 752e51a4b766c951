"""A machine after `tortie uninstall` is as it was before: read back with ip, nft and ls, strangers' things included."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_node import Node, Sandbox, Site, environment, site_in, until
from agent_node import pod as new_pod
from conftest import Ns

from tortie.calc.defaults import defaulted
from tortie.model.ipam import IPPool, IPPoolSpec
from tortie.model.meta import Metadata
from tortie.model.node import Node as NodeResource
from tortie.model.node import NodeBGPSpec, NodeSpec
from tortie.model.store import Store

pytestmark = pytest.mark.root

TUNNELLED = "10.66.0.0/16"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path / "site") as site:
        site.set_up()
        spec = IPPoolSpec(cidr=TUNNELLED, vxlan_mode="Always")
        site.write(defaulted(IPPool(metadata=Metadata(name="tunnelled"), spec=spec), None))
        bgp = NodeBGPSpec(ipv4_address="192.0.2.2/24")
        far = NodeSpec(bgp=bgp, ipv4_vxlan_tunnel_addr="10.66.0.1", vxlan_tunnel_mac_addr="66:00:00:00:00:01")
        site.write(NodeResource(metadata=Metadata(name="far"), spec=far))
        yield site


@pytest.fixture
def node(site: Site) -> Node:
    """An agent with BIRD, an uplink, and things of others."""
    node = site.node("node1")
    ip = node.ns.ip
    ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for name in ("up0", "up1"):
        ip("link", "set", name, "up")
    ip("address", "add", "192.0.2.1/24", "dev", "up0")
    strangers(node.ns)
    return node.start()


def strangers(ns: Ns) -> None:
    """What others have on a machine, like ours in kind but not ours."""
    ns.run("nft", "add", "table", "inet", "others")
    ns.run("nft", "add", "table", "ip", "tortie")
    ns.ip("link", "add", "vxlan7", "type", "vxlan", "id", "7", "dstport", "4790", "local", "192.0.2.1")
    ns.ip("route", "add", "10.200.0.0/24", "dev", "up0", "proto", "static")
    ns.ip("route", "add", "10.201.0.0/24", "dev", "up0", "proto", "openr")


def tortie(node: Node, *words: str, status: int = 0) -> str:
    """The command in the node's namespace; what it says."""
    program = ["nsenter", f"--net={node.ns.path}", sys.executable, "-m", "tortie.cli.main"]
    done = subprocess.run(
        [*program, *words], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def places(node: Node) -> list[str]:
    top = node.site.directory
    dirs = ["--bin-dir", str(top / "cni-bin"), "--net-dir", str(top / "net.d")]
    return [
        "--run-dir",
        str(node.run_dir),
        "--lib-dir",
        str(node.run_dir),
        *dirs,
        "--flannel-dir",
        str(top / "flannel"),
    ]


def state(ns: Ns) -> tuple[set[str], set[str], set[tuple[str, str]]]:
    """Links, nft tables, and routes with their protocol, of the main table."""
    tables = json.loads(ns.run("nft", "-j", "list", "tables"))["nftables"]
    routes = [route for version in (4, 6) for route in ns.json(f"-{version}", "route", "show")]
    return (
        {link["ifname"] for link in ns.json("link", "show")},
        {f"{item['table']['family']} {item['table']['name']}" for item in tables if "table" in item},
        {(route["dst"], route["protocol"]) for route in routes if route["protocol"] != "kernel"},
    )


def runs(pid: int) -> bool:
    """A process that nobody has waited for yet has no command any more."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


STRANGERS = (
    {"lo", "up0", "up1", "vxlan7"},
    {"inet others", "ip tortie"},
    {("10.200.0.0/24", "static"), ("10.201.0.0/24", "openr")},
)


async def test_everything_of_ours_goes_and_nothing_else(node: Node, store: Store, make_ns: Callable[..., Ns]) -> None:
    await store.create(new_pod("one"))
    pod = Sandbox(node, "one", make_ns("one"))
    await pod.add()
    until(lambda: "vxlan.calico" in state(node.ns)[0], what="the tunnel is there")
    until(lambda: any(protocol == "80" for _, protocol in state(node.ns)[2]), what="routes of the agent")
    node.ns.run("nft", "add", "table", "inet", "tortie-flows")  # as on a kernel that has flow tables
    net_dir, bin_dir = node.site.directory / "net.d", node.site.directory / "cni-bin"
    tortie(node, "cni", "install", "--bin-dir", str(bin_dir), "--net-dir", str(net_dir))
    (bin_dir / "bridge").write_text("#!/bin/sh\n")
    (net_dir / "20-others.conflist").write_text("{}")
    bird = until(lambda: node.bird_pid, what="BIRD runs")

    before = state(node.ns)
    plan = tortie(node, "uninstall", "--plan", *places(node)).splitlines()
    assert state(node.ns) == before
    assert plan[0].startswith("# an agent runs, pid ")

    def planned() -> list[str]:
        """BIRD takes a route away that it does not know when it looks the next time, every other second."""
        node.ns.ip("route", "replace", "10.98.0.0/24", "via", "192.0.2.2", "proto", "bird")
        return tortie(node, "uninstall", "--plan", *places(node)).splitlines()

    plan = until(planned, lambda lines: "ip route del 10.98.0.0/24 via 192.0.2.2 dev up0 proto bird" in lines)
    assert f"kill {bird}  # BIRD" in plan
    for line in (
        f"rm {net_dir}/10-calico.conflist",
        f"rm {bin_dir}/calico",
        f"ip link delete {pod.host_ifname}",
        "ip link delete vxlan.calico",
        "nft delete table inet tortie",
        "nft delete table inet tortie-services",
        "nft delete table inet tortie-flows",
        f"rm -r {node.run_dir}",
    ):
        assert line in plan
    steps = [line for line in plan if not line.startswith("#")]
    assert not [line for line in steps if "others" in line or "vxlan7" in line or "ip tortie" in line]

    assert "an agent runs in" in tortie(node, "uninstall", "--apply", *places(node), status=1)
    assert node.signal(signal.SIGTERM) == 0
    kept = (node.run_dir / "agent.log").read_text()
    assert "containers are connected: 1 (cali" in tortie(node, "uninstall", "--apply", *places(node), status=1)
    assert state(node.ns)[:2] == before[:2]

    node.ns.ip("route", "replace", "10.98.0.0/24", "via", "192.0.2.2", "proto", "bird")
    assert tortie(node, "uninstall", "--apply", "--force", *places(node)) == "removed\n"
    assert state(node.ns) == STRANGERS
    assert not runs(bird)
    assert not node.run_dir.exists()
    assert sorted(path.name for path in bin_dir.iterdir()) == ["bridge"]
    assert sorted(path.name for path in net_dir.iterdir()) == ["20-others.conflist"]
    assert tortie(node, "uninstall", "--verify", *places(node)) == "there is nothing of ours\n"
    assert tortie(node, "uninstall", "--apply", *places(node)) == "there is nothing of ours\n"
    node.run_dir.mkdir()  # for the log, which the site looks through at its end
    (node.run_dir / "agent.log").write_text(kept)


def test_what_a_proxy_alone_has_put_there_goes_and_what_calico_has_stays(site: Site) -> None:
    node = site.node("node1")
    node.run_dir.mkdir()
    own = ["--datastore", str(site.datastore), "--node", "node1", "--services", "on"]
    where = ["--run-dir", str(node.run_dir), "--lib-dir", str(node.run_dir)]
    command = ["nsenter", f"--net={node.ns.path}", sys.executable, "-m", "tortie.cli.main", "proxy", *own, *where]
    with (site.directory / "proxy.log").open("ab") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    lib = site.directory / "lib"
    lib.mkdir()
    (lib / "nodename").write_text("calico's")
    (lib / "services").write_text("on\n")
    these = [str(lib) if places(node)[i - 1] == "--lib-dir" else word for i, word in enumerate(places(node))]
    try:
        until(lambda: "inet tortie-services" in state(node.ns)[1], what="the table is there")
        assert "`tortie proxy` runs in" in tortie(node, "uninstall", "--apply", *these, status=1)
        assert "inet tortie-services" in state(node.ns)[1]
    finally:
        running.kill()
        running.wait()
    tortie(node, "uninstall", "--apply", *these)
    assert "inet tortie-services" not in state(node.ns)[1]
    assert [path.name for path in lib.iterdir()] == ["nodename"]


def test_one_that_was_cut_short_is_finished_by_the_next(node: Node) -> None:
    """Whatever is gone already: the rest goes, too."""
    until(lambda: "vxlan.calico" in state(node.ns)[0], what="the tunnel is there")
    node.signal(signal.SIGKILL)
    node.ns.run("nft", "delete", "table", "inet", "tortie")
    (node.run_dir / "bird.conf").touch()
    left = tortie(node, "uninstall", "--verify", *places(node), status=1)
    assert "ip link delete vxlan.calico" in left
    assert "nft delete table inet tortie" not in left.splitlines()
    tortie(node, "uninstall", "--apply", *places(node))
    assert state(node.ns) == STRANGERS
    tortie(node, "uninstall", "--verify", *places(node))


def test_what_calico_has_on_a_machine_where_we_never_were_stays(site: Site) -> None:
    node = site.node("node1")
    ip = node.ns.ip
    ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    ip("link", "set", "up0", "up")
    ip("link", "set", "up1", "up")
    ip("address", "add", "192.0.2.1/24", "dev", "up0")
    ip("link", "add", "cali0123456789a", "type", "veth", "peer", "name", "pod0")
    ip("link", "add", "vxlan.calico", "type", "vxlan", "id", "4096", "dstport", "4789", "local", "192.0.2.1")
    ip("route", "add", "blackhole", "10.1.0.0/26", "proto", "80")
    ip("route", "add", "10.2.0.0/26", "via", "192.0.2.2", "proto", "bird")
    node.run_dir.mkdir()
    (node.run_dir / "lab").mkdir()  # labs are no agent of this machine
    bin_dir, net_dir = site.directory / "cni-bin", site.directory / "net.d"
    for directory in (bin_dir, net_dir):
        directory.mkdir()
    (bin_dir / "calico").write_bytes(b"another's program")
    (net_dir / "10-calico.conflist").write_text("{}")
    before = state(node.ns)
    assert tortie(node, "uninstall", "--plan", *places(node)) == "# there is nothing of ours\n"
    assert tortie(node, "uninstall", "--apply", "--force", *places(node)) == "there is nothing of ours\n"
    assert state(node.ns) == before
    assert (node.run_dir / "lab").is_dir()
    assert (bin_dir / "calico").exists()
    assert (net_dir / "10-calico.conflist").exists()


def test_the_files_of_labs_stay(site: Site) -> None:
    node = site.node("node1")
    (node.run_dir / "lab" / "default").mkdir(parents=True)
    for name in ("agent.lock", "bird.conf", "mtu", "nodename"):
        (node.run_dir / name).touch()
    tortie(node, "uninstall", "--apply", *places(node))
    assert [path.name for path in node.run_dir.iterdir()] == ["lab"]
    shutil.rmtree(node.run_dir)


def test_it_is_for_root_and_wants_to_be_told_what(site: Site) -> None:
    node = site.node("node1")
    assert "say one of --plan, --apply, --verify" in tortie(node, "uninstall", status=2)
    assert "say one of" in tortie(node, "uninstall", "--plan", "--apply", status=2)
    assert "goes with --plan" in tortie(node, "uninstall", "--apply", "--cluster", status=2)
