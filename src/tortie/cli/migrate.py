"""`tortie datastore migrate lock|unlock`: ask everybody to leave the datastore alone for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tortie.cli.datastore import Datastore, Lab, asked

if TYPE_CHECKING:
    from tortie.model.store import Store

app = typer.Typer(no_args_is_help=True, help="The datastore itself.")
migrate = typer.Typer(no_args_is_help=True, help="Lock the datastore for maintenance, and unlock it.")
app.add_typer(migrate, name="migrate")

ATTEMPTS = 20


@migrate.command()
def lock(datastore: Datastore = "", lab: Lab = "") -> None:
    """Let no pod be attached or detached, and nothing be cleaned up, until it is unlocked."""
    asked(datastore, lab, lambda store: _set_ready(store, False))
    typer.echo("Datastore locked.")


@migrate.command()
def unlock(datastore: Datastore = "", lab: Lab = "") -> None:
    """Let everybody work again."""
    asked(datastore, lab, lambda store: _set_ready(store, True))
    typer.echo("Datastore unlocked.")


async def _set_ready(store: Store, ready: bool) -> None:
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
