"""Tells what is in force: `status` of the KubeControllersConfiguration, which is made if it is missing.

Source: Calico's kube-controllers, `status.runningConfig` and `status.environmentVars`.
"""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from tortie.base.errors import Exists
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.configuration import NODE, PERIOD, Configured, Settings, configuration, in_force, locked
from tortie.model.controllers import KubeControllersConfiguration, KubeControllersConfigurationSpec
from tortie.model.document import encode
from tortie.model.store import Store

log = logging.getLogger(__name__)


def told(config: KubeControllersConfiguration, settings: Settings) -> KubeControllersConfiguration:
    """The configuration with what is in force in its status; others' words there stay."""
    said: dict[str, Any] = config.status if isinstance(config.status, dict) else {}
    spec = json.loads(encode(KubeControllersConfiguration(spec=settings.spec))).get("spec", {})
    return replace(config, status=said | {"runningConfig": spec, "environmentVars": dict(settings.environment)})


def defaults() -> KubeControllersConfigurationSpec:
    """As Calico makes one that is missing."""
    return in_force(KubeControllersConfigurationSpec(), {}).spec


class RunningConfig:
    """Writes it when it changes."""

    name = "running-config"
    option = NODE

    def __init__(self, store: Store, configured: Configured, later: Backoff | None = None) -> None:
        self._store = store
        self._configured = configured
        self.later = later or at_once()

    def period(self, settings: Settings) -> timedelta:
        return PERIOD

    async def run_once(self) -> int:
        """Raises Unavailable, Conflict."""
        if await locked(self._store):
            return 0
        have = await configuration(self._store)
        if not have.metadata.resource_version:
            try:
                have = await self._store.create(replace(have, spec=defaults()))
            except Exists:
                return 1
        new = told(have, in_force(have.spec, self._configured.environment, self._configured.datastore))
        if new.status != have.status:
            await self._store.update(new)
        return 0
