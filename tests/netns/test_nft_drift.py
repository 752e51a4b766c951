"""Somebody else changes our table: it is put right at once. What is in other tables is nobody's business here."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from agent_node import Node, Sandbox, Site, Stream, applied, ips, soon, until
from agent_pods import sandboxes
from conftest import Ns
from test_stages import DRIFTS, NODE, PODS, Driven, endpoint, handles, some_state, table

from tortie.calc.cluster import Cluster
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.nft import Nft
from tortie.kernel import libnftables
from tortie.kernel.events import Overrun
from tortie.kernel.nft import Session
from tortie.kernel.nft_events import Change, Monitor
from tortie.model.store import Store
from tortie.render.ruleset import TABLE

pytestmark = pytest.mark.root

STRANGERS = """
add table inet filter
add chain inet filter forward { type filter hook forward priority filter; policy accept; }
add rule inet filter forward iifname "eth*" counter packets 3 bytes 300 accept comment "a person's"
add table ip nat
add chain ip nat KUBE-SERVICES
add chain ip nat KUBE-SVC-ERIFXISQEP7F7OF4
add chain ip nat PREROUTING { type nat hook prerouting priority dstnat; policy accept; }
add chain ip nat POSTROUTING { type nat hook postrouting priority srcnat; policy accept; }
add rule ip nat PREROUTING counter jump KUBE-SERVICES
add rule ip nat KUBE-SERVICES ip daddr 10.96.0.10 udp dport 53 counter jump KUBE-SVC-ERIFXISQEP7F7OF4
add rule ip nat KUBE-SVC-ERIFXISQEP7F7OF4 meta l4proto udp numgen random mod 2 0 counter dnat to 10.65.0.1:53
add table ip docker
add chain ip docker DOCKER-USER
add chain ip docker forward { type filter hook forward priority filter - 5; policy accept; }
add rule ip docker forward jump DOCKER-USER
add rule ip docker DOCKER-USER meta mark & 0x00010000 != 0 counter
add table ip tortie
add set ip tortie workloads { type ifname; elements = { "cali*" }; flags interval; }
add table inet tortie-of-somebody
add map inet tortie-of-somebody tortie { type ipv4_addr : verdict; elements = { 198.51.100.1 : drop }; }
add table netdev ingress
add table bridge filter
add chain bridge filter forward { type filter hook forward priority 0; policy accept; }
"""


def others(ns: Ns, flags: str = "-a") -> str:
    """All tables but ours, as nft prints them, with every handle and count (`-sa`: without counts)."""
    tables = [line for line in ns.run("nft", "list", "tables").splitlines() if line != f"table {TABLE}"]
    return "".join(ns.run("nft", flags, "list", *line.split()) for line in tables)


# --- what the kernel tells ----------------------------------------------------------------------------------------

SMALL = f"""add table {TABLE}
add chain {TABLE} c
add rule {TABLE} c counter
add set {TABLE} s {{ type ipv4_addr; }}
add element {TABLE} s {{ 192.0.2.1 }}
"""
CHANGES = {
    f"add rule {TABLE} c accept": Change(chains=frozenset({"c"})),
    f"flush chain {TABLE} c": Change(chains=frozenset({"c"})),
    f"add rule {TABLE} c ip saddr {{ 192.0.2.1, 192.0.2.2 }}": Change(frozenset({"c"}), frozenset({"__set0"})),
    f"add element {TABLE} s {{ 192.0.2.2 }}": Change(sets=frozenset({"s"})),
    f"flush set {TABLE} s": Change(sets=frozenset({"s"})),
    f"add element {TABLE} s {{ 192.0.2.2 }}\nadd rule {TABLE} c drop": Change(frozenset({"c"}), frozenset({"s"})),
    f"add chain {TABLE} d": Change(whole=True),
    f"add set {TABLE} d {{ type ipv4_addr; }}": Change(whole=True),
    f"add counter {TABLE} k": Change(whole=True),
}


def ours(change: Change) -> Change:
    """Without who it was."""
    return Change(change.chains, change.sets, change.whole)


def seen(monitor: Monitor) -> list[Change | Overrun]:
    return [ours(one) if isinstance(one, Change) else one for one in monitor.read()]


def test_change_of_a_stranger_says_what_was_touched(ns: Ns) -> None:
    Session(ns.path).apply(SMALL)
    with Monitor(TABLE, ns.path) as monitor:
        for script, change in CHANGES.items():
            ns.run("nft", "-f", "-", stdin=script)
            (told,) = monitor.read()
            assert isinstance(told, Change)
            assert ours(told) == change, script
            assert told.program == "nft"
        ns.run("nft", "delete", "table", *TABLE.split())
        assert all(one.whole for one in monitor.read() if isinstance(one, Change))


@pytest.mark.parametrize("known", [True, False], ids=["known before", "unknown"])
@pytest.mark.parametrize("in_process", [True, False], ids=["library", "program"])
def test_own_changes_and_other_tables_are_not_told(ns: Ns, in_process: bool, known: bool) -> None:
    if in_process and libnftables.load() is None:
        pytest.skip(f"{libnftables.LIBRARY} is not installed")
    session = Session(ns.path, in_process=in_process)
    if known:
        session.open()
    with Monitor(TABLE, ns.path) as monitor:
        session.begun = monitor.ignore
        session.apply(SMALL)
        for script in CHANGES:
            session.apply(script)
        assert seen(monitor) == []
        ns.run("nft", "-f", "-", stdin=STRANGERS)
        ns.run("nft", "add", "table", "ip6", "tortie")
        ns.run("nft", "list", "table", *TABLE.split())
        assert seen(monitor) == []
        session.apply(f"delete table {TABLE}\n")
        assert seen(monitor) == []
        assert others(ns)


def test_large_transactions(ns: Ns) -> None:
    """Our own do not reach us, if the socket was there before; a stranger's are read, element by element."""
    elements = ", ".join(f"10.0.{i >> 8}.{i & 255}" for i in range(10_000))
    session = Session(ns.path)
    session.apply(SMALL)
    with Monitor(TABLE, ns.path) as monitor:
        session.apply(f"add element {TABLE} s {{ {elements} }}\n")
        assert not select.select([monitor], [], [], 0)[0]
        ns.run("nft", "-f", "-", stdin=f"delete element {TABLE} s {{ {elements} }}")
        began = time.perf_counter()
        assert seen(monitor) == [Change(sets=frozenset({"s"}))]
        print(f"10,000 elements of somebody else's: read in {1000 * (time.perf_counter() - began):.1f} ms")


