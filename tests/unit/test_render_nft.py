"""From a state to the text that nft is given: golden text of a small node, and the laws of transactions.

`Table` below is a model of what `nft -f -` does with the few statements that a transaction consists of. It refuses what
the kernel refuses: a rule about a set that is not there, a chain deleted while something leads to it, and so on.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

import pytest

from tortie.calc.cluster import Cluster
from tortie.calc.state import DesiredState
from tortie.model.document import parse
from tortie.policy.rules import PolicyRule, Side
from tortie.policy.translate import policy_of
from tortie.render.denials import TOLD, denial_chains, number
from tortie.render.match import denial, fit, rule_lines
from tortie.render.nft import NftRenderer
from tortie.render.ruleset import Chain, Remains, Ruleset, Set, transaction

GOLDEN = Path(__file__).parent / "golden" / "small.nft"

SMALL = """
{apiVersion: v1, kind: Namespace, metadata: {name: red, labels: {team: red}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: red}}
---
{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {name: sec}, spec: {order: 100, defaultAction: Pass}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: four}, spec: {cidr: 10.244.0.0/16, natOutgoing: true}}
---
{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: six}, spec: {cidr: "fd00:244::/64"}}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata:
  name: n1-k8s-web-eth0
  namespace: red
  labels: {app: web, projectcalico.org/namespace: red, projectcalico.org/orchestrator: k8s}
spec:
  {node: n1, pod: web, interfaceName: cali0000000web, profiles: [kns.red, ksa.red.default],
   ipNetworks: [10.244.1.10/32, "fd00:244::10/128"], ports: [{name: http, protocol: TCP, port: 8080}]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata:
  name: n1-k8s-db-eth0
  namespace: red
  labels: {app: db, projectcalico.org/namespace: red, projectcalico.org/orchestrator: k8s}
spec:
  {node: n1, pod: db, interfaceName: cali00000000db, profiles: [kns.red],
   ipNetworks: [10.244.1.11/32, "fd00:244::11/128"]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: partners, labels: {partner: "yes"}}
spec: {nets: [198.51.100.0/24, 198.51.100.9/32, 192.0.2.7, "2001:db8::/32"]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: guard}
spec:
  tier: sec
  selector: all()
  types: [Ingress, Egress]
  ingress:
  - {action: Log, protocol: UDP}
  - {action: Deny, source: {nets: [203.0.113.0/25, 203.0.113.128/25, 192.0.2.0/24]}}
  - {action: Allow, protocol: ICMP, icmp: {type: 8}, notICMP: {type: 8, code: 3}}
  egress:
  - {action: Pass, notProtocol: SCTP, destination: {notNets: ["fe80::/10"]}}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: red}
spec:
  order: 10
  selector: app == 'web'
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: app == 'db', notPorts: [1, 2]},
     destination: {ports: [http, 80, "81:90"]}}
  - {action: Allow, source: {namespaceSelector: global(), selector: partner == 'yes', notSelector: has(bad)}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: red}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - {from: [{podSelector: {}}], ports: [{port: http}, {protocol: UDP}]}
