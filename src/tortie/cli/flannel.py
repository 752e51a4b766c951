"""`tortie flannel`: what flannel's daemons on this node say, who has which subnet, and Docker's options.

status       ─► every daemon's socket, beside its subnet file
leases       ─► etcd, or Kubernetes, with the daemon's own flags
docker-opts  ─► the subnet file
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.agent.client import ask
from tortie.base.errors import NotFound, TortieError
from tortie.cli.choice import check_choice

if TYPE_CHECKING:
    from tortie.flannel.manager import Leases
    from tortie.flannel.options import Options

app = typer.Typer(no_args_is_help=True, help="Flannel on this node: subnets, neighbours, rules.")

RUN_DIR = Path("/run/flannel")
OF_A_LAB = "subnet.sock"
"""The daemon's socket in the directory of a lab's node."""
FORMATS = ("table", "json", "yaml")

Output = Annotated[str, typer.Option("-o", "--output", help="table, json or yaml.")]


@app.callback()
def _flannel() -> None:
    """Flannel on this node: subnets, neighbours, rules."""


@app.command()
def status(
    socket: Annotated[
        list[Path] | None,
        typer.Option("--socket", metavar="FILE", help="A daemon's; repeatable. Default: all in /run/flannel."),
    ] = None,
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab; all of them if none.")] = "",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's nodes instead of this machine.")] = "",
    output: Output = "table",
) -> None:
    """This node's subnet, the ways to the other nodes, and what is wrong. Exit status 1 when something is."""
    from datetime import UTC, datetime

    from tortie.cli.flannel_text import page, wrong

    _check(output)
    answers = [_answer(path) for path in _sockets(socket or (), lab, node)]
    if output == "table":
        now = datetime.now(UTC)
        print("\n".join(page(answer, now) for answer in answers), end="")
    else:
        _print(answers, output)
    if any(wrong(answer) for answer in answers):
        raise typer.Exit(1)


def _sockets(given: Sequence[Path], lab: str, node: str) -> list[Path]:
    """Raises ConfigError, and NotFound when there is none."""
    from tortie.cli.datastore import labs_up
    from tortie.cli.node import sockets

    if given:
        return list(given)
    here = sorted(RUN_DIR.glob("*.sock"))
    if lab or node or os.environ.get("TORTIE_LAB") or (not here and labs_up()):
        return [path.with_name(OF_A_LAB) for path in sockets(lab, node).values()]
    if not here:
        raise NotFound(f"no flanneld runs here: {RUN_DIR} has no *.sock; --socket names that of another directory")
    return here


def _answer(path: Path) -> dict[str, Any]:
    try:
        return {"socket": str(path), **ask(path, "/status", who="flanneld")}
    except TortieError as error:
        return {"socket": str(path), "problems": [str(error)]}


class _WithFlags(typer.core.TyperCommand):
    """A command that has flanneld's flags beside its own options: what is not its own is left in `ctx.args`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own, flags = [], []
        words = iter(args)
        for word in words:
            if word in ("-h", "--help") or word.startswith("--output="):
                own.append(word)
            elif word in ("-o", "--output"):
                own += [word, *_next(words)]
            else:
                flags.append(word)
        super().parse_args(ctx, own)
        ctx.args = flags
        return flags


def _next(words: Iterator[str]) -> list[str]:
    return [word for word in (next(words, None),) if word is not None]


@app.command(cls=_WithFlags)
def leases(ctx: typer.Context, output: Output = "table") -> None:
    """All nodes' subnets, straight from etcd or Kubernetes. Takes flanneld's flags: -etcd-endpoints, -kube-subnet-mgr,
    and so on."""
    import asyncio
    import time

    from tortie.cli.flannel_text import leases_document, leases_table
    from tortie.flannel.options import parse

    _check(output)
    options = parse(ctx.args, os.environ)
    found = asyncio.run(_leases(options))
    documents = leases_document(found, reserves=not options.kube_subnet_mgr)
    if output == "table":
        print(leases_table(documents, time.time()), end="")
    else:
        _print(documents, output)


async def _leases(options: Options) -> Leases:
    from tortie.flannel.managers import opened

    manager = await opened(options, os.environ, observes=True)
    try:
        return await manager.leases()
    finally:
        await manager.close()


@app.command("docker-opts")
def docker_opts(
    subnet_file: Annotated[Path, typer.Option("-f", metavar="FILE", help="flanneld's subnet file.")] = Path(
        "/run/flannel/subnet.env"
    ),
    into: Annotated[Path, typer.Option("-d", metavar="FILE", help='Where to write; "-" is standard output.')] = Path(
        "/run/docker_opts.env"
    ),
    single: Annotated[bool, typer.Option("-i", help="Each option in a variable of its own.")] = False,
    combined: Annotated[bool, typer.Option("-c", help="All options in one variable.")] = False,
    no_masq: Annotated[bool, typer.Option("-m", help="Without --ip-masq.")] = False,
    key: Annotated[str, typer.Option("-k", metavar="NAME", help="That one variable's name.")] = "DOCKER_OPTS",
) -> None:
    """Docker's options for this node's subnet, for a service's EnvironmentFile: what mk-docker-opts.sh does. Without -i
    and -c it writes both."""
    from tortie.flannel.docker_opts import made, write

    both = not single and not combined
    found = made(subnet_file, key, single=single or both, combined=combined or both, masq=not no_masq)
    if str(into) == "-":
        print(found, end="")
    else:
        write(into, found)


# --- printing -----------------------------------------------------------------------------------------------------


def _check(output: str) -> None:
    check_choice(output, FORMATS, "--output")


def _print(answers: Any, output: str) -> None:
    if output == "json":
        print(json.dumps(answers, indent=2, ensure_ascii=False))
    else:
        from tortie.model.text import dump

        print(dump(answers), end="")
