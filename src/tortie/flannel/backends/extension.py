"""extension: the operator's own commands bring packets to other nodes.

    begin       PreStartupCommand    ─► what it prints is published of this node
    carry_out   PostStartupCommand      once, when the subnet is known
                SubnetAddCommand        for each node, its subnet and address in variables, what it published on stdin
                SubnetRemoveCommand     for each that has gone, with what was said when it came

Source: flannel's extension backend. A command is run without a shell, but for one that only a shell can make sense of;
`"Shell": true` (or false) says so for all. None runs for longer than `Timeout` seconds (60). What fails, flannel's
leaves to its log; here it is done again, later and later, and told until it works.

The nodes that commands have run for are noted beside the subnet file, so that one that goes while no daemon runs is
removed by the next. A daemon that begins runs SubnetAddCommand for all nodes, as flannel's does, for PreStartupCommand
may have made everything anew; of one that is noted it may fail, as `ip route add` does of a route that is there. A
node that has changed is removed as what it was, and added as what it is.

One command runs at a time, removals first: an address may have gone to another node.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path as File

from tortie.base.errors import ConfigError
from tortie.flannel.backend import Backend, Published, Setting
from tortie.flannel.backend_options import BackendOptions
from tortie.flannel.commands import CommandFailed, is_for_a_shell, run
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import FlannelState, Place, Site, Ways

log = logging.getLogger(__name__)

COMMANDS = ("PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand")
TIMEOUT = 60
"""Seconds."""
RETRY, LONGEST_RETRY = 5.0, 300.0
"""Seconds from a command that failed to the next try, doubled each time."""
REMOVALS = 5
"""Tries to remove a node: what it is to be removed from may be gone itself."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What `Backend` says. `commands` are by their names, "" for none; `shell` None is to go by each command."""

    commands: Mapping[str, str]
    shell: bool | None = None
    timeout: int = TIMEOUT


@dataclass(frozen=True, slots=True)
class Node:
    """Another node, as commands are told of it."""

    subnet: str = ""
    subnet6: str = ""
    public_ip: str = ""
    public_ipv6: str = ""
    data: str = ""

    @property
    def key(self) -> str:
        return self.subnet or self.subnet6

    @property
    def variables(self) -> dict[str, str]:
        return {
            "SUBNET": self.subnet,
            "IPV6SUBNET": self.subnet6,
            "PUBLIC_IP": self.public_ip,
            "PUBLIC_IPV6": self.public_ipv6,
        }


FIELDS = tuple(field.name for field in fields(Node))


@dataclass(frozen=True, slots=True)
class Failed:
    """A command that has to be run again, not before `due`."""

    node: Node
    removal: bool
    line: str
    tries: int
    due: float


def wishes(config: NetworkConfig) -> Wishes:
    """Raises ConfigError naming the option."""
    options = BackendOptions(config)
    shell = None if options.anything("Shell") is None else options.boolean("Shell")
    made = Wishes(
        {name: options.text(name).strip() for name in COMMANDS}, shell, options.integer("Timeout", TIMEOUT, 1, 86400)
    )
    options.done()
    return made


def node_of(lease: Lease) -> Node:
    """Raises ConfigError where the data is no string, which is all that PreStartupCommand can say."""
    attrs = lease.attrs
    try:
        data = json.loads(attrs.data) if attrs.data else ""
    except ValueError:
        data = None
    if not isinstance(data, str | None) or (data is None and attrs.data != "null"):
        raise ConfigError(f"its BackendData {attrs.data} is not a JSON string")
    subnets, ips = (_text(lease.subnet), _text(lease.subnet6)), (_text(attrs.public_ip), _text(attrs.public_ipv6))
    return Node(*subnets, *ips, data or "")


def _text(value: object) -> str:
    return "" if value is None else str(value)


class Notes:
    """The file with the nodes that commands were begun for, and whether SubnetAddCommand has done its work. It goes
    with the machine's /run, as what they made does."""

    def __init__(self, file: File) -> None:
        self._file = file

    def __str__(self) -> str:
        return str(self._file)

    def read(self) -> dict[Node, bool]:
        """What cannot be read is nothing."""
        try:
            nodes = json.loads(self._file.read_text())["nodes"]
            return {Node(*(str(one[name]) for name in FIELDS)): one["added"] is True for one in nodes}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as why:
            log.warning("%s: cannot be read (%r): nodes that went meanwhile are not removed", self._file, why)
            return {}

    def write(self, nodes: Mapping[Node, bool]) -> None:
        """Whole, or not at all. Raises OSError."""
        self._file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = self._file.with_name(f"{self._file.name}.new")
        every = [{name: getattr(node, name) for name in FIELDS} | {"added": added} for node, added in nodes.items()]
        new.write_text(json.dumps({"nodes": every}) + "\n")
        os.replace(new, self._file)


