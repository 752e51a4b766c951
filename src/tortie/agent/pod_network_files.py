"""What this node's CNI configurations say of pods that other nodes should have routes to: files to PodNetworks.

    /etc/cni/net.d/*.conflist, *.conf, *.json ─► plugins of TYPES with "autoRoutes" ─► PodNetwork, or why it is none

A file that cannot be read, such as one that is being written, goes on counting as it was understood last: routes to
running pods do not go away with a comma.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.node_addresses import Link
from tortie.cni.conflist import PLUGIN_SUFFIXES, ConfList, load_conflist
from tortie.cni.spec import lookup
from tortie.model.pod_networks import PodNetwork, Span

SUFFIXES = (".conflist", *PLUGIN_SUFFIXES)
WITH_MASTER = ("ipvlan", "macvlan")
TYPES = (*WITH_MASTER, "bridge", "ptp")
IPVLAN_MODES = ("l2", "l3", "l3s")
BGP = "bgp"
"""The value of autoRoutes that has routers told, too."""

Master = Callable[[], str]
"""The link of the default route, "" without one: the master of a configuration that names none."""


@dataclass(frozen=True, slots=True)
class Found:
    """The networks, in order of their files, and what is wrong, by where."""

    networks: tuple[PodNetwork, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)


def signature(directory: Path) -> tuple[tuple[str, int, int, int], ...]:
    """What changes when a configuration does. Raises OSError for a directory that cannot be read."""
    found = []
    try:
        names = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    for path in names:
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        found.append((path.name, about.st_mtime_ns, about.st_size, about.st_ino))
    return tuple(found)


def read(
    names: Iterable[str], directory: Path, before: Sequence[PodNetwork], links: Sequence[Link], master: Master
) -> Found:
    """`names` are files of the directory; `before` is what they said when they were read last. Of two networks of one
    name the first file's counts, lists before single plugins, as for a runtime."""
    networks: dict[str, PodNetwork] = {}
    problems: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (not name.endswith(".conflist"), name)):
        try:
            found: Iterable[PodNetwork] = tuple(of_list(load_conflist(directory / name), name, master))
        except ConfigError as error:
            problems[name] = str(error).removeprefix(f"{directory / name}: ")
            found = [one for one in before if one.file == name]
        for one in found:
            networks.setdefault(one.name, one)
    return Found(tuple(with_addresses(one, links) for one in networks.values()), problems)


def of_list(conflist: ConfList, file: str, master: Master) -> Iterator[PodNetwork]:
    """The network of a list, if a plugin of it asks for routes. Raises ConfigError."""
    for index, plugin in enumerate(conflist.plugins):
        asked = lookup(plugin, "autoRoutes", False)
        if asked is False or asked is None:
            continue
        where = f"plugins[{index}]" if len(conflist.plugins) > 1 else ""
        try:
            yield _of_plugin(conflist.name, plugin, asked, file, master)
        except ConfigError as error:
            raise error.within(where) if where else error from None
        return


def _of_plugin(name: str, plugin: Mapping[str, Any], asked: object, file: str, master: Master) -> PodNetwork:
    kind = lookup(plugin, "type", "")
    if asked is not True and asked != BGP:
        raise ConfigError(f'must be true, false or "{BGP}"', "autoRoutes")
    if kind not in TYPES:
        raise ConfigError(f"there are no routes to pods of the type {kind}, only of {', '.join(TYPES)}", "autoRoutes")
    if lookup(plugin, "linkInContainer", False):
        raise ConfigError("its master is in the pod, where no node has a way to", "linkInContainer")
    mode = kind if kind not in WITH_MASTER else "l2" if kind == "macvlan" else _text(plugin, "mode") or "l2"
    if kind == "ipvlan" and mode not in IPVLAN_MODES:
        raise ConfigError(f'"{mode}" is not one of {", ".join(IPVLAN_MODES)}', "mode")
    link = _text(plugin, "master") or master() if kind in WITH_MASTER else ""
    if kind in WITH_MASTER and not link:
        raise ConfigError("there is no default route whose link it could be: name one", "master")
    network = PodNetwork(
        name=name,
        mode=mode,
        spans=tuple(_spans(lookup(plugin, "ipam", {}))),
        master=link,
        announce=asked == BGP,
        file=file,
    )
    if network.announce and not network.routed:
        text = (
            "routers send to the node, which hands nothing on to pods of this mode: they are on the network themselves"
        )
        raise ConfigError(text, "autoRoutes")
    return network


def _text(conf: Mapping[str, Any], key: str) -> str:
    value = lookup(conf, key, "")
    if not isinstance(value, str):
        raise ConfigError("must be a string", key)
    return value


def _spans(ipam: object) -> Iterator[Span]:
    """What host-local gives out: `subnet`, and `ranges`. Raises ConfigError."""
    if not isinstance(ipam, Mapping) or lookup(ipam, "type", "") != "host-local":
        raise ConfigError("must be host-local: which subnet is this node's is not known otherwise", "ipam.type")
    ranges = [ipam] if lookup(ipam, "subnet") else []
    sets = lookup(ipam, "ranges") or []
    if not isinstance(sets, Sequence) or not all(isinstance(one, Sequence) for one in sets):
        raise ConfigError("must be a list of lists", "ipam.ranges")
    ranges += [one for several in sets for one in several]
    if not ranges:
        raise ConfigError("there is none", "ipam.subnet")
    for one in ranges:
        if not isinstance(one, Mapping):
            raise ConfigError("must be objects with a subnet", "ipam.ranges")
        yield _span(one)


def _span(range_: Mapping[str, Any]) -> Span:
    try:
        net = parse_net(_text(range_, "subnet"))
        start, end = (_text(range_, key) for key in ("rangeStart", "rangeEnd"))
        for text in filter(None, (start, end)):
            if parse_ip(text) not in net:
                raise ConfigError(f"{text} is not in {net}")
    except ConfigError as error:
        raise error.within("ipam") from None
    return Span(subnet=str(net), start=start, end=end)


def with_addresses(network: PodNetwork, links: Sequence[Link]) -> PodNetwork:
    """The network with its master's addresses as they are now, but for those that only the link itself knows."""
    own = [address for link in links if link.name == network.master for address in link.addresses]
    told = tuple(str(address) for address in own if not address.is_link_local)
    return msgspec.structs.replace(network, addresses=told)


def since(networks: Iterable[PodNetwork], published: Iterable[PodNetwork], now: str) -> tuple[PodNetwork, ...]:
    """The networks with the time since when this node has each of its subnets: what was published, or `now`."""
    known = {(one.name, span.subnet): span.since for one in published for span in one.spans}
    return tuple(
        msgspec.structs.replace(
            one,
            spans=tuple(
                msgspec.structs.replace(span, since=known.get((one.name, span.subnet)) or now) for span in one.spans
            ),
        )
        for one in networks
    )
