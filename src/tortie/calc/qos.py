"""What a pod's annotations limit of its traffic, and a WorkloadEndpoint's `qosControls` as two directions.

Source: Calico's conversion of pods. A value that cannot be read is no limit, one out of range becomes the nearest in
it, and what means nothing without another is left out. The pod runs; each of these is said, with its annotation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation

from tortie.base.errors import ConfigError
from tortie.model.workload import HIGHEST_DSCP, QOS_RANGES, QoSControls, dscp_number
from tortie.policy.rules import DIRECTIONS, Direction

QOS = "qos.projectcalico.org/"
DSCP = QOS + "dscp"
DEFAULT_BURST = 4 * 2**30
"""Bits, and half a gigabyte: a limit of bandwidth without a burst of its own is not felt before so much has gone."""
DEFAULT_PACKET_BURST = 5

_SUFFIXES = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18, "m": -3, "u": -6, "n": -9}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([eE][+-]?[0-9]{1,3})|([A-Za-z]*))\Z")
_LONGEST = 64
"""Characters of a quantity: no number in range needs more, and what is longer is not worth computing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """One direction of a pod. Rates in bit/s, bursts in bits (`minburst`: bytes), packets and connections; 0 is off."""

    bandwidth: int = 0
    burst: int = 0
    peakrate: int = 0
    minburst: int = 0
    packet_rate: int = 0
    packet_burst: int = 0
    max_connections: int = 0


@dataclass(frozen=True, slots=True)
class QoS:
    """What holds for an endpoint; `dscp` is None where packets keep theirs."""

    ingress: Limits = Limits()
    egress: Limits = Limits()
    dscp: int | None = None

    def of(self, direction: Direction) -> Limits:
        return self.ingress if direction == "ingress" else self.egress


UNLIMITED = QoS()


def controls(annotations: Mapping[str, str]) -> tuple[QoSControls | None, tuple[str, ...]]:
    """`spec.qosControls` for a pod with these annotations, None when nothing is limited; and what is wrong, a line
    each, annotation first."""
    if not any(name.startswith(QOS) or name.endswith("-bandwidth") for name in annotations):
        return None, ()  # as of nearly all pods, of which there may be 100,000
    wrong: list[str] = []
    found: dict[str, int] = {}
    for direction in DIRECTIONS:
        found |= _limits(annotations, direction, wrong)
    dscp = None
    if text := annotations.get(DSCP, "").strip():
        dscp = dscp_number(text)
        if dscp is None:
            wrong.append(f'{_where(DSCP)}: "{text}" is neither 0 to {HIGHEST_DSCP} nor a name such as EF or AF21; off')
    made = QoSControls(dscp=dscp, **found)
    return (None if made == QoSControls() else made), tuple(wrong)


def qos_of(given: QoSControls | None) -> QoS:
    """What a WorkloadEndpoint asks for, whoever wrote it: what is out of range becomes the nearest in it, as above."""
    if given is None:
        return UNLIMITED
    ingress, egress = (
        Limits(**_sensible({name: _clamped(getattr(given, f"{direction}_{name}"), name) for name in QOS_RANGES}))
        for direction in DIRECTIONS
    )
    return QoS(ingress, egress, None if given.dscp is None else dscp_number(given.dscp))


def quantity(text: str) -> int:
    """A Kubernetes quantity (`10M`, `1Gi`, `1500`), rounded up. Raises ConfigError."""
    match = _QUANTITY.match(text) if len(text) <= _LONGEST else None
    try:
        if match is None:
            raise InvalidOperation
        number, suffix = Decimal(match[1] + (match[2] or "")), match[3] or ""
        number = number * 2 ** _BINARY[suffix] if suffix in _BINARY else number.scaleb(_SUFFIXES[suffix])
        return int(number.to_integral_value(ROUND_CEILING))
    except (InvalidOperation, KeyError):
        raise ConfigError(f'"{text[:_LONGEST]}" is not a quantity such as 10M or 1Gi') from None


def _limits(annotations: Mapping[str, str], direction: Direction, wrong: list[str]) -> dict[str, int]:
    """One direction's, under the names of QoSControls."""
    asked: dict[str, int] = {}
    for limit in QOS_RANGES:
        name = annotation(direction, limit)
        if limit == "bandwidth" and name not in annotations:
            name = f"kubernetes.io/{direction}-bandwidth"
        if name in annotations:
            asked[limit] = _read(name, annotations[name], limit, wrong)
    values = _sensible(asked)
    for limit, why in _NEEDS.items():
        if asked.get(limit) and not values[limit]:
            wrong.append(f"{_where(annotation(direction, limit))}: {why}; left out")
    return {f"{direction}_{limit}": value for limit, value in values.items()}


_NEEDS = {
    "burst": "means nothing without a bandwidth",
    "peakrate": "must be more than the bandwidth",
    "minburst": "means nothing without a peakrate",
    "packet_burst": "means nothing without a packet rate",
}


def annotation(direction: Direction, limit: str) -> str:
    """The annotation of a limit.

    >>> annotation("egress", "packet_rate")
    'qos.projectcalico.org/egressPacketRate'
    """
    return QOS + direction + "".join(map(str.capitalize, limit.split("_")))


def _sensible(asked: Mapping[str, int]) -> dict[str, int]:
    """All limits of a direction, with defaults, and without those that mean nothing without another."""
    values = {limit: asked.get(limit, 0) for limit in QOS_RANGES}
    bandwidth, rate = values["bandwidth"], values["packet_rate"]
    values["burst"] = (values["burst"] or DEFAULT_BURST) if bandwidth else 0
    if not bandwidth or values["peakrate"] <= bandwidth:
        values["peakrate"] = 0
    if not values["peakrate"]:
        values["minburst"] = 0
    values["packet_burst"] = (values["packet_burst"] or DEFAULT_PACKET_BURST) if rate else 0
    return values


def _read(name: str, text: str, limit: str, wrong: list[str]) -> int:
    least, most = QOS_RANGES[limit]
    try:
        value = quantity(text)
    except ConfigError as error:
        wrong.append(f"{_where(name)}: {error}; off")
        return 0
    near = min(max(value, least), most)
    if near != value:
        wrong.append(f"{_where(name)}: {text} is not from {least} to {most}; taken as {near}")
    return near


def _clamped(value: int, limit: str) -> int:
    least, most = QOS_RANGES[limit]
    return min(max(value, least), most) if value > 0 else 0


def _where(name: str) -> str:
    return f"annotation {name}"
