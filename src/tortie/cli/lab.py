"""`tortie lab`: a whole cluster on this machine. Each command is a few lines over `tortie.lab`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tortie.cli import lab_link
from tortie.cli.lab_link import Name, chosen
from tortie.cli.stopping import stopped_as_by_interrupt
from tortie.lab.defaults import CANAL, DEFAULT_NAME, DEFAULT_NODES, DEFAULT_POOL, DEFAULT_POOL6, FLANNEL

if TYPE_CHECKING:
    from rich.console import Console

    from tortie.lab.state import LabDirectory
    from tortie.lab.topology import Topology

app = typer.Typer(no_args_is_help=True, help="A whole cluster on this machine, in network namespaces.")
app.add_typer(lab_link.app, name="link")

_FOLLOW_SECONDS = 0.2
WIDEST = 1000
"""Characters in a line where no terminal says how many fit."""


@app.command()
def up(
    nodes: Annotated[int | None, typer.Option(help="How many nodes.", show_default="3")] = None,
    name: Annotated[str, typer.Option(envvar="TORTIE_LAB", help="Several labs live side by side.")] = DEFAULT_NAME,
    pool: Annotated[str, typer.Option(help="IPv4 addresses of the pods.", show_default=DEFAULT_POOL)] = "",
    pool6: Annotated[str, typer.Option(help="IPv6 addresses of the pods.", show_default=DEFAULT_POOL6)] = "",
    topology: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Racks, routers and reflectors: mesh, rr, two-racks, cross-subnet.")
    ] = "",
    netconf: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="JSON to add to the CNI plugin's configuration; with --cni, the nodes' own networks.",
        ),
    ] = None,
    cni: Annotated[
        str,
        typer.Option(
            metavar="NETWORK",
            help="CNI plugins alone: ipvlan-l2, ipvlan-l3, macvlan, bridge, own; flannel; or canal, which is flannel "
            "with agents for policy.",
        ),
    ] = "",
    backend: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="With --cni flannel or canal: vxlan, host-gw, udp, ipip, wireguard.",
            show_default="vxlan",
        ),
    ] = "",
    plugins: Annotated[str, typer.Option(metavar="DIR", help="With --cni: the plugins of a directory, not ours.")] = "",
    no_routes: Annotated[
        bool, typer.Option("--no-routes", help="With --cni: tell nobody where the pods of other nodes are.")
    ] = False,
) -> None:
    """Bring a lab up: nodes, agents, BGP between them. Again: make what is missing."""
    import asyncio

    from rich.console import Console

    from tortie.lab import cluster, machine, map_text
    from tortie.lab.state import LabDirectory
    from tortie.lab.steps import Steps

    console = Console(highlight=False)
    directory = LabDirectory(name)
    if cni in (FLANNEL, CANAL):
        _only(("--topology", topology))
        _only(("--plugins", plugins), ("--no-routes", no_routes), because=f"does not go with --cni {cni}")
        wanted = _on_flannel(name, cni, backend, nodes, pool, pool6)
    elif cni:
        _only(("--topology", topology), ("--pool", pool), ("--pool6", pool6))
        _only(("--backend", backend), because="is for --cni flannel and --cni canal")
        wanted = _on_network(name, cni, nodes, netconf or [], plugins, not no_routes)
    else:
        _only(("--plugins", plugins), ("--no-routes", no_routes), because="is for --cni")
        _only(("--backend", backend), because="is for --cni flannel and --cni canal")
        wanted = _wanted(directory, nodes, pool, pool6, topology)
    machine.check_machine(wanted.has_agents)
    was_complete = cluster.is_complete(directory)
    began = time.monotonic()
    added = {} if cni not in ("", FLANNEL, CANAL) else _netconf(netconf or [])
    with stopped_as_by_interrupt():
        asyncio.run(cluster.up(wanted, directory, Steps(console), added))
    how = "was up already" if was_complete else f"is up, in {time.monotonic() - began:.1f} s"
    console.print(f"lab [bold]{name}[/bold] {how}")
    console.print(f"its datastore: {directory.store}", style="dim", soft_wrap=True)
    if topology:
        console.print(map_text.render(asyncio.run(cluster.charted(directory))))
    if wanted.blueprint.begins_with_pods:
        _show_reach(directory, console)


def _only(*options: tuple[str, object], because: str = "and --cni exclude each other") -> None:
    """Raises ConfigError for an option that does not go with the others."""
    from tortie.base.errors import ConfigError

    for option, value in options:
        if value:
            raise ConfigError(because, option)


def _on_network(name: str, cni: str, nodes: int | None, files: list[Path], plugins: str, routes: bool) -> Topology:
    """The lab whose nodes have that CNI network. Raises ConfigError."""
    from tortie.lab import networks, topology

    topology.check_name(name)
    directory = str(Path(plugins).resolve()) if plugins else ""
    return topology.laid_out(name, networks.blueprint_of(cni, nodes, files, directory, routes))


def _on_flannel(name: str, cni: str, backend: str, nodes: int | None, pool: str, pool6: str) -> Topology:
    """The lab whose pods flannel connects. Raises ConfigError."""
    from tortie.lab import flannel, topology

    topology.check_name(name)
    return topology.laid_out(name, flannel.blueprint_of(backend, nodes, pool, pool6, policy=cni == CANAL))


def _show_reach(directory: LabDirectory, console: Console) -> None:
    """The matrix of a lab that has just come up. Exit 1 when it is not as the networks' configurations have it."""
    import asyncio

    from tortie.lab import verdicts
    from tortie.lab.matrix import render

    found = asyncio.run(verdicts.settled(directory))
    console.print(render(found.matrix, found.verdicts.expected, console.width))
    if found.disagreements:
        raise typer.Exit(1)


