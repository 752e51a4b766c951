"""The selector language: what is read, what it means, how it prints, and what is said of what cannot be read."""

import dataclasses
import string
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.policy.selector import (
    MAX_DEPTH,
    MAX_OPEN,
    All,
    And,
    Contains,
    Eq,
    Global,
    Has,
    In,
    Ne,
    Not,
    NotIn,
    Or,
    Restriction,
    conj,
    disj,
    negate,
    parse,
)

# Calico's behaviour, row by row: text, labels, whether it matches, canonical text.
READ = {
    "S01": ("a == 'b'", {"a": "b"}, True, 'a == "b"'),
    "S02": ("a == 'b'", {"a": "c"}, False, 'a == "b"'),
    "S03": ("a == 'b'", {}, False, 'a == "b"'),
    "S04": ("a != 'b'", {"a": "c"}, True, 'a != "b"'),
    "S05": ("a != 'b'", {"a": "b"}, False, 'a != "b"'),
    "S06": ("a != 'b'", {}, True, 'a != "b"'),
    "S07": ('a=="b"', {"a": "b"}, True, 'a == "b"'),
    "S08": ("a == ''", {"a": ""}, True, 'a == ""'),
    "S09": ("a == ''", {}, False, 'a == ""'),
    "S10": ("a != ''", {}, True, 'a != ""'),
    "S11": ("a in {'x','y'}", {"a": "y"}, True, 'a in {"x", "y"}'),
    "S12": ("a in {'x','y'}", {}, False, 'a in {"x", "y"}'),
    "S13": ("a not in {'x'}", {"a": "x"}, False, 'a not in {"x"}'),
    "S14": ("a not in {'x'}", {}, True, 'a not in {"x"}'),
    "S15": ("a notin {'x'}", {}, True, 'a not in {"x"}'),
    "S16": ("a in {}", {"a": "x"}, False, "a in {}"),
    "S17": ("a not in {}", {"a": "x"}, True, "a not in {}"),
    "S18": ("a in {'x',}", {"a": "x"}, True, 'a in {"x"}'),
    "S22": ("has(a)", {"a": ""}, True, "has(a)"),
    "S23": ("has(a)", {}, False, "has(a)"),
    "S24": ("has( a )", {"a": "1"}, True, "has(a)"),
    "S26": ("!has(a)", {}, True, "!has(a)"),
    "S27": ("!has(a)", {"a": "1"}, False, "!has(a)"),
    "S28": ("!!has(a)", {"a": "1"}, True, "has(a)"),
    "S31": ("a contains 'bc'", {"a": "abcd"}, True, 'a contains "bc"'),
    "S32": ("a contains ''", {}, False, 'a contains ""'),
    "S33": ("a contains 'B'", {"a": "b"}, False, 'a contains "B"'),
    "S34": ("a starts with 'ab'", {"a": "abc"}, True, 'a starts with "ab"'),
    "S35": ("a startswith 'ab'", {"a": "xab"}, False, 'a starts with "ab"'),
    "S36": ("a endswith 'bc'", {}, False, 'a ends with "bc"'),
    "S39": ("all()", {}, True, "all()"),
    "S41": ("", {}, True, "all()"),
    "S42": (" \t ", {"q": "r"}, True, "all()"),
    "S43": ("!all()", {}, False, "!all()"),
    "S44": ("global()", {"projectcalico.org/namespace": "ns1"}, True, "global()"),
    "S45": ("!global()", {}, False, "!global()"),
    "S46": ("a == '1' && b == '2'", {"a": "1", "b": "2"}, True, '(a == "1" && b == "2")'),
    "S47": ("a == '1' && b == '2'", {"a": "1"}, False, '(a == "1" && b == "2")'),
    "S48": ("a == '1' || b == '2'", {"b": "2"}, True, '(a == "1" || b == "2")'),
    "S49": ("a == '1' || b == '2' && c == '3'", {"a": "1"}, True, '(a == "1" || (b == "2" && c == "3"))'),
    "S50": ("(a == '1' || b == '2') && c == '3'", {"a": "1"}, False, '((a == "1" || b == "2") && c == "3")'),
    "S51": ("!a == 'b'", {"a": "b"}, False, '!a == "b"'),
    "S52": ("!a == 'b'", {}, True, '!a == "b"'),
    "S53": ("!a != 'b'", {"a": "b"}, True, '!a != "b"'),
    "S54": ("!a != 'b'", {}, False, '!a != "b"'),
    "S55": ("!(a == '1' || b == '2')", {"c": "3"}, True, '!(a == "1" || b == "2")'),
    "S56": ("!(has(a) && has(b))", {"a": "1"}, True, "!(has(a) && has(b))"),
    "S57": ("! a == '1' && b == '2'", {"a": "1", "b": "2"}, False, '(!a == "1" && b == "2")'),
    "S58": ('a == "it\'s"', {"a": "it's"}, True, 'a == "it\'s"'),
    "S59": ("a == '\"'", {"a": '"'}, True, "a == '\"'"),
    "S61": (
        "projectcalico.org/namespace == 'default'",
        {"projectcalico.org/namespace": "default"},
        True,
        'projectcalico.org/namespace == "default"',
    ),
    "S62": ("in == 'x'", {"in": "x"}, True, 'in == "x"'),
    "S63": ("contains contains 'x'", {"contains": "xx"}, True, 'contains contains "x"'),
    "S64": ("has == 'x'", {"has": "x"}, True, 'has == "x"'),
    "S65": ("-a == 'b'", {"-a": "b"}, True, '-a == "b"'),
    "S66": ("A == 'b'", {"a": "b"}, False, 'A == "b"'),
}

