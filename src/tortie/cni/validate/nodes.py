"""Several files: the configurations of one network on several nodes, whose ranges must not overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tortie.cni.validate.addresses import Range, ranges_of
from tortie.cni.validate.fields import flag_of, section_of
from tortie.cni.validate.findings import Report
from tortie.cni.validate.plugins import Plugin

ON_THE_NODE = ("bridge", "ptp")
"""Types whose pods have a network of their own on each node, which may be the same everywhere behind masquerading."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a file makes: its report, the network's name, its plugins."""

    report: Report
    name: str
    plugins: Sequence[Plugin]


def check(networks: Sequence[Network]) -> None:
    """Tells of each overlap with a file before, at the later one."""
    for index, later in enumerate(networks):
        for earlier in networks[:index]:
            for plugin, mine in _ranges(later):
                for other, theirs in _ranges(earlier):
                    if mine.span.overlaps(theirs.span):
                        _tell(later, plugin, mine, earlier, other, theirs)


def _ranges(network: Network) -> Iterator[tuple[Plugin, Range]]:
    for plugin in network.plugins:
        if plugin.kind is not None and plugin.ipam == "host-local":
            for found in ranges_of((*plugin.path, "ipam"), section_of(plugin.conf, "ipam")):
                yield plugin, found


def _tell(later: Network, plugin: Plugin, mine: Range, earlier: Network, other: Plugin, theirs: Range) -> None:
    where = (*mine.path, "rangeStart" if mine.span.first.number != mine.subnet.network.number + 1 else "subnet")
    text = f"{mine.span} and {theirs.span} of {earlier.report.file} overlap"
    if plugin.type in ON_THE_NODE and other.type in ON_THE_NODE:
        if not (flag_of(plugin.conf, "ipMasq") and flag_of(other.conf, "ipMasq")):
            later.report.warning(where, f"{text}: pods of these nodes cannot reach each other")
    elif later.name == earlier.name:
        later.report.error(where, f"{text}: pods of two nodes would have the same address")
    else:
        later.report.warning(where, f"{text}: two networks with the same addresses")
