"""A history that is forgotten again and again: who follows a kind does not list it as fast as it can."""

from __future__ import annotations

from tortie.store.relisting import FIRST, LONGEST, QUIET, Relisting


def test_the_first_loss_costs_no_time_and_those_that_follow_more_and_more() -> None:
    now = 0.0
    again = Relisting(clock=lambda: now)
    assert again.lost() == 0
    longest = FIRST
    for _ in range(12):
        now += 1
        assert longest / 2 <= again.lost() <= longest
        longest = min(LONGEST, 2 * longest)
    assert longest == LONGEST


def test_after_a_quiet_while_it_is_the_first_again() -> None:
    now = 0.0
    again = Relisting(clock=lambda: now)
    for _ in range(5):
        again.lost()
    now += QUIET + 1
    assert again.lost() == 0
    now += QUIET - 1
    assert 0 < again.lost() <= FIRST
