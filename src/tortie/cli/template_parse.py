"""Reads templates of Go's text/template: a text becomes a tree. Pure.

    {{range .Items}}{{.Name}} {{end}}  ─►  Range(Field(Items), [Action(Field(Name)), Text(" ")], [])

What is read: texts, comments, trimming, pipelines with variables, if, else, range, with, break, continue, define and
template. Source of the grammar: the documentation of Go's package text/template.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tortie.base.errors import ConfigError

SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Literal:
    value: Any


@dataclass(frozen=True, slots=True)
class Name:
    """A function, or true, false and nil."""

    word: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Fields of something: of the dot (None), of a variable (its name, `$` included) or of what is in brackets."""

    of: str | Pipe | None
    fields: tuple[str, ...] = ()


Operand = Literal | Name | Chain


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands, each a row of operands, and the variables that get the value; `declares` says whether they are new."""

    commands: tuple[tuple[Operand, ...], ...]
    variables: tuple[str, ...] = ()
    declares: bool = True


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch:
    """`word` is if, with or range."""

    word: str
    pipe: Pipe
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Leave:
    """`word` is break or continue."""

    word: str


@dataclass(frozen=True, slots=True)
class Call:
    """Another template, with the value of `pipe` as its dot."""

    name: str
    pipe: Pipe | None


Node = Text | Action | Branch | Leave | Call


@dataclass(frozen=True, slots=True)
class Tree:
    """A template, and those that it defines."""

    nodes: tuple[Node, ...]
    defined: dict[str, tuple[Node, ...]]


_ACTION = re.compile(
    r"""\{\{(?P<left>-(?=[ \t\r\n]))?"""
    r"""(?P<inside>\s*/\*.*?\*/\s*?|(?:"(?:[^"\\\n]|\\.)*"|`[^`]*`|'(?:[^'\\\n]|\\.)*'|[^"`'])*?)"""
    r"""(?P<right>(?<=[ \t\r\n])-)?\}\}""",
    re.DOTALL,
)
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)|(?P<text>"(?:[^"\\\n]|\\.)*")|(?P<raw>`[^`]*`)|(?P<char>'(?:[^'\\\n]|\\.)+')"""
    r"""|(?P<number>[-+]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?))"""
    r"""|(?P<field>\.[A-Za-z_]\w*)|(?P<dot>\.)|(?P<variable>\$\w*)|(?P<word>[A-Za-z_]\w*)|(?P<sign>:=|[=|(),])"""
)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


def read(template: str) -> Tree:
    """Raises ConfigError, with the number of the line."""
    return _Reader(template).tree()


def _pieces(template: str) -> Iterator[tuple[int, str | None, str]]:
    """Texts and the insides of actions, in order: (line, inside or None, text). Trimming is done."""
    at, trim = 0, False
    while True:
        begin = template.find("{{", at)
        found = _ACTION.match(template, begin) if begin >= 0 else None
        line = template.count("\n", 0, max(begin, 0)) + 1
        if begin >= 0 and found is None:
            raise ConfigError("an action that begins with {{ has no end", f"template: line {line}")
        text = template[at:] if found is None else template[at:begin]
        text = text.lstrip(SPACE) if trim else text
        yield line, None, text.rstrip(SPACE) if found is not None and found["left"] else text
        if found is None:
            return
        yield line, found["inside"], ""
        at, trim = found.end(), found["right"] is not None


def _tokens(inside: str) -> list[_Token]:
    """Raises ConfigError."""
    tokens: list[_Token] = []
    at = 0
    while at < len(inside):
        found = _TOKEN.match(inside, at)
        if found is None:
            raise ConfigError(f'unexpected "{inside[at]}" in "{inside.strip()}"')
        kind = found.lastgroup or ""
        tokens.append(_Token(kind, found[0]))
        at = found.end()
    return tokens


class _Reader:
    """Reads one template, action by action."""

    def __init__(self, template: str) -> None:
        self._pieces = _pieces(template)
        self._defined: dict[str, tuple[Node, ...]] = {}
        self._line = 1

    def tree(self) -> Tree:
        try:
            nodes, end = self._nodes()
            if end is not None:
                raise ConfigError(f"unexpected {{{{{end.strip()}}}}}")
        except ConfigError as error:
            raise error if error.where else error.within(f"template: line {self._line}") from None
        return Tree(nodes, self._defined)

    def _nodes(self) -> tuple[tuple[Node, ...], str | None]:
        """Up to `end` or `else`, which is returned as it is written; None at the end of the template."""
        nodes: list[Node] = []
        for line, inside, text in self._pieces:
            self._line = line
            if inside is None:
                if text:
                    nodes.append(Text(text))
                continue
            bare = inside.strip(SPACE)
            if bare.startswith("/*"):
                continue
            word = bare.split(maxsplit=1)[0] if bare else ""
            if word in ("end", "else"):
                return tuple(nodes), bare
            if (node := self._action(word, bare.removeprefix(word) if word in _WORDS else bare)) is not None:
                nodes.append(node)
        return tuple(nodes), None

    def _action(self, word: str, rest: str) -> Node | None:
        if word in ("if", "with", "range"):
            return self._branch(word, rest)
        if word in ("break", "continue"):
            return Leave(word)
        if word == "define":
            name = _name(rest)
            self._defined[name], end = self._nodes()
            if end != "end":
                raise ConfigError(f'define "{name}" has no end')
            return None
        if word == "template":
            tokens = [token for token in _tokens(rest) if token.kind != "space"]
            pipe = _pipe(_tokens(rest.strip(SPACE)[len(tokens[0].text) :])) if len(tokens) > 1 else None
            return Call(_name(tokens[0].text if tokens else ""), pipe)
        return Action(_pipe(_tokens(rest)))

    def _branch(self, word: str, rest: str) -> Branch:
        endless = ConfigError(f"{word} has no end", f"template: line {self._line}")
        pipe = _pipe(_tokens(rest), two=word == "range")
        body, end = self._nodes()
        if end is None:
            raise endless
        if end == "end":
            return Branch(word, pipe, body)
        chained = end.removeprefix("else").strip(SPACE)
        if chained:  # {{else if ...}} shares the end of the if before
            inner, _, more = chained.partition(" ")
            if inner not in ("if", "with"):
                raise ConfigError(f'"{end}" is not else, else if or else with')
            return Branch(word, pipe, body, (self._branch(inner, more),))
        otherwise, end = self._nodes()
        if end != "end":
            raise endless
        return Branch(word, pipe, body, otherwise)