"""


def small() -> DesiredState:
    cluster = Cluster("n1")
    for resource in parse(SMALL):
        cluster.put(resource)
    assert not cluster.problems
    return cluster.state()


def test_the_transaction_of_a_small_node() -> None:
    """Read the file: it is what stands in the kernel. To write it anew: delete it and run this."""
    text = transaction(NftRenderer().render(small()), None)
    if not GOLDEN.exists():
        GOLDEN.write_text(text)
        pytest.fail(f"{GOLDEN} was not there; it is now: read it before you commit it")
    assert text == GOLDEN.read_text()


# --- a model of nft --------------------------------------------------------------------------------------------------

_REFERENCE = re.compile(r"(?:jump|goto) (\S+)|@([\w-]+)")


class Refused(Exception):
    """What the kernel would not do."""


@dataclass
class Table:
    """Chains and sets by name, as a transaction changes them."""

    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, Set] = field(default_factory=dict)
    there: bool = False
    declared: set[str] = field(default_factory=set, compare=False)
    """The sets that nft has read of in the script: it does not ask the kernel for those that a chain's block names."""

    @classmethod
    def of(cls, ruleset: Ruleset) -> Table:
        return cls(dict(ruleset.chains), dict(ruleset.sets), True)

    def run(self, script: str, table: str = "inet tortie") -> Table:
        """After the script. Raises Refused, and then nothing has happened."""
        after = Table(dict(self.chains), dict(self.sets), self.there)
        block = ""
        for line in script.splitlines():
            if block:
                block = after._within(block, line)
                continue
            words = line.split(maxsplit=4)
            if f"{words[2]} {words[3]}" != table:
                raise Refused(f"not our table: {line}")
            rest = words[4] if len(words) > 4 else ""
            if words[1] == "chain" and rest.endswith(" {"):
                block = rest.removesuffix(" {")
                after._chain(block)
                continue
            getattr(after, f"_{words[0]}_{words[1]}")(*rest.split(maxsplit=1))
        return after

    def _within(self, name: str, line: str) -> str:
        """A line of a chain's block; the answer is the chain if the block goes on."""
        if line == "}":
            return ""
        self._need(line.startswith("  "), f"no rule: {line}")
        named = {found for _, found in _REFERENCE.findall(line) if found}
        self._need(named <= self.declared, f"{line}: {named - self.declared} is not declared")
        self._add_rule(name, line.strip())
        return name

    def _add_table(self) -> None:
        self.there = True

    def _delete_table(self) -> None:
        self._need(self.there, "no table")
        self.chains, self.sets, self.there = {}, {}, False

    def _add_chain(self, name: str, hook: str = "") -> None:
        self._need(self.there, "no table")
        hook = hook.removeprefix("{ ").removesuffix(" }")
        old = self.chains.setdefault(name, Chain((), hook))
        self._need(old.hook == hook, f"chain {name} exists with another hook")

    def _flush_table(self) -> None:
        self.chains = {name: Chain((), chain.hook) for name, chain in self.chains.items()}

    def _flush_set(self, name: str) -> None:
        old = self._set(name)
        self.sets[name] = Set(old.spec, frozenset(), old.is_map)

    _flush_map = _flush_set

    def _flush_chain(self, name: str) -> None:
        self.chains[name] = Chain((), self._chain(name).hook)

    def _delete_chain(self, name: str) -> None:
        self._need(not self._chain(name).rules, f"chain {name} has rules")
        self._need(("chain", name) not in set(self._references()), f"chain {name} is referred to")
        del self.chains[name]

    def _add_rule(self, name: str, text: str) -> None:
        chain = self._chain(name)
        self._need_all(text)
        self.chains[name] = Chain((*chain.rules, text), chain.hook)

    def _add_set(self, name: str, spec: str, is_map: bool = False) -> None:
        self._need(self.there, "no table")
        text, _, elements = spec.removeprefix("{ ").removesuffix(" }").partition(" elements = ")
        new = Set(text, frozenset(), is_map)
        old = self.sets.setdefault(name, new)
        self._need((old.spec, old.is_map) == (new.spec, is_map), f"set {name} exists and is of another kind")
        self.declared.add(name)
        if elements:
            self._need(not old.has_intervals, f"{name}: nft does not see which networks would overlap")
            self._add_element(name, elements)

    def _add_map(self, name: str, spec: str) -> None:
        self._add_set(name, spec, True)

    def _delete_set(self, name: str) -> None:
        self._set(name)
        self._need(("set", name) not in set(self._references()), f"set {name} is referred to")
        del self.sets[name]

    _delete_map = _delete_set

    def _add_element(self, name: str, listed: str) -> None:
        old = self._set(name)
        elements = set(old.elements)
        for element in _listed(listed):
            key = element.partition(" : ")[0]
            self._need(key not in {one.partition(" : ")[0] for one in elements}, f"{name} has {key}")
            self._need_all(element)
            elements.add(element)
        if "interval" in old.spec:
            nets = sorted(ip_network(element) for element in elements)
            overlaps = [(a, b) for a, b in pairwise(nets) if a.overlaps(b)]
            self._need(not overlaps, f"{name}: {overlaps} overlap")
        self.sets[name] = Set(old.spec, frozenset(elements), old.is_map)

    def _delete_element(self, name: str, listed: str) -> None:
        old = self._set(name)
        left = {element.partition(" : ")[0]: element for element in old.elements}
        for key in _listed(listed):
            self._need(key in left, f"{name} has no {key}")
            del left[key]
        self.sets[name] = Set(old.spec, frozenset(left.values()), old.is_map)

    def _chain(self, name: str) -> Chain:
        self._need(name in self.chains, f"no chain {name}")
        return self.chains[name]

    def _set(self, name: str) -> Set:
        self._need(name in self.sets, f"no set {name}")
        return self.sets[name]

    def _references(self) -> Iterator[tuple[str, str]]:
        texts = [rule for chain in self.chains.values() for rule in chain.rules]
        texts += [element for one in self.sets.values() if one.is_map for element in one.elements]
        for text in texts:
            for chain, name in _REFERENCE.findall(text):
                yield ("chain", chain) if chain else ("set", name)

    def _need_all(self, text: str) -> None:
        """Everything that a rule or an element refers to must be there."""
        for chain, name in _REFERENCE.findall(text):
            self._need(chain in self.chains if chain else name in self.sets, f"{text}: no {chain or name}")

    @staticmethod
    def _need(true: bool, otherwise: str) -> None:
        if not true:
            raise Refused(otherwise)


