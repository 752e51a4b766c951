"""A takeover with real packets: the connection that kube-proxy has translated goes on, new ones are ours, and of all
rules only kube-proxy's go. And the way back.

KUBE_PROXY names a real kube-proxy's executable, which then is taken over from as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kube_proxy_ground import (
    KUBE_PROXY,
    KUBELET,
    OURS,
    OWN_TABLE,
    POD,
    STRANGERS,
    TARGET,
    VIP,
    Ground,
    echoes,
    filled,
    process_named,
    until,
)

from kube_api import KubeApi
from kube_thread import ApiThread
from namespaces import Ns
from tortie.base.errors import Unavailable
from tortie.proxy.kube_proxy import DEVICE, found
from tortie.proxy.kube_rules import clear
from tortie.proxy.takeover import Hands, release, take_over

REAL = os.environ.get("KUBE_PROXY", "")

pytestmark = pytest.mark.root


class Agent:
    """What an agent does for it, in one namespace."""

    def __init__(self, ground: Ground, daemon_set: Any = None) -> None:
        self.ground = ground
        self.daemon_set = daemon_set
        self.asked: list[str] = []

    async def serve(self, asked: str) -> None:
        self.asked.append(asked)
        script = "table inet tortie-services {}\ndelete table inet tortie-services\n"
        if asked == "on":
            script += filled(OURS, self.ground.version)
        await asyncio.to_thread(self.ground.node.run, "nft", "-f", "-", stdin=script)


class Deployed:
    """A DaemonSet whose only process is this one."""

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self._start = start
        self.process = start()

    async def there(self) -> bool:
        return True

    async def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    async def start(self) -> None:
        self.process = self._start()


@pytest.fixture
def ground(make_ns: Callable[..., Ns]) -> Iterator[Ground]:
    made = Ground(make_ns("node"), make_ns("pod"), make_ns("client"))
    made.begin()
    yield made
    made.end()


def taken_over(ground: Ground, hands: Hands, **more: Any) -> Any:
    return asyncio.run(take_over(hands, ground.node.path, **more))


def released(ground: Ground, hands: Hands, **more: Any) -> Any:
    return asyncio.run(release(hands, ground.node.path, **more))


def states(answer: Any) -> list[tuple[str, str]]:
    return [(step["kind"], step["state"]) for step in answer["steps"]]


def need(variant: str) -> None:
    if variant != "own" and shutil.which(f"iptables-{variant}") is None:
        pytest.skip(f"iptables-{variant} is not installed")


def lay(ground: Ground, variant: str) -> None:
    """kube-proxy's rules."""
    if variant == "own":
        ground.node.run("nft", "-f", "-", stdin=filled(OWN_TABLE, ground.version))
    else:
        ground.restore(variant, KUBE_PROXY)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("variant", ["nft", "legacy", "own"])
def test_no_connection_is_lost_and_only_kube_proxys_rules_go(ground: Ground, variant: str, version: int) -> None:
    need(variant)
    ground.version = version
    others = "nft" if variant == "own" else variant
    ground.restore(others, STRANGERS)
    before = ground.saved(others)
    lay(ground, variant)
    with contextlib.closing(ground.dial()) as old:
        assert echoes(old)
        answer = taken_over(ground, Agent(ground))
        assert answer["done"], answer
        assert all(state == "done" for _, state in states(answer))
        assert echoes(old, b"still here")
        with contextlib.closing(ground.dial()) as new:
            assert echoes(new)
        assert ground.taken() == 1
        assert echoes(old)
    assert found(ground.node.path) == ()
    assert ground.saved(others) == before


def test_the_plan_changes_nothing_and_prints_as_a_shell_would_be_told(ground: Ground) -> None:
    lay(ground, "nft")
    lay(ground, "own")
    before = ground.node.run("nft", "list", "ruleset")
    agent = Agent(ground)
    answer = taken_over(ground, agent, only_plan=True)
    assert ground.node.run("nft", "list", "ruleset") == before
    assert agent.asked == []
    assert [kind for kind, _ in states(answer)] == ["serve", "table", "chains", "chains", "chains"]
    commands = [line for step in answer["steps"] for line in step["commands"]]
    assert "nft delete table ip kube-proxy" in commands
    assert "flush chain ip nat KUBE-SERVICES" in commands
    assert "delete chain ip nat KUBE-SERVICES" in commands


def test_again_it_is_done_already(ground: Ground) -> None:
    lay(ground, "nft")
    agent = Agent(ground)
    assert taken_over(ground, agent)["done"]
    again = taken_over(ground, agent)
    assert states(again) == [("serve", "done")]
    assert again["done"]


