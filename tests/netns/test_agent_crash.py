"""Agents and BIRDs that die, start, and meet what the one before them left: no packet may notice.

node1  192.0.2.1, fd00:2::1 ──── eth0 ──── 192.0.2.2, fd00:2::2  node2
pods a, b                                                        pod c
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_node import (
    RED,
    Node,
    Sandbox,
    Site,
    Stream,
    applied,
    conflist,
    endpoints,
    handles,
    ips,
    nothing_harmful_left,
    nothing_left,
    pod,
    settled,
    site_in,
    soon,
    until,
)
from conftest import Ns

from nobody import as_nobody
from tortie.calc.admission import bootstrap
from tortie.cni.spec import CniError, Code
from tortie.kernel import netns
from tortie.model.k8s import Pod
from tortie.model.meta import changed
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint

pytestmark = pytest.mark.root

ALLOW_A = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: only-a, namespace: red}
spec: {selector: "app == 'target'", types: [Ingress], ingress: [{action: Allow, source: {selector: "app == 'a'"}}]}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two nodes with BIRD, wired to each other."""
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        one = site.node("node1", ipv4="192.0.2.1/24", ipv6="fd00:2::1/64")
        two = site.node("node2", ipv4="192.0.2.2/24", ipv6="fd00:2::2/64")
        one.ns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", two.ns.name)
        for number, node in enumerate((one, two), 1):
            node.ns.ip("link", "set", "eth0", "up")
            node.ns.ip("addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
            node.ns.ip("addr", "add", f"fd00:2::{number}/64", "dev", "eth0", "nodad")
            node.ns.ip("route", "add", "default", "dev", "eth0")
            node.spawn()
        for node in (one, two):
            node.await_ready()
        yield site


@pytest.fixture
def one(site: Site) -> Node:
    return site.nodes[0]


@pytest.fixture
def two(site: Site) -> Node:
    return site.nodes[1]


@pytest.fixture
async def town(one: Node, two: Node, store: Store, make_ns: Callable[..., Ns]) -> AsyncIterator[dict[str, Sandbox]]:
    """Pods a and b on node1, c on node2; gone afterwards."""
    pods = {name: Sandbox(node, name, make_ns(name)) for name, node in (("a", one), ("b", one), ("c", two))}
    for name, sandbox in pods.items():
        app = "a" if name == "a" else "target"
        await store.create(pod(name, sandbox.node.name, labels={"app": app}))
        sandbox.result = await sandbox.add()
    yield pods
    for name, sandbox in pods.items():
        await sandbox.delete()
        await store.delete(Pod, name, RED)
    await nothing_left(one, store)
    await nothing_left(two, store)


def established(node: Node) -> bool:
    peers = json.loads(node.ask("/node")[1]).get("peers", [])
    return len(peers) == 2 and all(peer["state"] == "Established" for peer in peers)


def gateway_routes(node: Node) -> set[tuple[str, str]]:
    """What BIRD has learnt."""
    every = [route for version in (4, 6) for route in node.ns.json(f"-{version}", "route", "show", "proto", "bird")]
    return {(route["dst"], route["gateway"]) for route in every if "gateway" in route}


@contextlib.asynccontextmanager
async def streams(town: dict[str, Sandbox], store: Store) -> AsyncIterator[dict[str, Stream]]:
    """From a to b and c, which policy allows, and from b to c, which it does not. Afterwards nothing has been lost,
    nor has anything got through that must not."""
    addresses = {name: ips(sandbox.result) for name, sandbox in town.items()}
    async with applied(store, ALLOW_A):
        await soon(lambda: connected(town["b"], town["c"]), lambda it: not it, "the policy is in force")
        await soon(lambda: connected(town["a"], town["c"]), what="routes are there")
        with contextlib.ExitStack() as stack:
            running = {
                f"{source} to {ip}": stack.enter_context(Stream(town[source].ns, town[target].ns, ip, port))
                for port, (source, target) in enumerate((("a", "b"), ("a", "c"), ("b", "c")), 6000)
                for ip in addresses[target]
            }
            await asyncio.sleep(0.2)
            yield running
            await asyncio.sleep(0.2)
    for name, stream in running.items():
        assert stream.sent > 100
        assert stream.refused == {}, name
        if name.startswith("a"):
            assert stream.lost == [], f"{name}: {len(stream.lost)} of {stream.sent} lost"
        else:
            assert not stream.received, f"{name}: {len(stream.received)} of {stream.sent} got through"


def connected(source: Sandbox, target: Sandbox) -> bool:
    """Over both families."""
    for ip in ips(target.result):
        with Stream(source.ns, target.ns, ip, 5999) as stream:
            time.sleep(0.02)
        if not stream.received:
            return False
    return True


# --- the agent dies in the middle of ADD --------------------------------------------------------------------------


async def test_killed_at_any_instant_of_add_leaves_what_somebody_cleans(
    one: Node, store: Store, make_ns: Callable[..., Ns]
) -> None:
    """Twenty instants: four pods whose ADDs begin 4 ms apart, and the agent is killed later each time. What is
    left then is cleaned by DEL, by the next ADD and DEL, or by GC."""
    pods = [f"killed-{number}" for number in range(4)]
    spaces = {name: make_ns(name) for name in pods}
    for name in pods:
        await store.create(pod(name))
    outcomes: list[str] = []
    for attempt in range(5):
        calls = [Sandbox(one, name, spaces[name], conflist=conflist("1.1.0")) for name in pods]
        results = await killed_during(one, calls, 0.012 + 0.01 * attempt)
        outcomes += ["done" if isinstance(result, dict) else "cut" for result in results]
        for result in results:
            assert isinstance(result, dict) or result.code == Code.TRY_AGAIN_LATER, result
        one.start()
        await CLEANINGS[attempt % 3](one, store, calls)
        await nothing_harmful_left(one, store)
        assert await handles(store) == set()
        for space in spaces.values():
            assert {link["ifname"] for link in space.json("link", "show")} == {"lo"}
    last = Sandbox(one, pods[0], spaces[pods[0]])
    await last.add()  # a block whose claim was cut short is claimed by the next who needs it
    await last.delete()
    await nothing_left(one, store)
    for name in pods:
        await store.delete(Pod, name, RED)
    print(f"ADDs: {outcomes.count('cut')} cut short, {outcomes.count('done')} done")
    assert outcomes.count("cut") >= 5


async def killed_during(node: Node, calls: list[Sandbox], after: float) -> list[Any]:
    async def add(call: Sandbox, pause: float) -> dict[str, Any] | CniError:
        await asyncio.sleep(pause)
        try:
            return await call.add()
        except CniError as error:
            return error

    tasks = [asyncio.create_task(add(call, 0.004 * number)) for number, call in enumerate(calls)]
    await asyncio.sleep(after)
    node.kill()
    return await asyncio.gather(*tasks)


async def by_delete(node: Node, store: Store, calls: list[Sandbox]) -> None:
    for call in calls:
        await call.delete()


async def by_next_add(node: Node, store: Store, calls: list[Sandbox]) -> None:
    """The kubelet says DEL of the old one some time later."""
    again = [Sandbox(node, call.pod, call.ns, conflist=call.conflist) for call in calls]
    for call in again:
        await call.add()
        await call.check()
    for call in calls:
        await call.delete()
    for call in again:
        await call.check()
        await call.delete()


async def by_gc(node: Node, store: Store, calls: list[Sandbox]) -> None:
    """The runtime has forgotten everything. GC does not find the handle of a container that got no address: those that
    are listed nowhere else may be another node's. DEL does."""
    for file in (node.site.directory / f"cache-{node.name}" / "results").glob("*"):
        file.unlink()
    await node.runtime().gc(calls[0].conflist, [])
    await nothing_harmful_left(node, store)
    await by_delete(node, store, calls)


CLEANINGS = (by_delete, by_next_add, by_gc)


async def test_terminated_in_the_middle_finishes_what_it_has_begun(
    one: Node, store: Store, make_ns: Callable[..., Ns]
) -> None:
    calls = [Sandbox(one, f"term-{number}", make_ns()) for number in range(6)]
    for call in calls:
        await store.create(pod(call.pod))
    tasks = [asyncio.create_task(call.add()) for call in calls]
    await soon(one.links, what="the first is being attached")
    began = time.monotonic()
    assert await asyncio.to_thread(one.signal, signal.SIGTERM) == 0
    assert time.monotonic() - began < 5
    results = await asyncio.gather(*tasks, return_exceptions=True)
    one.start()
    for call, result in zip(calls, results, strict=True):
        if isinstance(result, dict):
            await call.check()
        else:
            assert isinstance(result, CniError)
            assert result.code == Code.TRY_AGAIN_LATER
        await call.delete()
        await store.delete(Pod, call.pod, RED)
    assert any(isinstance(result, dict) for result in results)
    await nothing_left(one, store)


# --- packets while programs die -----------------------------------------------------------------------------------


async def test_no_packet_notices_that_agents_end_and_start(
    one: Node, two: Node, store: Store, town: dict[str, Sandbox]
) -> None:
    """Killed and terminated; each start replaces the whole nft table. BIRD is the same one afterwards."""
    birds = one.bird_pid, two.bird_pid
    async with streams(town, store):
        for node, number in itertools.product((one, two), (signal.SIGKILL, signal.SIGTERM)):
            await asyncio.to_thread(node.signal, number)
            await asyncio.sleep(random.uniform(0, 0.2))
            await asyncio.to_thread(node.start)
    assert (one.bird_pid, two.bird_pid) == birds
    assert established(one)
    assert established(two)


async def test_policy_stands_while_there_is_no_agent(one: Node, town: dict[str, Sandbox], store: Store) -> None:
    """What was allowed and denied stays so for new connections, and an interface that is new has nothing. The next
    start puts back what somebody has taken away meanwhile."""
    async with applied(store, ALLOW_A):
        await soon(lambda: connected(town["c"], town["b"]), lambda it: not it, "the policy is in force")
        before = one.routes(), one.dispatched()
        one.kill()
        try:
            assert connected(town["a"], town["b"])
            assert not connected(town["c"], town["b"])
            one.ns.ip("link", "add", "cali-new", "type", "veth", "peer", "name", "eth7", "netns", town["a"].ns.name)
            one.ns.ip("link", "set", "cali-new", "up")
            town["a"].ns.ip("link", "set", "eth7", "up")
            town["a"].ns.ip("addr", "add", "10.65.77.7/32", "dev", "eth7")
            one.ns.ip("route", "add", "10.65.77.7", "dev", "cali-new")
            with Stream(town["b"].ns, town["a"].ns, "10.65.77.7") as stream:
                await asyncio.sleep(0.1)
            assert stream.sent
            assert not stream.received
            one.ns.run("nft", "flush", "ruleset")
            one.ns.ip("route", "flush", "dev", town["a"].host_ifname)
        finally:
            one.ns.ip("link", "del", "cali-new")
            await asyncio.to_thread(one.start)
        assert (one.routes(), one.dispatched()) == before


async def test_bird_that_is_killed_is_started_again_and_its_routes_stay(
    one: Node, two: Node, store: Store, town: dict[str, Sandbox]
) -> None:
    await soon(lambda: len(gateway_routes(one)) >= 2, what="node1 has the routes to node2's blocks")
    async with streams(town, store):
        for node in (one, two):  # not at once: of two that restart neither can wait for the other (RFC 4724, 4.1)
            before, bird = gateway_routes(node), node.bird_pid
            os.kill(bird, signal.SIGKILL)
            await soon(
                lambda node=node: node.bird_pid, lambda pid, bird=bird: pid not in (0, bird), "there is a new one"
            )
            await soon(lambda: established(one) and established(two), what="they speak to each other")
            assert gateway_routes(node) == before
            assert "-R" in words_of(node.bird_pid)


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


async def test_what_happens_while_there_is_no_agent_is_caught_up_with(
    one: Node, store: Store, town: dict[str, Sandbox]
) -> None:
    """A label changes, an endpoint goes, BIRD's configuration is edited; the BIRD that runs is taken over."""
    bird, file = one.bird_pid, one.run_dir / "bird.conf"
    config = file.read_text()
    await settled()
    one.kill()
    await store.update(changed(await store.get(Pod, "a", RED), labels={"app": "target"}))
    await store.delete(WorkloadEndpoint, (await endpoints(store))["b"].name, RED)
    file.write_text(config + "\n# somebody was here\n")
    one.start()
    await soon(lambda: endpoints(store), lambda found: found["a"].labels["app"] == "target", "the label is followed")
    assert one.dispatched() == {town["a"].host_ifname}
    await soon(one.routes, lambda seen: {dev for _, dev in seen} == {town["a"].host_ifname}, "the route of b is gone")
    await soon(file.read_text, lambda text: text == config, "the file is ours again")
    assert one.bird_pid == bird


async def test_bird_that_hangs_is_not_joined_by_another(one: Node) -> None:
    bird = one.bird_pid
    os.kill(bird, signal.SIGSTOP)
    try:
        said = await soon(
            lambda: json.loads(one.ask("/readiness")[1])["BIRD"], lambda report: not report["ready"], "BIRD is missed"
        )
        assert "does not answer" in said["reason"]
        assert sum(words_of(pid)[0].endswith("bird") for pid in netns.pids_in(one.ns.path)) == 1
    finally:
        os.kill(bird, signal.SIGCONT)
    await asyncio.to_thread(one.await_ready)
    assert one.bird_pid == bird


# --- drift --------------------------------------------------------------------------------------------------------


async def test_link_that_comes_back_has_its_route_at_once(one: Node, town: dict[str, Sandbox]) -> None:
    routes, cali = one.routes(), town["a"].host_ifname
    one.ns.ip("link", "set", cali, "down")  # the kernel forgets its routes
    assert one.routes() != routes
    one.ns.ip("link", "set", cali, "up")
    until(one.routes, lambda seen: seen == routes, "routes are back", seconds=2)


# --- health and metrics -------------------------------------------------------------------------------------------


async def test_health_and_metrics_say_how_it_is(one: Node, town: dict[str, Sandbox]) -> None:
    for target in ("/liveness", "/readiness"):
        status, body = one.ask_port(9099, target)
        assert (status, body) == one.ask(target)
        assert status == 200
        assert json.loads(body) == {
            name: {"live": True, "ready": True, "reason": ""}
            for name in ("CalculationGraph", "InternalDataplaneMainLoop", "BIRD")
        }
    status, body = one.ask_port(9091, "/metrics")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in body.splitlines() if not line.startswith("#"))
    assert values["felix_active_local_endpoints"] == "2.0"
    assert values["felix_resync_state"] == "3.0"
    assert values["felix_int_dataplane_failures_total"] == "0.0"
    assert float(values["felix_int_dataplane_apply_time_seconds_count"]) > 0
    assert one.ask("/nowhere")[0] == 404
    sock = one.run_dir / "agent.sock"
    assert oct(sock.stat().st_mode & 0o777) == "0o600"