@pytest.mark.parametrize("in_process", [True, False], ids=["library", "program"])
def test_own_transaction_of_any_size_crowds_out_nobody(ns: Ns, in_process: bool) -> None:
    """More than there is room for, between two changes of a stranger's."""
    session = Session(ns.path, in_process=in_process)
    session.apply(SMALL)
    with Monitor(TABLE, ns.path) as monitor:
        session.begun = monitor.ignore
        monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        ns.run("nft", "add", "rule", *TABLE.split(), "c", "accept")
        session.apply(f"add rule {TABLE} c counter\n" * 2000)
        ns.run("nft", "flush", "set", *TABLE.split(), "s")
        assert seen(monitor) == [Change(frozenset({"c"})), Change(sets=frozenset({"s"}))]


def test_lost_messages_are_told_of(ns: Ns) -> None:
    Session(ns.path).apply(SMALL)
    with Monitor(TABLE, ns.path) as monitor:
        monitor._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        ns.run("nft", "-f", "-", stdin=f"add rule {TABLE} c counter\n" * 2000)
        assert Overrun() in seen(monitor)


def test_looking_for_own_sockets_keeps_the_locks_on_files(ns: Ns, tmp_path: Path) -> None:
    """A process that closes any descriptor of a file gives up its locks on it; the datastore is such a file."""
    with (tmp_path / "locked").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        with Monitor(TABLE, ns.path) as monitor:
            monitor.ignore(4_000_000_000)
        asks = f"import fcntl; fcntl.lockf(open({file.name!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, timeout=30, check=False)
    assert "BlockingIOError" in done.stderr


# --- the stage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS)
def test_every_drift_is_put_right_when_it_is_told(ns: Ns, drift: str) -> None:
    stage, state = Nft(ns.path), some_state()
    assert converge([stage], state) == []
    before = table(ns)
    with Monitor(TABLE, ns.path) as monitor:
        ns.run("nft", "-f", "-", stdin=drift.format(**handles(ns)))
        found = monitor.read()
        assert found
        for change in found:
            stage.changed(change)
        assert converge([stage], state) == []
        assert table(ns) == before
        assert monitor.read() == []  # the repair is our own
        assert not stage.plan(state)


