"""What is in a namespace, listed once and then kept current by the kernel's own announcements.

Listing costs by what is there, announcements by what changes. The kernel queues them while it makes the change, so that
what is read afterwards is what is so. When some are lost because nobody reads, everything is listed anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from tortie.kernel import events


class Announced(ABC):
    """Used by one thread. `netns` is a path; None is the namespace of the thread that refreshes first."""

    def __init__(self, netns: str | None, groups: Sequence[events.Group]) -> None:
        self._netns = netns
        self._groups = groups
        self._monitor: events.Monitor | None = None
        self._known = False
        """Whether what was listed and announced is all there is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        self._known = False

    def forget(self) -> None:
        """List everything at the next refresh."""
        self._known = False

    def refresh(self) -> None:
        """Take in what has changed since the last time. Raises KernelError."""
        if self._monitor is None:
            self._monitor = events.Monitor(self._netns, self._groups)
        for event in self._monitor.all_waiting():
            if self._known:
                self._take_in(event)
        if not self._known:
            self._list()
            self._known = True

    @abstractmethod
    def _list(self) -> None:
        """Forget everything, and list it."""

    @abstractmethod
    def _take_in(self, event: events.Event) -> None:
        """What does not say all that has changed makes everything unknown."""
