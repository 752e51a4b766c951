"""A KinSet is a set like any other, however it came to be; and what is its kin is compared by what came and went."""

from __future__ import annotations

from collections.abc import Set

from hypothesis import given
from hypothesis import strategies as st

from tortie.base.kinset import SMALLEST, KinSet

SOME = st.frozensets(st.integers(0, 12), max_size=6)
STEPS = st.lists(st.tuples(SOME, SOME), max_size=8)
FEW = st.lists(st.tuples(SOME, SOME), max_size=2)


class Counted(int):
    """A number that counts how often anybody asks for its hash."""

    asked = 0

    def __hash__(self) -> int:
        Counted.asked += 1
        return int(self)


def generations(first: frozenset[int], steps: list[tuple[frozenset[int], frozenset[int]]]) -> list[KinSet[int]]:
    made = [KinSet(first)]
    for come, gone in steps:
        made.append(made[-1].changed(come, gone))
    return made


@given(SOME, STEPS)
def test_a_change_is_what_sets_make_of_it(first: frozenset[int], steps: list[tuple[frozenset[int], frozenset[int]]]):
    plain = first
    for kin, (come, gone) in zip(generations(first, steps)[1:], steps, strict=True):
        plain = plain - gone | come
        assert (set(kin), len(kin), len(list(kin))) == (plain, len(plain), len(plain))
        assert all((one in kin) == (one in plain) for one in range(14))
        assert kin == plain
        assert plain == kin
        assert hash(kin) == hash(plain)


@given(SOME, FEW, SOME, FEW)
def test_any_two_compare_as_sets_do(first: frozenset[int], steps: list, other: frozenset[int], more: list):
    """Kin, strangers, and sets of other types."""
    every: list[Set[int]] = [*generations(first, steps), *generations(other, more), other]
    for one in every:
        for two in every:
            assert one - two == frozenset(one) - frozenset(two)
            assert one ^ two == frozenset(one) ^ frozenset(two)
            assert one | two == frozenset(one) | frozenset(two)
            assert one & two == frozenset(one) & frozenset(two)
            assert (one == two) == (frozenset(one) == frozenset(two))
            assert (one <= two) == (frozenset(one) <= frozenset(two))


@given(SOME, STEPS)
def test_what_changes_nothing_is_the_very_same(first: frozenset[int], steps: list):
    last = generations(first, steps)[-1]
    assert last.changed(last, ()) is last
    assert last.changed((), set(range(14)) - set(last)) is last


def test_what_came_before_stays_as_it_was():
    first = KinSet(range(1000))
    second = first.changed({5000}, {1})
    third = second.changed({1}, {5000, 2})
    assert (set(first), set(second)) == (set(range(1000)), {*range(1000), 5000} - {1})
    assert set(third) == set(range(1000)) - {2}


def test_kin_is_compared_without_a_look_at_what_it_has_in_common():
    one = KinSet(map(Counted, range(10_000)))
    two = one.changed({Counted(10_001)}, {Counted(3)})
    Counted.asked = 0
    assert (two - one, one - two, len(two ^ one), two == one) == ({10_001}, {3}, 2, False)
    assert Counted.asked < 20


def test_one_that_has_changed_much_is_a_base_of_its_own():
    """Otherwise each change would cost by all those before it."""
    kin = KinSet(range(1000))
    for number in range(SMALLEST + 1):
        kin = kin.changed({10_000 + number}, ())
    Counted.asked = 0
    again = kin.changed({Counted(50_000)}, ())
    assert (len(again._come), len(kin)) == (1, 1000 + SMALLEST + 1)