def _wanted(directory: LabDirectory, nodes: int | None, pool: str, pool6: str, topology: str) -> Topology:
    """The lab that is asked for; one that is there already where nothing is said. Raises ConfigError."""
    from tortie.base.errors import ConfigError
    from tortie.lab import topology as layout
    from tortie.lab.blueprint import load

    layout.check_name(directory.name)
    if topology:
        if pool or pool6:
            raise ConfigError("a topology has its own pools", "--pool" if pool else "--pool6")
        blueprint = load(topology)
        return layout.laid_out(directory.name, layout.resized(blueprint, nodes) if nodes is not None else blueprint)
    if nodes is None and not pool and not pool6 and directory.exists:
        return directory.read()
    wanted = DEFAULT_NODES if nodes is None else nodes
    return layout.topology(directory.name, wanted, pool or DEFAULT_POOL, pool6 or DEFAULT_POOL6)


def _netconf(paths: list[Path]) -> dict[str, object]:
    """The JSON object in a file, or nothing. Raises ConfigError."""
    import json

    from tortie.base.errors import ConfigError

    if not paths:
        return {}
    if len(paths) > 1:
        raise ConfigError("several files are for --cni, where nodes have networks of their own", "--netconf")
    (path,) = paths
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", "--netconf", str(path)) from None
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}", "--netconf", str(path)) from None
    if not isinstance(document, dict):
        raise ConfigError("is not one JSON object", "--netconf", str(path))
    return document


@app.command()
def down(
    name: Annotated[str, typer.Option("--name", help="The lab; else $TORTIE_LAB, or the only one.")] = "",
    all_: Annotated[bool, typer.Option("--all", help="Every lab there is.")] = False,
) -> None:
    """Take a lab away, whatever is left of it."""
    from tortie.base.errors import ConfigError
    from tortie.lab import cluster, machine
    from tortie.lab.state import LabDirectory, find_labs

    if all_ and name:
        raise ConfigError("--name and --all exclude each other")
    machine.check_root()
    for lab in find_labs() if all_ else [chosen(name or os.environ.get("TORTIE_LAB", ""))]:
        there = cluster.down(LabDirectory(lab))
        typer.echo(f"lab {lab} is gone" if there else f"there is no lab {lab}")


@app.command()
def status(name: Name = "") -> None:
    """Nodes, agents, BGP sessions and pods. Exit 1 when something is not as it should be."""
    import asyncio

    from rich.console import Console

    from tortie.lab import cluster, machine, tables
    from tortie.lab.state import LabDirectory

    machine.check_root()
    found = asyncio.run(cluster.status(LabDirectory(chosen(name))))
    console, shown = Console(), tables.render(found)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=console.measure(shown, options=console.options.update(max_width=WIDEST)).maximum)
    console.print(shown)
    if not found.healthy:
        raise typer.Exit(1)


