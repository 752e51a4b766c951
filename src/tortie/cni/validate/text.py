"""JSON with the place of everything in it: line and column of each key, and of each item of a list.

What is no JSON is told as Go's decoder would refuse it, and where. A key that is given twice counts as its last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from json import JSONDecodeError
from json.decoder import scanstring  # type: ignore[attr-defined]  # there since there is json
from typing import Any

Path = tuple[str | int, ...]
"""Keys and indexes from the outside in: ("plugins", 0, "ipam")."""
Place = tuple[int, int]
"""Line and column, counted from 1."""

DEEPEST = 200
_BLANK = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "null": None}


class NotJson(ValueError):
    """What is wrong, and where."""

    def __init__(self, why: str, place: Place) -> None:
        super().__init__(why)
        self.place = place


@dataclass
class Document:
    """A decoded text. `places` are by paths of keys in lower case, as plugins take keys in any; `twice`: keys that
    an object has more than once."""

    value: Any = None
    places: dict[Path, Place] = field(default_factory=dict)
    twice: list[Path] = field(default_factory=list)


def parse(text: str) -> Document:
    """Raises NotJson."""
    return _Reader(text).document()


def folded(path: Path) -> Path:
    return tuple(part.casefold() if isinstance(part, str) else part for part in path)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found = Document()

    def document(self) -> Document:
        self.found.value = self.value(())
        self.skip()
        if self.at < len(self.text):
            raise self.wrong("nothing may follow the first value")
        return self.found

    def place(self, at: int) -> Place:
        return self.text.count("\n", 0, at) + 1, at - (self.text.rfind("\n", 0, at) + 1) + 1

    def wrong(self, why: str) -> NotJson:
        if self.at >= len(self.text):
            return NotJson("the text ends before its JSON does", self.place(len(self.text.rstrip())))
        return NotJson(why, self.place(self.at))

    def skip(self) -> str:
        """Past blanks; the character there, "" at the end."""
        self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches nothing, too
        return self.text[self.at : self.at + 1]

    def value(self, path: Path) -> Any:
        char = self.skip()
        if len(path) > DEEPEST:
            raise self.wrong("too many levels")
        if char == "{":
            return self.object(path)
        if char == "[":
            return self.list(path)
        if char == '"':
            return self.string()
        for word, meaning in _WORDS.items():
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return meaning
        number = _NUMBER.match(self.text, self.at)
        if number is None:
            raise self.wrong(f"{char!r} does not begin a value")
        self.at = number.end()
        return float(number[0]) if number[2] or number[3] else int(number[0])

    def string(self) -> str:
        try:
            value: str
            value, self.at = scanstring(self.text, self.at + 1, True)
        except JSONDecodeError as error:
            self.at = len(self.text) if error.msg.startswith("Unterminated") else error.pos
            raise self.wrong(error.msg.lower()) from None
        return value

    def object(self, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        self.at += 1
        if self.skip() == "}":
            self.at += 1
            return values
        while True:
            if self.skip() != '"':
                raise self.wrong("a key in double quotes must stand here")
            place = self.place(self.at)
            key = self.string()
            if self.skip() != ":":
                raise self.wrong(f'a colon must follow the key "{key}"')
            self.at += 1
            inner = (*path, key)
            if key in values:
                self.found.twice.append(inner)
            self.found.places[folded(inner)] = place
            values.pop(key, None)  # of several spellings the last wins, so it must be the last
            values[key] = self.value(inner)
            if self.closes("}"):
                return values

    def list(self, path: Path) -> list[Any]:
        values: list[Any] = []
        self.at += 1
        if self.skip() == "]":
            self.at += 1
            return values
        while True:
            self.skip()
            inner = (*path, len(values))
            self.found.places[folded(inner)] = self.place(self.at)
            values.append(self.value(inner))
            if self.closes("]"):
                return values

    def closes(self, end: str) -> bool:
        """Past the comma or the end that follows a member."""
        char = self.skip()
        if char not in (",", end) or not char:
            raise self.wrong(f"a comma or {end} must stand here")
        self.at += 1
        return char == end
