"""What goes wrong when a test says so: slow, refusing, broken, silent, stale and lying answers.

request ──► latency ──► failures (status for the next n, by path) ──► lists: stale, empty, partial ──► answer
watches: cut, silent              connections refused, restarts: see `server`
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from kube_api.statuses import Refusal
from kube_api.storage import Record

_REASONS = {
    401: ("Unauthorized", "Unauthorized"),
    403: ("Forbidden", "forbidden: the test said so"),
    409: ("Conflict", "the test said so"),
    429: ("TooManyRequests", "Too many requests, please try again later."),
    500: ("InternalError", "Internal error occurred: the test said so"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    504: ("Timeout", "Timeout: request did not complete within the allotted timeout"),
}


@dataclass
class Failure:
    """Answers `status` to `times` requests (None: all) whose "METHOD /path" matches. `taken`: after doing the work."""

    status: int
    times: int | None
    pattern: re.Pattern[str]
    retry_after: int | None
    taken: bool = False

    def refusal(self) -> Refusal:
        reason, message = _REASONS.get(self.status, ("", f"the test said {self.status}"))
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        details = {"retryAfterSeconds": self.retry_after} if self.retry_after is not None else None
        return Refusal(self.status, reason, message, details, headers=headers)


@dataclass
class Lie:
    """What lists of paths that match say instead of the truth.

    `revision`: the view at it (stale; must not be compacted). `says`: the revision that the answer names. `hidden`:
    names (or namespace/name) that are left out; None: everything. `only_any`: only lists with resourceVersion "0".
    """

    pattern: re.Pattern[str]
    revision: int | None = None
    says: int | None = None
    hidden: Collection[str] | None = ()
    only_any: bool = False

    def left(self, records: list[Record]) -> list[Record]:
        if self.hidden is None:
            return []
        return [one for one in records if one.name not in self.hidden and one.key not in self.hidden]


@dataclass
class Faults:
    """Switches; all may be changed at any time. `latency` in seconds for each request, watches included."""

    latency: float = 0.0
    slow: str = ".*"
    """Regular expression of "METHOD /path" of the requests that have the latency."""
    silent: bool = False
    """Watches stay open and say nothing, not even bookmarks; what they missed comes when this ends."""
    no_bookmarks: bool = False
    forgetful: bool = False
    """Whatever revision a watch begins from, it is forgotten: more changes while one lists than is remembered."""
    failures: list[Failure] = field(default_factory=list)
    lies: list[Lie] = field(default_factory=list)

    def fail(
        self,
        status: int,
        times: int | None = 1,
        path: str = ".*",
        *,
        retry_after: int | None = None,
        taken: bool = False,
    ) -> Failure:
        """The next `times` requests whose "METHOD /path" the expression finds are answered with `status`.

        `taken`: the work is done all the same, only its answer is lost.
        """
        failure = Failure(status, times, re.compile(path), retry_after, taken)
        self.failures.append(failure)
        return failure

    def stale(self, revision: int, path: str = ".*", *, only_any: bool = True) -> Lie:
        """Lists show what was at `revision`; with `only_any` only those that allow it (resourceVersion "0")."""
        return self._lie(Lie(re.compile(path), revision=revision, says=revision, only_any=only_any))

    def empty(self, path: str = ".*", *, revision: int | None = None) -> Lie:
        """Lists are empty, and name `revision` (by default the true one)."""
        return self._lie(Lie(re.compile(path), says=revision, hidden=None))

    def partial(self, hidden: Collection[str], path: str = ".*", *, revision: int | None = None) -> Lie:
        """Lists lack these objects (names, or namespace/name)."""
        return self._lie(Lie(re.compile(path), says=revision, hidden=hidden))

    def _lie(self, lie: Lie) -> Lie:
        self.lies.append(lie)
        return lie

    def clear(self) -> None:
        """Everything works."""
        self.latency, self.slow, self.silent, self.no_bookmarks = 0.0, ".*", False, False
        self.forgetful = False
        self.failures.clear()
        self.lies.clear()

    async def delay(self, request: str) -> None:
        if self.latency > 0 and re.search(self.slow, request):
            await asyncio.sleep(self.latency)

    def failure(self, request: str) -> Failure | None:
        """The failure that this request meets, if any; counts it."""
        for failure in self.failures:
            if failure.pattern.search(request):
                if failure.times is not None:
                    failure.times -= 1
                    if failure.times <= 0:
                        self.failures.remove(failure)
                return failure
        return None

    def lie(self, path: str, *, any_revision: bool) -> Lie | None:
        return next((one for one in self.lies if one.pattern.search(path) and (any_revision or not one.only_any)), None)


Matcher = Callable[[Record], bool]
