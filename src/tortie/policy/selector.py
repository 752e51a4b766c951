"""Calico's selector language: `app == "web" && projectcalico.org/namespace in {"red", "blue"}`.

    selector := nothing | or                                   nothing means all()
    or       := and ( "||" and )*
    and      := unary ( "&&" unary )*
    unary    := "!"* primary                                   ! takes in the whole comparison that follows
    primary  := has(label) | all() | global() | "(" or ")"
              | label ( "==" | "!=" | "contains" | "starts with" | "ends with" ) string
              | label ( "in" | "not in" ) "{" [ string ( "," string )* [","] ] "}"

A label is letters, digits and `_./-`; a string is in single or double quotes and knows no escapes; between the tokens
stand spaces and tabs. The words of the language are operators only directly after a label, so `in in {"x"}` is fine.
What a selector means is in `terms`, whose names are offered here too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NoReturn

from tortie.base.errors import ConfigError
from tortie.policy.terms import (
    LABEL,
    MAX_DEPTH,
    MAX_LABEL,
    All,
    And,
    Chain,
    Comparison,
    Contains,
    EndsWith,
    Eq,
    Global,
    Has,
    In,
    LabelTerm,
    Membership,
    Ne,
    Not,
    NotIn,
    Or,
    Restriction,
    Selector,
    StartsWith,
    clip,
    conj,
    disj,
    negate,
)

__all__ = [
    "MAX_DEPTH",
    "MAX_LABEL",
    "MAX_OPEN",
    "All",
    "And",
    "Chain",
    "Comparison",
    "Contains",
    "EndsWith",
    "Eq",
    "Global",
    "Has",
    "In",
    "LabelTerm",
    "Membership",
    "Ne",
    "Not",
    "NotIn",
    "Or",
    "Restriction",
    "Selector",
    "StartsWith",
    "conj",
    "disj",
    "negate",
    "parse",
]

MAX_OPEN = 512  # parentheses at a time; the 1024 characters that the API admits hold no more than 509

_BLANK = re.compile(r"[ \t]*+")
_NOTS = re.compile(r"[! \t]*+")
_STRING = re.compile("""'[^']*+'|"[^"]*+["]""")
_HAS = re.compile(rf"has\([ \t]*+({LABEL.pattern})[ \t]*+\)")
_CALL = re.compile(r"(all|global)\([ \t]*+\)")
_OPERATOR = re.compile(rf"==|!=|(?:contains|starts[ \t]*+with|ends[ \t]*+with|not[ \t]*+in|in)(?!{LABEL.pattern})")


@lru_cache(maxsize=16384)
def parse(text: str) -> Selector:
    """The selector that `text` writes, in time linear in its length. Raises ConfigError saying what is wrong where."""
    reader = _Reader(text)
    try:
        return reader.selector()
    except ConfigError as err:
        raise err.within(f"selector {clip(text, reader.at)}, character {reader.at + 1}") from None


@dataclass(slots=True)
class _Group:
    """What stands between two parentheses, as far as it is read: the `||` operands, and the `&&` chain under way."""

    negated: bool = False  # whether `!` stands before the parenthesis
    done: list[Selector] = field(default_factory=list)
    chain: list[Selector] = field(default_factory=list)

    def split(self) -> None:
        self.done.append(conj(*self.chain))
        self.chain = []

    def whole(self) -> Selector:
        self.split()
        selector = disj(*self.done)
        return negate(selector) if self.negated else selector


