"""Running scripts with a bar on the terminal, and the one table at the end."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.figures import Report, table

Advance = Callable[[str], None]
"""Called after each step of a script with what is going on."""


def run(names: Sequence[str]) -> int:
    """Runs scripts one after the other; 1 if one of them could not measure."""
    console = Console()
    if os.geteuid() != 0:
        console.print("bench: the measurements are made in network namespaces: run them as root")
        return 1
    reports: list[Report] = []
    failed: list[str] = []
    for name in names:
        try:
            reports.append(_measured(name, console))
        except Exception:
            failed.append(name)
            console.print(f"[red]{name} could not be measured[/red]")
            traceback.print_exc(file=sys.stderr)
    if len(reports) > 1:
        console.print(table("All figures", reports))
    return 1 if failed else 0


def alone(name: str) -> int:
    """What a script does that is run by itself."""
    return run([name])


def _measured(name: str, console: Console) -> Report:
    script = importlib.import_module(f"bench.{name}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=script.STEPS)
        report: Report = script.measure(lambda words: progress.update(task, advance=1, description=words))
    path = report.write()
    console.print(table(report.title, [report]))
    console.print(f"[dim]{os.path.relpath(path)}[/dim]")
    return report
