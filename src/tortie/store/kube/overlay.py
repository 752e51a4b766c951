"""A stored document with a new value laid over it: what our model does not know stays.

stored ──decode──► old value ─┐
                              ├─► what has changed, on top of the stored document ──► PUT, or PATCH
                   new value ─┘
"""

from __future__ import annotations

from typing import Any

import msgspec


def overlaid(stored: Any, old: Any, new: Any) -> Any:
    """`stored` with what differs between `old` and `new`, which are what was read of it and what is to be read of it.

    Entries of lists that stay keep what is not known of them, wherever they move.

    >>> overlaid({"a": 1, "b": 2, "theirs": 3}, {"a": 1, "b": 2}, {"a": 9})
    {'a': 9, 'theirs': 3}
    """
    if old == new:
        return stored
    if isinstance(stored, dict) and isinstance(old, dict) and isinstance(new, dict):
        kept = {name: value for name, value in stored.items() if name in new or name not in old}
        changes = {
            name: overlaid(stored[name], old[name], value) if name in stored and name in old else value
            for name, value in new.items()
        }
        return kept | changes
    if isinstance(stored, list) and isinstance(old, list) and isinstance(new, list) and len(stored) == len(old):
        theirs = {_key(was): one for was, one in zip(old, stored, strict=True)}
        return [theirs.get(_key(one), one) for one in new]
    return new


def merge_patch(stored: Any, wanted: Any) -> Any:
    """What makes `wanted` of `stored`, as RFC 7386 has it; {} when nothing is to be done.

    >>> merge_patch({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4, "d": 3}})
    {'a': None, 'b': {'c': 4}}
    """
    if not isinstance(stored, dict) or not isinstance(wanted, dict):
        return wanted
    changes = {name: None for name in stored if name not in wanted}
    for name, value in wanted.items():
        if name not in stored:
            changes[name] = value
        elif value != stored[name]:
            changes[name] = merge_patch(stored[name], value)
    return changes


def _key(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")