def test_one_that_runs_is_ended_by_a_person_first(ground: Ground, tmp_path: Path) -> None:
    lay(ground, "nft")
    process = process_named(tmp_path, ground.node)
    agent = Agent(ground)
    try:
        until(lambda: found(ground.node.path)[0].runs, "the process")
        answer = taken_over(ground, agent)
        assert not answer["done"]
        assert states(answer)[:2] == [("serve", "done"), ("stop", "yours")]
        assert {state for _, state in states(answer)[2:]} == {"planned"}
        assert "tortie services takeover" in answer["todo"]
        with contextlib.closing(ground.dial()) as new:
            assert echoes(new)
        assert ground.taken() == 1
        assert "KUBE-SERVICES" in ground.saved("nft")
    finally:
        process.kill()
        process.wait()
    assert taken_over(ground, agent)["done"]
    assert "KUBE-SERVICES" not in ground.saved("nft")


def test_a_daemon_set_is_ended_when_it_is_agreed_to(ground: Ground, tmp_path: Path) -> None:
    lay(ground, "own")
    deployed = Deployed(lambda: process_named(tmp_path, ground.node))
    agent = Agent(ground, deployed)
    try:
        until(lambda: found(ground.node.path)[0].runs, "the process")
        refused = taken_over(ground, agent)
        assert not refused["done"]
        assert "every node" in refused["needsYes"][0]
        assert agent.asked == []
        answer = taken_over(ground, agent, yes=True)
        assert answer["done"], answer
        assert deployed.process.poll() is not None
    finally:
        deployed.process.kill()
        deployed.process.wait()


def test_what_forwards_where_all_else_is_dropped_stays(ground: Ground) -> None:
    lay(ground, "nft")
    with contextlib.closing(ground.dial()) as old:
        assert echoes(old)
        ground.node.run("iptables-nft", "-P", "FORWARD", "DROP")
        answer = taken_over(ground, Agent(ground))
        assert answer["done"], answer
        assert echoes(old, b"still here")
    left = ground.saved("nft")
    assert "-j KUBE-FORWARD" in left
    assert "KUBE-SERVICES" not in left


@pytest.mark.parametrize(("routed", "stays"), [("0", False), ("1", True)])
def test_the_guard_of_loopback_stays_while_packets_are_routed_there(ground: Ground, routed: str, stays: bool) -> None:
    ground.restore("nft", KUBELET)
    lay(ground, "nft")
    ground.node.run("sysctl", "-qw", f"net.ipv4.conf.all.route_localnet={routed}")
    assert taken_over(ground, Agent(ground))["done"]
    left = ground.saved("nft")
    assert (left.count("-j KUBE-FIREWALL") == 2) is stays
    assert "CANARY" not in left  # so that a kubelet makes its own again


def test_a_chain_that_others_use_stays(ground: Ground) -> None:
    lay(ground, "nft")
    ground.node.run("iptables-nft", "-t", "nat", "-N", "CNI-HOSTPORT-SETMARK")
    ground.node.run("iptables-nft", "-t", "nat", "-A", "CNI-HOSTPORT-SETMARK", "-j", "KUBE-MARK-MASQ")
    assert taken_over(ground, Agent(ground))["done"]
    left = ground.saved("nft")
    assert "-A KUBE-MARK-MASQ -j MARK" in left
    assert "-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ" in left
    assert "KUBE-SVC" not in left


def test_others_that_jump_into_the_middle_are_named(ground: Ground) -> None:
    lay(ground, "nft")
    ground.node.run("iptables-nft", "-t", "nat", "-N", "MINE")
    ground.node.run("iptables-nft", "-t", "nat", "-A", "MINE", "-j", "KUBE-SERVICES")
    answer = taken_over(ground, Agent(ground))
    assert not answer["done"]
    assert "MINE, a chain of somebody else, jumps to KUBE-SERVICES" in answer["todo"]
    assert "KUBE-SERVICES" in ground.saved("nft")
    with pytest.raises(Unavailable):
        clear("nft", "ip", "nat", ground.node.path)


def test_the_device_of_ipvs_goes(ground: Ground) -> None:
    ground.node.ip("link", "add", DEVICE, "type", "bridge")
    ground.node.ip("addr", "add", f"{VIP[4]}/32", "dev", DEVICE)
    answer = taken_over(ground, Agent(ground))
    assert answer["done"], answer
    assert DEVICE not in [link["ifname"] for link in ground.node.json("link", "show")]


# --- the way back -------------------------------------------------------------------------------------------------


def ours(ground: Ground) -> bool:
    return "tortie-services" in ground.node.run("nft", "list", "tables")


def test_services_are_given_back_only_to_somebody(ground: Ground) -> None:
    agent = Agent(ground)
    assert taken_over(ground, agent)["done"]
    answer = released(ground, agent)
    assert not answer["done"]
    assert "release" in answer["todo"]
    assert ours(ground)
    assert released(ground, agent, yes=True)["done"]
    assert not ours(ground)


