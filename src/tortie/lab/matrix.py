"""Who reaches whom, as a table: what the packets did, whether policy agrees, what changed between two tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

Pair = tuple[str, str]
"""Source and destination: `red/web`, `outside`."""


class Outcome(StrEnum):
    """What became of a probe."""

    CONNECTED = "connected"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    WRONG = "wrong answer"
    FAILED = "failed"


# outcome -> mark, style, what the legend says
_LOOKS = {
    Outcome.CONNECTED: ("✓", "green", "connected"),
    Outcome.REFUSED: ("r", "yellow", "refused"),
    Outcome.TIMEOUT: ("✗", "red", "no answer"),
    Outcome.UNREACHABLE: ("∅", "dim", "a router says there is no way"),
    Outcome.WRONG: ("?", "bold magenta", "somebody else answered"),
    Outcome.FAILED: ("E", "bold red", "the probe itself failed"),
}
_SELF = ("·", "dim")
_DISAGREES = "!"
_BOTH = {"policy": "packets and policy", "network": "packets and configuration"}
_SAYINGS = {
    "policy": ("policy denies", "policy allows"),
    "network": ("such a network has no way", "such a network has a way"),
}


@dataclass(frozen=True, slots=True)
class Result:
    """One probe. `detail` is what there is to say beyond the outcome, such as who answered instead."""

    outcome: Outcome
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.CONNECTED

    def agrees(self, allowed: bool, rejecting: bool) -> bool:
        """Whether this is what a policy does that allows, or denies, by dropping or by rejecting.

        What is refused has arrived, and nobody listened, unless policy rejects. A probe that failed says nothing.
        """
        if self.outcome is Outcome.FAILED or (self.outcome is Outcome.REFUSED and rejecting):
            return True
        return (self.passed or self.outcome is Outcome.REFUSED) is allowed

    def __str__(self) -> str:
        return f"{self.outcome}: {self.detail}" if self.detail else str(self.outcome)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Every source against every destination; of `results` only pairs of different names are there.

    `rejecting` says that a policy's denial refuses connections instead of dropping their packets. `judge` is who says
    what should be; `notes` are lines for below the table.
    """

    title: str
    names: tuple[str, ...]
    results: Mapping[Pair, Result]
    rejecting: bool = False
    judge: Literal["policy", "network"] = "policy"
    notes: tuple[str, ...] = ()

    def agrees(self, pair: Pair, allowed: bool) -> bool:
        return self.results[pair].agrees(allowed, self.rejecting)

    @property
    def passed(self) -> int:
        return sum(result.passed for result in self.results.values())

    def disagreements(self, expected: Mapping[Pair, bool]) -> list[Pair]:
        """The pairs where the packets did not do what is expected; a pair of which nothing is expected is none."""
        return [pair for pair in self.results if pair in expected and not self.agrees(pair, expected[pair])]


@dataclass(frozen=True, slots=True)
class Change:
    """A pair with another outcome than before."""

    pair: Pair
    before: Result
    after: Result


def diff(before: Matrix, after: Matrix) -> list[Change]:
    """What changed, in the order of the table; pairs that only one of the two has are left out."""
    return [
        Change((source, to), before.results[source, to], after.results[source, to])
        for source in after.names
        for to in after.names
        if (source, to) in before.results
        and (source, to) in after.results
        and before.results[source, to].outcome is not after.results[source, to].outcome
    ]


def render(matrix: Matrix, expected: Mapping[Pair, bool] | None = None, width: int = 80) -> RenderableType:
    """The table with its legend, and a line for each pair on which packets and policy disagree.

    Columns bear names as far as they fit into `width`, else the numbers of their rows.
    """
    wrong = set(matrix.disagreements(expected or {}))
    rows, columns, blank = _headings(matrix.names, width)
    table = Table(padding=(0, blank))
    table.add_column("from ╲ to", justify="right", style="bold", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="center", no_wrap=True)
    for i, source in enumerate(matrix.names):
        if i and source.rpartition("/")[0] != matrix.names[i - 1].rpartition("/")[0]:
            table.add_section()
        table.add_row(rows[i], *(_cell(matrix, (source, to), wrong) for to in matrix.names))
    lines: list[RenderableType] = [Text(matrix.title, "bold"), table, _legend(matrix, wrong)]
    lines += [_disagreement(matrix, pair) for pair in matrix.results if pair in wrong]
    if expected and not wrong and (compared := _compared(matrix, expected)):
        lines.append(Text(f"{_BOTH[matrix.judge]} agree on all {compared} pairs compared", "green"))
    lines += [Text(note, "yellow") for note in matrix.notes]
    return Group(*lines)


