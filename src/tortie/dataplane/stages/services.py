"""Services: connections to their addresses and ports are translated to backends, by the table `inet tortie-services`.

Ours: everything in that table, nothing outside it.
Order: after policy, or a backend could be reached that policy forbids; before stale flows, and their guard: a flow that
is deleted must not begin anew by the rules of before.
Source: `render.proxy`; `nft -f -`. None in place of a state: services are somebody else's, and the table goes.

There is one table in a network namespace, and one program that writes it: who has the `lock`. It is taken at each pass
and given up once the table has gone; whoever writes the table then, nothing of it is looked at or taken away.

What the kernel has is known from what was applied last. Where there is nothing, the services come a portion at a time,
and the first are served early. Where an earlier life has left something, or somebody has meddled, the table is filled
in place, all elements in one transaction: 10,000 services take a second, and no connection is lost. To read what is
there and to write only what differs was tried: the reading alone takes one and a half. So after a restart counters
begin at zero, but clients are remembered.

What others do to the table is heard of, and put right, as in the stage of policy: chains and maps that were touched are
filled anew. Where nobody tells, the table is compared with what it should be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tortie.base.errors import Unavailable
from tortie.calc.proxy.state import ProxyState
from tortie.dataplane.converge import Work
from tortie.dataplane.table_stage import TableStage
from tortie.kernel import nft
from tortie.kernel.netns_lock import Holder, NetnsLock
from tortie.kernel.nft_events import Change
from tortie.render.proxy.chains import MAPS, OF_PACKETS, PRIORITY, TABLE
from tortie.render.proxy.table import Table, anew, changes, load, refill, removal, tabled
from tortie.render.ruleset import Remains


@dataclass(frozen=True, slots=True)
class Scripts:
    """What `nft -f -` is given, one after the other, and what the table is afterwards: None if there is none."""

    texts: tuple[str, ...]
    after: Table | None
    otherwise: Callable[[], str] | None = None
    """What to try when nft refuses."""

    def __bool__(self) -> bool:
        return bool(self.texts)

    def __str__(self) -> str:
        return "".join(self.texts)


class Services(TableStage):
    name = "services"
    guard = True

    def __init__(self, netns: str | None = None, *, priority: int = PRIORITY, lock: NetnsLock | None = None) -> None:
        super().__init__(TABLE, netns)
        self._priority = priority
        self._lock = lock
        self.holder: Holder | None = None
        """Who else had the lock at the last pass."""
        self._left = False
        """Whether the table, if there is one, is no concern of ours, until there is a state again."""
        self._have: Table | None = None
        self._known = False
        """Whether the kernel has exactly that, or no table if that is None."""

    def plan(self, state: ProxyState | None) -> Scripts:
        told = self._take_changes()
        if not self._may_write(serving=state is not None):
            return Scripts((), None)
        doubt = self._doubted(told)
        touched = [change for change in told if isinstance(change, Change)]
        if any(change.whole for change in touched):
            self._known = False
        elif doubt and self._known:
            # What was told is lost if looking fails: then nothing is known.
            self._known = False
            self._known = intact(self._have, self._netns)
            if not self._known:
                self._complain()
        if state is None:
            return self._remove()
        if not self._known or self._have is None:
            return self._begin(state)
        if state is self._have.state and not touched:
            return Scripts((), self._have)
        want = tabled(state, self._have, self._priority)
        maps = {name for change in touched for name in change.sets} & MAPS.keys() - OF_PACKETS
        rules = {name for change in touched for name in change.chains}
        texts = tuple(changes(want, self._have, maps, rules))
        if not texts:
            self._have = want
        return Scripts(texts, want)

    def _may_write(self, *, serving: bool) -> bool:
        """Raises Unavailable where there is something to serve, and somebody else does."""
        if self._lock is None:
            return True
        if self._left and not serving:
            return False
        self.holder = self._lock.take()
        self._left = not serving and self.holder is not None
        if self.holder is None:
            return True
        self._known = False
        if serving:
            raise Unavailable(f"{self.holder} writes table {TABLE}: stop that one, or serve none here (--services off)")
        return False

    def _remove(self) -> Scripts:
        gone = self._have is None if self._known else remains(self._netns) == Remains()
        if gone:
            self._removed()
        return Scripts(() if gone else (removal(),), None)

    def _removed(self) -> None:
        self._have, self._known = None, True
        if self._lock is not None:
            self._known, self._left = False, True
            self._lock.release()

    def _begin(self, state: ProxyState) -> Scripts:
        """What is there is not known, or it is nothing."""
        want = tabled(state, priority=self._priority)
        found = remains(self._netns)
        return Scripts(tuple(load(want) if found == Remains() else refill(want, found)), want, lambda: anew(want))

    def make(self, work: Work) -> None:
        assert isinstance(work, Scripts)
        self._known = False
        self._apply(work.texts, work.otherwise)
        self._have, self._known = work.after, True
        if work.after is None:
            self._removed()


def remains(netns: str | None) -> Remains:
    """What is in our table; nothing where there is no table. nft 1.0.6 can list a table with its elements only, which
    takes seconds; chains, maps and sets of a whole family come without."""
    family, name = TABLE.split()
    found: dict[str, set[str]] = {"chain": set(), "map": set(), "set": set()}
    for word, names in found.items():
        listed = (item.get(word, {}) for item in nft.list_json(["-t", "list", f"{word}s", family], netns))
        names.update(one["name"] for one in listed if one.get("table") == name)
    sets = {one: word == "map" for word in ("map", "set") for one in found[word]}
    return Remains(frozenset(found["chain"]), sets)


def intact(table: Table | None, netns: str | None) -> bool:
    """Whether the kernel still has all of our table as it was given, and nothing else in it; for None, no table.

    Takes seconds for thousands of services. Which clients are remembered makes no difference.
    """
    found = nft.contents(TABLE, netns)
    if table is None or found is None:
        return table is None and found is None
    wanted = nft.contents_of("".join(load(table)), TABLE)
    passing = {f"map {name}" for name in OF_PACKETS}
    return all(
        found.get(name) == wanted.get(name) for name in found.keys() | wanted.keys() - passing if name not in passing
    )
