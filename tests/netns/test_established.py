"""Established flows and a policy that comes to forbid them: kept as they are by default, cut where somebody says so."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from town import PATIENCE, PODS, Town, built_town, endpoint, made

from tortie.base.addr import parse_ip
from tortie.base.flow import UDP, Flow, Way
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.established import Established
from tortie.kernel import nft, sysctl
from tortie.kernel.conntrack import CT_NEW, ENTRY, Conntrack, encode
from tortie.kernel.netlink import Request
from tortie.kernel.netlink.codec import NLM_F_CREATE, NLM_F_EXCL
from tortie.kernel.netns import entered
from tortie.model.document import convert, parse
from tortie.model.k8s import Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.node import FelixConfiguration
from tortie.model.workload import IPNAT, WorkloadEndpoint
from tortie.render.established import MIDWAY

pytestmark = pytest.mark.root

SOON = 1.0
"""Seconds after which a flow that is cut carries nothing any more."""
EXTERNAL = {4: "10.244.200.5", 6: "fd00:244::c805"}


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    yield from built_town()


@pytest.fixture
def stage(town: Town) -> Iterator[Established]:
    yield Established(town.node.netns)
    with Conntrack(town.node.netns) as tracked:
        assert tracked.delete(list(tracked.flows())) == []


def said(how: str) -> Resource:
    return convert(
        FelixConfiguration, {"metadata": {"name": "default", "annotations": {"tortie.dev/established-flows": how}}}
    )


def policy(spec: str, name: str = "n") -> list[Resource]:
    return parse(
        f"{{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
    )


def closed(pod: str, direction: str = "Ingress") -> list[Resource]:
    return policy(f"selector: app == '{pod}', types: [{direction}]", f"close-{pod}-{direction.lower()}")


def people(town: Town, how: str = "Cut") -> list[Resource]:
    """Every pod is in namespace red, which allows everything, under the label app=<its name>."""
    pods = [endpoint(town.parties[pod], "red", labels={"app": pod}) for pod in PODS]
    return [made(Namespace, "red"), made(ServiceAccount, "default", "red"), said(how), *pods]


def apply(town: Town, stage: Established, resources: list[Resource]) -> int:
    """The datastore is like this now, and the node follows: how many flows are cut on the way."""
    before = stage.cut
    assert converge([stage], town.apply(resources)) == []
    return stage.cut - before


def tracked(town: Town) -> int:
    with entered(town.node.netns):
        return int(sysctl.read("net/netfilter/nf_conntrack_count"))


class Talk:
    """An established flow between two parties, and words that go both ways."""

    def __init__(self, town: Town, source: str, destination: str, version: int, kind: int, to: str = "") -> None:
        self._town, self._kind = town, kind
        where = to or str(town.parties[destination].ips[version])
        server = town.parties[destination].open(version, kind)
        server.bind((str(town.parties[destination].ips[version]), 0))
        self._client = town.parties[source].open(version, kind)
        self._client.setblocking(True)
        self._client.settimeout(PATIENCE)
        if kind == socket.SOCK_STREAM:
            server.listen(1)
            server.settimeout(PATIENCE)
            self._client.connect((where, server.getsockname()[1]))
            self._server = server.accept()[0]
            server.close()
        else:
            self._client.connect((where, server.getsockname()[1]))
            self._client.send(b"hello")
            assert select.select([server], [], [], PATIENCE)[0]
            self._server = server
            server.connect(server.recvfrom(64)[1])
        assert self.asks()
        assert self.answers()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.close()

    def asks(self, patience: float = PATIENCE) -> bool:
        """Whether what the one says that opened the flow is heard."""
        return self._heard(self._client, self._server, patience)

    def answers(self, patience: float = PATIENCE) -> bool:
        return self._heard(self._server, self._client, patience)

    def _heard(self, speaker: socket.socket, listener: socket.socket, patience: float) -> bool:
        word = str(time.monotonic_ns()).encode()
        deadline = time.monotonic() + patience
        seen = b""
        with contextlib.suppress(OSError):  # reset, or refused
            speaker.send(word)
            while word not in seen and time.monotonic() < deadline:
                if select.select([listener], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    seen += listener.recv(1 << 16)
        return word in seen


TCP_KIND, UDP_KIND = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = pytest.mark.parametrize("kind", [TCP_KIND, UDP_KIND], ids=["tcp", "udp"])
VERSIONS = pytest.mark.parametrize("version", [4, 6])


@VERSIONS
@KINDS
def test_by_default_nothing_is_cut(town: Town, stage: Established, version: int, kind: int) -> None:
    apply(town, stage, people(town, "Keep"))
    with Talk(town, "p0", "p1", version, kind) as talk:
        assert apply(town, stage, [*people(town, "Keep"), *closed("p1"), *closed("p0", "Egress")]) == 0
        assert talk.asks()
        assert talk.answers()
    assert not any(name.startswith("midway") for name in chains(town))


def chains(town: Town) -> list[str]:
    listed = nft.list_json(["list", "chains"], town.node.netns)
    return [item["chain"]["name"] for item in listed if "chain" in item]


@VERSIONS
@pytest.mark.parametrize("first", ["asks", "answers"])
@pytest.mark.parametrize("how", [("p1", "Ingress"), ("p0", "Egress")], ids=["ingress", "egress"])
def test_a_connection_is_cut_whoever_speaks_next(
    town: Town, stage: Established, version: int, first: str, how: tuple[str, str]
) -> None:
    """The end that answers may open connections to the other, and still does not take this one up again."""
    apply(town, stage, people(town))
    with Talk(town, "p0", "p1", version, TCP_KIND) as talk, Talk(town, "p2", "p3", version, TCP_KIND) as other:
        began = time.monotonic()
        assert apply(town, stage, [*people(town), *closed(*how)]) == 1
        assert time.monotonic() - began < SOON
        for says in (first, "asks", "answers"):
            assert not getattr(talk, says)(0.3)
        assert other.asks()
        assert other.answers()
        assert town.counters()[MIDWAY] > 0
        with Talk(town, "p1", "p0", version, TCP_KIND) as allowed:
            assert allowed.asks()


@VERSIONS
def test_datagrams_that_were_answered_are_cut(town: Town, stage: Established, version: int) -> None:
    apply(town, stage, people(town))
    with Talk(town, "p0", "p1", version, UDP_KIND) as talk, Talk(town, "p2", "p3", version, UDP_KIND) as other:
        assert apply(town, stage, [*people(town), *closed("p1"), *closed("p0")]) == 1
        assert not talk.asks(0.3)
        assert not talk.answers(0.3)
        assert other.asks()
        assert other.answers()


@VERSIONS
@KINDS
def test_only_what_is_forbidden_is_cut(town: Town, stage: Established, version: int, kind: int) -> None:
    """One pod among three that speak with p1 is denied by a rule, in the direction in which it speaks."""
    apply(town, stage, people(town))
    denial = "selector: app == 'p1', ingress: [{action: Deny, source: {selector: app == 'p0'}}, {action: Allow}]"
    with (
        Talk(town, "p0", "p1", version, kind) as doomed,
        Talk(town, "p2", "p1", version, kind) as second,
        Talk(town, "X", "p1", version, kind) as third,
        Talk(town, "p1", "p0", version, kind) as opposite,
        Talk(town, "p1", "X", version, kind) as out,
    ):
        assert apply(town, stage, [*people(town), *policy(denial)]) == 1
        assert not doomed.asks(0.3)
        for talk in (second, third, opposite, out):
            assert talk.asks()
            assert talk.answers()
        assert apply(town, stage, [*people(town), *policy(denial)]) == 0


@VERSIONS
def test_a_set_that_comes_to_hold_somebody(town: Town, stage: Established, version: int) -> None:
    """The policy stays as it is; who is blocked is another."""
    rules = "selector: app == 'p1', ingress: [{action: Deny, source: {selector: threat == 'known'}}, {action: Allow}]"
    blocked = parse(
        "{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {name: b, labels: {threat: known}},"
        " spec: {nets: [198.51.100.8/30, '2001:db8:51::/64']}}"
    )
    apply(town, stage, [*people(town), *policy(rules)])
    with Talk(town, "X", "p1", version, TCP_KIND) as talk, Talk(town, "p2", "p1", version, TCP_KIND) as other:
        assert apply(town, stage, [*people(town), *policy(rules), *blocked]) == 1
        assert not talk.asks(0.3)
        assert not talk.answers(0.3)
        assert other.asks()


@VERSIONS
@pytest.mark.parametrize("to_pod", [True, False], ids=["to", "from"])
def test_addresses_that_are_translated(town: Town, stage: Established, version: int, to_pod: bool) -> None:
    """Through a floating address to a pod, and out of the cluster under the node's: policy saw the pod's own."""
    inside = str(town.parties["p0"].ips[version])
    everybody = people(town)
    pod = next(one for one in everybody if isinstance(one, WorkloadEndpoint) and one.spec.pod == "p0")
    nats = (IPNAT(internal_ip=inside, external_ip=EXTERNAL[version]),)
    everybody = [one for one in everybody if one is not pod]
    everybody.append(msgspec.structs.replace(pod, spec=msgspec.structs.replace(pod.spec, ip_nats=nats)))
    for cidr, number in (("10.244.0.0/16", 4), ("fd00:244::/64", 6)):
        text = f"{{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {{name: p{number}}}, spec: "
        everybody += parse(f"{text}{{cidr: '{cidr}', natOutgoing: true}}}}")
    apply(town, stage, everybody)
    ends = ("X", "p0") if to_pod else ("p0", "X")
    with (
        Talk(town, *ends, version, TCP_KIND, to=EXTERNAL[version] if to_pod else "") as talk,
        Talk(town, *reversed(ends), version, TCP_KIND) as opposite,
    ):
        assert apply(town, stage, [*everybody, *closed("p0", "Ingress" if to_pod else "Egress")]) == 1
        assert not talk.asks(0.3)
        assert not talk.answers(0.3)
        assert opposite.asks()


@VERSIONS
def test_a_node_keeps_what_it_opened_to_its_pods(town: Town, stage: Established, version: int) -> None:
    apply(town, stage, people(town))
    with Talk(town, "node", "p0", version, TCP_KIND) as talk:
        assert apply(town, stage, [*people(town), *closed("p0"), *closed("p0", "Egress")]) == 0
        assert talk.asks()
        assert talk.answers()


def test_what_was_forbidden_while_nobody_looked_is_cut_at_the_start(town: Town, stage: Established) -> None:
    apply(town, stage, people(town))
    with Talk(town, "p0", "p1", 4, TCP_KIND) as talk, Talk(town, "p2", "p3", 4, TCP_KIND) as other:
        state = town.apply([*people(town), *closed("p1")])
        assert talk.asks()
        started = Established(town.node.netns)
        assert converge([started], state) == []
        assert started.cut == 1
        assert not talk.asks(0.3)
        assert other.asks()


def test_saying_cut_later_cuts_what_is_forbidden_already(town: Town, stage: Established) -> None:
    apply(town, stage, people(town, "Keep"))
    with Talk(town, "p0", "p1", 4, TCP_KIND) as talk:
        assert apply(town, stage, [*people(town, "Keep"), *closed("p1")]) == 0
        assert talk.asks()
        assert apply(town, stage, [*people(town, "Cut"), *closed("p1")]) == 1
        assert not talk.asks(0.3)


def between(town: Town, source: str, pod: str, number: int) -> Flow:
    """A flow of datagrams that was answered, from a port and an address of its own."""
    here, there = parse_ip(f"{source}.{number >> 8 & 0xFF}.{number & 0xFF}"), town.parties[pod].ips[4]
    port = 1024 + number % 60000
    return Flow(Way(here, there, UDP, port, 80), Way(there, here, UDP, 80, port))


def enter(town: Town, flows: list[Flow]) -> None:
    """Into connection tracking, as if they had been there."""
    with Conntrack(town.node.netns) as tracked:
        requests = [
            Request(CT_NEW, NLM_F_CREATE | NLM_F_EXCL, encode_new(flow), f"conntrack -I {flow}") for flow in flows
        ]
        assert tracked.batch(requests) == []


def encode_new(flow: Flow) -> bytes:
    values = ENTRY.unpack(encode(flow)) | {"reply": ENTRY.unpack(encode(replace(flow, opened=flow.reply)))["orig"]}
    return ENTRY.pack(values | {"status": 0xA, "timeout": 600})  # confirmed, with a reply seen


def peak_memory() -> int:
    """Bytes that this process has had in memory at most since it was last forgotten."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def test_fifty_thousand_flows(town: Town, stage: Established, record_property: pytest.RecordProperty) -> None:
    """10,100 of them are forbidden, more than are held at a time; the rest, most of which are nobody's here, stay."""
    apply(town, stage, people(town))
    strangers = [Flow(Way(one.opened.source, parse_ip("203.0.113.7"), UDP, one.opened.source_port, 80),
                      Way(parse_ip("203.0.113.7"), one.opened.source, UDP, 80, one.opened.source_port))
                 for number in range(34_900) for one in [between(town, "192.168", "p3", number)]]  # fmt: skip
    enter(town, strangers)
    enter(town, [between(town, "172.16", "p1", number) for number in range(5_000)])
    enter(town, [between(town, "172.17", "p0", number) for number in range(10_100)])
    assert tracked(town) >= 50_000
    before = tracked(town)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: proc(5)
    memory = peak_memory()
    began = time.perf_counter()
    assert apply(town, stage, [*people(town), *closed("p0")]) == 10_100
    seconds = time.perf_counter() - began
    record_property("seconds", seconds)
    print(f"\n50,000 flows, 10,100 cut: {seconds:.2f} s, {(peak_memory() - memory) / 2**20:.0f} MiB more")
    assert before - 10_100 <= tracked(town) < before - 10_000  # the kernel's own neighbours may speak meanwhile
    assert seconds < 10
    assert peak_memory() - memory < 64 * 2**20
    began = time.perf_counter()
    assert apply(town, stage, [*people(town), *closed("p0"), *closed("p2")]) == 0
    print(f"50,000 flows, none of them of the pod: {time.perf_counter() - began:.2f} s")


