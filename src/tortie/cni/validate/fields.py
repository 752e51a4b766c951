"""Fields one by one: is the key known, is its value of the right JSON type, is it in its range."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tortie.cni import span
from tortie.cni.spec import CniError, check_ifname
from tortie.cni.validate.findings import Report
from tortie.cni.validate.text import Path

Test = Callable[[Any], str]
"""What is wrong with a value of the right type; "" for nothing."""

TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "list": (list,),
    "true, false, or either as a string": (bool, str),
    "value": (str, int, float, bool, dict, list),
}
COMMENTS = ("_", "#", "//")
"""What keys begin with that people write for themselves."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `kind` is a key of TYPES, `default` what its absence means, in words. Of an object `fields` are its
    members (None: whatever it likes), of a list `items` is what each one must be."""

    kind: str
    default: str = ""
    test: Test | None = None
    fields: Mapping[str, Field] | None = None
    items: Field | None = None


Fields = Mapping[str, Field]


def walk(report: Report, path: Path, conf: Mapping[str, Any], fields: Fields) -> None:
    """Looks at every member of an object that is at `path`. A null counts as absent."""
    spelled = {name.casefold(): name for name in fields}
    for key, value in conf.items():
        name = spelled.get(key.casefold())
        if name is None:
            if not key.startswith(COMMENTS):
                _unknown(report, (*path, key), key, fields)
        elif value is not None:
            look(report, (*path, key), value, fields[name])


def look(report: Report, path: Path, value: Any, field: Field) -> None:
    """Looks at one value and all that is in it."""
    kinds = TYPES[field.kind]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        report.error(path, f"must be {a(field.kind)}, not {a(json_word(value))}")
        return
    why = field.test(value) if field.test else ""
    if why:
        report.error(path, why)
    elif isinstance(value, dict) and field.fields is not None:
        walk(report, path, value, field.fields)
    elif isinstance(value, list) and field.items is not None:
        for index, item in enumerate(value):
            look(report, (*path, index), item, field.items)


def _unknown(report: Report, path: Path, key: str, known: Fields) -> None:
    """What is near a known key is a slip of the pen, which would be ignored in silence; else somebody may know it."""
    near = near_word(key, known)
    if near:
        report.error(path, f'unknown key: did you mean "{near}"?')
    else:
        report.warning(path, "unknown key: it is ignored")


def near_word(word: str, known: Mapping[str, object]) -> str:
    """The known word that is probably meant, or ""."""
    lower = {name.casefold(): name for name in known}
    near = get_close_matches(word.casefold(), list(lower), n=1, cutoff=0.75)
    return lower[near[0]] if near else ""


def json_word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    words = {str: "string", int: "integer", float: "number", list: "list", dict: "object"}
    return words[type(value)]


def a(noun: str) -> str:
    """With its article."""
    if noun == "null" or noun.startswith("true"):
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


# --- members of what may be anything ------------------------------------------------------------------------------


def get(conf: Any, key: str, kind: type) -> Any:
    """A member in whatever case, if it is of this type; else None. What is of another type is told elsewhere."""
    found = None
    for name, value in conf.items() if isinstance(conf, Mapping) else ():
        if name.casefold() == key.casefold() and value is not None:
            found = value
    return found if type(found) is kind else None


def text_of(conf: Any, key: str) -> str:
    return get(conf, key, str) or ""


def flag_of(conf: Any, key: str) -> bool:
    return bool(get(conf, key, bool))


def section_of(conf: Any, key: str) -> Mapping[str, Any]:
    return get(conf, key, dict) or {}


def list_of(conf: Any, key: str) -> list[Any]:
    return get(conf, key, list) or []


def has(conf: Any, key: str) -> bool:
    """Whether it is there and not null, of whatever type."""
    return any(name.casefold() == key.casefold() and value is not None for name, value in conf.items())


def objects_of(conf: Any, key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for index, item in enumerate(list_of(conf, key)):
        if isinstance(item, dict):
            yield index, item


# --- kinds of fields ----------------------------------------------------------------------------------------------


def text(default: str = "", test: Test | None = None) -> Field:
    """A string; "" counts as absent."""
    return Field("string", default, (lambda value: test(value) if value else "") if test else None)


def whole(least: int = 0, most: int = 2**31 - 1, default: str = "") -> Field:
    return Field("integer", default, lambda value: between(value, least, most))


def flag(default: bool = False) -> Field:
    return Field("boolean", str(default).lower())


def either() -> Field:
    """A flag of a list, which people had written as strings before libcni read it."""
    kind = "true, false, or either as a string"
    return Field(kind, "false", lambda value: "" if str(value).lower() in ("true", "false") else f"must be {kind}")


def choice(*words: str, default: str = "") -> Field:
    return text(default, lambda value: "" if value in words else f'"{value}" is none of {", ".join(words)}')


def group(fields: Fields | None = None) -> Field:
    return Field("object", fields=fields)


def each(items: Field) -> Field:
    return Field("list", items=items)


# --- tests of values ----------------------------------------------------------------------------------------------


def between(value: int, least: int, most: int) -> str:
    return "" if least <= value <= most else f"{value} is not between {least} and {most}"


def address(value: str) -> str:
    return "" if span.is_ip(value) else f'"{value}" is not an IP address'


def cidr(value: str) -> str:
    try:
        span.cidr(value)
    except ValueError:
        return f'"{value}" is not a CIDR, such as 10.1.2.0/24'
    return ""


def network(value: str) -> str:
    """A CIDR without host bits, as the kernel wants a destination to be."""
    why = cidr(value)
    if why:
        return why
    found = span.cidr(value)
    return f"{value} has host bits set: the network is {found.network}/{found.length}" if found.has_host_bits else ""


def ifname(value: str) -> str:
    try:
        check_ifname(value)
    except CniError as error:
        return f'"{value}" cannot be the name of an interface: {error}'
    return ""


def absolute(value: str) -> str:
    return "" if value.startswith("/") else f'"{value}" is not an absolute path'


def mac(value: str) -> str:
    try:
        read = span.mac(value)
    except ValueError:
        return f'"{value}" is not a MAC address'
    return f"{value} is a multicast address" if int(read[:2], 16) & 1 else ""
