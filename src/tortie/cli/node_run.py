"""`tortie node run`: calicoctl starts a container here. We have none to start, and say what to write instead."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import typer

from tortie.base.errors import NotSupported

OPTIONS = {"--name": "--node", "--ip": "--ipv4", "--ip6": "--ipv6"}
"""calicoctl's and those of `tortie agent` that mean the same."""
VARIABLES = {
    "--as": "AS",
    "--ip-autodetection-method": "IP_AUTODETECTION_METHOD",
    "--ip6-autodetection-method": "IP6_AUTODETECTION_METHOD",
}
"""calicoctl's, and the variables that say the same to the agent."""


def run(ctx: typer.Context) -> None:
    """Not here: calicoctl starts a container with the node's software. Run the agent as a service instead."""
    line = instead(ctx.args)
    raise NotSupported(f"there is no container to start: run the agent as a service of this machine: {line}")


def instead(arguments: Sequence[str]) -> str:
    """The command of ours for the arguments of `calicoctl node run`.

    >>> instead(["--name=n1", "--ip", "10.0.0.1", "--as=64512", "--backend=none", "--dryrun"])
    'AS=64512 tortie agent --node n1 --ipv4 10.0.0.1 --no-bgp'
    """
    given: dict[str, str] = {}
    words = list(arguments)
    while words:
        option, equals, value = words.pop(0).partition("=")
        if not equals and words and not words[0].startswith("-"):
            value = words.pop(0)
        given[option] = value
    variables = [f"{name}={shlex.quote(given[option])}" for option, name in VARIABLES.items() if given.get(option)]
    if "--no-default-ippools" in given:
        variables.append("NO_DEFAULT_POOLS=true")
    options = [f"{name} {shlex.quote(given[option])}" for option, name in OPTIONS.items() if given.get(option)]
    if given.get("--backend") == "none":
        options.append("--no-bgp")
    return " ".join([*variables, "tortie agent", *options])