def _listed(text: str) -> list[str]:
    return text.removeprefix("{ ").removesuffix(" }").split(", ")


# --- the laws --------------------------------------------------------------------------------------------------------

PLAIN, SPANS, MAP = "type ipv4_addr;", "type ipv4_addr; flags interval;", "type ifname : verdict;"
SPAN_CHOICES = ((), ("10.0.0.0/8",), ("10.0.0.0/9", "10.128.0.1"), ("10.0.0.1",))
HOOK = "type filter hook input priority 0; policy accept;"

SEED = int(os.environ.get("TORTIE_SEED") or random.randrange(2**32))
"""Printed by what fails; TORTIE_SEED repeats a run."""


def some_ruleset(rng: random.Random) -> Ruleset:
    """Rules and elements refer to chains and sets that are there, and chains never lead back."""
    chains = [name for name in ("c0", "c1", "c2", "c3") if rng.random() < 0.6]
    sets: dict[str, Set] = {}
    for name in "st":
        if rng.random() < 0.6:
            sets[name] = Set(PLAIN, frozenset(f"10.0.0.{i}" for i in range(4) if rng.random() < 0.5))
    if rng.random() < 0.3:
        sets["t"] = Set(SPANS, frozenset(rng.choice(SPAN_CHOICES)))
    built: dict[str, Chain] = {}
    for name in chains:
        rules = ["accept", "counter drop", *(f"jump {later}" for later in chains if later > name)]
        rules += [f"ip saddr @{one} drop" for one in sets]
        built[name] = Chain(tuple(rng.choices(rules, k=rng.randint(0, 3))))
    targets = [name for name in chains if name != "c0"]
    if rng.random() < 0.6:
        keys = [key for key in "xyz" if targets and rng.random() < 0.6]
        sets["m"] = Set(MAP, frozenset(f'"{key}" : goto {rng.choice(targets)}' for key in keys), is_map=True)
    if "c0" in built:  # the one that dispatches, and may be a base chain
        dispatch = ("iifname vmap @m",) if "m" in sets and rng.random() < 0.6 else ()
        built["c0"] = Chain((*built["c0"].rules, *dispatch), HOOK if rng.random() < 0.5 else "")
    return Ruleset(built, sets)


