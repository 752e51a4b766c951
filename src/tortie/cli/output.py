"""How objects are printed: tables, documents, names, through templates.

Found ─Form─► wide, custom-columns ─columns─► aligned
           ─► yaml, json           ─dump─► one object, an array, or one List object
           ─► go-template          ─templates─► aligned
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from msgspec import Struct

from tortie.base.errors import ConfigError
from tortie.cli import dialect
from tortie.cli.columns import Columns, cells, chosen, columns
from tortie.cli.writes import calico_kind, short_name
from tortie.model.document import dump
from tortie.model.meta import Metadata, Resource
from tortie.model.misfit import fields
from tortie.model.text import dump as yaml_dump

CUSTOM, TEMPLATE, TEMPLATE_FILE = "custom-columns", "go-template", "go-template-file"
WITH_TEXT = (CUSTOM, TEMPLATE, TEMPLATE_FILE)
"""Formats that say more behind an equals sign."""
PLAIN = ("ps", "wide", "yaml", "json", "name")
FORMATS = "ps, wide, yaml, json, name, custom-columns=HEADING,..., go-template=TEMPLATE or go-template-file=FILE"
MIN_WIDTH, GAP = 5, 3
"""Of a column, and between two, in characters: as calicoctl pads its tables."""


@dataclass(frozen=True, slots=True)
class Form:
    """An output format and what stands behind its equals sign."""

    name: str
    text: str = ""

    @classmethod
    def read(cls, output: str) -> Form:
        """Raises ConfigError for an output format that there is not."""
        name, equals, text = output.partition("=")
        if name in WITH_TEXT and equals and text:
            if name == TEMPLATE_FILE:
                try:
                    return cls(TEMPLATE, Path(text).read_text())
                except (OSError, UnicodeDecodeError) as error:
                    why = error.strerror if isinstance(error, OSError) else "is not text"
                    raise ConfigError(f"cannot be read: {why}", text) from None
            return cls(name, text)
        if name in WITH_TEXT:
            raise ConfigError(f"needs something behind it: {name}=...", "-o", name)
        if output not in ("", *PLAIN):
            raise ConfigError(f'output format "{output}" is not one of {FORMATS}', "-o")
        return cls(output or "ps")

    @property
    def is_table(self) -> bool:
        return self.name in ("ps", "wide", CUSTOM)


@dataclass(frozen=True, slots=True)
class Found:
    """What was found: of `named` that were asked for by name, or, if that is 0, all of a kind, at a revision. `beside`
    are columns of a wide table that no object has of itself."""

    kind: type[Resource]
    resources: Sequence[Resource]
    named: int
    revision: str = ""
    beside: Columns = field(default_factory=dict)

    @property
    def api_version(self) -> str:
        return self.kind.KIND.api_version

    @property
    def list_kind(self) -> str:
        return f"{calico_kind(self.kind)}List"


def show(found: Found, form: Form, *, with_namespace: bool, export: bool, cluster_as: int | str) -> None:
    """Print it. Raises ConfigError, for a heading or a field that there is not."""
    if found.named and not found.resources:
        return
    if form.name in ("yaml", "json"):
        _print_documents(found, form.name, export)
    elif form.name == "name":
        for one in found.resources:
            print(short_name(one))
    elif form.name == TEMPLATE:
        print(templated(form.text, found, cluster_as), end="")
    elif found.named or found.resources:
        for kind, several in groupby(found.resources, type):
            _print_table(kind, list(several), form, with_namespace, cluster_as, found.beside)
    elif dialect.is_calicoctl():
        _print_table(found.kind, (), form, with_namespace, cluster_as, {})


def _print_documents(found: Found, output: str, export: bool) -> None:
    """The bare object if one is asked for by name, an array if several are, else one List object."""
    documents = [{**dump(one), "kind": calico_kind(type(one))} for one in found.resources]
    if export and found.named:
        documents = [_exported(one) for one in documents]
    printed: Any = documents
    if found.named == 1:
        printed = documents[0]
    elif not found.named:
        metadata = {"resourceVersion": found.revision} if found.revision else {}
        kind_list = {"apiVersion": found.api_version, "kind": found.list_kind, "metadata": metadata}
        printed = {**kind_list, "items": documents}
    if output == "json":
        print(json.dumps(printed, indent=2, ensure_ascii=False))
    else:
        print(yaml_dump(printed), end="")


def _exported(document: dict[str, Any]) -> dict[str, Any]:
    """Without what is of one datastore only."""
    own = ("namespace", "uid", "resourceVersion", "creationTimestamp")
    metadata = {key: value for key, value in document["metadata"].items() if key not in own}
    return {**document, "metadata": metadata}


# --- tables -------------------------------------------------------------------------------------------------------


def _print_table(
    kind: type[Resource],
    resources: Sequence[Resource],
    form: Form,
    with_namespace: bool,
    cluster_as: int | str,
    beside: Columns,
) -> None:
    """One row for each object."""
    if form.name == CUSTOM:
        table = chosen(kind, form.text.split(","), cluster_as)
    else:
        table = {**columns(kind, form.name == "wide", cluster_as), **beside}
    if with_namespace and kind.KIND.namespaced:
        table = {"NAMESPACE": lambda resource: resource.namespace, **table}
    rows = [cells(one, table) for one in resources]
    if dialect.is_calicoctl():
        print(calicoctl_aligned([list(table), *rows]), end="")
    elif sys.stdout.isatty():
        _print_rich(table, rows)
    else:
        print(aligned([list(table), *rows]), end="")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of columns.

    >>> aligned([["NAME", "CIDR"], ["pool", "10.0.0.0/16"]])
    'NAME    CIDR\\npool    10.0.0.0/16\\n'
    """
    widths = [max(MIN_WIDTH, *(len(row[i]) for row in rows)) + GAP for i in range(len(rows[0]))]
    return "".join(line.rstrip() + "\n" for line in _lines(rows, widths))


