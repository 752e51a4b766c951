"""The matrix as a table, as JSON, compared with what policy says, and compared with an earlier one."""

from __future__ import annotations

import json

import pytest
from rich.console import Console, RenderableType

from tortie.lab.matrix import Change, Matrix, Outcome, Result, diff, render, render_changes, to_document

CONNECTED, TIMEOUT, REFUSED = Result(Outcome.CONNECTED), Result(Outcome.TIMEOUT), Result(Outcome.REFUSED)
FAILED = Result(Outcome.FAILED, "Too many open files")
NAMES = ("blue/api", "red/web", "outside")


def matrix(**results: Result) -> Matrix:
    """Everybody reaches everybody, but for what is given as `api_web=TIMEOUT`."""
    short = {"api": "blue/api", "web": "red/web", "outside": "outside"}
    pairs = {(a, b): CONNECTED for a in NAMES for b in NAMES if a != b}
    for name, result in results.items():
        source, to = name.split("_")
        pairs[short[source], short[to]] = result
    return Matrix("TCP over IPv4", NAMES, pairs)


def text(what: RenderableType) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(what)
    return console.export_text()


def row(shown: str, source: str) -> list[str]:
    """The cells of a source's row."""
    line = next(line for line in shown.splitlines() if f"{source} │" in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")][1:]


def test_rows_are_sources_and_columns_are_destinations() -> None:
    shown = text(render(matrix(api_web=TIMEOUT, outside_api=REFUSED)))
    assert row(shown, "blue/api") == ["·", "✗", "✓"]
    assert row(shown, "red/web") == ["✓", "·", "✓"]
    assert row(shown, "outside") == ["r", "✓", "·"]
    assert "4 of 6 pass" in shown


def test_the_legend_has_the_marks_that_occur_and_no_others() -> None:
    shown = text(render(matrix(api_web=TIMEOUT)))
    assert "✗ no answer" in shown
    assert "refused" not in shown
    assert "disagree" not in shown


def test_a_disagreement_is_marked_and_said() -> None:
    measured = matrix(api_web=TIMEOUT)
    expected = {("blue/api", "red/web"): True, ("red/web", "blue/api"): False, ("outside", "red/web"): True}
    assert measured.disagreements(expected) == [("blue/api", "red/web"), ("red/web", "blue/api")]
    shown = text(render(measured, expected))
    assert row(shown, "blue/api") == ["·", "✗!", "✓"]
    assert row(shown, "red/web") == ["✓!", "·", "✓"]
    assert "blue/api to red/web: policy allows, the packets say timeout" in shown
    assert "red/web to blue/api: policy denies, the packets say connected" in shown


def test_agreement_is_said_with_how_much_was_compared() -> None:
    shown = text(render(matrix(), {("blue/api", "red/web"): True}))
    assert "packets and policy agree on all 1 pairs compared" in shown


def test_probes_that_failed_prove_nothing() -> None:
    measured = matrix(api_web=FAILED)
    assert measured.disagreements({("blue/api", "red/web"): True}) == []
    assert "agree" not in text(render(measured, {("blue/api", "red/web"): True}))


@pytest.mark.parametrize(
    ("outcome", "allowed", "rejecting", "agrees"),
    [
        (Outcome.CONNECTED, True, False, True),
        (Outcome.CONNECTED, False, False, False),
        (Outcome.TIMEOUT, True, False, False),
        (Outcome.TIMEOUT, False, False, True),
        (Outcome.UNREACHABLE, True, False, False),
        (Outcome.UNREACHABLE, False, False, True),
        (Outcome.WRONG, True, False, False),
        (Outcome.REFUSED, True, False, True),  # it arrived, and nobody listens
        (Outcome.REFUSED, False, False, False),  # it arrived where policy drops
        (Outcome.REFUSED, False, True, True),
    ],
)
def test_when_packets_agree_with_policy(outcome: Outcome, allowed: bool, rejecting: bool, agrees: bool) -> None:
    assert Result(outcome).agrees(allowed, rejecting) is agrees


def test_json_has_every_pair_with_verdicts_where_there_are_any() -> None:
    document = json.loads(json.dumps(to_document(matrix(api_web=TIMEOUT), {("blue/api", "red/web"): True})))
    pairs = {(entry["from"], entry["to"]): entry for entry in document["pairs"]}
    assert len(pairs) == 6
    assert pairs["blue/api", "red/web"] == {
        "from": "blue/api", "to": "red/web", "result": "timeout", "passed": False, "expected": True, "agrees": False,
    }  # fmt: skip
    assert "expected" not in pairs["red/web", "blue/api"]


def test_diff_finds_what_changed_and_ignores_who_came_and_went() -> None:
    before, after = matrix(), matrix(api_web=TIMEOUT)
    assert diff(before, after) == [Change(("blue/api", "red/web"), CONNECTED, TIMEOUT)]
    assert diff(before, before) == []
    grown = Matrix("", (*NAMES, "red/new"), {**after.results, ("red/new", "red/web"): TIMEOUT})
    assert diff(before, grown) == diff(before, after)
    seen_otherwise = matrix(api_web=Result(Outcome.CONNECTED, "seen as 10.0.0.1"))
    assert diff(before, seen_otherwise) == []


def test_changes_are_shown_by_reason_and_together_where_they_can_be() -> None:
    after = matrix(api_web=TIMEOUT, outside_web=TIMEOUT, api_outside=TIMEOUT)
    why = {("blue/api", "red/web"): "denied by x", ("outside", "red/web"): "denied by x"}
    shown = text(render_changes(diff(matrix(), after), why))
    assert [line.strip() for line in shown.splitlines()] == [
        "✓ → ✗ denied by x",
        "blue/api, outside to red/web",
        "✓ → ✗",
        "blue/api to outside",
    ]
    assert "nothing changed" in text(render_changes([]))


@pytest.mark.parametrize(
    ("width", "row_of_api"),
    [
        (36, "│  blue/api │  ·   │  ✓  │    ✓    │"),
        (35, "│ blue/api│ ·  │ ✓ │   ✓   │"),
        (28, "│ blue/api│ ·  │ ✓ │   ✓   │"),
        (27, "│blue/api  1│·│✓│✓│"),
    ],
)
def test_columns_have_names_where_they_fit_and_numbers_elsewhere(width: int, row_of_api: str) -> None:
    shown = text(render(matrix(), None, width))
    assert row_of_api in shown
    assert max(map(len, shown.splitlines()[1:-1])) <= width