@pytest.mark.parametrize("run", range(10))
def test_a_transaction_leads_from_any_ruleset_to_any_other(run: int) -> None:
    rng = random.Random(f"{SEED} {run}")
    for _ in range(60):
        have, want = some_ruleset(rng), some_ruleset(rng)
        for script, start in (
            (transaction(want, have), Table.of(have)),
            (transaction(want, None), Table.of(have)),
            (transaction(want, None), Table()),
        ):
            try:
                assert start.run(script) == Table.of(want), f"TORTIE_SEED={SEED}\n{have}\n{want}\n{script}"
            except Refused as why:
                pytest.fail(f"TORTIE_SEED={SEED}: {why}\n{have}\n{want}\n{script}")


def names_of(ruleset: Ruleset) -> Remains:
    return Remains(frozenset(ruleset.chains), {name: one.is_map for name, one in ruleset.sets.items()})


@pytest.mark.parametrize("run", range(10))
def test_a_table_is_filled_anew_in_place_unless_something_in_it_is_of_another_kind(run: int) -> None:
    rng = random.Random(f"{SEED} {run}")
    for _ in range(60):
        have, want = some_ruleset(rng), some_ruleset(rng)
        script = transaction(want, names_of(have))
        other = any(want.sets[name].spec != have.sets[name].spec for name in want.sets.keys() & have.sets.keys())
        other |= any(want.chains[name].hook != have.chains[name].hook for name in want.chains.keys() & have.chains)
        assert "delete table" not in script
        if other:
            with pytest.raises(Refused, match="another"):
                Table.of(have).run(script)
        else:
            assert Table.of(have).run(script) == Table.of(want), f"TORTIE_SEED={SEED}\n{have}\n{want}\n{script}"


def test_a_set_that_changes_its_type_takes_nothing_else_along() -> None:
    """A network set appears among single addresses: the other chains and sets keep what they have."""
    have = Ruleset(
        {"c": Chain(("ip saddr @s accept",)), "d": Chain(("drop",))},
        {"s": Set(PLAIN, frozenset({"10.0.0.1"})), "t": Set(PLAIN)},
    )
    want = Ruleset({**have.chains}, {"s": Set(SPANS, frozenset({"10.0.0.0/8"})), "t": have.sets["t"]})
    assert transaction(want, have).splitlines() == [
        "flush chain inet tortie c",
        "delete set inet tortie s",
        "add set inet tortie s { type ipv4_addr; flags interval; }",
        "add element inet tortie s { 10.0.0.0/8 }",
        "add chain inet tortie c {",
        "  ip saddr @s accept",
        "}",
    ]


def test_what_is_reached_needs_nothing() -> None:
    rng = random.Random(SEED)
    for _ in range(100):
        want = some_ruleset(rng)
        equal = Ruleset(
            {name: Chain(one.rules, one.hook) for name, one in want.chains.items()},
            {name: Set(one.spec, frozenset(one.elements), one.is_map) for name, one in want.sets.items()},
        )
        assert transaction(want, want) == ""
        assert transaction(equal, want) == ""


def test_what_changes_little_is_written_as_little() -> None:
    """Only the chain that changed and only the elements that come or go: nobody else loses a counter."""
    have = Ruleset(
        {"c": Chain(("accept",)), "d": Chain(("drop",))},
        {"s": Set(PLAIN, frozenset({"10.0.0.1", "10.0.0.2"}))},
    )
    want = Ruleset(
        {"c": Chain(("drop",)), "d": Chain(("drop",))},
        {"s": Set(PLAIN, frozenset({"10.0.0.2", "10.0.0.3"}))},
    )
    assert transaction(want, have).splitlines() == [
        "delete element inet tortie s { 10.0.0.1 }",
        "add set inet tortie s { type ipv4_addr; elements = { 10.0.0.3 } }",
        "flush chain inet tortie c",
        "add chain inet tortie c {",
        "  drop",
        "}",
    ]


