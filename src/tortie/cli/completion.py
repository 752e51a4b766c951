"""What the shell completes: kinds, and names of objects that are in the datastore. Nothing where that fails.

tortie get ippo<TAB>                ippool, ippools
tortie delete pods -n red <TAB>     the pods in red
"""

from __future__ import annotations

from typing import Any

import typer

SECONDS = 1.0
"""For which somebody waits who has pressed a key."""


def kinds(incomplete: str) -> list[str]:
    """The words for kinds that begin so."""
    from tortie.model.kinds import KINDS

    words = {word for kind in KINDS for word in (kind.KIND.plural, kind.KIND.kind.lower(), *kind.KIND.aliases)}
    return sorted(word for word in words if word.startswith(incomplete.lower()))


def names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of objects of the kind that the command line has, in the namespace that it has."""
    from tortie.base.errors import ConfigError
    from tortie.model.kinds import kind_of_word

    try:
        kind = kind_of_word(str(ctx.params.get("kind") or ""))
    except ConfigError:
        return []
    where = None
    if kind.KIND.namespaced and not ctx.params.get("all_namespaces"):
        where = str(ctx.params.get("namespace") or "default")
    return _names(ctx, kind, where, incomplete)


def namespaces(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of namespaces."""
    from tortie.model.k8s import Namespace

    return _names(ctx, Namespace, None, incomplete)


def _names(ctx: typer.Context, kind: Any, namespace: str | None, incomplete: str) -> list[str]:
    """Silent, whatever goes wrong: what is printed here would be inserted into somebody's command line."""
    import asyncio
    import os

    from tortie.base.errors import TortieError
    from tortie.cli.datastore import environment_of, locate
    from tortie.store import open_store
    from tortie.store.place import is_file

    async def listed(where: str) -> list[str]:
        store = open_store(where, environment=environment_of(), patience=SECONDS)
        try:
            return [one.name for one in (await store.list(kind, namespace)).items]
        finally:
            await store.close()

    try:
        where = locate(str(ctx.params.get("datastore") or ""), str(ctx.params.get("lab") or ""))
        if is_file(where) and not os.path.exists(where.removeprefix("sqlite:")):
            return []  # looking must not make one
        found = asyncio.run(asyncio.wait_for(listed(where), SECONDS))
    except (TortieError, OSError, TimeoutError):
        return []
    return sorted({name for name in found if name.startswith(incomplete)})
