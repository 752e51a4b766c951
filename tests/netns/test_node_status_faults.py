"""`tortie node status`: why each session is down, of an agent whose every peering is wrong in another way; what is told
on the objects; and CalicoNodeStatus."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from agent_node import Node as AgentNode
from agent_node import Site, site_in, soon, until
from bgp_town import bird, connect, drop, hang, resume, session

from tortie.calc.diagnosis import Cause
from tortie.kernel.bird import Bird
from tortie.model.bgp import BGPPeer
from tortie.model.document import parse
from tortie.model.nodestatus import CalicoNodeStatus

pytestmark = pytest.mark.root

PASSWORD = "swordfish"


def peer(name: str, ip: str, asn: int = 65009, more: str = "") -> str:
    spec = f"node: a, peerIP: '{ip}', asNumber: {asn}{more and ', ' + more}"
    return f"{{apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {{name: {name}}}, spec: {{{spec}}}}}"


def node(name: str, ip: str) -> str:
    spec = f"bgp: {{ipv4Address: {ip}/24}}"
    return f"{{apiVersion: projectcalico.org/v3, kind: Node, metadata: {{name: {name}}}, spec: {{{spec}}}}}"


SECRET = f"""
{{apiVersion: v1, kind: Secret, metadata: {{name: bgp, namespace: kube-system}},
 data: {{key: {base64.b64encode(PASSWORD.encode()).decode()}}}}}"""
SIGNED = "password: {secretKeyRef: {name: bgp, key: key}}"
OBJECTS = [
    "{apiVersion: projectcalico.org/v3, kind: BGPConfiguration, metadata: {name: default},"
    " spec: {nodeToNodeMeshEnabled: false}}",
    "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default},"
    " spec: {failsafeInboundHostPorts: [], failsafeOutboundHostPorts: []}}",
    "{apiVersion: projectcalico.org/v3, kind: HostEndpoint, metadata: {name: a-eth1},"
    " spec: {node: a, interfaceName: eth1}}",
    SECRET,
    node("twin1", "10.9.0.14"),
    node("twin2", "10.9.0.14"),
    node("gone", "10.9.0.15"),
    node("shy", "10.9.0.16"),
    peer("refused", "10.9.0.2"),
    peer("nobody", "10.9.0.3"),
    peer("no-route", "203.0.113.9"),
    peer("wrong-as", "10.9.0.5", 65099),
    peer("their-as", "10.9.0.13", 65009),
    peer("no-password-here", "10.9.0.6"),
    peer("no-password-there", "10.9.0.7", more=SIGNED),
    peer("not-there", "10.9.0.8"),
    peer("ttl-there", "10.9.0.9"),
    peer("ttl-here", "10.9.0.10", more="ttlSecurity: 1"),
    peer("firewall", "10.9.0.11"),
    peer("good", "10.9.0.12"),
    peer("hangs", "10.9.0.17"),
    peer("disabled", "10.9.0.18"),
    peer("twin", "10.9.0.14", 64512),
    peer("gone", "10.9.0.15", 64512),
    peer("shy", "10.9.0.16", 64512, "reversePeering: Manual"),
    peer("node-as", "10.9.0.16:1179", 65001),
    peer("dead-link", "10.10.0.9"),
    peer("denied", "10.11.0.9"),
]
TOWN = {
    "10.9.0.5": session("10.9.0.5"),
    "10.9.0.13": session("10.9.0.13", asn=64999),
    "10.9.0.6": session("10.9.0.6", more=f'password "{PASSWORD}";'),
    "10.9.0.7": session("10.9.0.7"),
    "10.9.0.8": session("10.9.0.8", neighbor="10.9.0.99"),
    "10.9.0.9": session("10.9.0.9", more="ttl security on; multihop 1;"),
    "10.9.0.10": session("10.9.0.10"),
    "10.9.0.11": session("10.9.0.11"),
    "10.9.0.12": session("10.9.0.12"),
    "10.9.0.17": session("10.9.0.17", more="hold time 3; keepalive time 1;"),
    "10.9.0.18": session("10.9.0.18", more="graceful restart on;"),
    "10.11.0.9": session("10.11.0.9", neighbor="10.11.0.1"),
}
BIRDS: dict[str, Bird] = {}
"""Those that run, by address."""
ADDRESSES = [f"10.9.0.{number}" for number in (2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        site.write(*(one for text in OBJECTS for one in parse(text)))
        yield site


@pytest.fixture(scope="module")
def agent(site: Site) -> Iterator[AgentNode]:
    made = site.node("a", "--health-port", "0", "--metrics-port", "0", ipv4="10.9.0.1/24")
    town = site.node("town").ns
    connect(made.ns, town, 0, "10.9.0.1/24", "10.9.0.250/24")
    connect(made.ns, town, 1, "10.11.0.1/24", "10.11.0.9/24")
    connect(made.ns, town, 2, "10.10.0.1/24")
    for ip in ADDRESSES:
        town.ip("address", "add", f"{ip}/24", "dev", "town0")
    drop(town, "ip daddr 10.9.0.11 tcp dport 179")
    drop_back = "ip saddr 10.9.0.11"
    drop(made.ns, drop_back)
    with ExitStack() as stack:
        for ip, text in TOWN.items():
            BIRDS[ip] = stack.enter_context(bird(town, site.directory / f"bird-{ip}", text))
        yield made.start()


def ask(agent: AgentNode, question: str) -> Any:
    status, body = agent.ask(question)
    assert status == 200, body
    return json.loads(body)


@pytest.fixture(scope="module")
def diagnoses(agent: AgentNode) -> list[dict[str, Any]]:
    """All that is said while sessions come up, or fail each in its own way, until every case is met."""
    until(lambda: ask(agent, "/node")["peers"], lambda peers: any(one["state"] == "Established" for one in peers))
    seen: list[dict[str, Any]] = []
    deadline = time.monotonic() + 20
    while not all(of(seen, *case) for case in CASES) and time.monotonic() < deadline:
        seen += ask(agent, "/diagnosis")["sessions"]
    return seen


def of(seen: list[dict[str, Any]], ip: str, cause: Cause, text: str) -> list[dict[str, Any]]:
    return [one for one in seen if (one["ip"], one["cause"]) == (ip, cause) and text in one["text"] and one["todo"]]


CASES = [
    ("10.9.0.2", Cause.REFUSED, "refuses TCP 179: nobody listens there"),
    ("10.9.0.3", Cause.WRONG_ADDRESS, "nobody on eth0 has the address 10.9.0.3, and no Node has it"),
    ("203.0.113.9", Cause.NO_ROUTE, "no route to 203.0.113.9: Network is unreachable"),
    ("10.9.0.5", Cause.AS_MISMATCH, "10.9.0.5 is in AS 65009, and this node expects 65099"),
    ("10.9.0.13", Cause.AS_MISMATCH, "10.9.0.13 expects another AS number than 64512 of this node"),
    ("10.9.0.6", Cause.PASSWORD, "10.9.0.6 signs its packets, and this node has no password"),
    ("10.9.0.7", Cause.PASSWORD, "10.9.0.7 has no password: it answers without a signature, and not with one"),
    ("10.9.0.8", Cause.NO_SESSION_THERE, "it has no session with 10.9.0.1"),
    ("10.9.0.9", Cause.TTL_SECURITY, "wants TTL security"),
    ("10.9.0.10", Cause.TTL_SECURITY, "more than 1 hop away, or does not send with a TTL of 255"),
    ("10.9.0.14", Cause.DUPLICATE_ADDRESS, "10.9.0.14 is the address of twin1 and twin2"),
    ("10.9.0.15", Cause.UNREACHABLE, "gone (10.9.0.15) does not answer on eth0"),
    ("10.9.0.16", Cause.NO_SESSION_THERE, "shy (10.9.0.16) has no session with 10.9.0.1"),
    ("10.9.0.16", Cause.AS_MISMATCH, "shy (10.9.0.16) is in AS 64512, and this node expects 65001"),
    ("10.10.0.9", Cause.LINK_DOWN, "leads out of eth2, which is down"),
    ("10.11.0.9", Cause.DENIED, "no policy and no profile of host endpoint a-eth1 allows it"),
]


@pytest.mark.parametrize(("ip", "cause", "text"), CASES, ids=[f"{case[0]}-{case[1].value}" for case in CASES])
def test_why_a_session_is_down(diagnoses: list[dict[str, Any]], ip: str, cause: Cause, text: str) -> None:
    assert of(diagnoses, ip, cause, text), [one for one in diagnoses if one["ip"] == ip]


def test_the_session_that_is_right_is_none_of_them(agent: AgentNode, diagnoses: list[dict[str, Any]]) -> None:
    found = {one["ip"]: one["state"] for one in ask(agent, "/node")["peers"]}
    assert found["10.9.0.12"] == "Established"
    assert {one["cause"] for one in diagnoses if one["ip"] == "10.9.0.11"} <= {Cause.SILENT, Cause.PASSWORD}


def test_sessions_that_were_up(agent: AgentNode, diagnoses: list[dict[str, Any]]) -> None:
    """One whose peer hangs, and one that the peer has disabled."""
    up = ("10.9.0.17", "10.9.0.18")

    def established() -> list[str]:
        return [one["ip"] for one in ask(agent, "/node")["peers"] if one["ip"] in up and one["state"] == "Established"]

    until(established, lambda seen: seen == [*up], "both are up")
    hang(BIRDS["10.9.0.17"])
    until(established, lambda seen: seen == ["10.9.0.18"], "the hold timer has expired")
    BIRDS["10.9.0.18"].ask("disable peer")
    until(established, lambda seen: not seen, "it is shut down")
    causes = {one["ip"]: one["cause"] for one in ask(agent, "/diagnosis")["sessions"] if one["ip"] in up}
    assert causes == {"10.9.0.17": Cause.HOLD_TIMER, "10.9.0.18": Cause.SHUT_DOWN}
    BIRDS["10.9.0.18"].ask("enable peer")
    resume(BIRDS["10.9.0.17"])
    until(established, lambda seen: seen == [*up], "both are up again")
    restarting = BIRDS["10.9.0.18"]
    os.kill(int(restarting.pid_file.read_text()), signal.SIGKILL)
    until(established, lambda seen: seen == ["10.9.0.17"], "it is away")
    (away,) = (one for one in ask(agent, "/diagnosis")["sessions"] if one["ip"] == "10.9.0.18")
    assert away["text"].startswith("10.9.0.18 refuses TCP 179: nobody listens there; it is restarting gracefully")
    restarting.start(recover=True)
    until(established, lambda seen: seen == [*up], "it is back")


# --- what is told elsewhere ---------------------------------------------------------------------------------------


async def test_an_object_that_is_not_carried_out_says_so_until_it_is(site: Site, agent: AgentNode) -> None:
    (made,) = parse(peer("unfiltered", "10.9.0.12", more="filters: [nowhere]"))
    async with site.store() as store:
        await store.create(made)

        async def conditions() -> list[dict[str, Any]]:
            return ((await store.get(BGPPeer, "unfiltered")).status or {}).get("conditions", [])

        (told,) = await soon(conditions, bool, "a condition")
        assert told["type"] == "tortie.dev/NotApplied-a"
        assert (told["status"], told["reason"]) == ("True", "NotApplied")
        assert "there is no such BGPFilter" in told["message"]
        assert any("BGPPeer unfiltered" in title for title in ask(agent, "/node")["problems"])
        before = (await store.get(BGPPeer, "unfiltered")).metadata.resource_version
        await asyncio.sleep(1.5)
        assert (await store.get(BGPPeer, "unfiltered")).metadata.resource_version == before, "no chatter"
        (filter_,) = parse("{apiVersion: projectcalico.org/v3, kind: BGPFilter, metadata: {name: nowhere}}")
        await store.create(filter_)
        await soon(conditions, lambda left: not left, "no condition")
        await store.delete(BGPPeer, "unfiltered")


STATUS = """
{{apiVersion: projectcalico.org/v3, kind: CalicoNodeStatus, metadata: {{name: {name}}},
 spec: {{node: {node}, classes: [{classes}], updatePeriodSeconds: {period}}}}}"""


async def test_a_node_writes_the_status_that_it_is_asked_for(site: Site, agent: AgentNode) -> None:
    """Counts and lists of peers, of both families together; nothing of them while BIRD does not answer."""
    (every,) = parse(STATUS.format(name="every", node="a", classes="Agent, BGP, Routes", period=1))
    (quiet,) = parse(STATUS.format(name="quiet", node="a", classes="Agent", period=1))
    (never,) = parse(STATUS.format(name="never", node="a", classes="Agent", period=0))
    (other,) = parse(STATUS.format(name="other", node="b", classes="Agent", period=1))
    async with site.store() as store:
        for one in (every, quiet, never, other):
            await store.create(one)

        async def status(name: str = "every") -> Any:
            return (await store.get(CalicoNodeStatus, name)).status

        seen = await soon(status, lambda one: one.last_updated and one.bgp.number_established_v4 >= 3, "a status")
        peers = {one.peer_ip: one for one in seen.bgp.peers_v4}
        up = sum(one.state == "Established" for one in seen.bgp.peers_v4)
        assert seen.bgp.number_established_v4 == up
        assert (peers["10.9.0.12"].state, peers["10.9.0.12"].type) == ("Established", "NodePeer")
        assert seen.bgp.number_not_established_v4 == len(seen.bgp.peers_v4) - up
        assert (seen.agent.bird_v4.state, seen.agent.bird_v6.state) == ("Ready", "NotReady")
        assert seen.agent.bird_v4.router_id == "10.9.0.1"
        kernel = next(one for one in seen.routes.routes_v4 if one.destination == "10.9.0.0/24")
        assert (kernel.type, kernel.gateway, kernel.interface) == ("FIB", "N/A", "eth0")
        assert kernel.learned_from.source_type == "Direct"
        before = (await store.get(CalicoNodeStatus, "quiet")).metadata.resource_version
        os.kill(agent.bird_pid, signal.SIGSTOP)
        try:
            silent = await soon(status, lambda one: one.bgp is None, "no BIRD")
            assert silent.routes is None
            assert silent.agent.bird_v4.state == "NotReady"
            assert ask(agent, "/node")["bird"]["state"] == "not ready"
        finally:
            os.kill(agent.bird_pid, signal.SIGCONT)
        back = await soon(status, lambda one: one.bgp is not None, "BIRD again")
        assert len(back.bgp.peers_v4) == len(seen.bgp.peers_v4)
        assert before != (await store.get(CalicoNodeStatus, "quiet")).metadata.resource_version
        for name in ("never", "other"):
            assert not (await status(name)).last_updated
        for one in (every, quiet, never, other):
            await store.delete(CalicoNodeStatus, one.name)


async def test_a_status_in_which_nothing_is_new_is_not_written(site: Site, agent: AgentNode) -> None:
    (quiet,) = parse(STATUS.format(name="calm", node="a", classes="Agent, Routes", period=1))
    async with site.store() as store:
        await store.create(quiet)
        first = await soon(lambda: store.get(CalicoNodeStatus, "calm"), lambda one: one.status.last_updated, "written")
        await asyncio.sleep(2.2)
        assert (await store.get(CalicoNodeStatus, "calm")).metadata.resource_version == first.metadata.resource_version
        await store.delete(CalicoNodeStatus, "calm")


def test_a_bird_that_waits_for_its_peers_says_so(agent: AgentNode) -> None:
    """Killed, it is started again, and holds the routes that it left until the sessions are back, as most never are."""
    agent.ns.ip("route", "add", "192.0.2.128/25", "dev", "eth0", "proto", "bird")
    before = agent.bird_pid
    os.kill(before, signal.SIGKILL)
    until(lambda: agent.bird_pid, lambda pid: pid not in (0, before), "another BIRD")
    bird = until(lambda: ask(agent, "/node")["bird"], lambda bird: bird["state"] == "recovering", "recovering")
    assert bird["waitingFor"] > 0
