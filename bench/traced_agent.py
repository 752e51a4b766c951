"""An agent that notes when the steps of its work begin and end: `python -m bench.traced_agent FILE OPTIONS...`.

The options are those of `python -m tortie.agent`. FILE is written when it is told to stop: one line for each step that
was taken, [name, begin, end] in seconds of the machine's monotonic clock. Taking notes costs 1 µs for each step.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tortie.agent import __main__ as agent
from tortie.agent.agent import Agent
from tortie.agent.cni import joint
from tortie.agent.holdings import Holdings
from tortie.agent.pending import Pending
from tortie.calc.cluster import Cluster
from tortie.dataplane.stages.nft import Nft
from tortie.dataplane.stages.routes import Routes

STEPS: tuple[tuple[str, Any, str], ...] = (
    ("call", Agent, "cni"),
    ("ipam", Holdings, "take"),
    ("attach", joint, "attach"),
    ("note", Pending, "note"),
    ("calc", Cluster, "state"),
    ("nft plan", Nft, "plan"),
    ("nft make", Nft, "make"),
    ("routes plan", Routes, "plan"),
    ("routes make", Routes, "make"),
)
"""What a step is called, whose it is, and what function it is there."""

notes: list[tuple[str, float, float]] = []


def noted(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which also takes a note."""

    @functools.wraps(step)
    def plain(*arguments: Any, **words: Any) -> Any:
        began = time.monotonic()
        try:
            return step(*arguments, **words)
        finally:
            notes.append((name, began, time.monotonic()))

    @functools.wraps(step)
    async def awaited(*arguments: Any, **words: Any) -> Any:
        began = time.monotonic()
        try:
            return await step(*arguments, **words)
        finally:
            notes.append((name, began, time.monotonic()))

    return awaited if inspect.iscoroutinefunction(step) else plain


def main(words: list[str]) -> int:
    file, *options = words
    for name, owner, function in STEPS:
        setattr(owner, function, noted(name, getattr(owner, function)))
    try:
        return agent.main(options)
    finally:
        Path(file).write_text("".join(f"{json.dumps(note)}\n" for note in notes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
