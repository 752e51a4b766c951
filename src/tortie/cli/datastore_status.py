"""`tortie datastore status`: which datastore it is, whether it answers, how fast, and what is in it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.base.errors import TortieError
from tortie.cli.choice import check_choice
from tortie.cli.datastore import Datastore, Lab, asked_anyway, environment_of, locate, place_of

if TYPE_CHECKING:
    from tortie.model.store import Store
    from tortie.store.place import Place

READS = 3
"""Of which the quickest counts: the first one makes the connection."""


@dataclass
class Status:
    """What was found. `latency` is of a read, in milliseconds; `locked` None: there is no cluster in it yet."""

    datastore: str
    backend: str
    error: str = ""
    latency: float | None = None
    revision: str = ""
    locked: bool | None = None
    guid: str = ""
    version: str = ""
    servers: dict[str, str] = field(default_factory=dict)
    """Versions, by server."""
    objects: dict[str, int | None] = field(default_factory=dict)
    """By kind; None of those that cannot be counted."""

    def as_json(self) -> dict[str, Any]:
        return {
            "datastore": self.datastore,
            "backend": self.backend,
            "reachable": not self.error,
            "error": self.error,
            "latencyMilliseconds": self.latency,
            "revision": self.revision,
            "locked": self.locked,
            "clusterGUID": self.guid,
            "calicoVersion": self.version,
            "servers": self.servers,
            "objects": self.objects,
        }


def status(
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Say which datastore is meant, whether it answers, whether it is locked, and how much is in it.

    Exit status 1 when it cannot be asked.
    """
    check_choice(output, ("table", "json"), "--output")
    found = place_of(locate(datastore, lab))
    said = Status(str(found), found.backend)
    try:
        asked_anyway(datastore, lab, lambda store: _look(store, said, found))
    except TortieError as error:
        said.error = str(error)
    if output == "json":
        typer.echo(json.dumps(said.as_json(), indent=2))
    else:
        typer.echo(table(said), nl=False)
    if said.error:
        raise typer.Exit(1)


def table(said: Status) -> str:
    """For people."""
    from tortie.cli.output import aligned

    rows = [("DATASTORE", said.datastore), ("REACHABLE", f"no: {said.error}" if said.error else "yes")]
    if said.latency is not None:
        rows.append(("READ", f"{said.latency:.1f} ms"))
    rows += ((f"SERVER {name}".rstrip(), version) for name, version in sorted(said.servers.items()))
    if not said.error:
        locked = {None: "no cluster in it yet", True: "yes", False: "no"}[said.locked]
        rows += (("REVISION", said.revision), ("LOCKED", locked))
        rows += ((name, text) for name, text in (("CLUSTER", said.guid), ("VERSION", said.version)) if text)
    text = "".join(f"{name:<10} {value}\n" for name, value in rows)
    counted = [[name, "?" if number is None else str(number)] for name, number in said.objects.items() if number != 0]
    return text + ("\n" + aligned([["KIND", "OBJECTS"], *counted]) if counted else "")


async def _look(store: Store, said: Status, found: Place) -> None:
    from tortie.model.kinds import KINDS
    from tortie.model.node import ClusterInformation
    from tortie.store.servers import versions

    for _ in range(READS):
        start = time.perf_counter()
        listing = await store.list(ClusterInformation)
        took = round(1000 * (time.perf_counter() - start), 2)
        said.latency = took if said.latency is None else min(said.latency, took)
    said.revision = listing.revision
    for information in listing.items:
        said.locked = information.spec.datastore_ready is False
        said.guid, said.version = information.spec.cluster_guid, information.spec.calico_version
    said.servers = await versions(found, environment_of())
    said.objects = {kind.KIND.key: await _count(store, kind) for kind in KINDS}


async def _count(store: Store, kind: Any) -> int | None:
    try:
        return len((await store.list(kind)).items)
    except TortieError:
        return None
