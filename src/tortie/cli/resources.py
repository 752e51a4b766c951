"""`tortie apply`, `create`, `replace`, `delete`, `validate`: calicoctl's verbs over all kinds of resources.

Each object has a line, and all together have calicoctl's sentence; called as calicoctl, only the sentence is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.base.errors import ConfigError, Exists, TortieError
from tortie.cli import completion, dialect
from tortie.cli.datastore import Datastore, Lab, asked, written

if TYPE_CHECKING:
    from tortie.cli.manifests import Manifest
    from tortie.cli.writes import Done, Target, Verb
    from tortie.model.meta import Resource
    from tortie.model.store import Store

Files = Annotated[
    list[str] | None,
    typer.Option("--filename", "-f", metavar="FILE|DIR|-", help="Documents to read; may be given again."),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Read directories in directories too.")]
InNamespace = Annotated[
    str,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAME",
        help="The namespace, where a document names none.",
        autocompletion=completion.namespaces,
    ),
]
SkipEmpty = Annotated[
    bool, typer.Option("--skip-empty", help="Files without documents are nothing to do, and no error.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything against the datastore, write nothing.")]


def apply(
    filename: Files = None,
    recursive: Recursive = False,
    skip_empty: SkipEmpty = False,
    namespace: InNamespace = "",
    dry_run: DryRun = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Create what is not there, change what is. Everything is checked before anything is written."""
    from tortie.cli.writes import Verb

    _write(read(filename, recursive, namespace, skip_empty), Verb.APPLY, dry_run, datastore, lab)


