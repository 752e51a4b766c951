"""What this node does not carry out of a BGPPeer or a BGPFilter, told on the object: `status.conditions`.

    type      tortie.dev/NotApplied-<node>, for each node writes and clears its own
    status    "True"; there is no condition where all is well
    reason    NotApplied, and `message` why

Written when it comes, changed when the reason changes, taken away when it is over, and nothing in between.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace

from tortie.base.errors import Conflict, NotFound, TortieError
from tortie.base.logs import Seldom
from tortie.model.bgp import BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.conditions import NOT_APPLIED, condition_type, conditions, with_conditions
from tortie.model.store import Store

log = logging.getLogger(__name__)

KINDS: tuple[type[BGPPeer] | type[BGPFilter], ...] = (BGPPeer, BGPFilter)
LOOK = 1.0
"""Seconds between two looks at what is refused, more or less. What is over by the next look was never told."""


def with_condition(status: Any, node: str, why: str, now: datetime) -> Any:
    """The status with this node's condition as it should be: none for an empty `why`. The same object when it is so
    already."""
    have = conditions(status)
    own = next((one for one in have if one.get("type") == condition_type(node)), None)
    if (own is None and not why) or (own is not None and own.get("message") == why):
        return status
    others = [one for one in have if one.get("type") != condition_type(node)]
    if why:
        since = own.get("lastTransitionTime") if own is not None else None
        others.append(
            {
                "type": condition_type(node),
                "status": "True",
                "reason": NOT_APPLIED,
                "message": why,
                "lastTransitionTime": since or now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
    return with_conditions(status, others)


def by_object(problems: Mapping[str, str]) -> dict[str, str]:
    """By title (`BGPPeer a`) all that is the matter with an object of KINDS, or with a part of it.

    >>> by_object({"password of BGPPeer a": "there is no Secret", "Pod red/a": "is strange"})
    {'BGPPeer a': 'password: there is no Secret'}
    """
    found: dict[str, str] = {}
    for what, why in sorted(problems.items()):
        part, of, title = what.rpartition(" of ")
        if title.partition(" ")[0] in {kind.KIND.kind for kind in KINDS}:
            text = f"{part}: {why}" if of else why
            found[title] = f"{found[title]}; {text}" if title in found else text
    return found


class Conditions:
    """`problems` gives by title (`BGPPeer a`) why an object is not carried out on this node."""

    def __init__(self, node: str, store: Store, problems: Callable[[], Mapping[str, str]]) -> None:
        self._node = node
        self._store = store
        self._problems = problems
        self._told: Mapping[str, str] | None = None
        """None: what an agent before this one has told is not known."""
        self._complain = Seldom(log)

    async def run(self) -> None:
        """Forever."""
        seen: Mapping[str, str] | None = None
        while True:
            before, seen = seen, self._about()
            if seen == before and seen != self._told:
                try:
                    await self._tell(seen)
                    self._told = seen
                except TortieError as error:
                    self._complain.warning(f"conditions of BGP objects: {error}; trying again")
            await asyncio.sleep(LOOK * random.uniform(0.5, 1.5))  # all nodes may have to tell something of one object

    def _about(self) -> Mapping[str, str]:
        return by_object(self._problems())

    async def _tell(self, problems: Mapping[str, str]) -> None:
        """Raises Unavailable, Conflict."""
        for kind in KINDS:
            for one in (await self._store.list(kind)).items:
                status = with_condition(one.status, self._node, problems.get(one.title, ""), datetime.now(UTC))
                if status != one.status:
                    try:
                        await self._store.update(replace(one, status=status))
                    except NotFound:
                        continue
                    except Conflict:
                        log.debug("%s has changed meanwhile", one.title)
                        raise
