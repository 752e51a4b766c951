"""Our bird.conf and our hold on the daemon, against real BIRD daemons on a bridge of namespaces.

a, b: nodes of one cluster, meshed over IPv4 and IPv6          r: the operator's router, another AS, port 1179, MD5
every one has its network 10.9.0.0/24, fd00:9::/64             and a workload's veth called cali1
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tortie.agent.node_view import tell
from tortie.base.errors import ConfigError, Unavailable
from tortie.bgp.birdc import Protocol, Route, parse_protocols, parse_routes, parse_status
from tortie.bgp.sessions import Cluster, ExplicitPeer, Router, Scope, sessions
from tortie.dataplane.stages.bird import routes_left
from tortie.kernel.bird import LOG_MOST, LOG_TAIL, Bird
from tortie.render.bird import Advertisement, BindMode, BirdConfig, Pool, render

pytestmark = pytest.mark.root

T = TypeVar("T")
POOLS = (
    Pool(cidr=ip_network("192.168.0.0/16")),
    Pool(cidr=ip_network("172.16.0.0/16"), bgp_program=False),
    Pool(cidr=ip_network("10.77.0.0/16"), export_disabled=True),
    Pool(cidr=ip_network("fd01::/16")),
)
SERVICES = (ip_network("10.96.0.0/12"), ip_network("fd96::/112"))
PASSWORD = "it's a secret"


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def eventually(look: Callable[[], T], want: Callable[[T], bool], seconds: float = 8.0) -> T:
    """What `look` returns once `want` holds of it; fails showing the last look."""
    deadline = time.monotonic() + seconds
    while not want(seen := look()):
        assert time.monotonic() < deadline, f"still, after {seconds} s: {seen}"
        time.sleep(0.05)
    return seen


@dataclass(eq=False)
class Machine:
    """One namespace with its daemon."""

    netns: str
    bird: Bird
    config: BirdConfig

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.netns, *words)

    def fib(self, version: int) -> dict[str, dict[str, Any]]:
        """The main table as `ip` sees it, by destination, without link-local."""
        rows = [row for row in json.loads(self.ip("-j", f"-{version}", "route")) if row["dst"] != "fe80::/64"]
        fib = {row["dst"]: row for row in rows}
        assert len(fib) == len(rows), f"a destination twice: {rows}"
        return fib

    def protocols(self) -> dict[str, Protocol]:
        return {row.name: row for row in parse_protocols(self.bird.ask("show protocols all"))}

    def established(self) -> dict[str, str]:
        """Established sessions and since when."""
        return {name: row.since for name, row in self.protocols().items() if row.session and row.session.established}

    def table(self, where: str = "") -> dict[str, Route]:
        """BIRD's best routes, by prefix."""
        rows = parse_routes(self.bird.ask(f"show route all {where}".rstrip()))
        return {str(row.prefix): row for row in rows if row.best}

    def daemons(self) -> list[str]:
        return run("ip", "netns", "pids", self.netns).split()


def unbroken(before: dict[str, str], after: dict[str, str]) -> bool:
    """Whether the same sessions are established since the same time. BIRD works it out anew at each question, and may
    be off by a millisecond."""

    def moments(sessions: dict[str, str]) -> list[tuple[str, float]]:
        return [(name, datetime.fromisoformat(f"2000-01-01 {at}").timestamp()) for name, at in sorted(sessions.items())]

    pairs = zip(moments(before), moments(after), strict=False)
    return before.keys() == after.keys() and all(abs(one[1] - two[1]) < 0.1 for one, two in pairs)


@contextmanager
def namespace(name: str) -> Iterator[str]:
    full = f"tt-{os.getpid()}-{name}"
    run("ip", "netns", "add", full)
    try:
        run("ip", "-n", full, "link", "set", "lo", "up")
        yield full
    finally:
        run("ip", "netns", "del", full)


