"""Options that take one of a few words."""

from __future__ import annotations

from collections.abc import Iterable

from tortie.base.errors import ConfigError


def check_choice(given: str, words: Iterable[str], option: str) -> None:
    """Raises ConfigError for any other word."""
    every = tuple(words)
    if given not in every:
        raise ConfigError(f'"{given}" is not one of {", ".join(every)}', option)
