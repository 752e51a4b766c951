"""What a node says of its services: the state with the kernel's counters beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

import pytest
from multidict import MultiDict

from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.proxy.state import Backend, Entrance, Frontend, HealthCheck, ProxyState, Served
from tortie.dataplane.service_hits import Hit
from tortie.proxy.answer import AboutNode, answer, wants_hits
from tortie.proxy.server import asked

VIP = Frontend(4, parse_ip("10.96.0.10"), 6, 80)
SIX = Frontend(6, parse_ip("fd00:96::10"), 17, 53)
NODE_PORT = Frontend(4, None, 6, 30080)
NEAR, FAR = Backend(parse_ip("10.244.1.10"), 8080, "n1"), Backend(parse_ip("10.244.2.10"), 8080, "n2")
SIXTH = Backend(parse_ip("fd00:244:1::10"), 53, "n1")


@dataclass(frozen=True)
class Found:
    mode: str
    evidence: tuple[str, ...]
    pid: int

    @property
    def runs(self) -> bool:
        return self.pid > 0


ABOUT = AboutNode(
    node="n1",
    asked="auto",
    on=False,
    why="kube-proxy runs",
    kube_proxy=(Found("iptables", ("chain KUBE-SERVICES",), 7),),
    failures=("table inet tortie-services: no such file",),
    problems={"10.0.0.50": "another host has it"},
    layer2={
        parse_ip("10.0.0.51"): ("n2", ""),
        parse_ip("10.0.0.9"): ("n1", "eth0"),
        parse_ip("fd00::9"): ("n1", "eth0"),
    },
)  # fmt: skip


def state() -> ProxyState:
    web = Served(
        ("red", "web"),
        (
            Entrance("ClusterIP", VIP, "http", (NEAR, FAR), affinity=600),
            Entrance("NodePort", NODE_PORT, "http", (NEAR, FAR), (NEAR,), (parse_net("198.51.100.0/24"),)),
        ),
        (parse_ip("10.96.0.10"),),
        HealthCheck(32000, 1),
    )
    dns = Served(("kube", "dns"), (Entrance("ClusterIP", SIX, "", (SIXTH,), unserved="drop"),), ())
    services = {one.key: one for one in (web, dns)}
    return ProxyState(services=services, problems={"Service red/twin": "10.96.0.10 is another's"})


HITS = [
    Hit(VIP, Backend(NEAR.ip, NEAR.port), False, 12, 720),
    Hit(NODE_PORT, Backend(NEAR.ip, NEAR.port), True, 3, 180),
    Hit(NODE_PORT, Backend(NEAR.ip, NEAR.port), False, 1, 60),
]


def test_entrances_with_backends_and_what_the_kernel_has_counted() -> None:
    dns, web = answer(state(), HITS, ABOUT)["services"]
    assert (dns["namespace"], dns["name"], dns["healthCheck"]) == ("kube", "dns", None)
    assert dns["entrances"][0] == {
        "kind": "ClusterIP",
        "frontend": "[fd00:96::10]:53/udp",
        "ipVersion": 6,
        "portName": "",
        "policy": "Cluster",
        "affinity": 0,
        "sources": None,
        "backends": [{"address": "[fd00:244:1::10]:53", "node": "n1", "connections": None}],
        "local": None,
        "unserved": "drop",
    }
    cluster, node_port = web["entrances"]
    assert cluster["affinity"] == 600
    assert cluster["backends"] == [
        {"address": "10.244.1.10:8080", "node": "n1", "connections": 12},
        {"address": "10.244.2.10:8080", "node": "n2", "connections": None},
    ]
    assert (node_port["frontend"], node_port["policy"]) == ("*:30080/tcp", "Local")
    assert node_port["sources"] == ["198.51.100.0/24"]
    assert [one["connections"] for one in node_port["backends"]] == [1, None]
    assert node_port["local"] == [{"address": "10.244.1.10:8080", "node": "n1", "connections": 3}]
    assert web["healthCheck"] == {"port": 32000, "local": 1}


def test_how_services_stand_on_the_node() -> None:
    told = answer(state(), (), ABOUT)
    assert (told["node"], told["asked"], told["on"], told["why"]) == ("n1", "auto", False, "kube-proxy runs")
    assert told["kubeProxy"] == [{"mode": "iptables", "evidence": ["chain KUBE-SERVICES"], "pid": 7, "runs": True}]
    assert (told["servedBy"], answer(state(), (), replace(ABOUT, served_by="us"))["servedBy"]) == ("", "us")
    assert told["failures"] == ["table inet tortie-services: no such file"]
    assert told["problems"] == {
        "Service red/twin": "10.96.0.10 is another's",
        "10.0.0.50": "another host has it",
    }
    assert list(told["layer2"]) == ["10.0.0.9", "10.0.0.51", "fd00::9"]
    assert told["layer2"]["10.0.0.9"] == {"node": "n1", "interface": "eth0"}
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", (False, False)),
        ("plan=1", (False, True)),
        ("yes=1&plan=0", (True, False)),
        ("plan=0&plan=1", (False, True)),
    ],
)
def test_what_is_to_be_done(words: str, wanted: tuple[bool, bool]) -> None:
    assert tuple(asked(MultiDict(parse_qsl(words, keep_blank_values=True))).values()) == wanted


@pytest.mark.parametrize("words", ["plan=true", "plan=", "Plan=1", "yes=yes", "plan=1&lab=x", "plan=" + "1" * 5000])
def test_what_is_not_understood_does_nothing(words: str) -> None:
    """It may have asked for no more than a plan."""
    with pytest.raises(ConfigError, match=r"^.{1,150}$"):
        asked(MultiDict(parse_qsl(words, keep_blank_values=True)))


def test_a_question_is_narrowed() -> None:
    def names(**query: str) -> list[str]:
        return [one["name"] for one in answer(state(), HITS, ABOUT, query)["services"]]

    assert names() == ["dns", "web"]
    assert names(namespace="red") == names(name="web") == names(namespace="red", name="web") == ["web"]
    assert names(namespace="kube", name="web") == []
    assert names(services="none") == []
    assert wants_hits({"name": "web"})
    assert not wants_hits({"services": "none"})
    assert answer(state(), (), ABOUT, {"services": "none"})["problems"]
