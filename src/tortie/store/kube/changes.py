"""What a watch tells of its objects, when not every object of the server counts, and not every change is one.

    server: ADDED ──── MODIFIED: has an address ── MODIFIED: a probe succeeded ── MODIFIED: finished ── DELETED
    told:              ADDED                                                      DELETED

An object does not count that cannot be read, and a pod that is no endpoint. Only these are remembered: they are few.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import msgspec

from tortie.model.meta import Kind, Resource, changed
from tortie.model.store import Event, EventType
from tortie.store.kube.decoding import Refused, identity
from tortie.store.kube.forms import Form
from tortie.store.kube.watches import Happened
from tortie.store.rules import named

R = TypeVar("R", bound=Resource)
Whose = tuple[str, str]
"""Namespace and name of a document."""

log = logging.getLogger(__name__)

SEEN = 20_000
"""Objects of a derived kind of which a watch remembers what it has told of them."""
LISTINGS = 64
"""Lists of which it is remembered what did not count: a watch goes on from one of them."""
TOLD = 1000
"""Warnings that are remembered, so that none is said again and again."""


class Changes(Generic[R]):
    """Of one watch. `uncounted` are the objects that did not count when it began; where that is not known, it may tell
    of the end of one that never was."""

    def __init__(self, form: Form[R], uncounted: Iterable[Whose]) -> None:
        self._form = form
        self._uncounted = set(uncounted)
        self._seen: dict[Whose, int] = {}

    def event(self, one: Happened, read: Callable[[Form[R], bytes], R | None]) -> Event[R] | None:
        """What is to be told of an event. `read` is asked what an object is to us that is not decoded yet; None where
        it does not count."""
        whose = (one.who.namespace, one.who.name)
        counted = whose not in self._uncounted
        if one.type is EventType.DELETED:
            self._uncounted.discard(whose)
            self._seen.pop(whose, None)
            return self._end(one) if counted else None
        shape = None if one.wire is None else self._form.shape(one.wire)
        if shape is not None and counted and self._seen.get(whose) == shape:
            return None
        found = read(self._form, one.raw) if one.wire is None else self._form.seen(one.wire)[0]
        if found is None:
            self._uncounted.add(whose)
            self._seen.pop(whose, None)
            return self._end(one) if counted and one.type is not EventType.ADDED else None
        self._uncounted.discard(whose)
        if self._form.derived and self._repeats(whose, _shape(found) if shape is None else shape):
            return None
        return Event(one.type if counted else EventType.ADDED, found)

    def _end(self, one: Happened) -> Event[R]:
        last = changed(self._form.last(one.raw), resource_version=one.who.resource_version)
        return Event(EventType.DELETED, last)

    def _repeats(self, whose: Whose, shape: int) -> bool:
        """Whether the very same has been told of it."""
        if self._seen.get(whose) == shape:
            return True
        if len(self._seen) >= SEEN:
            self._seen.clear()
        self._seen[whose] = shape
        return False


def _shape(found: Resource) -> int:
    return hash(msgspec.json.encode(changed(found, resource_version="")))


class Uncounted:
    """By kind and revision of a list, what did not count in it."""

    def __init__(self) -> None:
        self._listings: OrderedDict[tuple[str, str], frozenset[Whose]] = OrderedDict()

    def note(self, kind: Kind, revision: str, whose: Iterable[Whose]) -> None:
        if found := self.at(kind, revision).union(whose):
            self._listings[kind.key, revision] = found
            if len(self._listings) > LISTINGS:
                self._listings.popitem(last=False)

    def at(self, kind: Kind, revision: str) -> frozenset[Whose]:
        return self._listings.get((kind.key, revision), frozenset())


class Remarks:
    """Warnings about what is stored, each said once."""

    def __init__(self) -> None:
        self._said: OrderedDict[str, None] = OrderedDict()

    def refused(self, kind: Kind, refusal: Refused) -> None:
        who = refusal.metadata
        self.say(f"{named(kind, who.name, who.namespace)} is ignored: {refusal}")

    def unknown(self, kind: Kind, raw: bytes, lines: Iterable[str]) -> None:
        """Fields that are not known, as paths, or whole sentences about what cannot be read."""
        who: Any = None
        for line in lines:
            who = who or identity(raw)
            text = line if " " in line else f"{line}: is not known to this version and has no effect"
            self.say(f"{named(kind, who.name, who.namespace)}: {text}")

    def say(self, text: str, level: int = logging.WARNING) -> None:
        if text in self._said:
            return
        self._said[text] = None
        if len(self._said) > TOLD:
            self._said.popitem(last=False)
        log.log(level, "%s", text)
