"""Commands as somebody who is not root, but may read what root may: a checkout in root's home is nobody's otherwise."""

from __future__ import annotations

NOBODY = 65534
READER = "dac_read_search"  # CAP_DAC_READ_SEARCH


def as_nobody(*argv: str) -> list[str]:
    """The command line that runs `argv` so."""
    caps = f"+{READER}"
    who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return ["setpriv", *who, f"--inh-caps={caps}", f"--ambient-caps={caps}", *argv]
