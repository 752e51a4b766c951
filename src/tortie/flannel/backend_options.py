"""What `Backend` says to a backend, typed: keys in any case, as Go reads them; one that nobody asked for is told."""

from __future__ import annotations

import logging
from typing import Any

from tortie.base.errors import ConfigError
from tortie.cni.spec import lookup
from tortie.flannel.config import NetworkConfig

log = logging.getLogger(__name__)


class BackendOptions:
    """Every method raises ConfigError naming the option: of another type, or out of range. null is unset."""

    def __init__(self, config: NetworkConfig) -> None:
        self._options = config.options
        self._type = config.backend_type
        self._asked = {"type"}

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """Bounds included."""
        found = self.anything(key)
        if found is None:
            return default
        if type(found) is not int or not low <= found <= high:
            raise ConfigError(f"{found!r} is not a whole number from {low} to {high}", f"Backend.{key}")
        return found

    def boolean(self, key: str) -> bool:
        found = self.anything(key)
        if found is not None and type(found) is not bool:
            raise ConfigError(f"{found!r} is neither true nor false", f"Backend.{key}")
        return bool(found)

    def text(self, key: str, default: str = "") -> str:
        found = self.anything(key)
        if found is not None and type(found) is not str:
            raise ConfigError(f"{found!r} is not a string", f"Backend.{key}")
        return default if found is None else str(found)

    def anything(self, key: str) -> Any:
        """The value as it was written; None for none."""
        self._asked.add(key.lower())
        return lookup(self._options, key)

    def done(self) -> None:
        """Everything was asked for: what else is written has no effect, and is told."""
        for key in self._options:
            if key.lower() not in self._asked:
                log.warning("Backend.%s: is not an option of %s, without effect", key, self._type)
