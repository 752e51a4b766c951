"""What a user of kube-proxy expects of services, by packets of both IP versions, and `tortie explain` beside them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest

from labs import Lab, until
from service_load import Echoes, Load
from service_packets import DROPPED, REFUSED, heard, opened, saw, say
from service_town import (
    NODES,
    OUTSIDE,
    SOLO,
    WEB,
    address,
    becomes,
    built,
    expect,
    explained,
    pod_ip,
    predicted,
    thing,
    vips,
)
from tortie.lab.processes import read_pid
from tortie.model.service import Service

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

both = pytest.mark.parametrize("version", [4, 6])
PORTS = [("tcp", 80), ("udp", 53)]
CALICO = "projectcalico.org/v3"


@pytest.fixture(scope="module")
def town() -> Iterator[Lab]:
    with built(f"t{os.getpid()}") as lab:
        yield lab


# --- who answers, and whom it sees --------------------------------------------------------------------------------


@both
def test_a_cluster_ip_from_pods_and_nodes(town: Lab, version: int) -> None:
    to = address(town, "web", version)
    for protocol, port in PORTS:
        for where in ("town/client", "town/far"):
            own = pod_ip(town, where.partition("/")[2], version)
            expect(town, where, to, port, WEB, protocol, seen=own)
        expect(town, "node2", to, port, WEB, protocol, seen=NODES[version].format(2))
    explained(town, "town/client", "svc/town/web:53", "--protocol", "udp", f"-{version}")


@both
def test_a_node_port_and_an_external_address(town: Lab, version: int) -> None:
    external = "198.18.0.1" if version == 4 else "fd00:198:18::1"
    one, two = (NODES[version].format(number) for number in (1, 2))
    for protocol, port, at in (("tcp", 80, 30080), ("udp", 53, 30053)):
        expect(town, "outside", one, at, WEB, protocol, seen=one)
        for where in ("town/client", "town/far", "node2"):
            expect(town, where, one, at, WEB, protocol, seen=one)
        expect(town, "outside", external, port, WEB, protocol, seen=two)
        expect(town, "town/client", external, port, WEB, protocol, seen=pod_ip(town, "client", version))
    explained(town, "outside", one, "--port", "30080")
    explained(town, "outside", external)


@both
def test_a_backend_in_the_network_of_its_node(town: Lab, version: int) -> None:
    to, one, two = address(town, "hosted", version), NODES[version].format(1), NODES[version].format(2)
    for protocol, port in PORTS:
        for number, where in ((3, "town/far"), (1, "node1"), (2, "node2")):
            expect(town, where, to, port, {"town/hosted"}, protocol, seen=NODES[version].format(number))
        becomes(town, DROPPED, "town/client", to, port, protocol)  # defaultEndpointToHostAction
    expect(town, "outside", one, 30086, {"town/hosted"}, seen=OUTSIDE[version])
    expect(town, "outside", two, 30086, {"town/hosted"}, seen=two)
    explained(town, "town/far", "svc/town/hosted:80", f"-{version}")


@both
def test_a_pod_meets_itself(town: Lab, version: int) -> None:
    to = address(town, "inside", version)
    for protocol, port in PORTS:
        expect(town, "town/solo", to, port, SOLO, protocol, seen=NODES[version].format(1))
    (one,) = explained(town, "town/solo", "svc/town/inside:80", f"-{version}")
    assert one["verdict"] == "allow"


@both
def test_local_policies_keep_to_the_node(town: Lab, version: int) -> None:
    inside, here, there = address(town, "inside", version), NODES[version].format(1), NODES[version].format(2)
    for protocol, port, at in (("tcp", 80, 30081), ("udp", 53, 30054)):
        expect(town, "town/client", inside, port, SOLO, protocol, seen=pod_ip(town, "client", version))
        assert say(town, "town/far", inside, port, protocol) == (DROPPED, "")
        expect(town, "outside", here, at, SOLO, protocol, seen=OUTSIDE[version])
        assert say(town, "outside", there, at, protocol) == (DROPPED, "")
        expect(town, "node2", there, at, SOLO, protocol)  # the node itself is not outside
        expect(town, "town/far", address(town, "local", version), port, SOLO, protocol)
    assert predicted(town, "outside", there, "--port", "30081") == {"deny"}
    assert predicted(town, "town/far", "svc/town/inside:80", f"-{version}") == {"deny"}


@both
def test_a_load_balancer_and_who_may_come_to_it(town: Lab, version: int) -> None:
    to = vips(town, "balanced")[version]
    for protocol, port in PORTS:
        expect(town, "outside", to, port, WEB, protocol)
        for where in ("town/client", "node1"):
            assert say(town, where, to, port, protocol) == (DROPPED, ""), "it is in no range"
        local = vips(town, "local")[version]
        expect(town, "outside", local, port, SOLO, protocol, seen=OUTSIDE[version])
        expect(town, "town/far", local, port, SOLO, protocol, seen=pod_ip(town, "far", version))
    explained(town, "outside", to)
    assert predicted(town, "town/client", to) == {"deny"}


def test_load_balancers_ask_which_nodes_have_a_backend(town: Lab) -> None:
    port = town.of(Service, "local", "town").spec.health_check_node_port
    for version in (4, 6):
        assert [_status(town, NODES[version].format(number), port) for number in (1, 2, 3)] == [200, 503, 503]


def _status(lab: Lab, node: str, port: int) -> int:
    with opened(lab, "outside", node, "tcp") as one:
        one.settimeout(10)
        one.connect((node, port))
        asked = HTTPConnection(node, port)
        asked.sock = one
        asked.request("GET", "/")
        return asked.getresponse().status


@both
def test_zones(town: Lab, version: int) -> None:
    to = address(town, "near", version)
    for protocol, port in PORTS:
        for where in ("town/client", "node1"):
            expect(town, where, to, port, {"town/web-1"}, protocol)
        for where in ("town/far", "node2"):
            expect(town, where, to, port, {"town/web-2", "town/web-3"}, protocol)
    found = explained(town, "town/far", "svc/town/near:80", f"-{version}")
    assert {one["destination"]["name"] for one in found} == {"town/web-2", "town/web-3"}


@both
def test_the_same_client_gets_the_same_backend(town: Lab, version: int) -> None:
    for where, to, port in (
        ("town/client", address(town, "sticky", version), 80),
        ("outside", NODES[version].format(2), 30082),
    ):
        until(lambda where=where, to=to, port=port: say(town, where, to, port)[0] in WEB, 30)  # type: ignore[misc]
        assert len(saw(town, where, to, port)) == 1


# --- nobody behind it ---------------------------------------------------------------------------------------------


@both
def test_without_backends_it_is_refused_at_once(town: Lab, version: int) -> None:
    node, to = NODES[version].format(1), address(town, "nobody", version)
    for protocol, port, at in (("tcp", 80, 30083), ("udp", 53, 30055)):
        ways = [("town/client", to, port), ("node1", to, port), ("outside", node, at), ("town/far", node, at)]
        if version == 4:
            ways.append(("outside", "198.18.0.2", port))
        for way in ways:
            becomes(town, REFUSED, *way, protocol)
        assert predicted(town, "outside", node, "--port", str(at), "--protocol", protocol) == {"deny"}
        (one,) = explained(town, "town/client", f"svc/town/nobody:{port}", "--protocol", protocol, f"-{version}")
        assert one["probe"]["result"] == "refused"
    assert say(town, "town/client", to, 81) == (REFUSED, ""), "a port that no service has"


def test_who_is_not_ready_is_asked_only_where_that_is_wanted(town: Lab) -> None:
    for version in (4, 6):
        expect(town, "town/client", address(town, "early", version), 80, {"town/late"})
        assert say(town, "town/client", address(town, "patient", version), 80) == (REFUSED, "")


def test_a_headless_service_is_nothing_to_the_kernel(town: Lab) -> None:
    table = town.tortie("lab", "exec", "node:node1", "--", "nft", "list", "map", "inet", "tortie-services", "services4")
    assert address(town, "web", 4) in table
    assert pod_ip(town, "web-1", 4) not in table
    for one in explained(town, "town/client", "svc/town/headless:80", "-4"):
        assert one["verdict"] == "allow"


# --- policy -------------------------------------------------------------------------------------------------------


@contextmanager
def applied(lab: Lab, *documents: dict[str, Any]) -> Iterator[None]:
    lab.apply(*documents)
    try:
        yield
    finally:
        for one in documents:
            kind = {"NetworkPolicy": "networkpolicies.projectcalico.org"}.get(one["kind"], one["kind"])
            space = ["-n", one["metadata"]["namespace"]] if one["metadata"].get("namespace") else []
            lab.tortie("delete", kind, one["metadata"]["name"], *space)


def test_policy_of_backends_sees_the_pod_that_asks(town: Lab) -> None:
    spec = {
        "selector": "app == 'solo'",
        "types": ["Ingress"],
        "ingress": [{"action": "Allow", "source": {"selector": "app == 'far'"}}],
    }
    with applied(town, thing("NetworkPolicy", "solo", spec, api=CALICO)):
        for version in (4, 6):
            to = address(town, "local", version)
            becomes(town, DROPPED, "town/client", to, 80)
            expect(town, "town/far", to, 80, SOLO)
        assert predicted(town, "town/client", "svc/town/local:80") == {"deny"}
        assert predicted(town, "town/far", "svc/town/local:80") == {"allow"}


def test_policy_of_a_client_may_name_services(town: Lab) -> None:
    allow = {"action": "Allow", "destination": {"services": {"name": "local", "namespace": "town"}}}
    spec = {"selector": "app == 'client'", "types": ["Egress"], "egress": [allow]}
    with applied(town, thing("NetworkPolicy", "client", spec, api=CALICO)):
        for version in (4, 6):
            to = address(town, "web", version)
            becomes(town, DROPPED, "town/client", to, 80)
            expect(town, "town/client", address(town, "local", version), 80, SOLO)
        assert predicted(town, "town/client", "svc/town/local:80") == {"allow"}
        assert predicted(town, "town/client", "svc/town/web:80", "-4") == {"deny"}


def test_before_translation_a_host_endpoint_sees_the_service(town: Lab) -> None:
    vip = vips(town, "balanced")
    ports = {"action": "Deny", "protocol": "TCP", "destination": {"ports": [30080]}}
    nets = [
        {"action": "Deny", "destination": {"nets": [f"{ip}/{32 if version == 4 else 128}"]}}
        for version, ip in vip.items()
    ]
    hosts = [
        {
            "apiVersion": CALICO,
            "kind": "HostEndpoint",
            "metadata": {"name": f"eth0-{number}", "labels": {"host": "yes"}},
            "spec": {"node": f"node{number}", "interfaceName": "eth0", "profiles": ["projectcalico-default-allow"]},
        }
        for number in (1, 2, 3)
    ]
    policy = {
        "apiVersion": CALICO,
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "before"},
        "spec": {
            "selector": "has(host)", "preDNAT": True, "applyOnForward": True, "types": ["Ingress"],
            "ingress": [ports, *nets],
        },
    }  # fmt: skip
    with applied(town, policy, *hosts):
        for version in (4, 6):
            node = NODES[version].format(1)
            becomes(town, DROPPED, "outside", node, 30080)
            becomes(town, DROPPED, "outside", vip[version], 80)
            expect(town, "outside", node, 30053, WEB, "udp")
            expect(town, "outside", node, 30081, SOLO)
            expect(town, "town/client", address(town, "web", version), 80, WEB)
        for to, port in ((NODES[4].format(1), "30080"), (vip[4], "80")):
            assert predicted(town, "outside", to, "--port", port) == {"deny"}
    expect(town, "outside", vip[6], 80, WEB)


# --- backends that come and go ------------------------------------------------------------------------------------


MOVING = {4: "10.96.0.200", 6: "fd00:10:96::200"}
ENDS = {"ready": False, "serving": True, "terminating": True}
READY = {"ready": True, "serving": True, "terminating": False}


def behind(lab: Lab, version: int, **conditions: dict[str, bool]) -> None:
    """Who is behind the service `moving`, by the names of pods."""
    endpoints = [
        {"addresses": [pod_ip(lab, name, version)], "nodeName": f"node{name[-1]}", "conditions": said}
        for name, said in ((name.replace("_", "-"), said) for name, said in conditions.items())
    ]
    ports = [{"name": "tcp", "port": 80}, {"name": "udp", "protocol": "UDP", "port": 53}, {"name": "echo", "port": 7}]
    labels = {"kubernetes.io/service-name": "moving", "endpointslice.kubernetes.io/managed-by": "test"}
    spec = {
        "ipFamilyPolicy": "PreferDualStack",
        "clusterIP": MOVING[4],
        "clusterIPs": list(MOVING.values()),
        "type": "NodePort",
        "ports": [one | {"nodePort": 30090 + number} for number, one in enumerate(ports)],
    }
    lab.apply(
        thing("Service", "moving", spec),
        thing(
            "EndpointSlice", f"moving-{version}", api="discovery.k8s.io/v1", metadata={"labels": labels},
            addressType=f"IPv{version}", endpoints=endpoints, ports=ports,
        ),
    )  # fmt: skip


@both
def test_those_that_end_serve_until_another_one_is_ready(town: Lab, version: int) -> None:
    behind(town, version, web_1=ENDS, web_2=ENDS | {"serving": False})
    expect(town, "town/client", MOVING[version], 80, {"town/web-1"})
    (one,) = explained(town, "town/client", "svc/town/moving:80", f"-{version}")
    assert one["verdict"] == "allow"
    behind(town, version, web_1=ENDS, web_3=READY)
    expect(town, "town/client", MOVING[version], 80, {"town/web-3"})


@pytest.mark.parametrize("where", ["town/client", "node1", "outside"])
@both
def test_a_client_with_one_udp_socket_moves_on(town: Lab, version: int, where: str) -> None:
    behind(town, version)
    to, port = (NODES[version].format(1), 30091) if where == "outside" else (MOVING[version], 53)
    with opened(town, where, to, "udp") as one:
        one.connect((to, port))

        def said() -> str:
            try:
                one.send(b"who?\n")
                return heard(one)[0]
            except (TimeoutError, ConnectionRefusedError, PermissionError):
                return ""

        until(lambda: said() == "", 30)
        for number in (1, 2):
            behind(town, version, **{f"web_{number}": READY})
            until(lambda number=number: said() == f"town/web-{number}", 30)  # type: ignore[misc]


@both
def test_backends_come_and_go_under_load(town: Lab, version: int) -> None:
    """New connections always find somebody, never one that has gone; connections to those that stay never break. An
    agent that is killed on the way and comes back changes nothing about that."""
    names = ("web_1", "web_2", "web_3")
    behind(town, version, **dict.fromkeys(names, READY))
    expect(town, "town/client", MOVING[version], 80, WEB)
    expect(town, "node1", MOVING[version], 80, WEB)
    ways = [(where, MOVING[version], 80) for where in ("town/client", "node1")]
    ways += [("outside", NODES[version].format(number), 30090) for number in (1, 2)]
    with Echoes(town, "web-1", "web-2", "web-3") as echoes:
        held = echoes.held(town, "town/client", MOVING[version])
        with Load(town, *ways) as load:
            for gone in ("web_2", "web_3"):
                behind(town, version, **{name: READY for name in names if name != gone})
                left = WEB - {f"town/{gone.replace('_', '-')}"}
                expect(town, "town/client", MOVING[version], 80, left)
                assert set(saw(town, "town/client", MOVING[version], 80, times=40)) <= left
                behind(town, version, **dict.fromkeys(names, READY))
                expect(town, "town/client", MOVING[version], 80, WEB)
            _kill_the_agent(town, "node1")
            behind(town, version, web_1=READY, web_3=READY)
            expect(town, "town/client", MOVING[version], 80, WEB - {"town/web-2"})
        assert load.asked > 100
        assert load.unanswered == []
        assert held.broken() == []


def _kill_the_agent(lab: Lab, node: str) -> None:
    first = read_pid(lab.directory.agent_pid(node))
    assert first is not None
    first.signal(signal.SIGKILL)
    until(lambda: not first.alive())
    until(lambda: read_pid(lab.directory.agent_pid(node)) not in (None, first))
