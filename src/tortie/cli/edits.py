"""What patch and label do: read one object, change it, write it; all again when somebody else was faster."""

from __future__ import annotations

from collections.abc import Callable

from tortie.base.errors import ConfigError, Conflict
from tortie.calc.admission import View
from tortie.cli.writes import ATTEMPTS, Target, check_own, snapshot
from tortie.model.kinds import kind_of_word
from tortie.model.meta import Resource, changed
from tortie.model.store import Store

Edit = Callable[[Resource, View], Resource]
"""From the stored object to the admitted one. Raises ConfigError; what else it raises ends the command, too."""


def target(kind: str, name: str, namespace: str) -> Target:
    """The object that `KIND NAME`, or `KIND/NAME` and no name, means. Raises ConfigError, NotSupported."""
    word, slash, after = kind.partition("/")
    wanted = kind_of_word(word)
    if slash and name:
        raise ConfigError(f'"{kind}" names the object already: there is no place for "{name}"')
    if not (name or after):
        raise ConfigError(f"give the name of the {wanted.KIND.kind}")
    if namespace and not wanted.KIND.namespaced:
        raise ConfigError(f"{wanted.KIND.kind} is not namespaced")
    found = Target(wanted, name or after, (namespace or "default") if wanted.KIND.namespaced else "")
    check_own(found.kind, found.name, found.namespace, "update")
    return found


async def edited(store: Store, which: Target, edit: Edit) -> tuple[Resource, Resource]:
    """The object before and after, as it is stored. Raises NotFound, Conflict, and what `edit` raises."""
    view = await snapshot(store, {which.kind})
    lost: Conflict | None = None
    for _ in range(ATTEMPTS):
        old = await store.get(which.kind, which.name, which.namespace)
        try:
            new = edit(old, view)
        except ConfigError as error:
            raise error.within(old.title) from None
        try:
            return old, await store.update(changed(new, resource_version=old.metadata.resource_version))
        except Conflict as error:
            lost = error
    raise Conflict(f"{lost}: written by others {ATTEMPTS} times meanwhile, try again")
