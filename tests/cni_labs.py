"""Labs on CNI plugins alone, for tests: up, looked into, and gone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from labs import Lab, until
from tortie.lab import network

ETH0 = ("ip", "-j", "address", "show", "eth0")


@contextmanager
def up(label: str, *words: str, status: int = 0) -> Iterator[tuple[Lab, str]]:
    """A lab, and what `lab up` said; gone afterwards, with all that it was."""
    lab = Lab(f"{label}{os.getpid()}")
    try:
        yield lab, lab.tortie("lab", "up", "--name", lab.name, *words, status=status)
        assert lab.tortie("lab", "down", "--name", lab.name) == f"lab {lab.name} is gone\n"
        assert network.leftovers(lab.directory) == []
    finally:
        network.destroy(lab.directory)


def eth0(lab: Lab, where: str) -> dict[str, Any]:
    (link,) = json.loads(lab.tortie("lab", "exec", where, "--", *ETH0))
    return dict(link)


def ipv4(lab: Lab, where: str) -> str:
    (found,) = (one["local"] for one in eth0(lab, where)["addr_info"] if one["family"] == "inet")
    return str(found)


def running(lab: Lab, *names: str) -> None:
    until(lambda: {name for name in names if f" {name} " in _running(lab)} == set(names))


def _running(lab: Lab) -> str:
    return "\n".join(line for line in lab.tortie("get", "pods", "-A").splitlines() if " Running " in line)