def test_the_model_refuses_what_the_kernel_refuses() -> None:
    """Otherwise the laws above would prove little."""
    table = Table().run("add table inet tortie\nadd chain inet tortie c\nadd set inet tortie s { type ipv4_addr; }\n")
    for script in (
        "add rule inet tortie c jump nowhere",
        "add rule inet tortie c ip saddr @nothing drop",
        "add rule inet tortie nowhere accept",
        "add chain inet tortie c {\n  ip saddr @s drop\n}",
        "delete element inet tortie s { 10.0.0.1 }",
        "add rule inet tortie c ip saddr @s drop\ndelete set inet tortie s",
        "add rule inet tortie c accept\ndelete chain inet tortie c",
        "add chain inet tortie d\nadd rule inet tortie d jump c\ndelete chain inet tortie c",
        "add set inet tortie i { flags interval; }\nadd element inet tortie i { 10.0.0.0/8, 10.1.0.0/16 }",
        "add map inet tortie m { x }\nadd element inet tortie m { x : goto nowhere }",
        "add table inet other",
    ):
        with pytest.raises(Refused):
            table.run(script)


def test_each_subset_of_a_small_node_leads_to_each_other() -> None:
    """The law over what the renderer really makes: sets whose kind changes, policies and pods that come and go."""
    rng = random.Random(SEED)
    resources = parse(SMALL)
    cluster, renderer, have = Cluster("n1"), NftRenderer(), Ruleset()
    table = Table.of(have)
    for _ in range(40):
        for resource in rng.sample(resources, 3):
            if rng.random() < 0.6:
                cluster.put(resource)
            else:
                cluster.drop(type(resource), resource.namespace, resource.name)
        want = renderer.render(cluster.state())
        script = transaction(want, have)
        try:
            table = table.run(script)
        except Refused as why:
            pytest.fail(f"TORTIE_SEED={SEED}: {why}\n{script}")
        assert table == Table.of(want), f"TORTIE_SEED={SEED}"
        have = want


def test_long_lists_of_elements_are_cut_into_lines() -> None:
    want = Ruleset({}, {"s": Set(PLAIN, frozenset(f"10.0.{i // 256}.{i % 256}" for i in range(1234)))})
    lines = [line for line in transaction(want, Ruleset()).splitlines() if "elements" in line]
    assert [line.count(",") + 1 for line in lines] == [500, 500, 234]


# --- single rules ----------------------------------------------------------------------------------------------------


def lines(text: str) -> list[str]:
    """The lines of a global policy's one ingress rule, without what counts and what decides."""
    document = (
        "{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: g}, "
        f"spec: {{ingress: [{{action: Deny{text}}}]}}}}"
    )
    (rule,) = policy_of(parse(document)[0]).ingress  # type: ignore[arg-type]
    ending = denial("id")
    found = list(rule_lines(rule, "id", "log"))
    assert all(line.endswith(ending) for line in found)
    return [line.removesuffix(ending).strip() for line in found]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("", [""]),
        (", protocol: TCP", ["meta l4proto 6"]),
        (", notProtocol: UDP", ["meta l4proto != 17"]),
        (", ipVersion: 4", ["meta nfproto ipv4"]),
        (", ipVersion: 6, protocol: UDP", ["meta nfproto ipv6 meta l4proto 17"]),
        (", protocol: ICMP", ["meta nfproto ipv4 meta l4proto 1"]),
        (", protocol: ICMPv6, icmp: {type: 128}", ["meta nfproto ipv6 meta l4proto 58 icmpv6 type 128"]),
        (
            ", protocol: ICMP, icmp: {type: 3, code: 4}",
            ["meta nfproto ipv4 meta l4proto 1 icmp type 3 icmp code 4"],
        ),
        (
            ", protocol: ICMP, notICMP: {type: 3, code: 4}",
            [
                "meta nfproto ipv4 meta l4proto 1 icmp type != 3",
                "meta nfproto ipv4 meta l4proto 1 icmp type 3 icmp code != 4",
            ],
        ),
        (", source: {nets: [10.0.0.0/8]}", ["ip saddr 10.0.0.0/8"]),
        (", source: {nets: [10.0.0.0/9, 10.128.0.0/9, 10.1.0.0/16]}", ["ip saddr 10.0.0.0/8"]),
        (", source: {nets: [10.0.0.1, 10.0.0.9]}", ["ip saddr { 10.0.0.1/32, 10.0.0.9/32 }"]),
        (", source: {nets: ['2001:db8::/32'], notNets: ['2001:db8:1::/48']}",
         ["ip6 saddr 2001:db8::/32 ip6 saddr != 2001:db8:1::/48"]),
        (", destination: {notNets: [10.0.0.0/8]}", ["ip daddr != 10.0.0.0/8"]),
        (", source: {nets: [10.0.0.0/8]}, ipVersion: 4", ["ip saddr 10.0.0.0/8"]),
        (", protocol: UDP, destination: {ports: [53, '60:70', 61, 71]}", ["meta l4proto 17 th dport { 53, 60-71 }"]),
        (", protocol: TCP, source: {notPorts: [1]}", ["meta l4proto 6 th sport != 1"]),
        (", protocol: SCTP, source: {ports: [7]}, destination: {ports: [8]}",
         ["meta l4proto 132 th sport 7 th dport 8"]),
    ],
)  # fmt: skip
def test_a_rule_becomes_these_lines(rule: str, expected: list[str]) -> None:
    assert lines(rule) == expected


