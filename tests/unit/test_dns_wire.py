"""Questions and answers as bytes: what is refused, what fits, what no bytes whatever may do; and what others told."""

from __future__ import annotations

import struct
from collections.abc import Awaitable
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.dns import forward, wire
from tortie.dns.forward import Asked, Memory, Told, Upstreams, asked
from tortie.dns.main import upstreams_of
from tortie.dns.names import Names
from tortie.dns.places import Place, place, places
from tortie.dns.resolver import Resolver
from tortie.model.k8s import Namespace
from tortie.model.meta import Metadata
from tortie.model.service import SERVICE_NAME, Endpoint, EndpointSlice, Service, ServicePort, ServiceSpec

WEB = "web.red.svc.cluster.local"


def known(endpoints: int = 0) -> Names:
    found = Names("cluster.local")
    found.put(Namespace(metadata=Metadata(name="red")))
    spec = ServiceSpec(cluster_ip="10.96.0.5", ports=(ServicePort(name="http", port=80),))
    found.put(Service(metadata=Metadata(name="web", namespace="red"), spec=spec))
    if endpoints:
        found.put(Service(metadata=Metadata(name="many", namespace="red"), spec=ServiceSpec(cluster_ip="None")))
        each = tuple(Endpoint(addresses=(f"10.244.{n // 250}.{n % 250 + 1}",)) for n in range(endpoints))
        metadata = Metadata(name="many-a", namespace="red", labels={SERVICE_NAME: "many"})
        found.put(EndpointSlice(metadata=metadata, address_type="IPv4", endpoints=each))
    return found


def resolver(names: Names | None = None, *, ready: bool = True) -> Resolver:
    return Resolver(names or known(), Upstreams(()), ttl=5, ready=lambda: ready)


def reply(to: Resolver, data: bytes, *, datagram: bool = True) -> bytes | None:
    found = to.reply(data, datagram=datagram)
    assert not isinstance(found, Awaitable)
    return found


def told(to: Resolver, query: dns.message.Message, *, datagram: bool = True) -> dns.message.Message:
    data = reply(to, query.to_wire(), datagram=datagram)
    assert data is not None
    found = dns.message.from_wire(data)
    assert found.id == query.id
    return found


def query(name: str = WEB, kind: str = "A", **how: object) -> dns.message.Message:
    return dns.message.make_query(name, kind, **how)  # type: ignore[arg-type]


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_an_answer_has_the_questions_number_name_and_authority() -> None:
    found = told(resolver(), query("Web.RED.svc.cluster.LOCAL"))
    assert found.rcode() == dns.rcode.NOERROR
    assert dns.flags.to_text(found.flags) == "QR AA RD"
    assert found.answer[0].to_text() == "Web.RED.svc.cluster.LOCAL. 5 IN A 10.96.0.5"
    assert found.question[0].name.to_text() == "Web.RED.svc.cluster.LOCAL."
    assert found.edns < 0


def test_the_same_question_again_has_its_own_number_and_its_own_spelling() -> None:
    one = resolver()
    first, again, other = query(id=1), query(id=2), query(WEB.upper(), id=3)
    answers = [told(one, each).answer[0].to_text() for each in (first, again, other)]
    assert answers[0] == answers[1] != answers[2]
    one.names.drop(Service, "red", "web")
    assert told(one, again).rcode() == dns.rcode.NXDOMAIN
    assert one.requests["udp", "A"] == 4
    assert one.responses == {"NOERROR": 3, "NXDOMAIN": 1}


def test_no_such_name_and_no_such_data_come_with_the_zones_soa() -> None:
    one = resolver()
    for name, kind, rcode in (("x" + WEB, "A", "NXDOMAIN"), (WEB, "AAAA", "NOERROR"), (WEB, "TYPE65280", "NOERROR")):
        found = told(one, query(name, kind))
        assert dns.rcode.to_text(found.rcode()) == rcode
        assert not found.answer
        (soa,) = found.authority
        assert (soa.rdtype, soa.ttl, soa[0].minimum) == (dns.rdatatype.SOA, 5, 5)


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("example.com", "A", "REFUSED"),
        ("cluster.local", "AXFR", "REFUSED"),
        ("cluster.local", "IXFR", "REFUSED"),
        (WEB, "TSIG", "NOTIMP"),
        (WEB, "TKEY", "NOTIMP"),
    ],
)
def test_refused(name: str, kind: str, rcode: str) -> None:
    asked = dns.message.Message(id=5)
    asked.question = [dns.rrset.RRset(dns.name.from_text(name), 1, dns.rdatatype.from_text(kind))]
    found = reply(resolver(), asked.to_wire())
    assert found is not None
    assert found[:2] == b"\0\5"
    assert dns.rcode.to_text(dns.rcode.Rcode(found[3] & 15)) == rcode


def test_another_class_is_refused() -> None:
    assert told(resolver(), query("version.bind", "TXT", rdclass="CH")).rcode() == dns.rcode.REFUSED


