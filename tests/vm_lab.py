"""A lab in a guest, through the command line; each command takes seconds there."""

from __future__ import annotations

import json
import subprocess
from tempfile import TemporaryFile
from typing import IO, Any

import forked
from tortie.lab import network
from tortie.lab.node_cni import VAR_LIB_CNI
from tortie.lab.state import LabDirectory

SECONDS = 150


class GuestLab:
    """Up when made, on a network that the program has; gone after the `with`, with all that it was."""

    def __init__(self, name: str, cni: str) -> None:
        self.directory = LabDirectory(name)
        self._kept = VAR_LIB_CNI.exists()
        self.said = self.tortie("up", "--name", name, "--cni", cni)

    def __enter__(self) -> GuestLab:
        return self

    def __exit__(self, *_: object) -> None:
        network.destroy(self.directory)
        assert network.leftovers(self.directory) == []
        assert VAR_LIB_CNI.exists() is self._kept

    def tortie(self, *words: str) -> str:
        """What `tortie lab WORDS` prints; a failure shows all of it."""
        env = {"TORTIE_LAB": self.directory.name, "COLUMNS": "160"}
        with TemporaryFile() as out, TemporaryFile() as err:
            status = forked.run(["lab", *words], env, (None, out, err), seconds=SECONDS)
            printed, complained = (_all(file) for file in (out, err))
        assert status == 0, printed + complained
        return printed

    def ip(self, where: str, *words: str) -> list[dict[str, Any]]:
        """In a namespace of the lab by the end of its name."""
        namespace = f"tortie-{self.directory.name}-{where}"
        done = subprocess.run(["ip", "-n", namespace, "-j", "-d", *words], capture_output=True, check=True, timeout=30)
        return [one for one in json.loads(done.stdout or "[]") if one]


def _all(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def mode(link: dict[str, Any]) -> tuple[str, str]:
    """Kind and mode of a link as `ip` has it."""
    return link["linkinfo"]["info_kind"], link["linkinfo"]["info_data"]["mode"]
