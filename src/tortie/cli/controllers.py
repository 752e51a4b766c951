"""`tortie controllers`: the cluster's housekeeping, once per cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.cli.datastore import Datastore, Lab, environment_of, locate

if TYPE_CHECKING:
    from tortie.calc.service_addresses import Ranges

STATUS_FILE = Path("/run/tortie/controllers.json")
SERVICE_CIDR, NODE_PORTS = "10.96.0.0/12,fd00:10:96::/112", "30000-32767"
"""As kubeadm and the API server have them."""


def controllers(
    datastore: Datastore = "",
    lab: Lab = "",
    leak_grace_period: Annotated[
        str,
        typer.Option(
            "--leak-grace-period",
            metavar="DURATION",
            help="How long an address must look leaked; 0 keeps leaks. Default: the KubeControllersConfiguration's.",
        ),
    ] = "",
    once: Annotated[
        bool, typer.Option("--once", help="One pass instead of running on; 1 if something failed.")
    ] = False,
    leader_elect: Annotated[
        bool,
        typer.Option("--leader-elect/--no-leader-elect", help="Of several processes one works, the holder of a Lease."),
    ] = True,
    status_file: Annotated[
        Path, typer.Option(envvar="TORTIE_CONTROLLERS_STATUS", metavar="FILE", help="Written for probes, every 10 s.")
    ] = STATUS_FILE,
    live: Annotated[bool, typer.Option("--live", "-l", help="A probe: 1 if nobody writes the status file.")] = False,
    ready: Annotated[
        bool, typer.Option("--ready", "-r", help="A probe: 1 also if the datastore does not answer them.")
    ] = False,
    service_cidr: Annotated[
        str,
        typer.Option(
            envvar="TORTIE_SERVICE_CIDR",
            metavar="CIDR,...",
            help="What services get ClusterIPs of where no Kubernetes gives any: a CIDR, or one of each IP version.",
        ),
    ] = SERVICE_CIDR,
    node_port_range: Annotated[
        str,
        typer.Option(metavar="FIRST-LAST", help="The NodePorts that services get where no Kubernetes gives them any."),
    ] = NODE_PORTS,
    log_level: Annotated[
        str,
        typer.Option(
            envvar="TORTIE_LOG_LEVEL",
            help="debug, info, warning, error. Default: what LOG_LEVEL or the KubeControllersConfiguration says.",
        ),
    ] = "",
) -> None:
    """Give back unused addresses, clear away what gone nodes left, make host endpoints, give services addresses.

    Where no Kubernetes does: make ClusterIPs, NodePorts and EndpointSlices.
    """
    if live or ready:
        _probe(status_file, ready)
        return
    import asyncio

    from tortie.base.duration import parse_duration
    from tortie.base.logs import to_stderr
    from tortie.controllers import main

    grace = parse_duration(leak_grace_period) if leak_grace_period else None
    where = locate(datastore, lab)
    ranges = _ranges(service_cidr, node_port_range)
    to_stderr(log_level or "info")
    if not once:
        program = main.Program(leader_elect, status_file, None if log_level else _log_at, ranges)
        asyncio.run(main.serve(where, grace, environment_of(), program))
    elif asyncio.run(main.once(where, grace, environment_of(), ranges)):
        raise typer.Exit(1)


def _log_at(level: str) -> None:
    """As a KubeControllersConfiguration says, in a word that nobody has checked."""
    from tortie.base.logs import LEVELS, to_stderr

    to_stderr(level if level.lower() in LEVELS else "info")


def _ranges(cidrs: str, ports: str) -> Ranges:
    """Raises ConfigError naming the option."""
    from tortie.base.errors import ConfigError
    from tortie.calc.service_addresses import Ranges, read_nets, read_ports

    option = "--service-cidr"
    try:
        nets = read_nets(cidrs)
        option = "--node-port-range"
        return Ranges(nets, read_ports(ports))
    except ConfigError as error:
        raise error.within(option) from None


def _probe(status_file: Path, ready: bool) -> None:
    """Silent if all is well, else one line and exit status 1."""
    from tortie.controllers.health import probe

    why = probe(status_file, ready=ready)
    if why:
        print(f"controllers are not {'ready' if ready else 'live'}: {why}")
        raise typer.Exit(1)
