"""Drive the stages from what is to what should be: plan all, make in order, unmake in reverse order.

    state ─► stage 1: plan ─► make ─┐             ┌─► unmake
             stage 2: plan ─► make ─┴─► ... ──────┴─► unmake

A guard (policy) that fails ends the pass: better no route than a route past a missing policy.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tortie.base.errors import TortieError

S = TypeVar("S", contravariant=True)
"""What the kernel should be like: the agent's `DesiredState`, or that of another program with stages of its own."""

log = logging.getLogger(__name__)


class Work(Protocol):
    """A stage's plan for one pass. `str()` of it is the transcript; false when there is nothing to do."""

    def __bool__(self) -> bool: ...


class Stage(Protocol[S]):
    """One kind of kernel object. Every method may raise KernelError, NotFound, Unavailable or NotSupported."""

    name: str
    guard: bool

    def plan(self, state: S) -> Work:
        """Observe, and decide what leads from there to the state."""
        ...

    def make(self, work: Work) -> None:
        """Apply the additions and changes."""
        ...

    def unmake(self, work: Work) -> None:
        """Apply the deletions."""
        ...

    def forget(self) -> None:
        """Something may have changed behind our back: look at the kernel again before the next plan."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A stage that did not get there; it is tried again. Of a guard: nothing after it was done either."""

    stage: str
    error: TortieError
    guard: bool = False

    def __str__(self) -> str:
        return f"{self.stage}: {self.error}"


def converge(stages: Sequence[Stage[S]], state: S) -> list[Failure]:
    """One pass. An empty answer means that the kernel is as `state` says."""
    failures: list[Failure] = []
    made: list[tuple[Stage[S], Work]] = []
    for stage in stages:
        try:
            work = stage.plan(state)
            if work:
                log.debug("%s:\n%s", stage.name, work)
                stage.make(work)
                made.append((stage, work))
        except TortieError as error:
            stage.forget()
            failures.append(Failure(stage.name, error, stage.guard))
            if stage.guard:
                return failures
    for stage, work in reversed(made):
        try:
            stage.unmake(work)
        except TortieError as error:
            stage.forget()
            failures.append(Failure(stage.name, error, stage.guard))
    return failures
