"""What `explain` says of a connection to a service: who translates, who may be got, what the backend sees; and the
kernel's evidence for it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from msgspec.structs import replace
from situations import base, calico, cluster_of, gnp, np

from tortie.base.errors import ConfigError, NotFound
from tortie.calc.explain import Explainer, Explanation
from tortie.calc.proxy.state import Frontend
from tortie.cli.explain import Question, explained
from tortie.cli.explain_kernel import Kernel
from tortie.cli.explain_services import ServicesOf, doors_of
from tortie.cli.explain_show import as_json, show
from tortie.model.document import parse
from tortie.model.service import EndpointSlice
from tortie.proxy.answer import AboutNode, answer

READY = ("10.244.1.10 n1", "10.244.2.10 n2")
OUTSIDE = "198.51.100.9"


def service(spec: str = "", status: str = "", metadata: str = "") -> str:
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: red{metadata}}}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  ports: [{{name: http, port: 80, targetPort: 8080, nodePort: 30080}}]
  {spec}
status: {{{status}}}
"""


def slices(*endpoints: str, more: str = "") -> str:
    """Of `ADDRESS NODE [CONDITION]`."""
    lines = []
    for text in endpoints:
        address, node, *condition = text.split()
        said = (
            f", conditions: {{{condition[0]}: {'false' if condition[0] == 'ready' else 'true'}}}" if condition else ""
        )
        lines.append(f'- {{addresses: ["{address}"], nodeName: {node}{said}{more}}}')
    versions = {6 if ":" in text.split()[0] else 4 for text in endpoints} or {4}
    (version,) = versions
    return f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-{version}, namespace: red, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv{version}
