"""A lab as its user has it, for tests: through the command line."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any

import forked
from tortie.lab.places import opened
from tortie.lab.state import LabDirectory
from tortie.model.k8s import Pod
from tortie.model.store import R

PATIENCE = 60.0


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds:.0f} s"
        time.sleep(0.1)


def _whole(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


class Lab:
    """A lab by its name, through `tortie`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = LabDirectory(name)

    @property
    def environment(self) -> dict[str, str]:
        return {"TORTIE_LAB": self.name, "COLUMNS": "160"}

    def start(self, *words: str, **how: Any) -> subprocess.Popen[str]:
        """A program as a shell starts it, which the test may interrupt, and whose end it waits for."""
        command = [sys.executable, "-m", "tortie.cli.main", *words]
        return subprocess.Popen(
            command, env=os.environ | self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            stdin=subprocess.PIPE, **how,
        )  # fmt: skip

    def tortie(self, *words: str, status: int = 0, stdin: str = "") -> str:
        """What `tortie WORDS` prints, its errors last; its exit status is checked."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin.encode())
            given.seek(0)
            ended = forked.run(words, self.environment, (given, out, err), seconds=2 * PATIENCE)
            said = [_whole(out), _whole(err)]
        assert ended == status, f"tortie {' '.join(words)}: {ended}\n{said[0]}\n{said[1]}"
        return "".join(said)

    def up(self, nodes: int = 2) -> str:
        return self.tortie("lab", "up", "--name", self.name, "--nodes", str(nodes))

    def apply(self, *documents: dict[str, Any]) -> None:
        self.tortie("apply", "-f", "-", stdin="---\n".join(json.dumps(one) + "\n" for one in documents))

    def pod(self, name: str) -> Pod:
        """A pod of namespace red as the datastore has it now."""
        return self.of(Pod, name, "red")

    def of(self, kind: type[R], name: str, namespace: str = "") -> R:
        """Any object as the datastore has it now."""

        async def read() -> R:
            async with opened(self.directory) as store:
                return await store.get(kind, name, namespace)

        return asyncio.run(read())

    def phase(self, name: str) -> str:
        return self.pod(name).status.phase

    def matrix(self, *options: str, status: int = 0) -> dict[tuple[str, str], dict[str, Any]]:
        document = json.loads(self.tortie("lab", "matrix", "-o", "json", *options, status=status))
        return {(entry["from"], entry["to"]): entry for entry in document["pairs"]}


def pod(name: str, *, node: str = "", command: list[str] | None = None, **spec: Any) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "main", "image": "nginx"}
    container |= {"command": command} if command else {"ports": [{"containerPort": 80}]}
    spec |= {"containers": [container]} | ({"nodeName": node} if node else {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "red"}, "spec": spec}