# What cannot be read: text, the character that the error names, and words that it must hold.
REFUSED = {
    "S19": ("a in {,'x'}", 7, "found ',', expected a value in quotes or \"}\""),
    "S20": ("a in {'x' 'y'}", 11, 'expected "," or "}"'),
    "S21": ("a in 'x'", 6, 'a set is written {"x", "y"}'),
    "S25": ("has (a)", 5, "no space before the parenthesis"),
    "S29": ("has('a')", 4, "no quotes"),
    "S30": ("has()", 4, "has(label)"),
    "S37": ("a ends withs 'x'", 3, "found 'ends', expected an operator"),
    "S38": ("a contains b", 12, "put quotes around 'b'"),
    "S40": ("all ()", 5, "no space before the parenthesis"),
    "S60": ("a == 'b\\'c'", 10, "a backslash does not escape a quote"),
    "S67": ("a", 2, "found the end, expected an operator"),
    "S68": ("a = 'b'", 3, "equality is written =="),
    "S69": ("a == b", 6, "put quotes around 'b'"),
    "S70": ("'a' == 'b'", 1, "label names are not quoted"),
    "S71": ("a == 'b' &&", 12, "found the end, expected a label"),
    "S72": ("a == 'b' & c == 'd'", 10, '"and" is written &&'),
    "S73": ("a == 'b' and c == 'd'", 10, '"and" is written &&'),
    "S74": ("a == 'b' c == 'd'", 10, 'expected "&&", "||" or the end'),
    "S75": ("(a == 'b'", 10, 'expected "&&", "||" or ")"'),
    "S76": ("a == 'b')", 9, "closes a parenthesis that was not opened"),
    "S77": ("a == 'b", 6, "the quote that opens here is not closed"),
    "S78": ("a$ == 'b'", 2, "found '$', expected an operator"),
    "S79": ("a == 'b' \n", 10, "a selector is one line"),
    "S80": ("a > '5'", 3, "values are not ordered"),
    "S81": ("a not 'b'", 3, 'write not in {"x"}'),
    "S82": ("has(a", 4, "has(label)"),
    "S83": ("not has(a)", 5, "negation is written !"),
    "newline between tokens": ("a\n== 'b'", 2, "a selector is one line"),
    "newline in a call": ("has(\na)", 4, "has(label)"),
    "no-break space": ("a\u00a0== 'b'", 2, "expected an operator"),
    "nothing in parentheses": ("a == 'b' && ()", 14, "expected a label"),
    "only a negation": ("!", 2, "found the end"),
    "or in words": ("has(a) or has(b)", 8, '"or" is written ||'),
    "not in words": ("not (has(a))", 5, "negation is written !"),
    "round brackets for a set": ("a in ('x')", 6, 'a set is written {"x", "y"}'),
    "word glued to a name": ("a in.b {'x'}", 3, "expected an operator"),
    "operator after a whole test": ("has(a) == 'b'", 8, 'expected "&&", "||" or the end'),
    "label of 513": ("x" * 513 + " == 'b'", 1, "at most 512 characters"),
    "label of 513 in has": ("has(" + "x" * 513 + ")", 519, "1 to 512 letters"),
    "513 parentheses": ("(" * 513, 513, "at most 512 parentheses open at a time"),
}

UIDS = {
    "all()": "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug",
    "has(a)": "s:JpRGrxZ4kdS6g7WoF-uG_g7qlh2ipw2zGYBMpQ",
    'a == "b"': "s:flMh0m0X_BowkAK_W3j3MgH8oQOsj3WxGDoXCQ",
    'a in {"a", "b"}': "s:9_m7wGzS6DBRW0E2xvXSZcEzJkXmVVNAsAI50Q",
    "!(has(b) || !has(a))": "s:Iss0uCleLYv1GSv_pNm7hAO58kE9jAx1NKyG3Q",
    '!(a == "b" && !c != "d")': "s:lh3haoY1ikTRkd4UZu0nWSaIBknYLPJLX16d-w",
}


