"""`tortie node health`: what a probe of Kubernetes asks a node, with Calico's options, words and exit status."""

from __future__ import annotations

from typing import Annotated

import typer

from tortie.agent.client import ask
from tortie.base.duration import parse_duration
from tortie.base.errors import ConfigError, TortieError
from tortie.calc.node_health import BIRD, BIRD6, CHECKS, FELIX, Check, reason
from tortie.cli.node import sockets


def health(
    felix_ready: Annotated[bool, typer.Option("--felix-ready", help="Policy and routes are in the kernel.")] = False,
    felix_live: Annotated[bool, typer.Option("--felix-live", help="The agent makes progress.")] = False,
    bird_ready: Annotated[bool, typer.Option("--bird-ready", help="IPv4 sessions are established.")] = False,
    bird6_ready: Annotated[bool, typer.Option("--bird6-ready", help="IPv6 sessions are established.")] = False,
    bird_live: Annotated[bool, typer.Option("--bird-live", help="BIRD answers.")] = False,
    bird6_live: Annotated[bool, typer.Option("--bird6-live", help="The same: BIRD has both families.")] = False,
    threshold_time: Annotated[str, typer.Option(help="After a start, until when all peers count.")] = "30s",
    node: Annotated[str, typer.Option("--node", metavar="NAME", help="A node of the lab.")] = "",
    lab: Annotated[str, typer.Option("--lab", metavar="NAME", help="A lab's node instead of this machine.")] = "",
) -> None:
    """Whether a node is ready: silent if so, else one line with the first reason, and exit status 1. Without an option
    about what, all that the node runs is asked."""
    try:
        threshold = parse_duration(threshold_time).total_seconds()
    except ConfigError as error:
        raise error.within("--threshold-time") from None
    asked = {
        Check(FELIX, True): felix_live, Check(FELIX, False): felix_ready, Check(BIRD, True): bird_live,
        Check(BIRD, False): bird_ready, Check(BIRD6, True): bird6_live, Check(BIRD6, False): bird6_ready,
    }  # fmt: skip
    why = _reason([check for check, wanted in asked.items() if wanted], threshold, lab, node)
    if why:
        print(f"calico/node is not ready: {why}")
        raise typer.Exit(1)


def _reason(checks: list[Check], threshold: float, lab: str, node: str) -> str:
    places = sockets(lab, node)
    if len(places) > 1:
        raise ConfigError(f"several nodes are up, name one: {', '.join(places)}", "--node")
    (socket,) = places.values()
    try:
        answer = ask(socket, "/health", max(threshold, 1.0))
    except TortieError as error:
        return str(error)
    runs_bird = answer["bird"]["state"] != "none"
    return reason(checks or [one for one in CHECKS if one.part == FELIX or runs_bird], answer, threshold)