def test_before_the_cluster_is_known_no_name_of_it_is_denied() -> None:
    one = resolver(ready=False)
    assert told(one, query()).rcode() == dns.rcode.SERVFAIL
    assert told(one, query("nosuch." + WEB)).rcode() == dns.rcode.SERVFAIL


def test_a_version_of_edns_that_is_not_spoken_is_said() -> None:
    found = told(resolver(), query(use_edns=1))
    assert (found.rcode(), found.edns) == (dns.rcode.BADVERS, 0)
    assert not found.answer


def header(*, flags: int = 0x0100, questions: int = 1, number: int = 7) -> bytes:
    return struct.pack("!6H", number, flags, questions, 0, 0, 0)


ASKED = b"\3web\0\0\1\0\1"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", None),
        (header()[:11], None),
        (header(flags=0x8180) + ASKED, None),  # an answer
        (header(questions=0), "FORMERR"),
        (header(questions=2) + ASKED * 2, "FORMERR"),
        (header() + ASKED[:-1], "FORMERR"),
        (header() + ASKED + b"x", "FORMERR"),
        (header() + b"\xc0\x0c\0\1\0\1", "FORMERR"),  # a name that is its own end
        (header() + b"\x40a\0\0\1\0\1", "FORMERR"),  # a kind of label that there is not
        (header() + (b"\x3f" + b"a" * 63) * 5 + b"\0\0\1\0\1", "FORMERR"),  # a name of 320 bytes
        (header(flags=0x2900) + ASKED, "NOTIMP"),  # an update
        (header(flags=0x2000) + ASKED, "NOTIMP"),  # a notice
    ],
)
def test_malformed(data: bytes, code: str | None) -> None:
    found = reply(resolver(), data)
    if code is None:
        assert found is None
    else:
        assert found is not None
        assert found[:2] == data[:2]
        assert found[2] & 0x80
        assert found[2] & 0x79 == data[2] & 0x79, "the kind and the wish for recursion come back"
        assert dns.rcode.to_text(dns.rcode.Rcode(found[3] & 15)) == code


def pierced(at: int, hole: bytes) -> bytes:
    """A good question with other bytes in it."""
    whole = query(use_edns=0, payload=4096).to_wire()
    return whole[:at] + hole + whole[at + len(hole) :]


BYTES = st.one_of(
    st.binary(max_size=80),
    st.binary(max_size=60).map(lambda tail: header() + tail),
    st.builds(pierced, st.integers(0, 60), st.binary(min_size=1, max_size=6)),
)


@settings(max_examples=400)
@given(BYTES, st.booleans())
def test_no_bytes_do_any_harm(data: bytes, datagram: bool) -> None:
    found = reply(resolver(), data, datagram=datagram)
    if len(data) < 12 or data[2] & 0x80:
        assert found is None
    else:
        assert found is not None
        assert found[:2] == data[:2]
        assert len(found) <= (wire.PAYLOAD if datagram else 65535)


LABEL = st.text(st.sampled_from("aZ0-_*.\\ \0é"), min_size=1, max_size=20).map(lambda text: text.encode()[:63])


@given(st.lists(LABEL, max_size=6), st.sampled_from(["A", "PTR", "SRV", "ANY", "TXT"]), st.booleans())
def test_whatever_name_is_asked_for_it_is_written_back_as_it_was(labels: list[bytes], kind: str, inside: bool) -> None:
    name = dns.name.Name([*labels, *([b"red", b"svc", b"cluster", b"local"] if inside else []), b""])
    found = told(resolver(), dns.message.make_query(name, kind))
    assert found.question[0].name.labels == name.labels
    assert found.rcode() in ((dns.rcode.NXDOMAIN, dns.rcode.NOERROR) if inside else (dns.rcode.REFUSED,))


# --- what fits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "size"), [(None, 512), (0, 512), (800, 800), (4096, wire.PAYLOAD)], ids=["plain", "0", "800", "4096"]
)
def test_what_does_not_fit_into_a_datagram_is_cut_off_and_said_so(payload: int | None, size: int) -> None:
    how = {} if payload is None else {"use_edns": 0, "payload": payload}
    asked = query("many.red.svc.cluster.local", **how)
    data = reply(resolver(known(300)), asked.to_wire())
    assert data is not None
    found = dns.message.from_wire(data)
    assert found.flags & dns.flags.TC
    assert size - 60 < len(data) <= size
    assert len(found.answer[0]) > 25, "as many as fit: there are those who never ask again"
    assert (found.payload if payload is not None else 0) == (wire.PAYLOAD if payload is not None else 0)
    whole = told(resolver(known(300)), asked, datagram=False)
    assert len(whole.answer[0]) == 300
    assert not whole.flags & dns.flags.TC


