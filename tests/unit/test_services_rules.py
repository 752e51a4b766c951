"""ProxyState to the table of services: the text of a small one, and that changes lead where a fresh start leads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service_states import BACKENDS, backend, kept, small_state, states
from tortie.calc.proxy.state import Backend, Entrance, Frontend, ProxyState, Served
from tortie.dataplane.service_hits import Hit, hit
from tortie.render.proxy.chains import MAPS, OF_PACKETS, TABLE
from tortie.render.proxy.elements import Shape, identities, places
from tortie.render.proxy.table import PORTION, Table, anew, changes, load, refill, tabled
from tortie.render.ruleset import Remains

GOLDEN = Path(__file__).parent / "golden" / "services.nft"


def test_text_of_a_small_table() -> None:
    assert "".join(load(tabled(small_state()))) == GOLDEN.read_text()


# --- a table that is made of scripts ------------------------------------------------------------------------------


@dataclass
class Kernel:
    """What nf_tables would hold after our scripts, and what it would refuse."""

    maps: dict[str, dict[str, str]] = field(default_factory=dict)
    chains: dict[str, list[str]] = field(default_factory=dict)

    def run(self, scripts: Iterable[str]) -> Kernel:
        for script in scripts:
            lines = iter(script.splitlines())
            for line in lines:
                verb, kind, rest = line.split(" ", 2)
                name, _, more = rest.removeprefix(TABLE).strip().partition(" ")
                if verb == "add" and kind == "chain" and more == "{":
                    assert name in self.chains
                    self.chains[name] += iter(lambda lines=lines: next(lines).strip(), "}")  # type: ignore[misc]
                else:
                    getattr(self, f"_{verb}_{kind}")(name, more)
            self._check()
        return self

    def _add_table(self, *_: str) -> None:
        pass

    def _delete_table(self, *_: str) -> None:
        self.maps, self.chains = {}, {}

    def _add_chain(self, name: str, _: str) -> None:
        self.chains.setdefault(name, [])

    def _flush_chain(self, name: str, _: str) -> None:
        self.chains[name] = []

    def _delete_chain(self, name: str, _: str) -> None:
        assert self.chains.pop(name) == []

    def _add_map(self, name: str, more: str) -> None:
        elements = self.maps.setdefault(name, {})
        found = re.search(r"elements = \{ (.*) \} \}", more)
        for element in found[1].split(", ") if found else ():
            key, _, value = element.partition(" : ")
            assert elements.setdefault(key, value) == value, f"{name}: {key} is there with another value"

    _add_set = _add_map

    def _flush_map(self, name: str, _: str) -> None:
        self.maps[name] = {}

    _flush_set = _flush_map

    def _delete_map(self, name: str, _: str) -> None:
        del self.maps[name]

    def _delete_element(self, name: str, more: str) -> None:
        for key in more.strip("{} ").split(", "):
            del self.maps[name][key]

    def _check(self) -> None:
        """Nothing leads to what is not there."""
        words = [rule for rules in self.chains.values() for rule in rules]
        words += [value for elements in self.maps.values() for value in elements.values()]
        asked = {found for word in words for found in re.findall(r"(?:goto|jump) (\S+)", word)}
        assert asked <= self.chains.keys()
        assert {found for word in words for found in re.findall(r"@(\S+)", word)} <= self.maps.keys()

    def meaning(self) -> dict[str, object]:
        """Without the order of backends."""
        found: dict[str, object] = {"chains": self.chains}
        for name, elements in self.maps.items():
            if re.search("backends|locals|ids", name):
                rows: dict[str, list[str]] = {}
                numbers: dict[str, list[int]] = {}
                for key, value in elements.items():
                    *where, number = key.split(" . ")
                    if name in ("ids6", "local-ids6"):
                        *where, number, ip = key.split(" . ")
                        where.append(ip)
                    rows.setdefault(" ".join(where), []).append(value)
                    numbers.setdefault(" ".join(where), []).append(int(number))
                assert all(sorted(some) == list(range(len(some))) for some in numbers.values())
                found[name] = {where: sorted(some) for where, some in rows.items()}
            else:
                found[name] = elements
        return found


def fresh(state: ProxyState) -> Kernel:
    return Kernel().run(load(tabled(state)))


# --- laws ---------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.lists(states(), min_size=1, max_size=4))
def test_changes_lead_where_a_fresh_start_leads(some: list[ProxyState]) -> None:
    have = tabled(some[0])
    kernel = Kernel().run(load(have))
    for state in some[1:]:
        want = tabled(kept(state, have.state), have)
        kernel.run(changes(want, have))
        assert kernel.meaning() == fresh(state).meaning()
        assert not list(changes(tabled(want.state, want), want))
        have = want


@settings(max_examples=60, deadline=None)
@given(states(), states())
def test_a_table_of_an_earlier_life_is_filled_in_place(old: ProxyState, new: ProxyState) -> None:
    kernel = fresh(old)
    kernel.maps["clients4"]["somebody"] = "remembered"
    kernel.maps["of-another-version"], kernel.chains["other"] = {"192.0.2.1": "goto other"}, []
    kernel.run(refill(tabled(new), Remains(frozenset(kernel.chains), dict.fromkeys(kernel.maps, True))))
    assert kernel.maps.pop("clients4") == {"somebody": "remembered"}
    want = fresh(new)
    del want.maps["clients4"]
    assert kernel.meaning() == want.meaning()
    assert Kernel().run([anew(tabled(new))]).meaning() == fresh(new).meaning()


@settings(max_examples=60, deadline=None)
@given(states(), states(), st.sets(st.sampled_from(sorted(MAPS.keys() - OF_PACKETS))), st.booleans())
def test_what_somebody_touched_is_filled_anew(old: ProxyState, new: ProxyState, maps: set[str], rules: bool) -> None:
    have = tabled(old)
    kernel = Kernel().run(load(have))
    for name in maps:
        kernel.maps[name] = {"a stranger's": "goto refuse"}
    chains = {"nat-prerouting", "unserved"} if rules else set()
    for name in chains:
        kernel.chains[name] = ["drop"]
    kernel.run(changes(tabled(kept(new, old), have), have, maps, chains))
    assert kernel.meaning() == fresh(new).meaning()


@given(BACKENDS, BACKENDS)
def test_who_stays_keeps_its_place(old: tuple[Backend, ...], new: tuple[Backend, ...]) -> None:
    found = places(new, old)
    assert set(found) == set(new)
    assert len(found) == len(new)
    moved = [one for one in old if one in new and found.index(one) != old.index(one)]
    assert len(moved) <= max(0, len(set(old) - set(new)) - len(set(new) - set(old)))


def test_a_backend_that_goes_changes_three_elements() -> None:
    def state(numbers: Iterable[int]) -> ProxyState:
        where = Frontend(4, ip_address("10.96.0.1"), 6, 80)
        one = Served(("ns", "web"), (Entrance("ClusterIP", where, "", tuple(map(backend, numbers))),), ())
        return ProxyState(services={one.key: one})

    have = tabled(state(range(1, 101)))
    want = tabled(state(number for number in range(1, 101) if number != 40), have)
    _, text, _ = changes(want, have)
    assert text.splitlines() == [
        f"delete element {TABLE} backends4 {{ 10.96.0.1 . 6 . 80 . 39, 10.96.0.1 . 6 . 80 . 99 }}",
        f"delete element {TABLE} services4 {{ 10.96.0.1 . 6 . 80 }}",
        f"add map {TABLE} backends4 {{ {MAPS['backends4'].spec} elements = {{ 10.96.0.1 . 6 . 80 . 39 : "
        "10.244.0.100 . 8080 } }",
        f"add map {TABLE} services4 {{ {MAPS['services4'].spec} elements = {{ 10.96.0.1 . 6 . 80 : goto to4-99 }} }}",
    ]


def test_node_of_a_backend_makes_no_difference() -> None:
    where = Frontend(4, ip_address("10.96.0.1"), 6, 80)

    def state(node: str) -> ProxyState:
        one = Served(("ns", "web"), (Entrance("ClusterIP", where, "", (backend(1, node=node),)),), ())
        return ProxyState(services={one.key: one})

    have = tabled(state("a"))
    assert list(changes(tabled(state("b"), have), have)) == []


def test_cluster_ip_that_two_services_have_stays_as_long_as_one_has_it() -> None:
    ip = ip_address("10.96.0.1")
    one, two = (
        Served(("ns", name), (Entrance("ClusterIP", Frontend(4, ip, 6, port), "", (backend(1),)),), (ip,))
        for name, port in (("a", 80), ("b", 81))
    )
    table: Table = tabled(ProxyState(services={one.key: one, two.key: two}))
    kernel = Kernel().run(load(table))
    less = tabled(ProxyState(services={two.key: two}), table)
    kernel.run(changes(less, table))
    assert list(kernel.maps["cluster-ips4"]) == ["10.96.0.1"]
    kernel.run(changes(tabled(ProxyState(), less), less))
    assert kernel.maps["cluster-ips4"] == {}


@given(st.lists(st.integers(1, 5000), unique=True, min_size=1, max_size=50))
def test_identities(numbers: list[int]) -> None:
    every = [backend(number) for number in numbers]
    found = identities(every)
    assert len(set(found)) == len(found)
    for one in found:
        halves = [int(half, 16) for half in one.split(":")]
        assert all(0 < half < 0xFFFF for half in halves)
    assert dict(zip(reversed(every), identities(every[::-1]), strict=True)) == dict(zip(every, found, strict=True))


def test_names_of_chains_fit_the_kernel() -> None:
    """NFT_CHAIN_MAXNAMELEN is 128; nft takes no name that is a word of its own."""
    longest = Shape(6, True, 100_000, 100_000, 86_400)
    assert longest.chain == "port-local6-100000-100000-s86400"


@pytest.mark.parametrize("protocol", ["tcp", 6])
def test_hit_of_an_element(protocol: str | int) -> None:
    """Protocols have names only where the machine names them."""
    counter = {"packets": 3, "bytes": 180}
    pair = [
        {"elem": {"val": {"concat": ["10.96.0.1", protocol, 443, 0]}, "counter": counter}},
        {"concat": ["10.244.1.5", 6443]},
    ]
    where = Frontend(4, ip_address("10.96.0.1"), 6, 443)
    assert hit(pair, 4, local=True) == Hit(where, Backend(ip_address("10.244.1.5"), 6443), True, 3, 180)
    pair[0] = {"elem": {"val": {"concat": [protocol, 30443, "1a2b:3c4d"]}, "counter": counter}}
    assert hit(pair, 4, local=False).frontend == Frontend(4, None, 6, 30443)


def test_first_load_comes_in_portions() -> None:
    """What is in the first works before the last has come."""

    def one(number: int) -> Served:
        where = Frontend(4, ip_address("10.96.0.1") + number, 6, 80)
        return Served(("ns", str(number)), (Entrance("ClusterIP", where, "", (backend(number),)),), ())

    services = {made.key: made for made in map(one, range(2 * PORTION + 1))}
    texts = list(load(tabled(ProxyState(services=services))))
    kernel, found = Kernel(), []
    for text in texts:
        kernel.run([text])
        found.append((len(kernel.maps["services4"]), len(kernel.maps["backends4"])))
    assert found == [(PORTION, PORTION), (2 * PORTION, 2 * PORTION), (2 * PORTION + 1, 2 * PORTION + 1)]


@settings(max_examples=50, deadline=None)
@given(states(), states())
def test_what_has_not_changed_is_found_by_identity(old: ProxyState, new: ProxyState) -> None:
    have = tabled(old)
    state = kept(new, old)
    changed = {
        key
        for key in old.services.keys() | state.services.keys()
        if old.services.get(key) is not state.services.get(key)
    }
    assert tabled(state, have).changed == changed
