"""`tortie node diags`: what somebody who helps from afar wants to know of a node, in one file. No secrets.

programs ─┐
agent ────┼─► redact ─► diags-NODE-TIME.tar.gz
files ────┘
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.agent.client import ask
from tortie.base.errors import ConfigError, TortieError
from tortie.cli.node import HERE, sockets
from tortie.cli.stopping import stopped_as_by_interrupt

if TYPE_CHECKING:
    from tortie.cli.tarball import Tarball

SECONDS = 20.0
"""For one program, or one answer of the agent's."""
AT_ONCE = 4
LOG_DIR = Path("/var/log/calico")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"  # where login shells do not look, too


@dataclass(frozen=True, slots=True)
class Dump:
    """What a program prints, and where it is put."""

    name: str
    command: tuple[str, ...]


def dumps(run_dir: Path) -> tuple[Dump, ...]:
    """What is asked of a node whose agent has its files in `run_dir`."""
    lines = {
        "kernel/version": "uname -a",
        "kernel/modules": "lsmod",
        "kernel/messages": "dmesg --ctime",
        "date": "date --utc --rfc-3339=seconds",
        "links": "ip -d -s link show",
        "addresses": "ip address show",
        "routes": "ip -d route show table all",
        "routes-ipv6": "ip -6 -d route show table all",
        "rules": "ip rule show",
        "rules-ipv6": "ip -6 rule show",
        "neighbours": "ip neighbour show",
        "forwarding-database": "bridge fdb show",
        "namespaces": "ip netns list",
        "traffic-control": "tc -s qdisc show",
        "sockets": "ss -tunap",
        "nftables": "nft -a list ruleset",
        "iptables": "iptables-save -c",
        "ipsets": "ipset list",
        "conntrack": "conntrack -L",
        "sysctl": "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.all.rp_filter net.netfilter",
        "bird/status": f"birdc -s {run_dir / 'bird.ctl'} show status",
        "bird/protocols": f"birdc -s {run_dir / 'bird.ctl'} show protocols all",
        "bird/routes": f"birdc -s {run_dir / 'bird.ctl'} show route all",
        "journal": "journalctl --no-pager --lines=2000 -u tortie* -u kubelet",
    }
    return tuple(Dump(f"{name}.txt", tuple(line.split())) for name, line in lines.items())


QUESTIONS = ("node", "status", "health", "addresses", "mtu", "diagnosis", "doctor", "counters", "denials", "routes")
"""To the agent."""


def diags(
    log_dir: Annotated[Path, typer.Option("--log-dir", metavar="DIR", help="Where logs of the node are.")] = LOG_DIR,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The file; else one in the working directory.")
    ] = None,
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab.")] = "",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's node instead of this machine.")] = "",
) -> None:
    """Collect what tells how a node is: kernel, links, routes, rules, BIRD, the agent's answers, logs. No secrets."""
    from tortie.cli.tarball import Tarball

    places = sockets(lab, node)
    if len(places) > 1:
        raise ConfigError(f"several nodes are up, name one: {', '.join(places)}", "--node")
    ((name, socket),) = places.items()
    own = name if name != HERE and socket.parent.parent.name == "nodes" else ""
    title = f"diags-{own or 'node'}-{datetime.now(UTC):%Y%m%d_%H%M%S}"
    with stopped_as_by_interrupt(), Tarball(output or Path(f"{title}.tar.gz"), title) as tar:
        typer.echo("Collecting diagnostics")
        collect(tar, socket, log_dir, _inside(own, socket.parents[2].name) if own else ())
    typer.echo(f"Diags saved to {tar.path}")


def _inside(node: str, lab: str) -> tuple[str, ...]:
    """What a program is run by in the network namespace of a lab's node."""
    import asyncio

    from tortie.lab import places
    from tortie.lab.state import LabDirectory

    place = asyncio.run(places.find(LabDirectory(lab), f"node:{node}"))
    return ("nsenter", f"--net={place.netns_path}", "--")


def collect(tar: Tarball, socket: Path, log_dir: Path, inside: Sequence[str] = ()) -> None:
    """`inside` is put before each program."""
    from concurrent.futures import ThreadPoolExecutor

    run_dir = socket.parent
    with ThreadPoolExecutor(AT_ONCE) as threads:
        every = dumps(run_dir)
        for dump, text in zip(every, threads.map(lambda one: _printed((*inside, *one.command)), every), strict=True):
            typer.echo(f"Dumping {dump.name.removesuffix('.txt')}")
            tar.add(dump.name, f"$ {' '.join(dump.command)}\n{text}")
        for question, text in zip(QUESTIONS, threads.map(lambda one: _answer(socket, one), QUESTIONS), strict=True):
            tar.add(f"agent/{question}.json", text)
    typer.echo("Copying logs")
    tar.add_files("run", _files(run_dir, ("*.conf", "*.log")))
    tar.add_files("logs", _files(log_dir, ("*", "*/*")))


def _printed(command: Sequence[str]) -> str:
    """What a program prints, or why it does not."""
    import subprocess

    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
            env={"PATH": _SBIN, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not done in {SECONDS:g} s\n"
    except OSError as error:
        return f"cannot be run: {error.strerror}\n"
    status = f"\nexit status {done.returncode}\n" if done.returncode else ""
    return done.stdout + done.stderr + status


def _answer(socket: Path, question: str) -> str:
    try:
        return json.dumps(ask(socket, f"/{question}", SECONDS), indent=2, ensure_ascii=False) + "\n"
    except TortieError as error:
        return f"{error}\n"


def _files(directory: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(file for file in directory.glob(pattern) if file.is_file() and not file.is_symlink())