def calicoctl_aligned(rows: Sequence[Sequence[str]]) -> str:
    """The same to the last space as calicoctl prints it: a short column is narrower, and an empty line ends the table.

    >>> calicoctl_aligned([["NAME", "CIDR"], ["pool", "10.0.0.0/16"]])
    'NAME   CIDR          \npool   10.0.0.0/16   \n\n'
    """
    widths = [max(MIN_WIDTH, *(len(row[i]) + GAP for row in rows)) for i in range(len(rows[0]))]
    return "".join(line + "\n" for line in (*_lines(rows, widths), ""))


def _lines(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    return ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _print_rich(table: Columns, rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for heading in table:
        drawn.add_column(heading, overflow="fold", no_wrap=heading in ("NAME", "NAMESPACE"))
    for row in rows:
        drawn.add_row(*row)
    Console(markup=False, highlight=False).print(drawn)


# --- templates ----------------------------------------------------------------------------------------------------


def templated(template: str, found: Found, cluster_as: int | str) -> str:
    """What a template says, its tabs set in columns: of a list with one List object, or of the objects asked for by
    name, as calicoctl gives them to it. Raises ConfigError."""
    from tortie.cli.template_parse import read
    from tortie.cli.templates import aligned as tabbed
    from tortie.cli.templates import carry_out

    def config(name: str) -> int | str:
        if name.lower() != "asnumber":
            raise ConfigError(f'unhandled config type "{name}": asnumber is all there is')
        return cluster_as

    data: list[Any] = list(found.resources) if found.named else [found]
    return tabbed(carry_out(read(template), data, field_of, {"config": config}))


def field_of(value: Any, name: str) -> Any:
    """A field of an object by its name in Calico's Go types, or in documents. Raises ConfigError.

    Go's names are those of documents but for capitals (`.Spec.NATOutgoing`), and metadata is `.ObjectMeta`, whose
    fields are the object's own, too: `.Name`.
    """
    wanted = name.lower()
    if isinstance(value, Found):
        own = {"items": value.resources, "kind": value.list_kind, "apiversion": value.api_version}
        own["resourceversion"] = value.revision
        if wanted in ("listmeta", "metadata", "typemeta"):
            return value
        if wanted in own:
            return own[wanted]
        raise ConfigError(f"can't evaluate field {name} in {value.list_kind}")
    if not isinstance(value, Struct):
        raise ConfigError(f"can't evaluate field {name} in {type(value).__name__}")
    known = _names(type(value))
    if wanted in known:
        return getattr(value, known[wanted])
    if isinstance(value, Resource):
        if wanted == "objectmeta":
            return value.metadata
        if wanted == "typemeta":
            return value
        if wanted in ("kind", "apiversion"):
            return calico_kind(type(value)) if wanted == "kind" else value.KIND.api_version
        of_metadata = _names(Metadata)
        if wanted in of_metadata:
            return getattr(value.metadata, of_metadata[wanted])
    raise ConfigError(f"can't evaluate field {name} in {type(value).__name__}")


def _names(struct: type[Struct]) -> dict[str, str]:
    """Attributes by their names in documents, in small letters."""
    return {written.lower(): attribute for written, attribute in fields(struct)}