endpoints: {"[]" if not lines else ""}
{chr(10).join(lines)}
ports: [{{name: http, port: 8080, protocol: TCP}}]
"""


BALANCED = "type: LoadBalancer"
ADDRESSED = "loadBalancer: {ingress: [{ip: 10.0.0.50}]}"


def explainer(*documents: str) -> Explainer:
    resources = [*base(), *(one for text in documents for one in parse(text))]
    return Explainer(cluster_of(resources), resources)


def told(
    asked: Explainer, source: str, destination: str, port: int | str = 80, versions: tuple[int, ...] = (4,)
) -> list[Explanation]:
    return explained(Question(source, destination, str(port), "tcp", 40000, None, versions), asked)


def way(one: Explanation) -> str:
    """`prerouting@n1 egress@n1 !ingress@n2`."""
    return " ".join(f"{'' if step.allowed else '!'}{step.hook}@{step.node}" for step in one.steps)


def ends(found: list[Explanation]) -> list[str]:
    return [one.destination.name for one in found]


def notes(one: Explanation) -> list[str]:
    return [note.text for step in one.steps if step.door is not None for note in step.notes]


# --- who is got, and by which way -----------------------------------------------------------------------------------

NEAR, FAR = "red/a", "blue/d"
WAYS = [
    # policy, who, asks at, is led to, by this way
    ("Cluster", "red/b", "svc/red/web:http", NEAR, "prerouting@n1 egress@n1 ingress@n1"),
    ("Cluster", "red/b", "10.96.0.10:80", FAR, "prerouting@n1 egress@n1 ingress@n2"),
    ("Cluster", "red/b", "10.0.0.50:80", FAR, "prerouting@n1 egress@n1 ingress@n2"),
    ("Cluster", "red/b", "203.0.113.10:80", FAR, "prerouting@n1 egress@n1 ingress@n2"),
    ("Cluster", "red/b", "n1:30080", NEAR, "prerouting@n1 egress@n1 ingress@n1"),
    ("Cluster", "red/b", "10.0.0.1:30080", FAR, "prerouting@n1 egress@n1 ingress@n2"),
    ("Cluster", "red/b", "n2:30080", FAR, "egress@n1 postrouting@n1 prerouting@n2 ingress@n2"),
    ("Cluster", "red/b", "node/n2:30080", NEAR, "egress@n1 postrouting@n1 prerouting@n2 ingress@n1"),
    ("Cluster", "n1", "10.96.0.10:80", NEAR, "output@n1 ingress@n1"),
    ("Cluster", "n1", "n1:30080", FAR, "output@n1 ingress@n2"),
    ("Cluster", "n1", "n2:30080", NEAR, "prerouting@n2 ingress@n1"),
    ("Cluster", OUTSIDE, "n1:30080", NEAR, "prerouting@n1 ingress@n1"),
    ("Cluster", OUTSIDE, "n1:30080", FAR, "prerouting@n1 ingress@n2"),
    ("Cluster", OUTSIDE, "10.0.0.50:80", FAR, "prerouting@n2 ingress@n2"),
    ("Local", "red/b", "n1:30080", FAR, "prerouting@n1 egress@n1 ingress@n2"),
    ("Local", "n1", "n1:30080", FAR, "output@n1 ingress@n2"),
    ("Local", "red/b", "n2:30080", FAR, "egress@n1 postrouting@n1 prerouting@n2 ingress@n2"),
    ("Local", OUTSIDE, "n1:30080", NEAR, "prerouting@n1 ingress@n1"),
    ("Local", OUTSIDE, "10.0.0.50:80", NEAR, "prerouting@n1 ingress@n1"),
    ("Local", OUTSIDE, "10.0.0.50:80", FAR, "prerouting@n2 ingress@n2"),
]


@pytest.mark.parametrize(("policy", "source", "asked", "backend", "stations"), WAYS)
def test_ways_to_a_backend(policy: str, source: str, asked: str, backend: str, stations: str) -> None:
    web = service(f"{BALANCED}\n  externalTrafficPolicy: {policy}\n  externalIPs: [203.0.113.10]", ADDRESSED)
    destination, _, port = asked.rpartition(":")
    found = told(explainer(web, slices(*READY)), source, destination, port)
    (one,) = [each for each in found if each.destination.name == backend]
    assert way(one) == stations
    assert one.allowed
    assert one.destination.service == "red/web"


@pytest.mark.parametrize(
    ("source", "asked", "backends"),
    [
        ("red/b", "n2:30080", [FAR]),  # natOutgoing gives it the address of its node
        (OUTSIDE, "n1:30080", [NEAR]),
        ("n2", "n1:30080", [NEAR]),
        ("red/b", "n1:30080", [NEAR, FAR]),
        ("n1", "n1:30080", [NEAR, FAR]),
        ("blue/d", "10.0.0.50:80", [NEAR, FAR]),
        (OUTSIDE, "10.0.0.50:80", [NEAR, FAR]),  # each by its own node
    ],
)
def test_external_traffic_policy_local_is_for_who_comes_from_outside(
    source: str, asked: str, backends: list[str]
) -> None:
    web = service(f"{BALANCED}\n  externalTrafficPolicy: Local", ADDRESSED)
    destination, _, port = asked.rpartition(":")
    assert ends(told(explainer(web, slices(*READY)), source, destination, port)) == backends


def test_a_nodeport_is_one_of_that_node_only_and_other_ports_are_the_nodes() -> None:
    asked = explainer(service("type: NodePort"), slices(*READY))
    (one,) = told(asked, OUTSIDE, "n1", 22)
    assert way(one) == "no pod@"
    (one,) = told(asked, OUTSIDE, "10.244.1.10", 30080)
    assert way(one) == "ingress@n1"
    (one,) = told(asked, "n1", "red/a", 30080)  # the source is a process, whatever the port
    assert way(one) == "ingress@n1"


def test_both_ip_versions_are_one_party() -> None:
    web = service("type: NodePort")
    asked = explainer(web, slices(*READY), slices("fd00:244:1::10 n1"))
    found = told(asked, "red/b", "svc/red/web", 80, (4, 6))
    assert [(one.destination.name, one.version) for one in found] == [(NEAR, 4), (NEAR, 6), (FAR, 4)]
    assert "[fd00:244:1::10]:8080 is the only backend" in found[1].steps[0].reason
    assert ends(told(asked, OUTSIDE, "n1", 30080)) == [NEAR, FAR]
    assert [one.version for one in told(asked, "2001:db8::9", "n1", 30080, (4, 6))] == [6]


def test_an_address_that_cannot_be_read_costs_nobody_else() -> None:
    headless = (
        service().replace("clusterIP: 10.96.0.10", "clusterIP: None").replace('10.96.0.10, "fd00:96::10"', "None")
    )
    (one,) = parse(slices(*READY))
    assert isinstance(one, EndpointSlice)
    bad = replace(one, endpoints=(replace(one.endpoints[0], addresses=("10.244.1",)), one.endpoints[1]))
    for web in (service(), headless):
        resources = [*base(), *parse(web), bad]
        assert ends(told(Explainer(cluster_of(resources), resources), "red/b", "svc/red/web:http")) == [FAR]


# --- nobody there ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "hook"),
    [("red/b", "forward@n1"), ("n1", "output@n1"), (OUTSIDE, "forward@")],
)
def test_no_ready_endpoint_is_refused_at_once(source: str, hook: str) -> None:
    asked = explainer(service(), slices("10.244.1.10 n1 ready", "10.244.2.10 n2 ready"))
    (one,) = told(asked, source, "svc/red/web")
    assert way(one) == f"!{hook}"
    assert not one.allowed
    assert one.steps[0].reason == "Service red/web, port 80: none of its 2 endpoints is ready: refused at once"
    (one,) = told(explainer(service()), source, "10.96.0.10")
    assert "it has no endpoints: refused at once" in one.steps[0].reason


def test_endpoints_that_end_serve_until_others_are_ready() -> None:
    asked = explainer(
        service(), slices("10.244.1.10 n1 terminating").replace("terminating: true", "ready: false, terminating: true")
    )
    (one,) = told(asked, "red/b", "svc/red/web")
    assert one.allowed
    assert notes(one) == ["no endpoint is ready: those are used that end and still serve"]


def test_local_without_a_local_backend_is_dropped() -> None:
    web = service("type: NodePort\n  externalTrafficPolicy: Local")
    asked = explainer(web, slices("10.244.1.10 n1"))
    (one,) = told(asked, OUTSIDE, "n2", 30080)
    assert way(one) == "!input@n2"
    why = "externalTrafficPolicy is Local, and none of 1 ready endpoints is on n2: dropped"
    assert one.steps[0].reason == f"Service red/web, NodePort 30080: {why}"
    inside = explainer(service("internalTrafficPolicy: Local"), slices("10.244.1.10 n1"))
    assert ends(told(inside, "red/b", "svc/red/web")) == [NEAR]
    (one,) = told(inside, "blue/d", "svc/red/web")
    assert way(one) == "!forward@n2"
    assert "internalTrafficPolicy is Local, and none of 1 ready endpoints is on n2: dropped" in one.steps[0].reason


def test_a_port_that_a_cluster_ip_does_not_have_is_refused() -> None:
    asked = explainer(service(f"{BALANCED}\n  externalIPs: [203.0.113.10]"), slices(*READY))
    (one,) = told(asked, "red/b", "10.96.0.10", 81)
    assert way(one) == "!forward@n1"
    assert "no tcp port 81: refused at once; it has 80/TCP (http)" in one.steps[0].reason
    (one,) = explained(Question("red/b", "10.96.0.10", "0", "icmp", 40000, None, (4,)), asked)
    assert one.steps[0].reason.startswith("Service red/web has no icmp: refused at once")
    (one,) = told(asked, "red/b", "203.0.113.10", 81)  # somebody else's, as long as no port is asked for
    assert one.allowed
    with pytest.raises(ConfigError, match="no port 81"):
        told(asked, "red/b", "svc/red/web", 81)


def test_load_balancer_source_ranges() -> None:
    web = service(f"{BALANCED}\n  loadBalancerSourceRanges: [198.51.100.0/24]", ADDRESSED)
    asked = explainer(web, slices(*READY))
    assert all(one.allowed for one in told(asked, OUTSIDE, "10.0.0.50"))
    for source, station in (("192.0.2.1", "prerouting@"), ("red/b", "prerouting@n1"), ("n1", "output@n1")):
        (one,) = told(asked, source, "10.0.0.50")
        assert way(one) == f"!{station}"
        assert "is not in loadBalancerSourceRanges of Service red/web: 198.51.100.0/24" in one.steps[0].reason
    assert all(one.allowed for one in told(asked, "192.0.2.1", "n1", 30080))


@pytest.mark.parametrize(
    ("web", "why"),
    [
        (service(metadata=", labels: {service.kubernetes.io/service-proxy-name: other}"), "leaves it to somebody else"),
        (service("type: ExternalName\n  externalName: example.com"), "is a name for example.com"),
    ],
)
def test_services_that_are_not_served(web: str, why: str) -> None:
    with pytest.raises((NotFound, ConfigError), match=why):
        told(explainer(web, slices(*READY)), "red/b", "svc/red/web")


def test_a_service_whose_address_is_anothers() -> None:
    twin = service(metadata=', creationTimestamp: "2026-01-01T00:00:00Z"').replace("name: web,", "name: aaa,")
    late = service(metadata=', creationTimestamp: "2026-02-01T00:00:00Z"')
    asked = explainer(twin, late, slices(*READY))
    with pytest.raises(NotFound, match=r"not served by Tortie: .* came first"):
        told(asked, "red/b", "svc/red/web")
    (one,) = told(asked, "red/b", "10.96.0.10")
    assert one.destination.service == "red/aaa"


def test_a_headless_service_is_a_name_for_its_endpoints() -> None:
    headless = service().replace('clusterIPs: [10.96.0.10, "fd00:96::10"]', "clusterIPs: [None]")
    headless = headless.replace("clusterIP: 10.96.0.10", "clusterIP: None")
    near, far = told(explainer(headless, slices(*READY, "10.244.1.11 n1 ready")), "red/b", "svc/red/web")
    assert way(near) == "prerouting@n1 egress@n1 ingress@n1"
    assert "its name leads to 10.244.1.10 at once" in near.steps[0].reason
    assert near.port == 8080
    assert way(far) == "prerouting@n1 egress@n1 ingress@n2", "a name is looked up before anything is sent"
    itself, _ = told(explainer(headless, slices(*READY)), "red/a", "svc/red/web")
    assert way(itself) == "inside the pod@n1"


# --- what is said of the choice -------------------------------------------------------------------------------------


def test_affinity_hints_and_local_are_told() -> None:
    sticky = service("sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}")
    (one, _) = told(explainer(sticky, slices(*READY)), "red/b", "svc/red/web")
    assert notes(one) == ["session affinity: the same client gets the same backend for 600 s"]
    zones = [
        calico(
            "Node", f"n{i}", f"bgp: {{ipv4Address: 10.0.0.{i}/24}}", f", labels: {{topology.kubernetes.io/zone: z{i}}}"
        )
        for i in (1, 2)
    ]
    hinted = slices(*READY).replace("nodeName: n1", "nodeName: n1, hints: {forZones: [{name: z1}]}")
    hinted = hinted.replace("nodeName: n2", "nodeName: n2, hints: {forZones: [{name: z2}]}")
    asked = explainer(service(), hinted, *zones)
    (one,) = told(asked, "red/b", "svc/red/web")
    assert one.destination.name == NEAR
    assert notes(one) == ["1 of 2 ready endpoints have hints for zone z1, where n1 is: the others are not used"]
    assert ends(told(asked, "blue/d", "svc/red/web")) == [FAR]
    local = explainer(service("type: NodePort\n  externalTrafficPolicy: Local"), slices(*READY))
    (one,) = told(local, OUTSIDE, "n1", 30080)
    assert notes(one) == [
        "externalTrafficPolicy Local: only backends on n1 are chosen from, and see the client's address"
    ]


MASKED = [
    (OUTSIDE, "n1:30080", NEAR, "10.0.0.1"),
    (OUTSIDE, "n1:30080", FAR, "10.0.0.1"),
    (OUTSIDE, "svc/red/web:80", FAR, "10.0.0.2"),
    ("red/b", "n2:30080", NEAR, "10.0.0.2"),
    ("red/a", "svc/red/web:80", NEAR, "10.0.0.1"),  # itself
    ("red/b", "n1:30080", FAR, "10.0.0.1"),
    ("red/b", "svc/red/web:80", FAR, ""),
    ("n1", "svc/red/web:80", FAR, ""),  # it has that address already
]


@pytest.mark.parametrize(("source", "asked", "backend", "seen"), MASKED)
def test_the_source_address_that_a_backend_sees(source: str, asked: str, backend: str, seen: str) -> None:
    destination, _, port = asked.rpartition(":")
    found = told(explainer(service("type: NodePort"), slices(*READY)), source, destination, port)
    (one,) = [each for each in found if each.destination.name == backend]
    assert [text.split()[4] for text in notes(one)] == ([seen] if seen else [])


def test_a_process_of_the_node_that_is_asked_sees_the_client() -> None:
    asked = explainer(service("type: NodePort"), slices("10.0.0.1 n1"))
    assert notes(told(asked, OUTSIDE, "n1", 30080)[0]) == []
    (note,) = notes(told(asked, OUTSIDE, "n2", 30080)[0])
    assert "the backend sees 10.0.0.2" in note


def test_policy_of_the_backend_sees_the_masqueraded_source_and_the_backends_port() -> None:
    """On the node that translates it still sees the client: masquerading comes last."""
    clients = np("selector: all(), ingress: [{action: Allow, source: {nets: [198.51.100.0/24]}}]")
    clients_too = np("selector: all(), ingress: [{action: Allow, source: {nets: [198.51.100.0/24]}}]", namespace="blue")
    asked = explainer(service("type: NodePort"), slices(*READY), clients, clients_too)
    near, far = told(asked, OUTSIDE, "n1", 30080)
    assert (way(near), way(far)) == ("prerouting@n1 ingress@n1", "prerouting@n1 !ingress@n2")
    node = np(
        "selector: all(), ingress: [{action: Allow, protocol: TCP, source: {nets: [10.0.0.1/32]},"
        " destination: {ports: [8080]}}]",
        namespace="blue",
    )
    asked = explainer(service("type: NodePort"), slices(*READY), node)
    assert told(asked, OUTSIDE, "n1", 30080)[1].allowed


def test_before_translation_policy_sees_the_service() -> None:
    host = calico("HostEndpoint", "h1", "node: n1, interfaceName: '*', expectedIPs: [10.0.0.1]", ", labels: {host: n1}")
    closed = gnp(
        "selector: has(host), preDNAT: true, applyOnForward: true, types: [Ingress],"
        " ingress: [{action: Deny, protocol: TCP, destination: {ports: [30080]}}]"
    )
    asked = explainer(service("type: NodePort"), slices(*READY), host, closed)
    for one in told(asked, OUTSIDE, "n1", 30080):
        assert way(one) == "!host preDNAT ingress@n1"
    assert all(one.allowed for one in told(asked, "red/b", "svc/red/web"))


def test_a_node_that_translates_asks_its_host_endpoint_about_what_it_forwards() -> None:
    host = calico(
        "HostEndpoint", "h1", "node: n1, interfaceName: eth0, expectedIPs: [10.0.0.1]", ", labels: {host: n1}"
    )
    out = gnp(
        "selector: has(host), applyOnForward: true, types: [Egress],"
        " egress: [{action: Deny, destination: {nets: [10.244.2.0/24]}}]"
    )
    asked = explainer(service("type: NodePort"), slices(*READY), host, out)
    near, far = told(asked, OUTSIDE, "n1", 30080)
    assert near.allowed
    assert way(far).endswith("!host forward egress@n1")


# --- the kernel's evidence ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    frontend: Frontend
    backend: object
    local: bool
    connections: int
    octets: int = 0


def evidence(one: Explanation, *, on: bool = True, counted: int | None = 7) -> ServicesOf:
    """What n1's agent would say, whose kernel has counted so many connections to each backend; None: it has nothing."""
    (door,) = doors_of("n1", [one])
    state = door.state
    hits = [
        Counted(each.frontend, backend, local, counted)
        for served in state.services.values()
        for each in served.entrances
        for local, backends in ((False, each.backends), (True, each.local or ()))
        for backend in backends
        if counted is not None
    ]
    about = AboutNode(node="n1", asked="auto", on=on, why="" if on else "kube-proxy runs")
    return ServicesOf([answer(state, hits, about)])  # type: ignore[arg-type]


