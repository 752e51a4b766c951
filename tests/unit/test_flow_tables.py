"""Which connections may go past the rules, and how the table of them becomes what it should be: decided on values."""

from __future__ import annotations

from dataclasses import replace

import pytest
from situations import PODS, base

from tortie.base.addr import IP, parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.cluster import Cluster
from tortie.calc.flow_tables import FlowTable, flow_table, narrowed
from tortie.calc.state import DesiredState, LocalEndpoint
from tortie.dataplane.stages.flow_tables import change
from tortie.model.document import check, convert, parse
from tortie.model.node import FelixConfiguration
from tortie.render.flow_tables import fresh, more

B_LINK = "interfaceName: cali00000000b"
LINKS: dict[str, frozenset[IP]] = {
    "lo": frozenset({parse_ip("127.0.0.1")}),
    "eth0": frozenset({parse_ip("10.0.0.1"), parse_ip("fe80::1")}),
    "eth1": frozenset({parse_ip("203.0.113.7")}),
    "docker0": frozenset({parse_ip("172.17.0.1")}),
}


def felix(name: str = "default", **annotations: str) -> str:
    lines = "".join(f'"tortie.dev/{key.replace("_", "-")}": {value}, ' for key, value in annotations.items())
    return (
        "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration,"
        f" metadata: {{name: {name}, annotations: {{{lines}}}}}}}"
    )


ON = felix(flow_tables="Enabled")


def state_of(*documents: str) -> DesiredState:
    cluster = Cluster("n1")
    for resource in (*base(), *(one for text in documents for one in parse(text))):
        cluster.put(resource)
    return cluster.state()


def wanted(state: DesiredState, links: dict[str, frozenset[IP]] = LINKS, gone: str = "") -> FlowTable | None:
    return flow_table(state, links, state.endpoints.keys() - {gone})


def test_nothing_unless_somebody_says_so() -> None:
    assert wanted(state_of()) is None
    assert wanted(state_of(felix(flow_tables="Disabled"))) is None


def test_pods_and_the_links_with_the_nodes_addresses() -> None:
    state = state_of(ON)
    table = wanted(state)
    assert table is not None
    assert state.endpoints
    assert table.devices == {*state.endpoints, "eth0"}
    assert table.slow == frozenset()


def test_a_tunnel_that_is_there() -> None:
    state = state_of(ON)  # both pools are VXLAN's
    there, absent = wanted(state, {**LINKS, "vxlan.calico": frozenset()}), wanted(state)
    assert there is not None
    assert absent is not None
    assert there.devices - absent.devices == {"vxlan.calico"}


def test_a_pod_whose_link_has_gone_is_left_out() -> None:
    state = state_of(ON)
    gone = min(state.endpoints)
    table = wanted(state, gone=gone)
    assert table is not None
    assert gone not in table.devices


@pytest.mark.parametrize(
    "limits", ["ingressPacketRate: 1000", "egressPacketRate: 1000", "dscp: AF41"], ids=["ingress", "egress", "dscp"]
)
def test_a_pod_whose_every_packet_is_looked_at_stays_out(limits: str) -> None:
    limited = PODS.replace(B_LINK, f"{B_LINK}\n    qosControls: {{{limits}}}")
    table = wanted(state_of(ON, limited))
    assert table == FlowTable(frozenset({"cali00000000a", "cali00000000c", "eth0"}), frozenset({"cali00000000b"}))


