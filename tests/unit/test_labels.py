"""The label index agrees with trying every selector on every item, while looking at few of them."""

from collections import ChainMap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.errors import NotFound
from tortie.policy.labels import LabelIndex, Match
from tortie.policy.selector import Eq, conj, parse

SELECTORS = [
    parse(text)
    for text in (
        "all()",
        "!all()",
        "has(a)",
        "!has(a)",
        "a == 'x'",
        "a != 'x'",
        "a in {'x', 'y'}",
        "a in {}",
        "a not in {'x'}",
        "a contains 'x'",
        "a == 'x' && b == 'y'",
        "a == 'x' && has(b)",
        "a == 'x' && a == 'y'",
        "a == 'x' || b == 'x'",
        "a == 'x' || a == 'y' && !has(b)",
        "!(has(a) || has(b))",
    )
]
LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["x", "y", ""]), max_size=3)
IDS = st.sampled_from(["i", "j", "k"])
PARENTS = st.sampled_from(["p", "q"])
OPERATIONS = st.one_of(
    st.tuples(st.just("set_item"), IDS, LABELS, st.lists(PARENTS, max_size=3)),
    st.tuples(st.just("remove_item"), IDS),
    st.tuples(st.just("set_parent"), PARENTS, LABELS),
    st.tuples(st.just("remove_parent"), PARENTS),
    st.tuples(st.just("set_selector"), IDS, st.sampled_from(SELECTORS)),
    st.tuples(st.just("remove_selector"), IDS),
)


class Plain:
    """What the index should say, by trying everything every time."""

    def __init__(self):
        self.items, self.parents, self.selectors = {}, {}, {}

    def apply(self, operation, key, *rest):
        verb, kind = operation.split("_")
        table = {"item": self.items, "parent": self.parents, "selector": self.selectors}[kind]
        if verb == "set":
            table[key] = rest
        else:
            table.pop(key, None)

    def labels_of(self, item_id):
        labels, parents = self.items[item_id]
        return dict(ChainMap(labels, *[self.parents[parent][0] for parent in parents if parent in self.parents]))

    def matches(self):
        return {
            (selector_id, item_id)
            for selector_id, (selector,) in self.selectors.items()
            for item_id in self.items
            if selector.matches(self.labels_of(item_id))
        }


def apply(index, operation):
    name, *arguments = operation
    return getattr(index, name)(*arguments)


def all_matches(index):
    by_selector = {(selector_id, item_id) for selector_id in "ijk" for item_id in index.matching_items(selector_id)}
    by_item = {(selector_id, item_id) for item_id in "ijk" for selector_id in index.matching_selectors(item_id)}
    assert by_selector == by_item
    return by_selector


@settings(max_examples=40, deadline=None, report_multiple_bugs=False)
@given(operations=st.lists(OPERATIONS, min_size=15, max_size=30))
def test_agrees_with_trying_everything(operations):
    index, plain = LabelIndex(), Plain()
    told = set()
    for operation in operations:
        changes = apply(index, operation)
        plain.apply(*operation)
        assert len({change[:2] for change in changes}) == len(changes), "one change per pair"
        for selector_id, item_id, started in changes:
            assert ((selector_id, item_id) in told) is not started, "a change is a change"
            told ^= {(selector_id, item_id)}
        assert told == plain.matches() == all_matches(index)
        assert {item_id: index.labels_of(item_id) for item_id in plain.items} == {
            item_id: plain.labels_of(item_id) for item_id in plain.items
        }
        if operation[0].startswith("set"):
            assert apply(index, operation) == [], "what is set is set"
    for table, remove in (
        (plain.items, index.remove_item),
        (plain.parents, index.remove_parent),
        (plain.selectors, index.remove_selector),
    ):
        for key in table:
            remove(key)
    empty = vars(LabelIndex())
    for name, value in vars(index).items():
        if name != "_arrivals":
            assert getattr(value, "__dict__", value) == getattr(empty[name], "__dict__", empty[name]), "nothing is left"


@settings(max_examples=50, deadline=None)
@given(
    data=st.data(), state=st.dictionaries(st.tuples(st.sampled_from(["item", "parent", "selector"]), IDS), st.none())
)
def test_the_order_of_arrival_does_not_matter(data, state):
    operations = []
    for kind, key in state:
        match kind:
            case "item":
                operations.append(("set_item", key, data.draw(LABELS), data.draw(st.lists(IDS, max_size=2))))
            case "parent":
                operations.append(("set_parent", key, data.draw(LABELS)))
            case "selector":
                operations.append(("set_selector", key, data.draw(st.sampled_from(SELECTORS))))
    one, other = LabelIndex(), LabelIndex()
    for operation in operations:
        apply(one, operation)
    for operation in data.draw(st.permutations(operations)):
        apply(other, operation)
    assert all_matches(one) == all_matches(other)


