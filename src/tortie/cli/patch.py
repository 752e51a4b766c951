"""`tortie patch`: change some fields of an object that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tortie.base.errors import ConfigError, Conflict
from tortie.cli import completion
from tortie.cli.choice import check_choice
from tortie.cli.datastore import Datastore, Lab, asked

if TYPE_CHECKING:
    from tortie.calc.admission import View
    from tortie.model.meta import Resource

TYPES = ("strategic", "json", "merge")
"""What calicoctl takes for the type of a patch; like there, every patch is a strategic merge patch."""


def patch(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="ippool, gnp, ...; or KIND/NAME.",
            show_default=False,
            autocompletion=completion.kinds,
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, autocompletion=completion.names)] = "",
    patch: Annotated[
        str,
        typer.Option("--patch", "-p", metavar="PATCH", help="The fields that change, as JSON or YAML; null removes."),
    ] = "",
    type_: Annotated[
        str, typer.Option("--type", "-t", metavar="TYPE", help="strategic, json or merge: all are taken as strategic.")
    ] = "strategic",
    namespace: Annotated[str, typer.Option("--namespace", "-n", metavar="NAME", help="Instead of default.")] = "",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Change some fields of an object. Mappings are merged, lists replaced."""
    from tortie.cli.edits import edited, target
    from tortie.cli.writes import calico_kind, warn_of

    check_choice(type_, TYPES, "--type")
    which, changes = target(kind, name, namespace), read(patch)
    _, new = asked(datastore, lab, lambda store: edited(store, which, lambda old, view: patched(old, changes, view)))
    typer.echo(f"Successfully patched 1 '{calico_kind(type(new))}' resource")
    warn_of(new, lambda line: typer.echo(line, err=True))


def read(text: str) -> dict[str, Any]:
    """The patch that a text is. Raises ConfigError."""
    from tortie.model.misfit import shown
    from tortie.model.text import load_all

    try:
        documents = [one for one in load_all(text) if one is not None]
    except ConfigError as error:
        raise error.within("--patch") from None
    if not documents:
        raise ConfigError('is required: the fields that change, as {"spec": {"natOutgoing": false}}', "--patch")
    if len(documents) > 1:
        raise ConfigError(f"has {len(documents)} documents, must be one", "--patch")
    (found,) = documents
    if isinstance(found, list):
        raise ConfigError("is a list, as patches of RFC 6902 are: write the fields that change in a mapping", "--patch")
    if not isinstance(found, dict):
        raise ConfigError(f"is {shown(found)}, must be a mapping", "--patch")
    return found


def patched(old: Resource, changes: dict[str, Any], view: View) -> Resource:
    """The object to store. Raises ConfigError, field path first, and Conflict if the patch is for another revision."""
    from tortie.calc.admission import admit
    from tortie.model.document import convert, dump
    from tortie.model.strategic import merged, merged_lists
    from tortie.store.rules import named

    stored = dump(old)
    body = merged(stored, changes, merged_lists(type(old)))
    for key in ("apiVersion", "kind"):
        _check_same(key, stored[key], body.pop(key, ""))
    new = convert(type(old), body)
    _check_same("metadata.name", old.name, new.name)
    _check_same("metadata.namespace", old.namespace, new.namespace)
    asked_for, latest = new.metadata.resource_version, old.metadata.resource_version
    if asked_for not in ("", latest):
        stale = f"resource version '{asked_for}' is out of date (latest: {latest})"
        raise Conflict(f"update conflict: {named(old.KIND, old.name, old.namespace)}: {stale}")
    return admit(new, old, view)


def _check_same(path: str, before: str, after: str) -> None:
    if before != after:
        raise ConfigError(f'cannot change from "{before}" to "{after}"', path)
