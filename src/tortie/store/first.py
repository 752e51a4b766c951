"""What every cluster has from the start: made where it is missing, by whoever writes first.

Source: Calico's clients, which see to it before they write.
"""

from __future__ import annotations

import uuid

from tortie.base.errors import Exists, NotFound
from tortie.calc.admission import bootstrap
from tortie.model.k8s import Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.model.node import ClusterInformation
from tortie.model.store import Store


async def initialise(store: Store) -> None:
    """Put the objects into a datastore that every cluster has, as far as they are missing.

    Raises Unavailable, also where a Kubernetes cluster does not know such objects: it says what to apply.
    """
    try:
        await store.get(ClusterInformation, "default")
        return  # it is written last
    except NotFound:
        pass
    for one in bootstrap(uuid.uuid4().hex):
        await make(store, one)


async def make(store: Store, one: Resource) -> None:
    """An object, unless it is there. Kubernetes has its namespaces and accounts, and lets few make any: these are
    looked for first."""
    if isinstance(one, Namespace | ServiceAccount) and await _is_there(store, one):
        return
    try:
        await store.create(one)
    except Exists:
        pass


async def _is_there(store: Store, one: Resource) -> bool:
    try:
        await store.get(type(one), one.name, one.namespace)
    except NotFound:
        return False
    return True
