"""Which passwords a session can have: BIRD's configuration has strings without escapes, TCP MD5 keys of 80 bytes."""

from __future__ import annotations

MAX_PASSWORD = 80
"""Bytes of a TCP MD5 key (TCP_MD5SIG_MAXKEYLEN, linux/tcp.h)."""


def unfit(password: str) -> str:
    """Why no session can have this password, without repeating it; "" when one can."""
    if not password:
        return "is empty"
    if password.endswith("\n") and password[:-1].isprintable():
        return "ends in a newline, which is hardly meant: write it without (echo -n)"
    if '"' in password or not password.isprintable():
        return "has a quote or a control character, which BIRD cannot hold: choose another"
    if len(password.encode()) > MAX_PASSWORD:
        return f"has more than {MAX_PASSWORD} bytes, the most that a TCP MD5 key can have"
    return ""
