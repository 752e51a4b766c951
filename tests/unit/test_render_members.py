"""The members of a set as nft's elements: one change after the other leads where writing them anew does."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from tortie.base.addr import Net, parse_ip, parse_net
from tortie.policy.rules import Member, PortSet, SelectorSet
from tortie.policy.selector import parse
from tortie.render.members import MemberSets

REF = SelectorSet(parse("has(a)"))
PORTS = PortSet(parse("has(a)"), 6, "http")
NETS = [
    *("10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "10.1.0.1/32", "10.0.0.0/30", "10.0.0.0/8", "0.0.0.0/0"),
    *("fd00::1/128", "fd00::2/128", "fd00::/64", "fd00::/65", "::/0"),
]
members = st.sets(st.sampled_from([parse_net(net) for net in NETS])).map(frozenset)


def by_version(sets: MemberSets) -> dict[str, tuple[str, set[str]]]:
    return {name[:2]: (one.spec, set(one.elements)) for name, one in sets.sets.items()}


def written(one: frozenset[Member]) -> MemberSets:
    sets = MemberSets(REF)
    sets.update(one)
    return sets


@given(st.lists(members, min_size=1, max_size=6))
def test_a_change_leads_where_writing_anew_does(course: list[frozenset[Member]]) -> None:
    sets = MemberSets(REF)
    for one in course:
        sets.update(one)
        assert sets.sets == written(one).sets


@given(members)
def test_no_element_lies_inside_another_and_none_is_lost(one: frozenset[Net]) -> None:
    elements = [parse_net(text) for _, texts in by_version(written(one)).values() for text in texts]
    for a, b in combinations(elements, 2):
        assert a.version != b.version or not a.overlaps(b)
    for net in one:
        assert any(net.version == it.version and net.network_address in it for it in elements)
        assert net in elements or any(net != it and it.version == net.version and net.overlaps(it) for it in elements)


def test_what_does_not_change_is_the_very_same_object() -> None:
    sets = written(frozenset(map(parse_net, ("10.0.0.1/32", "fd00::/64"))))
    before = dict(sets.sets)
    sets.update(frozenset(map(parse_net, ("10.0.0.1/32", "fd00::/64", "10.0.0.2/32"))))
    four, six = before
    assert sets.sets[six] is before[six]
    assert sets.sets[four].elements == {"10.0.0.1", "10.0.0.2"}
    assert before[four].elements == {"10.0.0.1"}, "somebody else reads this one"


def test_a_member_is_back_when_what_covered_it_goes() -> None:
    host, wide = parse_net("10.0.0.1/32"), parse_net("10.0.0.0/8")
    sets = written(frozenset({host, wide}))
    assert by_version(sets)["s4"] == ("type ipv4_addr; flags interval;", {"10.0.0.0/8"})
    sets.update(frozenset({host}))
    assert by_version(sets)["s4"] == ("type ipv4_addr;", {"10.0.0.1"})


def test_named_ports() -> None:
    sets = MemberSets(PORTS)
    sets.update(frozenset({(parse_ip("10.0.0.1"), 6, 80), (parse_ip("fd00::1"), 6, 80)}))
    assert by_version(sets) == {
        "n4": ("type ipv4_addr . inet_proto . inet_service;", {"10.0.0.1 . 6 . 80"}),
        "n6": ("type ipv6_addr . inet_proto . inet_service;", {"fd00::1 . 6 . 80"}),
    }
    sets.update(frozenset({(parse_ip("10.0.0.1"), 6, 81)}))
    assert by_version(sets)["n4"][1] == {"10.0.0.1 . 6 . 81"}
    assert by_version(sets)["n6"][1] == set()
