"""The steps to routes, and taking them: what the stages of routes do alike."""

from __future__ import annotations

import errno
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

from tortie.base.plan import Op, Plan, Verb, diff
from tortie.dataplane.batch import BatchStage, carry_out
from tortie.kernel.live import LiveRoutes
from tortie.kernel.routes import Route, apply_many

K = TypeVar("K", bound=Hashable)

PASSING = (errno.ESRCH, errno.ENODEV, errno.ENETDOWN)
"""Refusals of a link that went away, and of a route that is gone: a new one takes the place of an old one with its
metric at once."""


def plan(
    want: Mapping[K, Route], have: Mapping[K, Route], names: Mapping[int, str], add: str = "replace"
) -> Plan[K, Route]:
    """The steps from what is to what should be. `names` are those of the links, by index; `add` is how a new route is
    made."""
    words = {Verb.ADD: add, Verb.CHANGE: "replace", Verb.DELETE: "del"}
    return diff(want, have, lambda verb, _, route: f"ip route {words[verb]} {route.words(names)}")


class RouteStage(BatchStage):
    """Looks at routes as the kernel announces them."""

    def __init__(self, live: LiveRoutes, netns: str | None) -> None:
        self._live = live
        self._netns = netns

    def _carry_out(self, ops: Iterable[Op[Any, Route]]) -> None:
        carry_out(ops, self._netns, apply_many, PASSING)

    def forget(self) -> None:
        """The next plan starts from a listing, whatever the kernel has announced."""
        self._live.forget()