def connect(netns: str, switch: str, number: int) -> None:
    """eth0 to the switch, and a workload's veth cali1 whose far end stays here."""

    def ip(*words: str) -> None:
        run("ip", "-n", netns, *words)

    ip("link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch)
    run("ip", "-n", switch, "link", "set", f"port{number}", "master", "br0", "up")
    ip("link", "set", "eth0", "up")
    ip("addr", "add", f"10.9.0.{number}/24", "dev", "eth0")
    ip("addr", "add", f"fd00:9::{number}/64", "dev", "eth0", "nodad")
    ip("link", "add", "cali1", "type", "veth", "peer", "name", "pod")
    ip("link", "set", "cali1", "up")
    ip("link", "set", "pod", "up")


def machine(netns: str, home: Path, config: BirdConfig) -> Machine:
    return Machine(netns, Bird(home / "bird.conf", home / "bird.ctl", netns, log=home / "bird.log"), config)


NODES = {
    number: Router(name=name, ipv4=IPv4Address(f"10.9.0.{number}"), ipv6=IPv6Address(f"fd00:9::{number}"))
    for number, name in ((1, "a"), (2, "b"))
}
ROUTER = Router(name="r", ipv4=IPv4Address("10.9.0.9"), as_number=65001, listen_port=1179)


def node_config(number: int) -> BirdConfig:
    me = NODES[number]
    to_router = ExplicitPeer(
        scope=Scope.GLOBAL, ip=IPv4Address("10.9.0.9"), port=1179, remote_as=65001, password=PASSWORD, ttl_hops=1
    )
    return BirdConfig(
        router_id=me.ipv4 or IPv4Address(0),
        ipv4=me.ipv4,
        ipv6=me.ipv6,
        blocks=tuple(map(ip_network, (f"192.168.{number}.0/26", f"10.77.{number}.0/26", f"fd01:{number}::/122"))),
        pools=POOLS,
        services=SERVICES,
        advertisements=(Advertisement(ip_network("192.168.0.0/16"), ((100, 6532), (100, 555, 107))),),
        peers=sessions(me, NODES.values(), [to_router] if number == 1 else ()),
        connect_delay=1,
    )


def router_config() -> BirdConfig:
    to_a = ExplicitPeer(scope=Scope.NODE, ip=IPv4Address("10.9.0.1"), remote_as=64512, password=PASSWORD, ttl_hops=1)
    return BirdConfig(
        router_id=IPv4Address("10.9.0.9"),
        ipv4=ROUTER.ipv4,
        listen_port=1179,
        bind_mode=BindMode.NODE_IP,
        blocks=(ip_network("192.168.9.0/26"),),
        pools=(Pool(cidr=ip_network("192.168.0.0/16")),),
        peers=sessions(ROUTER, (), [to_a], Cluster(mesh_enabled=False)),
        connect_delay=1,
    )


@dataclass
class Fabric:
    a: Machine
    b: Machine
    r: Machine
    seconds: float

    @property
    def all(self) -> tuple[Machine, Machine, Machine]:
        return self.a, self.b, self.r


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    with ExitStack() as stack:
        switch = stack.enter_context(namespace("sw"))
        run("ip", "-n", switch, "link", "add", "br0", "up", "type", "bridge")
        machines = []
        for name, number, config in (("a", 1, node_config(1)), ("b", 2, node_config(2)), ("r", 9, router_config())):
            netns = stack.enter_context(namespace(name))
            connect(netns, switch, number)
            machines.append(machine(netns, tmp_path_factory.mktemp(name), config))
        a, b, r = machines
        give_a_workloads(a)
        for one in machines:
            stack.callback(one.bird.stop)
            assert one.bird.swap(render(one.config))
            assert one.bird.start()
        begun = time.monotonic()
        eventually(a.established, lambda up: len(up) == 3)
        eventually(b.established, lambda up: len(up) == 2)
        settled = time.monotonic() - begun
        for one in machines:
            eventually(lambda: parse_status(one.bird.ask("show status")), lambda status: status.ready)  # noqa: B023
        yield Fabric(a, b, r, settled)
    assert not [name for name in run("ip", "netns", "list").split() if name.startswith(f"tt-{os.getpid()}-")]


def give_a_workloads(a: Machine) -> None:
    """What an agent writes for its workloads (metric 1024, proto boot), and what it must not hear back."""
    for version, normal, urgent, borrowed in (
        ("-4", "192.168.1.5", "192.168.1.6", "192.168.2.9"),
        ("-6", "fd01:1::5", "fd01:1::6", "fd01:2::9"),
    ):
        a.ip(version, "route", "add", normal, "dev", "cali1", "proto", "boot", "metric", "1024")
        a.ip(version, "route", "add", urgent, "dev", "cali1", "proto", "boot", "metric", "512")
        a.ip(version, "route", "add", borrowed, "dev", "cali1", "proto", "boot", "metric", "1024")
    a.ip("route", "add", "172.31.5.0/24", "dev", "cali1")  # in no pool
    a.ip("route", "add", "10.77.1.1", "dev", "cali1", "metric", "1024")  # in a pool that is not exported
    a.ip("route", "add", "192.168.77.0/26", "via", "10.9.0.77", "proto", "80")  # another node's, without a tunnel


def bird_routes(machine: Machine, version: int) -> dict[str, tuple[str, str, int]]:
    """What BIRD wrote to the FIB: destination -> (type or gateway, device, metric)."""
    return {
        dst: (row.get("gateway") or row.get("type", "?"), row.get("dev", ""), row.get("metric", 0))
        for dst, row in machine.fib(version).items()
        if row.get("protocol") == "bird"
    }


# -------------------------------------------------------------------------------------------------- what is routed


def test_sessions_come_up_in_both_families_soon(fabric: Fabric) -> None:
    print(f"established after {fabric.seconds:.2f} s")
    assert set(fabric.a.established()) == {"Mesh_10_9_0_2", "Mesh_fd00_9__2", "Global_10_9_0_9_port_1179"}
    assert fabric.seconds < 6
    session = fabric.a.protocols()["Global_10_9_0_9_port_1179"].session
    assert session is not None
    assert (str(session.neighbor), session.neighbor_as, session.local_as) == ("10.9.0.9", 65001, 64512)


def test_blocks_are_in_the_fib_with_the_normal_metric(fabric: Fabric) -> None:
    a4 = eventually(lambda: bird_routes(fabric.a, 4), lambda fib: "192.168.2.0/26" in fib)
    a6 = eventually(lambda: bird_routes(fabric.a, 6), lambda fib: "fd01:2::/122" in fib)
    assert a4["192.168.2.0/26"] == ("10.9.0.2", "eth0", 1024)
    assert a6["fd01:2::/122"] == ("fd00:9::2", "eth0", 1024)
    assert a4["192.168.1.0/26"] == ("blackhole", "", 0)
    assert a6["fd01:1::/122"][0] == "blackhole"


def test_workloads_inside_their_block_stay_home(fabric: Fabric) -> None:
    """The borrowed and the urgent address travel as host routes; the ordinary one is covered by its block."""
    b4 = {"192.168.1.0/26": 1024, "192.168.1.6": 512, "192.168.2.9": 1024, "192.168.2.0/26": 0, "10.77.2.0/26": 0}
    b6 = {"fd01:1::/122": 1024, "fd01:1::6": 512, "fd01:2::9": 1024, "fd01:2::/122": 1024}
    of_r = {"192.168.9.0/26": 2147483647 - 100}  # eBGP, see below

    def metrics(version: int) -> dict[str, int]:
        return {dst: metric for dst, (_, _, metric) in bird_routes(fabric.b, version).items()}

    eventually(lambda: metrics(4), lambda fib: fib == b4 | of_r)
    eventually(lambda: metrics(6), lambda fib: fib == b6)
    assert bird_routes(fabric.b, 4)["192.168.1.6"] == ("10.9.0.1", "eth0", 512)


def test_nothing_outside_the_pools_is_announced(fabric: Fabric) -> None:
    """Nor pools with export disabled, nor the node's own network, nor the agent's routes to other nodes."""
    heard = fabric.b.table("protocol Mesh_10_9_0_1")
    assert set(fabric.a.fib(4)) >= {"172.31.5.0/24", "10.77.1.1", "10.77.1.0/26", "192.168.77.0/26"}
    assert "192.168.1.0/26" in heard
    assert not set(heard) & {"172.31.5.0/24", "10.77.1.1/32", "10.77.1.0/26", "192.168.77.0/26", "10.9.0.0/24"}


def test_services_are_announced_and_in_no_fib(fabric: Fabric) -> None:
    for one in (fabric.a, fabric.b):
        assert {"10.96.0.0/12", "fd96::/112"} <= set(one.table())
        assert "10.96.0.0/12" not in one.fib(4)
        assert "fd96::/112" not in one.fib(6)
    assert "10.96.0.0/12" in fabric.r.table("protocol Node_10_9_0_1")


def test_communities_travel(fabric: Fabric) -> None:
    attributes = fabric.b.table("protocol Mesh_10_9_0_1")["192.168.1.0/26"].attributes
    assert attributes["BGP.community"] == "(100,6532)"
    assert attributes["BGP.large_community"] == "(100, 555, 107)"
    assert attributes["BGP.local_pref"] == str(2147483647 - 1024)


def test_another_as_hears_the_cluster_through_one_node(fabric: Fabric) -> None:
    fib = eventually(lambda: bird_routes(fabric.r, 4), lambda fib: "192.168.2.0/26" in fib)
    # eBGP carries no local preference; BIRD supplies its default of 100, and the mapping makes a metric of it.
    assert fib["192.168.1.0/26"] == ("10.9.0.1", "eth0", 2147483647 - 100)
    assert "192.168.1.5" not in fib
    assert "192.168.9.0/26" in fabric.a.fib(4)


def test_the_fib_is_left_alone_once_it_is_right(fabric: Fabric) -> None:
    """No route is written again and again: two scans (2 s each) pass without a word from the kernel."""
    watch = ["timeout", "2.5", "ip", "-n", fabric.a.netns, "monitor", "route"]
    seen = subprocess.run(watch, capture_output=True, text=True, check=False)
    assert "proto bird" not in seen.stdout


def test_blackholes_of_a_pool_that_the_agent_routes(fabric: Fabric) -> None:
    """The node's own one and the neighbour's block are the agent's; BIRD announces them, and writes neither."""
    a, b = fabric.a, fabric.b
    changed = {
        one: replace(one.config, blocks=(*one.config.blocks, ip_network(block)))
        for one, block in zip((a, b), ("172.16.1.0/26", "172.16.2.0/26"), strict=True)
    }
    try:
        for one, config in changed.items():
            one.bird.swap(render(config))
        a.ip("route", "add", "blackhole", "172.16.1.0/26", "proto", "80")
        table = eventually(a.table, lambda table: {"172.16.1.0/26", "172.16.2.0/26"} <= table.keys())
        assert table["172.16.1.0/26"].protocol == "static4"
        eventually(b.table, lambda table: "172.16.1.0/26" in table)
        time.sleep(2.5)  # one scan of BIRD's
        assert not {"172.16.1.0/26", "172.16.2.0/26"} & bird_routes(a, 4).keys()
        assert a.fib(4)["172.16.1.0/26"]["protocol"] in ("80", 80)
    finally:
        for one in changed:
            one.bird.swap(render(one.config))
        a.ip("route", "del", "blackhole", "172.16.1.0/26")


# ---------------------------------------------------------------------------------------------- swapping, restarting


def test_a_new_block_reaches_peers_without_a_session_blinking(fabric: Fabric) -> None:
    a, b = fabric.a, fabric.b
    since = a.established()
    text = render(replace(a.config, blocks=(*a.config.blocks, ip_network("192.168.1.64/26"))))
    try:
        assert a.bird.swap(text)
        assert not a.bird.swap(text)
        eventually(lambda: b.fib(4), lambda fib: "192.168.1.64/26" in fib)
        assert unbroken(since, a.established())
    finally:
        a.bird.swap(render(a.config))
    eventually(lambda: b.fib(4), lambda fib: "192.168.1.64/26" not in fib)
    assert unbroken(since, a.established())


def test_a_bad_configuration_changes_nothing(fabric: Fabric) -> None:
    bird = fabric.a.bird
    before = parse_status(bird.ask("show status"))
    text = bird.config.read_text()
    since = fabric.a.established()
    with pytest.raises(ConfigError, match=r"line \d+ column \d+: syntax error.*as 65000x"):
        bird.swap(text + "\nprotocol bgp X { local 10.9.0.1 as 65000x; }\n")
    assert bird.config.read_text() == text
    assert parse_status(bird.ask("show status")).last_reconfiguration == before.last_reconfiguration
    assert unbroken(since, fabric.a.established())


def test_a_swap_that_was_cut_short_is_finished(fabric: Fabric) -> None:
    bird = fabric.b.bird
    text = bird.config.read_text()
    staged = bird.config.with_name("bird.conf.next")
    before = parse_status(bird.ask("show status")).last_reconfiguration
    staged.write_text("half a configur")
    assert bird.swap(text)
    assert not staged.exists()
    assert parse_status(bird.ask("show status")).last_reconfiguration > before
    assert not bird.swap(text)


def test_a_configuration_is_for_root_only(fabric: Fabric) -> None:
    assert PASSWORD in fabric.a.bird.config.read_text()
    assert fabric.a.bird.config.stat().st_mode & 0o077 == 0


def test_starting_twice_makes_one_daemon(fabric: Fabric) -> None:
    bird = fabric.a.bird
    again = Bird(bird.config, bird.socket, fabric.a.netns, log=bird.log)
    assert not bird.start()
    assert not again.start()
    assert len(fabric.a.daemons()) == 1


def test_a_killed_daemon_leaves_its_routes_and_comes_back(fabric: Fabric) -> None:
    """Graceful restart: neither this node's FIB nor its peer's loses a route meanwhile."""
    a, b = fabric.a, fabric.b
    ours, theirs = bird_routes(a, 4), bird_routes(b, 4)
    os.kill(int(a.bird.pid_file.read_text()), signal.SIGKILL)
    eventually(a.bird.running, lambda up: not up)
    assert bird_routes(a, 4) == ours
    with pytest.raises(Unavailable, match=r"No such file|refused"):
        a.bird.ask("show status")
    assert a.bird.start()
    lost: list[str] = []

    def recovered() -> bool:
        lost.extend(set(ours) - set(bird_routes(a, 4)))
        lost.extend(set(theirs) - set(bird_routes(b, 4)))
        return parse_status(a.bird.ask("show status")).ready and len(a.established()) == 3

    eventually(recovered, bool)
    eventually(lambda: bird_routes(a, 4), lambda fib: fib == ours)
    eventually(lambda: bird_routes(b, 4), lambda fib: fib == theirs)
    assert not lost
    assert len(a.daemons()) == 1


# ------------------------------------------------------------------------------------------------ a daemon by itself


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Machine]:
    """A node without a peer, not started."""
    with namespace("alone") as netns:
        config = BirdConfig(router_id=IPv4Address("10.9.0.7"), ipv4=IPv4Address("10.9.0.7"))
        one = machine(netns, tmp_path, config)
        one.bird.swap(render(config))
        try:
            yield one
        finally:
            one.bird.stop()


