"""YAML text to plain values and back, as Kubernetes reads it: what cannot be JSON is an error, with line and column.

Unlike YAML 1.1 as it is written: times and base-60 numbers (`65000:10`) stay text, a key given twice is an error, and
keys are text always. It is built from the parser's events without recursion, so that no input, however deep its
nesting and however often its aliases refer to one another, can bring the program down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from tortie.base.errors import ConfigError

MAX_DEPTH = 100
MAX_ALIASED = 100_000
"""How many values the aliases of a document may stand for, all together."""

_FLOAT = re.compile(r"[-+]?(\.\d+|\d[\d_]*(\.\d*)?)([eE][-+]?\d+)?\Z")
_INT = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|[1-9][\d_]*|0)\Z")
_FIRST = frozenset("+-.0123456789~nNtTfFyYoO")
"""Plain text that starts otherwise is text."""
_BREAKS = re.compile("[\x85\u2028\u2029]")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("~", "null", "Null", "NULL", ""), None),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_TAG = "tag:yaml.org,2002:"
_MERGE = object()


def load_all(text: str | bytes) -> Iterator[Any]:
    """The documents of a stream, None for an empty one. Raises ConfigError, where = line and column."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        stream = _unmarked(text)
        builder = _Builder()
        for event in yaml.parse(stream, Loader=loader):
            if isinstance(event, yaml.DocumentStartEvent):
                builder = _Builder()
            elif isinstance(event, yaml.DocumentEndEvent):
                yield builder.root
            elif not isinstance(event, yaml.StreamStartEvent | yaml.StreamEndEvent):
                builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"not valid YAML: {_clearer(error, stream, mark)}", _place(mark)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {str(error).splitlines()[0]}") from None


def dump(*documents: Any) -> str:
    """The documents as a stream; numbers in scientific notation are text only in quotes, as other readers want it."""
    return "---\n".join(
        yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) for document in documents
    )


class _Dumper(yaml.SafeDumper):
    """Writes a value that occurs twice twice: an alias is not for human readers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    """YAML 1.1 takes more characters for line ends than Python's writer escapes by itself."""
    style = '"' if _BREAKS.search(value) else None
    return dumper.represent_scalar(_TAG + "str", value, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))
