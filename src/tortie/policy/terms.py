"""What a selector is once read: an immutable tree of tests on labels, which can be asked, printed and rewritten.

`str(selector)` is the canonical text. It parses to the same tree, so it decides what is equal, and `uid` is derived
from it. For that to hold no double negation and no chain of one exists: build with `negate`, `conj` and `disj`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from tortie.base.errors import ConfigError

MAX_LABEL = 512  # characters; the language's limit
# The API admits selectors of 1024 characters, which can be at most 205 levels deep. The limit lies above that, and far
# below Python's recursion limit: walking the tree takes one frame a level, and must go on doing so.
MAX_DEPTH = 256

LABEL = re.compile("[A-Za-z0-9_./-]+")


@dataclass(frozen=True, slots=True)
class Restriction:
    """What must hold of one label for a selector to have a chance: a reason not to try it on everything."""

    must_be_present: bool = False
    must_be_absent: bool = False
    values: frozenset[str] | None = None  # the label has one of these; None: any

    @property
    def impossible(self) -> bool:
        """Nothing can meet it, so the selector matches nothing."""
        return (self.must_be_present and self.must_be_absent) or (self.values is not None and not self.values)


class Selector(ABC):
    """An immutable, hashable predicate on labels; `str()` of it is the canonical text."""

    depth: int = 1  # levels of the tree

    @abstractmethod
    def matches(self, labels: Mapping[str, str]) -> bool: ...

    @abstractmethod
    def write(self, out: list[str]) -> None:
        """Append the canonical text, in pieces."""

    @cached_property
    def text(self) -> str:
        pieces: list[str] = []
        self.write(pieces)
        return "".join(pieces)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"parse({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Selector) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    @cached_property
    def uid(self) -> str:
        """Names the IP set of this selector, as Calico does: the same for the same canonical text, everywhere."""
        # A lone surrogate has no UTF-8 form, but may come out of JSON; it must not crash us here.
        digest = hashlib.sha224(f"s:{self.text}".encode("utf-8", "surrogatepass")).digest()
        return "s:" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")

    def prefixed(self, prefix: str) -> Selector:
        """The same with `prefix` before every label name, to ask of labels inherited under that prefix."""

        def rename(leaf: Selector) -> Selector:
            return dataclasses.replace(leaf, label=prefix + leaf.label) if isinstance(leaf, LabelTerm) else leaf

        return self.transform(rename)

    def transform(self, rewrite: Callable[[Selector], Selector]) -> Selector:
        """The same tree with each leaf (all that is not `Not`, `And`, `Or`) replaced by what `rewrite` makes of it.

        What `rewrite` returns is not visited again, so it may hold leaves of the kind that it replaces.
        """
        return rewrite(self)

    def leaves(self) -> Iterator[Selector]:
        """The tests at the ends of the tree, from left to right."""
        ahead: list[Selector] = [self]
        while ahead:
            match ahead.pop():
                case Not(operand=operand):
                    ahead.append(operand)
                case Chain(operands=operands):
                    ahead.extend(reversed(operands))
                case leaf:
                    yield leaf

    def labels(self) -> frozenset[str]:
        """The names of the labels it looks at."""
        return frozenset(leaf.label for leaf in self.leaves() if isinstance(leaf, LabelTerm))

    def restrictions(self) -> Mapping[str, Restriction]:
        """Per label a necessary, not a sufficient, condition of a match. A label that is not there is unrestricted."""
        return {}


@dataclass(frozen=True, eq=False, repr=False)
class All(Selector):
    """`all()`: true of everything that has labels at all, be they none."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        return True

    def write(self, out: list[str]) -> None:
        out.append("all()")


