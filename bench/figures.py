"""Figures: values beside their peers', as a table for people and as JSON for whoever compares two days."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

RESULTS = Path(__file__).parent / "results"
RAW = RESULTS / "raw"


@dataclass(frozen=True, slots=True)
class Figure:
    """One value, the peer's if there is one, and what it should be. `holds` is None where nothing is demanded."""

    figure: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None
    target: str = ""
    holds: bool | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.peer_value if self.peer_value else None

    def document(self) -> dict[str, Any]:
        ratio = self.ratio
        return {
            "figure": self.figure,
            "value": _rounded(self.value),
            "unit": self.unit,
            "peer": self.peer,
            "peer_value": None if self.peer_value is None else _rounded(self.peer_value),
            "ratio": None if ratio is None else round(ratio, 3),
            "target": self.target,
            "holds": self.holds,
        }


def against(
    figure: str,
    value: float,
    unit: str,
    peer: str,
    peer_value: float,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Figure:
    """A value beside its peer's. `at_most` and `at_least` are bounds on the ratio of the two."""
    ratio = value / peer_value if peer_value else math.inf
    if at_most is not None:
        return Figure(figure, value, unit, peer, peer_value, f"ratio <= {at_most:g}", ratio <= at_most)
    if at_least is not None:
        return Figure(figure, value, unit, peer, peer_value, f"ratio >= {at_least:g}", ratio >= at_least)
    return Figure(figure, value, unit, peer, peer_value)


@dataclass(slots=True)
class Report:
    """What one script found. `samples` are the single measurements by name, in the order in which they were made."""

    name: str
    title: str
    figures: list[Figure] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Figures that could not be had here, and why."""

    def write(self) -> Path:
        """Writes both files; the path of the one with the figures."""
        RAW.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        figures = [figure.document() for figure in self.figures]
        figures += [{"figure": name, "missing": why} for name, why in self.missing.items()]
        _write(path, {"name": self.name, "machine": machine(), "figures": figures})
        when = datetime.now(UTC).isoformat(timespec="seconds")
        samples = {name: [_rounded(sample) for sample in values] for name, values in self.samples.items()}
        _write(RAW / f"{self.name}.json", {"name": self.name, "when": when, "samples": samples})
        return path


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that so many percent of all do not exceed (nearest rank)."""
    rank = math.ceil(len(samples) * percent / 100)
    return sorted(samples)[max(rank, 1) - 1]


def table(title: str, reports: Sequence[Report]) -> Table:
    """One row per figure. Of several reports each begins with its name, of one the peers are named below."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold", caption_justify="left")
    made.add_column("figure", min_width=20)
    for heading in ("value", "peer", "ratio"):
        made.add_column(heading, justify="right", no_wrap=True, min_width=8 if heading != "ratio" else 5)
    made.add_column("target", max_width=40)
    for report in reports:
        if len(reports) > 1:
            made.add_row(f"[bold]{report.name}[/bold]")
        else:
            peers = dict.fromkeys(figure.peer for figure in report.figures if figure.peer)
            made.caption = f"peer: {'; '.join(peers)}" if peers else None
        rows = [_cells(figure) for figure in report.figures]
        rows += [(name, "-", "", "", why) for name, why in report.missing.items()]
        for index, row in enumerate(rows, 1):
            made.add_row(*row, end_section=index == len(rows))
    return made


def _cells(figure: Figure) -> tuple[str, ...]:
    ratio = figure.ratio
    verdict = {None: "", True: "[green]✓[/green] ", False: "[red]✗[/red] "}[figure.holds]
    return (
        figure.figure,
        f"{_shown(figure.value)} {figure.unit}",
        "" if figure.peer_value is None else f"{_shown(figure.peer_value)} {figure.unit}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{verdict}{figure.target}",
    )


def machine() -> Mapping[str, Any]:
    """What the figures were taken on; `load` is the load average, which tells how much else went on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
