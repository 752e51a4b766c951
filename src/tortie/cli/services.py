"""`tortie services`: who serves services on a node, taking them over from kube-proxy, and giving them back.

status              ─► GET /services?services=none     how it stands, and what is wrong
takeover, release   ─► POST /services/takeover, /services/release   ?plan=1 says what it would do, ?yes=1 agrees
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tortie.agent.client import ask
from tortie.base.errors import ConfigError, TortieError
from tortie.cli.choice import check_choice
from tortie.cli.node import ASKED_AT_ONCE, sockets

app = typer.Typer(no_args_is_help=True, help="Services on nodes: ours or kube-proxy's.")

PROXY_SOCKET = "proxy.sock"
"""Of `tortie proxy`."""
SECONDS = 600.0
"""For all steps of a takeover: rules of ten thousand services take a while to go."""

Node = Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab.")]
Lab = Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's node instead of this machine.")]
Socket = Annotated[
    Path | None, typer.Option("--socket", metavar="FILE", help="Of an agent, or a proxy, with a directory of its own.")
]
OnlyPlan = Annotated[bool, typer.Option("--plan", help="Print what would be done, as a shell would be told.")]
Output = Annotated[str, typer.Option("-o", "--output", help="table or json.")]


@app.callback()
def _services() -> None:
    """Services on nodes: ours or kube-proxy's."""


@app.command()
def status(
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab; all of them if none.")] = "",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's nodes instead of this machine.")] = "",
    socket: Socket = None,
    output: Output = "table",
) -> None:
    """Whether each node serves services, why, what there is of kube-proxy, and what is wrong. Exit status 1 when
    something is."""
    from concurrent.futures import ThreadPoolExecutor

    _check(output)
    where = _where(lab, node, socket)
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        answers = list(threads.map(_answer, where, where.values()))
    if output == "json":
        typer.echo(json.dumps(answers, indent=2, ensure_ascii=False))
    else:
        typer.echo(page(answers), nl=False)
    if any(list(wrong(answer)) for answer in answers):
        raise typer.Exit(1)


@app.command()
def takeover(
    plan: OnlyPlan = False,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to what the plan says that has to be agreed to.")] = False,
    node: Node = "",
    lab: Lab = "",
    socket: Socket = None,
    output: Output = "table",
) -> None:
    """Take a node's services over from kube-proxy: our rules first, then kube-proxy ends, then its rules go.
    Established connections go on. Done again, it goes on where it stopped."""
    _check(output)
    _do("takeover", _one(lab, node, socket), plan=plan, yes=yes, output=output)


@app.command()
def release(
    plan: OnlyPlan = False,
    yes: Annotated[bool, typer.Option("--yes", help="At once: do not wait for kube-proxy's rules.")] = False,
    node: Node = "",
    lab: Lab = "",
    socket: Socket = None,
    output: Output = "table",
) -> None:
    """Give a node's services back to kube-proxy: ours go once its rules are there."""
    _check(output)
    _do("release", _one(lab, node, socket), plan=plan, yes=yes, output=output)


def _check(output: str) -> None:
    check_choice(output, ("table", "json"), "--output")


# --- asking -------------------------------------------------------------------------------------------------------


def _where(lab: str, node: str, socket: Path | None) -> dict[str, Path]:
    if socket is not None:
        return {node or str(socket): socket}
    return {name: nearest(path) for name, path in sockets(lab, node).items()}


def nearest(path: Path) -> Path:
    """The agent's socket, or that of the proxy which runs where there is no agent; a lab's has its own directory."""
    if path.exists():
        return path
    proxies = (path.with_name(PROXY_SOCKET), path.parent / "proxy" / PROXY_SOCKET)
    return next((proxy for proxy in proxies if proxy.exists()), path)


def _who(path: Path) -> str:
    return "proxy" if path.name == PROXY_SOCKET else "agent"


def _one(lab: str, node: str, socket: Path | None) -> Path:
    where = _where(lab, node, socket)
    if len(where) > 1:
        raise ConfigError(f"several nodes are up, name one: {', '.join(where)}", "--node")
    return next(iter(where.values()))


def _answer(name: str, path: Path) -> Mapping[str, Any]:
    try:
        answer: Mapping[str, Any] = ask(path, "/services?services=none", who=_who(path))
    except TortieError as error:
        return {"node": name, "error": str(error)}
    return answer


def _do(what: str, path: Path, *, plan: bool, yes: bool, output: str) -> None:
    words = [f"{name}=1" for name, given in (("plan", plan), ("yes", yes)) if given]
    answer = ask(path, "?".join(filter(None, (f"/services/{what}", "&".join(words)))), SECONDS, "POST", _who(path))
    if output == "json":
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(transcript(answer, plan=plan)))
    if not plan and not answer["done"]:
        raise typer.Exit(1)


# --- printing -----------------------------------------------------------------------------------------------------


def wrong(answer: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it should be on a node, in lines; nothing where all is well."""
    if "error" in answer:
        yield answer["error"]
        return
    theirs = answer["kubeProxy"]
    running = [one for one in theirs if one["runs"]]
    if answer["on"] and running:
        yield "kube-proxy is here, too: tortie services takeover ends it, tortie services release gives services back"
    elif theirs and not running:
        yield "kube-proxy is gone, its rules are not: tortie services takeover removes them"
    elif not answer["on"] and not theirs and not answer.get("servedBy"):
        yield "nobody serves services: tortie services takeover, or --services on"
    if answer["asked"] == "on" and not answer["on"] and not answer.get("servedBy"):
        yield "on is asked for, and they are off: the agent's log tells why"
    yield from (f"{what}: {why}" for what, why in sorted(answer["problems"].items()))
    yield from answer["failures"]


def page(answers: list[Mapping[str, Any]]) -> str:
    """Nodes as a table; what there is of kube-proxy, and what is wrong, below it."""
    from tortie.cli.output import aligned

    rows = [("NODE", "ASKED", "SERVICES", "KUBE-PROXY", "WHY"), *map(_row, answers)]
    lines = aligned(rows).splitlines()
    for answer in answers:
        about = [f"  {one['mode']}: {line}" for one in answer.get("kubeProxy", ()) for line in one["evidence"]]
        bad = [f"✘ {line}" for line in wrong(answer)]
        if about or bad:
            lines += ["", answer["node"], *about, *(f"  {line}" for line in bad)]
    return "\n".join(lines) + "\n"


def _row(answer: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in answer:
        return (answer["node"], "-", "-", "-", "no answer")
    modes = [f"{one['mode']}{'' if one['runs'] else ' (gone)'}" for one in answer["kubeProxy"]]
    return (answer["node"], answer["asked"], "on" if answer["on"] else "off", ", ".join(modes) or "-", answer["why"])


def transcript(answer: Mapping[str, Any], *, plan: bool) -> Iterator[str]:
    """Steps as a shell would be told, each with its reason; unless it is a plan, with what became of it."""
    for number, step in enumerate(answer["steps"], 1):
        state = "" if plan or step["state"] == "planned" else f" [{step['state']}]"
        person = " (yours to do)" if step["byPerson"] and not state else ""
        yield f"# {number}. {step['why']}{person}{state}"
        yield from step["commands"]
    yield from (f"# needs --yes: {line}" for line in answer["needsYes"])
    if answer["todo"]:
        yield f"# to do: {answer['todo']}"
    elif answer["done"]:
        yield "# done"