def test_the_kernels_counter_is_shown_beside_the_translation(capsys: pytest.CaptureFixture[str]) -> None:
    asked = explainer(service(), slices(*READY))
    found = told(asked, "red/b", "svc/red/web")
    kernel = Kernel(services={"n1": evidence(found[0])})
    show(found[:1], kernel, [])
    assert "10.96.0.10:80/TCP to 10.244.1.10:8080: 7 connections" in capsys.readouterr().out
    told_of = as_json(found[0], kernel)["steps"][0]["service"]
    assert told_of == {
        "namespace": "red",
        "name": "web",
        "kind": "ClusterIP",
        "frontend": "10.96.0.10:80/tcp",
        "backend": "10.244.1.10:8080",
        "node": "n1",
        "local": False,
        "of": 2,
        "affinity": 0,
        "sources": None,
        "connections": 7,
        "notServed": "",
    }
    off = Kernel(services={"n1": evidence(found[0], on=False)})
    show(found[:1], off, [])
    assert "Tortie serves no services on n1: kube-proxy runs" in capsys.readouterr().out
    assert "service" not in as_json(found[0], kernel)["steps"][1]


def test_what_differs_from_the_prediction() -> None:
    asked = explainer(service(), slices(*READY))
    one = told(asked, "red/b", "svc/red/web")[0]
    (door,) = doors_of("n1", [one])
    assert doors_of("n2", [one]) == []
    assert [*evidence(one).differing(door)] == []
    assert [*evidence(one, counted=None).differing(door)] == [
        "the kernel does not lead 10.96.0.10:80/TCP to 10.244.1.10:8080"
    ]
    assert [*evidence(one, on=False, counted=None).differing(door)] == []
    behind = evidence(told(explainer(service(), slices(READY[1])), "red/b", "svc/red/web")[0])
    assert [*behind.differing(door)] == [
        "the agent does not lead Service red/web at 10.96.0.10:80/TCP to 10.244.1.10:8080"
    ]
    nobody = told(explainer(service(), slices("10.244.1.10 n1 ready")), "red/b", "svc/red/web")[0]
    (shut,) = doors_of("n1", [nobody])
    assert [*evidence(nobody).differing(shut)] == []
    assert [*evidence(one).differing(shut)] == [
        "the agent has backends for Service red/web at 10.96.0.10:80/TCP: 10.244.1.10:8080, 10.244.2.10:8080"
    ]
    assert [*ServicesOf([]).differing(door)] == []