def render_changes(changes: list[Change], why: Mapping[Pair, str] | None = None) -> RenderableType:
    """What changed, by reason as far as it is known; pairs that share sources or destinations share a line."""
    if not changes:
        return Text("nothing changed", "dim")
    groups: dict[tuple[Outcome, Outcome, str], list[Pair]] = {}
    for change in changes:
        reason = (why or {}).get(change.pair, "")
        groups.setdefault((change.before.outcome, change.after.outcome, reason), []).append(change.pair)
    lines: list[RenderableType] = []
    for (before, after, reason), pairs in groups.items():
        (old, old_style, _), (new, new_style, _) = _LOOKS[before], _LOOKS[after]
        lines.append(Text.assemble((old, old_style), " → ", (new, new_style), f" {reason}" if reason else ""))
        lines += [Padding(Text(line, "dim"), (0, 0, 0, 6)) for line in _together(pairs)]
    return Group(*lines)


def _together(pairs: list[Pair]) -> list[str]:
    """`a, b to c, d` for all pairs of them, in the order in which they first come."""
    by_source: dict[str, list[str]] = {}
    for source, to in pairs:
        by_source.setdefault(source, []).append(to)
    by_destinations: dict[tuple[str, ...], list[str]] = {}
    for source, to_all in by_source.items():
        by_destinations.setdefault(tuple(to_all), []).append(source)
    return [f"{', '.join(sources)} to {', '.join(to_all)}" for to_all, sources in by_destinations.items()]


def to_document(matrix: Matrix, expected: Mapping[Pair, bool] | None = None) -> dict[str, Any]:
    """The same as JSON has it: one entry per pair, `expected` and `agrees` where a verdict is known."""
    entries: list[dict[str, Any]] = []
    for pair, result in matrix.results.items():
        entry: dict[str, Any] = {"from": pair[0], "to": pair[1], "result": str(result.outcome), "passed": result.passed}
        if result.detail:
            entry["detail"] = result.detail
        if expected and pair in expected:
            entry |= {"expected": expected[pair], "agrees": matrix.agrees(pair, expected[pair])}
        entries.append(entry)
    notes = {"notes": list(matrix.notes)} if matrix.notes else {}
    return {"title": matrix.title, "names": list(matrix.names), "pairs": entries, **notes}


def _headings(names: tuple[str, ...], width: int) -> tuple[list[str], list[str], int]:
    """Of the rows, of the columns, and how many blanks there are around them: the widest that fits."""
    named = [name.replace("/", "\n") for name in names]
    widths = [max(map(len, (*names, "from ╲ to"))), *(max(map(len, name.splitlines())) for name in named)]
    for blank in (1, 0):
        if 1 + sum(widest + 2 * blank + 1 for widest in widths) <= width:
            return list(names), named, blank
    numbers = [str(i) for i in range(1, len(names) + 1)]
    return [f"{name} {number:>2}" for name, number in zip(names, numbers, strict=True)], numbers, 0


def _cell(matrix: Matrix, pair: Pair, wrong: set[Pair]) -> Text:
    result = matrix.results.get(pair)
    if result is None:
        return Text(*_SELF)
    mark, style, _ = _LOOKS[result.outcome]
    return Text(mark + _DISAGREES, f"{style} reverse") if pair in wrong else Text(mark, style)


def _legend(matrix: Matrix, wrong: set[Pair]) -> Text:
    """Only the marks that occur."""
    present = {result.outcome for result in matrix.results.values()}
    parts = [Text(f"{matrix.passed} of {len(matrix.results)} pass", "bold")]
    parts += [
        Text.assemble((mark, style), " ", words) for kind, (mark, style, words) in _LOOKS.items() if kind in present
    ]
    if wrong:
        parts.append(Text.assemble((_DISAGREES, "reverse"), f" {_BOTH[matrix.judge]} disagree"))
    return Text("   ").join(parts)


def _disagreement(matrix: Matrix, pair: Pair) -> Text:
    result = matrix.results[pair]
    denies, allows = _SAYINGS[matrix.judge]
    said = denies if result.agrees(allowed=True, rejecting=matrix.rejecting) else allows
    return Text(f"{pair[0]} to {pair[1]}: {said}, the packets say {result}", "bold red")


def _compared(matrix: Matrix, expected: Mapping[Pair, bool]) -> int:
    """How many pairs could be compared."""
    return sum(pair in expected and result.outcome is not Outcome.FAILED for pair, result in matrix.results.items())
