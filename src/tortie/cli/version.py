"""`tortie version`: this command's, and the cluster's."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from tortie import __version__
from tortie.cli.datastore import Datastore, Lab, asked_anyway

if TYPE_CHECKING:
    from tortie.model.node import ClusterInformation
    from tortie.model.store import Store


def version(
    datastore: Datastore = "",
    lab: Lab = "",
    client: Annotated[bool, typer.Option("--client", help="This command's only; no datastore is asked.")] = False,
    poll: Annotated[
        str, typer.Option("--poll", metavar="DURATION", help="Ask again so often, and tell what has changed; 0: once.")
    ] = "0",
) -> None:
    """Print the release of Calico that this command is equal to, and that of the cluster."""
    from tortie.base.duration import parse_duration
    from tortie.base.errors import ConfigError
    from tortie.calc.versions import CALICO_VERSION

    try:
        pause = parse_duration(poll).total_seconds() if poll != "0" else 0.0
    except ConfigError as error:
        raise error.within("--poll") from None
    typer.echo(f"Client Version:    {CALICO_VERSION}")
    typer.echo(f"Git commit:        none (tortie {__version__})")
    if client:
        return
    said: list[str] = []
    while True:
        told = _cluster(asked_anyway(datastore, lab, _information), pause > 0)
        if told != said:
            typer.echo("\n".join(told))
            sys.stdout.flush()
            said = told
        if not pause:
            return
        time.sleep(pause)


def _cluster(information: ClusterInformation | None, polled: bool) -> list[str]:
    """Raises NotFound when nobody has said which version the cluster is, unless that is `polled` for."""
    from tortie.base.errors import NotFound

    if information is None or not information.spec.calico_version:
        unknown = "Unable to detect installed Calico version"
        if polled:
            return [unknown]
        raise NotFound(unknown)
    spec = information.spec
    return [f"Cluster Version:   {spec.calico_version}", f"Cluster Type:      {spec.cluster_type}"]


async def _information(store: Store) -> ClusterInformation | None:
    from tortie.base.errors import NotFound
    from tortie.model.node import ClusterInformation

    try:
        return await store.get(ClusterInformation, "default")
    except NotFound:
        return None