_WORDS = ("if", "with", "range", "break", "continue", "define", "template")


def _name(text: str) -> str:
    """Raises ConfigError unless it is a text in quotes."""
    tokens = [token for token in _tokens(text) if token.kind != "space"]
    if len(tokens) != 1 or tokens[0].kind not in ("text", "raw"):
        raise ConfigError(f'"{text.strip()}" is not the name of a template in quotes')
    return str(_literal(tokens[0]).value)


def _pipe(tokens: Sequence[_Token], two: bool = False) -> Pipe:
    """`two`: it may have two variables, as range has. Raises ConfigError."""
    parser = _PipeReader(tokens)
    pipe = parser.pipe()
    if len(pipe.variables) > (2 if two else 1):
        raise ConfigError("too many variables")
    if not parser.done:
        raise ConfigError(f'unexpected "{parser.rest}"')
    return pipe


class _PipeReader:
    """Reads the tokens of one action."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens, self._at = tokens, 0

    @property
    def done(self) -> bool:
        return self._at == len(self._tokens)

    @property
    def rest(self) -> str:
        return "".join(token.text for token in self._tokens[self._at :])

    def pipe(self) -> Pipe:
        variables, declares = self._variables()
        commands = [self._command()]
        while self._next("|"):
            commands.append(self._command())
        return Pipe(tuple(commands), variables, declares)

    def _variables(self) -> tuple[tuple[str, ...], bool]:
        """`$x :=`, `$i, $x :=` or `$x =`, if it begins so."""
        before, names = self._at, []
        while True:
            self._space()
            token = self._peek()
            if token is None or token.kind != "variable":
                break
            names.append(token.text)
            self._at += 1
            if not self._next(","):
                break
        for sign in (":=", "="):
            if names and self._next(sign):
                return tuple(names), sign == ":="
        self._at = before
        return (), True

    def _command(self) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while True:
            spaced = self._space() or not operands
            token = self._peek()
            if token is None or token.text in ("|", ")"):
                break
            if not spaced:
                raise ConfigError(f'unexpected "{self.rest}": there must be a space before it')
            operands.append(self._operand(token))
        if not operands:
            raise ConfigError("a value is missing in a pipeline")
        return tuple(operands)

    def _operand(self, token: _Token) -> Operand:
        self._at += 1
        match token.kind:
            case "text" | "raw" | "char" | "number":
                return _literal(token)
            case "word":
                return Name(token.text)
            case "dot":
                return Chain(None)
            case "field":
                return Chain(None, (token.text[1:], *self._fields()))
            case "variable":
                return Chain(token.text, self._fields())
        if token.text != "(":
            raise ConfigError(f'unexpected "{token.text}"')
        inside = self.pipe()
        if not self._next(")"):
            raise ConfigError("a bracket is not closed")
        return Chain(inside, self._fields())

    def _fields(self) -> tuple[str, ...]:
        names = []
        while (token := self._peek()) is not None and token.kind == "field":
            names.append(token.text[1:])
            self._at += 1
        return tuple(names)

    def _peek(self) -> _Token | None:
        return None if self.done else self._tokens[self._at]

    def _space(self) -> bool:
        token = self._peek()
        if token is None or token.kind != "space":
            return False
        self._at += 1
        return True

    def _next(self, sign: str) -> bool:
        """Takes a sign, and the space before it, if it comes next."""
        before = self._at
        self._space()
        token = self._peek()
        if token is not None and token.text == sign:
            self._at += 1
            return True
        self._at = before
        return False


def _literal(token: _Token) -> Literal:
    """Raises ConfigError."""
    text = token.text
    try:
        if token.kind == "raw":
            return Literal(text[1:-1])
        if token.kind == "number":
            whole = re.fullmatch(r"[-+]?(0[xXbBoO][0-9a-fA-F_]+|\d[\d_]*)", text)
            return Literal(int(text, 0) if whole else float(text))
        value = ast.literal_eval(text)  # a text of Go is one of Python, but for three escapes that nobody needs
        if token.kind == "char":
            return Literal(ord(value))
        return Literal(value)
    except (ValueError, SyntaxError, TypeError):
        raise ConfigError(f"{text} cannot be read") from None