class _Reader:
    """Reads one text from left to right, once. Open parentheses are on a list, not on Python's stack."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.label = ""  # the one last read

    def selector(self) -> Selector:
        self.take(_BLANK)
        if self.at == len(self.text):
            return All()
        group, outer = _Group(), list[_Group]()
        while True:
            negated = bool(self.taken(_NOTS).count("!") % 2)
            if self.take_word("("):
                if len(outer) == MAX_OPEN:
                    self.at -= 1
                    self.fail(f"at most {MAX_OPEN} parentheses open at a time")
                outer.append(group)
                group = _Group(negated)
                continue
            term = self.primary()
            group.chain.append(negate(term) if negated else term)
            while self.take_word(")", when=bool(outer)):
                inner, group = group, outer.pop()
                group.chain.append(inner.whole())
            if self.take_word("||"):
                group.split()
            elif not self.take_word("&&"):
                self.end(bool(outer))
                return group.whole()

    def end(self, open_: bool) -> None:
        if open_ or self.at < len(self.text):
            self.fail('"&&", "||" or ' + ('")"' if open_ else "the end"), _AFTER_TERM.get(self.found(), ""))

    def primary(self) -> Selector:
        if match := self.take(_HAS):
            return Has(match[1])
        if match := self.take(_CALL):
            return All() if match[1] == "all" else Global()
        if not (match := self.take(LABEL)):
            literal = _STRING.match(self.text, self.at)
            self.fail('a label, "has(label)", "all()" or "("', "label names are not quoted" if literal else "")
        self.label = match[0]
        if len(self.label) > MAX_LABEL:
            self.at = match.start()
            self.fail(f"a label of at most {MAX_LABEL} characters")
        return self.comparison()

    def comparison(self) -> Selector:
        self.take(_BLANK)
        operator = "".join(self.taken(_OPERATOR).split())
        if comparison := _COMPARISONS.get(operator):
            return comparison(self.label, self.string())
        if membership := _MEMBERSHIPS.get(operator):
            return membership(self.label, self.strings())
        if self.found() == "(":
            hint = _CALLS.get(self.label, "")
        else:
            hint = "negation is written !" if self.label == "not" else _AFTER_LABEL.get(self.found(), "")
        self.fail(f'an operator such as "==" or "in" after the label {clip(self.label)}', hint)

    def strings(self) -> frozenset[str]:
        if not self.take_word("{"):
            self.fail('"{"', 'a set is written {"x", "y"}')
        values: set[str] = set()
        while not self.take_word("}"):
            values.add(self.string('a value in quotes or "}"'))
            if not self.take_word(","):
                if not self.take_word("}"):
                    self.fail('"," or "}"')
                break
        return frozenset(values)

    def string(self, expected: str = "a value in quotes") -> str:
        self.take(_BLANK)
        if match := self.take(_STRING):
            return match[0][1:-1]
        if self.text.startswith(("'", '"'), self.at):
            self.fail(expected, "the quote that opens here is not closed")
        word = LABEL.match(self.text, self.at)
        self.fail(expected, f"put quotes around {clip(word[0])}" if word else "")

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The match of `pattern` here, if any, which is thereby read."""
        if match := pattern.match(self.text, self.at):
            self.at = match.end()
        return match

    def taken(self, pattern: re.Pattern[str]) -> str:
        return match[0] if (match := self.take(pattern)) else ""

    def take_word(self, word: str, when: bool = True) -> bool:
        """Whether `word` comes next, after blanks; if so it is read."""
        self.take(_BLANK)
        if not when or not self.text.startswith(word, self.at):
            return False
        self.at += len(word)
        return True

    def found(self) -> str:
        """The word or the one character that comes next; empty at the end."""
        match = LABEL.match(self.text, self.at)
        return match[0] if match else self.text[self.at : self.at + 1]

    def fail(self, expected: str, hint: str = "") -> NoReturn:
        found = self.found()
        if not hint and found in ("\n", "\r"):
            hint = "a selector is one line, with spaces and tabs between its words"
        elif not hint and self.text[max(0, self.at - 2) : self.at] in ("\\'", '\\"'):
            hint = "a backslash does not escape a quote: use the other kind of quote around the value"
        what = clip(found) if found else "the end"
        raise ConfigError(f"found {what}, expected {expected}" + (f"; {hint}" if hint else ""))


_COMPARISONS: dict[str, type[Comparison]] = {
    "==": Eq,
    "!=": Ne,
    "contains": Contains,
    "startswith": StartsWith,
    "endswith": EndsWith,
}
_MEMBERSHIPS: dict[str, type[Membership]] = {"in": In, "notin": NotIn}

# What people write instead: by the label before "(", by what stands after a label, by what stands after a whole test.
_CALLS = {
    "has": "the test is written has(label), with no space before the parenthesis and no quotes",
    "all": "the test is written all(), with no space before the parenthesis and nothing in it",
    "global": "the test is written global(), with no space before the parenthesis and nothing in it",
    "not": "negation is written !",
}
_AFTER_LABEL = {
    "=": "equality is written ==",
    "not": 'write not in {"x"} or != "x"',
    "<": "values are not ordered",
    ">": "values are not ordered",
    "": "to ask whether a label is there write has(label)",
}
_AFTER_TERM = {
    "&": '"and" is written &&',
    "and": '"and" is written &&',
    "AND": '"and" is written &&',
    ",": '"and" is written &&',
    "|": '"or" is written ||',
    "or": '"or" is written ||',
    "OR": '"or" is written ||',
    ")": "it closes a parenthesis that was not opened",
}
