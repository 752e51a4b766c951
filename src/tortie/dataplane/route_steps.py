"""Carrying out what a stage of routes has planned: the one thing that these stages do alike."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

from tortie.base.plan import Op
from tortie.kernel.netlink import Netlink
from tortie.kernel.routes import Route, apply_many

K = TypeVar("K", bound=Hashable)

ESRCH, ENODEV, ENETDOWN = 3, 19, 100


def carry_out(ops: Iterable[Op[K, Route]], netns: str | None) -> None:
    """All steps, in a namespace (path; None: this one's). The first refusal is raised after the others were tried.

    A link that went away is none, nor is a route that is gone: a new one takes the place of an old one with its metric
    at once. Raises KernelError.
    """
    steps = [("replace", op.want) if op.want is not None else ("delete", op.have) for op in ops]
    if not steps:
        return
    with Netlink(netns) as nl:
        refused = apply_many(nl, [(verb, route) for verb, route in steps if route is not None])
    serious = [error for _, error in refused if error.errno not in (ESRCH, ENODEV, ENETDOWN)]
    if serious:
        raise serious[0]
