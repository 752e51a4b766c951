"""Plans lead where they say, and errors say where they happened."""

import tracemalloc
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.addr import collapse, host_net, parse_ip, parse_net, within
from tortie.base.errors import ConfigError, suggest
from tortie.base.plan import Verb, diff

tables = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3))


def applied(have, plan):
    state = dict(have)
    for op in plan:
        if op.verb is Verb.DELETE:
            del state[op.key]
        else:
            state[op.key] = op.want
    return state


@given(want=tables, have=tables)
def test_a_plan_reaches_the_desired_state_and_a_reached_state_needs_none(want, have):
    plan = diff(want, have, lambda verb, key, value: f"{verb.value} {key} {value}")
    assert applied(have, plan) == want
    assert not diff(want, want, lambda verb, key, value: "")
    verbs = [op.makes for op in plan]
    assert verbs == sorted(verbs, reverse=True), "make before break"


def test_an_error_names_its_place_from_the_outside_in():
    error = ConfigError("must be 20 to 32", "spec.blockSize").within("pool.yaml", "IPPool p")
    assert str(error) == "pool.yaml: IPPool p: spec.blockSize: must be 20 to 32"


def test_a_near_word_is_suggested():
    assert suggest("ciddr", ["cidr", "blockSize"]) == 'did you mean "cidr"?'
    assert suggest("CIDR", ["cidr"]) == 'did you mean "cidr"?'


def test_networks_with_host_bits_are_refused_with_the_right_one():
    with pytest.raises(ConfigError, match=r'"10.0.0.1/24" has host bits set; the network is "10.0.0.0/24"'):
        parse_net("10.0.0.1/24")


def test_overlapping_networks_collapse():
    nets = [parse_net(n) for n in ("10.0.0.0/25", "10.0.0.128/25", "10.0.0.7", "fd00::/64", "fd00::1")]
    assert [str(n) for n in collapse(nets)] == ["10.0.0.0/24", "fd00::/64"]


@pytest.mark.parametrize("text", ["10.0.0.7", "255.255.255.255", "fd00::7", "::"])
def test_the_network_of_one_address_is_as_any_other(text):
    one, plain = host_net(parse_ip(text)), ip_network(text)
    assert parse_net(text) is one
    assert (one, hash(one), str(one)) == (plain, hash(plain), str(plain))
    for what in (
        "network_address",
        "num_addresses",
        "broadcast_address",
        "netmask",
        "hostmask",
        "prefixlen",
        "with_prefixlen",
    ):
        assert getattr(one, what) == getattr(plain, what), what
    assert ([*one], [*one.hosts()], [*one.subnets()]) == ([*plain], [*plain.hosts()], [*plain.subnets()])
    assert (one.supernet(3), type(one.supernet())) == (plain.supernet(3), type(plain))
    assert [*plain.supernet(2).address_exclude(one)] == [*plain.supernet(2).address_exclude(plain)]
    assert within(one, plain.supernet(9))
    assert one.overlaps(plain)
    assert collapse([one, one]) == [plain]


def test_the_network_of_an_address_with_a_zone_has_none():
    assert str(host_net(ip_address("fe80::1%eth0"))) == "fe80::1/128"


def test_a_network_of_one_address_is_small():
    """An agent has one for every address of the cluster."""
    every = [ip_address(0x0A000000 + number) for number in range(1000)]
    tracemalloc.start()
    try:
        nets = [host_net.__wrapped__(ip) for ip in every]
        assert all(net.num_addresses == 1 and within(net, parse_net("10.0.0.0/8")) for net in nets)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken / len(nets) < 250
