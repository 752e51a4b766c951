"""`tortie get`: objects as a table, as documents that can be applied again, or through a template."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tortie.base.errors import ConfigError, NotFound, TortieError
from tortie.cli import completion
from tortie.cli.datastore import Datastore, Lab, asked
from tortie.cli.resources import Files, Recursive, SkipEmpty, check_namespace_flags, named, read

if TYPE_CHECKING:
    from tortie.cli.output import Found
    from tortie.model.meta import Resource
    from tortie.model.store import Store


def get(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="ippool, gnp, pods, ...; or KIND/NAME.",
            show_default=False,
            autocompletion=completion.kinds,
        ),
    ] = "",
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Only these.", show_default=False, autocompletion=completion.names),
    ] = None,
    filename: Files = None,
    recursive: Recursive = False,
    skip_empty: SkipEmpty = False,
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace", "-n", metavar="NAME", help="Instead of default.", autocompletion=completion.namespaces
        ),
    ] = "",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FORMAT",
            help="ps, wide, yaml, json, name, custom-columns=A,B, go-template=TEMPLATE or go-template-file=FILE.",
        ),
    ] = "",
    export: Annotated[bool, typer.Option("--export", help="Without what is of this datastore only.")] = False,
    datastore: Datastore = "",
    lab: Lab = "",
) -> None:
    """Print objects: a table, or documents that can be applied again. Those of a kind, or those that files name."""
    from tortie.cli.output import Form, show

    form = Form.read(output)
    if bool(filename) == bool(kind):
        raise ConfigError("give either KIND, or -f" if kind else "nothing to get: give KIND, or -f FILE")
    if filename:
        documents = [one.resource for one in read(filename, recursive, namespace, skip_empty)]
        if not documents:
            return
        many, missing, cluster_as = asked(datastore, lab, lambda store: _described(store, documents))
        show(many, form, with_namespace=bool(namespace or all_namespaces), export=export, cluster_as=cluster_as)
    else:
        wanted, only = named(kind, names or ())
        check_namespace_flags(wanted, namespace, all_namespaces)
        where = (namespace or "default") if wanted.KIND.namespaced and not all_namespaces else None
        many, missing, cluster_as = asked(datastore, lab, lambda store: _of_a_kind(store, wanted, only, where))
        more: list[str] = []
        if form.name == "wide" and wanted.KIND.plural == "services" and many.resources:
            many, more = _with_what_is_behind(many, datastore, lab, where)
        show(many, form, with_namespace=bool(namespace or all_namespaces), export=export, cluster_as=cluster_as)
        if not only and not many.resources and form.is_table:
            typer.echo("No resources found" + (f" in {where} namespace" if where else ""), err=True)
        typer.echo("".join(f"{line}\n" for line in more), nl=False)
    if missing:
        sys.stdout.flush()
        raise ExceptionGroup("some were not there", missing)


Answer = tuple["Found", list[TortieError], "int | str"]


async def _of_a_kind(store: Store, kind: type[Resource], names: Sequence[str], namespace: str | None) -> Answer:
    """The objects, what is to be said about those that are not there, and the cluster's AS number."""
    from tortie.cli.output import Found

    if not names:
        listing = await store.list(kind, namespace)
        found = Found(kind, sorted(listing.items, key=_tier_order), 0, listing.revision)
        return found, [], await _cluster_as(store)
    if namespace is None and kind.KIND.namespaced:
        every = [one for one in (await store.list(kind)).items if one.name in names]
        lost = [name for name in names if name not in {one.name for one in every}]
        missing: list[TortieError] = [NotFound(f"resource does not exist: {kind.KIND.kind}({name})") for name in lost]
        return Found(kind, every, len(names)), missing, await _cluster_as(store)
    there, missing = await _each(store, [(kind, name, namespace or "") for name in names])
    return Found(kind, there, len(names)), missing, await _cluster_as(store)


def _with_what_is_behind(many: Found, datastore: str, lab: str, namespace: str | None) -> tuple[Found, list[str]]:
    """Services with the columns that only nodes and slices can fill, and below a single one that was named a tree."""
    from dataclasses import replace

    from tortie.cli.datastore import locate, place_of
    from tortie.cli.services_wide import Wide, agents, answers_of, slices_of, tree
    from tortie.model.service import Service

    slices = asked(datastore, lab, lambda store: slices_of(store, namespace))
    only = next((one for one in many.resources if isinstance(one, Service)), None) if many.named == 1 else None
    name, within = (only.name, only.namespace) if only is not None else ("", namespace or "")
    answers = answers_of(agents(lab), str(place_of(locate(datastore, lab))), within, name)
    lines = ["", *tree(only, slices.get((within, name), ()), answers)] if only is not None else []
    return replace(many, beside=Wide(slices, answers).columns()), lines


async def _described(store: Store, documents: Sequence[Resource]) -> Answer:
    """The same of the objects that documents name."""
    from tortie.cli.output import Found

    there, missing = await _each(store, [(type(one), one.name, one.namespace) for one in documents])
    return Found(type(documents[0]), there, len(documents)), missing, await _cluster_as(store)


async def _each(
    store: Store, wanted: Sequence[tuple[type[Resource], str, str]]
) -> tuple[list[Resource], list[TortieError]]:
    found: list[Resource] = []
    lost: list[TortieError] = []
    for kind, name, namespace in wanted:
        try:
            found.append(await store.get(kind, name, namespace))
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
