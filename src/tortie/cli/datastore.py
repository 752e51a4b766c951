"""Which datastore a command means, and how it is asked: the one place where the command line runs asyncio.

First that applies: --datastore; --lab; $TORTIE_DATASTORE; $TORTIE_LAB; the lab named `default` if it is up; the only
lab that is up; the datastore of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tortie.base.errors import ConfigError, Exists, NotFound, suggest

if TYPE_CHECKING:
    from tortie.model.store import Store

T = TypeVar("T")

LABS = Path("/run/tortie/lab")
MACHINE = Path("/var/lib/tortie/store.db")

Datastore = Annotated[
    str, typer.Option("--datastore", metavar="FILE", help="The datastore; also $TORTIE_DATASTORE.", show_default=False)
]
Lab = Annotated[
    str, typer.Option("--lab", metavar="NAME", help="The datastore of a lab; also $TORTIE_LAB.", show_default=False)
]


def locate(
    datastore: str = "",
    lab: str = "",
    environment: Mapping[str, str] = os.environ,
    labs: Path = LABS,
    machine: Path = MACHINE,
) -> str:
    """The datastore that is meant, as `open_store` takes it. Raises ConfigError."""
    if datastore and lab:
        raise ConfigError("--datastore and --lab both name a datastore: give one of them")
    if not (datastore or lab):
        datastore = environment.get("TORTIE_DATASTORE", "")
        lab = "" if datastore else environment.get("TORTIE_LAB", "")
    if datastore:
        return datastore
    up = labs_up(labs)
    if lab:
        if lab not in up:
            hint = suggest(lab, up) or f'start it with "tortie lab up --name {lab}"'
            raise ConfigError(f'no lab "{lab}" is up, {hint}')
        return str(_store_of(labs / lab))
    if "default" in up:
        return str(_store_of(labs / "default"))
    if len(up) > 1:
        raise ConfigError(f"several labs are up, name one with --lab: {', '.join(up)}")
    return str(_store_of(labs / up[0])) if up else str(machine)


def labs_up(labs: Path = LABS) -> list[str]:
    """The names of the labs on this machine, sorted."""
    try:
        return sorted(lab.name for lab in labs.iterdir() if _store_of(lab).exists())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def asked(datastore: str, lab: str, question: Callable[[Store], Awaitable[T]]) -> T:
    """The answer of the datastore that is meant. Raises NotFound when there is none yet."""
    where = locate(datastore, lab)
    path = where.removeprefix("sqlite:")
    if ":" not in where.partition("/")[0].removeprefix("sqlite:") and not Path(path).exists():
        raise NotFound(f'there is no datastore {path}: "tortie apply" makes one, "tortie lab up" a whole cluster')
    return _run(where, question)


def written(datastore: str, lab: str, change: Callable[[Store], Awaitable[T]]) -> T:
    """The same for a command that writes: a datastore that is not there yet is made, with what every cluster has."""

    async def initialised(store: Store) -> T:
        await initialise(store)
        return await change(store)

    return _run(locate(datastore, lab), initialised)


async def initialise(store: Store) -> None:
    """Put the objects into a datastore that every cluster has from the start, as far as they are missing."""
    import uuid

    from tortie.calc.admission import bootstrap
    from tortie.model.node import ClusterInformation

    try:
        await store.get(ClusterInformation, "default")
        return  # it is written last
    except NotFound:
        pass
    for one in bootstrap(uuid.uuid4().hex):
        try:
            await store.create(one)
        except Exists:
            pass


def _run(where: str, use: Callable[[Store], Awaitable[T]]) -> T:
    import asyncio

    from tortie.store import open_store

    async def run() -> T:
        store = open_store(where)
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())


def _store_of(lab: Path) -> Path:
    return lab / "store.db"
