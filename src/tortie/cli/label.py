"""`tortie label`: give an object labels, or take them away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.base.errors import ConfigError, Exists, NotFound
from tortie.cli import completion
from tortie.cli.datastore import Datastore, Lab, asked

if TYPE_CHECKING:
    from tortie.calc.admission import View
    from tortie.model.meta import Resource

Wanted = Mapping[str, str | None]
"""The labels that change: key -> value, or None for one that goes."""


def label(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="nodes, hep, ...; or KIND/NAME.",
            show_default=False,
            autocompletion=completion.kinds,
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME KEY=VALUE|KEY-",
            help="KEY- takes a label away.",
            show_default=False,
            autocompletion=completion.names,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Labels that are there may change.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the labels away; they are given as KEY.")] = False,
    namespace: Annotated[str, typer.Option("--namespace", "-n", metavar="NAME", help="Instead of default.")] = "",
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Set labels of an object, or remove them. If one of them cannot be, none is."""
    from tortie.cli.edits import edited, target
    from tortie.cli.writes import calico_kind

    name, *labels = ("", *(words or ())) if "/" in kind else (words or ("",))
    which, wanted = target(kind, name, namespace), read(labels, remove)

    def edit(old: Resource, view: View) -> Resource:
        return admitted(old, labelled(old, wanted, overwrite), wanted, view)

    old, new = asked(datastore, lab, lambda store: edited(store, which, edit))
    for line in outcome(f"{calico_kind(type(new))} {new.name}", old.labels, wanted):
        typer.echo(line)


def read(words: Iterable[str], remove: bool = False) -> dict[str, str | None]:
    """What the words of a command ask for. Raises ConfigError."""
    wanted: dict[str, str | None] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key if equals else key.removesuffix("-")
        if remove and equals:
            raise ConfigError(f'"{word}" has a value: with --remove give the label\'s name alone')
        if not (key and (equals or remove or word.endswith("-"))):
            raise ConfigError(f'"{word}" is neither KEY=VALUE, which sets a label, nor KEY-, which removes one')
        if key in wanted:
            raise ConfigError(f'the label "{key}" is given twice')
        wanted[key] = value if equals else None
    if not wanted:
        raise ConfigError("no label is given: KEY=VALUE sets one, KEY- removes one")
    return wanted


def labelled(old: Resource, wanted: Wanted, overwrite: bool) -> dict[str, str]:
    """All labels that the object is to have. Raises NotFound and Exists, when one is not as it would have to be."""
    labels = dict(old.labels)
    for key, value in wanted.items():
        there = labels.get(key)
        if value is None:
            if there is None:
                raise NotFound(f'{old.title} has no label "{key}" that could be removed')
            del labels[key]
        elif there is not None and there != value and not overwrite:
            raise Exists(f'{old.title} has the label "{key}" already, it is "{there}": --overwrite changes it')
        else:
            labels[key] = value
    return labels


def admitted(old: Resource, labels: dict[str, str], wanted: Wanted, view: View) -> Resource:
    """The object to store. Raises ConfigError, also for labels that the datastore keeps as they are."""
    from tortie.calc.admission import admit
    from tortie.model.meta import changed

    new = admit(changed(old, labels=labels), old, view)
    for key, value in wanted.items():
        if new.labels.get(key) != value:
            raise ConfigError("is kept by the datastore itself and cannot change", f"metadata.labels[{key}]")
    return new


def outcome(title: str, before: Mapping[str, str], wanted: Wanted) -> Iterator[str]:
    """A line for each label, of what became of it."""
    for key, value in wanted.items():
        if value is None:
            yield f"Successfully removed label {key} from {title}"
        elif before.get(key, value) != value:
            yield f"Successfully updated label {key} on {title}"
        else:
            yield f"Successfully set label {key} on {title}"
