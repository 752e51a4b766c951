"""`tortie lab`: a whole cluster on this machine. Each command is a few lines over `tortie.lab`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from tortie.lab.topology import DEFAULT_NAME, DEFAULT_NODES, DEFAULT_POOL, DEFAULT_POOL6

app = typer.Typer(no_args_is_help=True, help="A whole cluster on this machine, in network namespaces.")

Name = Annotated[
    str, typer.Option("--name", envvar="TORTIE_LAB", help="The lab; may be left out where there is only one.")
]

_FOLLOW_SECONDS = 0.2
_AS_HOST = 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"'


@app.command()
def up(
    nodes: Annotated[int, typer.Option(help="How many nodes.")] = DEFAULT_NODES,
    name: Annotated[str, typer.Option(envvar="TORTIE_LAB", help="Several labs live side by side.")] = DEFAULT_NAME,
    pool: Annotated[str, typer.Option(help="IPv4 addresses of the pods.")] = DEFAULT_POOL,
    pool6: Annotated[str, typer.Option(help="IPv6 addresses of the pods.")] = DEFAULT_POOL6,
    netconf: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON to add to the CNI plugin's configuration.")
    ] = None,
) -> None:
    """Bring a lab up: nodes, agents, BGP between them. Again: make what is missing."""
    import asyncio

    from rich.console import Console

    from tortie.lab import cluster, machine
    from tortie.lab.state import LabDirectory
    from tortie.lab.steps import Steps
    from tortie.lab.topology import topology

    console = Console(highlight=False)
    wanted, directory = topology(name, nodes, pool, pool6), LabDirectory(name)
    machine.check_machine()
    was_complete = cluster.is_complete(directory)
    began = time.monotonic()
    asyncio.run(cluster.up(wanted, directory, Steps(console), _netconf(netconf)))
    how = "was up already" if was_complete else f"is up, in {time.monotonic() - began:.1f} s"
    console.print(f"lab [bold]{name}[/bold] {how}")
    console.print(f"its datastore: {directory.store}", style="dim", soft_wrap=True)


def _netconf(path: Path | None) -> dict[str, object]:
    """The JSON object in a file. Raises ConfigError."""
    import json

    from tortie.base.errors import ConfigError

    if path is None:
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}", "--netconf") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no JSON object", "--netconf")
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
    for lab in find_labs() if all_ else [_chosen(name or os.environ.get("TORTIE_LAB", ""))]:
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
    found = asyncio.run(cluster.status(LabDirectory(_chosen(name))))
    Console().print(tables.render(found))
    if not found.healthy:
        raise typer.Exit(1)


@app.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec_(
    where: Annotated[str, typer.Argument(metavar="NAMESPACE/POD", help="A pod, node:NAME, or outside.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run there.")],
    name: Name = "",
) -> None:
    """Run a program of this machine in the network namespace of a pod, a node or the outside host."""
    import asyncio

    from tortie.base.errors import ConfigError
    from tortie.kernel import netns
    from tortie.lab import machine, places
    from tortie.lab.state import LabDirectory

    machine.check_root()
    program = command[1:] if command[0] == "--" else command
    if not program:
        raise ConfigError("no program was given", "after --")
    place = asyncio.run(places.find(LabDirectory(_chosen(name)), where))
    argv = ["unshare", "--uts", "sh", "-c", _AS_HOST, place.hostname, *program]
    sys.stdout.flush()
    with netns.entered(place.netns_path):
        os.execvp(argv[0], argv)


@app.command()
def logs(
    where: Annotated[str, typer.Argument(metavar="NAMESPACE/POD", help="A pod, node:NAME, outside, or kubelet.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    name: Name = "",
) -> None:
    """What a pod printed, or whom it answered; the log of a node's agent, the outside host or the kubelet."""
    from tortie.base.errors import NotFound
    from tortie.lab import places
    from tortie.lab.state import LabDirectory

    directory = LabDirectory(_chosen(name))
    try:
        with places.log_of(directory, where).open("rb") as log:
            sys.stdout.buffer.write(log.read())
            while follow:
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
    """Who reaches whom, by real packets. Exit 1 when packets and policy disagree."""
    import asyncio

    from rich.console import Console

    from tortie.lab import machine, verdicts
    from tortie.lab.matrix import render, to_document
    from tortie.lab.state import LabDirectory

    machine.check_root()
    console, directory = Console(), LabDirectory(_chosen(name))
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


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up afterwards.")] = False,
) -> None:
    """A tour: a cluster, pods, policy, faults and clean-up, each step checked. Under a minute."""
    from tortie.lab.demo import tour

    raise typer.Exit(tour(keep))


def _chosen(name: str) -> str:
    """The lab that is meant: the one named, `default` if it is there, or the only one. Raises ConfigError."""
    from tortie.base.errors import ConfigError
    from tortie.lab.state import find_labs
    from tortie.lab.topology import check_name

    if name:
        check_name(name)
        return name
    labs = find_labs()
    if DEFAULT_NAME in labs or not labs:
        return DEFAULT_NAME
    if len(labs) > 1:
        raise ConfigError(f"there are several labs, name one with --name: {', '.join(labs)}")
    return labs[0]