@dataclass(frozen=True, eq=False, repr=False)
class Global(Selector):
    """`global()`: true here; in a namespaceSelector it means what has no namespace, by translation beforehand."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        return True

    def write(self, out: list[str]) -> None:
        out.append("global()")


@dataclass(frozen=True, eq=False, repr=False)
class LabelTerm(Selector):
    """A leaf about one label. Raises ConfigError where the language has no way to write the label or a value."""

    label: str

    def __post_init__(self) -> None:
        if len(self.label) > MAX_LABEL or not LABEL.fullmatch(self.label):
            raise ConfigError(
                f"{clip(self.label)} cannot be a label in a selector: "
                f"that is 1 to {MAX_LABEL} letters, digits and the characters _ . / -"
            )


@dataclass(frozen=True, eq=False, repr=False)
class Has(LabelTerm):
    """`has(a)`"""

    def matches(self, labels: Mapping[str, str]) -> bool:
        return self.label in labels

    def restrictions(self) -> Mapping[str, Restriction]:
        return {self.label: Restriction(must_be_present=True)}

    def write(self, out: list[str]) -> None:
        out.append(f"has({self.label})")


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(LabelTerm):
    """`label operator "value"`; only `!=` holds of a missing label."""

    operator: ClassVar[str]
    value: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _expressible(self.value)

    def restrictions(self) -> Mapping[str, Restriction]:
        return {self.label: Restriction(must_be_present=True)}

    def write(self, out: list[str]) -> None:
        out.append(f"{self.label} {self.operator} {_quote(self.value)}")


class Eq(Comparison):
    """`a == "b"`"""

    operator = "=="

    def matches(self, labels: Mapping[str, str]) -> bool:
        return labels.get(self.label) == self.value

    def restrictions(self) -> Mapping[str, Restriction]:
        return {self.label: Restriction(must_be_present=True, values=frozenset((self.value,)))}


class Ne(Comparison):
    """`a != "b"`: also true when the label is missing."""

    operator = "!="

    def matches(self, labels: Mapping[str, str]) -> bool:
        return labels.get(self.label) != self.value

    def restrictions(self) -> Mapping[str, Restriction]:
        return {}


class Contains(Comparison):
    """`a contains "b"`"""

    operator = "contains"

    def matches(self, labels: Mapping[str, str]) -> bool:
        return (value := labels.get(self.label)) is not None and self.value in value


class StartsWith(Comparison):
    """`a starts with "b"`"""

    operator = "starts with"

    def matches(self, labels: Mapping[str, str]) -> bool:
        return (value := labels.get(self.label)) is not None and value.startswith(self.value)


class EndsWith(Comparison):
    """`a ends with "b"`"""

    operator = "ends with"

    def matches(self, labels: Mapping[str, str]) -> bool:
        return (value := labels.get(self.label)) is not None and value.endswith(self.value)


@dataclass(frozen=True, eq=False, repr=False)
class Membership(LabelTerm):
    """`label operator {"value", ...}`; only `not in` holds of a missing label."""

    operator: ClassVar[str]
    values: frozenset[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in self.values:
            _expressible(value)

    def write(self, out: list[str]) -> None:
        # Code points sort as their UTF-8 bytes do, by which Calico sorts.
        out.append(f"{self.label} {self.operator} {{{', '.join(map(_quote, sorted(self.values)))}}}")


class In(Membership):
    """`a in {"x", "y"}`"""

    operator = "in"

    def matches(self, labels: Mapping[str, str]) -> bool:
        return labels.get(self.label) in self.values

    def restrictions(self) -> Mapping[str, Restriction]:
        return {self.label: Restriction(must_be_present=True, values=self.values)}


class NotIn(Membership):
    """`a not in {"x", "y"}`: also true when the label is missing."""

    operator = "not in"

    def matches(self, labels: Mapping[str, str]) -> bool:
        return labels.get(self.label) not in self.values


@dataclass(frozen=True, eq=False, repr=False)
class Not(Selector):
    """`!operand`, the operand not being a `Not` itself: use `negate`."""

    operand: Selector
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.operand, Not):
            raise ValueError("a double negation: use negate()")
        object.__setattr__(self, "depth", _level_above((self.operand,)))

    def matches(self, labels: Mapping[str, str]) -> bool:
        return not self.operand.matches(labels)

    def transform(self, rewrite: Callable[[Selector], Selector]) -> Selector:
        return negate(self.operand.transform(rewrite))

    def restrictions(self) -> Mapping[str, Restriction]:
        return {self.operand.label: Restriction(must_be_absent=True)} if isinstance(self.operand, Has) else {}

    def write(self, out: list[str]) -> None:
        out.append("!")
        self.operand.write(out)


@dataclass(frozen=True, eq=False, repr=False)
class Chain(Selector):
    """Two or more operands joined by one operator. A chain within a chain stays one, as the parentheses had it."""

    operator: ClassVar[str]
    operands: tuple[Selector, ...]
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        if len(self.operands) < 2:
            raise ValueError("a chain of fewer than two: use conj() or disj()")
        object.__setattr__(self, "depth", _level_above(self.operands))

    def transform(self, rewrite: Callable[[Selector], Selector]) -> Selector:
        operands: list[Selector] = []
        for operand in self.operands:
            operands.append(operand.transform(rewrite))  # noqa: PERF401 - a comprehension is a second frame
        return type(self)(tuple(operands))

    def write(self, out: list[str]) -> None:
        before = "("
        for operand in self.operands:
            out.append(before)
            operand.write(out)
            before = f" {self.operator} "
        out.append(")")


class And(Chain):
    """`(a && b)`"""

    operator = "&&"

    def matches(self, labels: Mapping[str, str]) -> bool:
        for operand in self.operands:  # noqa: SIM110 - all() over a generator takes twice the time
            if not operand.matches(labels):
                return False
        return True

    def restrictions(self) -> Mapping[str, Restriction]:
        together: dict[str, list[Restriction]] = {}
        for operand in self.operands:
            for label, restriction in operand.restrictions().items():
                together.setdefault(label, []).append(restriction)
        return {label: _every(restrictions) for label, restrictions in together.items()}


class Or(Chain):
    """`(a || b)`"""

    operator = "||"

    def matches(self, labels: Mapping[str, str]) -> bool:
        for operand in self.operands:  # noqa: SIM110 - as above
            if operand.matches(labels):
                return True
        return False

    def restrictions(self) -> Mapping[str, Restriction]:
        branches: list[Mapping[str, Restriction]] = []
        for operand in self.operands:
            branches.append(operand.restrictions())  # noqa: PERF401 - a comprehension is a second frame
        shared = [label for label in branches[0] if all(label in branch for branch in branches)]
        merged = {label: _either([branch[label] for branch in branches]) for label in shared}
        return {label: restriction for label, restriction in merged.items() if restriction != Restriction()}


def conj(*selectors: Selector) -> Selector:
    """True where all are: what `(a) && (b)` parses to. Of one it is that one, of none `all()`."""
    return And(selectors) if len(selectors) > 1 else selectors[0] if selectors else All()


def disj(*selectors: Selector) -> Selector:
    """True where any is: what `(a) || (b)` parses to. Of one it is that one, of none `!all()`."""
    return Or(selectors) if len(selectors) > 1 else selectors[0] if selectors else Not(All())


def negate(selector: Selector) -> Selector:
    """True where `selector` is not: what `!(a)` parses to."""
    return selector.operand if isinstance(selector, Not) else Not(selector)


def _every(restrictions: Iterable[Restriction]) -> Restriction:
    """What holds where all of these do."""
    present = absent = False
    values: frozenset[str] | None = None
    for one in restrictions:
        present |= one.must_be_present
        absent |= one.must_be_absent
        if one.values is not None:
            values = one.values if values is None else values & one.values
    return Restriction(present, absent, values)


def _either(restrictions: list[Restriction]) -> Restriction:
    """What holds where at least one of these does."""
    sets = [one.values for one in restrictions if one.values is not None]
    return Restriction(
        all(one.must_be_present for one in restrictions),
        all(one.must_be_absent for one in restrictions),
        frozenset().union(*sets) if len(sets) == len(restrictions) else None,
    )


def _level_above(operands: Iterable[Selector]) -> int:
    depth = 1 + max(operand.depth for operand in operands)
    if depth > MAX_DEPTH:
        raise ConfigError(f"a selector is nested deeper than {MAX_DEPTH} levels; write it flatter")
    return depth


def _expressible(value: str) -> None:
    if '"' in value and "'" in value:
        raise ConfigError(f"the value {clip(value)} holds both kinds of quote, which a selector has no way to write")


def _quote(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


def clip(text: str, at: int = 0) -> str:
    """At most 60 characters of `text` around `at`, on one line, in quotes."""
    start, end = max(0, at - 40), max(0, at - 40) + 60
    return ("…" if start else "") + repr(text[start:end]) + ("…" if end < len(text) else "")
