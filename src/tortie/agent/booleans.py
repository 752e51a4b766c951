"""Yes and no as Calico's variables have them."""

from __future__ import annotations

FALSE = frozenset(("false", "0", "no", "n", "f"))


def boolean(text: str, default: bool = False) -> bool:
    """What a variable says: those words, in any case, are no, and any other text is yes. Empty: the default."""
    return text.lower() not in FALSE if text else default
