"""A cluster on values for tests of the controllers, and a store that refuses what is bad."""

from __future__ import annotations

from ipam_cluster import Cluster
from tortie.base.errors import NotSupported, Unavailable
from tortie.controllers.backoff import Backoff
from tortie.controllers.leader import Fenced
from tortie.model.meta import Resource
from tortie.model.store import Listing, R, Store


class Refusing(Fenced):
    """A store that refuses to write what has `bad` in its name, and to read kinds that are named unreadable; objects of
    names that are hidden are there, in no list, as in datastores that leave out what cannot be read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.unreadable: set[type[Resource]] = set()
        self.hidden: set[str] = set()
        self.attempts: list[str] = []
        self.refusing = True

    def _may_write(self) -> None:
        pass

    def _refuse(self, name: str) -> None:
        if self.refusing and "bad" in name:
            self.attempts.append(name)
            raise Unavailable(f"refused: {name}")

    async def list(self, kind: type[R], namespace: str | None = None) -> Listing[R]:
        if kind in self.unreadable:
            raise NotSupported(f"a stored {kind.KIND.kind} is not known to this version")
        found = await super().list(kind, namespace)
        return Listing(tuple(each for each in found.items if each.name not in self.hidden), found.revision)

    async def get(self, kind: type[R], name: str, namespace: str = "") -> R:
        found = await super().get(kind, name, namespace)
        if name in self.hidden:
            raise NotSupported(f"a stored {kind.KIND.kind} is not known to this version")
        return found

    async def create(self, obj: R) -> R:
        self._refuse(obj.name)
        return await super().create(obj)

    async def update(self, obj: R) -> R:
        self._refuse(obj.name)
        return await super().update(obj)

    async def delete(self, kind: type[R], name: str, namespace: str = "", revision: str = "") -> R:
        self._refuse(name)
        return await super().delete(kind, name, namespace, revision)


class Hands:
    """A clock for pauses, which the test turns."""

    def __init__(self) -> None:
        self.time = 0.0

    def backoff(self) -> Backoff:
        return Backoff(clock=lambda: self.time, chance=lambda: 0.0)


class Town(Cluster):
    def __init__(self) -> None:
        super().__init__()
        self.refusing = Refusing(self.store)
        self.hands = Hands()

    async def names(self, kind: type[Resource]) -> set[str]:
        return {each.name for each in (await self.store.list(kind)).items}