def test_doubt_outlives_a_look_that_fails(ns: Ns, tmp_path: Path) -> None:
    """The programs that look are away for once; what somebody changed unheard is put right all the same."""
    stage, state = Nft(ns.path), some_state()
    with stage.monitor():
        assert converge([stage], state) == []
        before = table(ns)
        ns.run("nft", "flush", "table", *TABLE.split())
        path = os.environ["PATH"]
        os.environ["PATH"] = str(tmp_path)
        try:
            stage.changed(Overrun())
            assert converge([stage], state)
        finally:
            os.environ["PATH"] = path
        assert converge([stage], state) == []
        assert table(ns) == before


def test_drift_and_another_state_at_once(ns: Ns) -> None:
    """A stranger empties what is about to change, and touches what is about to go."""
    cluster, stage = Cluster(NODE), Nft(ns.path)
    for number, pod in enumerate(PODS[:3]):
        cluster.put(endpoint(pod, f"10.65.0.{number}"))
    assert converge([stage], cluster.state()) == []
    gone = endpoint(PODS[0])
    cluster.drop(type(gone), gone.namespace, gone.name)
    with Monitor(TABLE, ns.path) as monitor:
        for words in ("flush map inet tortie to-workload", "flush chain inet tortie fw-cali00000000000"):
            ns.run("nft", *words.split())
        for change in monitor.read():
            stage.changed(change)
    state = cluster.state()
    assert converge([stage], state) == []
    fresh = Nft(ns.path)
    before = table(ns)
    assert converge([fresh], state) == []
    assert table(ns) == before


def test_counters_of_what_was_not_touched_stay(ns: Ns) -> None:
    stage, state = Nft(ns.path), some_state()
    assert converge([stage], state) == []
    rule = next(
        line for line in ns.run("nft", "-a", "list", "table", *TABLE.split()).splitlines() if "spoofing" in line
    )
    text, _, handle = rule.strip().partition(" # handle ")
    counted = text.replace("packets 0 bytes 0", "packets 7 bytes 700")
    ns.run("nft", "replace", "rule", *TABLE.split(), "prerouting", "handle", handle, *counted.split())
    with Monitor(TABLE, ns.path) as monitor:
        ns.run("nft", "insert", "rule", *TABLE.split(), "forward", "accept")
        for change in monitor.read():
            stage.changed(change)
    assert converge([stage], state) == []
    assert "packets 7 bytes 700" in ns.run("nft", "list", "chain", *TABLE.split(), "prerouting")


# --- the agent ----------------------------------------------------------------------------------------------------

ONLY_FRIENDS = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: friends, namespace: red}
spec: {selector: "role == 'server'", ingress: [{action: Allow, protocol: UDP, source: {selector: "role == 'friend'"}}]}
"""
AGENT_DRIFTS = {
    "the table is gone": "delete table inet tortie",
    "its rules are gone": "flush table inet tortie",
    "a rule is gone": "delete rule inet tortie {last_chain} handle {last}",
    "a rule too many": "insert rule inet tortie forward counter accept",
    "a chain too many": "add chain inet tortie mine {{ type filter hook forward priority -500; policy drop; }}",
    "an element is gone": 'delete element inet tortie to-workload {{ "{server}" }}',
    "elements are gone": "flush map inet tortie from-workload",
}
RESYNC_SAYS = "is not as it was left"


@pytest.fixture(scope="module")
def node(site: Site) -> Node:
    node = site.node("node1", "--no-bgp")
    node.ns.run("nft", "-f", "-", stdin=STRANGERS)
    return node.start()


Trio = dict[str, tuple[Sandbox, str]]


@pytest.fixture
async def trio(node: Node, store: Store, make_ns: Callable[..., Ns]) -> AsyncIterator[Trio]:
    """A server, its friend and a foe of it, with their IPv4 addresses; the policy is in force."""
    async with sandboxes(node, store, make_ns) as make, applied(store, ONLY_FRIENDS):
        made: Trio = {}
        for role in ("server", "friend", "foe"):
            one = await make(role, labels={"role": role})
            made[role] = one, ips(await one.add())[0]
        await soon(lambda: asyncio.to_thread(heard, made, "foe"), lambda it: not it, "the policy is in force")
        await soon(lambda: asyncio.to_thread(heard, made, "friend"), what="the friend is heard")
        yield made


def heard(trio: Trio, who: str) -> bool:
    server, ip = trio["server"]
    with Stream(trio[who][0].ns, server.ns, ip, 5999) as stream:
        time.sleep(0.02)
    return bool(stream.received)


def end_of_chain(ns: Ns, interface: str) -> dict[str, str]:
    """Where the last rule of an endpoint's inbound chain is, which drops."""
    listed = json.loads(ns.run("nft", "-j", "-a", "list", "chain", "inet", "tortie", f"tw-{interface}"))["nftables"]
    rules = [item["rule"] for item in listed if "rule" in item]
    return {"last_chain": f"tw-{interface}", "last": str(rules[-1]["handle"])}


