"""In whose words a command answers: Tortie's own, or calicoctl's when it is called by that name.

    ln -s .../bin/tortie /usr/local/bin/calicoctl          calicoctl get nodes
    ln -s .../bin/tortie /usr/local/bin/kubectl-calico     kubectl calico get nodes

The commands are the same. By calicoctl's names what is printed is only what calicoctl prints, a table ends with an
empty line, an error has no program before it and every error ends with status 1, so that scripts go on unchanged.
"""

from __future__ import annotations

from pathlib import PurePath

TORTIE = "tortie"
CALICOCTL = ("calicoctl", "kubectl-calico")
"""The names by which calicoctl is called; the second is its name as a plugin of kubectl."""

program = TORTIE
"""What the command that runs was called."""


def of_name(argv0: str) -> str:
    """The program that a path is the name of: `calicoctl`, `kubectl-calico`, anything else is `tortie`.

    >>> of_name("/usr/local/bin/calicoctl"), of_name("/usr/bin/calicoctl-linux-amd64"), of_name("-c")
    ('calicoctl', 'calicoctl', 'tortie')
    """
    name = PurePath(argv0).name
    return next((one for one in CALICOCTL if name == one or name.startswith(f"{one}-linux")), TORTIE)


def begin(called: str) -> None:
    """A command line begins, of the program that is called so."""
    global program
    program = called


def is_calicoctl() -> bool:
    return program in CALICOCTL