# --- starting -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Node]:
    """A node of a cluster of its own, whose agent is not started yet."""
    with site_in(tmp_path) as site:
        yield site.node("stranger", "--no-bgp")


def plain(node: Node, *more: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and message of a start that fails."""
    status, text = node.run_once(*more, env=env)
    assert text.startswith("tortie: ")
    assert "\n" not in text
    return status, text.removeprefix("tortie: ")


def test_two_agents_on_one_run_directory(one: Node) -> None:
    assert one.process is not None
    status, text = plain(one)
    assert (status, text) == (1, f"an agent runs already in {one.run_dir}, pid {one.process.pid}")
    assert one.ask("/readiness")[0] == 200


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ipv4", "192.0.2.300/24"], '--ipv4: "192.0.2.300/24" is not an IPv4 address with its prefix length'),
        (["--node", "Not_A_Name"], '--node: "Not_A_Name" must be lower-case letters'),
        (["--run-dir", "/etc/passwd"], "--run-dir: /etc/passwd: File exists"),
        (["--datastore", "/etc/passwd/store.db"], "/etc/passwd/store.db: cannot be opened: Not a directory"),
        (["--datastore", "/etc/passwd"], "/etc/passwd: is not a database"),
        (["--datastore", "etcd:ftp://localhost"], 'etcdEndpoints[0]: "ftp://localhost" is not a URL'),
        (["--datastore", "kubernetes:/nowhere"], "/nowhere: there is no such kubeconfig"),
        (["--datastore", "consul://localhost"], '"consul:..." is not a datastore; write'),
    ],
)
def test_what_is_told_wrong_is_said_in_one_line(stranger: Node, words: list[str], says: str) -> None:
    status, text = plain(stranger, *words)
    assert text.startswith(says)
    assert status == 2
    assert "tortie" not in stranger.ns.run("nft", "list", "ruleset")


def test_program_that_is_missing(stranger: Node, tmp_path: Path) -> None:
    (tmp_path / "nsenter").symlink_to("/usr/bin/nsenter")
    status, text = plain(stranger, env={"PATH": str(tmp_path)})
    assert (status, text) == (1, "nft not found: apt-get install nftables")


def test_bird_that_is_missing(stranger: Node) -> None:
    """It is looked for where packages put it, too, so that a mount has to hide it."""
    words = shlex.join(stranger.command("--bgp"))
    script = f"mount --bind /dev/null /usr/sbin/bird && exec {words}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "tortie: bird not found: apt-get install bird2\n")


def test_who_is_not_root(stranger: Node) -> None:
    done = subprocess.run(as_nobody(*stranger.command()[2:]), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "tortie: the agent programs the kernel: run it as root\n")


def test_port_that_is_taken(stranger: Node) -> None:
    status, text = plain(stranger, "--health-port", "9091")
    assert status == 1
    assert text == "cannot listen on *:9091: Address already in use"


def test_agent_waits_for_a_cluster_and_leaves_the_kernel_alone(stranger: Node) -> None:
    """A mistyped path makes a new, empty datastore; it must not become the state of the node."""
    stranger.ns.run("nft", "-f", "-", stdin="add table inet tortie\nadd chain inet tortie mine")
    stranger.spawn()
    until(lambda: stranger.ask("/liveness")[0], lambda status: status == 200, "it lives")
    until(lambda: "no cluster has been set up" in stranger.log, what="it says what it waits for")
    assert stranger.ask("/readiness")[0] == 503
    assert "chain mine" in stranger.ns.run("nft", "list", "ruleset")
    stranger.site.write(*bootstrap("0" * 32))
    stranger.await_ready()
    assert "chain mine" not in stranger.ns.run("nft", "list", "ruleset")
    assert stranger.signal(signal.SIGTERM) == 0


def test_first_bird_of_a_node_waits_for_nobody(stranger: Node) -> None:
    """With nothing to hold in the kernel, holding it for peers that are gone only keeps routes away. Nor does the node
    need IPv6."""
    stranger.ns.run("sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    stranger.site.write(*bootstrap("0" * 32))
    stranger.start("--bgp")
    assert "-R" not in words_of(stranger.bird_pid)
    assert json.loads(stranger.ask("/node")[1])["bird"]["state"] == "ready"
