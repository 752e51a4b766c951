"""Calls to services of a lab, for tests: a series of them, who answered, and whom they saw."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from labs import Lab, until

CALLS = 40
LINE = re.compile(r"(\S+) on (\S+) saw (\S+) port")


@dataclass(frozen=True)
class Answers:
    """Of a series of calls: who answered how often, and whom they saw."""

    by: Counter[str]
    saw: set[str]

    @property
    def who(self) -> set[str]:
        return set(self.by)


def ask(lab: Lab, where: str, url: str, calls: int = CALLS) -> Answers:
    """What fails is `nobody`'s answer, and the last."""
    call = f"timeout 5 busybox wget -qO- {url} 2>/dev/null"
    script = f"for i in $(seq {calls}); do {call} || {{ echo nobody on - saw - port; break; }}; done"
    lines = LINE.findall(lab.tortie("lab", "exec", where, "--", "sh", "-c", script))
    return Answers(Counter(name for name, _, _ in lines), {caller for _, _, caller in lines})


def answered_by(lab: Lab, where: str, url: str, who: set[str]) -> Answers:
    """The first series that exactly these have answered."""
    found: list[Answers] = []

    def so() -> bool:
        found.append(ask(lab, where, url))
        return found[-1].who == who

    try:
        until(so, 30)
    except AssertionError as late:
        late.add_note(f"{where} asks {url}: {found[-1].by}")
        raise
    return found[-1]
