"""Carries out templates of Go's text/template on values: what `get -o go-template` prints. Pure.

    template ─template_parse─► Tree ─┐
    values ──────────────────────────┴─► carry_out ─► text ─aligned─► text in columns

Values are None, texts, numbers, booleans, lists, mappings, and objects whose fields `lookup` finds. Source: the
documentation of Go's packages text/template, fmt and text/tabwriter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tortie.base.errors import ConfigError
from tortie.cli.template_parse import Action, Branch, Call, Chain, Leave, Literal, Name, Node, Operand, Pipe, Text, Tree

Lookup = Callable[[Any, str], Any]
"""The field of an object. Raises ConfigError when it has no such field."""
Function = Callable[..., Any]

MIN_WIDTH, GAP = 5, 3
"""Of a column, and between two, in characters: as calicoctl sets the tabs of what a template prints."""
DEEP = 100
"""Templates that call one another."""


class _NoValue:
    """A key that a mapping does not have."""

    def __str__(self) -> str:
        return "<no value>"

    def __bool__(self) -> bool:
        return False


NO_VALUE = _NoValue()


class _Left(Exception):
    """A loop is left by break or continue."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


def carry_out(tree: Tree, data: Any, lookup: Lookup, functions: Mapping[str, Function] = {}) -> str:
    """What the template says of `data`. `functions` are known beside Go's own. Raises ConfigError."""
    run = _Run(tree, lookup, {**FUNCTIONS, **functions})
    try:
        run.walk(tree.nodes, data, {"$": data})
    except ConfigError as error:
        raise error if error.where else error.within("template") from None
    return "".join(run.printed)


