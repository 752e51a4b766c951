"""`tortie uninstall`: takes this software off a machine, or says how it is taken off a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.base.errors import ConfigError

if TYPE_CHECKING:
    from tortie.agent.uninstall import Places

Plan = Annotated[bool, typer.Option("--plan", help="Print what would be done, as a shell would be told.")]
Apply = Annotated[bool, typer.Option("--apply", help="Do it.")]
Verify = Annotated[bool, typer.Option("--verify", help="Print what is left, and exit with 1 if anything is.")]
Node = Annotated[bool, typer.Option("--node", help="This machine; it is what is meant without it, too.")]
Cluster = Annotated[bool, typer.Option("--cluster", help="With --plan: the cluster's objects, in the order to delete.")]
Force = Annotated[bool, typer.Option("--force", help="Also while containers are connected: they lose their network.")]
Data = Annotated[bool, typer.Option("--data", help="The embedded datastore in /var/lib/tortie goes, too.")]
RunDir = Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="The agent's.")]
LibDir = Annotated[Path, typer.Option("--lib-dir", metavar="DIR", help="The agent's: mtu, nodename.")]
BinDirs = Annotated[
    list[Path] | None, typer.Option("--bin-dir", metavar="DIR", help="Of plugins; repeatable. Default /opt/cni/bin.")
]
FlannelDir = Annotated[Path, typer.Option("--flannel-dir", metavar="DIR", help="flanneld's: subnet.env, keys.")]
NetDir = Annotated[Path, typer.Option("--net-dir", metavar="DIR", help="Of conflists.")]


def uninstall(
    plan: Plan = False,
    apply: Apply = False,
    verify: Verify = False,
    node: Node = False,
    cluster: Cluster = False,
    force: Force = False,
    data: Data = False,
    run_dir: RunDir = Path("/run/tortie"),
    lib_dir: LibDir = Path("/var/lib/calico"),
    bin_dir: BinDirs = None,
    net_dir: NetDir = Path("/etc/cni/net.d"),
    flannel_dir: FlannelDir = Path("/run/flannel"),
) -> None:
    """Take everything of ours away from this machine: interfaces, routes, policy, files. Others' things stay."""
    from tortie.agent.uninstall import DATA, Places

    if plan + apply + verify != 1:
        raise ConfigError("say one of --plan, --apply, --verify")
    if cluster:
        _cluster(plan, node)
        return
    if os.geteuid() != 0:
        raise ConfigError("what the kernel has is shown to root only: run it as root")
    bin_dirs = tuple(bin_dir or ()) or Places().bin_dirs
    places = Places(run_dir, lib_dir, bin_dirs, net_dir, data=DATA if data else None, flannel_dir=flannel_dir)
    if apply:
        _apply(places, force)
    elif verify:
        _verify(places)
    else:
        _plan(places)


def _cluster(plan: bool, node: bool) -> None:
    from tortie.render.manifest.removal import transcript

    if not plan:
        raise ConfigError("goes with --plan: the commands are kubectl's, and yours to run", "--cluster")
    if node:
        raise ConfigError("is this machine: give one of --node, --cluster", "--node")
    typer.echo("\n".join(transcript()))


def _plan(places: Places) -> None:
    from tortie.agent.uninstall import STAYS, agent_pid, flanneld_pid, look

    found = look(places)
    if pid := agent_pid(places.run_dir):
        typer.echo(f"# an agent runs, pid {pid}: stop it first")
    if pid := flanneld_pid(places.flannel_dir):
        typer.echo(f"# flanneld runs, pid {pid}: stop it first")
    if found.pods:
        typer.echo(f"# containers are connected: {len(found.pods)}; drain the node first, or say --force")
    typer.echo(str(found) if found else "# there is nothing of ours")
    if found.been_here:
        for line in STAYS:
            typer.echo(f"# {line}")


def _apply(places: Places, force: bool) -> None:
    from tortie.agent.uninstall import carry_out, look

    found = look(places)
    if found and (failures := carry_out(places, force=force)):
        for failure in failures:
            typer.echo(f"tortie: {failure}", err=True)
        raise typer.Exit(1)
    typer.echo("removed" if found else "there is nothing of ours")


def _verify(places: Places) -> None:
    from tortie.agent.uninstall import look

    found = look(places)
    if not found:
        typer.echo("there is nothing of ours")
        return
    typer.echo("left, and how it goes:")
    typer.echo(str(found))
    raise typer.Exit(1)
