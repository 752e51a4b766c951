"""How often BIRD is told to listen once more, on values."""

from __future__ import annotations

from tortie.dataplane.stages.bird import FIRST_PAUSE, LONGEST_PAUSE, Attempt, Configuration

HERE = frozenset({"10.0.0.1/24"})


def test_an_address_that_never_comes_is_tried_ever_more_rarely() -> None:
    attempt, times = Attempt(0.0, HERE), []
    for now in range(600):
        if attempt.is_due(HERE, now):
            attempt = attempt.next(HERE, now)
            times.append(now)
    assert times[:4] == [2, 6, 14, 30]
    assert attempt.pause == LONGEST_PAUSE
    assert len(times) < 16


def test_an_address_that_comes_is_tried_at_once() -> None:
    attempt = Attempt(0.0, HERE, LONGEST_PAUSE)
    more = HERE | {"10.0.0.2/24"}
    assert not attempt.is_due(HERE, 1.0)
    assert attempt.is_due(more, 1.0)
    assert attempt.next(more, 1.0) == Attempt(1.0, more, FIRST_PAUSE)


def test_transcript() -> None:
    assert str(Configuration("x", start=True, trim=True)) == "tail -c 65536 bird.log\nbird -p; birdc configure\nbird"
    assert str(Configuration(again=True)) == "birdc configure"
    assert not Configuration()