class _Run:
    """One carrying out. Variables are in a mapping for each block, with those outside of it taken over."""

    def __init__(self, tree: Tree, lookup: Lookup, functions: Mapping[str, Function]) -> None:
        self._tree, self._lookup, self._functions = tree, lookup, functions
        self._depth = 0
        self.printed: list[str] = []

    def walk(self, nodes: Sequence[Node], dot: Any, variables: dict[str, Any]) -> None:
        for node in nodes:
            match node:
                case Text(text):
                    self.printed.append(text)
                case Action(pipe):
                    value = self._value(pipe, dot, variables)
                    if not pipe.variables:
                        self.printed.append(shown(value))
                case Branch(word="range"):
                    self._range(node, dot, variables)
                case Branch():
                    self._branch(node, dot, _Scope(variables))
                case Leave(word):
                    raise _Left(word)
                case Call():
                    self._call(node, dot, variables)

    def _branch(self, node: Branch, dot: Any, variables: dict[str, Any]) -> None:
        value = self._value(node.pipe, dot, variables)
        inside = value if node.word == "with" and truth(value) else dot
        self.walk(node.body if truth(value) else node.otherwise, inside, variables)

    def _range(self, node: Branch, dot: Any, outer: dict[str, Any]) -> None:
        variables = _Scope(outer)
        pipe = Pipe(node.pipe.commands)
        items = list(_items(self._value(pipe, dot, variables)))
        for key, item in items:
            inner = _Scope(variables)
            for name, value in zip(node.pipe.variables, (key, item)[-len(node.pipe.variables) or 2 :], strict=False):
                if node.pipe.declares:
                    inner[name] = value
                else:
                    inner.assign(name, value)
            try:
                self.walk(node.body, item, inner)
            except _Left as left:
                if left.word == "break":
                    return
        if not items:
            self.walk(node.otherwise, dot, variables)

    def _call(self, node: Call, dot: Any, variables: dict[str, Any]) -> None:
        if node.name not in self._tree.defined:
            raise ConfigError(f'template "{node.name}" is not defined')
        value = NO_VALUE if node.pipe is None else self._value(node.pipe, dot, variables)
        if self._depth >= DEEP:
            raise ConfigError(f"templates call one another more than {DEEP} deep")
        self._depth += 1
        self.walk(self._tree.defined[node.name], value, {"$": value})
        self._depth -= 1

    def _value(self, pipe: Pipe, dot: Any, variables: dict[str, Any]) -> Any:
        """The value of a pipeline: that of its last command, each of which is the last argument of the next."""
        value: tuple[Any, ...] = ()
        for command in pipe.commands:
            value = (self._command(command, value, dot, variables),)
        for name in pipe.variables:
            if pipe.declares:
                variables[name] = value[0]
            else:
                _assign(variables, name, value[0])
        return value[0]

    def _command(self, command: Sequence[Operand], last: tuple[Any, ...], dot: Any, variables: dict[str, Any]) -> Any:
        first, *rest = command
        if isinstance(first, Name) and first.word not in _WORDS:
            return self._function(first.word, rest, last, dot, variables)
        if rest or last:
            raise ConfigError(f"{_spelt(first)} is not a function and takes no arguments")
        return self._operand(first, dot, variables)

    def _function(
        self, name: str, operands: Sequence[Operand], last: tuple[Any, ...], dot: Any, variables: dict[str, Any]
    ) -> Any:
        if name not in self._functions:
            raise ConfigError(f'function "{name}" is not defined')
        if name in ("and", "or"):  # the first that decides is the value, and what follows is not looked at
            value: Any = None
            for one in (*operands, *map(Literal, last)):
                value = self._operand(one, dot, variables)
                if truth(value) is (name == "or"):
                    break
            return value
        arguments = [*(self._operand(one, dot, variables) for one in operands), *last]
        try:
            return self._functions[name](*arguments)
        except TypeError:
            raise ConfigError(f"{name} does not take {len(arguments)} arguments of these types") from None
        except ConfigError as error:
            raise ConfigError(f"error calling {name}: {error}") from None

    def _operand(self, operand: Operand, dot: Any, variables: dict[str, Any]) -> Any:
        match operand:
            case Literal(value):
                return value
            case Name(word):
                return _WORDS[word] if word in _WORDS else self._function(word, (), (), dot, variables)
            case Chain(of, names):
                if of is None:
                    value = dot
                elif isinstance(of, Pipe):
                    value = self._value(of, dot, variables)
                elif of in variables:
                    value = variables[of]
                else:
                    raise ConfigError(f'variable "{of}" is not defined')
                for name in names:
                    value = self._field(value, name)
                return value

    def _field(self, value: Any, name: str) -> Any:
        if value is None:
            raise ConfigError(f"nil has no field {name}: ask with {{{{with}}}} or {{{{if}}}} first")
        if value is NO_VALUE:
            return NO_VALUE
        if isinstance(value, Mapping):
            return value.get(name, NO_VALUE)
        if isinstance(value, str | int | float | list | tuple):
            raise ConfigError(f"can't evaluate field {name} in {_kind(value)}: is a {{{{range}}}} missing?")
        return self._lookup(value, name)


class _Scope(dict[str, Any]):
    """Variables of a block over those around it."""

    def __init__(self, outer: dict[str, Any]) -> None:
        super().__init__()
        self._outer = outer

    def __missing__(self, name: str) -> Any:
        return self._outer[name]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._outer

    def assign(self, name: str, value: Any) -> None:
        if super().__contains__(name):
            self[name] = value
        else:
            _assign(self._outer, name, value)


