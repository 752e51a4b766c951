"""`tortie datastore migrate ...`: ask everybody to leave the datastore alone for a while, and move it to another one.

lock ─► export ─► import into the new one ─► agents are told of the new one ─► unlock the new one
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.cli.datastore import Datastore, Lab, asked, asked_anyway, begun, locate, place_of
from tortie.cli.datastore_status import status

if TYPE_CHECKING:
    from tortie.model.store import Store

app = typer.Typer(no_args_is_help=True, help="The datastore itself.")
migrate = typer.Typer(no_args_is_help=True, help="Lock the datastore for maintenance, move it, and unlock it.")
app.command("status")(status)
app.add_typer(migrate, name="migrate")

ATTEMPTS = 20
PRIVATE = 0o600
"""Of a file that may tell of a whole cluster."""


@migrate.command()
def lock(datastore: Datastore = "", lab: Lab = "") -> None:
    """Let no pod be attached or detached, and nothing be cleaned up, until it is unlocked."""
    asked(datastore, lab, lambda store: set_ready(store, False))
    typer.echo("Datastore locked.")


@migrate.command()
def unlock(datastore: Datastore = "", lab: Lab = "") -> None:
    """Let everybody work again."""
    asked(datastore, lab, lambda store: set_ready(store, True))
    typer.echo("Datastore unlocked.")


@migrate.command("export")
def export(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write there, readable by its owner only.")
    ] = None,
    keep_node_names: Annotated[
        bool, typer.Option("--keep-node-names", help="Also of nodes that are called otherwise in Kubernetes.")
    ] = False,
    leave_out_unknown: Annotated[
        bool, typer.Option("--leave-out-unknown", help="Without what this version cannot read, instead of failing.")
    ] = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Print a locked datastore as one text, which "tortie datastore migrate import" and Calico's take."""
    from tortie.cli.export import exported

    place = place_of(locate(datastore, lab))
    elsewhere = place.backend == "kubernetes" or place.kubernetes_too
    lossy = leave_out_unknown
    text = asked(datastore, lab, lambda store: exported(store, elsewhere, keep_node_names, _aside, lossy))
    if output is None:
        typer.echo(text, nl=False)
    else:
        _save(output, text)


@migrate.command("import")
def import_(
    filename: Annotated[str, typer.Option("-f", "--filename", metavar="FILE|-", help="What was exported.")],
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Write an exported datastore into an empty one, which stays locked. Cut short, it can be done again."""
    from tortie.cli.import_ import imported, parts

    found = parts(_read(filename), filename)
    place = place_of(locate(datastore, lab))
    kubernetes, elsewhere = place.backend == "kubernetes", place.kubernetes_too
    begun(datastore, lab, lambda store: imported(store, found, kubernetes, elsewhere, _aside))
    typer.echo(
        "Datastore information successfully imported. It is locked: unlock it when agents and controllers use it: "
        "tortie datastore migrate unlock"
    )


@app.command("migrate-policy-names")
def migrate_policy_names(datastore: Datastore = "", lab: Lab = "") -> None:
    """Say that there is nothing to do: policies keep the names that they are given."""
    asked_anyway(datastore, lab, _reached)
    typer.echo("Policy name migration complete, migrated 0 policies.")


async def _reached(store: Store) -> None:
    """A datastore that cannot be read is none of which anything can be said."""
    from tortie.model.policy import Tier

    await store.list(Tier)


def _aside(text: str) -> None:
    typer.echo(text, err=True)


def _read(filename: str) -> str:
    """Raises ConfigError."""
    from tortie.base.errors import ConfigError

    try:
        return sys.stdin.read() if filename == "-" else Path(filename).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"cannot be read: {why}", filename) from None


def _save(file: Path, text: str) -> None:
    """A file that was there is replaced when all is written. Raises ConfigError."""
    from tortie.base.errors import ConfigError

    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "w", encoding="utf-8") as out:
            out.write(text)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"cannot be written: {error.strerror}", str(file)) from None


async def set_ready(store: Store, ready: bool) -> None:
    """Lets everybody use the datastore, or nobody. Raises Conflict."""
    from msgspec.structs import replace

    from tortie.base.errors import Conflict
    from tortie.cli.datastore import initialise
    from tortie.model.node import ClusterInformation

    await initialise(store)
    for _ in range(ATTEMPTS):
        information = await store.get(ClusterInformation, "default")
        if information.spec.datastore_ready is ready:
            return
        try:
            await store.update(replace(information, spec=replace(information.spec, datastore_ready=ready)))
        except Conflict:
            continue
        return
    raise Conflict(f"ClusterInformation was written by others {ATTEMPTS} times in a row; try again")
