"""Plans whose steps the kernel takes many at a time: what the stages of routes and of far ends do alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

from tortie.base.errors import KernelError
from tortie.base.plan import Op, Plan
from tortie.dataplane.converge import Work
from tortie.kernel.netlink import Netlink

K = TypeVar("K")
V = TypeVar("V")

ApplyMany = Callable[[Netlink, list[tuple[str, V]]], Sequence[tuple[int, KernelError]]]
"""Takes `replace` and `delete` with things; the refusals, each with the number of its step."""


def carry_out(ops: Iterable[Op[K, V]], netns: str | None, apply_many: ApplyMany[V], passing: Collection[int]) -> None:
    """All steps, in a namespace (path; None: this one's). The first refusal is raised after the others were tried; one
    with an errno in `passing` is none. Raises KernelError."""
    steps = [("replace", op.want) if op.want is not None else ("delete", op.have) for op in ops]
    if not steps:
        return
    with Netlink(netns) as nl:
        refused = apply_many(nl, [(verb, thing) for verb, thing in steps if thing is not None])
    serious = [error for _, error in refused if error.errno not in passing]
    if serious:
        raise serious[0]


class BatchStage(ABC):
    """Takes the steps that a stage's plan decides on."""

    guard = False

    @abstractmethod
    def _carry_out(self, ops: Iterable[Op[Any, Any]]) -> None:
        """Raises KernelError."""

    def make(self, work: Work) -> None:
        assert isinstance(work, Plan)
        self._carry_out(op for op in work if op.makes)

    def unmake(self, work: Work) -> None:
        assert isinstance(work, Plan)
        self._carry_out(op for op in work if not op.makes)
