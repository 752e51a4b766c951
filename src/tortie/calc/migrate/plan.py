"""A migration as a value: what there is, what becomes of it, what differs, the steps, and the way back.

`str(plan)` is what an operator reads, and types: the commands are in their order, each with what it does to traffic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Weight = Literal["stop", "differs", "note"]


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool as it is, and as it will be."""

    name: str
    cidr: str
    now: str
    then: str
    block_size: int = 0


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node: its address, the networks of its pods, and how many pods are made anew on it."""

    name: str
    address: str
    networks: tuple[str, ...]
    pods: int


@dataclass(frozen=True, slots=True)
class Finding:
    """`stop`: not before this is settled. `differs`: it will be another way. `note`: to be known."""

    weight: Weight
    what: str
    message: str


@dataclass(frozen=True, slots=True)
class Step:
    """A command, what it does to pods' traffic, and what undoes it."""

    command: str
    effect: str = ""
    back: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True)
class Migration:
    """All of it. `manifest` is the command whose output is applied."""

    source: str
    pools: tuple[PoolRow, ...]
    nodes: tuple[NodeRow, ...]
    equal: tuple[str, ...]
    findings: tuple[Finding, ...]
    manifest: str
    steps: tuple[Step, ...]
    breaks: tuple[str, ...]
    back: tuple[str, ...]

    @property
    def possible(self) -> bool:
        return not any(one.weight == "stop" for one in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "possible": self.possible}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The page, a section after the other."""
        pods = sum(one.pods for one in self.nodes)
        yield f"# From {self.source} to Tortie: {count(len(self.nodes), 'node')}, {count(pods, 'pod')}"
        yield from _titled("Pools", _pools(self.pools))
        yield from _titled("Nodes", _nodes(self.nodes))
        yield from _titled("What is the same", [f"- {line}" for line in self.equal])
        for weight, title in (
            ("stop", "What has to be settled first"),
            ("differs", "What will be another way"),
            ("note", "To be known"),
        ):
            found = [f"- {one.what}: {one.message}" for one in self.findings if one.weight == weight]
            yield from _titled(title, found)
        yield from _titled("Steps", _steps(self.steps))
        yield from _titled("What breaks, and for how long", [f"- {line}" for line in self.breaks])
        yield from _titled("The way back", [f"- {line}" for line in self.back])


def _titled(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield from ("", f"## {title}", *lines)


def count(number: int, one: str, many: str = "") -> str:
    """
    >>> count(1, "pod"), count(2, "policy", "policies")
    ('1 pod', '2 policies')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines of columns, the first row being the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _pools(pools: tuple[PoolRow, ...]) -> list[str]:
    if not pools:
        return []
    rows = [(one.name, one.cidr, str(one.block_size or "-"), one.now, one.then) for one in pools]
    return table([("NAME", "CIDR", "BLOCKS", "NOW", "THEN"), *rows])


def _nodes(nodes: tuple[NodeRow, ...]) -> list[str]:
    if not nodes:
        return []
    rows = [(one.name, one.address or "-", _some(one.networks), str(one.pods)) for one in nodes]
    return table([("NAME", "ADDRESS", "POD NETWORKS", "PODS"), *rows])


def _some(words: tuple[str, ...], most: int = 3) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more or "-"


def _steps(steps: tuple[Step, ...]) -> list[str]:
    lines: list[str] = []
    for number, step in enumerate(steps, 1):
        lines.append(f"{number:3}. {step.command}")
        if step.effect:
            lines.append(f"       {step.effect}")
    return lines
