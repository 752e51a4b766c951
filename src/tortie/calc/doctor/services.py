"""Who does kube-proxy's work on a node, judged by what its agent says to `GET /services`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tortie.calc.doctor.findings import LEVELS, Finding

CHECK = "services"
TAKE_OVER, RELEASE = "tortie services takeover", "tortie services release"
MAX_TOLD = 10
"""Problems that are told one by one: `tortie services status` has all of them."""


def judge_services(answer: Mapping[str, Any]) -> tuple[Finding, ...]:
    """The worst first."""
    found = (*_who(answer), *_failures(answer["failures"]), *_problems(answer["problems"]))
    return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def _who(answer: Mapping[str, Any]) -> Iterator[Finding]:
    running = [one for one in answer["kubeProxy"] if one["pid"] or one.get("runs")]
    left = [one for one in answer["kubeProxy"] if one not in running]
    modes = " and ".join(_called(one) for one in running)
    if running and answer["on"]:
        yield Finding("bad", CHECK, f"both {modes} and Tortie serve them", todo=f"{TAKE_OVER}, or {RELEASE}")
    elif running:
        yield Finding("ok", CHECK, f"served by {modes}")
    elif answer["on"]:
        yield Finding("ok", CHECK, "served by Tortie")
    elif answer.get("servedBy"):
        yield Finding("ok", CHECK, f"served by {answer['servedBy']}")
    if left and not running and not answer["on"] and not answer.get("servedBy"):
        text = f"only rules that a kube-proxy has left serve them, and follow no change: {_evidence(left)}"
        yield Finding("bad", CHECK, text, todo=TAKE_OVER)
    elif left:
        text = f"a kube-proxy that is gone has left rules: {_evidence(left)}"
        yield Finding("warn", CHECK, text, todo=f"{TAKE_OVER} takes them away")


def _called(one: Mapping[str, Any]) -> str:
    process = f", process {one['pid']}" if one["pid"] else ""
    return f"kube-proxy ({one['mode']}{process})"


def _evidence(left: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(one["evidence"][0] if one["evidence"] else one["mode"] for one in left)


def _failures(failures: Sequence[str]) -> Iterator[Finding]:
    for text in failures:
        yield Finding("bad", CHECK, text, todo="the agent tries again; its log tells more")


def _problems(problems: Mapping[str, str]) -> Iterator[Finding]:
    for title, text in sorted(problems.items())[:MAX_TOLD]:
        yield Finding("warn", CHECK, text, title)
    if len(problems) > MAX_TOLD:
        yield Finding("warn", CHECK, f"{len(problems) - MAX_TOLD} more cannot be served", todo="tortie services status")
