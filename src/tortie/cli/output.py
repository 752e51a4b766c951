"""How objects are printed: tables, documents, names."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from tortie.base.errors import ConfigError
from tortie.cli.columns import Columns, cells, chosen, columns
from tortie.cli.writes import short_name
from tortie.model.document import dump
from tortie.model.meta import Resource
from tortie.model.text import dump as yaml_dump

CUSTOM = "custom-columns="
FORMATS = "wide, yaml, json, name or custom-columns=HEADING,..."
MIN_WIDTH, GAP = 5, 3
"""Of a column, and between two, in characters: as calicoctl pads its tables."""


def check_format(output: str) -> None:
    """Raises ConfigError for an output format that there is not."""
    if output not in ("", "ps", "wide", "yaml", "json", "name") and not output.startswith(CUSTOM):
        raise ConfigError(f'output format "{output}" is not one of {FORMATS}', "-o")


def print_documents(kind: type[Resource], resources: Sequence[Resource], names: int, output: str, export: bool) -> None:
    """The bare object if one is asked for by name, an array if several are, else one List object."""
    documents = [_exported(dump(one)) if export and names else dump(one) for one in resources]
    printed: Any = documents
    if names == 1:
        printed = documents[0]
    elif not names:
        kind_list = {"apiVersion": kind.KIND.api_version, "kind": f"{kind.KIND.kind}List", "metadata": {}}
        printed = {**kind_list, "items": documents}
    if output == "json":
        print(json.dumps(printed, indent=2, ensure_ascii=False))
    else:
        print(yaml_dump(printed), end="")


def print_names(resources: Sequence[Resource]) -> None:
    for one in resources:
        print(short_name(one))


def print_table(
    kind: type[Resource], resources: Sequence[Resource], output: str, with_namespace: bool, cluster_as: int | str
) -> None:
    """One row for each object."""
    if output.startswith(CUSTOM):
        table = chosen(kind, output.removeprefix(CUSTOM).split(","), cluster_as)
    else:
        table = columns(kind, output == "wide", cluster_as)
    if with_namespace:
        table = {"NAMESPACE": lambda resource: resource.namespace, **table}
    rows = [cells(one, table) for one in resources]
    if sys.stdout.isatty():
        _print_rich(table, rows)
    else:
        print(aligned([list(table), *rows]), end="")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of columns.

    >>> aligned([["NAME", "CIDR"], ["pool", "10.0.0.0/16"]])
    'NAME    CIDR\\npool    10.0.0.0/16\\n'
    """
    widths = [max(MIN_WIDTH, *(len(row[i]) for row in rows)) + GAP for i in range(len(rows[0]))]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)


def _print_rich(table: Columns, rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for heading in table:
        drawn.add_column(heading, overflow="fold", no_wrap=heading in ("NAME", "NAMESPACE"))
    for row in rows:
        drawn.add_row(*row)
    Console(markup=False, highlight=False).print(drawn)


def _exported(document: dict[str, Any]) -> dict[str, Any]:
    """Without what is of one datastore only."""
    own = ("namespace", "uid", "resourceVersion", "creationTimestamp")
    metadata = {key: value for key, value in document["metadata"].items() if key not in own}
    return {**document, "metadata": metadata}
