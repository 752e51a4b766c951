"""Keeps the copies of Kubernetes' objects in Calico's datastore as `copies` says; one controller for each kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Set
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tortie.base.errors import ConfigError
from tortie.calc.copies import POLICY_PREFIX
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.carry_out import carry_out
from tortie.controllers.configuration import ACCOUNT, NAMESPACE, POLICY, Settings, locked
from tortie.controllers.copies import Change, changes, of_account, of_namespace, of_policy, original_of
from tortie.controllers.unreadable import Unreadable
from tortie.model.k8s import K8sNetworkPolicy, Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.policy import NetworkPolicy, Profile
from tortie.model.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pattern:
    """What is copied and how. `option`: its word in ENABLED_CONTROLLERS; `prefix`: how the names of copies begin."""

    option: str
    original: type[Resource]
    copy: type[Resource]
    prefix: str
    make: Callable[[Any], Resource]


PATTERNS = (
    Pattern(NAMESPACE, Namespace, Profile, "kns.", of_namespace),
    Pattern(ACCOUNT, ServiceAccount, Profile, "ksa.", of_account),
    Pattern(POLICY, K8sNetworkPolicy, NetworkPolicy, POLICY_PREFIX, of_policy),
)


class Mirror:
    """Decides and acts, each copy on its own."""

    def __init__(self, store: Store, pattern: Pattern, *, later: Backoff | None = None) -> None:
        self.name = f"{pattern.option}-copies"
        self.option = pattern.option
        self._store = store
        self._pattern = pattern
        self.later = later or at_once()
        self._told: dict[str, str] = {}

    def period(self, settings: Settings) -> timedelta:
        return settings.period(self.option)

    async def run_once(self) -> int:
        """One pass; how many copies could not be changed. A copy goes only when its original, asked for by name, is
        gone. Raises Unavailable; NotSupported when the originals cannot be listed: they would seem to be gone."""
        if await locked(self._store):
            return 0
        have = (await self._store.list(self._pattern.copy)).items
        originals = (await self._store.list(self._pattern.original)).items
        want: list[Resource] = []
        unclear: dict[str, str] = {}
        for each in originals:
            try:
                want.append(self._pattern.make(each))
            except ConfigError as error:
                unclear[each.title] = str(error.within(each.title))
        for title in unclear.keys() - self._told.keys():
            log.warning("not copied: %s", unclear[title])
        self._told = unclear
        todo = changes(want, have, self._pattern.prefix, unclear.keys())
        listed, unreadable = {(each.namespace, each.name) for each in originals}, Unreadable(self._store)
        return sum(
            [
                await carry_out(self._store, self.later, log, each, each.copy)
                for each in todo
                if not await self._stays(each, listed, unreadable)
            ]
        )

    async def _stays(self, change: Change[Resource], listed: Set[tuple[str, str]], unreadable: Unreadable) -> bool:
        """Whether it would delete the copy of what is there, and in no list."""
        original = original_of(change.copy, self._pattern.original) if change.verb == "delete" else None
        if original is None or original in listed:
            return False
        namespace, name = original
        return await unreadable.is_there(self._pattern.original, name, namespace)