def _assign(variables: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(variables, _Scope):
        variables.assign(name, value)
    elif name in variables:
        variables[name] = value
    else:
        raise ConfigError(f'variable "{name}" is not defined')


_WORDS = {"true": True, "false": False, "nil": None}


def truth(value: Any) -> bool:
    """As Go's templates take it: nothing, zero and what is empty are false, an object is true."""
    if isinstance(value, str | int | float | list | tuple | Mapping):
        return bool(value)
    return value is not None and value is not NO_VALUE


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """Keys and values of what can be ranged over. Raises ConfigError."""
    if value is None or value is NO_VALUE:
        return
    if isinstance(value, Mapping):
        yield from sorted(value.items())
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield from ((i, i) for i in range(value))
    else:
        raise ConfigError(f"range can't iterate over {_kind(value)}")


def _spelt(operand: Operand) -> str:
    match operand:
        case Literal(value):
            return shown(value)
        case Name(word):
            return word
        case Chain(of, names):
            begin = of if isinstance(of, str) else "" if of is None else "(...)"
            return begin + "".join(f".{name}" for name in names) or "."


# --- fmt ----------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as Go's `%v` prints it: `[a b]`, `map[k:v]`, `<nil>`, `1e+06`."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{shown(key)}:{shown(one)}' for key, one in sorted(value.items()))}]"
    fields = getattr(value, "__struct_fields__", None)
    if fields is not None:
        return "{" + " ".join(shown(getattr(value, name)) for name in fields) + "}"
    return str(value)


def _float(value: float) -> str:
    """The shortest text that means this number, with an exponent from a million on."""
    if math.isinf(value) or math.isnan(value):
        return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN")
    for precision in range(18):
        text = f"{value:.{precision}e}"
        if float(text) == value:
            break
    if value and not -4 <= int(text.partition("e")[2]) < 6:
        return text
    return repr(value).removesuffix(".0") if "e" not in repr(value) else f"{value:f}".rstrip("0").rstrip(".")


_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d+)?(?:\.(?P<precision>\d+)?)?(?P<verb>[A-Za-z%])")


def printf(form: Any, *values: Any) -> str:
    """Go's Sprintf, with `%v %s %q %d %t %x %X %o %b %c %e %f %g`, flags, width and precision."""
    if not isinstance(form, str):
        raise ConfigError("the format must be a text")
    left = list(values)

    def one(found: re.Match[str]) -> str:
        if found["verb"] == "%":
            return "%"
        if not left:
            return f"%!{found['verb']}(MISSING)"
        return _padded(_verb(found, left.pop(0)), found)

    text = _VERB.sub(one, form)
    extra = ", ".join(f"{_kind(value)}={shown(value)}" for value in left)
    return f"{text}%!(EXTRA {extra})" if left else text


def _verb(found: re.Match[str], value: Any) -> str:
    verb, flags = found["verb"], found["flags"]
    precision = None if found["precision"] is None else int(found["precision"])
    number = isinstance(value, int) and not isinstance(value, bool)
    plus = "+" if "+" in flags else " " if " " in flags else ""
    if verb == "v":
        return (plus if isinstance(value, int | float) and value >= 0 and plus == "+" else "") + shown(value)
    if verb == "s" and isinstance(value, str | list | tuple | Mapping):
        return shown(value)[:precision]
    if verb == "q" and isinstance(value, str):
        return quoted(value)
    if verb == "t" and isinstance(value, bool):
        return shown(value)
    if verb in "dxXob" and number:
        return f"{value:{plus}{verb}}"
    if verb == "c" and number:
        return chr(value)
    if verb in "xX" and isinstance(value, str):
        return value.encode().hex() if verb == "x" else value.encode().hex().upper()
    if verb in "eEfFgG" and isinstance(value, float):
        if verb in "gG" and precision is None:
            return plus + shown(value)
        return f"{value:{plus}.{6 if precision is None else precision}{verb}}"
    return f"%!{verb}({_kind(value)}={shown(value)})"


def _padded(text: str, found: re.Match[str]) -> str:
    width = int(found["width"] or 0)
    if "-" in found["flags"]:
        return text.ljust(width)
    return text.zfill(width) if "0" in found["flags"] and found["verb"] not in "sqtv" else text.rjust(width)


def quoted(text: str) -> str:
    """As Go's `%q` writes a text.

    >>> print(quoted('a"b\\n'))
    "a\\"b\\n"
    """
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(escapes.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in text) + '"'


def _kind(value: Any) -> str:
    """What Go would call the type of a value."""
    for of, name in ((bool, "bool"), (int, "int"), (float, "float64"), (str, "string"), (list | tuple, "a list")):
        if isinstance(value, of):
            return name
    return "<nil>" if value is None else "map" if isinstance(value, Mapping) else type(value).__name__


