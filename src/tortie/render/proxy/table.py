"""ProxyState to the whole of `inet tortie-services` as a value, and the transactions that lead from one to the next.

    state ─► tabled ─► Table ──┬─► load     nothing is there: in portions, so that the first services work early
                               ├─► refill   something is there: in place, all elements in one transaction
                               └─► changes  that Table is there: what changed

What changed is found by identity: a service that is the very same object is not looked at. As in `render.ruleset`, an
update is written so that nft need not ask the kernel for the elements that are there: elements come with a repeated
declaration of their map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from types import MappingProxyType

from tortie.base.addr import IP, collapse
from tortie.calc.proxy.state import ProxyState, Served, ServiceKey
from tortie.render.members import element
from tortie.render.proxy.chains import MAPS, OF_PACKETS, PRIORITY, TABLE, base_chains, shared_chain
from tortie.render.proxy.elements import Element, Shape, Shared, arranged, elements, shared
from tortie.render.ruleset import Chain, Remains

NO_SETS: Mapping[str, bool] = MappingProxyType({})
_LINE = 500
"""Elements in a line."""
PORTION = 1_000
"""Services in one transaction of a first load: a tenth of a second."""


@dataclass(frozen=True, slots=True)
class Table:
    """`services` have their backends in the order in which they are in the maps. `uses` and `cluster_ips` say how many
    services have the same. `changed`: what is not as in the table that was there when this one was made."""

    state: ProxyState
    services: Mapping[ServiceKey, Served] = field(default_factory=dict)
    uses: Counter[Shared] = field(default_factory=Counter)
    cluster_ips: Counter[IP] = field(default_factory=Counter)
    chains: Mapping[str, Chain] = field(default_factory=dict)
    changed: frozenset[ServiceKey] = frozenset()


NOTHING = Table(ProxyState())


def tabled(state: ProxyState, have: Table = NOTHING, priority: int = PRIORITY) -> Table:
    """The table for a state; `have` is what is in the kernel, if that is known."""
    services, uses, addresses = dict(have.services), have.uses.copy(), have.cluster_ips.copy()
    changed = _changed(state.services, have.state.services)
    for key in changed:
        old = services.pop(key, None)
        _count(uses, addresses, old, -1)
        if key in state.services:
            services[key] = arranged(state.services[key], old)
            _count(uses, addresses, services[key], 1)
    return Table(state, services, uses, addresses, _chains(state, uses, priority), changed)


def _changed(now: Mapping[ServiceKey, Served], before: Mapping[ServiceKey, Served]) -> frozenset[ServiceKey]:
    """Of those that are another object, came or went.

    Who is at the same place in both is not looked up: of ten thousand that takes half a millisecond in place of four.
    """
    places = zip_longest(now.items(), before.values())
    moved = [item for item, old in places if item is not None and item[1] is not old]
    other = [key for key, new in moved if before.get(key) is not new]
    more = sum(1 for key in other if key not in before)
    gone = before.keys() - now.keys() if len(before) + more > len(now) else frozenset()
    return frozenset(other) | gone


def _count(uses: Counter[Shared], addresses: Counter[IP], served: Served | None, by: int) -> None:
    if served is None:
        return
    for one in shared(served):
        uses[one] += by
        if not uses[one]:
            del uses[one]
    for ip in set(served.cluster_ips):
        addresses[ip] += by
        if not addresses[ip]:
            del addresses[ip]


def _chains(state: ProxyState, uses: Iterable[Shared], priority: int) -> dict[str, Chain]:
    mine = set(uses)
    scratch = any(isinstance(one, Shape) and one.affinity for one in mine)
    chains = base_chains(state.node_ports, priority, scratch=scratch)
    for one in mine:
        chains[one.chain] = shared_chain(one, masquerade_all=state.masquerade_all)
    return chains


# --- what is in the maps ------------------------------------------------------------------------------------------


def _general(table: Table) -> Iterator[Element]:
    """What belongs to no single service."""
    yield from (_hairpin(ip) for ip in table.state.here)
    yield from _pods(table.state)


def _hairpin(ip: IP) -> Element:
    return f"hairpin{ip.version}", f"{ip} . {ip}"


def _pods(state: ProxyState) -> Iterator[Element]:
    yield from ((f"pods{net.version}", element(net)) for net in collapse(state.pods))


def _cluster_ip(ip: IP) -> Element:
    return f"cluster-ips{ip.version}", str(ip)


def _of_services(services: Iterable[Served]) -> set[Element]:
    """ClusterIPs, too: each of them once."""
    found: set[Element] = set()
    for served in services:
        found.update(elements(served))
        found.update(map(_cluster_ip, served.cluster_ips))
    return found


# --- transactions -------------------------------------------------------------------------------------------------


def load(want: Table) -> Iterator[str]:
    """The table, which is not there, in several transactions: a service is served as soon as its own is through."""
    lines = [f"add table {TABLE}", *_declared(want.chains), *_filled_chains(want.chains), *_additions(_general(want))]
    services = iter(want.services.values())
    while True:
        portion = list(islice(services, PORTION))
        lines.extend(_additions(_of_services(portion)))
        if lines:
            yield _text(lines)
        if len(portion) < PORTION:
            return
        lines = []


def refill(want: Table, have: Remains) -> Iterator[str]:
    """Fill a table that is there in place: the rules, all elements in one step, then away with what else is in it.

    No lookup is ever in vain, and the clients that were remembered for affinity stay.
    """
    lines = [f"add table {TABLE}", *_declared(want.chains)]
    lines += (f"flush chain {TABLE} {name}" for name in sorted(want.chains))
    yield _text([*lines, *_filled_chains(want.chains)])
    lines = [f"flush {_word(MAPS[name].is_map)} {TABLE} {name}" for name in MAPS if name not in OF_PACKETS]
    lines += _additions(_general(want))
    yield _text([*lines, *_additions(_of_services(want.services.values()))])
    yield from _without(have.chains - want.chains.keys(), {name: have.sets[name] for name in have.sets.keys() - MAPS})


def _without(chains: AbstractSet[str], sets: Mapping[str, bool] = NO_SETS) -> Iterator[str]:
    """They may lead to one another."""
    lines = [f"flush chain {TABLE} {name}" for name in sorted(chains)]
    lines += (f"delete {_word(sets[name])} {TABLE} {name}" for name in sorted(sets))
    lines += (f"delete chain {TABLE} {name}" for name in sorted(chains))
    if lines:
        yield _text(lines)


def removal() -> str:
    """`add` first, so that `delete` never fails."""
    return _text([f"add table {TABLE}", f"delete table {TABLE}"])


def anew(want: Table) -> str:
    """Delete what is there, and make it again: a packet that is on its way through it meets nothing."""
    return removal() + "".join(load(want))


def changes(
    want: Table,
    have: Table,
    touched_maps: AbstractSet[str] = frozenset(),
    touched_chains: AbstractSet[str] = frozenset(),
) -> Iterator[str]:
    """What leads from `have` to `want`, made of it: chains that come, elements in one step, chains that go.

    What somebody has touched is filled anew. Rules and elements are not of one transaction: nft 1.0.6 refuses both
    together where a map is declared by an expression.
    """
    old = dict(have.chains)
    rewritten = {
        name: chain
        for name, chain in want.chains.items()
        if name in touched_chains or name not in old or old[name].rules != chain.rules
    }
    lines = list(_declared_chains({name: chain for name, chain in rewritten.items() if name not in old}))
    lines += _looked_into(rewritten)
    lines += (f"flush chain {TABLE} {name}" for name in sorted(rewritten) if name in old)
    lines += _filled_chains(rewritten)
    fewer, more = _difference(want, have, touched_maps)
    steps = [f"flush {_word(MAPS[name].is_map)} {TABLE} {name}" for name in sorted(touched_maps)]
    steps += _deletions(fewer)
    steps += _pods_anew(want, have)
    steps += _additions(more)
    yield from (_text(some) for some in (lines, steps) if some)
    yield from _without(old.keys() - want.chains.keys())


def _difference(want: Table, have: Table, touched: AbstractSet[str]) -> tuple[set[Element], set[Element]]:
    """Elements that go, and that come."""
    before = [have.services[key] for key in want.changed if key in have.services]
    after = [want.services[key] for key in want.changed if key in want.services]
    old = {one for served in before for one in elements(served)}
    new = {one for served in after for one in elements(served)}
    old |= {_cluster_ip(ip) for served in before for ip in served.cluster_ips if ip not in want.cluster_ips}
    new |= {_cluster_ip(ip) for served in after for ip in served.cluster_ips if ip not in have.cluster_ips}
    if have.state.here is not want.state.here:
        old |= set(map(_hairpin, have.state.here - want.state.here))
        new |= set(map(_hairpin, want.state.here - have.state.here))
    fewer, more = old - new, new - old
    if touched:
        every = _of_services(want.services.values()) | set(_general(want))
        fewer = {one for one in fewer if one[0] not in touched}
        more = {one for one in more if one[0] not in touched} | {one for one in every if one[0] in touched}
    return fewer, more


def _pods_anew(want: Table, have: Table) -> Iterator[str]:
    """Networks may lie in one another: those that are there go first."""
    if want.state.pods is have.state.pods or want.state.pods == have.state.pods:
        return
    yield from (f"flush set {TABLE} {name}" for name in MAPS if name.startswith("pods"))
    yield from _additions(_pods(want.state))


# --- words --------------------------------------------------------------------------------------------------------


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _word(is_map: bool) -> str:
    return "map" if is_map else "set"


def _declared(chains: Mapping[str, Chain]) -> Iterator[str]:
    yield from _declared_chains(chains)
    yield from (_declared_map(name) for name in MAPS)


def _declared_chains(chains: Mapping[str, Chain]) -> Iterator[str]:
    for name in sorted(chains):
        hook = f" {{ {chains[name].hook} }}" if chains[name].hook else ""
        yield f"add chain {TABLE} {name}{hook}"


def _declared_map(name: str, some: str = "") -> str:
    filled = f" elements = {{ {some} }}" if some else ""
    return f"add {_word(MAPS[name].is_map)} {TABLE} {name} {{ {MAPS[name].spec}{filled} }}"


def _looked_into(chains: Mapping[str, Chain]) -> Iterator[str]:
    """Declarations of what nft has to know to read the rules."""
    rules = (rule for chain in chains.values() for rule in chain.rules)
    yield from map(_declared_map, sorted({word[1:] for rule in rules for word in rule.split() if word[0] == "@"}))


def _filled_chains(chains: Mapping[str, Chain]) -> Iterator[str]:
    for name in sorted(chains):
        if chains[name].rules:
            yield from (f"add chain {TABLE} {name} {{", *(f"  {rule}" for rule in chains[name].rules), "}")


def _additions(some: Iterable[Element]) -> Iterator[str]:
    for name, texts in _by_map(some):
        yield from (_declared_map(name, line) for line in _lines(texts))


def _deletions(some: Iterable[Element]) -> Iterator[str]:
    for name, texts in _by_map(some):
        keys = [text.partition(" : ")[0] for text in texts]
        yield from (f"delete element {TABLE} {name} {{ {line} }}" for line in _lines(keys))


def _by_map(some: Iterable[Element]) -> Iterator[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for name, text in some:
        found.setdefault(name, []).append(text)
    yield from ((name, sorted(found[name])) for name in sorted(found))


def _lines(texts: list[str]) -> Iterator[str]:
    yield from (", ".join(texts[start : start + _LINE]) for start in range(0, len(texts), _LINE))