def test_changes_come_by_arrival_of_the_selector_then_of_the_item():
    index = LabelIndex()
    for selector_id in ("second", "first"):
        index.set_selector(selector_id, parse("has(pcns.team)"))
    for item_id in ("z", "a", "m"):
        assert index.set_item(item_id, {}, ["kns.red"]) == []
    started = [Match(selector_id, item_id, True) for selector_id in ("second", "first") for item_id in ("z", "a", "m")]
    assert index.set_parent("kns.red", {"pcns.team": "red"}) == started
    assert index.remove_selector("second") == [Match("second", item_id, False) for item_id in ("z", "a", "m")]
    assert index.remove_parent("kns.red") == [Match("first", item_id, False) for item_id in ("z", "a", "m")]


def test_a_parent_may_change_its_labels():
    index = LabelIndex()
    index.set_selector("s", parse("a == 'x'"))
    index.set_item("i", {}, ["p"])
    assert index.set_parent("p", {"a": "x"}) == [Match("s", "i", True)]
    assert index.set_parent("p", {"a": "x"}) == []
    assert index.set_parent("p", {"a": "y"}) == [Match("s", "i", False)]
    assert index.labels_of("i") == {"a": "y"}


def test_own_labels_win_then_those_of_the_first_parent():
    index = LabelIndex()
    index.set_parent("p", {"a": "p", "b": "p", "c": "p"})
    index.set_parent("q", {"b": "q", "c": "q", "d": "q"})
    index.set_item("i", {"a": "own"}, ["q", "p"])
    assert index.labels_of("i") == {"a": "own", "b": "q", "c": "q", "d": "q"}
    index.set_item("i", {"a": "own"}, ["p", "q"])
    assert index.labels_of("i") == {"a": "own", "b": "p", "c": "p", "d": "q"}


def test_what_was_given_is_not_kept():
    index = LabelIndex()
    index.set_selector("s", parse("has(a)"))
    labels, inherited = {"b": "x"}, {"c": "x"}
    index.set_item("i", labels, ["p"])
    index.set_parent("p", inherited)
    labels["a"] = inherited["a"] = "x"
    assert index.labels_of("i") == {"b": "x", "c": "x"}
    matching = index.matching_items("s")
    assert [change.started for change in index.set_item("i", labels, ["p"])] == [True]
    assert matching == frozenset()


def test_what_is_not_there():
    index = LabelIndex()
    assert index.remove_item("i") == index.remove_parent("p") == index.remove_selector("s") == []
    assert index.matching_items("s") == index.matching_selectors("i") == frozenset()
    with pytest.raises(NotFound):
        index.labels_of("i")


class Counted(Eq):
    """An equality that counts how often it is asked."""

    asked = 0

    def matches(self, labels):
        Counted.asked += 1
        return super().matches(labels)


def asked_during(change):
    before = Counted.asked
    change()
    return Counted.asked - before


def test_a_change_touches_candidates_only():
    index = LabelIndex()
    for n in range(2000):
        index.set_selector(n, Counted("a", f"v{n}"))
    assert asked_during(lambda: index.set_item("first", {"a": "v7", "b": "v8"})) == 1
    assert asked_during(lambda: [index.set_item(n, {"a": f"v{n}"}) for n in range(2000)]) == 2000
    assert asked_during(lambda: index.set_item(5, {"a": "v6"})) == 1
    assert asked_during(lambda: index.set_item(5, {"a": "v6"}, ["parent without labels"])) == 0
    assert index.matching_selectors(5) == {6}
    assert asked_during(lambda: index.set_selector("new", Counted("a", "v9"))) == 1
    assert index.matching_items("new") == {9}
    assert asked_during(lambda: index.set_selector("new", Counted("a", "nobody"))) == 0
    assert asked_during(lambda: index.set_selector("new", conj(Counted("a", "v1"), Eq("a", "v2")))) == 0
    assert index.matching_items("new") == frozenset()


ORCHESTRATOR = "projectcalico.org/orchestrator"


def test_the_most_telling_label_decides_which_items_are_tried():
    index = LabelIndex()
    for n in range(1000):
        index.set_item(n, {ORCHESTRATOR: "k8s", "role": f"v{n % 100}"})
    selector = conj(Counted(ORCHESTRATOR, "k8s"), Eq("role", "v3"))
    assert asked_during(lambda: index.set_selector("s", selector)) == 10
    assert index.matching_items("s") == set(range(3, 1000, 100))


def test_selectors_that_come_before_all_items_do_not_crowd_together():
    index = LabelIndex()
    for n in range(1000):
        index.set_selector(n, conj(Counted(ORCHESTRATOR, "k8s"), Eq("role", f"v{n}")))
    assert asked_during(lambda: index.set_item("i", {ORCHESTRATOR: "k8s", "role": "v500"})) <= 2
    assert index.matching_selectors("i") == {500}
