"""Which files of the level `vm` share a guest: all have one, and no guest has much more to do than the others."""

from __future__ import annotations

from collections import Counter

import pytest

from parts import INSIDE, SECONDS, UNKNOWN, guests

TESTS = [f"tests/{INSIDE}{name}.py::test_{number}" for name in SECONDS for number in range(3)]


def filled(found: dict[str, str]) -> Counter[str]:
    """Seconds by guest."""
    seconds: Counter[str] = Counter()
    for file, guest in found.items():
        seconds[guest] += SECONDS.get(file.removeprefix(f"tests/{INSIDE}").removesuffix(".py"), UNKNOWN)
    return seconds


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_file_has_a_guest_and_all_end_at_about_the_same_time(count: int) -> None:
    found = guests(TESTS, count)
    assert found.keys() == {test.partition("::")[0] for test in TESTS}
    seconds = filled(found)
    assert len(seconds) == count
    assert max(seconds.values()) - min(seconds.values()) < UNKNOWN
    assert all(guest.startswith(f"tests/{INSIDE}") for guest in seconds)


def test_the_order_of_tests_makes_no_difference() -> None:
    assert guests(reversed(TESTS), 3) == guests(TESTS, 3)


def test_there_are_no_more_guests_than_files() -> None:
    assert len(set(guests(TESTS, 100).values())) == len(SECONDS)


def test_what_takes_nobody_knows_how_long_has_a_guest_too() -> None:
    new = f"tests/{INSIDE}test_of_today.py"
    found = guests([*TESTS, f"{new}::test_it"], 3)
    assert found[new] in found.values()
    assert max(filled(found).values()) - min(filled(found).values()) < UNKNOWN


def test_what_runs_outside_has_none() -> None:
    assert guests(["tests/vm/test_stockvm.py::test_it", "tests/unit/test_parts.py::test_it"], 3) == {}