HOST = """
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: uplink, labels: {host: uplink}}
spec: {node: n1, WHERE}
"""
POLICY = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: some}
spec: {selector: host == 'uplink', applyOnForward: true, RULES}
"""


@pytest.mark.parametrize("where", ["interfaceName: eth0", "expectedIPs: [10.0.0.1]"])
@pytest.mark.parametrize(
    ("rules", "stays"),
    [
        ("doNotTrack: true, types: [Ingress]", False),
        ("doNotTrack: true, types: [Egress]", True),  # asked of what the host itself sends
        ("preDNAT: true, types: [Ingress]", True),
        ("types: [Ingress, Egress]", True),
    ],
)
def test_a_link_whose_every_packet_is_looked_at_stays_out(where: str, rules: str, stays: bool) -> None:
    table = wanted(state_of(ON, HOST.replace("WHERE", where), POLICY.replace("RULES", rules)))
    assert table is not None
    assert table == FlowTable(table.devices)
    assert ("eth0" in table.devices) is stays


def test_a_limit_of_bandwidth_or_connections_keeps_nobody_out() -> None:
    limits = "egressBandwidth: 1000000, ingressMaxConnections: 10"
    assert wanted(state_of(ON, PODS.replace(B_LINK, f"{B_LINK}\n    qosControls: {{{limits}}}"))) == wanted(
        state_of(ON)
    )


def test_what_cuts_flows_must_see_them() -> None:
    assert wanted(state_of(felix(flow_tables="Enabled", established_flows="Cut"))) is None


def test_a_nodes_own_word_comes_first() -> None:
    assert wanted(state_of(ON, felix("node.n1", flow_tables="Disabled"))) is None
    assert wanted(state_of(felix("node.n2", flow_tables="Enabled"))) is None


@pytest.mark.parametrize("value", ["enabled", "", "Yes"])
def test_another_word_is_refused_with_its_path(value: str) -> None:
    metadata = {"name": "default", "annotations": {"tortie.dev/flow-tables": value}}
    with pytest.raises(ConfigError, match=r'metadata\.annotations\["tortie\.dev/flow-tables"\].*Disabled, Enabled'):
        check(convert(FelixConfiguration, {"metadata": metadata}))


def test_a_pod_that_may_send_from_less() -> None:
    state = state_of(ON)
    name, one = next(iter(state.endpoints.items()))
    more_ips = replace(one, ips=(*one.ips, parse_ip("10.65.9.9")))
    spoofing = replace(one, sources=(parse_net("192.0.2.0/24"),))

    def having(pod: LocalEndpoint) -> DesiredState:
        return replace(state, endpoints={**state.endpoints, name: pod})

    for wider in (more_ips, spoofing):
        assert narrowed(having(wider), state)
        assert not narrowed(state, having(wider))
    without = replace(state, endpoints={other: pod for other, pod in state.endpoints.items() if other != name})
    assert not narrowed(state, without), "its link leaves the table"
    assert not narrowed(None, state)
    assert not narrowed(state, state)


A, B = FlowTable(frozenset({"cali1", "eth0"})), FlowTable(frozenset({"cali1", "cali2", "eth0"}))


def test_scripts() -> None:
    assert fresh(FlowTable(frozenset({"eth0", "cali1"}), frozenset({"cali9"}))) == (
        "add table inet tortie-flows\n"
        'add set inet tortie-flows slow { type ifname; elements = { "cali9" }; }\n'
        "add flowtable inet tortie-flows established { hook ingress priority filter; counter; }\n"
        "add chain inet tortie-flows forward { type filter hook forward priority filter + 20; policy accept; }\n"
        "add rule inet tortie-flows forward ct state established meta l4proto tcp iifname != @slow oifname != @slow"
        ' iifname "cali*" flow add @established\n'
        "add rule inet tortie-flows forward ct state established meta l4proto tcp iifname != @slow oifname != @slow"
        ' oifname "cali*" flow add @established\n'
        'add flowtable inet tortie-flows established { hook ingress priority filter; devices = { "cali1", "eth0" }; }\n'
    )


def test_what_is_missing_is_added_and_what_must_leave_makes_it_anew() -> None:
    away = "delete table inet tortie-flows\n"
    assert change(None, None, False).texts == ()
    assert change(None, A, True).texts == (away,)
    assert change(A, None, False).texts == (fresh(A),)
    assert change(A, A, True).texts == ()
    assert change(B, A, True).texts == (more({"cali2"}),)
    assert change(A, B, True).texts == (away, fresh(A))
    assert change(B, A, False).texts == (away, fresh(B))
    slow = FlowTable(A.devices, frozenset({"cali2"}))
    assert change(slow, A, True).texts == (away, fresh(slow))
