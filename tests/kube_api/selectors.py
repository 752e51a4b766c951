"""labelSelector and fieldSelector as they stand in queries."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kube_api.statuses import bad_request

_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_TERM = re.compile(
    r"\s*(?:(?P<absent>!)\s*(?P<nokey>[^\s,=!()<>]+)"
    r"|(?P<setkey>[^\s,=!()<>]+)\s+(?P<set>in|notin)\s*\((?P<values>[^()]*)\)"
    r"|(?P<key>[^\s,=!()<>]+)\s*(?:(?P<op>==|=|!=|>|<)\s*(?P<value>[^\s,=!()<>]*))?)\s*(?:,|$)"
)

Requirement = Callable[[Mapping[str, str]], bool]


def labels(text: str) -> tuple[Requirement, ...]:
    """What an object's labels must satisfy. Raises Refusal (400)."""
    found: list[Requirement] = []
    position = 0
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None or term.end() == position:
            raise bad_request(
                f"unable to parse requirement: found '{text[position:]}', expected: identifier, '!', 'in' or operator"
            )
        found.append(_requirement(term))
        position = term.end()
    return tuple(found)


def _requirement(term: re.Match[str]) -> Requirement:
    key = term["nokey"] or term["setkey"] or term["key"]
    if not _LABEL_KEY.fullmatch(key):
        raise bad_request(f'unable to parse requirement: key: Invalid value: "{key}": name part must be a label key')
    if term["absent"]:
        return lambda own: key not in own
    if term["set"]:
        values = frozenset(one.strip() for one in term["values"].split(","))
        _check(key, *values)
        if term["set"] == "in":
            return lambda own: own.get(key) in values
        return lambda own: key not in own or own[key] not in values
    operator, value = term["op"], term["value"]
    if operator is None:
        return lambda own: key in own
    _check(key, value)
    if operator in ("=", "=="):
        return lambda own: own.get(key) == value
    if operator == "!=":
        return lambda own: own.get(key) != value
    return _compared(key, operator, value)


def _compared(key: str, operator: str, value: str) -> Requirement:
    if not re.fullmatch(r"-?\d+", value):
        raise bad_request(
            f"unable to parse requirement: values[0]: Invalid value: \"{value}\": for 'Gt', 'Lt' an integer"
        )
    border = int(value)

    def holds(own: Mapping[str, str]) -> bool:
        text = own.get(key, "")
        if not re.fullmatch(r"-?\d+", text):
            return False
        return int(text) > border if operator == ">" else int(text) < border

    return holds


def _check(key: str, *values: str) -> None:
    for value in values:
        if not _LABEL_VALUE.fullmatch(value):
            raise bad_request(
                f'unable to parse requirement: values[0][{key}]: Invalid value: "{value}": a valid label must be an '
                "empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
                "alphanumeric character"
            )


@dataclass(frozen=True, slots=True)
class Field:
    path: str
    value: str
    equal: bool


def fields(text: str) -> tuple[Field, ...]:
    """The terms of a fieldSelector; `\\,` `\\=` `\\\\` are escapes. Raises Refusal (400)."""
    found = []
    for term in re.split(r"(?<!\\),", text) if text else ():
        parts = re.fullmatch(r"((?:[^=!\\]|\\.)*?)\s*(==|=|!=)\s*((?:[^=\\]|\\.)*)", term)
        if parts is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{term}'")
        found.append(Field(parts[1].strip(), re.sub(r"\\(.)", r"\1", parts[3]), parts[2] != "!="))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a list or watch asks for. `namespace` empty: all of them."""

    namespace: str = ""
    labels: tuple[Requirement, ...] = ()
    fields: tuple[Field, ...] = ()

    @property
    def everything(self) -> bool:
        """Nothing but the namespace chooses."""
        return not self.labels and not self.fields

    @property
    def name(self) -> str:
        """The only name that it can choose, or nothing."""
        return next((one.value for one in self.fields if one.path == "metadata.name" and one.equal), "")

    def holds(self, namespace: str, name: str, own: Mapping[str, str], values: Mapping[str, str]) -> bool:
        if self.namespace and namespace != self.namespace:
            return False
        for one in self.fields:
            if one.path == "metadata.name":
                value = name
            elif one.path == "metadata.namespace":
                value = namespace
            else:
                value = values.get(one.path, "")
            if (value == one.value) != one.equal:
                return False
        return all(requirement(own) for requirement in self.labels)


def selection(
    namespace: str, label_text: str, field_text: str, *, what: str, known: Sequence[str], namespaced: bool
) -> Selection:
    """The two texts of a query. `what`: the resource for messages (`/v1, Resource=pods`). Raises Refusal (400)."""
    chosen = fields(field_text)
    allowed = {"metadata.name", *known} | ({"metadata.namespace"} if namespaced else set())
    for one in chosen:
        if one.path not in allowed:
            raise bad_request(
                f'Unable to find "{what}" that match label selector "{label_text}", field selector "{field_text}": '
                f"field label not supported: {one.path}"
            )
    return Selection(namespace, labels(label_text), chosen)
