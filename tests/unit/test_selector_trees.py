"""Selectors against trees of plain tuples, which have a meaning and many spellings of their own."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.policy.selector import (
    All,
    Contains,
    EndsWith,
    Eq,
    Global,
    Has,
    In,
    Ne,
    NotIn,
    StartsWith,
    conj,
    disj,
    negate,
    parse,
)

LABELS = st.sampled_from(["a", "b", "in", "has", "not", "projectcalico.org/name"])
VALUES = st.sampled_from(["", "x", "xy", "yx", "it's", 'say "x"', " ", "a b", "\n", "é", "\U0001f408"])
LEAVES = st.one_of(
    st.sampled_from([("all",), ("global",)]),
    st.tuples(st.just("has"), LABELS),
    st.tuples(st.sampled_from(["==", "!=", "contains", "starts with", "ends with"]), LABELS, VALUES),
    st.tuples(st.sampled_from(["in", "not in"]), LABELS, st.frozensets(VALUES, max_size=3)),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.just("!"), inner),
        st.tuples(st.sampled_from(["&&", "||"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=8,
)
LABELLED = st.dictionaries(LABELS, VALUES, max_size=4)

NODES = {
    "has": Has,
    "==": Eq,
    "!=": Ne,
    "contains": Contains,
    "starts with": StartsWith,
    "ends with": EndsWith,
    "in": In,
    "not in": NotIn,
}


def built(tree):
    match tree:
        case ("all",):
            return All()
        case ("global",):
            return Global()
        case ("!", inner):
            return negate(built(inner))
        case ("&&", inner):
            return conj(*map(built, inner))
        case ("||", inner):
            return disj(*map(built, inner))
        case (kind, *fields):
            return NODES[kind](*fields)


def holds(tree, labels):
    match tree:
        case ("all",) | ("global",):
            return True
        case ("!", inner):
            return not holds(inner, labels)
        case ("&&", inner):
            return all(holds(one, labels) for one in inner)
        case ("||", inner):
            return any(holds(one, labels) for one in inner)
        case ("!=", label, value):
            return not holds(("==", label, value), labels)
        case ("not in", label, values):
            return not holds(("in", label, values), labels)
        case (_, label, *_) if label not in labels:
            return False
        case ("has", _):
            return True
        case ("==", label, value):
            return labels[label] == value
        case ("in", label, values):
            return any(labels[label] == value for value in values)
        case ("contains", label, value):
            return labels[label].find(value) >= 0
        case ("starts with", label, value):
            return labels[label][: len(value)] == value
        case ("ends with", label, value):
            return labels[label][len(labels[label]) - len(value) :] == value and len(value) <= len(labels[label])


def spelled(tree, choose):
    """One of the many ways to write a tree; `choose(options)` picks."""
    gap = choose(["", " ", "\t", "  "])

    def quoted(value):
        quotes = [quote for quote in "'\"" if quote not in value]
        return (quote := choose(quotes)) + value + quote

    match tree:
        case (("all" | "global") as call,):
            text = f"{call}({gap})"
        case ("has", label):
            text = f"has({gap}{label}{gap})"
        case ("!", inner):
            text = f"!{gap}{choose(['', '!!', '! !'])}{spelled(inner, choose)}"
        case (("&&" | "||") as operator, inner):
            return f"({(gap + operator + gap).join(spelled(one, choose) for one in inner)}{gap})"
        case (("in" | "not in") as operator, label, values):
            values = [quoted(value) for value in (*values, *values)] if choose([True, False]) else map(quoted, values)
            literal = f"{gap},{gap}".join(values)
            comma = choose(["", ","]) if literal else ""
            text = f"{label} {choose([operator, operator.replace(' ', '')])}{gap}{{{gap}{literal}{comma}{gap}}}"
        case (("==" | "!=") as operator, label, value):
            text = f"{label}{gap}{operator}{gap}{quoted(value)}"
        case (operator, label, value):
            text = f"{label}\t{choose([operator, operator.replace(' ', '')])}{gap}{quoted(value)}"
    return f"({gap}{text}{gap})" if choose([True, False]) else text


@settings(max_examples=50, deadline=None)
@given(tree=TREES, labels=LABELLED)
def test_a_selector_means_what_its_tree_says(tree, labels):
    assert built(tree).matches(labels) is holds(tree, labels)


@settings(max_examples=50, deadline=None)
@given(tree=TREES, data=st.data())
def test_every_spelling_reads_as_the_same_selector(tree, data):
    text = spelled(tree, lambda options: data.draw(st.sampled_from(options)))
    selector = parse(text)
    assert selector == built(tree)
    assert hash(selector) == hash(built(tree))


@settings(max_examples=50, deadline=None)
@given(tree=TREES)
def test_canonical_text_reads_back(tree):
    selector = built(tree)
    again = parse(str(selector))
    assert again == selector
    assert str(again) == str(selector)
    assert again.uid == selector.uid


@settings(max_examples=50, deadline=None)
@given(left=TREES, right=TREES)
def test_joining_is_what_joining_the_texts_would_give(left, right):
    a, b = built(left), built(right)
    assert conj(a, b) == parse(f"({a}) && ({b})")
    assert disj(a, b) == parse(f"({a}) || ({b})")
    assert negate(a) == parse(f"!({a})")
    assert negate(negate(a)) == a


@settings(max_examples=50, deadline=None)
@given(tree=TREES, labels=LABELLED)
def test_restrictions_are_necessary(tree, labels):
    selector = built(tree)
    assert selector.restrictions().keys() <= selector.labels()
    if selector.matches(labels):
        for label, restriction in selector.restrictions().items():
            assert not restriction.impossible
            assert not restriction.must_be_present or label in labels
            assert not restriction.must_be_absent or label not in labels
            assert restriction.values is None or labels[label] in restriction.values