def test_a_connection_outlives_the_way_back(ground: Ground, tmp_path: Path) -> None:
    agent = Agent(ground)
    assert taken_over(ground, agent)["done"]
    process = None
    try:
        with contextlib.closing(ground.dial()) as old:
            assert echoes(old)
            lay(ground, "nft")
            process = process_named(tmp_path, ground.node)
            until(lambda: found(ground.node.path)[0].runs, "the process")
            assert released(ground, agent)["done"]
            assert agent.asked == ["on", "off"]
            assert not ours(ground)
            assert echoes(old, b"still here")
            with contextlib.closing(ground.dial()) as new:
                assert echoes(new)
    finally:
        if process is not None:
            process.kill()
            process.wait()


# --- a real kube-proxy --------------------------------------------------------------------------------------------


class Cluster:
    """The API server's double on the node's loopback, with one service of one ready endpoint."""

    def __init__(self, ground: Ground, directory: Path, mode: str) -> None:
        self._ground, self._directory, self._mode = ground, directory, mode
        self._api = ApiThread(ground.node.path, KubeApi())

    def begin(self) -> None:
        self._api.start()
        self._api.do(self._api.api.kubeconfig, self._directory / "kubeconfig")
        for number in (4, 6):
            self._furnish(number)
        (self._directory / "kube-proxy").symlink_to(REAL)

    def _furnish(self, number: int) -> None:
        ports = [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": TARGET}]
        families = {"ipFamilies": [f"IPv{number}"], "ipFamilyPolicy": "SingleStack"}
        addresses = {"clusterIP": VIP[number], "clusterIPs": [VIP[number]], **families}
        name = f"web{number}"
        self._api.create("v1", "Service", name, "default", spec={"type": "ClusterIP", "ports": ports, **addresses})
        self._slice(name, number)
        if number == 4:
            self._balanced()
            status = {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}
            self._api.create("v1", "Node", "n1", status=status)

    def _slice(self, name: str, number: int, **endpoint: Any) -> None:
        self._api.create(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            name,
            "default",
            metadata={"labels": {"kubernetes.io/service-name": name}},
            addressType=f"IPv{number}",
            endpoints=[{"addresses": [POD[number]], "conditions": {"ready": True}, **endpoint}],
            ports=[{"name": "http", "protocol": "TCP", "port": TARGET}],
        )

    def _balanced(self) -> None:
        """A service that has every kind of chain."""
        port = {"name": "http", "protocol": "TCP", "port": 80, "targetPort": TARGET, "nodePort": 30080}
        spec = {
            "type": "LoadBalancer", "ports": [port], "clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30081, "loadBalancerSourceRanges": ["192.0.2.0/24"], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        }  # fmt: skip
        status = {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "VIP"}]}}
        self._api.create("v1", "Service", "balanced", "default", spec=spec, status=status)
        self._slice("balanced", 4, nodeName="n1")

    def start(self) -> subprocess.Popen[bytes]:
        """Nothing of the machine outside of its namespace is set."""
        directory = self._directory
        words = [
            "nsenter", f"--net={self._ground.node.path}", str(directory / "kube-proxy"), "--hostname-override=n1",
            f"--kubeconfig={directory / 'kubeconfig'}", f"--proxy-mode={self._mode}", "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s", "--oom-score-adj=0",
            "--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249",
        ]  # fmt: skip
        with (directory / "log").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})

    def end(self) -> None:
        self._api.stop()

    def said(self) -> str:
        return (self._directory / "log").read_text()[-3000:]


@pytest.mark.skipif(not REAL, reason="needs a real kube-proxy: KUBE_PROXY names its executable")
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_real_one(ground: Ground, tmp_path: Path, mode: str, version: int) -> None:
    ground.version = version
    cluster = Cluster(ground, tmp_path, mode)
    cluster.begin()
    deployed = Deployed(cluster.start)
    agent = Agent(ground, deployed)
    try:
        until(lambda: _answers(ground), f"kube-proxy serves: {cluster.said()}")
        (one,) = found(ground.node.path)
        assert (one.mode, one.pid) == (mode, deployed.process.pid)
        with contextlib.closing(ground.dial()) as old:
            assert echoes(old)
            answer = taken_over(ground, agent, yes=True)
            assert answer["done"], answer
            assert echoes(old, b"still here")
            with contextlib.closing(ground.dial()) as new:
                assert echoes(new)
            assert ground.taken() == 1
            left = set(re.findall(r"KUBE-[A-Z0-9-]+|kube-proxy", ground.node.run("nft", "list", "ruleset")))
            assert left <= {"KUBE-FIREWALL"}
            assert released(ground, agent)["done"]
            assert echoes(old, b"and after")
            with contextlib.closing(ground.dial()) as new:
                assert echoes(new)
    finally:
        deployed.process.kill()
        deployed.process.wait()
        cluster.end()


def _answers(ground: Ground) -> bool:
    text = ground.node.run("nft", "list", "ruleset")
    return "dnat" in text.lower()