# --- functions ----------------------------------------------------------------------------------------------------


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            texts = all(isinstance(one, str) for one in value.values())
            value = value.get(key, "" if texts else NO_VALUE)
        elif isinstance(value, list | tuple | str) and isinstance(key, int):
            if not 0 <= key < len(value):
                raise ConfigError(f"index out of range: {key}")
            value = ord(value[key]) if isinstance(value, str) else value[key]
        else:
            raise ConfigError(f"can't index {_kind(value)} with {_kind(key)}")
    return value


def _slice(value: Any, begin: int = 0, end: int | None = None) -> Any:
    stop = len(value) if end is None else end
    if not 0 <= begin <= stop <= len(value):
        raise ConfigError(f"index out of range: {stop if stop > len(value) else begin}")
    return value[begin:stop]


def _length(value: Any) -> int:
    if value is None or isinstance(value, bool | int | float):
        raise ConfigError(f"len of {_kind(value)}")
    return len(value.encode() if isinstance(value, str) else value)


def _comparable(first: Any, second: Any) -> None:
    """Raises ConfigError."""
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (first, second))
    if first is None or second is None or numbers or type(first) is type(second):
        return
    raise ConfigError("incompatible types for comparison")


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise ConfigError("missing argument for comparison")
    for other in others:
        _comparable(first, other)
    return any(first == other for other in others)


def _less(first: Any, second: Any) -> bool:
    _comparable(first, second)
    if first is None or isinstance(first, bool):
        raise ConfigError("invalid type for comparison")
    return bool(first < second)


def _print(*values: Any) -> str:
    """With a space between two of which neither is a text."""
    texts: list[str] = []
    for i, value in enumerate(values):
        if i and not isinstance(value, str) and not isinstance(values[i - 1], str):
            texts.append(" ")
        texts.append(shown(value))
    return "".join(texts)


def join(items: Any, separator: str) -> str:
    """calicoctl's: the items of a list with `separator` between."""
    return join_and_truncate(items, separator, 0)


def join_and_truncate(items: Any, separator: str, most: int) -> str:
    """calicoctl's: the same, cut at `most` characters unless that is 0."""
    if not isinstance(items, list | tuple):
        raise ConfigError(f"{_kind(items)} is no list")
    text = separator.join(map(shown, items))
    return f"{text[: most - 3]}..." if 0 < most < len(text) else text


FUNCTIONS: Mapping[str, Function] = {
    "and": truth, "or": truth,  # see _function
    "not": lambda value: not truth(value), "len": _length, "index": _index, "slice": _slice,
    "eq": _equal, "ne": lambda first, second: not _equal(first, second),
    "lt": _less, "le": lambda a, b: _less(a, b) or a == b, "gt": lambda a, b: not _less(a, b) and a != b,
    "ge": lambda a, b: not _less(a, b),
    "print": _print, "printf": printf, "println": lambda *values: " ".join(map(shown, values)) + "\n",
    "join": join, "joinAndTruncate": join_and_truncate,
}  # fmt: skip


# --- tabs ---------------------------------------------------------------------------------------------------------


def aligned(text: str) -> str:
    """Cells that end with a tab, set in columns: each as wide as the widest of the neighbours above and below.

    >>> aligned("NAME\\tCIDR\\nlong-name\\t10.0.0.0/16\\n")
    'NAME        CIDR\\nlong-name   10.0.0.0/16\\n'
    """
    lines = [line.split("\t") for line in text.split("\n")]
    return "\n".join(_block(lines, []))


def _block(lines: Sequence[list[str]], widths: list[int]) -> Iterator[str]:
    """Lines of which the first columns have `widths`."""
    column, at = len(widths), 0
    while at < len(lines):
        end = at
        while end < len(lines) and column < len(lines[end]) - 1:
            end += 1
        if end == at:
            yield _line(lines[at], widths)
            at += 1
            continue
        width = max(MIN_WIDTH, *(len(line[column]) + GAP for line in lines[at:end]))
        yield from _block(lines[at:end], [*widths, width])
        at = end


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(cell.ljust(widths[i]) if i < len(widths) else cell for i, cell in enumerate(cells))
