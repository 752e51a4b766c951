"""The words of a rule, read from left to right."""

from __future__ import annotations

import re

from tortie.base.errors import NotSupported

_WORD = re.compile(r'\s*(?:("[^"]*")|([{},()&|^])|(!=|==|<=|>=|<|>)|([^\s{},()&|^"=!<>]+))')


class NotUnderstood(NotSupported):
    """The tracer does not know what this text means to the kernel; it never guesses."""


class Words:
    """A position in the words of `text`. A quoted string is one word, with its quotes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._words: list[str] = []
        self._at = 0
        end = 0
        while end < len(text.rstrip()):
            found = _WORD.match(text, end)
            if found is None:
                raise NotUnderstood(f"cannot read {text[end:]!r} in: {text}")
            self._words.append(found[0].strip())
            end = found.end()

    def __bool__(self) -> bool:
        return self._at < len(self._words)

    @property
    def next(self) -> str:
        """The word that `take` would give; "" at the end."""
        return self._words[self._at] if self else ""

    def ahead(self, count: int) -> str:
        """The next `count` words, with single spaces."""
        return " ".join(self._words[self._at : self._at + count])

    def take(self) -> str:
        if not self:
            raise NotUnderstood(f"the rule ends too early: {self.text}")
        self._at += 1
        return self._words[self._at - 1]

    def skip(self, words: str) -> bool:
        """Whether exactly these come next; they are taken then."""
        count = len(words.split())
        if self.ahead(count) != words:
            return False
        self._at += count
        return True

    def need(self, words: str) -> None:
        if not self.skip(words):
            raise self.unknown(f'"{words}" expected')

    def unknown(self, what: str = "not known") -> NotUnderstood:
        rest = " ".join(self._words[self._at :])
        return NotUnderstood(f"{what}: {rest!r} in: {self.text}")
