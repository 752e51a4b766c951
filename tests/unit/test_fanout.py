"""What fan-out servers and clients say to each other, and what a server knows of a kind: values alone."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.fanout.feed import recorded, untold
from tortie.fanout.kinds import FANNED, of_kubernetes
from tortie.fanout.shelf import BATCH_BYTES, Shelf, compressed
from tortie.model.document import convert
from tortie.model.ipam import IPPool
from tortie.model.meta import changed
from tortie.model.service import EndpointSlice
from tortie.store.fanout import wire
from tortie.store.fanout.address import Address, address, addresses, of_service
from tortie.store.fanout.tls import Tls
from tortie.store.fanout.wire import Ear, Events, Part, ProtocolError, Record

# --- frames -------------------------------------------------------------------------------------------------------

NAMES = st.text(max_size=8)
RECORDS = st.builds(
    Record,
    st.sampled_from(["ADDED", "MODIFIED", "DELETED"]), NAMES, NAMES, st.integers(0, 2**63), st.binary(max_size=300),
)  # fmt: skip
MESSAGES = st.one_of(
    st.builds(wire.Hello, st.integers(0, 99), NAMES),
    st.builds(wire.List, NAMES, st.integers(0, 2**63), st.lists(st.tuples(NAMES, NAMES, st.integers(0, 9))).map(tuple)),
    st.builds(wire.Watch, NAMES, NAMES),
    st.builds(wire.Ended, st.sampled_from(list(wire.Why)), NAMES),
    st.builds(wire.Mark, st.integers(0, 2**63)),
    st.just(wire.Ping()),
    st.just(wire.Cancel()),
    st.builds(wire.Goodbye, st.floats(0, 100)),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.one_of(MESSAGES, st.lists(RECORDS, max_size=5))), max_size=8),
    st.randoms(use_true_random=False),
)
def test_what_is_said_is_heard_in_whatever_pieces_it_comes(said, chance: random.Random) -> None:
    data, expected = bytearray(), []
    for number, (stream, message) in enumerate(said):
        if isinstance(message, list):
            encoded = [wire.record(one) for one in message]
            if number % 2:
                body, type_ = wire.events_body(number, encoded), wire.Type.EVENTS
                expected.append((stream, Events(number, tuple(message))))
            else:
                body, type_ = wire.part_body(encoded), wire.Type.PART
                expected.append((stream, Part(tuple(message))))
            data += wire.header(body, stream, type_) + body
        else:
            data += wire.frame(message, stream)
            expected.append((stream, message))
    ear, heard = Ear(), []
    while data:
        size = chance.randint(1, 40)
        heard += ear.hear(bytes(data[:size]))
        del data[:size]
    assert heard == expected


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_waited_on(noise: bytes) -> None:
    with suppress(ProtocolError):
        list(Ear(4096).hear(noise))


def test_no_more_is_taken_than_is_allowed() -> None:
    with pytest.raises(ProtocolError, match="5000 bytes"):
        list(Ear(4096).hear(wire.HEADER.pack(5000, 0, 1)))
    bomb = wire.part_body([b"\0" * (wire.LARGEST + 1)])
    assert len(bomb) < 1_000_000
    with pytest.raises(ProtocolError, match="larger than"):
        wire.decoded(wire.Type.PART, bomb)


def test_secrets_are_never_fanned_out() -> None:
    kinds = {kind.KIND.kind for kind in FANNED}
    assert not kinds & {"Secret", "Lease", "Pod", "IPAMBlock", "IPAMHandle"}
    assert kinds >= {"WorkloadEndpoint", "NetworkPolicy", "Node", "Namespace", "EndpointSlice"}
    assert {kind.KIND.kind for kind in set(FANNED) - set(of_kubernetes())} == {"Profile"}


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.0.2.1:99", Address("192.0.2.1", 99)),
        ("typha.example", Address("typha.example", 5473)),
        ("[fd00::1]:99", Address("fd00::1", 99)),
        ("[fd00::1]", Address("fd00::1", 5473)),
        ("fd00::1", Address("fd00::1", 5473)),
        (":99", Address("", 99)),
        ("unix:/run/x.sock", Address(path="/run/x.sock")),
    ],
)
def test_an_address(text: str, found: Address) -> None:
    assert address(text) == found
    assert address(str(found)) == found


@pytest.mark.parametrize(
    "text", ["a:b", "a:0", "a:70000", "[fd00::1", "[x]:1", "unix:x", "http://a:1", "a b:1", "[fd00::1]9"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--fanout: .*: write "):
        addresses(text, "--fanout")


def test_a_server_must_be_named_to_a_client() -> None:
    with pytest.raises(ConfigError, match="names no machine"):
        addresses("a:1,:5473", "--fanout")
    assert addresses(" a:1, b:2 ,") == (Address("a", 1), Address("b", 2))


def test_the_pods_of_a_service() -> None:
    def piece(name: str, endpoints: list, service: str = "calico-typha", ports: tuple = (("calico-typha", 5473),)):
        metadata = {"name": name, "namespace": "kube-system", "labels": {"kubernetes.io/service-name": service}}
        made = [{"name": port, "port": number} for port, number in ports]
        document = {"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints, "ports": made}
        return convert(EndpointSlice, document)

    slices = [
        piece("a", [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"], "conditions": {"ready": False}}]),
        piece(
            "b", [{"addresses": ["192.0.2.3"], "conditions": {"ready": True}}], ports=(("m", 1), ("calico-typha", 7))
        ),
        piece("c", [{"addresses": ["192.0.2.4"]}], service="other"),
    ]
    assert of_service(slices, "calico-typha") == (Address("192.0.2.1", 5473), Address("192.0.2.3", 7))


def test_whose_certificate_counts() -> None:
    found = {"subject": ((("commonName", "agent"),),), "subjectAltName": (("URI", "spiffe://c/agent"),)}
    assert Tls("a", "b", "c").refusal(found) == ""
    assert Tls("a", "b", "c", cn="agent").refusal(found) == ""
    assert Tls("a", "b", "c", uri="spiffe://c/agent").refusal(found) == ""
    assert Tls("a", "b", "c", cn="x", uri="spiffe://c/agent").refusal(found) == "", "one of the two is enough"
    assert Tls("a", "b", "c", cn="x").refusal(found) == 'its certificate has the common name "agent", not "x"'
    assert "URIs" in Tls("a", "b", "c", uri="spiffe://c/x").refusal(found)
    assert Tls("a", "b", "c", cn="x").refusal(None)
    for wrong in (Tls(ca="a"), Tls(cn="x"), Tls(ca="a", cert="b")):
        with pytest.raises(ConfigError, match="is missing: TLS needs"):
            wrong.checked("CA", "CERT", "KEY")
    assert not Tls().checked("CA", "CERT", "KEY")


# --- the shelf ------------------------------------------------------------------------------------------------------


def write(name: str, revision: int, type_: str = "ADDED", body: bytes = b"x") -> Record:
    return Record(type_, "", name, revision, body)


def read(shelf: Shelf, sequence: int) -> tuple[list[Record], int] | None:
    found: list[Record] = []
    while True:
        told = shelf.since(sequence)
        if told is None:
            return None
        body, sequence = told
        if not body:
            return found, sequence
        found += wire.decoded(wire.Type.EVENTS, body).records


WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from("abc"), st.sampled_from(["ADDED", "DELETED"]), st.integers(0, 2)),
        st.tuples(st.just("mark"), st.integers(1, 3)),
        st.tuples(st.just("read"), st.integers(0, 2)),
        st.tuples(st.just("list"), st.integers(0, 2)),
        st.tuples(st.just("forget"), st.integers(0, 3)),
        st.tuples(st.just("begin"), st.integers(1, 3)),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(WRITES)
def test_readers_of_the_log_have_all_of_it_or_are_told(steps) -> None:
    """Three readers that list, read on and lag; each has exactly what there is at its place, or must list again."""
    shelf = Shelf(history=6)
    shelf.begin([], 0)
    truth: dict[str, int] = {}
    readers: list[tuple[dict[str, int], int] | None] = [({}, shelf.next) for _ in range(3)]

    def apply(picture: dict[str, int], one: Record) -> None:
        if one.type == "DELETED":
            picture.pop(one.name, None)
        else:
            picture[one.name] = one.revision

    for step in steps:
        revision = shelf.revision
        if step[0] == "write":
            _, name, type_, more = step
            if type_ == "DELETED" and name not in truth:
                continue
            one = write(name, revision + 1 + more, type_)
            shelf.put([one, one])  # the second is no news
            apply(truth, one)
        elif step[0] == "mark":
            shelf.mark(revision + step[1])
        elif step[0] == "forget":
            shelf.forget(step[1], 10**6)
        elif step[0] == "begin":
            shelf.begin([write(name, at) for name, at in truth.items()], revision + step[1])
        elif step[0] == "list":
            records, sequence = shelf.freeze()
            parts = compressed(records, sequence).parts
            picture = {one.name: one.revision for part in parts for one in wire.decoded(wire.Type.PART, part).records}
            readers[step[1]] = picture, sequence
        elif (reader := readers[step[1]]) is not None:
            picture, sequence = reader
            told = read(shelf, sequence)
            if told is None:
                readers[step[1]] = None
                continue
            for one in told[0]:
                apply(picture, one)
            readers[step[1]] = picture, told[1]
            assert picture == truth
    assert {name: at for (_, name), (at, _) in shelf.objects.items()} == truth
    assert shelf.length <= 6


def test_a_revision_finds_its_place_in_the_log() -> None:
    shelf = Shelf(history=3)
    shelf.begin([write("a", 4)], 10)
    assert shelf.position(9) is None
    start = shelf.position(10)
    shelf.put([write("a", 12), write("b", 12, "DELETED"), write("c", 15)])
    shelf.mark(20)
    assert shelf.position(10) == start
    assert shelf.position(12) == shelf.position(14) == start + 2, "both of one revision, or none"
    assert shelf.position(15) == shelf.position(20) == shelf.next
    shelf.put([write("d", 21), write("e", 22)])
    assert shelf.position(10) is None


def test_those_at_the_same_place_get_the_same_bytes() -> None:
    shelf = Shelf()
    shelf.begin([], 0)
    start = shelf.next
    shelf.put([write(f"n{n}", n + 1, body=b"x" * 1000) for n in range(1000)])
    first, second = shelf.since(start), shelf.since(start)
    assert first[0] is second[0]
    assert BATCH_BYTES <= len(first[0]) < BATCH_BYTES + 2000, "a long log goes out in pieces"
    records, _ = read(shelf, start)
    assert [one.revision for one in records] == list(range(1, 1001))


def test_the_log_is_bounded_by_bytes() -> None:
    shelf = Shelf(history_bytes=100_000)
    shelf.begin([], 0)
    shelf.put([write(f"n{n}", n + 1, body=b"x" * 1000) for n in range(1000)])
    assert 80 < shelf.length < 100
    assert shelf.floor == 1000 - shelf.length


def test_a_snapshot_serves_until_much_has_changed() -> None:
    shelf = Shelf()
    shelf.begin([write(f"n{n}", 1) for n in range(100)], 1)
    assert shelf.fresh_snapshot() is None
    shelf.snapshot = compressed(*shelf.freeze())
    shelf.put([write("n1", 2 + n) for n in range(1000)])
    assert shelf.fresh_snapshot() is shelf.snapshot
    shelf.put([write("n1", 2000)])
    assert shelf.fresh_snapshot() is None
    shelf.snapshot = compressed(*shelf.freeze())
    shelf.begin([], 3000)
    assert shelf.fresh_snapshot() is None


def test_what_a_watch_has_not_told() -> None:
    def pool(name: str, revision: int, **labels: str) -> IPPool:
        made = convert(IPPool, {"metadata": {"name": name, "labels": labels}, "spec": {"cidr": "10.0.0.0/16"}})
        return changed(made, resource_version=str(revision))

    shelf = Shelf()
    shelf.begin([recorded("ADDED", pool("a", 3)), recorded("ADDED", pool("b", 4))], 5)
    assert untold(shelf, [pool("a", 3), pool("b", 4)], 9) == ""
    assert untold(shelf, [pool("a", 8), pool("b", 4)], 9) == "", "nothing of it has changed but the revision"
    assert untold(shelf, [pool("a", 8, x="y"), pool("b", 4)], 9) == "IPPool a"
    assert untold(shelf, [pool("a", 3)], 9) == "the deletion of b"
    assert untold(shelf, [pool("a", 3), pool("b", 4), pool("c", 8)], 9) == "IPPool c"
    shelf.put([recorded("DELETED", pool("b", 12))])
    assert untold(shelf, [pool("a", 3), pool("b", 4)], 9) == "", "it has told of more than the list has"