def test_no_row_is_forgotten():
    rows = [row for row in (*READ, *REFUSED) if row.startswith("S")]
    assert sorted(rows) == [f"S{n:02}" for n in range(1, 84)]


@pytest.mark.parametrize("row", READ)
def test_what_is_read(row):
    text, labels, expected, canonical = READ[row]
    selector = parse(text)
    assert selector.matches(labels) is expected
    assert str(selector) == canonical
    assert parse(canonical) == selector


@pytest.mark.parametrize("row", REFUSED)
def test_what_is_refused(row):
    text, character, words = REFUSED[row]
    with pytest.raises(ConfigError) as refused:
        parse(text)
    message = str(refused.value)
    assert f", character {character}: " in message
    assert words in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("text", UIDS)
def test_uids_are_calicos(text):
    assert str(parse(text)) == text
    assert parse(text).uid == UIDS[text]


def test_a_value_without_utf8_form_has_a_uid():
    assert parse("a == '\ud800'").uid.startswith("s:")


def test_joining_few():
    a = Has("a")
    assert conj() == All()
    assert conj(a) is a
    assert disj(a) is a
    assert not disj().matches({"a": "b"})


PRESENT, ABSENT = Restriction(must_be_present=True), Restriction(must_be_absent=True)


def one_of(*values):
    return Restriction(must_be_present=True, values=frozenset(values))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all()", {}),
        ("a == 'x'", {"a": one_of("x")}),
        ("a in {'x','y'}", {"a": one_of("x", "y")}),
        ("a in {}", {"a": one_of()}),
        ("a contains ''", {"a": PRESENT}),
        ("a starts with 'x'", {"a": PRESENT}),
        ("a != 'x'", {}),
        ("a not in {'x'}", {}),
        ("!has(a)", {"a": ABSENT}),
        ("!a == 'x'", {}),
        ("!(!has(a) && has(b))", {}),
        ("a in {'x','y'} && a in {'y','z'} && has(b)", {"a": one_of("y"), "b": PRESENT}),
        ("a == 'x' && a == 'y'", {"a": one_of()}),
        ("has(a) && !has(a)", {"a": Restriction(must_be_present=True, must_be_absent=True)}),
        ("a == 'x' || a == 'y' && has(b)", {"a": one_of("x", "y")}),
        ("a == 'x' || has(a)", {"a": PRESENT}),
        ("!has(a) || !has(a) && has(b)", {"a": ABSENT}),
        ("a == 'x' || !has(a)", {}),
        ("a == 'x' || b == 'x'", {}),
    ],
)
def test_restrictions(text, expected):
    assert parse(text).restrictions() == expected


def test_only_contradictions_are_impossible():
    assert parse("a == 'x' && a == 'y'").restrictions()["a"].impossible
    assert parse("has(a) && !has(a)").restrictions()["a"].impossible
    assert not parse("a == 'x' && has(a)").restrictions()["a"].impossible


def test_prefixed_renames_every_label_and_nothing_else():
    selector = parse("all() && (!has(a) || b == 'b') && c in {'c'} && !d contains 'd'")
    expected = parse("all() && (!has(pcns.a) || pcns.b == 'b') && pcns.c in {'c'} && !pcns.d contains 'd'")
    assert selector.prefixed("pcns.") == expected
    assert expected.labels() == {"pcns.a", "pcns.b", "pcns.c", "pcns.d"}
    assert selector.labels() == {"a", "b", "c", "d"}


def test_transform_rewrites_leaves_once():
    namespace = Has("projectcalico.org/namespace")

    def translated(leaf):
        match leaf:
            case All():
                return namespace
            case Global():
                return negate(namespace)
            case _:
                return leaf.prefixed("pcns.")

    assert parse("all()").transform(translated) == namespace
    assert parse("global()").transform(translated) == Not(namespace)
    assert parse("!global() || team == 'all()' && all()").transform(translated) == parse(
        "has(projectcalico.org/namespace) || pcns.team == 'all()' && has(projectcalico.org/namespace)"
    )


def test_what_has_no_text_cannot_be_built():
    for build in (
        lambda: Has(""),
        lambda: Has("a b"),
        lambda: Has("a\n"),
        lambda: Eq("a", "'\""),
        lambda: In("ü", set()),
    ):
        with pytest.raises(ConfigError):
            build()
    with pytest.raises(ConfigError):
        NotIn("a", frozenset({"x", "both ' and \""}))
    with pytest.raises(ConfigError):
        Has("a" * 510).prefixed("pcns.")
    for build in (lambda: Not(Not(All())), lambda: And((All(),)), lambda: Or(())):
        with pytest.raises(ValueError):
            build()


