"""Writing one thing that a controller has decided on: created, updated or deleted, as it was read."""

from __future__ import annotations

import logging
from typing import Protocol

from tortie.base.errors import Exists, NotFound, TortieError
from tortie.controllers.backoff import Backoff
from tortie.model.document import encode
from tortie.model.meta import Resource
from tortie.model.store import Store


class Change(Protocol):
    """Prints as what is done and why; `verb` is create, update or delete."""

    @property
    def verb(self) -> str: ...


async def carry_out(store: Store, later: Backoff, log: logging.Logger, change: Change, what: Resource) -> int:
    """1 if it failed, which is logged, and should be tried again soon; what has failed before waits for its time."""
    state = (change.verb, encode(what))
    if not later.due(what.title, state):
        return 0
    try:
        if change.verb == "create":
            await store.create(what)
        elif change.verb == "update":
            await store.update(what)
        else:
            await store.delete(type(what), what.name, what.namespace, what.metadata.resource_version)
    except (Exists, NotFound):
        later.failed(what.title)
        return 1  # others were faster: look again
    except TortieError as error:
        log.warning("%s: %s", change, error)
        later.failed(what.title, state)
        return 1
    later.succeeded(what.title)
    log.info("%s", change)
    return 0
