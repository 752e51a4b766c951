"""How a lease goes on, second by second, with a server that is a few lines: no sockets, no waiting."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.cni.dhcp import book, options, wire
from tortie.cni.dhcp.lease import EVERYONE, HELD, OVER, Identity, Lease, Send, State, Terms, Timing, read_terms
from tortie.cni.dhcp.wire import ANY, Kind, Message, Option
from tortie.cni.spec import Call, CniError

MAC = bytes.fromhex("02005e100001")
WHO = Identity(MAC, b"\0ctr1/net1/eth0", {Option.HOST_NAME: b"blue"}, (3, 1), broadcast=True)
SERVER, ADDRESS = "10.9.0.1", "10.9.0.50"


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


GRANT = {
    Option.SERVER: wire.packed(SERVER),
    Option.SUBNET_MASK: wire.packed("255.255.255.0"),
    Option.ROUTERS: wire.packed(SERVER),
    Option.LEASE_SECONDS: number(1000),
}


def reply(to: Message, kind: Kind, yiaddr: str = ADDRESS, **options: bytes) -> Message:
    body: dict[int, bytes] = {Option.MESSAGE_TYPE: bytes((kind,)), **GRANT}
    for name, value in options.items():
        body[Option[name]] = value
    return Message(2, to.xid, to.mac, body, yiaddr=yiaddr)


def begun(now: float = 0.0, timing: Timing | None = None, seed: int = 1) -> Lease:
    return Lease(WHO, now, random.Random(seed).random, timing)


def only(sent: list[Send]) -> Send:
    assert len(sent) == 1, sent
    return sent[0]


def bound(**options: bytes) -> Lease:
    """A lease since 0 s."""
    lease = begun()
    discover = only(lease.wake(0.0)).message
    request = only(lease.hear(reply(discover, Kind.OFFER, **options), 0.0)).message
    assert lease.hear(reply(request, Kind.ACK, **options), 0.1) == []
    assert lease.state is State.BOUND
    return lease


def test_a_lease_is_got() -> None:
    lease = begun()
    discover = only(lease.wake(0.0))
    assert (discover.message.kind, discover.to, discover.source) == (Kind.DISCOVER, EVERYONE, ANY)
    assert discover.message.flags == wire.BROADCAST_FLAG
    assert discover.message.options[Option.CLIENT_ID] == b"\0ctr1/net1/eth0"
    assert discover.message.options[Option.HOST_NAME] == b"blue"
    assert discover.message.options[Option.REQUEST_LIST] == bytes((3, 1))
    assert lease.wake(0.0) == []
    request = only(lease.hear(reply(discover.message, Kind.OFFER), 0.5))
    assert (request.message.kind, request.to) == (Kind.REQUEST, EVERYONE)
    assert request.message.address(Option.REQUESTED_ADDRESS) == ADDRESS
    assert request.message.address(Option.SERVER) == SERVER
    assert lease.hear(reply(request.message, Kind.ACK), 0.6) == []
    assert lease.terms == Terms(ADDRESS, 24, SERVER, 1000, 500, 850, SERVER, (("0.0.0.0/0", SERVER),))
    assert (lease.state, lease.due, lease.ends) == (State.BOUND, 500.5, 1000.5)  # since it was asked for


def test_what_is_not_for_us_changes_nothing() -> None:
    lease = begun()
    discover = only(lease.wake(0.0)).message
    offer = reply(discover, Kind.OFFER)
    for other in (
        replace(offer, xid=offer.xid ^ 1),
        replace(offer, mac=bytes(6)),
        replace(offer, op=1),
        reply(discover, Kind.ACK),
        reply(discover, Kind.NAK),
        replace(offer, options={}),
        replace(offer, yiaddr=ANY),
        reply(discover, Kind.OFFER, SUBNET_MASK=b"\xff\0\xff\0"),
        reply(discover, Kind.OFFER, CLASSLESS_ROUTES=b"\x20"),
    ):
        assert lease.hear(other, 0.1) == []
        assert lease.state is State.SELECTING
    assert only(lease.hear(offer, 0.2)).message.kind == Kind.REQUEST


def test_pauses_grow_and_are_uneven_until_it_gives_up() -> None:
    timing = Timing(longest_pause=16, give_up=100)
    pauses: dict[int, list[float]] = {}
    for seed in range(20):
        lease, now, sent = begun(timing=timing, seed=seed), 0.0, []
        while lease.state is not State.FAILED:
            sent += [(now, only(lease.wake(now)).message)] if lease.due < 100 or not sent else lease.wake(now)
            now = lease.due if lease.due != float("inf") else now
            if now >= 100:
                assert lease.wake(now) == []
        assert len({message.xid for _, message in sent}) == 1
        assert [message.secs for _, message in sent] == [int(at) for at, _ in sent]
        times = [at for at, _ in sent]
        for i, (a, b) in enumerate(pairwise(times)):
            pauses.setdefault(i, []).append(b - a)
        assert lease.why == "no more tries"
    for i, nominal in enumerate([0.5, 1, 2, 4, 8, 16]):
        assert all(0.75 * nominal <= each <= 1.25 * nominal for each in pauses[i])
        assert len({round(each, 3) for each in pauses[i]}) > 5


def test_what_nobody_answers_is_counted() -> None:
    lease = begun()
    for count in range(1, 5):
        (sent,) = lease.wake(lease.due)
        assert lease.unanswered == count
    lease.hear(reply(sent.message, Kind.OFFER), lease.due)
    assert lease.unanswered == 0


def test_an_offer_that_comes_to_nothing() -> None:
    lease = begun(timing=Timing(patience=5))
    discover = only(lease.wake(0.0)).message
    lease.hear(reply(discover, Kind.OFFER), 1.0)
    kinds, now = [], 1.0
    while now < 6:
        now = lease.due
        kinds.append(only(lease.wake(now)).message.kind)
    assert kinds[-1] == Kind.DISCOVER
    assert set(kinds[:-1]) == {Kind.REQUEST}


def test_a_refusal_begins_again_but_not_at_once() -> None:
    lease = begun()
    request = only(lease.hear(reply(only(lease.wake(0.0)).message, Kind.OFFER), 0.1)).message
    elsewhere = reply(request, Kind.NAK, SERVER=wire.packed("10.9.0.99"))
    assert lease.hear(elsewhere, 0.2) == []
    assert lease.state is State.REQUESTING
    assert lease.hear(reply(request, Kind.NAK), 0.2) == []
    assert (lease.state, lease.wake(0.2)) == (State.SELECTING, [])
    assert only(lease.wake(lease.due)).message.xid != request.xid


def test_renewed_by_its_server() -> None:
    lease = bound()
    assert lease.wake(499.9) == []
    renewal = only(lease.wake(500.0))
    assert (lease.state, renewal.to, renewal.source) == (State.RENEWING, SERVER, ADDRESS)
    assert renewal.message.ciaddr == ADDRESS
    assert renewal.message.flags == 0
    assert Option.SERVER not in renewal.message.options
    assert Option.REQUESTED_ADDRESS not in renewal.message.options
    assert lease.due == 675.0  # half of what is left until T2
    again = only(lease.wake(675.0))
    assert again.message.xid == renewal.message.xid
    assert lease.hear(reply(again.message, Kind.ACK), 676.0) == []
    assert (lease.state, lease.due, lease.ends) == (State.BOUND, 1000.0, 1500.0)


def test_rebound_by_anybody() -> None:
    lease = bound()
    only(lease.wake(500.0))
    rebinding = only(lease.wake(850.0))
    assert (lease.state, rebinding.to) == (State.REBINDING, EVERYONE)
    other = reply(rebinding.message, Kind.ACK, SERVER=wire.packed("10.9.0.2"))
    lease.hear(other, 851.0)
    assert lease.terms is not None
    assert (lease.state, lease.terms.server, lease.ends) == (State.BOUND, "10.9.0.2", 1850.0)


def test_lost_when_nobody_answers() -> None:
    lease, now, sent = bound(), 0.0, 0
    while lease.state not in OVER:
        now = lease.due
        sent += len(lease.wake(now))
    assert (lease.state, now, lease.why) == (State.EXPIRED, 1000.0, "the lease has expired")
    assert 5 <= sent <= 15
    assert lease.wake(2000.0) == []
    assert lease.release(2000.0) is None


@pytest.mark.parametrize(
    ("kind", "yiaddr", "why"),
    [
        (Kind.NAK, ANY, "the server refused to renew the lease: go away"),
        (Kind.ACK, "10.9.0.99", "the server now gives 10.9.0.99 instead of 10.9.0.50"),
    ],
)
def test_lost_when_the_server_says_so(kind: Kind, yiaddr: str, why: str) -> None:
    lease = bound()
    renewal = only(lease.wake(500.0)).message
    lease.hear(reply(renewal, kind, yiaddr, MESSAGE=b"go away"), 500.1)
    assert (lease.state, lease.why) == (State.EXPIRED, why)


def test_released() -> None:
    lease = bound()
    message = lease.release(5.0)
    assert message is not None
    assert (message.message.kind, message.to, message.source) == (Kind.RELEASE, SERVER, ADDRESS)
    assert message.message.options[Option.CLIENT_ID] == b"\0ctr1/net1/eth0"
    assert lease.release(6.0) is None
    assert begun().release(0.0) is None


@pytest.mark.parametrize(
    ("said", "times"),
    [
        ({}, (1000, 500, 850)),
        ({"RENEWAL_SECONDS": number(100), "REBINDING_SECONDS": number(200)}, (1000, 100, 200)),
        ({"RENEWAL_SECONDS": number(900)}, (1000, 500, 850)),
        ({"REBINDING_SECONDS": number(2000)}, (1000, 500, 850)),
        ({"REBINDING_SECONDS": number(400)}, (1000, 200, 400)),
        ({"LEASE_SECONDS": b""}, (3600, 1800, 3060)),
        ({"LEASE_SECONDS": number(0xFFFFFFFF)}, (float("inf"),) * 3),
    ],
)
def test_times(said: dict[str, bytes], times: tuple[float, ...]) -> None:
    lease = bound(**said)
    assert lease.terms is not None
    assert (lease.terms.seconds, lease.terms.renewal, lease.terms.rebinding) == times


def test_routes() -> None:
    two = wire.packed("10.77.0.0") + wire.packed("10.9.0.2")
    lease = bound(STATIC_ROUTES=two)
    assert lease.terms is not None
    assert lease.terms.routes == (("10.77.0.0/8", "10.9.0.2"), ("0.0.0.0/0", SERVER))
    lease = bound(STATIC_ROUTES=two, CLASSLESS_ROUTES=bytes.fromhex("180a4d0000000000"))
    assert lease.terms is not None
    assert lease.terms.routes == (("10.77.0.0/24", "0.0.0.0"),)
    assert options.result(lease.terms, 7).dump("1.0.0") == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.9.0.50/24", "gateway": "10.9.0.1"}],
        "routes": [{"dst": "10.77.0.0/24", "priority": 7, "scope": 253}],
    }


def test_an_answer_without_a_mask() -> None:
    answer = Message(2, 1, MAC, {Option.SERVER: wire.packed(SERVER)}, yiaddr=ADDRESS)
    with pytest.raises(ValueError, match="DHCP option Subnet Mask not found in DHCPACK"):
        read_terms(answer)
    assert read_terms(answer, bound().terms).length == 24


@given(st.data())
def test_whatever_happens_time_goes_on(data: st.DataObject) -> None:
    """A lease never waits for the past, says nothing once it is over, and is not held past its end."""
    lease, now = begun(seed=data.draw(st.integers(0, 9))), 0.0
    last: Message | None = None
    for _ in range(40):
        if lease.state in OVER:
            assert lease.wake(now) == []
            break
        if data.draw(st.booleans()) and last is not None:
            kind = data.draw(st.sampled_from([Kind.OFFER, Kind.ACK, Kind.NAK]))
            seconds = number(data.draw(st.integers(1, 5000)))
            sent = lease.hear(reply(last, kind, LEASE_SECONDS=seconds), now)
        else:
            now = max(now, lease.due)
            sent = lease.wake(now)
            assert lease.due > now
        last = sent[-1].message if sent else last
        assert lease.state not in HELD or now <= lease.ends or lease.due <= now  # heard so late that it ends at once


# --- the book, and the configuration ------------------------------------------------------------------------------


def test_a_lease_is_remembered(tmp_path: Any) -> None:
    lease = bound(CLASSLESS_ROUTES=bytes.fromhex("180a4d0000000000"), DNS=wire.packed("1.1.1.1"))
    assert lease.terms is not None
    entry = book.Entry("net1", "ctr1", "eth0", "/run/netns/x", 42, WHO, lease.terms, lease.bound)
    path = str(tmp_path / "leases")
    assert book.load(path) == []
    book.save(path, [entry])
    assert book.load(path) == [entry]
    again = Lease.resumed(WHO, lease.terms, 0.0, random.random)
    assert (again.due, again.ends, again.state) == (500.0, 1000.0, State.BOUND)
    assert only(again.wake(600.0)).to == SERVER
    for broken in ("", "[]", '{"boot": 1}', json.dumps({"leases": [{}], "boot": book.boot_id()})):
        (tmp_path / "leases").write_text(broken)
        assert book.load(path) == []
    book.save(path, [entry])
    (tmp_path / "leases").write_text((tmp_path / "leases").read_text().replace(book.boot_id(), "former"))
    assert book.load(path) == []


def call(ipam: dict[str, Any], args: str = "") -> Call:
    return Call("ADD", "c" * 300, ifname="eth0", network="net1", args_text=args, conf={"ipam": ipam})


def test_wishes() -> None:
    found = options.wishes(call({"provide": [{"option": "host-name", "value": "a", "fromArg": "X"}], "priority": 5}))
    assert (found.provide, found.request, found.priority) == ({12: b"a"}, (3, 1), 5)
    found = options.wishes(call({"provide": [{"option": "12", "value": "a", "fromArg": "X"}]}, "Y=2;X=b"))
    assert found.provide == {12: b"b"}
    found = options.wishes(call({"request": [{"option": "121"}, {"skipDefault": True}]}))
    assert found.request == (121,)
    found = options.wishes(call({"request": [{"option": "routers"}, {"option": "6"}]}))
    assert found.request == (3, 6, 1)
    for wrong in ("dns", "-1", "255", "", "1.5"):
        with pytest.raises(CniError, match="can not parse option"):
            options.wishes(call({"provide": [{"option": wrong, "value": "a"}]}))
    with pytest.raises(CniError, match="value too long"):
        options.wishes(call({"provide": [{"option": "12", "value": "ä" * 128}]}))
    with pytest.raises(CniError, match="provide is not a list of objects"):
        options.wishes(call({"provide": ["x"]}))
    assert len(options.client_id("c" * 300, "net1", "eth0")) == 254