def test_selectors_are_values():
    assert len({parse("a == 'b'"), Eq("a", "b"), Ne("a", "b"), Contains("a", "b"), In("a", frozenset("b"))}) == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("a == 'b'").value = "c"


TOKENS = ["a", "has(a)", "has(", "all()", "global(", "in", "not in", "notin", "starts with", "==", "!=", "=", "!", "&&"]
TOKENS += [
    "||",
    "&",
    "|",
    "(",
    ")",
    "{",
    "}",
    ",",
    "'x'",
    '"y"',
    "'",
    '"',
    " ",
    "\t",
    "\n",
    "\\",
    "é",
    "\x00",
    "\ud800",
]


@settings(max_examples=100, deadline=None)
@given(
    text=st.one_of(st.lists(st.sampled_from(TOKENS), max_size=12).map("".join), st.text(string.printable, max_size=20))
)
def test_any_text_is_read_or_refused(text):
    try:
        selector = parse(text)
    except ConfigError as refused:
        message = str(refused)
    else:
        message = ""
        assert parse(str(selector)) == selector
    assert "\n" not in message


def test_nesting_is_bounded_by_an_error_not_by_the_stack():
    assert parse("(" * MAX_OPEN + "has(a)" + ")" * MAX_OPEN) == Has("a")
    deep = parse("(all() && " * (MAX_DEPTH - 1) + "has(a)" + ")" * (MAX_DEPTH - 1))
    assert deep.depth == MAX_DEPTH
    assert deep.matches({"a": ""})
    assert parse(str(deep)) == deep
    assert str(deep.prefixed("p.")) == str(deep).replace("(a)", "(p.a)")
    assert hash(deep) == hash(parse(str(deep)))
    assert repr(deep) == f"parse({str(deep)!r})"
    assert deep.labels() == deep.restrictions().keys() == {"a"}
    for nested in ("(all() && ", "!(all() && "):
        with pytest.raises(ConfigError, match="nested deeper than 256 levels"):
            parse(nested * MAX_OPEN + "has(a)" + ")" * MAX_OPEN)
    with pytest.raises(ConfigError, match="nested deeper"):
        conj(All(), deep)


def test_every_admissible_length_may_be_spent_on_nesting():
    levels = 1024 // len("!(all()&&)") - 1
    assert parse("!(all()&&" * levels + "all()" + ")" * levels).depth == 2 * levels + 1
    assert parse("(" * 509 + "all()" + ")" * 509) == All()


def steps(text):
    """Calls made to read a text, in Python and into C."""
    count = 0

    def note(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        parse.__wrapped__(text)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "shape",
    [
        lambda n: "&&".join(["has(a)"] * n),
        lambda n: "||".join(["a == 'b' && c != 'd'"] * n),
        lambda n: "&&".join(["!(((a in {'x','y'})))"] * n),
        lambda n: "a in {" + "'x'," * n + "}",
        lambda n: "a not in {" + ",".join(f"'{i}'" for i in range(n)) + "}",
    ],
)
def test_steps_grow_with_the_length(shape):
    once, twice, thrice = steps(shape(100)), steps(shape(200)), steps(shape(300))
    assert abs((thrice - twice) - (twice - once)) < 10
    assert once > 100, "or nothing was counted"


@pytest.mark.parametrize(
    "text",
    [
        " " * 1_000_000,
        "!" * 1_000_000 + "has(a)",
        "! " * 500_000 + "has(a)",
        "a" * 1_000_000,
        "(" * 1_000_000,
        "has(" + " " * 1_000_000,
        "has(" + "a" * 1_000_000,
        "has(" + "a" * 500 + " " * 1_000_000,
        "all(" + " " * 1_000_000 + ")",
        "a starts" + " " * 1_000_000,
        "a not" + "\t" * 1_000_000 + "in",
        "a == '" + "b" * 1_000_000,
        "a == '" + '"' * 1_000_000 + "'",
        "a in {'x'" + " " * 1_000_000,
        "(all() && " * 100 + "a == '" + "b" * 1_000_000 + "'" + ")" * 100,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_megabyte_of_anything(text):
    """Quadratic time would be minutes for each."""
    before, message = time.process_time(), ""
    try:
        parse.__wrapped__(text)
    except ConfigError as refused:
        message = str(refused)
    assert time.process_time() - before < 2
    assert len(message) < 400


def test_all_label_characters():
    name = string.ascii_letters + string.digits + "_./-"
    assert parse(f"has({name}) && {name} == 'x'").labels() == {name}
