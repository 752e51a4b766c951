"""Which endpoints a connection may get: conditions, policies and hints, each as kube-proxy decides it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from proxy_world import HERE, THERE, endpoint, only, put, service, slice_, state_of, texts
from proxy_world import inputs as world

from tortie.calc.proxy.backends import offer
from tortie.calc.proxy.inputs import ProxyInputs
from tortie.calc.proxy.state import ProxyState

READY: dict[str, Any] = {}
NOT_READY = {"ready": False}
ENDING = {"ready": False, "serving": True, "terminating": True}
ENDED = {"ready": False, "serving": False, "terminating": True}


def ends(entrance_backends: object) -> str:
    """10.0.0.1 and 10.0.0.2 as `12`; None as `-`."""
    found = texts(entrance_backends)  # type: ignore[arg-type]
    return "-" if found is None else "".join(each.split(":")[0].rpartition(".")[2] for each in found)


def behind(*said: dict[str, Any], here: str = "", **hints: Any) -> list[dict[str, Any]]:
    """Endpoints 10.0.0.1, 10.0.0.2 ...; those whose number is in `here` are on this node."""
    return [endpoint(f"10.0.0.{i}", HERE if str(i) in here else THERE, **one) for i, one in enumerate(said, 1)]


# --- conditions -----------------------------------------------------------------------------------------------------

CONDITIONS = [
    ("nothing said is ready", [READY], "1"),
    ("ready", [{"ready": True}], "1"),
    ("not ready", [NOT_READY], ""),
    ("not ready, serving but not ending", [{"ready": False, "serving": True}], ""),
    ("ending and still serving, nobody else", [ENDING], "1"),
    ("ending, whether it serves is not said", [{"ready": False, "terminating": True}], "1"),
    ("ended", [ENDED], ""),
    ("one that is ready beats one that ends", [ENDING, READY], "2"),
    ("ready though it ends: addresses published not ready", [{"ready": True, "terminating": True}, ENDING], "1"),
    ("all that end", [ENDING, NOT_READY, ENDING, ENDED], "13"),
]


@pytest.mark.parametrize(("what", "said", "expected"), CONDITIONS, ids=[row[0] for row in CONDITIONS])
def test_conditions(what: str, said: list[dict[str, Any]], expected: str) -> None:
    one = only(state_of(service(), slice_(*behind(*said))))
    assert ends(one.backends) == expected
    assert (one.local, one.unserved) == (None, "reject")


# --- policies: who is got at the ClusterIP, and at a NodePort, and what becomes of who gets nobody ------------------

POLICIES = [
    # endpoints, those here, internal, external: ClusterIP, NodePort (backends, local), what becomes of the unserved
    ("both Cluster", [READY, READY], "1", "Cluster", "Cluster", ("12", "reject"), ("12", "-", "reject")),
    ("not said is Cluster", [READY, READY], "1", "", "", ("12", "reject"), ("12", "-", "reject")),
    ("external Local", [READY, READY], "1", "Cluster", "Local", ("12", "reject"), ("12", "1", "reject")),
    ("external Local, all elsewhere", [READY, READY], "", "Cluster", "Local", ("12", "reject"), ("12", "", "drop")),
    ("external Local, nobody", [NOT_READY], "1", "Cluster", "Local", ("", "reject"), ("", "", "reject")),
    ("internal Local", [READY, READY], "1", "Local", "Cluster", ("1", "reject"), ("12", "-", "reject")),
    ("internal Local, all elsewhere", [READY, READY], "", "Local", "Cluster", ("", "drop"), ("12", "-", "reject")),
    ("internal Local, nobody", [ENDED], "1", "Local", "Cluster", ("", "reject"), ("", "-", "reject")),
    ("both Local", [READY, READY], "2", "Local", "Local", ("2", "reject"), ("12", "2", "reject")),
    ("one ends here, one is elsewhere", [ENDING, READY], "1", "Local", "Local", ("1", "reject"), ("2", "1", "reject")),
    ("here one ends and one is ready", [ENDING, READY], "12", "Local", "Local", ("2", "reject"), ("2", "2", "reject")),
    ("all end, elsewhere", [ENDING, ENDED], "2", "Local", "Local", ("", "drop"), ("1", "", "drop")),
    ("all end, here", [ENDING, ENDED], "12", "Local", "Local", ("1", "reject"), ("1", "1", "reject")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "said", "here", "internal", "external", "inside", "outside"), POLICIES, ids=[row[0] for row in POLICIES]
)
def test_policies(
    what: str,
    said: list[dict[str, Any]],
    here: str,
    internal: str,
    external: str,
    inside: tuple[str, str],
    outside: tuple[str, str, str],
) -> None:
    policies = {"internalTrafficPolicy": internal, "externalTrafficPolicy": external}
    state = state_of(service(node_port=30080, type="NodePort", **policies), slice_(*behind(*said, here=here)))
    at_cluster_ip, at_node_port = only(state), only(state, "NodePort")
    assert (ends(at_cluster_ip.backends), at_cluster_ip.unserved) == inside
    assert at_cluster_ip.local is None
    assert (ends(at_node_port.backends), ends(at_node_port.local), at_node_port.unserved) == outside


def test_a_proxy_of_no_node_has_nothing_here() -> None:
    one = put(ProxyInputs(""), service(internalTrafficPolicy="Local"), slice_("10.0.0.1")).state()
    assert (only(one).backends, only(one).unserved, one.here) == ((), "drop", frozenset())


# --- hints ----------------------------------------------------------------------------------------------------------

A, B, AB = {"zones": ["a"]}, {"zones": ["b"]}, {"zones": ["a", "b"]}
MINE, OTHERS = {"nodes": [HERE], **A}, {"nodes": [THERE], **A}

HINTS = [
    ("those for our zone", "a", [A, B, AB], "13"),
    ("one has none: all", "a", [A, B, READY], "123"),
    ("nobody means our zone: all", "c", [A, B], "12"),
    ("our zone is not known: all", "", [A, B], "12"),
    ("one without hints that is not ready does not matter", "a", [A, B, NOT_READY], "1"),
    ("only one that is not ready means us: all", "a", [{**A, **NOT_READY}, B, B], "23"),
    ("those for this node before those for its zone", "a", [MINE, OTHERS], "1"),
    ("nobody means this node: the zone", "a", [OTHERS, {"nodes": [THERE], **B}], "1"),
    ("nobody means this node or its zone: all", "c", [OTHERS, {"nodes": [THERE], **B}], "12"),
    ("hints for nodes alone", "", [{"nodes": [HERE]}, {"nodes": [THERE]}], "1"),
    ("one has none for nodes: the zone", "a", [MINE, B], "1"),
    ("none of those that end are left out", "a", [{**A, **ENDING}, {**B, **ENDING}], "12"),
]


@pytest.mark.parametrize(("what", "zone", "said", "expected"), HINTS, ids=[row[0] for row in HINTS])
def test_hints(what: str, zone: str, said: list[dict[str, Any]], expected: str) -> None:
    assert ends(only(state_of(service(), slice_(*behind(*said)), zone=zone)).backends) == expected


def test_hints_do_not_narrow_what_is_local() -> None:
    told = behind(A, B, here="12")
    both = service(node_port=30080, type="NodePort", externalTrafficPolicy="Local", internalTrafficPolicy="Local")
    state = state_of(both, slice_(*told), zone="a")
    assert ends(only(state).backends) == "12"
    assert (ends(only(state, "NodePort").backends), ends(only(state, "NodePort").local)) == ("1", "12")


def test_hints_follow_the_zone_of_the_node() -> None:
    one = world(
        service(), slice_(*behind(A, B)), service("plain", "10.96.0.2"), slice_("10.0.0.9", of="plain"), zone="a"
    )
    first = one.state()
    one.set_node(HERE, {"topology.kubernetes.io/zone": "b"})
    second = one.state()
    assert (ends(only(first).backends), ends(only(second).backends)) == ("1", "2")
    assert second.services["red", "plain"] is first.services["red", "plain"]
    one.set_node(THERE, {"topology.kubernetes.io/zone": "a"})
    assert one.state() is second
    one.set_node(HERE, None)
    assert ends(only(one.state()).backends) == "12"


# --- slices ---------------------------------------------------------------------------------------------------------


def of(state: ProxyState, kind: str = "ClusterIP") -> list[str] | None:
    return texts(only(state, kind).backends)


def test_slices_of_a_service_are_united_and_in_order() -> None:
    slices = slice_("10.0.0.9", "10.0.0.10", name="x"), slice_("10.0.0.2", "10.0.0.9", name="y")
    assert of(state_of(service(), *slices)) == ["10.0.0.2:8080", "10.0.0.9:8080", "10.0.0.10:8080"]


@pytest.mark.parametrize(("first", "second"), ["xy", "yx"])
def test_of_two_that_contradict_the_local_one_counts_then_the_ready_one(first: str, second: str) -> None:
    node_port = service(node_port=30080, type="NodePort", externalTrafficPolicy="Local")
    told = slice_(endpoint("10.0.0.1", THERE), endpoint("10.0.0.2", HERE, ready=False), name=first)
    other = slice_(endpoint("10.0.0.1", HERE), endpoint("10.0.0.2", HERE), name=second)
    assert texts(only(state_of(node_port, told, other), "NodePort").local) == ["10.0.0.1:8080", "10.0.0.2:8080"]


def test_endpoints_with_other_numbers_of_one_port() -> None:
    slices = slice_("10.0.0.1", name="x", port=8080), slice_("10.0.0.1", "10.0.0.2", name="y", port=9090)
    assert of(state_of(service(), *slices)) == ["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:9090"]


def test_ports_find_each_other_by_name_and_protocol() -> None:
    ports = [{"name": "a", "port": 1}, {"name": "b", "port": 2}, {"name": "a", "port": 1, "protocol": "UDP"}]
    told = [{"name": "a", "port": 11}, {"name": "c", "port": 12}, {"name": "a", "port": 13, "protocol": "UDP"}]
    state = state_of(service(ports=ports), slice_("10.0.0.1", ports=told))
    found = {str(one.frontend): texts(one.backends) for one in state.services["red", "web"].entrances}
    assert found == {"10.96.0.1:1/TCP": ["10.0.0.1:11"], "10.96.0.1:2/TCP": [], "10.96.0.1:1/UDP": ["10.0.0.1:13"]}


def test_a_single_port_without_a_name() -> None:
    unnamed = slice_("10.0.0.1", ports=[{"port": 11}])
    assert of(state_of(service(ports=[{"port": 1}]), unnamed)) == ["10.0.0.1:11"]


@pytest.mark.parametrize("port", [None, 0])
def test_a_port_without_a_number_is_nothing(port: int | None) -> None:
    assert of(state_of(service(), slice_("10.0.0.1", port=port))) == []


def test_the_first_address_of_an_endpoint_counts() -> None:
    several = {"addresses": ["10.0.0.7", "10.0.0.8"]}
    assert of(state_of(service(), slice_(several, {"addresses": []}))) == ["10.0.0.7:8080"]


def test_what_is_no_slice_of_ours() -> None:
    assert offer(slice_("10.0.0.1", of="", name="x"), HERE) is None
    assert offer(slice_("host.example", family="FQDN"), HERE) is None
    for label in ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"):
        assert offer(slice_("10.0.0.1", labels={label: ""}), HERE) is None


def test_addresses_that_lead_nowhere_are_left_out_and_told() -> None:
    bad = "127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"
    state = state_of(service(), slice_(*bad, "10.0.0.1"))
    assert of(state) == ["10.0.0.1:8080"]
    (problem,) = state.problems.items()
    assert problem[0] == "EndpointSlice red/web-ipv4"
    places = ", ".join(f'endpoints[{number}].addresses[0] "{ip}"' for number, ip in enumerate(bad[:3]))
    assert problem[1].startswith(f"{places} and 1 more: no address that a service can lead to: ")
    assert "\n" not in problem[1]
    one = world(service(), slice_(*bad))
    assert of(put(one, slice_("10.0.0.1")).state()) == ["10.0.0.1:8080"]
    assert not one.state().problems


@pytest.mark.parametrize("bad", ["10.0.0", "fd00::1", "10.0.0.1/32", "host.example", ""])
def test_an_address_that_cannot_be_read_costs_nobody_else(bad: str) -> None:
    """As a datastore may have it that checks nothing."""
    good = slice_("10.0.0.1", "10.0.0.2", endpoint("10.0.0.3", HERE))
    ends = (replace(good.endpoints[0], addresses=(bad,)), *good.endpoints[1:])
    one = replace(good, endpoints=ends)
    state = state_of(service(node_port=30080, type="NodePort", externalTrafficPolicy="Local"), one)
    assert of(state) == ["10.0.0.2:8080", "10.0.0.3:8080"]
    assert texts(only(state, "NodePort").local) == ["10.0.0.3:8080"]
    why = "no address that a service can lead to: it must be of the slice's IP version, and not loopback"
    assert state.problems == {"EndpointSlice red/web-ipv4": f'endpoints[0].addresses[0] "{bad}": {why}'}


def test_here_are_the_addresses_of_backends_on_this_node() -> None:
    one = world(service(), slice_(endpoint("10.0.0.1", HERE), endpoint("10.0.0.2", THERE), endpoint("10.0.0.3")))
    put(one, service("too", "10.96.0.2"), slice_(endpoint("10.0.0.1", HERE), of="too"))
    first = one.state()
    assert set(map(str, first.here)) == {"10.0.0.1"}
    one.set_service("red", "web", None)
    assert one.state().here is first.here
    one.set_service("red", "too", None)
    assert one.state().here == frozenset()
