"""`tortie agent`: the node daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def agent(
    node: Annotated[str, typer.Option("--node", envvar="NODENAME", help="This node's name.")],
    datastore: Annotated[str, typer.Option("--datastore", envvar="TORTIE_DATASTORE", help="SQLite file.")],
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Socket, BIRD's files.")] = Path("/run/tortie"),
    ipv4: Annotated[str, typer.Option("--ipv4", envvar="IP", help="Address with prefix length: 192.0.2.7/24.")] = "",
    ipv6: Annotated[str, typer.Option("--ipv6", envvar="IP6", help="Address with prefix length: fd00::7/64.")] = "",
    bgp: Annotated[bool, typer.Option("--bgp/--no-bgp", help="Run BIRD.")] = True,
    connect_delay: Annotated[int, typer.Option(help="Seconds before BIRD first dials its peers.", min=0)] = 2,
    health_port: Annotated[int, typer.Option(help="/liveness and /readiness on localhost; 0: none.")] = 9099,
    metrics_port: Annotated[int, typer.Option(help="/metrics on every address; 0: none.")] = 9091,
    log_level: Annotated[str, typer.Option(envvar="TORTIE_LOG_LEVEL", help="debug, info, warning, error.")] = "info",
) -> None:
    """Run this node: connect its pods, enforce policy, speak BGP. Stops on SIGTERM and leaves the network working."""
    import os

    from tortie.agent.config import AgentConfig
    from tortie.agent.main import main
    from tortie.base.errors import ConfigError

    if os.geteuid() != 0:
        raise ConfigError("the agent programs the kernel: run it as root")
    config = AgentConfig(node, datastore, run_dir, ipv4, ipv6, bgp, connect_delay, health_port, metrics_port)
    main(config, log_level)
