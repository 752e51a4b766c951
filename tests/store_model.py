"""Random writes and reads against a datastore, held against a dictionary: a part of `store_contract`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from store_words import namespaces, netset, now, revisions, take
from tortie.base.errors import Conflict, Exists, NotFound
from tortie.model.policy import NetworkSet

if TYPE_CHECKING:
    from store_contract import Backend

NAMES = st.sampled_from(["a", "b", "c"])
PLACES = st.sampled_from(["red", "blue"])
LABELS = st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["1", "2", ""]), max_size=2)
Place = tuple[str, str]


def machine(backend: Backend) -> type[RuleBasedStateMachine]:
    """Random writes and reads, held against a dictionary; at the end the watch must have told the same story."""

    class AgainstADictionary(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()
            self.objects: dict[Place, NetworkSet] = {}
            self.old: dict[Place, NetworkSet] = {}
            self.story: list[tuple[str, Place, dict[str, str]]] = []
            self.newest = 0
            self.store = self.run_(backend.fresh())
            self.run_(namespaces(self.store, "red", "blue"))
            self.start = self.run_(now(self.store))

        def run_(self, coroutine: Any) -> Any:
            return self.runner.run(coroutine)

        def wrote(self, type_: str, obj: NetworkSet) -> None:
            place = obj.namespace, obj.name
            self.story.append((type_, place, obj.labels))
            if type_ == "DELETED":
                del self.objects[place]
            else:
                (revision,) = revisions(obj)
                assert revision > self.newest
                self.newest = revision
                self.objects[place] = obj

        @rule(name=NAMES, namespace=PLACES, labels=LABELS)
        def create(self, name: str, namespace: str, labels: dict[str, str]) -> None:
            obj = netset(namespace, name, labels=labels)
            if (namespace, name) in self.objects:
                with pytest.raises(Exists):
                    self.run_(self.store.create(obj))
            else:
                self.wrote("ADDED", self.run_(self.store.create(obj)))

        @rule(name=NAMES, namespace=PLACES, labels=LABELS, given=st.sampled_from(["none", "newest", "old"]))
        def update(self, name: str, namespace: str, labels: dict[str, str], given: str) -> None:
            place = namespace, name
            stored, old = self.objects.get(place), self.old.get(place)
            source = {"none": None, "newest": stored, "old": old}[given]
            revision = source.metadata.resource_version if source else ""
            obj = netset(namespace, name, labels=labels, resource_version=revision)
            if stored is None:
                with pytest.raises((NotFound, Conflict)):
                    self.run_(self.store.update(obj))
            elif revision and revision != stored.metadata.resource_version:
                with pytest.raises(Conflict):
                    self.run_(self.store.update(obj))
            else:
                new = self.run_(self.store.update(obj))
                if labels == stored.labels:
                    assert new == stored
                else:
                    self.old[place] = stored
                    self.wrote("MODIFIED", new)

        @rule(name=NAMES, namespace=PLACES, conditional=st.booleans())
        def delete(self, name: str, namespace: str, conditional: bool) -> None:
            place = namespace, name
            stored = self.objects.get(place)
            if stored is None:
                with pytest.raises(NotFound):
                    self.run_(self.store.delete(NetworkSet, name, namespace))
                return
            revision = stored.metadata.resource_version if conditional else ""
            assert self.run_(self.store.delete(NetworkSet, name, namespace, revision)) == stored
            self.old[place] = stored
            self.wrote("DELETED", stored)

        @rule(name=NAMES, namespace=PLACES)
        def get(self, name: str, namespace: str) -> None:
            stored = self.objects.get((namespace, name))
            if stored is None:
                with pytest.raises(NotFound):
                    self.run_(self.store.get(NetworkSet, name, namespace))
            else:
                assert self.run_(self.store.get(NetworkSet, name, namespace)) == stored

        @invariant()
        def lists_agree(self) -> None:
            listing = self.run_(self.store.list(NetworkSet))
            assert list(listing.items) == [self.objects[place] for place in sorted(self.objects)]
            assert int(listing.revision) >= self.newest

        async def told(self) -> list[tuple[str, Place, dict[str, str]]]:
            async with aclosing(self.store.watch(NetworkSet, self.start)) as watch:
                found = await take(watch, len(self.story)) if self.story else []
            return [(one.type.value, (one.object.namespace, one.object.name), one.object.labels) for one in found]

        def teardown(self) -> None:
            try:
                assert self.run_(self.told()) == self.story
            finally:
                self.run_(self.store.close())
                self.runner.close()

    return AgainstADictionary
