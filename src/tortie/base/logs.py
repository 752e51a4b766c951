"""Log lines as JSON objects, one per line, on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

from tortie.base.errors import ConfigError

PAUSE = 60.0
"""Seconds in which the same complaint is not repeated."""
ESCAPED = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}
"""What many programs take for the end of a line, and JSON does not."""
LEVELS = {
    "trace": "DEBUG", "debug": "DEBUG", "info": "INFO", "warn": "WARNING", "warning": "WARNING", "error": "ERROR",
    "fatal": "ERROR", "panic": "ERROR",
}  # fmt: skip
"""Calico's words, of all its programs."""


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False).translate(ESCAPED)


def to_stderr(level: str) -> None:
    """Every logger from now on. `level` is one of Calico's words, in any case. Raises ConfigError for another one."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.setLevel(python_level(level))
    logging.basicConfig(handlers=[handler], level=handler.level, force=True)


def python_level(level: str) -> str:
    """Python's word for it. Raises ConfigError."""
    try:
        return LEVELS[level.lower()]
    except KeyError:
        raise ConfigError(f'"{level}" is not one of {", ".join(LEVELS)}', "--log-level") from None


class Seldom:
    """Warnings about something that stays wrong and is tried again every second: said once in a while."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._said: dict[str, float] = {}
        """When, the earliest first: there may be thousands, one for each node."""

    def warning(self, text: str) -> None:
        now = self._clock()
        while self._said and now - self._said[oldest := next(iter(self._said))] >= PAUSE:
            del self._said[oldest]
        if text not in self._said:
            self._said[text] = now
            self._log.warning("%s", text)
