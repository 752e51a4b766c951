"""What a node does with an address that it is elected for: probes, answers, announcements, on a clock of the test's."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.addr import IP
from tortie.kernel.addresses import Address
from tortie.kernel.links import Link
from tortie.proxy.layer2.claims import AT_ONCE, DEFENCE, LATER, PATIENT, REMEMBERED, SOON, Claims, some
from tortie.proxy.layer2.frames import Heard, announcements, probe, read
from tortie.proxy.layer2.ports import Port, ports_of

PORT = Port(2, "eth0", bytes.fromhex("020000000001"))
SECOND = Port(3, "eth1", bytes.fromhex("020000000002"))
RIVAL = bytes.fromhex("0200000000ee")
VIP, CLIENT, VIP6 = ip_address("192.0.2.100"), ip_address("192.0.2.9"), ip_address("fd00::100")
QUESTION = Heard(RIVAL, VIP, CLIENT, CLIENT)


def run(claims: Claims, now: float, until: float) -> Iterator[tuple[float, Port, bytes]]:
    """What is sent, and when."""
    while (at := claims.next()) is not None and at <= until:
        now = max(now, at)
        for port, frame in claims.due(now):
            yield now, port, frame


def held(ip: IP = VIP, *ports: Port) -> Claims:
    claims = Claims()
    claims.want({(ip, port) for port in ports or (PORT,)}, 0.0)
    list(run(claims, 0.0, 50.0))
    return claims


@pytest.mark.parametrize("ip", [VIP, VIP6], ids=str)
def test_probed_twice_then_announced_three_times(ip: IP) -> None:
    claims = Claims()
    claims.want({(ip, PORT)}, 10.0)
    sent = list(run(claims, 10.0, 100.0))
    told = announcements(ip, PORT.mac)
    assert sent == [
        (10.0, PORT, probe(ip, PORT.mac)),
        (10.25, PORT, probe(ip, PORT.mac)),
        *((at, PORT, frame) for at in (10.5, 11.5, 12.5) for frame in told),
    ]
    assert claims.answering() == {ip: "eth0"}
    assert claims.problems(13.0) == ()


def test_nothing_is_answered_before_the_probes_are_over() -> None:
    claims = Claims()
    claims.want({(VIP, PORT)}, 0.0)
    list(run(claims, 0.0, 0.4))
    assert claims.hear(PORT, QUESTION, 0.4) is None
    list(run(claims, 0.4, 0.5))
    answer = claims.hear(PORT, QUESTION, 0.5)
    assert answer is not None
    assert read(answer) == Heard(PORT.mac, None, VIP, VIP)
    assert claims.hear(SECOND, QUESTION, 0.5) is None
    assert claims.hear(PORT, Heard(RIVAL, CLIENT, VIP6), 0.5) is None


def test_another_hosts_address_is_probed_again_and_told_in_one_line() -> None:
    claims = Claims()
    claims.macs = frozenset({PORT.mac, SECOND.mac})
    ips = [ip_address(int(VIP) + n) for n in range(5)]
    claims.want({(ip, PORT) for ip in ips}, 0.0)
    probes: list[float] = []
    now = 0.0
    while len(probes) < 5 * (PATIENT + 1):
        at = claims.next()
        assert at is not None
        now = max(now, at)
        for _, frame in claims.due(now):
            heard = read(frame)
            assert heard is not None
            assert heard.claimed is None  # it announces nothing
            probes.append(now)
            claims.hear(PORT, Heard(RIVAL, None, heard.asked, heard.asked), now)
    assert sorted(set(probes)) == [0.0, SOON, 2 * SOON, 2 * SOON + LATER]
    assert claims.answering() == {}
    (line,) = claims.problems(now)
    assert line.startswith("eth0: 192.0.2.100, 192.0.2.101, 192.0.2.102 and 2 more not answered for, because 02:00:")
    sent = list(run(claims, now, now + 2 * LATER))
    assert len(claims.answering()) == 5
    assert sent
    assert claims.problems(now) == ()


def test_the_first_refusals_are_no_problem_yet() -> None:
    """The one that has just been relieved may not have heard of it."""
    claims = Claims()
    claims.want({(VIP, PORT)}, 0.0)
    claims.due(0.0)
    claims.hear(PORT, Heard(RIVAL, None, VIP, VIP), 0.1)
    assert claims.problems(0.2) == ()
    list(run(claims, 0.1, 2.0))
    assert claims.answering() == {VIP: "eth0"}


def test_what_is_held_is_defended_now_and_then() -> None:
    claims = held()
    claim = Heard(RIVAL, None, VIP, VIP)
    for now, sends in ((100.0, 2), (101.0, 0), (100.0 + DEFENCE, 2)):
        claims.hear(PORT, claim, now)
        assert len(claims.due(now)) == sends
    (line,) = claims.problems(111.0)
    assert line == f"eth0: {RIVAL.hex(':')} says that it has 192.0.2.100, too, which this node answers for"
    assert claims.problems(110.0 + REMEMBERED) == ()
    assert claims.answering() == {VIP: "eth0"}


@pytest.mark.parametrize("heard", [Heard(RIVAL, None, VIP, VIP), Heard(RIVAL, VIP)])
def test_in_doubt_whoever_claims_or_probes_has_it(heard: Heard) -> None:
    claims = held()
    assert claims.hear(PORT, QUESTION, 100.0, doubtful=True) is not None
    assert claims.hear(PORT, heard, 100.0, doubtful=True) is None
    assert claims.answering() == {}
    assert claims.hear(PORT, QUESTION, 100.0) is None


def test_what_this_node_says_itself_is_nobody_elses_claim() -> None:
    claims = held(VIP, PORT, SECOND)
    claims.macs = frozenset({PORT.mac, SECOND.mac})
    assert claims.answering() == {VIP: "eth0, eth1"}
    assert claims.hear(SECOND, Heard(PORT.mac, None, VIP, VIP), 60.0) is None
    assert claims.problems(60.0) == ()


def test_announced_again() -> None:
    claims = held()
    claims.announce_again(100.0)
    assert [at for at, _, _ in run(claims, 100.0, 200.0)] == [100.0, 100.0, 101.0, 101.0, 102.0, 102.0]


def test_thousands_are_handed_out_in_parts() -> None:
    claims = Claims()
    claims.want({(ip_address(int(VIP) + n), PORT) for n in range(1000)}, 0.0)
    parts = []
    while (at := claims.next()) is not None and at <= 0.0:
        parts.append(len(claims.due(0.0)))
    assert sum(parts) == 1000
    assert max(parts) <= AT_ONCE


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["want", "drop", "claim", "probe", "ask", "doubt", "wait"]),
        st.sampled_from([VIP, VIP6]),
        st.floats(0, 3),
    ),
    max_size=40,
)


@given(STEPS)
@settings(deadline=None)
def test_whatever_happens_only_what_is_wanted_is_answered(steps: list[tuple[str, IP, float]]) -> None:
    claims, wanted, now = Claims(), set[tuple[IP, Port]](), 0.0
    claimed = dict.fromkeys((VIP, VIP6), float("-inf"))
    for verb, ip, pause in steps:
        now += pause
        list(run(claims, now - pause, now))
        asked = Heard(RIVAL, ip, CLIENT)
        if verb in ("want", "drop"):
            wanted = wanted | {(ip, PORT)} if verb == "want" else wanted - {(ip, PORT)}
            claims.want(wanted, now)
        elif verb in ("claim", "doubt"):
            claims.hear(PORT, Heard(RIVAL, None, ip, ip), now, doubtful=verb == "doubt")
            claimed[ip] = now if (ip, PORT) not in claims.held else claimed[ip]
        answer = claims.hear(PORT, asked if verb != "probe" else Heard(RIVAL, ip), now)
        if answer is not None:
            assert (ip, PORT) in wanted
            assert now - claimed[ip] >= 0.25
        assert set(claims.places) <= wanted
    claims.want(wanted, now)
    list(run(claims, now, now + 60))
    assert claims.held == wanted


def test_a_few_of_many() -> None:
    assert some([VIP6, VIP]) == "192.0.2.100, fd00::100"


# --- ports ------------------------------------------------------------------------------------------------------------


def link(index: int, name: str, mac: str = "02:00:00:00:00:01", *, up: bool = True, carrier: bool = True) -> Link:
    return Link(index, name, mac=mac, up=up, carrier=carrier)


def test_ports_are_where_others_ask() -> None:
    links = {
        1: link(1, "lo", "00:00:00:00:00:00"),
        2: link(2, "eth0"),
        3: link(3, "eth1", "02:00:00:00:00:02"),
        4: link(4, "eth2", carrier=False),
        5: link(5, "tun0", ""),
        6: link(6, "eth3", up=False),
    }
    addresses = {
        1: [Address(1, "127.0.0.1/8")],
        2: [Address(2, "192.0.2.1/24"), Address(2, "192.0.2.2/24"), Address(2, "fe80::1/64", "link")],
        3: [Address(3, "192.0.2.3/25"), Address(3, "fd00::3/64"), Address(3, "192.0.2.200/32")],
        **{n: [Address(n, "192.0.2.4/24")] for n in (4, 5, 6)},
    }
    found = ports_of(links, addresses)
    assert [port.name for port in found.of(ip_address("192.0.2.1"))] == ["eth0", "eth1"]
    assert [port.name for port in found.of(ip_address("192.0.2.130"))] == ["eth0"]
    assert [port.name for port in found.of(VIP6)] == ["eth1"]
    assert found.of(ip_address("127.0.0.2")) == found.of(ip_address("fe80::2")) == ()
    assert ip_address("192.0.2.4") in found.own
    assert [str(net) for net in found.networks([VIP, VIP6])] == ["192.0.2.0/24", "fd00::/64"]
    assert found.networks([ip_address("203.0.113.1")]) == ()
