"""What BIRD's log says of sessions: errors that `show protocols` forgets as soon as the next try fails in another way.

2026-11-21 09:24:14.303 <RMT> Node_10_9_0_5: Error: Bad peer AS: 65009
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

TELLING = ("Bad peer AS", "Hold timer expired", "Administrative shutdown", "Peer de-configured")
"""Errors that are causes; what a socket meets is seen by looking."""
SLACK = timedelta(seconds=2)
"""By which a session may be in its state before what brought it there is written down, or after."""

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\S* <(?:RMT|ERR|WARN)> (\w+): ((?:Received|Error|BGP Error): .*)")


def telling_errors(log: str, since: dict[str, str], now: datetime) -> dict[str, str]:
    """By session its last error that tells something, unless it was up after that. `since` is, by session, when it came
    into its state, as BIRD prints it. All times are BIRD's, without a zone."""
    lines = ((datetime.fromisoformat(stamp), session, error) for stamp, session, error in _LINE.findall(log))
    return {
        session: error
        for stamp, session, error in lines
        if session in since and any(word in error for word in TELLING) and stamp >= moment(since[session], now) - SLACK
    }


def moment(text: str, now: datetime) -> datetime:
    """`10:20:30.123`, of today or yesterday, or a date. What is neither is long ago."""
    try:
        found = datetime.fromisoformat(text if "-" in text else f"{now:%Y-%m-%d} {text}")
    except ValueError:
        return datetime.min + SLACK
    return found - timedelta(days=1) if found > now + SLACK else found
