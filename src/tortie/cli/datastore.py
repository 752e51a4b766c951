"""Which datastore a command means, and how it is asked: the one place where the command line runs asyncio.

First that applies:

    --datastore, --config or --lab        one of them
    $TORTIE_DATASTORE, $TORTIE_LAB
    Calico's variables                    DATASTORE_TYPE, ETCD_ENDPOINTS, ETCD_DISCOVERY_SRV, K8S_API_ENDPOINT; or with
                                          CALICO_ before them; CALICO_KUBECONFIG
    /etc/calico/calicoctl.cfg             if it is there
    --context                             a cluster of the kubeconfig
    labs that are up                      `default`, else the only one
    the file of this machine              if it is there
    $KUBECONFIG, or what Kubernetes tells a container
    the file of this machine              which is made

$KUBECONFIG is so late because many have it set for other programs: it must not turn a command that was meant for a lab,
or for this machine, to a cluster at work.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tortie.base.errors import ConfigError, NotFound, TortieError, Unavailable, suggest

if TYPE_CHECKING:
    from tortie.model.store import Store
    from tortie.store.place import Place

T = TypeVar("T")

LABS = Path("/run/tortie/lab")
MACHINE = Path("/var/lib/tortie/store.db")
CALICOCTL = Path("/etc/calico/calicoctl.cfg")
"""Where calicoctl looks for its configuration."""

PATIENCE = 5.0
"""Seconds that a command goes on to a server that does not answer: somebody is waiting."""

allow_version_mismatch = False
"""`tortie --allow-version-mismatch`: whatever version of the data model a cluster says it has, it is worked on."""
config_file = ""
"""`--config` of the command that runs."""
context = ""
"""`--context` of the command that runs."""

Datastore = Annotated[
    str,
    typer.Option(
        "--datastore",
        metavar="WHERE",
        help="A file, etcd:URL, kubernetes:KUBECONFIG or config:FILE; also $TORTIE_DATASTORE.",
        show_default=False,
    ),
]
Lab = Annotated[
    str, typer.Option("--lab", metavar="NAME", help="The datastore of a lab; also $TORTIE_LAB.", show_default=False)
]


def begin(version_mismatch: bool = False, of_context: str = "") -> None:
    """A command line begins: nothing of the one before counts."""
    global allow_version_mismatch, config_file, context
    allow_version_mismatch, config_file, context = version_mismatch, "", of_context


def _take_config(path: str) -> None:
    global config_file
    config_file = path


def _take_any_version(wanted: bool) -> None:
    global allow_version_mismatch
    allow_version_mismatch = wanted or allow_version_mismatch


def _take_context(name: str) -> None:
    global context
    context = name or context


def _more(
    config: Annotated[
        str,
        typer.Option(
            "-c",
            "--config",
            metavar="FILE",
            help="The datastore that a CalicoAPIConfig names.",
            show_default=False,
            callback=_take_config,
            expose_value=False,
        ),
    ] = "",
    context: Annotated[
        str,
        typer.Option(
            "--context",
            metavar="NAME",
            help="The cluster of this context of the kubeconfig.",
            show_default=False,
            callback=_take_context,
            expose_value=False,
        ),
    ] = "",
    allow_version_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-version-mismatch",
            help="Work on a cluster of another version than this command's.",
            callback=_take_any_version,
            expose_value=False,
        ),
    ] = False,
) -> None:
    """Options of every command that asks a datastore."""


def with_config(command: Any) -> Any:
    """The command line, in which every command that takes --datastore takes calicoctl's --config, --context and
    --allow-version-mismatch, too.

    They are given to all of them here, so that no command's signature need name them.
    """
    alone = typer.Typer(add_completion=False)
    alone.command()(_more)
    names = ("config", "context", "allow_version_mismatch")
    _extend(command, [one for one in typer.main.get_command(alone).params if one.name in names])
    return command


def _extend(command: Any, options: list[Any]) -> None:
    names = {parameter.name for parameter in command.params}
    if {"datastore", "lab"} <= names and not {"config", "context"} & names:
        place = max(i for i, parameter in enumerate(command.params) if parameter.name == "lab")
        command.params[place:place] = options
    for inner in getattr(command, "commands", {}).values():
        _extend(inner, options)


def locate(
    datastore: str = "",
    lab: str = "",
    environment: Mapping[str, str] = os.environ,
    labs: Path = LABS,
    machine: Path = MACHINE,
    calicoctl: Path = CALICOCTL,
) -> str:
    """The datastore that is meant, as `open_store` takes it together with `environment_of`. Raises ConfigError.

    In the order that the module's docstring has.
    """
    found = _located(datastore, lab, environment, labs, machine, calicoctl)
    if context:
        from tortie.store.place import is_file

        if is_file(found):
            raise ConfigError(f"is of a kubeconfig, and the datastore is {found}", "--context")
    return found


def environment_of(environment: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """The environment with what the command line adds to it, for `open_store`."""
    return {**environment, "CALICO_K8S_CURRENT_CONTEXT": context} if context else environment


def _located(
    datastore: str, lab: str, environment: Mapping[str, str], labs: Path, machine: Path, calicoctl: Path
) -> str:
    given = [name for name, value in (("--datastore", datastore), ("--config", config_file), ("--lab", lab)) if value]
    if len(given) > 1:
        each = "both" if len(given) == 2 else "all"
        raise ConfigError(f"{' and '.join(given)} {each} name a datastore: give one of them")
    if config_file:
        return f"config:{config_file}"
    if not (datastore or lab):
        datastore = environment.get("TORTIE_DATASTORE", "")
        lab = "" if datastore else environment.get("TORTIE_LAB", "")
    if datastore:
        return datastore
    if lab:
        return _lab(lab, labs)
    from tortie.store.place import named_by, of_environment

    if named_by(environment):
        return of_environment(environment)
    if os.path.exists(calicoctl):  # unlike Path's, False where we may not look
        return f"config:{calicoctl}"
    if context:
        return "kubernetes:"
    return _on_this_machine(environment, labs, machine)


def _on_this_machine(environment: Mapping[str, str], labs: Path, machine: Path) -> str:
    up = labs_up(labs)
    if "default" in up:
        return str(_store_of(labs / "default"))
    if len(up) > 1:
        raise ConfigError(f"several labs are up, name one with --lab: {', '.join(up)}")
    if up:
        return str(_store_of(labs / up[0]))
    from tortie.store.place import hints_at_cluster

    return "kubernetes:" if hints_at_cluster(environment) and not os.path.exists(machine) else str(machine)


def _lab(name: str, labs: Path) -> str:
    up = labs_up(labs)
    if name not in up:
        hint = suggest(name, up) or f'start it with "tortie lab up --name {name}"'
        raise ConfigError(f'no lab "{name}" is up, {hint}')
    return str(_store_of(labs / name))


def labs_up(labs: Path = LABS) -> list[str]:
    """The names of the labs on this machine, sorted."""
    try:
        return sorted(lab.name for lab in labs.iterdir() if _store_of(lab).exists())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def asked(datastore: str, lab: str, question: Callable[[Store], Awaitable[T]]) -> T:
    """The answer of the datastore that is meant. Raises NotFound when there is none yet, Incompatible."""

    async def compatible(store: Store) -> T:
        await demand_our_version(store)
        return await question(store)

    return asked_anyway(datastore, lab, compatible)


def asked_anyway(datastore: str, lab: str, question: Callable[[Store], Awaitable[T]]) -> T:
    """The same of a cluster of any version."""
    from tortie.store.place import is_file

    where = locate(datastore, lab)
    path = where.removeprefix("sqlite:")
    if is_file(where) and not os.path.exists(path):
        raise NotFound(f'there is no datastore {path}: "tortie apply" makes one, "tortie lab up" a whole cluster')
    return _run(where, question)


def written(datastore: str, lab: str, change: Callable[[Store], Awaitable[T]]) -> T:
    """The same for a command that writes: a datastore that is not there yet is made, with what every cluster has."""

    async def initialised(store: Store) -> T:
        await initialise_if_allowed(store)
        await demand_our_version(store)
        return await change(store)

    return _run(locate(datastore, lab), initialised)


def begun(datastore: str, lab: str, work: Callable[[Store], Awaitable[T]]) -> T:
    """The same for one that begins with this: there is nothing yet, of no version."""
    return _run(locate(datastore, lab), work)


def place_of(where: str) -> Place:
    """What a text of `locate` means. Raises ConfigError, NotFound."""
    from tortie.store.place import place

    return place(where, environment_of())


class Incompatible(TortieError):
    """The cluster is of another version than this command."""


UNAUTHORIZED = "connection is unauthorized"
"""How the error begins of a server that does not let us; what a command is really for may be allowed all the same."""


async def demand_our_version(store: Store) -> None:
    """Raises Incompatible, unless that is allowed, or nobody may read which version the cluster has."""
    from tortie.calc.versions import CALICO_VERSION, mismatch
    from tortie.model.node import ClusterInformation

    if allow_version_mismatch:
        return
    try:
        wrong = mismatch(CALICO_VERSION, await store.get(ClusterInformation, "default"))
    except NotFound:
        return
    except Unavailable as error:
        if not str(error).startswith(UNAUTHORIZED):
            raise
        return
    if wrong:
        raise Incompatible(wrong)


async def initialise(store: Store) -> None:
    """Put the objects into a datastore that every cluster has from the start, as far as they are missing."""
    from tortie.store.first import initialise as make_first

    await make_first(store)


async def initialise_if_allowed(store: Store) -> None:
    """The same, but for who may write objects and not those of a cluster: somebody else has made them, or will."""
    try:
        await initialise(store)
    except Unavailable as error:
        if not str(error).startswith(UNAUTHORIZED):
            raise


def _run(where: str, use: Callable[[Store], Awaitable[T]]) -> T:
    import asyncio

    from tortie.store import open_store

    async def run() -> T:
        store = open_store(where, environment=environment_of(), patience=PATIENCE)
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())


def _store_of(lab: Path) -> Path:
    return lab / "store.db"