@pytest.mark.parametrize("drift", AGENT_DRIFTS.values(), ids=AGENT_DRIFTS)
async def test_agent_repairs_at_once(node: Node, trio: Trio, drift: str, request: pytest.FixtureRequest) -> None:
    """Under a flood: from the repair on nothing that is forbidden passes, and nothing that is allowed is lost."""
    server, ip = trio["server"]
    before, foreign = table(node.ns), others(node.ns, "-sa")
    words = end_of_chain(node.ns, server.host_ifname) | {"server": server.host_ifname}
    friend, foe = (Stream(trio[who][0].ns, server.ns, ip, port) for port, who in enumerate(("friend", "foe"), 6000))
    with Monitor(TABLE, node.ns.path, everybody=True) as monitor, friend, foe:
        until(lambda: min(friend.sent, foe.sent) > 50, what="the flood")
        spoiling, began = (friend.sent, foe.sent), time.perf_counter()
        await asyncio.to_thread(node.ns.run, "nft", "-f", "-", stdin=drift.format(**words))
        assert until_repaired(monitor) == ["nft"]
        took = time.perf_counter() - began
        repaired = (friend.sent, foe.sent)
        assert table(node.ns) == before
        until(lambda: foe.sent > repaired[1] + 100, what="the flood goes on")
    print(f"{request.node.callspec.id}: {1000 * took:.1f} ms from its start to the repair")
    assert [number for number in friend.lost if not spoiling[0] - 1 <= number <= repaired[0]] == []
    assert [number for number in foe.received if not spoiling[1] - 1 <= number <= repaired[1]] == []
    assert others(node.ns, "-sa") == foreign
    assert not [line for line in node.messages() if RESYNC_SAYS in line]


def until_repaired(monitor: Monitor) -> list[str]:
    """Returns when the agent has changed the table: who had done so before."""
    found: list[str] = []

    def look() -> bool:
        found.extend(one.program for one in monitor.read() if isinstance(one, Change))
        return found[-1:] not in ([], ["nft"])

    until(look, what="a repair")
    return found[:-1]


async def test_who_does_it_again_and_again_does_not_keep_the_agent_busy(node: Node, trio: Trio) -> None:
    """A repair every tenth of a second, and one line in the log."""
    before, said = table(node.ns), node.messages()
    with Monitor(TABLE, node.ns.path, everybody=True) as monitor:
        began = time.monotonic()
        for _ in range(60):
            node.ns.run("nft", "add", "rule", *TABLE.split(), "forward", "counter")
        took = time.monotonic() - began
        until(lambda: table(node.ns), lambda seen: seen == before, "the table as it was")
        repairs = [one for one in monitor.read() if isinstance(one, Change) and one.program != "nft"]
    assert 0 < len(repairs) <= took / 0.1 + 2
    assert len([line for line in node.messages()[len(said) :] if "changed table" in line]) <= 1
    assert not [line for line in node.messages() if RESYNC_SAYS in line]


def test_agent_does_not_take_itself_for_a_stranger(node: Node) -> None:
    """All that it has done so far was no reason to repair anything: its log tells of one program, `nft`."""
    assert not [line for line in node.messages() if "changed table" in line and not line.startswith("nft ")]


# --- the tables of others -----------------------------------------------------------------------------------------


def test_other_tables_survive_start_resync_repair_and_stop(ns: Ns) -> None:
    """Byte for byte, handles and counters too."""
    ns.run("nft", "-f", "-", stdin=STRANGERS)
    if shutil.which("iptables-nft"):
        ns.run("iptables-nft", "-t", "mangle", "-A", "FORWARD", "-m", "comment", "--comment", "old", "-j", "ACCEPT")
    before = others(ns)
    driven = Driven([Nft(ns.path)], resync=0.2)
    with driven as worker:
        worker.submit(some_state())
        driven.until(lambda: len(driven.passes) >= 3)  # a resync at least
        ns.run("nft", "flush", "table", *TABLE.split())
        passes = len(driven.passes)
        driven.until(lambda: len(driven.passes) > passes + 1)
        worker.submit(Cluster(NODE).state())
        passes = len(driven.passes)
        driven.until(lambda: len(driven.passes) > passes)
        assert others(ns) == before
    assert others(ns) == before
    assert "map tortie {" in before
    assert driven.bugs == []
