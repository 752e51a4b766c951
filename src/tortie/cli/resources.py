"""`tortie apply`, `create`, `replace`, `get`, `delete`, `validate`: calicoctl's verbs over all kinds of resources."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.base.errors import ConfigError, NotFound, TortieError
from tortie.cli.datastore import Datastore, Lab, asked, written

if TYPE_CHECKING:
    from tortie.cli.manifests import Manifest
    from tortie.cli.writes import Target, Verb
    from tortie.model.meta import Resource
    from tortie.model.store import Store

Files = Annotated[
    list[str] | None,
    typer.Option("--filename", "-f", metavar="FILE|DIR|-", help="Documents to read; may be given again."),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Read directories in directories too.")]
InNamespace = Annotated[
    str, typer.Option("--namespace", "-n", metavar="NAME", help="The namespace, where a document names none.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything against the datastore, write nothing.")]


def apply(
    filename: Files = None,
    recursive: Recursive = False,
    namespace: InNamespace = "",
    dry_run: DryRun = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Create what is not there, change what is. Everything is checked before anything is written."""
    from tortie.cli.writes import Verb

    _write(_read(filename, recursive, namespace), Verb.APPLY, dry_run, datastore, lab)


def create(
    filename: Files = None,
    recursive: Recursive = False,
    namespace: InNamespace = "",
    skip_exists: Annotated[bool, typer.Option("--skip-exists", help="Leave alone what is there already.")] = False,
    dry_run: DryRun = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Create what must not be there yet."""
    from tortie.cli.writes import Verb

    _write(_read(filename, recursive, namespace), Verb.CREATE, dry_run, datastore, lab, skip_exists)


def replace(
    filename: Files = None,
    recursive: Recursive = False,
    namespace: InNamespace = "",
    dry_run: DryRun = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Replace what must be there."""
    from tortie.cli.writes import Verb

    _write(_read(filename, recursive, namespace), Verb.REPLACE, dry_run, datastore, lab)


def validate(filename: Files = None, recursive: Recursive = False, namespace: InNamespace = "") -> None:
    """Check documents without a datastore."""
    from tortie.calc.admission import Offline, bootstrap
    from tortie.cli.writes import Verb, planned

    found = _read(filename, recursive, namespace)
    planned(found, Offline(bootstrap("0" * 32)), Verb.APPLY)
    kinds = {type(manifest.resource).KIND.kind for manifest in found}
    what = f"'{kinds.pop()}' resource(s)" if len(kinds) == 1 else "resource(s)"
    typer.echo(f"Successfully validated {len(found)} {what}")


def get(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="ippool, gnp, pods, ...; or KIND/NAME.", show_default=False)
    ],
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Only these.", show_default=False)] = None,
    namespace: Annotated[str, typer.Option("--namespace", "-n", metavar="NAME", help="Instead of default.")] = "",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FORMAT", help="wide, yaml, json, name, custom-columns=A,B.")
    ] = "",
    export: Annotated[bool, typer.Option("--export", help="Without what is of this datastore only.")] = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Print objects: a table, or documents that can be applied again."""
    from tortie.cli.output import check_format, print_documents, print_names, print_table

    check_format(output)
    wanted, only = _named(kind, names or ())
    _check_namespace_flags(wanted, namespace, all_namespaces)
    where = (namespace or "default") if wanted.KIND.namespaced and not all_namespaces else None

    async def question(store: Store) -> tuple[list[Resource], list[TortieError], int | str]:
        found, missing = await _found(store, wanted, only, where)
        return found, missing, await _cluster_as(store)

    found, missing, cluster_as = asked(datastore, lab, question)
    if output in ("yaml", "json") and (found or not only):
        print_documents(wanted, found, len(only), output, export)
    elif output == "name":
        print_names(found)
    elif found:
        print_table(wanted, found, output, wanted.KIND.namespaced and bool(namespace or all_namespaces), cluster_as)
    elif not only:
        typer.echo("No resources found" + (f" in {where} namespace" if where else ""), err=True)
    if missing:
        sys.stdout.flush()
        raise ExceptionGroup("some were not there", missing)


def delete(
    kind: Annotated[str, typer.Argument(metavar="KIND", show_default=False)] = "",
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", show_default=False)] = None,
    filename: Files = None,
    recursive: Recursive = False,
    namespace: InNamespace = "",
    ignore_not_found: Annotated[
        bool,
        typer.Option("--ignore-not-found", "--skip-not-exists", "-s", help="What is not there is deleted already."),
    ] = False,
    dry_run: DryRun = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Delete objects by name, or what files describe. A namespace goes with all that is in it."""
    from tortie.cli.writes import Target, removed

    targets: list[Target] = []
    if filename:
        if kind:
            raise ConfigError("give either KIND and NAME, or -f")
        found = (manifest.resource for manifest in _read(filename, recursive, namespace))
        targets.extend(Target(type(one), one.name, one.namespace) for one in found)
    elif not kind:
        raise ConfigError("nothing to delete: give KIND and NAME, or -f FILE")
    else:
        wanted, only = _named(kind, names or ())
        if not only:
            raise ConfigError(f"give the name of the {wanted.KIND.kind} to delete")
        _check_namespace_flags(wanted, namespace, False)
        where = (namespace or "default") if wanted.KIND.namespaced else ""
        targets.extend(Target(wanted, name, where) for name in only)
    asked(datastore, lab, lambda store: removed(store, targets, ignore_not_found, dry_run, typer.echo))