def test_a_daemon_outlives_its_starter(alone: Machine) -> None:
    bird = alone.bird
    program = (
        "import sys; from pathlib import Path; from tortie.kernel.bird import Bird\n"
        "config, socket, netns, log = sys.argv[1:]\n"
        "assert Bird(Path(config), Path(socket), netns, log=Path(log)).start()"
    )
    run(sys.executable, "-c", program, str(bird.config), str(bird.socket), alone.netns, str(bird.log))
    pid = int(bird.pid_file.read_text())
    assert os.getsid(pid) == pid
    assert not bird.start()
    assert bird.stop()
    assert alone.daemons() == []
    assert not bird.socket.exists()
    assert not bird.stop()


def test_routes_outlive_a_daemon_that_is_stopped(alone: Machine) -> None:
    block = ip_network("192.168.7.0/26")
    alone.bird.swap(render(replace(alone.config, blocks=(block,))))
    alone.bird.start(recover=False)
    fib = eventually(lambda: bird_routes(alone, 4), lambda fib: str(block) in fib)
    assert alone.bird.stop()
    assert bird_routes(alone, 4) == fib


def test_a_full_disk_is_no_configuration_and_no_bug(alone: Machine) -> None:
    alone.bird.start()
    before = alone.bird.config.read_text()
    staged = alone.bird.config.with_name(alone.bird.config.name + ".next")
    staged.symlink_to("/dev/full")
    wanted = render(replace(alone.config, ipv4=IPv4Address("10.9.0.8")))
    with pytest.raises(Unavailable, match="No space left on device"):
        alone.bird.swap(wanted)
    assert alone.bird.config.read_text() == before
    assert alone.bird.running()
    staged.unlink()
    assert alone.bird.swap(wanted)
    assert alone.bird.config.read_text() == wanted


