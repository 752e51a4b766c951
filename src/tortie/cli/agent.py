"""`tortie agent`: the node daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def agent(
    datastore: Annotated[
        str, typer.Option("--datastore", envvar="TORTIE_DATASTORE", help="SQLite file, etcd:URL, kubernetes:FILE.")
    ] = "",
    node: Annotated[str, typer.Option("--node", help="This node's name, or $NODENAME; else the machine's.")] = "",
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Socket, BIRD's files.")] = Path("/run/tortie"),
    ipv4: Annotated[str, typer.Option("--ipv4", help="192.0.2.7/24, autodetect or none; or $IP.")] = "",
    ipv6: Annotated[str, typer.Option("--ipv6", help="fd00::7/64, autodetect or none; or $IP6.")] = "",
    bgp: Annotated[bool, typer.Option("--bgp/--no-bgp", help="Run BIRD.")] = True,
    connect_delay: Annotated[int, typer.Option(help="Seconds before BIRD first dials its peers.", min=0)] = 2,
    health_port: Annotated[
        int, typer.Option(help="/liveness and /readiness on 127.0.0.1; 0: none.", min=0, max=65535)
    ] = 9099,
    metrics_port: Annotated[int, typer.Option(help="/metrics on every address; 0: none.", min=0, max=65535)] = 9091,
    ready_addresses: Annotated[int, typer.Option(help="Addresses held ready for pods to come; 0: none.", min=0)] = 64,
    lib_dir: Annotated[Path | None, typer.Option("--lib-dir", help="Of mtu, nodename: /var/lib/calico.")] = None,
    defaults: Annotated[bool, typer.Option("--defaults/--no-defaults", help="Make first pools and objects.")] = True,
    pod_subnet: Annotated[str, typer.Option("--pod-subnet", help="kubeadm's, for the first pools.")] = "",
    cni_conf_dir: Annotated[Path | None, typer.Option("--cni-conf-dir", help="For autoRoutes: /etc/cni/net.d.")] = None,
    fanout: Annotated[str, typer.Option("--fanout", help="Fan-out servers, HOST:PORT,...; or $FELIX_TYPHAADDR.")] = "",
    services: Annotated[
        str, typer.Option("--services", help="Serve services: auto (unless kube-proxy does), on, off.")
    ] = "",
    nodeport_addresses: Annotated[
        str, typer.Option("--nodeport-addresses", metavar="NET,...", help="Of this node, where NodePorts are answered.")
    ] = "",
    proxy_health_port: Annotated[
        int, typer.Option(help="/healthz as kube-proxy has it; 0: none.", min=0, max=65535)
    ] = 10256,
    log_level: Annotated[str, typer.Option(envvar="TORTIE_LOG_LEVEL", help="debug, info, warning, error.")] = "info",
) -> None:
    """Run this node: connect its pods, enforce policy, speak BGP. Stops on SIGTERM and leaves the network working."""
    import os

    from tortie.agent.config import AgentConfig
    from tortie.agent.main import main
    from tortie.base.errors import ConfigError
    from tortie.store.place import of_a_daemon

    if os.geteuid() != 0:
        raise ConfigError("the agent programs the kernel: run it as root")
    ports = health_port, metrics_port
    config = AgentConfig(
        node,
        of_a_daemon(datastore),
        run_dir,
        ipv4,
        ipv6,
        bgp,
        connect_delay,
        *ports,
        ready_addresses,
        lib_dir=lib_dir,
        defaults=defaults,
        pod_subnet=pod_subnet,
        cni_conf_dir=cni_conf_dir,
        fanout=fanout,
        services=services,
        nodeport_addresses=nodeport_addresses,
        proxy_health_port=proxy_health_port,
    )
    main(config, log_level)
