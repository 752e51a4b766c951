"""Which service has a frontend that several ask for: the oldest, then the one of the lowest namespace and name."""

from __future__ import annotations

from collections.abc import Iterable

from tortie.calc.proxy.state import Frontend, ServiceKey

Rank = tuple[str, ServiceKey]
"""The lower goes first: when the service was made, and its key."""


class Claims:
    """All frontends and who has them. It costs what one service asks for, and who else asks for the same."""

    def __init__(self) -> None:
        self._ranks: dict[ServiceKey, Rank] = {}
        self._of: dict[ServiceKey, tuple[Frontend, ...]] = {}
        self._holders: dict[Frontend, ServiceKey] = {}
        self._waiting: dict[Frontend, set[ServiceKey]] = {}
        """Who else would like to have it. Hardly any frontend is in here."""

    def holder(self, frontend: Frontend) -> ServiceKey | None:
        return self._holders.get(frontend)

    def claim(self, key: ServiceKey, created: str, frontends: Iterable[Frontend]) -> set[ServiceKey]:
        """From now on a service asks for exactly these. The other services for which that changes something."""
        self._ranks[key] = created, key
        touched: set[ServiceKey] = set()
        new = tuple(frontends)
        for frontend in self._of.pop(key, ()):
            self._release(key, frontend, touched)
        for frontend in new:
            self._take(key, frontend, touched)
        if new:
            self._of[key] = new
        else:
            del self._ranks[key]
        return touched - {key}

    def _release(self, key: ServiceKey, frontend: Frontend, touched: set[ServiceKey]) -> None:
        waiting = self._waiting.get(frontend, set())
        waiting.discard(key)
        if self._holders[frontend] == key:
            touched |= waiting
            del self._holders[frontend]
            if waiting:
                heir = min(waiting, key=self._ranks.__getitem__)
                waiting.remove(heir)
                self._holders[frontend] = heir
        if not waiting:
            self._waiting.pop(frontend, None)

    def _take(self, key: ServiceKey, frontend: Frontend, touched: set[ServiceKey]) -> None:
        holder = self._holders.setdefault(frontend, key)
        if holder == key:
            return
        waiting = self._waiting.setdefault(frontend, set())
        if self._ranks[key] < self._ranks[holder]:
            touched |= {holder, *waiting}
            self._holders[frontend] = key
            waiting.add(holder)
        else:
            waiting.add(key)
