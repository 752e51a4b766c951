"""`tortie lab link`: faults of the links between a lab's nodes and their switches."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Break the link between a node and its switch, or make it worse.")

Name = Annotated[
    str, typer.Option("--name", envvar="TORTIE_LAB", help="The lab; may be left out where there is only one.")
]
Node = Annotated[str, typer.Argument(metavar="NODE", help="Such as node2.")]


@app.callback()
def _link() -> None:
    """Break the link between a node and its switch, or make it worse."""


@app.command()
def down(node: Node, name: Name = "") -> None:
    """Unplug a node: its switch's port goes down, so that the node has no carrier."""
    _plug(node, name, False)


@app.command()
def up(node: Node, name: Name = "") -> None:
    """Plug a node in again."""
    _plug(node, name, True)


@app.command(name="set")
def set_(
    node: Node,
    loss: Annotated[str, typer.Option(metavar="PERCENT", help="Packets lost each way: 5%; 0 for none.")] = "",
    delay: Annotated[str, typer.Option(metavar="TIME", help="Delay each way: 20ms; 0 for none.")] = "",
    mtu: Annotated[int | None, typer.Option(min=68, max=65535, help="Of both ends, in bytes.")] = None,
    name: Name = "",
) -> None:
    """Give a node's link losses, a delay or another MTU. What is not named stays."""
    from tortie.base.errors import ConfigError
    from tortie.lab import link, machine
    from tortie.lab.state import LabDirectory

    if not loss and not delay and mtu is None:
        raise ConfigError("nothing to set: give --loss, --delay or --mtu")
    machine.check_root()
    trouble = link.Trouble(link.percent(loss), link.milliseconds(delay))
    lab = LabDirectory(chosen(name)).read()
    if mtu is not None:
        link.set_mtu(lab, node, mtu)
    if loss or delay:
        link.disturb(lab, node, trouble)


def _plug(node: str, name: str, up: bool) -> None:
    from tortie.lab import link, machine
    from tortie.lab.state import LabDirectory

    machine.check_root()
    link.plug(LabDirectory(chosen(name)).read(), node, up)


def chosen(name: str) -> str:
    """The lab that is meant: the one named, `default` if it is there, or the only one. Raises ConfigError."""
    from tortie.base.errors import ConfigError
    from tortie.lab.defaults import DEFAULT_NAME
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
