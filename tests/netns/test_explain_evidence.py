"""What an agent says of its kernel beside a prediction: rules and their counters, what differs, and routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from conftest import Ns
from town import UDP, Probe, Town, built_town, endpoint, made, until

from tortie.agent.evidence import Evidence, compare, listed, path, rules_of
from tortie.agent.view import Progress, View
from tortie.base.errors import ConfigError, NotFound
from tortie.kernel import nft
from tortie.model.document import parse
from tortie.model.k8s import Namespace, ServiceAccount
from tortie.model.meta import Resource
from tortie.render.ruleset import Ruleset
from tortie.store.memory import MemoryStore

pytestmark = pytest.mark.root

RULES = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: n, namespace: red}
spec:
  selector: app == 'p1'
  ingress:
  - {action: Log, protocol: UDP}
  - {action: Deny, source: {selector: app == 'p2'}}
  - {action: Allow, protocol: UDP, source: {nets: [198.51.100.0/24, 10.244.0.0/16]}}
  - {action: Allow, protocol: UDP, source: {selector: app == 'p0'}}
"""
LOGGED, DENIED, ALLOWED, SELECTED = (f"np/red/n|ingress|{index}" for index in range(4))


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    yield from built_town()


def people(town: Town) -> list[Resource]:
    pods = [endpoint(town.parties[pod], "red", labels={"app": pod}) for pod in ("p0", "p1", "p2")]
    return [made(Namespace, "red"), made(ServiceAccount, "default", "red"), *pods, *parse(RULES)]


def written(town: Town) -> Ruleset:
    town.apply(people(town), whole=True)
    ruleset = town.nft.ruleset
    assert ruleset is not None
    return ruleset


def interface(town: Town, pod: str) -> str:
    return town.parties[pod].interface


def test_rules_come_as_the_kernel_has_them_with_their_counters(town: Town) -> None:
    ruleset = written(town)
    town.send(Probe("p0", "p1", 4, UDP, 80), b"word").close()
    assert until(lambda: town.counters().get(ALLOWED, 0) > 0)
    names, netns = [ALLOWED, DENIED, LOGGED, SELECTED, "np/red/none|ingress|0"], town.node.netns
    found = rules_of(ruleset, names, listed(netns), netns)
    assert found[ALLOWED]["packets"] == 1
    assert found[ALLOWED]["bytes"] > 0
    assert found[LOGGED]["packets"] == 1
    assert found[DENIED]["packets"] == 0
    assert found[ALLOWED]["chains"] == ["pi-np/red/n"]
    (line,) = found[ALLOWED]["kernel"]
    assert "198.51.100.0/24" in line
    assert "counter packets 1 " in line
    assert len(found[DENIED]["kernel"]) == len(found[DENIED]["written"]) == 2
    assert sorted(" ip6 " in line for line in found[SELECTED]["kernel"]) == [False, True]
    assert found["np/red/none|ingress|0"] == {"chains": [], "written": [], "kernel": [], "packets": 0, "bytes": 0}


def test_a_table_as_it_should_be_does_not_differ(town: Town) -> None:
    ruleset = written(town)
    for pods in ([], ["p0"], ["p0", "p1", "p2"]):
        assert compare(ruleset, [interface(town, pod) for pod in pods], listed(town.node.netns)) == []


DAMAGES: dict[str, tuple[Callable[[Town], str], str]] = {
    "a rule that is gone": (
        lambda town: "flush chain inet tortie pi-np/red/n",
        "chain pi-np/red/n: its rules are gone",
    ),
    "a rule too many": (
        lambda town: "insert rule inet tortie pi-np/red/n accept",
        "the rules of chain pi-np/red/n: not as they should be",
    ),
    "an endpoint without its entry": (
        lambda town: f'delete element inet tortie to-workload {{ "{interface(town, "p1")}" }}',
        "map to-workload: the entry of cali00000000p1 is gone or leads elsewhere",
    ),
    "no hook": (lambda town: "flush chain inet tortie forward", "chain forward: its rules are gone"),
    "no table": (lambda town: "delete table inet tortie", "table inet tortie is not there, or cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_somebody_else_has_changed_is_named(town: Town, damage: str) -> None:
    ruleset = written(town)
    script, expected = DAMAGES[damage]
    nft.apply(script(town) + "\n", town.node.netns)
    try:
        assert compare(ruleset, [interface(town, "p1")], listed(town.node.netns)) == [expected]
    finally:
        town.nft.forget()
        written(town)


def test_a_member_that_is_missing_in_a_set(town: Town) -> None:
    ruleset = written(town)
    p2 = str(town.parties["p2"].ips[4])
    (name,) = (name for name, one in ruleset.sets.items() if name.startswith("s4-") and p2 in one.elements)
    nft.apply(f"delete element inet tortie {name} {{ {p2} }}\n", town.node.netns)
    try:
        assert compare(ruleset, [interface(town, "p1")], listed(town.node.netns)) == [
            f"set {name}: not as they should be"
        ]
        assert compare(ruleset, [interface(town, "p0")], listed(town.node.netns)) == []
    finally:
        town.nft.forget()
        written(town)


def test_where_a_node_stands(town: Town) -> None:
    """Before the datastore has been read, and when the kernel's table is not known."""
    store = MemoryStore()
    view = View("node", store, lambda state: None)
    evidence = Evidence("node", "/somewhere", view, Progress(), town.nft)
    standing = evidence.standing()
    assert (standing["inSync"], standing["enforced"], standing["interfaces"]) == (False, False, [])
    view.confirm(people(town)[0])
    assert evidence.standing()["revisions"] == {"namespaces": 0}


def test_the_kernels_route(town: Town) -> None:
    written(town)
    inside, outside = str(town.parties["p1"].ips[4]), str(town.parties["X"].ips[4])
    found = path(str(town.parties["p0"].ips[4]), inside, interface(town, "p0"), town.node.netns)
    assert (found["dev"], found["to"], found["type"]) == (interface(town, "p1"), f"{inside}/32", "unicast")
    found = path("", outside, "", town.node.netns)
    assert (found["dev"], found["mtu"]) == ("eth0", 1500)
    found = path("", "192.0.2.1", "", town.node.netns)
    assert (found["to"], found["via"]) == ("0.0.0.0/0", outside)
    assert found["route"].startswith(f"default via {outside} dev eth0")
    six = path(str(town.parties["p0"].ips[6]), str(town.parties["p1"].ips[6]), interface(town, "p0"), town.node.netns)
    assert six["dev"] == interface(town, "p1")


@pytest.mark.parametrize(("kind", "error"), [("unreachable", "No route to host"), ("prohibit", "Permission denied")])
def test_a_destination_without_a_way(town: Town, kind: str, error: str) -> None:
    town.ip("node", "route", "add", kind, "192.0.2.0/24")
    try:
        assert path("", "192.0.2.1", "", town.node.netns) == {"error": error}
    finally:
        town.ip("node", "route", "del", kind, "192.0.2.0/24")


def test_an_interface_that_is_not_there(ns: Ns) -> None:
    with pytest.raises(NotFound):
        path("10.0.0.1", "10.0.0.2", "cali0", ns.path)
    with pytest.raises(ConfigError):
        path("", "nowhere", "", ns.path)
