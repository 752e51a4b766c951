"""The three standard streams of a command: open, and fit to print every sign of ours.

A stream that the caller has closed is /dev/null: its number would else go to the next file that is opened, a datastore
perhaps, and a program that the command runs would print into that.
"""

from __future__ import annotations

import codecs
import os
import sys

SIGNS = {
    "✔": "+", "✓": "+", "✘": "x", "✗": "x", "∅": "0", "·": ".", "→": ">", "╲": "\\", "−": "-", "–": "-", "×": "x",
    "µ": "u", "μ": "u", "…": "~", "’": "'", "►": ">", "◄": "<", "▲": "^", "▼": "v", "─": "-", "═": "=", "│": "|",
}  # fmt: skip
"""What stands for a sign that the terminal's encoding lacks: one character, for it stands in tables."""
CORNERS = ("\u2500", "\u257f")
"""The first and the last of Unicode's box drawing."""
INSTEAD = "tortie-signs"


def begin() -> None:
    """Makes them fit. To be called before any file is opened."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if stream.encoding.lower() not in ("utf-8", "utf8"):
            codecs.register_error(INSTEAD, _instead)
            stream.reconfigure(errors=INSTEAD)  # type: ignore[union-attr]


def drop_unwritten() -> None:
    """What is printed and cannot be written, to a pipe without a reader or a full disk, is not tried again when the
    process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def plain(text: str) -> str:
    """The same in ASCII, of the same length.

    >>> plain("✔ a → b")
    '+ a > b'
    """
    corner = {c: "+" for c in text if CORNERS[0] <= c <= CORNERS[1]}
    return "".join(c if c.isascii() else SIGNS.get(c, corner.get(c, "?")) for c in text)


def _instead(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end