_Dumper.add_implicit_resolver(_TAG + "int", _INT, list("-+0123456789"))


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read. `key` waits for its value; `merged` is what stands under `<<`."""

    value: Any
    anchor: str | None
    before: int
    keys: set[str] = field(default_factory=set)
    key: Any = None
    waiting: bool = False
    merged: list[tuple[Any, Any]] = field(default_factory=list)


class _Builder:
    """Builds one document from events."""

    def __init__(self) -> None:
        self.root: Any = None
        self.open: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.count = 0  # values so far, those that aliases stand for included
        self.aliased = 0

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self.count += 1
            key_next = bool(self.open) and isinstance(self.open[-1].value, dict) and not self.open[-1].waiting
            value = _key(event) if key_next else _scalar(event)
            if event.anchor:
                self.anchors[event.anchor] = (value, 1)
            self.put(value, event)
        elif isinstance(event, yaml.AliasEvent):
            self.put(self.referred(event), event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.begin(event)
        else:
            self.end(self.open.pop())

    def begin(self, event: Any) -> None:
        if len(self.open) == MAX_DEPTH:
            raise ConfigError(f"nested more than {MAX_DEPTH} levels deep", _place(event.start_mark))
        value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        if event.tag not in (None, "!", _TAG + ("map" if isinstance(value, dict) else "seq")):
            raise _unknown_tag(event)
        before = self.count
        self.count += 1
        self.put(value, event)
        self.open.append(_Open(value, event.anchor, before))

    def end(self, done: _Open) -> None:
        for merged, event in done.merged:
            for mapping in _mappings(merged, event):
                self.count += len(mapping)
                for key, value in mapping.items():
                    done.value.setdefault(key, value)
        if done.anchor:
            self.anchors[done.anchor] = (done.value, self.count - done.before)

    def put(self, value: Any, event: Any) -> None:
        """Where the value goes: it is the document, an item, a key, or the value of the key before it."""
        if not self.open:
            self.root = value
            return
        into = self.open[-1]
        if isinstance(into.value, list):
            into.value.append(value)
        elif not into.waiting:
            into.key, into.waiting = self.fresh_key(value, into, event), True
        else:
            into.waiting = False
            if into.key is _MERGE:
                into.merged.append((value, event))
            else:
                into.value[into.key] = value

    def fresh_key(self, key: Any, into: _Open, event: Any) -> Any:
        if key is _MERGE:
            return key
        if not isinstance(key, str):
            raise ConfigError("not valid YAML: a key must be plain text", _place(event.start_mark))
        if key in into.keys:
            raise ConfigError(f'not valid YAML: key "{key}" is given twice', _place(event.start_mark))
        into.keys.add(key)
        return key

    def referred(self, event: Any) -> Any:
        """What an alias stands for; it must be complete, so nothing ever contains itself."""
        if event.anchor not in self.anchors:
            raise ConfigError(
                f'not valid YAML: alias "*{event.anchor}" has no anchor before it', _place(event.start_mark)
            )
        value, size = self.anchors[event.anchor]
        self.count += size
        self.aliased += size
        if self.aliased > MAX_ALIASED:
            raise ConfigError(f"aliases stand for more than {MAX_ALIASED} values", _place(event.start_mark))
        return value


def _unmarked(text: str | bytes) -> str:
    """The text without byte order mark."""
    return (_decoded(text) if isinstance(text, bytes) else text).removeprefix("\ufeff")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"not UTF-8 text: byte 0x{data[error.start]:02x}", f"line {line}") from None


def _scalar(event: Any) -> Any:
    text: str = event.value
    if event.tag in (None, "!"):
        return _resolved(text, event) if event.implicit[0] and event.tag is None else text
    if event.tag == _TAG + "str":
        return text
    value = _resolved(text, event)
    if {int: "int", float: "float", bool: "bool", type(None): "null"}.get(type(value)) == event.tag.removeprefix(_TAG):
        return value
    raise _unknown_tag(event)


def _resolved(text: str, event: Any) -> Any:
    """What plain text means."""
    if text and text[0] not in _FIRST:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        number = _integer(text) if len(text) < 80 else None  # 64 binary digits, sign and prefix, leave room
        if number is None or not -(2**63) <= number < 2**64:
            raise ConfigError(f"{text[:20]}... is too large a number", _place(event.start_mark))
        return number
    if _FLOAT.match(text):
        real = float(text.replace("_", ""))
        if math.isinf(real):
            raise ConfigError(f"{text[:20]} is too large a number", _place(event.start_mark))
        return real
    return text


def _integer(text: str) -> int | None:
    digits = text.replace("_", "")
    try:
        # A leading zero is octal in YAML 1.1, which Python writes 0o.
        return int(digits, 8) if re.match(r"[-+]?0[0-7]+\Z", digits) else int(digits, 0)
    except ValueError:
        return None


def _key(event: Any) -> Any:
    """A key as JSON has it: a number or a truth value is its text."""
    if event.value == "<<" and event.implicit[0]:
        return _MERGE
    value = _scalar(event)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _mappings(value: Any, event: Any) -> list[dict[str, Any]]:
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in found):
        raise ConfigError("not valid YAML: << takes a mapping or a list of them", _place(event.start_mark))
    return found


def _unknown_tag(event: Any) -> ConfigError:
    return ConfigError(f'not valid YAML: tag "{event.tag}" cannot be used here', _place(event.start_mark))


def _clearer(error: Any, text: str, mark: Any) -> str:
    """What the parser says, but for what it says of the commonest mistakes."""
    said = str(error.problem or error.context)
    if "cannot start any token" in said:
        line = text.split("\n")[mark.line]
        begin = line[mark.column : mark.column + 1]
        return "a tab, where only spaces can be" if begin == "\t" else f"what begins with {begin} must be in quotes"
    if said.startswith("mapping values are not allowed"):
        return 'a ":" where none can be: text with one in it must be in quotes, or the line is indented too far'
    return said


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
