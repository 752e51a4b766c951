"""The variables FELIX_<FIELD>: a FelixConfiguration that beats those of the datastore, in the form of an environment.

The name is the field's in capitals: FELIX_VXLANMTU is vxlanMTU. Times are seconds, lists have commas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin

import msgspec

from tortie.agent.booleans import boolean
from tortie.base.errors import ConfigError
from tortie.model.node import FelixConfigurationSpec

PREFIX = "FELIX_"
OTHER_NAMES = {"IPINIPMTU": "IPIPMTU", "IPINIPENABLED": "IPIPENABLED", "EXTERNALNODESCIDRLIST": "EXTERNALNODESLIST"}
"""Fields that have another name in the environment."""
NOT_SETTINGS = ("TYPHA", "DATASTORETYPE", "ETCD", "FELIXHOSTNAME")
"""How those begin that say where Felix finds its datastore, and which node it is."""
SECONDS = re.compile(r"\d+(\.\d*)?")


def felix_settings(environment: Mapping[str, str]) -> tuple[FelixConfigurationSpec, tuple[str, ...]]:
    """What they say, and the variables that mean nothing here. Raises ConfigError for a bad value."""
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for variable, text in sorted(environment.items()):
        name = variable.upper().removeprefix(PREFIX)
        if name == variable.upper() or not text:
            continue
        field = _fields().get(OTHER_NAMES.get(name, name))
        if field is None:
            if not name.startswith(NOT_SETTINGS):
                unknown.append(variable)
            continue
        try:
            values[field.name] = _value(field, text)
        except (ValueError, ConfigError) as error:  # msgspec's is a ValueError
            raise ConfigError(f'"{text}" is not what {field.encode_name} takes: {error}', variable) from None
    return FelixConfigurationSpec(**values), tuple(unknown)


@cache
def _fields() -> Mapping[str, msgspec.structs.FieldInfo]:
    every = msgspec.structs.fields(FelixConfigurationSpec)
    return {field.encode_name.upper(): field for field in every if field.name != "node_selector"}


def _value(field: msgspec.structs.FieldInfo, text: str) -> Any:
    parts = {part for one in (field.type, *get_args(field.type)) for part in (one, get_origin(one))}
    if field.name.startswith("failsafe_"):
        return msgspec.convert(_ports(text), field.type)
    if field.name == "external_nodes_list":
        return [part.strip() for part in text.split(",") if part.strip()]
    if bool in parts:
        return boolean(text)
    if Literal in parts:
        return _word(field, text)
    if field.type is Any:
        return _plain(text)
    if field.encode_name.endswith("Interval") and SECONDS.fullmatch(text):
        text = f"{text}s"
    value = msgspec.convert(text, field.type, strict=False)
    spec = FelixConfigurationSpec(**{field.name: value})
    for path, problem in spec.problems():
        raise ConfigError(problem, path)
    return value


def _word(field: msgspec.structs.FieldInfo, text: str) -> str:
    """In any case, as Felix reads words."""
    words = [word for one in get_args(field.type) if get_origin(one) is Literal for word in get_args(one)]
    found = next((word for word in words if word.lower() == text.lower()), None)
    if found is None:
        raise ConfigError(f"it takes {', '.join(words)}")
    return str(found)


def _plain(text: str) -> Any:
    """Of a field that nothing is done with yet, as a document would have it."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text


def _ports(text: str) -> list[dict[str, Any]]:
    """`tcp:22,udp:10.0.0.0/8:53,179`; none: no port at all."""
    if text.lower() == "none":
        return []
    return [_port(part.strip()) for part in text.split(",") if part.strip()]


def _port(text: str) -> dict[str, Any]:
    protocol, colon, rest = text.partition(":")
    if not colon:
        protocol, rest = "tcp", text
    net, _, port = rest.rpartition(":")
    if not port.isdecimal():
        raise ConfigError(f'"{text}" is not a port such as tcp:22')
    return {"protocol": protocol, "port": int(port), "net": net.strip("[]")}
