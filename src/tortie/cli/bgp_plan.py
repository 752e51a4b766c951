"""`tortie bgp plan`: how to come from one routing to another without losing a packet, and going there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.base.errors import ConfigError, TortieError
from tortie.cli.choice import check_choice
from tortie.cli.datastore import Datastore, Lab, asked

if TYPE_CHECKING:
    from tortie.calc.admission import Objects
    from tortie.calc.bgp_plan.plan import Plan
    from tortie.cli.manifests import Manifest
    from tortie.model.meta import Resource
    from tortie.model.store import Store

LIVE = "live"


def plan(
    filename: Annotated[
        list[str] | None, typer.Option("-f", "--filename", metavar="FILE|DIR|-", help="What is wanted. Repeatable.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="live|PATH", help="What is there: live, or manifests.")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="BGPPeers that are in none of the files go.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Go there, waiting after each step.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for a step to come about.")] = 120.0,
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds to wait after each step where agents cannot be asked.")
    ] = 0.0,
    output: Annotated[str, typer.Option("-o", "--output", help="text or json.")] = "text",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Find the steps of a change of routing that break no route. Exit 0: nothing is lost, 1: something is, or --apply
    did not get there, 2: the documents are wrong."""
    from tortie.calc.bgp_plan.plan import plan as planned
    from tortie.cli.bgp_plan_text import printed, to_document
    from tortie.cli.manifests import manifests

    check_choice(output, ("text", "json"), "--output")
    before = [path for path in against or () if path != LIVE]
    if apply and before:
        raise ConfigError("--apply changes what is live: leave --against away")
    wanted = manifests(filename) if filename else []
    if not wanted and not prune:
        raise ConfigError("what is wanted? give -f FILE or a directory")
    present = _from_files(before) if before else asked(datastore, lab, stored)
    found = planned(present, _wanted(present, wanted, prune))
    if output == "json":
        typer.echo(json.dumps(to_document(found), indent=2))
    else:
        typer.echo(printed(found))
    if apply and found.gone:
        raise TortieError(
            "nothing is changed: routes would be gone for good; tortie apply writes the documents all the same"
        )
    if apply:
        _apply(found, datastore, lab, timeout, wait)
    elif found.lost or found.gone:
        raise typer.Exit(1)


def _apply(found: Plan, datastore: str, lab: str, timeout: float, wait: float) -> None:
    from tortie.cli.bgp_plan_apply import Agents, Pause, follow

    lab = lab or os.environ.get("TORTIE_LAB", "")
    waiting = Pause(wait) if wait else Agents.of(lab, found, timeout)

    async def walk(store: Store) -> bool:
        return await follow(store, found, waiting, typer.echo)

    if found.steps and not asked(datastore, lab, walk):
        raise KeyboardInterrupt


async def stored(store: Store) -> Objects:
    """What a datastore has that routing depends on, and the namespaces that Secrets are in."""
    from tortie.calc.admission import Objects
    from tortie.calc.bgp_plan.changes import PLANNED
    from tortie.model.ipam import BlockAffinity, IPPool
    from tortie.model.k8s import Namespace

    kinds: tuple[type[Resource], ...] = (Namespace, *PLANNED, IPPool, BlockAffinity)
    return Objects([one for kind in kinds for one in (await store.list(kind)).items])


def _from_files(paths: Sequence[str]) -> Objects:
    """Of manifests; where they have no block, every node is taken to hold one of each pool."""
    from tortie.calc.admission import Offline
    from tortie.calc.bgp_plan.moment import with_blocks
    from tortie.calc.defaults import defaulted
    from tortie.cli.manifests import manifests

    return with_blocks(Offline(defaulted(one.resource, None) for one in manifests(paths)))


def _wanted(present: Objects, documents: Sequence[Manifest], prune: bool) -> Objects:
    from tortie.calc.bgp_plan.changes import overlaid

    return overlaid(present, ((one.resource, one.source) for one in documents), prune)