def test_alternatives_multiply() -> None:
    """Two families, and on each end a number or a name: eight lines of one identity."""
    found = lines(", protocol: TCP, source: {ports: [1, one]}, destination: {ports: [2, two], selector: has(a)}")
    assert len(found) == 8
    assert sum("ip saddr" in line or "ip daddr" in line for line in found) == 4
    assert all("th dport 2" in line or "daddr . meta l4proto . th dport @n" in line for line in found)


def test_networks_of_both_families_never_make_an_empty_list() -> None:
    """Admission refuses such a rule; rendered it must be one that nft can read, or all policy stands still."""
    v4, v6 = (parse_nets("10.0.0.0/8"), parse_nets("2001:db8::/32"))
    both = PolicyRule("Deny", source=Side(nets=v4 + v6))
    assert [line.partition(" counter")[0] for line in rule_lines(both, "id", "")] == [
        "ip saddr 10.0.0.0/8",
        "ip6 saddr 2001:db8::/32",
    ]
    neither = PolicyRule("Deny", source=Side(nets=v4, not_nets=v6))
    assert list(rule_lines(neither, "id", "")) == []
    apart = PolicyRule("Deny", source=Side(nets=v4), destination=Side(nets=v6))
    assert list(rule_lines(apart, "id", "")) == []


def parse_nets(*texts: str) -> tuple:  # type: ignore[type-arg]
    return tuple(ip_network(text) for text in texts)


@pytest.mark.parametrize(
    ("action", "statement"),
    [
        ("Allow", "counter meta mark set meta mark | 0x00010000 return"),
        ("Pass", "counter meta mark set meta mark | 0x00020000 return"),
        ("Deny", "counter meta mark set 0x646d8314 goto there"),
        ("Log", 'counter log prefix "calico-packet: "'),
    ],
)
def test_what_a_rule_does(action: str, statement: str) -> None:
    log = 'log prefix "calico-packet: "'
    found = list(rule_lines(PolicyRule(action), "np/red/n|ingress|0", log, "there"))  # type: ignore[arg-type]
    assert found == [f'{statement} comment "np/red/n|ingress|0"']


def test_long_names_are_cut_and_stay_distinct() -> None:
    long = "x" * 200
    assert fit("short", 120) == "short"
    assert len(fit(long, 120)) == 120
    assert fit(long + "a", 120) != fit(long + "b", 120)


# --- settings --------------------------------------------------------------------------------------------------------

FELIX = "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {%s}}"


def rendered(felix: str = "", *more: str) -> Ruleset:
    cluster = Cluster("n1")
    for resource in parse("\n---\n".join((SMALL, FELIX % felix, *more))):
        cluster.put(resource)
    return NftRenderer().render(cluster.state())


