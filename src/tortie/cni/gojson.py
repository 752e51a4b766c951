"""JSON as Go reads and writes it, for programs whose start somebody waits for.

The parts of `json` that are written in C do the work. What `json` has around them costs more to import than a plugin
has time; all that was needed of it is here, and a test holds the two together.
"""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BLANKS = " \t\n\r"
_STEP = "    "


def format_json(value: Any) -> str:
    """Indented by 4, no newline at the end, with the characters escaped that Go escapes. Keys keep their order."""
    return _go_escapes(_written(value, "\n"))


def compact_json(value: Any) -> str:
    """The same without any blank, as plugins read it from stdin."""
    return _go_escapes(_written(value, ""))


def quote(text: str) -> str:
    """`text` in double quotes, one line whatever it holds."""
    return _written(text, "")


def json_type(value: Any) -> str:
    """What JSON calls the type of a decoded value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    names = {str: "string", int: "number", float: "number", list: "array", tuple: "array"}
    return names.get(type(value), "object")


def read_json(data: bytes) -> Any:
    """Raises ValueError with Go's words where Go has short ones. Of equal keys in an object the last stays, as last."""
    text = data.decode("utf-8", "replace")
    try:
        try:
            return _read(text)
        except SystemError:  # the scanner found no json.decoder.JSONDecodeError to raise, which it does not import
            import json.decoder  # noqa: F401

            return _read(text)
    except RecursionError:
        raise ValueError("exceeded max depth") from None
    except ValueError as error:
        if not hasattr(error, "pos"):  # json.JSONDecodeError has
            raise
        raise _misread(text, error.pos, getattr(error, "msg", "")) from None


def _read(text: str) -> Any:
    if text.startswith("\ufeff"):
        raise _misread(text, 0, "Unexpected UTF-8 BOM (decode using utf-8-sig)")
    try:
        value, end = _scan(text, len(text) - len(text.lstrip(_BLANKS)))
    except StopIteration as nothing:
        raise _misread(text, nothing.value, "Expecting value") from None
    rest = len(text) - len(text[end:].lstrip(_BLANKS))
    if rest != len(text):
        raise _misread(text, rest, "Extra data")
    return _whole(value) if "\\ud" in text or "\\uD" in text else value


def _whole(value: Any) -> Any:
    """Without halves of characters that stand alone: Go reads them as U+FFFD, and no file or link could be named so."""
    if isinstance(value, str):
        return _mended(value)
    if isinstance(value, dict):
        return {_mended(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _misread(text: str, at: int, why: str) -> ValueError:
    if at >= len(text.rstrip()) or why.startswith("Unterminated string"):
        return ValueError("unexpected end of JSON input")
    place = f"at line {text.count(chr(10), 0, at) + 1} column {at - text.rfind(chr(10), 0, at)}"
    if why == "Expecting value":
        return ValueError(f"invalid character '{text[at]}' looking for beginning of value {place}")
    return ValueError(f"{why} {place}")


def _last_key_last(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key given twice moves to its last place: `spec.lookup` lets the last of the spellings of a name win."""
    value: dict[str, Any] = {}
    for key, item in pairs:
        value.pop(key, None)
        value[key] = item
    return value


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"invalid character '{word[0]}' looking for beginning of value")


class _How:
    """How to read, as the scanner asks for it: the attributes of a json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_last_key_last)
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)


_scan = _json.make_scanner(_How)  # type: ignore[arg-type]  # it takes what has these attributes


def _written(value: Any, line: str) -> str:
    """`line` is what a line begins with, its newline first; "" for a text without any blank."""
    if isinstance(value, str):
        return _json.encode_basestring(value)
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return _number(value)
    inner = line and line + _STEP
    if isinstance(value, dict):
        colon = ": " if line else ":"
        items = [_json.encode_basestring(_key(key)) + colon + _written(item, inner) for key, item in value.items()]
        return _between("{", items, "}", line, inner)
    if isinstance(value, list | tuple):
        return _between("[", [_written(item, inner) for item in value], "]", line, inner)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _between(begin: str, items: list[str], end: str, line: str, inner: str) -> str:
    return begin + inner + ("," + inner).join(items) + line + end if items else begin + end


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return float.__repr__(value)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, int | float):
        return _written(key, "")
    raise TypeError(f"keys must be str, int, float, bool or None, not {type(key).__name__}")


def _go_escapes(text: str) -> str:
    """Outside strings JSON has none of these characters, so replacing them everywhere is safe."""
    for char in "<>&\u2028\u2029":
        if char in text:
            text = text.replace(char, f"\\u{ord(char):04x}")
    return _mended(text)


def _mended(text: str) -> str:
    """With U+FFFD in the place of lone surrogates."""
    if text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text):
        return text
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
