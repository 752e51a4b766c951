"""Documents of a manifest as YAML with comments, for people who read before they apply.

{WHY: "pods of this node", "apiGroups": [""], ...}    ─►    # pods of this node
                                                            - apiGroups: ['']
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from tortie.model.text import load_all

WHY = "#"
"""The key, first of its mapping, of a line that says why the mapping is there. No document has one like it."""

_OF_AN_ITEM = re.compile(r"^( *)- '#': (.*(?:\n\1    .*)*)\n\1  ", re.MULTILINE)
_OF_A_MAPPING = re.compile(r"^( *)'#': (.*(?:\n\1  +[^ ].*)*)\n", re.MULTILINE)
WIDTH = 118
"""Characters of a line."""
SHORT = 60
"""Characters of a list or of a field's schema that has room on one line."""


def text(documents: Iterable[dict[str, Any]], head: str = "") -> str:
    """The stream; `head` are lines of a comment at its top, as long as they are: some are to be copied."""
    parts = [_commented(_dumped(document)) for document in documents]
    return "".join(f"# {line}\n" for line in head.splitlines()) + "---\n" + "---\n".join(parts)


class _Dumper(yaml.SafeDumper):
    """Lists of words and the schemas of single fields on one line, texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list(dumper: _Dumper, value: list[Any]) -> yaml.Node:
    flat = not any(isinstance(each, dict | list) for each in value)
    short = sum(len(str(each)) + 2 for each in value) < SHORT
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat and short)


def _mapping(dumper: _Dumper, value: dict[str, Any]) -> yaml.Node:
    flat = "type" in value and not any(isinstance(each, dict | list) for each in value.values())
    flat = flat and WHY not in value and sum(len(str(each)) for each in value.values()) < SHORT
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=flat)


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(str, _text)


def _dumped(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)


def _commented(yaml: str) -> str:
    yaml = _OF_AN_ITEM.sub(lambda found: f"{_lines(_plain(found[2]), found[1])}{found[1]}- ", yaml)
    return _OF_A_MAPPING.sub(lambda found: _lines(_plain(found[2]), found[1]), yaml)


def _plain(scalar: str) -> str:
    """What a scalar says, over however many lines it goes."""
    (found,) = load_all(" ".join(scalar.split()))
    return str(found)


def _lines(said: str, indent: str) -> str:
    lines: list[str] = []
    for paragraph in said.splitlines():
        line = ""
        for word in paragraph.split(" "):
            if line and len(indent) + len(line) + len(word) + 3 > WIDTH:
                lines.append(line)
                line = ""
            line = f"{line} {word}" if line else word
        lines.append(line)
    return "".join(f"{indent}# {line}".rstrip() + "\n" for line in lines)


def without_comments(value: Any) -> Any:
    """The same document as an API server is to have it."""
    if isinstance(value, dict):
        return {key: without_comments(each) for key, each in value.items() if key != WHY}
    return [without_comments(each) for each in value] if isinstance(value, list) else value