@pytest.mark.parametrize(
    ("action", "last"),
    [
        ("Drop", denial("pod to its own host: defaultEndpointToHostAction", "dropped")),
        ("Accept", "counter accept"),
        ("Return", "ct state established,related return"),
    ],
)
def test_a_pod_to_its_host(action: str, last: str) -> None:
    chain = rendered(f"defaultEndpointToHostAction: {action}").chains["workload-to-host"].rules
    assert chain[-1] == last
    assert chain[:2] == ("icmpv6 type { 130, 131, 132, 133, 135, 136 } return", "jump from-workload")


def test_settings_about_what_a_pod_may_send() -> None:
    def from_pod(felix: str) -> str:
        return "\n".join(rendered(felix).chains["fw-cali0000000web"].rules)

    assert "udp dport 4789" in from_pod("")
    assert "udp dport 8472" in from_pod("vxlanPort: 8472")
    assert "udp dport" not in from_pod("allowVXLANPacketsFromWorkloads: true")
    assert "meta l4proto 4 " in from_pod("")
    assert "meta l4proto 4 " not in from_pod("allowIPIPPacketsFromWorkloads: true")
    assert "ct state invalid" not in from_pod("disableConntrackInvalidCheck: true")


def test_reject_is_what_denies_by_policy_everywhere() -> None:
    chains = rendered("nftablesFilterDenyAction: Reject").chains
    # End of tier: the policies of the tier `default`; `sec` passes on.
    ends = [rule.partition("goto ")[2] for rule in chains["tw-cali0000000web"].rules if "goto " in rule]
    assert ends == [
        'dropped comment "invalid"',
        'denied comment "tier/default|cali0000000web|ingress"',
        'denied comment "no-profile|cali0000000web|ingress"',
    ]
    assert chains["pi-gnp/guard"].rules[1].endswith('goto denied comment "gnp/guard|ingress|1"')
    assert chains["denied"].rules == (TOLD, "meta mark set 0x00000000 reject")
    assert chains["dropped"].rules == (TOLD, "drop")
    assert rendered().chains["denied"].rules == (TOLD, "drop")


def test_every_denial_has_its_own_number() -> None:
    ending = re.compile(r' counter meta mark set (0x[0-9a-f]{8}) goto (denied|dropped|refused) comment "(.+)"')
    numbers: dict[str, set[str]] = {}
    for name, chain in rendered().chains.items():
        for rule in chain.rules:
            if found := ending.search(f" {rule}"):
                assert int(found[1], 16) == number(found[3])
                numbers.setdefault(found[1], set()).add(found[3])
            else:
                assert not re.search(r"\b(drop|reject)\b", rule) or name in ("denied", "dropped", "refused"), rule
    assert len(numbers) > 8
    assert all(len(identities) == 1 for identities in numbers.values())


def test_without_a_log_group_a_denial_only_denies() -> None:
    chains = denial_chains("Drop", told=False)
    assert [chain.rules for chain in chains.values()] == [
        ("drop",),
        ("drop",),
        ("meta mark set 0x00000000 reject with tcp reset",),
    ]
    assert NftRenderer(told=False).render(small()).chains["denied"].rules == ("drop",)


def test_how_often_a_log_rule_may_write() -> None:
    def logs(felix: str) -> str:
        return rendered(felix).chains["pi-gnp/guard"].rules[0]

    assert ' counter log prefix "calico-packet: " ' in logs("logActionRateLimitBurst: 7")
    limited = ' counter limit rate 10/minute burst 5 packets log prefix "calico-packet: " '
    assert limited in logs("logActionRateLimit: 10/minute")
    assert limited.replace("5", "7") in logs("logActionRateLimit: 10/minute, logActionRateLimitBurst: 7")


POOL = "{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: %s}, spec: {cidr: %s%s}}"


