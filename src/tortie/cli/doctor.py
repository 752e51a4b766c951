"""`tortie doctor`: is this machine such that pods reach one another, and do its packets get to the other nodes?"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.agent.client import ask
from tortie.base.errors import NotFound, TortieError, Unavailable
from tortie.cli.choice import check_choice
from tortie.cli.node import ASKED_AT_ONCE, HERE, sockets

if TYPE_CHECKING:
    from rich.text import Text

SECONDS = 120.0
"""For one node: it tries the way to every other, and what gets lost is waited for."""
CLOCKS = 5.0
"""Seconds by which the clocks of two nodes may differ."""
_STYLES = {"bad": "bold red", "warn": "yellow", "ok": "green", "skipped": "dim"}
_WITHOUT_AGENT = [sys.executable, "-m", "tortie.agent.doctor"]


def doctor(
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab; all of them if none.")] = "",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's nodes instead of this machine.")] = "",
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
) -> None:
    """Look for what keeps pods from reaching one another: the machine, its firewalls, the way to every other node.
    Exit status 1 when something is bad."""
    from concurrent.futures import ThreadPoolExecutor

    check_choice(output, ("table", "json"), "--output")
    where = sockets(lab, node)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        answers = list(threads.map(_answer, where, where.values()))
    if output == "json":
        typer.echo(json.dumps(answers, indent=2, ensure_ascii=False))
    else:
        _show(answers)
    if any(finding["level"] == "bad" for answer in answers for finding in answer["findings"]):
        raise typer.Exit(1)


def _answer(node: str, path: Path) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = ask(path, "/doctor", SECONDS)
    except NotFound:
        return _without_agent() if node == HERE else _no_answer(node, "no agent runs on this node")
    except TortieError as error:
        seen = _without_agent()["findings"] if node == HERE else ()
        answer = _no_answer(node, str(error))
        return {**answer, "findings": [*answer["findings"], *seen]}
    answer = {**answer, "findings": _sorted([*answer["findings"], *_services(path)])}
    off = answer["time"] - time.time()
    if abs(off) <= CLOCKS:
        return answer
    wrong = _finding(
        "bad", "clock", f"is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the one here", "chrony"
    )
    return {**answer, "findings": [wrong, *answer["findings"]]}


def _services(path: Path) -> list[dict[str, Any]]:
    """Who does kube-proxy's work there; an agent of before says nothing."""
    from dataclasses import asdict

    from tortie.calc.doctor import judge_services

    try:
        answer = ask(path, "/services?services=none", SECONDS)
    except TortieError:
        return []
    fits = isinstance(answer, Mapping) and "kubeProxy" in answer
    return [asdict(one) for one in judge_services(answer)] if fits else []


def _sorted(findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst first."""
    from tortie.calc.doctor import LEVELS

    return sorted(findings, key=lambda one: LEVELS.index(one["level"]))


def _without_agent(seconds: float = SECONDS) -> Mapping[str, Any]:
    """What can be seen of this machine all the same. Raises Unavailable."""
    import subprocess

    try:
        done = subprocess.run(
            _WITHOUT_AGENT, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the doctor took more than {seconds:g} s to look at this machine") from None
    if done.returncode:
        raise Unavailable(done.stderr.strip().rpartition("\n")[2] or "the doctor ended without a word")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _no_answer(node: str, why: str) -> Mapping[str, Any]:
    todo = "start it, or look at its log" if os.geteuid() == 0 else "try again as root, whom alone agents answer"
    return {"node": node, "time": time.time(), "findings": [_finding("bad", "agent", why, todo)]}


def _finding(level: str, check: str, what: str, todo: str) -> dict[str, str]:
    return {"level": level, "check": check, "what": what, "where": "", "todo": todo}


def _show(answers: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for line in _lines(answers):
        console.print(line, soft_wrap=True)


def _lines(answers: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    from rich.text import Text

    width = max((len(one["check"]) for answer in answers for one in answer["findings"]), default=0)
    for answer in answers:
        yield Text(answer["node"], "bold")
        for one in answer["findings"]:
            where = f"{one['where']}: " if one["where"] else ""
            level, check = one["level"], one["check"].ljust(width)
            yield Text.assemble("  ", (level.ljust(7), _STYLES[level]), f" {check}  {where}{one['what']}")
            if one["todo"] and level != "ok":
                yield Text(f"{' ' * (12 + width)}→ {one['todo']}", "dim")
    counted = Counter(one["level"] for answer in answers for one in answer["findings"])
    yield Text(", ".join(f"{counted[level]} {level}" for level in _STYLES if counted[level]), "bold")
