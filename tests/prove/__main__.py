"""Proof at length that prediction and kernel agree: `make prove`.

Thousands of generated datastores, and connections in each: first the verdict against the tracer on the rendered rules,
then both against real packets, which takes root. It ends at the first difference, with the smallest datastore that
shows it. A slice of each is in the tests of every day.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "netns")]

from policy_oracles import Count, verdict_and_tracer  # noqa: E402
from policy_places import SEED  # noqa: E402
from policy_worlds import Chance  # noqa: E402

PROBES = 40
"""New connections in each datastore that no packets are sent in."""

console = Console()
Play = Callable[[Chance, Count], str]
"""One datastore: what was asked is counted; the answer is what differs, "" when all agree."""


def prove(what: str, cases: int, play: Play) -> bool:
    """Play until there are that many cases. Whether all agreed."""
    count, start, number = Count(), time.monotonic(), 0
    columns = (TextColumn(what.ljust(22)), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(what, total=cases)
        while count.cases < cases:
            if problem := play(Chance(f"{SEED} {what} {number}"), count):
                progress.stop()
                console.print(f"{what}, datastore {number}: they differ\n\n{problem}", markup=False, soft_wrap=True)
                return False
            number += 1
            progress.update(bar, completed=count.cases)
    seconds = time.monotonic() - start
    refused = count.cases - count.arrived
    console.print(
        f"{what.ljust(22)} {count.cases} connections in {number} datastores agree:"
        f" {count.arrived} arrive, {refused} do not; {seconds:.0f} s",
        highlight=False,
        soft_wrap=True,
    )
    return True


def on_values(rng: Chance, count: Count) -> str:
    return verdict_and_tracer(rng, PROBES, count)


def on_packets(cases: int) -> bool:
    if os.geteuid():
        console.print("real packets           not sent: that takes root", highlight=False)
        return True
    # Some of the datastores come as after a restart of the agent, onto a table that may have to be made again.
    logging.getLogger("tortie").setLevel(logging.ERROR)
    from packet_rounds import play
    from town import built_town

    with contextlib.contextmanager(built_town)() as town:

        def on_town(rng: Chance, count: Count) -> str:
            played = play(town, rng)
            count.cases += played.probes
            count.arrived += played.arrived
            return played.problem

        return prove("and real packets", cases, on_town)


def main() -> int:
    parser = argparse.ArgumentParser(prog="prove", description="Verdict, tracer and packets on generated policies")
    parser.add_argument("--cases", type=int, default=100_000, help="connections for verdict and tracer")
    parser.add_argument("--packets", type=int, default=2_000, help="connections that are real, too")
    asked = parser.parse_args()
    console.print(f"TORTIE_SEED={SEED}", highlight=False)
    agreed = prove("verdict and tracer", asked.cases, on_values) and on_packets(asked.packets)
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