def test_a_stale_pid_file_ends_nobody_else(alone: Machine) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        alone.bird.pid_file.write_text(f"{bystander.pid}\n")
        assert not alone.bird.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_daemon_whose_pid_file_is_gone_still_stops(alone: Machine) -> None:
    assert alone.bird.start(recover=False)
    alone.bird.pid_file.unlink()
    assert alone.bird.stop()
    eventually(alone.daemons, lambda pids: pids == [])


def test_a_daemon_that_hangs_is_unavailable_and_can_be_ended(alone: Machine) -> None:
    assert alone.bird.start(recover=False)
    bird = Bird(alone.bird.config, alone.bird.socket, alone.netns, log=alone.bird.log, read_timeout=0.3)
    os.kill(int(bird.pid_file.read_text()), signal.SIGSTOP)
    with pytest.raises(Unavailable, match=r"no answer in 0\.3 s"):
        bird.ask("show status")
    assert bird.stop()
    assert alone.daemons() == []


async def test_asking_from_an_event_loop(alone: Machine) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        await alone.bird.query("show status")
    assert alone.bird.start(recover=False)
    status = parse_status(await alone.bird.query("show status"))
    assert (status.version, status.router_id) == ("2.0.12", "10.9.0.7")
    assert status.ready
    assert not (await alone.bird.query("show nonsense")).ok


