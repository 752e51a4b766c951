"""`tortie fanout`: one set of watches on the datastore for many agents, in Typha's place."""

from __future__ import annotations

from typing import Annotated

import typer

from tortie.cli.datastore import Datastore, Lab, environment_of, locate


def fanout(
    datastore: Datastore = "",
    lab: Lab = "",
    listen: Annotated[
        str,
        typer.Option("--listen", metavar="ADDRESS,...", help="HOST:PORT, :PORT on every address, unix:PATH."),
    ] = ":5473",
    tls_cert: Annotated[str, typer.Option(envvar="TYPHA_SERVERCERTFILE", metavar="FILE", help="This server's.")] = "",
    tls_key: Annotated[str, typer.Option(envvar="TYPHA_SERVERKEYFILE", metavar="FILE", help="Its key.")] = "",
    tls_ca: Annotated[
        str, typer.Option(envvar="TYPHA_CAFILE", metavar="FILE", help="Signs agents' certificates.")
    ] = "",
    client_cn: Annotated[
        str, typer.Option(envvar="TYPHA_CLIENTCN", metavar="NAME", help="Common name of agents' certificates.")
    ] = "",
    client_uri_san: Annotated[
        str, typer.Option(envvar="TYPHA_CLIENTURISAN", metavar="URI", help="The same, a URI among the other names.")
    ] = "",
    health_port: Annotated[
        int,
        typer.Option(
            envvar="TYPHA_HEALTHPORT", help="/liveness and /readiness on 127.0.0.1; 0: none.", min=0, max=65535
        ),
    ] = 9098,
    metrics_port: Annotated[
        int,
        typer.Option(
            envvar="TYPHA_PROMETHEUSMETRICSPORT", help="/metrics on every address; 0: none.", min=0, max=65535
        ),
    ] = 9093,
    max_connections: Annotated[int, typer.Option(min=1, help="Agents at the same time; more are sent away.")] = 10_000,
    leave: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="At the end: in how many seconds agents go elsewhere.")
    ] = 10.0,
    log_level: Annotated[str, typer.Option(envvar="TORTIE_LOG_LEVEL", help="debug, info, warning, error.")] = "info",
) -> None:
    """Follow the datastore once, and tell many agents: they ask it much less. Stops on SIGTERM."""
    from tortie.base.logs import to_stderr
    from tortie.fanout.main import Orders, kinds_of, main
    from tortie.fanout.server import Settings
    from tortie.store.fanout.address import address
    from tortie.store.fanout.tls import Tls

    environment = environment_of()
    where = locate(datastore, lab)
    places = tuple(address(one, "--listen") for one in listen.split(",") if one.strip())
    tls = Tls(tls_ca, tls_cert, tls_key, client_cn, client_uri_san).checked("--tls-ca", "--tls-cert", "--tls-key")
    settings = Settings(tls, max_connections, kinds_of(where, environment), leave=leave)
    to_stderr(log_level)
    main(Orders(where, places, settings, health_port, metrics_port), environment)
