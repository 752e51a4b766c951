"""Log lines: one JSON object each, whatever a caller sends."""

from __future__ import annotations

import json
import logging

from tortie.base.logs import JsonFormatter

ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""What str.splitlines takes for the end of a line."""


def test_a_message_is_one_line_for_everybody() -> None:
    text = f"pod{ENDS}é"
    record = logging.LogRecord("agent", logging.WARNING, "file", 1, "%s", (text,), None)
    line = JsonFormatter().format(record)
    assert line.splitlines() == [line]
    assert json.loads(line)["message"] == text
    assert "é" in line
