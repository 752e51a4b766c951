"""`tortie proxy`: services on a node without our agent, in kube-proxy's place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def proxy(
    datastore: Annotated[
        str, typer.Option("--datastore", envvar="TORTIE_DATASTORE", help="SQLite file, etcd:URL, kubernetes:FILE.")
    ] = "",
    node: Annotated[
        str, typer.Option("--node", "--hostname-override", help="This node's name, or $NODENAME; else the machine's.")
    ] = "",
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Its socket proxy.sock.")] = Path("/run/tortie"),
    lib_dir: Annotated[
        Path | None, typer.Option("--lib-dir", help="For what is chosen on this node: /var/lib/calico.")
    ] = None,
    cluster_cidr: Annotated[
        str, typer.Option("--cluster-cidr", metavar="NET,...", help="Where pods are; else pools say, or pod CIDRs.")
    ] = "",
    services: Annotated[str, typer.Option("--services", help="auto, on or off, or $TORTIE_SERVICES.")] = "",
    nodeport_addresses: Annotated[
        str, typer.Option("--nodeport-addresses", metavar="NET,...", help="Where NodePorts are answered.")
    ] = "",
    healthz_port: Annotated[
        int, typer.Option(help="/healthz as kube-proxy has it; 0: none.", min=0, max=65535)
    ] = 10256,
    metrics_port: Annotated[
        int, typer.Option(help="/metrics on 127.0.0.1, as kube-proxy's; 0: none.", min=0, max=65535)
    ] = 10249,
    log_level: Annotated[str, typer.Option(envvar="TORTIE_LOG_LEVEL", help="debug, info, warning, error.")] = "info",
) -> None:
    """Serve services on this node: ClusterIP, NodePort, LoadBalancer. The agent does it too, where it runs. Stops on
    SIGTERM and leaves services working."""
    import os

    from tortie.base.errors import ConfigError
    from tortie.proxy.config import proxy_config
    from tortie.proxy.main import LIB_DIR, RUN_DIR, Orders, main
    from tortie.store.place import of_a_daemon

    if os.geteuid() != 0:
        raise ConfigError("the proxy programs the kernel: run it as root")
    config = proxy_config(services, nodeport_addresses, cluster_cidr, healthz_port=healthz_port)
    files = lib_dir or (LIB_DIR if run_dir == RUN_DIR else run_dir)
    main(Orders(of_a_daemon(datastore), node, run_dir, files, config, metrics_port), log_level)
