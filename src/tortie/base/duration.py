"""Durations as operators write them: Go's form, which Calico's and Kubernetes' settings share."""

from __future__ import annotations

import re
from datetime import timedelta

from tortie.base.errors import ConfigError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")


def parse_duration(text: str) -> timedelta:
    """A duration that is not negative. Raises ConfigError naming the text.

    >>> parse_duration("1m30s"), parse_duration("0")
    (datetime.timedelta(seconds=90), datetime.timedelta(0))
    """
    parts = _PART.findall(text)
    if text != "0" and (not parts or "".join(number + unit for number, unit in parts) != text):
        raise ConfigError(f'"{text}" is not a duration such as 90s, 15m or 1m30s')
    try:
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        raise ConfigError(f'"{text}" is too long a duration') from None
