"""EndpointSlices where no Kubernetes makes them: who is in one, as what, and in how many writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tortie.calc.endpoint_slices import MANAGED_BY, MOST, SliceChange, changes, whose
from tortie.calc.slice_book import SliceBook
from tortie.model.k8s import Container, ContainerPort, K8sNode, Pod, PodCondition, PodIP, PodSpec, PodStatus
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.node import Node
from tortie.model.service import (
    SERVICE_NAME,
    Endpoint,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    ForName,
    Service,
    ServicePort,
    ServiceSpec,
)

RUNS = (EndpointPort(port=8080),)
ZONE = "topology.kubernetes.io/zone"


def service(name: str = "web", **spec: Any) -> Service:
    defaults: dict[str, Any] = {
        "selector": {"app": "web"}, "ports": (ServicePort(port=80, target_port=8080),), "ip_families": ("IPv4",),
    }  # fmt: skip
    return Service(
        metadata=Metadata(name=name, namespace="red", uid=f"uid-{name}"), spec=ServiceSpec(**{**defaults, **spec})
    )


def pod(
    name: str = "a", *ips: str, ready: bool | None = None, labels: dict[str, str] | None = None, **spec: Any
) -> Pod:
    conditions = () if ready is None else (PodCondition(type="Ready", status=str(ready)),)
    found = ips or ("10.244.0.5",)
    spec.setdefault("containers", (Container(name="c"),))
    return Pod(
        metadata=Metadata(name=name, namespace="red", uid=f"uid-{name}", labels=labels or {"app": "web"}),
        spec=PodSpec(node_name=spec.pop("node_name", "node1"), **spec),
        status=PodStatus(
            phase="Running", pod_ip=found[0], pod_ips=tuple(PodIP(ip=ip) for ip in found), conditions=conditions
        ),
    )


class Book(SliceBook):
    """One whose changes are carried out."""

    def __init__(self, *objects: Resource) -> None:
        super().__init__()
        self.slices: dict[str, EndpointSlice] = {}
        for one in objects:
            self.put(one)
        self.work()

    def put(self, one: Resource, *, gone: bool = False) -> None:
        where = one.namespace, one.name
        if isinstance(one, Service):
            self.set_service(*where, None if gone else one)
        elif isinstance(one, Pod):
            self.set_pod(*where, None if gone else one)
        elif isinstance(one, EndpointSlice):
            self.set_slice(*where, None if gone else one)
            self.slices.pop(one.name, None)
            if not gone:
                self.slices[one.name] = one
        else:
            self.set_node(type(one), one.name, None if gone else one.labels)

    def work(self) -> list[str]:
        """The verbs of what was done."""
        done = []
        for key in self.due():
            self.settled(key)
            for change in self.plan(key):
                self.put(change.slice, gone=change.verb == "delete")
                done.append(change.verb)
        for key in self.due():
            assert self.plan(key) == []
            self.settled(key)
        return done

    @property
    def one(self) -> EndpointSlice:
        (found,) = self.slices.values()
        return found

    @property
    def endpoint(self) -> Endpoint:
        (found,) = self.one.endpoints
        return found


# --- an endpoint ------------------------------------------------------------------------------------------------------


def test_a_slice_says_whose_it_is() -> None:
    book = Book(replace(service(), metadata=Metadata(name="web", namespace="red", uid="u", labels={"x": "y"})), pod())
    one = book.one
    assert one.labels == {"x": "y", SERVICE_NAME: "web", MANAGED_BY: "tortie-controllers"}
    (owner,) = one.metadata.owner_references
    assert (owner.kind, owner.name, owner.uid, owner.controller) == ("Service", "web", "u", True)
    assert one.name.startswith("web-")
    assert (one.address_type, one.ports) == ("IPv4", RUNS)
    endpoint = book.endpoint
    assert (endpoint.addresses, endpoint.node_name, endpoint.hostname) == (("10.244.0.5",), "node1", "")
    assert endpoint.target_ref == {"kind": "Pod", "namespace": "red", "name": "a", "uid": "uid-a"}


def _deleted(one: Pod) -> Pod:
    return changed(one, deletion_timestamp="2026-01-01T00:00:00Z")


def _phase(one: Pod, phase: str) -> Pod:
    return replace(one, status=replace(one.status, phase=phase))


@pytest.mark.parametrize(
    ("one", "publish", "ready", "serving", "terminating"),
    [
        (pod(), False, True, True, False),
        (pod(ready=True), False, True, True, False),
        (pod(ready=False), False, False, False, False),
        (pod(ready=False), True, True, False, False),
        (_phase(pod(), "Pending"), False, False, False, False),
        (_deleted(pod()), False, False, True, True),
        (_deleted(pod(ready=False)), False, False, False, True),
        (_deleted(pod()), True, True, True, True),
    ],
)
def test_conditions(one: Pod, publish: bool, ready: bool, serving: bool, terminating: bool) -> None:
    found = Book(service(publish_not_ready_addresses=publish), one).endpoint.conditions
    assert (found.ready, found.serving, found.terminating) == (ready, serving, terminating)


def test_who_is_no_endpoint() -> None:
    silent = replace(pod("silent"), status=PodStatus(phase="Running"))
    odd = replace(pod("odd"), status=PodStatus(phase="Running", pod_ip="what"))
    other = pod("other", labels={"app": "db"})
    far = changed(pod("far"), namespace="blue")
    book = Book(service(), _phase(pod("f"), "Failed"), _phase(pod("s"), "Succeeded"), silent, odd, other, far)
    assert book.one.endpoints == ()


def test_hostname_zone_and_hints() -> None:
    named = pod(hostname="db-0", subdomain="web")
    node = K8sNode(metadata=Metadata(name="node1", labels={ZONE: "z1"}))
    book = Book(service(), named, node)
    assert (book.endpoint.hostname, book.endpoint.zone, book.endpoint.hints) == ("db-0", "z1", None)
    book.put(pod(hostname="db-0", subdomain="other"))
    assert book.work() == ["update"]
    assert book.endpoint.hostname == ""
    zones = EndpointHints(for_zones=(ForName(name="z1"),))
    for said, hints in (
        ("PreferClose", zones),
        ("PreferSameZone", zones),
        ("PreferSameNode", replace(zones, for_nodes=(ForName(name="node1"),))),
    ):
        book.put(service(traffic_distribution=said))
        book.work()
        assert book.endpoint.hints == hints
    book.put(node, gone=True)
    assert book.work() == ["update"]
    assert (book.endpoint.zone, book.endpoint.hints) == ("", EndpointHints(for_nodes=(ForName(name="node1"),)))
    book.put(Node(metadata=Metadata(name="node1", labels={ZONE: "z2"})))
    book.put(Node(metadata=Metadata(name="node2", labels={ZONE: "z3"})))
    assert book.work() == ["update"]
    assert book.endpoint.zone == "z2"


def test_both_families() -> None:
    both = pod("a", "10.244.0.5", "fd00:244::5")
    book = Book(service(ip_families=("IPv6", "IPv4")), both, pod("b", "10.244.0.6"))
    found = {one.address_type: [each.addresses[0] for each in one.endpoints] for one in book.slices.values()}
    assert found == {"IPv4": ["10.244.0.5", "10.244.0.6"], "IPv6": ["fd00:244::5"]}
    book.put(service(ip_families=("IPv6",)))
    assert book.work() == ["delete"]
    assert book.one.address_type == "IPv6"
    book.put(service(ip_families=(), cluster_ip="10.96.0.7", cluster_ips=("10.96.0.7",)))
    assert book.work() == ["create", "delete"]
    assert book.one.address_type == "IPv4"
    book.put(service(ip_families=(), cluster_ip="None", cluster_ips=("None",)))
    assert sorted(book.work()) == ["create", "update"]  # whoever has pods; and it says that it is headless
    assert len(book.slices) == 2


def test_named_ports_are_each_pod_s_own() -> None:
    def with_port(name: str, ip: str, number: int | None) -> Pod:
        ports = () if number is None else (ContainerPort(name="http", container_port=number),)
        return pod(name, ip, containers=(Container(name="c", ports=ports),))

    ports = (ServicePort(port=80, name="web", target_port="http"), ServicePort(port=9, name="n", app_protocol="x"))
    book = Book(
        service(ports=ports),
        *(with_port(name, f"10.244.0.{i}", number) for i, (name, number) in enumerate(
            [("a", 8080), ("b", 8081), ("c", 8080), ("d", None)], 1
        )),
    )  # fmt: skip
    found = {one.ports: {each.addresses[0] for each in one.endpoints} for one in book.slices.values()}
    last = EndpointPort(name="n", port=9, app_protocol="x")
    assert found == {
        (EndpointPort(name="web", port=8080), last): {"10.244.0.1", "10.244.0.3"},
        (EndpointPort(name="web", port=8081), last): {"10.244.0.2"},
        (last,): {"10.244.0.4"},
    }
    book.put(with_port("b", "10.244.0.2", 8080))
    assert book.work() == ["update", "delete"]  # there before it is away
    assert len(book.slices) == 2


def test_a_sidecar_s_port_and_one_of_another_protocol() -> None:
    sidecar = Container(name="s", restart_policy="Always", ports=(ContainerPort(name="http", container_port=9),))
    plain = Container(name="c", ports=(ContainerPort(name="http", protocol="UDP", container_port=8),))
    ports = (ServicePort(port=80, target_port="http"),)
    book = Book(service(ports=ports), pod(containers=(plain,), init_containers=(sidecar,)))
    assert book.one.ports == (EndpointPort(port=9),)


# --- few writes -------------------------------------------------------------------------------------------------------


def crowd(numbers: Iterable[int]) -> list[Pod]:
    return [pod(f"p{i:04}", f"10.{244 + i // 60000}.{i // 250}.{i % 250 + 1}") for i in numbers]


def test_a_crowd_is_spread_over_full_slices_and_holes_are_filled() -> None:
    book = Book(service(), *crowd(range(250)))
    sizes = lambda: sorted(len(one.endpoints) for one in book.slices.values())  # noqa: E731
    assert sizes() == [50, 100, 100]
    book.put(crowd([300])[0])
    assert book.work() == ["update"]
    assert sizes() == [51, 100, 100]
    for one in crowd([7, 8]):
        book.put(one, gone=True)
    for one in crowd([301, 302]):
        book.put(one)
    assert book.work() == ["update"]  # the same slice gives and takes
    assert sizes() == [51, 100, 100]
    for one in crowd(range(303, 353)):
        book.put(one)
    assert book.work() == ["create"]
    assert sizes() == [50, 51, 100, 100]


def test_a_pod_that_changes_stays_in_its_slice() -> None:
    book = Book(service(), *crowd(range(150)))
    before = {whose(each): one.name for one in book.slices.values() for each in one.endpoints}
    book.put(_deleted(crowd([3])[0]))
    assert book.work() == ["update"]
    assert before == {whose(each): one.name for one in book.slices.values() for each in one.endpoints}


def test_the_last_slice_stays_empty_and_is_used_again() -> None:
    book = Book(service(), pod())
    name = book.one.name
    book.put(pod(), gone=True)
    assert book.work() == ["update"]
    assert (book.one.name, book.one.endpoints, book.one.ports) == (name, (), RUNS)
    book.put(pod("b"))
    assert book.work() == ["update"]
    assert book.one.name == name
    assert Book(service(ports=(ServicePort(port=80, target_port="http"),))).one.ports == ()


def test_another_target_port_turns_the_slices_over() -> None:
    book = Book(service(), *crowd(range(150)))
    book.put(service(ports=(ServicePort(port=80, target_port=9090),)))
    assert book.work() == ["update", "update"]
    assert {one.ports for one in book.slices.values()} == {(EndpointPort(port=9090),)}


def test_what_does_not_count_writes_nothing() -> None:
    book = Book(service(), pod())
    one = pod()
    book.put(replace(changed(one, resource_version="7"), status=replace(one.status, message="hello")))
    book.put(replace(service(), status={"loadBalancer": {}}))
    book.put(pod("z", labels={"app": "db"}))
    book.put(K8sNode(metadata=Metadata(name="node1", labels={"x": "y"})))
    assert book.due() == []


def test_pods_of_a_host_s_network_share_an_address() -> None:
    book = Book(service(), pod("a", "192.0.2.1"), pod("b", "192.0.2.1"))
    assert len(book.one.endpoints) == 2
    book.put(pod("a", "192.0.2.1"), gone=True)
    book.work()
    assert book.endpoint.target_ref["name"] == "b"


def test_somebody_s_words_and_names_are_left_alone() -> None:
    ours = Book(service(), pod()).one
    others = replace(ours, metadata=Metadata(name=ours.name, namespace="red", labels={SERVICE_NAME: "web"}))
    book = Book(others, service(), pod())
    assert book.slices[ours.name] == others
    (mine,) = (one for name, one in book.slices.items() if name != ours.name)
    book.put(changed(mine, annotations={"note": "x"}, labels={**mine.labels, "y": "z"}))
    assert book.work() == ["update"]
    assert (book.slices[mine.name].metadata.annotations, book.slices[mine.name].labels) == ({"note": "x"}, mine.labels)


def test_what_ends_takes_its_slices_along() -> None:
    for end in (None, service(selector={}), service(type="ExternalName", external_name="x.example")):
        book = Book(service(), service("other"), pod())
        assert len(book.slices) == 2
        book.put(end or service(), gone=end is None)
        assert book.work() == ["delete"]
        assert book.one.service == "other"
    own = EndpointSlice(
        metadata=Metadata(name="mine", namespace="red", labels={SERVICE_NAME: "web"}), address_type="IPv4"
    )
    assert Book(service(selector={}), own, pod()).slices == {"mine": own}


# --- laws -------------------------------------------------------------------------------------------------------------

PORTS = [(EndpointPort(port=number),) for number in (1, 2, 3)]


def _behind(of: dict[int, int]) -> dict[tuple[int, tuple[EndpointPort, ...]], list[Endpoint]]:
    found: dict[tuple[int, tuple[EndpointPort, ...]], list[Endpoint]] = {}
    for i, ports in of.items():
        found.setdefault((4, PORTS[ports]), []).append(Endpoint(addresses=(f"10.0.{i // 250}.{i % 250 + 1}",)))
    return found


def _applied(slices: dict[str, EndpointSlice], change: SliceChange) -> dict[str, EndpointSlice]:
    rest = {name: one for name, one in slices.items() if name != change.slice.name}
    return rest if change.verb == "delete" else rest | {change.slice.name: change.slice}


_states = st.dictionaries(st.integers(0, 400), st.sampled_from([0, 0, 0, 1]), max_size=300)


@settings(max_examples=60, deadline=None)
@given(st.lists(_states, min_size=1, max_size=4), st.randoms())
def test_plans_arrive_are_stable_and_lose_nobody(states: list[dict[int, int]], random: Any) -> None:
    slices: dict[str, EndpointSlice] = {}
    before: dict[int, int] = {}
    for of in states:
        behind = _behind(of)
        staying = {i for i in of if before.get(i) == of[i]}
        for change in changes(service(), behind, slices.values(), slices.keys()):
            assert (change.verb == "create") == (change.slice.name not in slices)
            slices = _applied(slices, change)
            there = {each.addresses[0] for one in slices.values() for each in one.endpoints}
            assert all(f"10.0.{i // 250}.{i % 250 + 1}" in there for i in staying)
        found = Counter((one.ports, each.addresses[0]) for one in slices.values() for each in one.endpoints)
        assert found == Counter((ports, each.addresses[0]) for (_, ports), them in behind.items() for each in them)
        assert all(len(one.endpoints) <= MOST for one in slices.values())
        assert len([one for one in slices.values() if not one.endpoints]) <= (0 if of else 1)
        shuffled = list(slices.values())
        random.shuffle(shuffled)
        assert changes(service(), behind, shuffled, slices.keys()) == []
        before = of


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=30), st.randoms())
def test_any_order_comes_to_the_same(steps: list[tuple[int, bool]], random: Any) -> None:
    kinds: list[Callable[[], Resource]] = [
        service,
        lambda: service("other", selector={"tier": "x"}),
        lambda: pod("a", "10.0.0.1"),
        lambda: pod("b", "10.0.0.2", labels={"app": "web", "tier": "x"}),
        lambda: pod("c", "10.0.0.3", ready=False),
        lambda: pod("b", "10.0.0.4", labels={"tier": "x"}),
        lambda: K8sNode(metadata=Metadata(name="node1", labels={ZONE: "z"})),
        lambda: K8sNode(metadata=Metadata(name="node1")),
    ]
    book, last = Book(), dict[tuple[str, str], Resource]()
    for number, gone in steps:
        one = kinds[number]()
        book.put(one, gone=gone)
        last.pop((one.KIND.kind, one.name), None)
        if not gone:
            last[one.KIND.kind, one.name] = one
        if random.random() < 0.5:
            book.work()
    book.work()
    objects = list(last.values())
    random.shuffle(objects)

    def said(of: Book) -> set[tuple[str, str]]:
        return {(one.service, str(sorted(map(str, one.endpoints)))) for one in of.slices.values()}

    assert said(book) == said(Book(*objects))
