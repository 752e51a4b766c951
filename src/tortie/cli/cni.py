"""`tortie cni`: put the CNI plugin where this node's container runtime looks for it, and take it away again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The CNI plugin's files on this node.")

BinDirs = Annotated[
    list[Path] | None,
    typer.Option("--bin-dir", metavar="DIR", help="Directory of plugins; repeatable. Default /opt/cni/bin."),
]
NetDir = Annotated[
    Path | None, typer.Option("--net-dir", metavar="DIR", help="Directory of conflists; also $CNI_NET_DIR.")
]


@app.command()
def install(bin_dir: BinDirs = None, net_dir: NetDir = None) -> None:
    """Write the executables `calico` and `calico-ipam` and the network's conflist. Again: change what differs.

    Reads the environment as Calico's installer does: CNI_CONF_NAME, CNI_NETWORK_CONFIG, CNI_MTU and the others.
    """
    from tortie.cni.hostfiles import host_files, install

    files = host_files(os.environ, tuple(bin_dir or ()), net_dir)
    changed = install(files)
    typer.echo("\n".join(f"wrote {line}" for line in changed) or "everything is in place already")


@app.command()
def uninstall(bin_dir: BinDirs = None, net_dir: NetDir = None) -> None:
    """Remove what install wrote; other people's files stay."""
    from tortie.cni.hostfiles import host_files, uninstall

    files = host_files(os.environ, tuple(bin_dir or ()), net_dir)
    removed = uninstall(files)
    typer.echo("\n".join(f"removed {line}" for line in removed) or "there is nothing of ours")
