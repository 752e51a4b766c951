"""Watches that have fallen silent: now and then a kind is asked for something that its watch should have told.

    every ten seconds  ─► the same cluster still?
    every half a minute ─► the next kind: few objects ─► list them   ─┐ newer than known,
                                         many ─► get one of them ─┤ and still so a moment
                                                                  ▼ later: list again
Backends notice dead connections themselves, by bookmarks and keep-alives. This is for those that only look alive.
"""

from __future__ import annotations

import asyncio
import logging
import random

from tortie.agent.view import View, same
from tortie.base.errors import NotFound, TortieError
from tortie.model.belief import revision_of
from tortie.model.meta import Resource

log = logging.getLogger(__name__)

CHECK = 10.0
"""Seconds between two questions whether it is the same cluster still, more or less."""
ROUND = 30.0
"""Seconds between two kinds, more or less."""
FEW = 32
"""Objects of a kind up to which all of them are listed."""
LATE = 3.0
"""Seconds that a watch may be behind."""


async def check(view: View, every: float = CHECK) -> None:
    """Forever: whether the datastore answers, and is the cluster's. Its watches may not tell of either."""
    await view.in_sync.wait()
    while True:
        await asyncio.sleep(every * random.uniform(0.75, 1.25))
        try:
            await view.datastore.check()
        except TortieError as error:
            log.debug("check the datastore: %s", error)


async def probe(view: View, every: float = ROUND, late: float = LATE) -> None:
    """Forever: each kind in its turn."""
    await view.in_sync.wait()
    while True:
        for kind in tuple(view.following.words) or (None,):
            await asyncio.sleep(every * random.uniform(0.75, 1.25))
            if kind is None or not view.following.words[kind].listed:
                continue
            try:
                await _look(view, kind, late)
            except TortieError as error:
                log.debug("probe %s: %s", kind.KIND.plural, error)


async def _look(view: View, kind: type[Resource], late: float) -> None:
    """Raises TortieError."""
    if await _news(view, kind):
        await asyncio.sleep(late)
        if news := await _news(view, kind):
            text = "the watch of %s is silent, and has not told of %s: listing again"
            log.warning(text, kind.KIND.plural, news)
            view.following.look_again(kind)
            return
    view.following.agreed(kind)


async def _news(view: View, kind: type[Resource]) -> str:
    """Something that the datastore has and the picture has not, "" where they agree. Raises TortieError."""
    known = view.objects(kind)
    if len(known) <= FEW:
        there = {(one.namespace, one.name): one for one in (await view.datastore.list(kind)).items}
        known = view.objects(kind)
        gone = next((name for name in known if name not in there), None)
        if gone is not None:
            return f"the deletion of {'/'.join(filter(None, gone))}"
    else:
        namespace, name = random.choice(tuple(known))
        try:
            one = await view.datastore.get(kind, name, namespace)
        except NotFound:
            return f"the deletion of {name}" if (namespace, name) in view.objects(kind) else ""
        there, known = {(namespace, name): one}, view.objects(kind)
    for key, one in there.items():
        revision, old = known.get(key, (-1, None))
        # Of a pod's or node's many changes a watch tells those of what it is to us.
        if revision_of(one.metadata.resource_version) > revision and not same(old, one):
            return one.title
    return ""
