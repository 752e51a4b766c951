"""Plans lead where they say, and errors say where they happened."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.addr import collapse, parse_net
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