def test_what_is_deleted_is_this_flow(town: Town, stage: Established) -> None:
    apply(town, stage, people(town))
    flow = between(town, "172.16", "p1", 7)
    enter(town, [flow])
    with Conntrack(town.node.netns) as listing:
        (seen,) = listing.flows([flow.opened.source])
        assert (seen.opened, seen.reply) == (flow.opened, flow.reply)
        assert listing.delete([seen]) == []
        assert listing.delete([seen]) == []
        enter(town, [flow])
        assert listing.delete([replace(seen, number=seen.number ^ 1)]) == []  # the same ends, another flow
        assert list(listing.flows([flow.opened.source]))


def test_flows_are_found_by_their_addresses(town: Town, stage: Established) -> None:
    """Every entry that the kernel has is read; one is found by any of its addresses, and by no other."""
    apply(town, stage, people(town))
    with Talk(town, "p0", "p1", 6, UDP_KIND), Conntrack(town.node.netns) as listing:
        ends = [town.parties[name].ips[6] for name in ("p0", "p1")]
        for ip in ends:
            assert [flow.opened.destination for flow in listing.flows([ip])] == [ends[1]]
        assert list(listing.flows([parse_ip("fd00:244::99")])) == []
        assert len(list(listing.flows())) == tracked(town)
