"""`tortie policy`: what staged policies would do, predicted for every connection and counted on real packets."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.agent.client import ask
from tortie.base.errors import TortieError
from tortie.cli.choice import check_choice
from tortie.cli.datastore import Datastore, Lab, asked
from tortie.cli.node import sockets

if TYPE_CHECKING:
    from tortie.calc.staged import Change, Counted, Prediction, StagedReport
    from tortie.policy.rules import Policy

app = typer.Typer(no_args_is_help=True, help="Questions about policies.")
staged = typer.Typer(no_args_is_help=True, help="Policies that are staged.")
app.add_typer(staged, name="staged")

Counters = Mapping[str, int]
"""Packets by rule, of all nodes together."""


@app.callback()
def _policy() -> None:
    """Questions about policies."""


@staged.callback()
def _staged() -> None:
    """Policies that are staged: asked for what they would do, never obeyed."""


@staged.command()
def report(
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Say what each staged policy would do: which connections it would deny or allow, and what its rules count."""
    check_choice(output, ("text", "json"), "--output")
    asked_report, policies = asked(datastore, lab, _load)
    predictions = asked_report.predictions(policies)
    counters, silent = _counters(lab, asked_report.nodes)
    if output == "json":
        typer.echo(json.dumps(as_json(asked_report, predictions, counters, silent), indent=2))
    elif not predictions:
        typer.echo("No policy is staged")
    else:
        _show(asked_report, predictions, counters, silent)


async def _load(store: Any) -> tuple[StagedReport, list[Policy]]:
    """The whole cluster as it is in a datastore now, and the policies that are staged in it."""
    from tortie.calc.cluster import INPUTS, Cluster
    from tortie.calc.staged import StagedReport
    from tortie.model.staged import Staged
    from tortie.policy.translate import policy_of

    cluster = Cluster(None)
    found: list[Policy] = []
    for kind in INPUTS:
        for item in (await store.list(kind)).items:
            cluster.put(item)
            if isinstance(item, Staged) and item.title not in cluster.problems:
                found.extend(policy for policy in (policy_of(item),) if policy is not None)
    return StagedReport(cluster), found


def _counters(lab: str, nodes: Collection[str]) -> tuple[Counters, list[str]]:
    """What the kernels of these nodes have counted, and the nodes whose agents do not say."""
    found: dict[str, int] = {}
    silent = set(nodes)
    try:
        known = sockets(lab)
    except TortieError:
        known = {}
    for node, path in known.items():
        try:
            name = node if node in nodes else str(ask(path, "/node")["node"])
            counters = ask(path, "/counters") if name in silent else {}
        except TortieError:
            continue
        silent.discard(name)
        for rule, counter in counters.items():
            found[rule] = found.get(rule, 0) + counter["packets"]
    return found, sorted(silent)


def as_json(
    asked_report: StagedReport, predictions: Iterable[Prediction], counters: Counters, silent: Sequence[str]
) -> dict[str, Any]:
    """The machine's form."""
    return {
        "policies": [
            {
                "policy": str(one.policy.key),
                "tier": one.policy.tier,
                "order": one.policy.order,
                "action": one.policy.staged,
                "selects": list(one.selected),
                "denies": [_change(change) for change in one.changes if not change.verdict.allowed],
                "allows": [_change(change) for change in one.changes if change.verdict.allowed],
                "rules": [_rule(counted, counters) for counted in one.counted],
            }
            for one in predictions
        ],
        "endOfTier": [{"tier": tier, **_rule(counted, counters)} for tier, counted in asked_report.ends()],
        "silentNodes": list(silent),
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "sources": change.source.names,
        "destinations": change.destination.names,
        "ports": [{"protocol": _protocol(protocol), "port": port} for protocol, port in change.ports],
        "ipVersions": list(change.versions),
        "pairs": change.pairs,
        "tier": change.verdict.tier,
        "reason": change.verdict.reason,
        "rule": change.verdict.rule,
    }


def _rule(counted: Counted, counters: Counters) -> dict[str, Any]:
    return {
        "direction": counted.direction,
        "rule": counted.index,
        "action": counted.action,
        "packets": _packets(counted, counters),
    }


def _packets(counted: Counted, counters: Counters) -> int:
    """The kernel has long names cut."""
    from tortie.render.match import fit

    return sum(counters.get(fit(name), 0) for name in counted.names)


def _protocol(number: int) -> str:
    from tortie.model.policy import PROTOCOLS

    return {value: name.lower() for name, value in PROTOCOLS.items()}.get(number, str(number))


# --- for people -------------------------------------------------------------------------------------------------------


def _show(
    asked_report: StagedReport, predictions: Sequence[Prediction], counters: Counters, silent: Sequence[str]
) -> None:
    from tortie.cli.output import aligned

    for i, one in enumerate(predictions):
        print("\n" if i else "", end="")
        print(_title(one))
        rows = [_row(change) for change in one.changes]
        if rows:
            print(_indented(aligned([("WOULD", "SOURCE", "DESTINATION", "PORTS", "IP", "BECAUSE"), *rows])), end="")
        elif one.selected:
            print("  would deny and allow the same connections as now")
        if one.counted:
            counts = [(*_rule_words(counted), str(_packets(counted, counters))) for counted in one.counted]
            print(_indented(aligned([("RULE", "ACTION", "PACKETS"), *counts])), end="")
    ends = [(tier, one.direction, str(_packets(one, counters))) for tier, one in asked_report.ends()]
    if ends:
        print("\nends of tiers that nothing but staged policies is in: would be denied there")
        print(_indented(aligned([("TIER", "DIRECTION", "PACKETS"), *ends])), end="")
    if silent:
        print(f"\nwithout the counts of {', '.join(silent)}: no agent answers from there")


def _title(one: Prediction) -> str:
    policy = one.policy
    what = "would set" if policy.staged == "Set" else "would delete"
    order = "" if policy.order is None else f", order {policy.order:g}"
    number = len(one.selected)
    pods = "no pod" if not number else f"{number} pod{'s' if number > 1 else ''}"
    return f"{policy.key}  {what} {policy.key.target} in tier {policy.tier}{order}; about {pods}"


def _row(change: Change) -> tuple[str, ...]:
    verdict = change.verdict
    ports = ", ".join(f"{_protocol(number)} {'other' if port is None else port}" for number, port in change.ports)
    families = " and ".join(f"IPv{version}" for version in change.versions)
    because = verdict.rule if verdict.policy else f"end of tier {verdict.tier}" if verdict.tier else verdict.reason
    return "allow" if verdict.allowed else "deny", str(change.source), str(change.destination), ports, families, because


def _rule_words(counted: Counted) -> tuple[str, str]:
    return f"{counted.direction} {counted.index}", str(counted.action)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