async def test_routes_are_read_only_if_they_are_asked_for(alone: Machine) -> None:
    alone.bird.swap(render(replace(alone.config, blocks=(ip_network("192.168.7.0/26"),))))
    assert alone.bird.start(recover=False)
    assert tell(alone.bird, routes=False).routes is None
    found = eventually(lambda: tell(alone.bird, routes=True).routes or (), bool)
    assert str(found[0].prefix) == "192.168.7.0/26"


def test_a_log_that_grows_large_loses_its_beginning(alone: Machine) -> None:
    """Before a start, and under a daemon that goes on writing to it."""
    bird = alone.bird
    lines = "".join(f"line {i}\n" for i in range(LOG_MOST // 8))
    bird.log.write_text(lines)
    assert bird.log_is_large()
    assert bird.start(recover=False)
    assert bird.log.stat().st_size < 2 * LOG_TAIL
    assert bird.log.read_text().startswith("line ")
    bird.ask("configure")
    eventually(bird.log_tail, lambda text: "Reconfigured" in text)
    with bird.log.open("a") as log:
        log.write(lines)
    bird.trim_log()
    kept = bird.log.read_text()
    assert len(kept) <= LOG_TAIL
    assert kept.endswith(lines[-100:])
    bird.ask("configure")
    eventually(bird.log_tail, lambda text: "Reconfigured" in text)
    assert bird.log.stat().st_size < 2 * LOG_TAIL
    assert "\0" not in bird.log.read_text()


def test_a_file_that_somebody_spoils_is_refused_aloud(alone: Machine) -> None:
    assert alone.bird.start(recover=False)
    alone.bird.reload()
    alone.bird.config.write_text("nonsense")
    with pytest.raises(ConfigError, match="syntax error"):
        alone.bird.reload()


def test_routes_left_are_those_of_birds_namespace(alone: Machine) -> None:
    assert not routes_left(alone.bird.netns_path)
    alone.ip("route", "add", "blackhole", "192.0.2.0/24", "proto", "bird")
    assert routes_left(alone.bird.netns_path)


def test_a_start_that_fails_says_why(alone: Machine) -> None:
    alone.bird.config.write_text("nonsense")
    with pytest.raises(Unavailable, match=r"bird did not start: .*syntax error"):
        alone.bird.start()
    assert not alone.bird.running()


def test_a_machine_without_bird_says_what_to_install(alone: Machine) -> None:
    program = (
        "from pathlib import Path; from tortie.kernel.bird import Bird; from tortie.base.errors import NotSupported\n"
        f"try: Bird(Path('{alone.bird.config}'), Path('x'), log=Path('y')).check('')\n"
        "except NotSupported as err: print(err)"
    )
    hide = 'mount --bind /dev/null "$(PATH=$PATH:/usr/sbin command -v bird)" && exec "$@"'
    said = run("unshare", "--mount", "sh", "-c", hide, "sh", sys.executable, "-c", program)
    assert said == "bird not found: apt-get install bird2\n"