class Extension:
    published_type = "extension"
    versions = frozenset({4, 6})
    watches = True
    asks_ways = False

    def __init__(self, wished: Wishes, notes: Notes, retry: float = RETRY) -> None:
        self._wished = wished
        self._notes = notes
        self._retry = retry
        self._started = False
        self._noted: dict[Node, bool] = {}
        """What is in the file, or should be."""
        self._unwritten = ""
        """Why it is not."""
        self._done: set[Node] = set()
        """Those that SubnetAddCommand has run for in this daemon's life."""
        self._failed: dict[str, Failed] = {}

    async def begin(self, site: Site, remembered: Attrs | None) -> Published:
        """Again when the node has another address: what follows PreStartupCommand is run again then, too."""
        self._started = False
        self._done.clear()
        self._failed.clear()
        for name, line in self._wished.commands.items():
            if line and self._wished.shell is None and is_for_a_shell(line):
                log.info("Backend.%s is run by a shell, as it is written for one", name)
        if not self._wished.commands["PreStartupCommand"]:
            return Published()
        try:
            return Published(json.dumps(await self._run("PreStartupCommand", {}), ensure_ascii=False))
        except CommandFailed as error:
            raise ConfigError(str(error), "Backend.PreStartupCommand") from None

    def mtu(self, site: Site) -> int:
        return site.external.mtu

    def want(self, place: Place, leases: Sequence[Lease], ways: Ways) -> FlannelState:
        """What commands make is theirs."""
        return FlannelState(networks=tuple(family.network for family in place.site.config.families))

    async def carry_out(self, place: Place, leases: Sequence[Lease]) -> Sequence[str]:
        """Raises ConfigError when PostStartupCommand fails."""
        if not self._started:
            self._noted = self._noted or self._notes.read()
            await self._post_startup(place)
            self._started = True
        problems: list[str] = []
        wanted: dict[str, Node] = {}
        held: set[str] = set()
        for lease in leases:
            try:
                node = node_of(lease)
                wanted[node.key] = node
            except ConfigError as error:
                held.add(_text(lease.subnet or lease.subnet6))
                problems.append(f"{lease.node or lease.subnet or lease.subnet6}: {error}")
        for node in [node for node in self._noted if wanted.get(node.key) != node and node.key not in held]:
            await self._remove(node, for_good=node.key not in wanted)
        for node in wanted.values():
            if node not in self._done:
                await self._add(node)
        self._failed = {key: one for key, one in self._failed.items() if one.removal or key in wanted}
        problems += [self._unwritten] if self._unwritten else []
        return (*problems, *(one.line for one in self._failed.values()))

    async def end(self) -> None:
        """What commands have made stays."""

    # --- commands ---------------------------------------------------------------------------------------------------

    async def _run(self, name: str, variables: Mapping[str, str], stdin: str = "") -> str:
        line = self._wished.commands[name]
        if not line:
            return ""
        log.debug("%s: %s %s", name, " ".join(f"{key}={value}" for key, value in variables.items()), line)
        return await run(line, self._wished.shell, variables, stdin + "\n", self._wished.timeout)

    async def _post_startup(self, place: Place) -> None:
        config, lease = place.site.config, place.lease
        own = node_of(replace(lease, attrs=replace(lease.attrs, data=None)))
        network = _text(config.v4.network if config.v4 else None)
        network6 = _text(config.v6.network if config.v6 else None)
        try:
            await self._run("PostStartupCommand", own.variables | {"NETWORK": network, "IPV6NETWORK": network6})
        except CommandFailed as error:
            raise ConfigError(str(error), "Backend.PostStartupCommand") from None

    async def _add(self, node: Node) -> None:
        """Noted before it is begun: what is killed half way is removed all the same."""
        if self._waits(node, removal=False):
            return
        before = self._noted.get(node, False)
        if node not in self._noted:
            self._note(node, False)
        try:
            await self._run("SubnetAddCommand", node.variables, node.data)
        except CommandFailed as error:
            if not before:
                self._again(node, f"{node.key}: SubnetAddCommand: {error}", removal=False)
                return
            log.info("%s was added by the daemon before this one, and now SubnetAddCommand says: %s", node.key, error)
        self._done.add(node)
        self._failed.pop(node.key, None)
        if not before:
            self._note(node, True)

    async def _remove(self, node: Node, for_good: bool) -> None:
        """`for_good`: nothing takes its place, so that there is time to try again."""
        if self._waits(node, removal=True):
            return
        self._done.discard(node)
        self._noted[node] = False
        try:
            await self._run("SubnetRemoveCommand", node.variables, node.data)
        except CommandFailed as error:
            tries = self._again(node, f"{node.key}: SubnetRemoveCommand: {error}", removal=True)
            if for_good and tries < REMOVALS:
                return
            log.warning("%s: given up to remove what it was: %s", node.key, error)
        self._failed.pop(node.key, None)
        self._note(node, None)

    def _waits(self, node: Node, *, removal: bool) -> bool:
        """Whether this has failed, and it is too early to try it again."""
        one = self._failed.get(node.key)
        return one is not None and (one.node, one.removal) == (node, removal) and time.monotonic() < one.due

    def _again(self, node: Node, line: str, *, removal: bool) -> int:
        """It has failed so many times in a row."""
        one = self._failed.get(node.key)
        tries = 1 + (one.tries if one is not None and (one.node, one.removal) == (node, removal) else 0)
        due = time.monotonic() + min(LONGEST_RETRY, self._retry * 2 ** (tries - 1))
        self._failed[node.key] = Failed(node, removal, line, tries, due)
        return tries

    def _note(self, node: Node, added: bool | None) -> None:
        """None: it is gone. A file that cannot be written is told, and keeps no command from running."""
        if added is None:
            self._noted.pop(node, None)
        else:
            self._noted[node] = added
        try:
            self._notes.write(self._noted)
            self._unwritten = ""
        except OSError as why:
            self._unwritten = f"{self._notes}: cannot be written: {why.strerror}"


def backend(config: NetworkConfig, setting: Setting) -> Backend:
    name = "_".join(str(family.network).replace("/", "-") for family in config.families)
    return Extension(wishes(config), Notes(setting.run_dir / f"extension-{name}.json"))
