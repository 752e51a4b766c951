"""`tortie cni`: the CNI plugins of this node: installing them, running networks by hand, looking for what is wrong in a
network's configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tortie.base.errors import ConfigError
from tortie.cli import cni_run, cni_validate

app = typer.Typer(no_args_is_help=True, help="The CNI plugins of this node, and networks made of them.")

BinDirs = Annotated[
    list[Path] | None,
    typer.Option("--bin-dir", metavar="DIR", help="Directory of plugins; repeatable. Default /opt/cni/bin."),
]
NetDir = Annotated[
    Path | None, typer.Option("--net-dir", metavar="DIR", help="Directory of conflists; also $CNI_NET_DIR.")
]
Plugins = Annotated[
    str, typer.Option("--plugins", metavar="all|NAME,...", help="These stand-alone plugins, and nothing else.")
]
Force = Annotated[bool, typer.Option("--force", help="With --plugins: in the place of other programs, too.")]
Socket = Annotated[Path, typer.Option("--socket", metavar="PATH", help="Where plugins look for the server.")]


@app.command()
def install(bin_dir: BinDirs = None, net_dir: NetDir = None, plugins: Plugins = "", force: Force = False) -> None:
    """Write the executables `calico` and `calico-ipam` and the network's conflist. Again: change what differs.

    Reads the environment as Calico's installer does: CNI_CONF_NAME, CNI_NETWORK_CONFIG, CNI_MTU and the others.
    """
    from tortie.cni.hostfiles import BIN_DIRS, absent, host_files, install

    if plugins:
        from tortie.cni.install import install_plugins

        dirs = bin_dir or [Path(one) for one in BIN_DIRS]
        written = [path for one in dirs for path in install_plugins(one, _named(plugins), force=force)]
        typer.echo("\n".join(f"wrote {path}" for path in written) or "everything is in place already")
        return
    files = host_files(os.environ, tuple(bin_dir or ()), net_dir)
    changed = install(files)
    typer.echo("\n".join(f"wrote {line}" for line in changed) or "everything is in place already")
    from tortie.cni.install import PLUGINS

    for name in absent(files):
        where = ", ".join(map(str, files.bin_dirs))
        ours = f"; tortie cni install --plugins {name} puts ours there" if name in PLUGINS else ""
        typer.echo(f'no plugin "{name}" in {where}: until it is there, no container is connected{ours}', err=True)


@app.command()
def uninstall(bin_dir: BinDirs = None, net_dir: NetDir = None, plugins: Plugins = "") -> None:
    """Remove what install wrote; other people's files stay."""
    from tortie.cni.hostfiles import BIN_DIRS, host_files, uninstall

    if plugins:
        from tortie.cni.install import remove_plugins

        dirs = bin_dir or [Path(one) for one in BIN_DIRS]
        gone = [path for one in dirs for path in remove_plugins(one, _named(plugins))]
        typer.echo("\n".join(f"removed {path}" for path in gone) or "there is nothing of ours")
        return
    files = host_files(os.environ, tuple(bin_dir or ()), net_dir)
    removed = uninstall(files)
    typer.echo("\n".join(f"removed {line}" for line in removed) or "there is nothing of ours")


def _named(plugins: str) -> tuple[str, ...]:
    """The plugins that `--plugins` names."""
    from tortie.cni.install import PLUGINS

    return PLUGINS if plugins == "all" else tuple(plugins.split(","))


@app.command()
def serve(socket: Socket = Path("/run/tortie/plugins.sock")) -> None:
    """Serve calls of the installed plugins, which then need not start Python each time. Ends on SIGTERM."""
    from tortie.cni.install import base_python

    if os.geteuid() != 0:
        raise ConfigError("plugins program the kernel: run it as root")
    program = str(Path(__file__).parents[1] / "cni" / "resident.py")
    os.execv(base_python(), [base_python(), "-I", "-S", program, str(socket)])


app.command("add")(cni_run.add)
app.command("del")(cni_run.delete)
app.command("check")(cni_run.check)
app.command("gc")(cni_run.gc)
app.command("status")(cni_run.status)
app.command("validate")(cni_validate.validate)
