"""`tortie controllers`: the cluster's housekeeping, once per cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from tortie.cli.datastore import Datastore, Lab, locate


def controllers(
    datastore: Datastore = "",
    lab: Lab = "",
    leak_grace_period: Annotated[
        str,
        typer.Option(
            "--leak-grace-period", metavar="DURATION", help="How long an address must look leaked; 0 keeps leaks."
        ),
    ] = "15m",
    once: Annotated[
        bool, typer.Option("--once", help="One pass instead of running on; 1 if something failed.")
    ] = False,
    log_level: Annotated[str, typer.Option(envvar="TORTIE_LOG_LEVEL", help="debug, info, warning, error.")] = "info",
) -> None:
    """Give back addresses that nobody uses, and clear away what nodes that are gone have left."""
    import asyncio

    from tortie.agent.logs import to_stderr
    from tortie.base.duration import parse_duration
    from tortie.controllers import main

    grace, where = parse_duration(leak_grace_period), locate(datastore, lab)
    to_stderr(log_level)
    if not once:
        asyncio.run(main.serve(where, grace))
    elif asyncio.run(main.once(where, grace)):
        raise typer.Exit(1)