def test_which_pools_are_masqueraded_and_to_which_one_does_not() -> None:
    sets = rendered(
        "",
        POOL % ("unused", "10.10.0.0/16", ", disabled: true"),
        POOL % ("leaving", "10.11.0.0/16", ", disabled: true, natOutgoing: true"),
        POOL % ("vip", "10.12.0.0/16", ", allowedUses: [LoadBalancer]"),
        POOL % ("nat6", "'fd00:11::/64'", ", natOutgoing: true"),
    ).sets
    assert sets["masquerade4"].elements == {"10.244.0.0/16", "10.11.0.0/16"}
    assert sets["pools4"].elements == {"10.244.0.0/16", "10.10.0.0/15"}
    assert sets["masquerade6"].elements == {"fd00:11::/64"}
    assert sets["pools6"].elements == {"fd00:244::/64", "fd00:11::/64"}


def nat_outgoing(ruleset: Ruleset) -> list[str]:
    return [rule for rule in ruleset.chains["postrouting"].rules if "natOutgoing" in rule]


def test_p102_hosts_may_be_excepted_and_the_address_given() -> None:
    node = (
        "{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: n2}, "
        "spec: {bgp: {ipv4Address: 10.0.0.2/24, ipv6Address: 'fd00:10::2/64'}}}"
    )
    plain, excepted = rendered("", node), rendered("natOutgoingExclusions: IPPoolsAndHostIPs", node)
    assert "hosts4" not in plain.sets
    assert excepted.sets["hosts4"].elements == {"10.0.0.2"}
    assert excepted.sets["hosts6"].elements == {"fd00:10::2"}
    assert nat_outgoing(excepted)[0] == (
        'ip saddr @masquerade4 ip daddr != @pools4 ip daddr != @hosts4 counter masquerade comment "natOutgoing"'
    )
    given_address = nat_outgoing(rendered("natOutgoingAddress: 192.0.2.1"))
    assert "snat ip to 192.0.2.1" in given_address[0]
    assert "masquerade" in given_address[1]


# --- floating IPs ----------------------------------------------------------------------------------------------------

FLOATING = """
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n1-k8s-%s-eth0, namespace: red}
spec:
  {node: n1, pod: %s, endpoint: eth0, orchestrator: k8s, interfaceName: cali%s, ipNetworks: [%s],
   ipNATs: [{internalIP: %s, externalIP: %s}]}
"""


def with_floating(*claims: tuple[str, str, str], felix: str = "") -> Ruleset:
    cluster = Cluster("n1")
    for name, internal, external in claims:
        cluster.put(parse(FLOATING % (name, name, name, internal, internal, external))[0])
    if felix:
        cluster.put(
            parse(
                "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default},"
                f" spec: {{floatingIPs: {felix}}}}}"
            )[0]
        )
    return NftRenderer().render(cluster.state())


def test_a_floating_ip_leads_to_its_pod_and_back_only_for_the_pod_itself() -> None:
    sets = with_floating(("a", "10.244.0.1", "192.0.2.9"), ("b", "fd00::1", "2001:db8::9")).sets
    assert sets["floating4"].elements == {"192.0.2.9 : 10.244.0.1"}
    assert sets["floating6"].elements == {"2001:db8::9 : fd00::1"}
    assert sets["hairpin4"].elements == {"10.244.0.1 . 10.244.0.1"}
    assert sets["hairpins4"].elements == {"10.244.0.1 : 192.0.2.9"}


def test_of_several_claims_to_one_floating_ip_the_lowest_address_wins() -> None:
    sets = with_floating(("a", "10.244.0.10", "192.0.2.9"), ("b", "10.244.0.9", "192.0.2.9")).sets
    assert sets["floating4"].elements == {"192.0.2.9 : 10.244.0.9"}
    assert sets["hairpins4"].elements == {"10.244.0.9 : 192.0.2.9"}


def test_floating_ips_can_be_switched_off() -> None:
    assert with_floating(("a", "10.244.0.1", "192.0.2.9"), felix="Enabled").sets["floating4"].elements
    assert not with_floating(("a", "10.244.0.1", "192.0.2.9"), felix="Disabled").sets["floating4"].elements
