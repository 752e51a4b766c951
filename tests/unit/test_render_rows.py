"""Rows of policies: whoever a peer is, just those are asked that may have to do with it, in their order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busy_node import PODS, Pod, judged, packet, state_of, ways, world
from tortie.base.addr import Net, parse_ip, parse_net
from tortie.calc.state import LocalEndpoint
from tortie.policy.rules import Direction, Member, Policy, PolicyKey, PolicyRule, SelectorSet, SetRef, Side
from tortie.policy.selector import parse
from tortie.policy.verdict import EndpointPolicy, TierPolicies
from tortie.render.match import policy_chain
from tortie.render.nft import NftRenderer
from tortie.render.rows import LARGE, PIECE, SHORTEST, Row, Rows, peers_of, row_chain, rows
from tortie.render.ruleset import Chain, Set
from tortie.testing.tracer import Tracer, host_of

REFS = tuple(SelectorSet(parse(f"app == 'a{number}'")) for number in range(12))
PEERS = tuple(map(parse_net, ("10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "fd00::1/128", "fd00::2/128")))
STRANGER = parse_net("192.0.2.1/32")
NETS = tuple(map(parse_net, ("10.0.0.0/24", "10.0.0.2/31", "fd00::/64", "128.0.0.0/1")))

Members = Mapping[SetRef, frozenset[Member]]


def policy(number: int, *asks: int | str, direction: Direction = "ingress") -> Policy:
    """One with a rule for the members of each of these sets, or a network, or anybody."""
    sides = [side(one) for one in asks]
    if direction == "ingress":
        rules = tuple(PolicyRule("Allow", source=side) for side in sides)
        return Policy(PolicyKey("np", "red", f"p{number}"), None, frozenset({direction}), ingress=rules)
    rules = tuple(PolicyRule("Allow", destination=side) for side in sides)
    return Policy(PolicyKey("np", "red", f"p{number}"), None, frozenset({direction}), egress=rules)


def side(ask: int | str) -> Side:
    if isinstance(ask, int):
        return Side(sets=(REFS[ask],))
    return Side() if ask == "anybody" else Side(nets=(parse_net(ask),))


def endpoint(policies: Row, direction: Direction = "ingress") -> LocalEndpoint:
    tiers = (TierPolicies("default", "Deny", policies),)
    which = EndpointPolicy("cali1", **{direction: tiers})
    return LocalEndpoint(("red", "p"), "cali1", (parse_ip("10.0.0.9"),), "", which)


def asked(name: str, chains: Mapping[str, Chain], sets: Mapping[str, Set], peer: Net, word: str) -> Iterator[str]:
    """The policies to which a packet comes that none of them decides about."""
    if name not in chains:
        yield name  # a policy's own
        return
    for rule in chains[name].rules:
        if found := re.fullmatch(r"jump (\S+)", rule):
            yield from asked(found[1], chains, sets, peer, word)
        elif found := re.fullmatch(rf"(ip6?) {word} vmap @(\S+)", rule):
            mine = found[1] == ("ip" if peer.version == 4 else "ip6")
            verdicts = dict(element.split(" : jump ") for element in sets[found[2]].elements)
            for key in verdicts if mine else ():
                first, _, last = key.partition("-")
                if int(parse_ip(first)) <= int(peer.network_address) <= int(parse_ip(last or first)):
                    yield from asked(verdicts[key], chains, sets, peer, word)
        else:
            assert rule == "meta mark & 0x00030000 != 0 return"


def worth_asking(row: Row, members: Members, peer: Net, direction: Direction) -> list[str]:
    """Those that need not be asked are left out: they look into sets, and the peer is in none of them."""
    found = []
    for one in row:
        refs = peers_of(one, direction)
        if refs is None or any(holds(ref, members, peer) for ref in refs):
            found.append(policy_chain(one.key, direction))
    return found


def holds(one: SelectorSet | Net, members: Members, peer: Net) -> bool:
    nets = members.get(one, ()) if isinstance(one, SelectorSet) else (one,)
    return any(net.version == peer.version and peer.subnet_of(net) for net in nets)  # type: ignore[arg-type, union-attr]


memberships = st.dictionaries(
    st.sampled_from(REFS), st.frozensets(st.sampled_from(PEERS + NETS), max_size=3), max_size=len(REFS)
)
some_set = st.integers(0, 11)
some_net = st.sampled_from(["10.0.0.2/32", "10.0.0.0/30", "0.0.0.0/0", "fd00::/127", "255.255.255.0/24"])
asks = st.lists(st.one_of(some_set, some_set, some_set, some_net, st.just("anybody")), max_size=3)
policies = st.lists(asks, min_size=SHORTEST, max_size=SHORTEST + 8)


@settings(max_examples=40)
@given(policies, st.lists(memberships, min_size=1, max_size=4), st.sampled_from(["ingress", "egress"]))
def test_those_are_asked_that_may_match_in_their_order(
    every: list[list[int | str]], course: list[Members], direction: Direction
) -> None:
    row = tuple(policy(number, *one, direction=direction) for number, one in enumerate(every))
    made, name = Rows(), row_chain(row, direction)
    word = "saddr" if direction == "ingress" else "daddr"
    where = {"cali1": endpoint(row, direction)}
    in_turn = [policy_chain(one.key, direction) for one in row]
    for members in course:
        chains, sets = made.render(where, members)
        assert (chains, sets) == Rows().render(where, members), "one change after the other leads where a start does"
        for peer in (*PEERS, STRANGER):
            found = list(asked(name, chains, sets, peer, word))
            wanted = worth_asking(row, members, peer, direction)
            assert found == [one for one in in_turn if one in found], "in their order, and none of them twice"
            assert set(wanted) <= set(found)
            if sets and "anybody" not in {ask for one in every for ask in one}:
                assert found == wanted


def test_a_thousand_policies_are_one_look_or_two_for_a_peer() -> None:
    row = tuple(policy(number, number % 12) for number in range(1000))
    members = {ref: frozenset({parse_net(f"10.1.0.{number}/32")}) for number, ref in enumerate(REFS)}
    several = list(rows(row))
    chains, sets = Rows().render({"cali1": endpoint(row)}, members)
    for one in several:
        assert list(asked(row_chain(one, "ingress"), chains, sets, STRANGER, "saddr")) == []
    assert len(several) < 20
    assert len(sets) == 2 * len(several)


def test_few_policies_and_staged_ones_are_no_row() -> None:
    few = tuple(policy(number, 0) for number in range(SHORTEST - 1))
    assert list(rows(few)) == [(one,) for one in few]
    staged = Policy(PolicyKey("snp", "red", "s"), None, frozenset({"ingress"}), staged="Set")
    many = tuple(policy(number, 0) for number in range(2 * SHORTEST))
    assert list(rows((*many[:40], staged, *many[40:]))) == [many[:40], (staged,), *((one,) for one in many[40:])]


@pytest.mark.parametrize("at", [0, 7, 500, 998, 999])
def test_one_policy_less_makes_one_piece_another(at: int) -> None:
    row = tuple(policy(number) for number in range(1000))
    whole, less = list(rows(row)), list(rows(row[:at] + row[at + 1 :]))
    assert tuple(chain.from_iterable(whole)) == row
    assert tuple(chain.from_iterable(less)) == row[:at] + row[at + 1 :]
    assert max(map(len, whole)) <= 4 * PIECE + SHORTEST
    assert len([one for one in less if one not in whole]) <= 3


def test_what_does_not_tell_peers_apart_is_asked_in_its_place() -> None:
    """A set of most of a cluster."""
    row = tuple(policy(number, number % 3) for number in range(SHORTEST))
    everybody = frozenset(parse_net(f"10.{i >> 8}.{i & 255}.1/32") for i in range(LARGE))
    members = {REFS[0]: everybody, REFS[1]: frozenset({PEERS[0]}), REFS[2]: frozenset({PEERS[0]})}
    chains, sets = Rows().render({"cali1": endpoint(row)}, members)
    name = row_chain(row, "ingress")
    for peer in (PEERS[0], STRANGER):
        found = list(asked(name, chains, sets, peer, "saddr"))
        left_out = {policy_chain(one.key, "ingress") for i, one in enumerate(row) if i % 3 and peer is STRANGER}
        assert found == [
            policy_chain(one.key, "ingress") for one in row if policy_chain(one.key, "ingress") not in left_out
        ]


def test_too_many_groups_are_not_worth_it() -> None:
    """Peers that each are in other sets: the policies are asked in turn, and no map is there."""
    row = tuple(policy(number, number % 12) for number in range(SHORTEST))
    peers = [parse_net(f"10.2.{i >> 8}.{i & 255}/32") for i in range(400)]
    members = {ref: frozenset(p for i, p in enumerate(peers) if i >> number & 1) for number, ref in enumerate(REFS)}
    chains, sets = Rows().render({"cali1": endpoint(row)}, members)
    assert sets == {}
    assert set(chains) == {row_chain(row, "ingress")}
    assert len(list(asked(row_chain(row, "ingress"), chains, sets, STRANGER, "saddr"))) == SHORTEST


def test_what_does_not_change_is_the_very_same_object() -> None:
    row = tuple(policy(number, number % 3) for number in range(SHORTEST))
    where = {"cali1": endpoint(row)}
    members: Members = {REFS[0]: frozenset({PEERS[0]}), REFS[1]: frozenset({PEERS[1]})}
    made = Rows()
    chains, sets = made.render(where, members)
    again, maps = made.render({"cali1": endpoint(tuple(policy(n, n % 3) for n in range(SHORTEST)))}, members)
    assert all(again[name] is one for name, one in chains.items())
    assert all(maps[name] is one for name, one in sets.items())


def test_busy_node_is_traced_as_it_is_meant() -> None:
    """Two hundred policies of every kind, in rows among others: the deciding rule is the one that is meant."""
    pods = [Pod(number) for number in range(PODS)]
    state = state_of(world(pods))
    ruleset = NftRenderer().render(state)
    assert any(name.startswith("ri4-") for name in ruleset.sets)
    tracer = Tracer(ruleset, host_of(state, {}))
    for way in ways(pods)[::7]:
        meant, trace = judged(state, way), tracer.trace(packet(way), way[0].interface)
        assert (trace.allowed, trace.rule) == (meant.allowed, meant.rule), f"{meant}\n{trace}"
