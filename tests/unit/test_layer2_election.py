"""Which node answers for an address, and who is alive: values, no kernel."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.addr import IP, Net
from tortie.base.errors import ConfigError
from tortie.calc.proxy.election import (
    DEAD,
    FORGOTTEN,
    FRESH,
    NAMESPACE,
    PREFIX,
    Roll,
    asks_layer2,
    holders,
    networks_of,
    written,
)
from tortie.model.document import check
from tortie.model.ipam import ANNOUNCE, IPPool, IPPoolSpec
from tortie.model.lease import Lease, LeaseSpec
from tortie.model.meta import Metadata

HALL: tuple[Net, ...] = (ip_network("192.0.2.0/24"), ip_network("fd00::/64"))
IPS: list[IP] = [*map(ip_address, range(0xC0000200, 0xC0000300)), *(ip_address(0xFD << 120 | n) for n in range(256))]


def pool(said: str | None, *uses: str) -> IPPool:
    annotations = {} if said is None else {ANNOUNCE: said}
    return IPPool(
        metadata=Metadata(name="lb", annotations=annotations),
        spec=IPPoolSpec(cidr="192.0.2.0/24", allowed_uses=uses),  # type: ignore[arg-type]
    )


# --- pools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "uses", "asks"),
    [("Layer2", ["LoadBalancer"], True), ("BGP", ["LoadBalancer"], False), (None, ["LoadBalancer"], False)],
)
def test_a_pool_asks(said: str | None, uses: list[str], asks: bool) -> None:
    check(pool(said, *uses))
    assert asks_layer2(pool(said, *uses)) is asks


@pytest.mark.parametrize(
    ("said", "uses", "problem"),
    [
        ("ARP", ["LoadBalancer"], '"ARP" is not one of BGP, Layer2'),
        ("layer2", ["LoadBalancer"], '"layer2" is not one of BGP, Layer2'),
        ("Layer2", [], r"is for pools with allowedUses: \[LoadBalancer\]"),
        ("Layer2", ["Workload"], r"is for pools with allowedUses: \[LoadBalancer\]"),
    ],
)
def test_a_pool_asks_for_what_is_not_there(said: str, uses: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=r'^metadata\.annotations\["tortie\.dev/announce"\]: ' + problem + "$"):
        check(pool(said, *uses))
    assert not asks_layer2(pool(said, *uses))


# --- holders ----------------------------------------------------------------------------------------------------------


NAMES = st.sets(st.sampled_from([f"node{n}" for n in range(8)]))


@given(NAMES, st.permutations(IPS[:40]), st.randoms())
def test_every_node_reckons_alike(names: set[str], ips: list[IP], random: object) -> None:
    shuffled = sorted(names, key=lambda _: random.random())  # type: ignore[attr-defined]
    one = holders(dict.fromkeys(IPS[:40]), dict.fromkeys(sorted(names), HALL))
    assert one == holders(dict.fromkeys(ips), dict.fromkeys(shuffled, HALL[::-1]))
    assert set(one) == (set(IPS[:40]) if names else set())


@given(NAMES, st.sampled_from([f"node{n}" for n in range(8)]))
@settings(max_examples=30, deadline=None)
def test_a_node_that_goes_moves_only_what_it_had(names: set[str], gone: str) -> None:
    before = holders(dict.fromkeys(IPS), dict.fromkeys(names | {gone}, HALL))
    after = holders(dict.fromkeys(IPS), dict.fromkeys(names - {gone}, HALL))
    assert all(after[ip] == node for ip, node in before.items() if node != gone)


def test_addresses_are_shared_evenly() -> None:
    many = dict.fromkeys(ip_address(0x0A000000 + n) for n in range(10_000))
    for count in (2, 3, 7):
        live = {f"node{n}": (ip_network("10.0.0.0/8"),) for n in range(count)}
        shares = Counter(holders(many, live).values())
        assert all(0.9 < share * count / 10_000 < 1.1 for share in shares.values())


def test_the_numbers_stay_what_they_are() -> None:
    """Nodes of two versions must agree during an upgrade."""
    live = dict.fromkeys(("a", "b", "c"), HALL)
    assert "".join(holders(dict.fromkeys(IPS[:24]), live).values()) == "abacbcbcabacbaabcbcbbabc"
    assert "".join(holders(dict.fromkeys(IPS[256:280]), live).values()) == "abacccacbcbccaabbcacccac"


def test_only_who_may_and_can() -> None:
    live = {"a": (HALL[0],), "b": HALL, "c": (ip_network("198.51.100.0/24"),)}
    four, six, elsewhere = ip_address("192.0.2.1"), ip_address("fd00::1"), ip_address("203.0.113.1")
    assert holders({six: None, elsewhere: None}, live) == {six: "b"}
    assert holders({four: frozenset({"a", "c", "gone"})}, live) == {four: "a"}
    assert holders({four: frozenset({"c"}), six: frozenset()}, live) == {}


# --- the roll ---------------------------------------------------------------------------------------------------------


def lease(
    node: str, revision: int, *, holder: str | None = None, nets: str | None = None, place: str = NAMESPACE
) -> Lease:
    annotations = written(HALL) if nets is None else {"tortie.dev/layer2-networks": nets}
    return Lease(
        metadata=Metadata(name=PREFIX + node, namespace=place, resource_version=str(revision), annotations=annotations),
        spec=LeaseSpec(holder_identity=node if holder is None else holder, renew_time="1970-01-01T00:00:00.000000Z"),
    )


def test_a_node_is_alive_while_its_lease_is_seen_to_change() -> None:
    roll = Roll()
    assert roll.hear(lease("a", 1), 100.0)
    assert roll.live(100.0 + DEAD - 0.1) == {"a": HALL}
    assert roll.live(100.0 + DEAD) == {}
    assert not roll.hear(lease("a", 1), 105.0)
    assert not roll.hear(lease("a", 2), 106.0)
    assert roll.next_death(106.0) == 106.0 + DEAD
    assert roll.age("a", 107.0) == 1.0
    assert roll.live(106.0 + DEAD) == {}
    assert roll.next_death(106.0 + DEAD) is None
    assert roll.hear(lease("a", 3), 200.0)  # it is back
    assert roll.hear(lease("a", 4, nets="10.0.0.0/8"), 201.0)  # and elsewhere
    assert roll.hear(lease("a", 5), 202.0, gone=True)
    assert roll.live(202.0) == {}
    assert not roll.hear(lease("a", 5), 202.0, gone=True)
    assert roll.age("a", 202.0) == float("inf")


def test_a_list_is_not_a_renewal() -> None:
    roll = Roll()
    roll.take([lease("a", 1), lease("b", 2)], 100.0)
    roll.take([lease("a", 1), lease("b", 3)], 106.0)
    assert set(roll.live(107.5)) == {"b"}
    roll.take([lease("a", 1)], 108.0)
    assert roll.live(108.0) == {}


def test_leases_of_others_and_given_back() -> None:
    roll = Roll()
    assert not roll.hear(lease("a", 1, place="default"), 0.0)
    other = Lease(metadata=Metadata(name="tortie-controllers", namespace=NAMESPACE, resource_version="1"))
    assert not roll.hear(other, 0.0)
    roll.hear(lease("a", 2), 0.0)
    assert roll.hear(lease("a", 3, holder=""), 0.0)
    assert roll.live(0.0) == {}


def test_who_was_alive_when_the_datastore_went_is_not_dead_when_it_comes() -> None:
    roll = Roll()
    roll.hear(lease("dead", 1), 0.0)
    roll.hear(lease("a", 2), 96.0)
    roll.pardon(100.0, 150.0)
    assert set(roll.live(150.0 + DEAD - 0.1)) == {"a"}
    assert roll.live(150.0 + DEAD) == {}


def test_a_node_doubts_itself_before_it_doubts_others() -> None:
    """All lose the datastore at once, each at another moment of its two seconds."""
    for other in range(21):
        roll = Roll()
        roll.hear(lease("me", 1), 100.0)
        roll.hear(lease("other", 2), 100.0 - other / 10)
        death = roll.next_death(100.0)
        assert death is not None
        assert roll.age("me", death) > FRESH


def test_long_silent_leases_are_forgotten() -> None:
    roll = Roll()
    roll.hear(lease("a", 1), 0.0)
    roll.hear(lease("b", 2), 1.0)
    assert roll.forgotten(FORGOTTEN) == (("a", "1"),)


def test_networks_survive_what_others_write() -> None:
    assert networks_of(lease("a", 1, nets="192.0.2.0/24,nonsense,,fd00::1/64,fd00::/64")) == HALL
    assert networks_of(lease("a", 1, nets="")) == ()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans(), st.floats(0, 9)), max_size=30))
@settings(deadline=None)
def test_whatever_is_heard_news_are_told(steps: list[tuple[str, int, bool, float]]) -> None:
    """Whoever decides again only when he is told to, or when somebody dies, is never wrong."""
    roll, now, known, death = Roll(), 0.0, {}, None
    for node, revision, gone, pause in steps:
        now += pause
        if death is not None and now >= death:
            known = roll.live(now)
        if roll.hear(lease(node, revision), now, gone=gone):
            known = roll.live(now)
        death = roll.next_death(now)
        assert known == roll.live(now)
