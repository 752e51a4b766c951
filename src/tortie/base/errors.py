"""The few errors of the house, named after what the caller does about them.

They are translated at four borders only: the CNI main, the CLI main, converge and the stores. Anything else that is
raised is a bug and ends the process, but for an OSError that the CLI main knows for a file's or a full disk's.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing what the names below are from would cost a plugin's start milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterable


class TortieError(Exception):
    """Every error that a user may see. `str()` of it is one line."""


class ConfigError(TortieError):
    """The operator's input is wrong: say where and what would be right. CLI exit 2, CNI code 7.

    `where` goes from the outside in (file, object, field path); empty parts are left out of the message.
    """

    def __init__(self, message: str, *where: str) -> None:
        super().__init__(message, *where)
        self.message = message
        self.where = tuple(part for part in where if part)

    def __str__(self) -> str:
        text = ": ".join((*self.where, self.message))
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

    def within(self, *outer: str) -> ConfigError:
        """The same error seen from further out: `err.within("pods.yaml", "Pod red/a")`."""
        return ConfigError(self.message, *outer, *self.where)


class NotFound(TortieError):
    """What was asked for is not there."""


class Exists(TortieError):
    """What was to be created is there already."""


class Conflict(TortieError):
    """A compare-and-swap was lost: read again, decide again."""


class Compacted(TortieError):
    """The history a watch asked for is gone: list again and watch from there."""


class Unavailable(TortieError):
    """Not now: back off and try again. CNI code 11."""


class NotSupported(TortieError):
    """This machine, datastore or version cannot do it; the message says what would."""


class KernelError(OSError, TortieError):
    """The kernel refused. Carries `errno`; the message starts with what was being done, as a shell would say it."""

    def __init__(self, errno: int, doing: str, detail: str = "") -> None:
        super().__init__(errno, os.strerror(errno))
        self.doing = doing
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.doing}: {self.detail or os.strerror(self.errno or 0)}"


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean "x"?` when one of `known` is near `word`, else the choices when they are few, else nothing."""
    import difflib  # half of what this module would cost to import, and only needed to complain

    choices = sorted(set(known))
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if not near:
        near = [c for c in choices if c.lower() == word.lower()]
    if near:
        return f'did you mean "{near[0]}"?'
    return f"known: {', '.join(choices)}" if 0 < len(choices) <= 12 else ""


def one_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first expected error of a group; the whole group where there is a bug in it."""
    expected, bugs = group.split(TortieError)
    if expected is None or bugs is not None:
        return group
    found: BaseException = expected
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