def _read(filename: Sequence[str] | None, recursive: bool, namespace: str) -> list[Manifest]:
    from tortie.cli.manifests import manifests

    return manifests(filename or (), recursive, namespace)


def _write(
    found: list[Manifest], verb: Verb, dry_run: bool, datastore: str, lab: str, skip_exists: bool = False
) -> None:
    from tortie.cli.writes import carry_out, planned, say_only, snapshot, without_stored

    def warn(line: str) -> None:
        typer.echo(line, err=True)

    async def change(store: Store) -> None:
        view = await snapshot(store, {type(manifest.resource) for manifest in found})
        writes = planned(without_stored(found, view) if skip_exists else found, view, verb)
        if dry_run:
            say_only(writes, verb, typer.echo, warn)
        else:
            await carry_out(store, writes, view, verb, typer.echo, warn)

    (asked if dry_run else written)(datastore, lab, change)


def _named(kind: str, names: Sequence[str]) -> tuple[type[Resource], list[str]]:
    """The kind and the names of `KIND NAME...` or `KIND/NAME KIND/NAME...`, all of one kind. Raises ConfigError."""
    from tortie.model.kinds import kind_of_word

    word, slash, name = kind.partition("/")
    wanted = kind_of_word(word)
    if not slash:
        return wanted, list(dict.fromkeys(names))
    for other in names:
        if "/" not in other or kind_of_word(other.partition("/")[0]) is not wanted:
            raise ConfigError(f'"{other}" must be {word}/NAME: one kind at a time')
    return wanted, list(dict.fromkeys([name, *(other.partition("/")[2] for other in names)]))


def _check_namespace_flags(kind: type[Resource], namespace: str, every: bool) -> None:
    if namespace and every:
        raise ConfigError("cannot use both --namespace and --all-namespaces flags at the same time")
    if (namespace or every) and not kind.KIND.namespaced:
        raise ConfigError(f"{kind.KIND.kind} is not namespaced")


async def _found(
    store: Store, kind: type[Resource], names: Sequence[str], namespace: str | None
) -> tuple[list[Resource], list[TortieError]]:
    """The objects, and what is to be said about those that are not there."""
    if not names:
        return sorted((await store.list(kind, namespace)).items, key=_tier_order), []
    if namespace is None and kind.KIND.namespaced:
        every = [one for one in (await store.list(kind)).items if one.name in names]
        missing = [name for name in names if name not in {one.name for one in every}]
        return every, [NotFound(f"resource does not exist: {kind.KIND.kind}({name})") for name in missing]
    found: list[Resource] = []
    lost: list[TortieError] = []
    for name in names:
        try:
            found.append(await store.get(kind, name, namespace or ""))
        except NotFound as error:
            lost.append(error)
    return found, lost


def _tier_order(resource: Resource) -> float:
    """Tiers are listed in the order in which they apply; all else stays in the order of the datastore."""
    from tortie.model.policy import Tier

    if not isinstance(resource, Tier):
        return 0
    return float("inf") if resource.spec.order is None else resource.spec.order


async def _cluster_as(store: Store) -> int | str:
    """The AS number of nodes that have none of their own."""
    from tortie.model.bgp import DEFAULT_AS, BGPConfiguration

    try:
        config = await store.get(BGPConfiguration, "default")
    except NotFound:
        return DEFAULT_AS
    return DEFAULT_AS if config.spec.as_number is None else config.spec.as_number
