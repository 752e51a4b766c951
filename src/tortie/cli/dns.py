"""`tortie dns`: the cluster's name server, in CoreDNS' place."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from tortie.cli.datastore import Datastore, Lab, environment_of, locate


def dns(
    datastore: Datastore = "",
    lab: Lab = "",
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDRESS,...", help="ADDRESS:PORT, or :PORT on every address.")
    ] = ":53",
    zone: Annotated[str, typer.Option("--zone", metavar="DOMAIN", help="The cluster's domain.")] = "cluster.local",
    forward: Annotated[
        str,
        typer.Option(
            "--forward",
            metavar="ADDRESS,...",
            help="Whom all other names are asked of, in this order; none: nobody.",
            show_default="/etc/resolv.conf's",
        ),
    ] = "",
    pods: Annotated[
        Literal["insecure", "verified", "disabled"],
        typer.Option("--pods", help="Which 10-244-1-5.NAMESPACE.pod there are: any, those of pods, none."),
    ] = "insecure",
    ttl: Annotated[int, typer.Option("--ttl", metavar="SECONDS", min=0, max=3600, help="Of the cluster's names.")] = 5,
    health_port: Annotated[int, typer.Option(help="/health on every address; 0: none.", min=0, max=65535)] = 8080,
    ready_port: Annotated[int, typer.Option(help="/ready on every address; 0: none.", min=0, max=65535)] = 8181,
    metrics_port: Annotated[int, typer.Option(help="/metrics on every address; 0: none.", min=0, max=65535)] = 9153,
    leave: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="At the end: how long to go on answering, not ready.")
    ] = 0.0,
    log_level: Annotated[str, typer.Option(envvar="TORTIE_LOG_LEVEL", help="debug, info, warning, error.")] = "info",
) -> None:
    """Answer for the names of services and pods, as Kubernetes has them. Stops on SIGTERM."""
    from tortie.base.logs import to_stderr
    from tortie.dns.main import Orders, main
    from tortie.dns.places import places

    environment = environment_of()
    where = locate(datastore, lab)
    to_stderr(log_level)
    ports = health_port, ready_port, metrics_port
    listening = places(listen, "--listen", anywhere=True)
    main(Orders(where, listening, zone, pods, forward, ttl, *ports, leave=leave), environment)
