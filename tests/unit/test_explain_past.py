"""What people are told of flow tables: who goes past the rules, who does not and why, by `tortie explain` and by
`tortie status`."""

from __future__ import annotations

from typing import Any

import pytest
from situations import calico, felix, gnp
from test_explain import explainer, told

from tortie.agent.past_rules import flow_table_answer
from tortie.calc.cluster import Cluster
from tortie.cli.explain_kernel import Kernel, Read, differing
from tortie.cli.explain_show import as_json, show
from tortie.cli.status import page
from tortie.dataplane.stages.flow_tables import FlowTables
from tortie.model.document import parse

ENABLED = calico("FelixConfiguration", "default", "", ", annotations: {tortie.dev/flow-tables: Enabled}")
BY_TABLE = "once it is established, past the rules by a flow table"
LIMITED = """
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata:
  name: n1-k8s-slow-eth0
  namespace: red
  labels: {app: slow, projectcalico.org/namespace: red, projectcalico.org/orchestrator: k8s}
spec:
  {orchestrator: k8s, node: n1, pod: slow, endpoint: eth0, ipNetworks: [10.244.1.20/32], profiles: [kns.red],
   interfaceName: cali00000000s, qosControls: {ingressPacketRate: 100, dscp: 46}}
"""
SLOW = "a limit of 100 packets a second (ingress), DSCP 46 is set"
STAYS_OUT = f"every packet by the rules: red/slow stays out of the flow table: {SLOW}"
LACKING = "this kernel has no flow tables (nft_flow_offload)"


def past(source: str, destination: str, *documents: str, protocol: str = "tcp") -> list[tuple[str, bool, str]]:
    asked = explainer(LIMITED, *(documents or (ENABLED,)))
    return [(one.node, one.past, one.reason) for one in told(asked, source, destination, 80, protocol).past]


@pytest.mark.parametrize(
    ("source", "destination", "want"),
    [
        ("red/a", "red/b", ["n1"]),
        ("red/a", "blue/d", ["n1", "n2"]),
        ("red/a", "198.51.100.9", ["n1"]),
        ("198.51.100.9", "red/a", ["n1"]),
        ("red/a", "n2", ["n1"]),
        ("n2", "red/a", ["n1"]),
        ("red/a", "n1", []),
        ("n1", "red/a", []),
        ("red/a", "red/a", []),
        ("n1", "198.51.100.9", []),
    ],
)
def test_nodes_that_forward_go_past_the_rules(source: str, destination: str, want: list[str]) -> None:
    assert past(source, destination) == [(node, True, BY_TABLE) for node in want]


def test_who_does_not_and_why() -> None:
    assert past("red/slow", "198.51.100.9") == past("red/a", "red/slow") == [("n1", False, STAYS_OUT)]
    assert past("red/slow", "blue/d") == [("n1", False, STAYS_OUT), ("n2", True, BY_TABLE)]
    udp = "every packet by the rules: only TCP goes past them"
    assert past("red/a", "red/b", protocol="udp") == [("n1", False, udp)]
    cut = ENABLED.replace("Enabled", "Enabled, tortie.dev/established-flows: Cut")
    why = "every packet by the rules: established-flows is Cut, and what is to be cut must be seen"
    assert past("red/a", "red/b", cut) == [("n1", False, why)]


def test_nothing_is_said_where_nobody_asks_for_it() -> None:
    assert past("red/a", "red/b", felix("")) == []
    assert past("red/a", "blue/d", ENABLED.replace("name: default", "name: node.n2")) == [("n2", True, BY_TABLE)]
    closed = gnp("selector: app == 'db', types: [Ingress]")
    assert past("red/a", "red/b", ENABLED, closed) == []  # there is no connection