def create(
    filename: Files = None,
    recursive: Recursive = False,
    skip_empty: SkipEmpty = False,
    namespace: InNamespace = "",
    skip_exists: Annotated[bool, typer.Option("--skip-exists", help="Leave alone what is there already.")] = False,
    dry_run: DryRun = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Create what must not be there yet."""
    from tortie.cli.writes import Verb

    _write(read(filename, recursive, namespace, skip_empty), Verb.CREATE, dry_run, datastore, lab, skip_exists)


def replace(
    filename: Files = None,
    recursive: Recursive = False,
    skip_empty: SkipEmpty = False,
    namespace: InNamespace = "",
    dry_run: DryRun = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Replace what must be there."""
    from tortie.cli.writes import Verb

    _write(read(filename, recursive, namespace, skip_empty), Verb.REPLACE, dry_run, datastore, lab)


def validate(
    filename: Files = None, recursive: Recursive = False, skip_empty: SkipEmpty = False, namespace: InNamespace = ""
) -> None:
    """Check documents without a datastore."""
    from tortie.calc.admission import Offline, bootstrap
    from tortie.cli.outcome import single, success
    from tortie.cli.writes import Verb, planned, warn_of

    found = read(filename, recursive, namespace, skip_empty)
    for write in planned(found, Offline(bootstrap("0" * 32)), Verb.APPLY):
        warn_of(write.new, _warn)
    if found:
        typer.echo(success("validate", len(found), single(_kinds(found))))


def delete(
    kind: Annotated[str, typer.Argument(metavar="KIND", show_default=False, autocompletion=completion.kinds)] = "",
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", show_default=False, autocompletion=completion.names)
    ] = None,
    filename: Files = None,
    recursive: Recursive = False,
    skip_empty: SkipEmpty = False,
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
        found = (manifest.resource for manifest in read(filename, recursive, namespace, skip_empty))
        targets.extend(Target(type(one), one.name, one.namespace) for one in found)
        if not targets:
            return
    elif not kind:
        raise ConfigError("nothing to delete: give KIND and NAME, or -f FILE")
    else:
        wanted, only = named(kind, names or ())
        if not only:
            raise ConfigError(f"give the name of the {wanted.KIND.kind} to delete")
        check_namespace_flags(wanted, namespace, False)
        where = (namespace or "default") if wanted.KIND.namespaced else ""
        targets.extend(Target(wanted, name, where) for name in only)
    apart = dialect.is_calicoctl()
    removal = asked(
        datastore, lab, lambda store: removed(store, targets, ignore_not_found, dry_run, _say_of_each(), apart)
    )
    _say_what_went(targets, removal, dry_run)


def _say_what_went(targets: Sequence[Target], removal: Done, dry_run: bool) -> None:
    """Raises an ExceptionGroup of what could not be deleted."""
    from tortie.cli.outcome import not_deleted, single, success
    from tortie.cli.writes import calico_kind

    kind = single(calico_kind(target.kind) for target in targets)
    if removal.count and not dry_run:
        typer.echo(success("delete", removal.count, kind))
    if removal.errors:
        raise ExceptionGroup("not all were deleted", [not_deleted(kind, error) for error in removal.errors])


def read(filename: Sequence[str] | None, recursive: bool, namespace: str, skip_empty: bool) -> list[Manifest]:
    from tortie.cli.manifests import manifests

    return manifests(filename or (), recursive, namespace, skip_empty)


def _write(
    found: list[Manifest], verb: Verb, dry_run: bool, datastore: str, lab: str, skip_exists: bool = False
) -> None:
    """Raises one error for all that went wrong; an ExceptionGroup when documents are wrong, and nothing is written."""
    from tortie.cli.outcome import failure, partial, single, success
    from tortie.cli.writes import Done, Verb, carry_out, say_only, sifted, snapshot, without_stored

    if not found:
        return
    kind = single(_kinds(found))

    async def change(store: Store) -> Done:
        view = await snapshot(store, {type(manifest.resource) for manifest in found})
        wanted = without_stored(found, view) if skip_exists else found
        apart = dialect.is_calicoctl()
        writes, wrong = sifted(wanted, view, verb, stops=apart and verb is Verb.REPLACE)
        if wrong and not apart:
            _refuse(wrong, failure(str(verb), len(found), 0, kind, wrong))
        if dry_run:
            say_only(writes, verb, typer.echo, _warn)
            return Done(len(writes), wrong)
        done = await carry_out(store, writes, view, verb, _say_of_each(), _warn)
        failed = done.errors
        if skip_exists:  # what somebody else made meanwhile is there, too
            failed = [error for error in failed if not isinstance(error, Exists)]
        skipped = len(found) - len(wanted) + len(done.errors) - len(failed)
        return Done(skipped + done.count, [*wrong, *failed])

    done = (asked if dry_run else written)(datastore, lab, change)
    if done.errors:
        if done.count:
            typer.echo(partial(str(verb), done.count, len(found), kind))
        raise failure(str(verb), len(found), done.count, kind, done.errors)
    if not dry_run:
        typer.echo(success(str(verb), done.count, kind))


def _refuse(wrong: list[TortieError], as_one: TortieError) -> None:
    """Raises: a line for each when documents are wrong, one for all when what is stored stands against them."""
    if any(isinstance(error, ConfigError) for error in wrong):
        raise ExceptionGroup("nothing is written", wrong)
    raise as_one


def _kinds(found: Sequence[Manifest]) -> set[str]:
    from tortie.cli.writes import calico_kind

    return {calico_kind(type(manifest.resource)) for manifest in found}


def _say_of_each() -> Callable[[str], None]:
    return (lambda line: None) if dialect.is_calicoctl() else typer.echo


def _warn(line: str) -> None:
    typer.echo(line, err=True)


def named(kind: str, names: Sequence[str]) -> tuple[type[Resource], list[str]]:
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


def check_namespace_flags(kind: type[Resource], namespace: str, every: bool) -> None:
    """Raises ConfigError when they contradict each other, or the kind has no namespaces."""
    if namespace and every:
        raise ConfigError("cannot use both --namespace and --all-namespaces flags at the same time")
    if (namespace or every) and not kind.KIND.namespaced:
        raise ConfigError(f"{kind.KIND.kind} is not namespaced")
