"""`tortie node addresses` and `tortie node mtu`: how a node came to its addresses and to the MTU of its pods."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from tortie.agent.client import ask
from tortie.base.errors import TortieError
from tortie.cli.choice import check_choice
from tortie.cli.node import sockets

Node = Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab; all of them if none.")]
Lab = Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's nodes instead of this machine.")]
Output = Annotated[str, typer.Option("-o", "--output", help="table or json.")]

SOURCES = {"told": "as told", "kept": "as the Node has it", "detected": "detected", "none": "none"}
FEW = 5
"""Interfaces that a line names."""


def addresses(node: Node = "", lab: Lab = "", output: Output = "table") -> None:
    """Every address of a machine, in the order in which they are looked at, and why it is the node's or not. Exit
    status 1 when a node does not answer, or cannot have the addresses that it should."""
    _show(node, lab, output, "/addresses", addresses_text)


def mtu(node: Node = "", lab: Lab = "", output: Output = "table") -> None:
    """How large the packets of pods may be, and how that comes about, for every way that they can take. Exit status 1
    when a node does not answer."""
    _show(node, lab, output, "/mtu", mtu_text)


def _show(node: str, lab: str, output: str, question: str, text: Callable[[Mapping[str, Any]], str]) -> None:
    check_choice(output, ("table", "json"), "--output")
    answers = [_answer(name, path, question) for name, path in sockets(lab, node).items()]
    if output == "json":
        typer.echo(json.dumps(answers, indent=2))
    else:
        print("\n".join(_titled(answer, text) for answer in answers), end="")
    if any(answer.get("error") or answer.get("failure") for answer in answers):
        raise typer.Exit(1)


def _answer(node: str, path: Any, question: str) -> Mapping[str, Any]:
    try:
        return {"node": node, **ask(path, question)}
    except TortieError as error:
        return {"node": node, "error": str(error)}


def _titled(answer: Mapping[str, Any], text: Callable[[Mapping[str, Any]], str]) -> str:
    return f"{answer['node']}: {answer['error']}\n" if "error" in answer else text(answer)


def addresses_text(answer: Mapping[str, Any]) -> str:
    """A table for each family, of what an agent answers to `/addresses`."""
    from tortie.cli.output import aligned

    lines = [f"{answer['node']}: {answer['failure']}\n"] if answer["failure"] else []
    if answer["backend"] == "none":
        return "".join((*lines, f"{answer['node']}: has no addresses: CALICO_NETWORKING_BACKEND is none\n"))
    for version in (4, 6):
        family = answer[f"ipv{version}"]
        method = f" by {family['method']}" if family["source"] == "detected" else ""
        how = f", {SOURCES[family['source']]}{method}" if family["address"] else ""
        lines.append(f"{answer['node']}: IPv{version} {family['address'] or 'none'}{how}\n")
        lines += [f"  {family[key]}\n" for key in ("warning", "failure") if family[key]]
        rows = [_row(one, family["address"]) for one in family["candidates"]]
        table = aligned([("INTERFACE", "ADDRESS", "", "WHY"), *rows])
        lines += [f"  {line}\n" for line in table.splitlines()] if rows else []
    return "".join(lines)


def _row(candidate: Mapping[str, Any], address: str) -> tuple[str, str, str, str]:
    """The mark says what the method would take; when the node has another one, it was told or kept."""
    mark = "✔" if candidate["taken"] else "·"
    why = candidate["why"]
    if candidate["taken"] and candidate["address"] != address:
        why = f"{why}; not used, as the node's address is told or kept"
    return candidate["link"], candidate["address"] or "-", mark, why


def mtu_text(answer: Mapping[str, Any]) -> str:
    """The sums of what an agent answers to `/mtu`."""
    from tortie.cli.output import aligned

    lines = [f"{answer['node']}: new pods {answer['pod'] or '-'} ({answer['text']}), noted in {answer['file']}\n"]
    rows = [("used" if path["used"] else "", path["path"], str(path["mtu"]), path["text"]) for path in answer["paths"]]
    lines += [f"  {line}\n" for line in aligned([("", "PATH", "MTU", "SUM"), *rows]).splitlines()] if rows else []
    if answer.get("warning"):
        lines.append(f"  warning: {answer['warning']}\n")
    others = answer["others"]
    if others:
        named = ", ".join(f"{name} {own}" for name, own in list(others.items())[:FEW])
        more = f" and {len(others) - FEW} more" if len(others) > FEW else ""
        lines.append(f"  {len(others)} of {answer['pods']} pods have another MTU, made before or told: {named}{more}\n")
    return "".join(lines)
