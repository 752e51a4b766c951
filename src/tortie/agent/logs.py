"""Log lines as JSON objects, one per line, on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime

PAUSE = 60.0
"""Seconds in which the same complaint is not repeated."""
LEVELS = {"trace": "DEBUG", "debug": "DEBUG", "info": "INFO", "warning": "WARNING", "error": "ERROR", "fatal": "ERROR"}


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
        return json.dumps(line, ensure_ascii=False)


def to_stderr(level: str) -> None:
    """Every logger from now on. `level` is one of Calico's words, in any case."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=LEVELS.get(level.lower(), "INFO"), force=True)


class Seldom:
    """Warnings about something that stays wrong and is tried again every second: said once in a while."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: dict[str, float] = {}

    def warning(self, text: str) -> None:
        now = time.monotonic()
        self._said = {one: when for one, when in self._said.items() if now - when < PAUSE}
        if text not in self._said:
            self._said[text] = now
            self._log.warning("%s", text)
