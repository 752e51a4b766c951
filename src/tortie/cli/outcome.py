"""What a command over many objects says in the end, in calicoctl's sentences. Pure.

Scripts read these: `Successfully applied 2 'IPPool' resource(s)`, `failed to create 'IPPool' resource: [...]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tortie.base.errors import TortieError

PAST = {
    "apply": "applied",
    "create": "created",
    "replace": "replaced",
    "delete": "deleted",
    "validate": "validated",
}
"""How a verb is said of what is done."""


def single(kinds: Iterable[str]) -> str:
    """The kind, if all are of one; else nothing is said of kinds."""
    found = set(kinds)
    return found.pop() if len(found) == 1 else ""


def success(verb: str, count: int, kind: str) -> str:
    """
    >>> success("apply", 2, "IPPool"), success("delete", 3, "")
    ("Successfully applied 2 'IPPool' resource(s)", 'Successfully deleted 3 resource(s)')
    """
    return f"Successfully {PAST[verb]} {count} {_quoted(kind)}resource(s)"


def partial(verb: str, done: int, total: int, kind: str) -> str:
    """What stands on standard output before the error, when not all could be handled."""
    return f"Partial success: {PAST[verb]} the first {done} out of {total} {_quoted(kind)}resources:"


def failure(verb: str, total: int, done: int, kind: str, errors: Sequence[TortieError]) -> TortieError:
    """The one error for all that went wrong; of the first one's class, which tells what to do about it."""
    every = f"[{' '.join(map(str, errors))}]"
    if done:
        text = f"hit error: {errors[0] if verb == 'replace' else every}"
    elif total == 1:
        text = f"failed to {verb} {_quoted(kind)}resource: {every}"
    else:
        text = f"failed to {verb} any {_quoted(kind)}resources: {every}"
    return type(errors[0])(text) if _is_plain(errors[0]) else TortieError(text)


def not_deleted(kind: str, error: TortieError) -> TortieError:
    """One of those that could not be deleted, each of which is told."""
    text = f"Failed to delete {_quoted(kind)}resource: {error}"
    return type(error)(text) if _is_plain(error) else TortieError(text)


def _is_plain(error: TortieError) -> bool:
    """Whether the error is made of nothing but its text."""
    return error.args == (str(error),)


def _quoted(kind: str) -> str:
    return f"'{kind}' " if kind else ""