def test_more_than_any_message_holds_is_cut_off_over_tcp_too() -> None:
    found = told(resolver(known(6000)), query("many.red.svc.cluster.local"), datagram=False)
    assert found.flags & dns.flags.TC
    assert len(found.answer[0]) > 4000


def test_addresses_come_in_any_order() -> None:
    one = resolver(known(8))
    first = {told(one, query("many.red.svc.cluster.local")).answer[0][0].address for _ in range(60)}
    assert len(first) > 2


# --- what others told -------------------------------------------------------------------------------------------------


def rrset(text: str) -> dns.rrset.RRset:
    name, ttl, kind, *data = text.split(maxsplit=3)
    return dns.rrset.from_text(name, int(ttl), "IN", kind, *data)


ADDRESS, SOA = rrset("a.example. 300 A 192.0.2.1"), rrset("example. 900 SOA ns.example. x.example. 1 2 3 4 60")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (Told(dns.rcode.NOERROR, (ADDRESS,)), 300),
        (Told(dns.rcode.NOERROR, (ADDRESS, rrset("b.example. 7 A 192.0.2.1"))), 7),
        (Told(dns.rcode.NOERROR, (rrset("a.example. 90000 A 192.0.2.1"),)), forward.LONGEST),
        (Told(dns.rcode.NOERROR, (rrset("a.example. 0 A 192.0.2.1"),)), 0),
        (Told(dns.rcode.NXDOMAIN, authority=(SOA,)), 60),
        (Told(dns.rcode.NOERROR, authority=(SOA,)), 60),
        (Told(dns.rcode.NXDOMAIN), 0),
        (Told(dns.rcode.SERVFAIL), forward.FAILURE),
    ],
)
def test_for_how_long_it_is_remembered(said: Told, seconds: int) -> None:
    assert forward.lifetime(said) == seconds


def what(name: str = "a.example.") -> Asked:
    return Asked(dns.name.from_text(name), dns.rdatatype.A)


def test_what_is_remembered_grows_old_and_goes() -> None:
    now = 100.0
    memory = Memory(clock=lambda: now)
    memory.put(what(), Told(dns.rcode.NOERROR, (ADDRESS,)))
    now += 100.5
    found = memory.get(what("A.Example."))
    assert found is not None
    assert found.answer[0].ttl == 200
    assert memory.get(Asked(what().name, dns.rdatatype.A, dnssec=True)) is None
    now += 200
    assert memory.get(what()) is None
    assert len(memory) == 0


def test_memory_has_an_end_and_the_least_used_goes_first() -> None:
    memory = Memory(most=2)
    for name in ("a", "b"):
        memory.put(what(name), Told(dns.rcode.NOERROR, (ADDRESS,)))
    memory.get(what("a"))
    memory.put(what("c"), Told(dns.rcode.NOERROR, (ADDRESS,)))
    assert [memory.get(what(name)) is not None for name in "abc"] == [True, False, True]


def test_flags_of_a_question_are_passed_on() -> None:
    one = query("example.com", want_dnssec=True)
    one.flags |= dns.flags.CD | dns.flags.AD
    passed = asked(one, one.question[0].name, dns.rdatatype.A)
    assert (passed.flags, passed.dnssec) == (dns.flags.RD | dns.flags.CD, True)


# --- who is asked -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", Place("10.0.0.1")),
        ("10.0.0.1:99", Place("10.0.0.1", 99)),
        ("fd00::1", Place("fd00::1")),
        ("[fd00::1]", Place("fd00::1")),
        ("[fd00::1]:99", Place("fd00::1", 99)),
        (":99", Place("", 99)),
    ],
)
def test_a_place(text: str, expected: Place) -> None:
    assert place(text, "--listen", anywhere=True) == expected


@pytest.mark.parametrize(
    "text", ["", "x", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:65536", "[fd00::1", "[x]:1", "[fd00::1]9"]
)
def test_what_is_no_place_is_said_in_a_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--forward: .*(write ADDRESS|names no address)"):
        places(text, "--forward")


def test_servers_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# x\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver oops\nsearch a\nnameserver 192.0.2.1\n"
    )
    assert forward.of_resolv_conf(file) == (Place("192.0.2.1"), Place("fe80::1"))
    assert forward.of_resolv_conf(tmp_path / "none") == ()
    assert forward.servers("none", "") == ()


def test_it_does_not_ask_itself(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 127.0.0.1\nnameserver 192.0.2.1\n")
    anywhere = (Place("", 53),)
    assert upstreams_of("", anywhere, file) == (Place("192.0.2.1"),)
    assert upstreams_of("127.0.0.1:99", anywhere) == (Place("127.0.0.1", 99),)
    assert upstreams_of("127.0.0.1", (Place("127.0.0.2"),)) == (Place("127.0.0.1"),)
    with pytest.raises(ConfigError, match=r"^--forward: 127\.0\.0\.1:53 is this server itself"):
        upstreams_of("192.0.2.1,127.0.0.1", anywhere)
