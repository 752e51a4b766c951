"""Commands on one SQLite datastore, under either of the program's names: what they print and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tortie.cli.main import main
from tortie.model.store import Store
from tortie.store import open_store

T = TypeVar("T")


class Calicoctl:
    """Runs commands; one that ends otherwise than it should is a failure. `err` is what the last one said there."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory, self._capsys = directory, capsys
        self.store = directory / "store.db"
        self.err = ""

    def __call__(self, *arguments: str, status: int = 0, program: str = "calicoctl", where: bool = True) -> str:
        place = ("--datastore", str(self.store)) if where else ()
        self._capsys.readouterr()
        got = main([*arguments, *place], program)
        out, self.err = self._capsys.readouterr()
        assert got == status, (out, self.err)
        return out

    def tortie(self, *arguments: str, status: int = 0, where: bool = True) -> str:
        return self(*arguments, status=status, program="tortie", where=where)

    def file(self, *texts: str, name: str = "all.yaml") -> str:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("---\n".join(texts))
        return str(path)

    def apply(self, *texts: str, status: int = 0) -> str:
        return self("apply", "-f", self.file(*texts), status=status)

    def ask(self, question: Callable[[Store], Awaitable[T]]) -> T:
        async def run() -> T:
            store = open_store(self.store)
            try:
                return await question(store)
            finally:
                await store.close()

        return asyncio.run(run())


def document(kind: str, name: str, spec: str, namespace: str = "", api: str = "projectcalico.org/v3") -> str:
    """A manifest of one object; `spec` in YAML's flow form, without its braces."""
    where = f", namespace: {namespace}" if namespace else ""
    return f"apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}{where}}}\nspec: {{{spec}}}\n"
