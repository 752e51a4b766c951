"""Whether this node's machine is about to be taken away, where our Node does not say so.

    Kubernetes is the datastore    our Node is a view of Kubernetes' and says it: nothing is asked here
    etcd, a file                   Kubernetes' Node is asked for by name, in the cluster beside etcd or, without one,
                                   in the datastore, where whoever takes machines away may have put it

It is asked and not watched: of one object out of thousands, each of which changes all the time. The question goes past
`Datastore`: a cluster that does not answer says nothing of the etcd beside it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from tortie.base.errors import NotFound, TortieError
from tortie.base.logs import Seldom
from tortie.model.k8s import K8sNode
from tortie.model.store import Store

log = logging.getLogger(__name__)

PERIOD = 10.0
"""Seconds between two questions, more or less: load balancers look as often."""


async def follow_leaving(
    name: str, store: Store, tell: Callable[[bool], None], wanted: Callable[[], bool], period: float = PERIOD
) -> None:
    """For ever: `tell` whether the node of this name is leaving, while that is `wanted`. Once it is gone, or while
    nobody answers, what was told last stays."""
    complain = Seldom(log)
    told = False
    while True:
        if wanted():
            try:
                leaving = (await store.get(K8sNode, name)).leaving
            except NotFound:
                pass
            except TortieError as error:
                complain.warning(f"whether Node {name} of Kubernetes is about to be deleted is not known: {error}")
            else:
                if leaving != told:
                    told = leaving
                    log.info("Node %s of Kubernetes is %s", name, "about to be deleted" if leaving else "to stay")
                    tell(leaving)
        await asyncio.sleep(period * random.uniform(0.75, 1.25))