@app.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec_(
    where: Annotated[str, typer.Argument(metavar="NAMESPACE/POD", help="A pod, node:NAME, router:NAME, or outside.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run there.")],
    name: Name = "",
) -> None:
    """Run a program of this machine in the network namespace of a pod, a node, a router or the outside host."""
    import asyncio

    from tortie.base.errors import ConfigError
    from tortie.kernel import netns
    from tortie.lab import machine, places
    from tortie.lab.processes import IN_PLACE, apart
    from tortie.lab.state import LabDirectory

    machine.check_root()
    program = command[1:] if command[0] == "--" else command
    if not program:
        raise ConfigError("no program was given", "after --")
    place = asyncio.run(places.find(LabDirectory(chosen(name)), where))
    own = place.hostname, place.resolv_conf
    argv = [*apart(*own), "sh", "-c", IN_PLACE, "exec", *own, *program]
    sys.stdout.flush()
    with netns.entered(place.netns_path):
        os.execvp(argv[0], argv)


@app.command()
def logs(
    where: Annotated[
        str,
        typer.Argument(
            metavar="NAMESPACE/POD",
            help="A pod, node:NAME, flanneld:NODE, proxy:NODE, router:NAME, outside, kubelet, controllers.",
        ),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, as long as it is there.")] = False,
    name: Name = "",
) -> None:
    """What a pod printed, or whom it answered; the log of a node's agent, flanneld or proxy, a router, the outside
    host, the kubelet or the controllers."""
    from tortie.base.errors import NotFound
    from tortie.lab import places
    from tortie.lab.state import LabDirectory

    directory = LabDirectory(chosen(name))
    try:
        with places.log_of(directory, where).open("rb") as log:
            sys.stdout.buffer.write(log.read())
            while follow and os.fstat(log.fileno()).st_nlink:  # until somebody takes it away, with its pod or lab
                sys.stdout.buffer.flush()
                time.sleep(_FOLLOW_SECONDS)
                sys.stdout.buffer.write(log.read())
    except FileNotFoundError:
        raise NotFound(f"{where} has no log in lab {directory.name}: does it run? See tortie lab status") from None


@app.command()
def matrix(
    name: Name = "",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Else each pod's first, or 80.")] = None,
    protocol: Annotated[Literal["tcp", "udp", "icmp"], typer.Option(help="What the probes are.")] = "tcp",
    ipv4: Annotated[bool, typer.Option("-4", help="Over IPv4 (the default).")] = False,
    ipv6: Annotated[bool, typer.Option("-6", help="Over IPv6.")] = False,
    output: Annotated[Literal["table", "json"], typer.Option("-o", "--output", help="How to print it.")] = "table",
) -> None:
    """Who reaches whom, by real packets. Exit 1 when packets disagree with policy, or with the network."""
    import asyncio

    from rich.console import Console

    from tortie.lab import machine, verdicts
    from tortie.lab.matrix import render, to_document
    from tortie.lab.state import LabDirectory

    machine.check_root()
    console, directory = Console(), LabDirectory(chosen(name))
    versions = [version for version, wanted in ((4, ipv4), (6, ipv6)) if wanted] or [4]
    found = [asyncio.run(verdicts.compared(directory, protocol, version, port)) for version in versions]
    if output == "json":
        documents = [to_document(one.matrix, one.verdicts.expected) for one in found]
        console.print_json(data=documents[0] if len(documents) == 1 else documents)
    else:
        for one in found:
            console.print(render(one.matrix, one.verdicts.expected, console.width))
    if any(one.disagreements for one in found):
        raise typer.Exit(1)


@app.command(name="map")
def map_(
    name: Name = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="A picture: FILE.svg or FILE.png.")
    ] = None,
) -> None:
    """Draw racks, routers, nodes, BGP sessions and who announces what: as text, or as a picture."""
    import asyncio

    from rich.console import Console

    from tortie.lab import cluster, machine, map_svg, map_text, picture
    from tortie.lab.state import LabDirectory

    machine.check_root()
    drawn = asyncio.run(cluster.charted(LabDirectory(chosen(name))))
    if output is None:
        Console(highlight=False).print(map_text.render(drawn))
    else:
        picture.write(map_svg.render(drawn), output)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up afterwards.")] = False,
    cni: Annotated[
        str, typer.Option(metavar="NETWORK", help="Of a network of CNI plugins alone: ipvlan-l2, macvlan, ...")
    ] = "",
) -> None:
    """A tour: a cluster, pods, policy, faults and clean-up, each step checked. Under a minute."""
    from tortie.lab.demo import tour

    with stopped_as_by_interrupt():
        status = tour(keep, cni)
    raise typer.Exit(status)