def test_it_is_shown_below_the_stations(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    one = told(explainer(ENABLED, LIMITED), "red/a", "red/b")
    show([one], Kernel(), [])
    assert capsys.readouterr().out.splitlines()[-1] == f"  → flows on n1    {BY_TABLE}"
    assert as_json(one, Kernel())["flowTables"] == [{"node": "n1", "past": True, "reason": BY_TABLE}]
    without = Kernel(without={"n1": LACKING})
    show([one], without, [])
    assert capsys.readouterr().out.splitlines()[-1] == f"  → flows on n1    every packet by the rules: {LACKING}"
    told_of = {"node": "n1", "past": False, "reason": f"every packet by the rules: {LACKING}"}
    assert as_json(one, without)["flowTables"] == [told_of]


@pytest.mark.parametrize(
    ("table", "want"),
    [
        ({}, []),  # an agent of before
        ({"asked": True, "why": "", "links": ["cali00000000a", "cali00000000b", "eth0"]}, []),
        ({"asked": True, "why": "", "links": ["cali00000000a"]}, ["flow table: cali00000000b is not in it"]),
        ({"asked": True, "why": LACKING, "links": []}, []),
        (
            {"asked": False, "why": "", "links": []},
            ["the agent makes something else of the datastore than this prediction: it wants no flow table"],
        ),
    ],
)
def test_a_pod_that_is_not_in_the_kernels_table_is_a_difference(table: dict[str, Any], want: list[str]) -> None:
    asked = explainer(ENABLED)
    one = told(asked, "red/a", "red/b")
    answer = {"rules": {step.rule: {"kernel": ["?"]} for step in one.steps}, "differences": [], "flowTable": table}
    assert [*differing("n1", answer, [one], Read("", asked, {}, {}))] == want


# --- tortie status ------------------------------------------------------------------------------------------------


def answered(*documents: str, links: frozenset[str] | None = frozenset({"eth0"}), lacking: bool = False) -> Any:
    cluster = Cluster("n1")
    for text in (LIMITED, *documents):
        for resource in parse(text):
            cluster.put(resource)
    stage = FlowTables()
    stage.devices, stage.lacking = links, lacking
    return flow_table_answer(cluster.state(), stage, (), {"cali00000000s": "red/slow"}.__getitem__)


def test_what_an_agent_says_of_its_table() -> None:
    assert answered(ENABLED) == {"asked": True, "why": "", "links": ["eth0"], "out": {"red/slow": SLOW}}
    assert answered() == {"asked": False, "why": "", "links": [], "out": {}}
    assert answered(ENABLED, links=None)["why"] == "not made yet"
    assert answered(ENABLED, links=None, lacking=True)["why"] == LACKING
    cut = ENABLED.replace("Enabled", "Enabled, tortie.dev/established-flows: Cut")
    assert answered(cut, links=None)["why"] == "established-flows is Cut, and what is to be cut must be seen"


def flows(table: dict[str, Any]) -> list[str]:
    answer: dict[str, Any] = {
        "node": "n1",
        "wrong": {},
        "agent": {"version": "1", "seconds": 7},
        "datastore": {"datastore": "x", "connected": True, "believed": True, "source": "none", "age": 0, "kinds": {}},
        "dataplane": {"generation": 1, "enforced": 1, "failures": [], "endpoints": 1},
        "cni": {"serves": True, "pods": 1, "ready": 1, "pending": 0, "leaving": 0},
        "bgp": {"state": "none", "peers": 0, "established": 0},
        **table,
    }
    return [line for line in page(answer).splitlines() if line.startswith("  flows")]


def test_the_page_of_a_node() -> None:
    assert flows({}) == []
    assert flows({"flowTable": answered()}) == []
    with_out = f"  flows      established TCP goes past the rules at 1 link, but for red/slow: {SLOW}"
    assert flows({"flowTable": answered(ENABLED)}) == [with_out]
    lacking = f"  flows      every packet by the rules: {LACKING}"
    assert flows({"flowTable": answered(ENABLED, links=None, lacking=True)}) == [lacking]
    many = {"asked": True, "why": "", "links": ["eth0"], "out": {f"red/{n}": SLOW for n in range(20)}}
    assert flows({"flowTable": many})[0].endswith("; and 10 more: -o json")
