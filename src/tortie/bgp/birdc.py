"""BIRD's control protocol without the socket: bytes in, replies out, and the tables that replies hold.

A command is one line of text. A reply is lines, each with a four-digit code (BIRD's `doc/reply_codes`):

    1002-direct1    Direct     ---        up     23:36:55.508     `NNNN-`  more lines follow
     static4    Static     master4    up     23:36:55.508         ` `      more of the same code
    0000                                                          `NNNN `  the last line

On connecting BIRD greets with a reply of its own (0001). Codes from 8000 are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum

from tortie.base.addr import IP, Net, parse_ip, parse_net
from tortie.base.errors import ConfigError, Unavailable

ESTABLISHED = "Established"
"""The state of a session over which routes can flow, as BIRD says it."""

# A line longer than this is not BIRD: it prints into buffers of 4 KiB (CLI_TX_BUF_SIZE, nest/cli.h).
MAX_LINE = 65536


class Code(IntEnum):
    """Reply codes that are acted upon (BIRD's `doc/reply_codes`)."""

    OK = 0
    WELCOME = 1
    READING_CONFIGURATION = 2
    RECONFIGURED = 3
    RECONFIGURATION_IN_PROGRESS = 4
    RECONFIGURATION_QUEUED = 5
    RECONFIGURATION_IGNORED = 6
    SHUTDOWN = 7
    GRACEFUL_RESTART = 24
    VERSION = 1000
    PROTOCOL = 1002
    PROTOCOL_DETAILS = 1006
    ROUTE = 1007
    ROUTE_DETAILS = 1008
    STATUS = 1011
    ROUTE_ATTRIBUTES = 1012
    ROUTE_NOT_FOUND = 8001
    BAD_CONFIGURATION = 8002
    NO_PROTOCOL = 8003


FIRST_ERROR = 8000


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a reply."""

    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What BIRD answered to one command; `str()` is what `birdc` would print."""

    lines: tuple[Line, ...]

    def __str__(self) -> str:
        return "\n".join(line.text for line in self.lines).rstrip("\n")

    @property
    def code(self) -> int:
        """The code of the last line: the verdict."""
        return self.lines[-1].code

    @property
    def text(self) -> str:
        """The text of the last line: the message of a verdict."""
        return self.lines[-1].text

    @property
    def ok(self) -> bool:
        """False for BIRD's errors: run-time (8xxx) and parse (9xxx)."""
        return self.code < FIRST_ERROR


@dataclass(slots=True)
class Codec:
    """Collects bytes from the control socket into replies. One codec for one connection."""

    _buffer: bytes = b""
    _code: int | None = None
    _lines: list[Line] = field(default_factory=list)

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that `data` completes. Raises Unavailable when the other side does not speak the protocol."""
        *complete, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > MAX_LINE:
            raise _not_bird(self._buffer)
        replies = []
        for raw in complete:
            if self._take(raw):
                replies.append(Reply(tuple(self._lines)))
                self._lines = []
                self._code = None
        return replies

    def _take(self, raw: bytes) -> bool:
        """Adds one line; True when it ends a reply."""
        text = raw.decode("utf-8", "replace")
        if text.startswith("+"):  # the log, echoed to a client that asked for it: belongs to no reply
            return False
        if text.startswith(" ") and self._code is not None:
            self._lines.append(Line(self._code, text[1:]))
            return False
        if not (len(text) >= 5 and text[:4].isdecimal() and text[4] in "- "):
            raise _not_bird(raw)
        self._code = int(text[:4])
        self._lines.append(Line(self._code, text[5:]))
        return text[4] == " "


def _not_bird(raw: bytes) -> Unavailable:
    return Unavailable(f"not BIRD's control protocol: {raw[:40]!r}")


def encode(command: str) -> bytes:
    """A command as bytes. Raises ConfigError for a command of more than one line."""
    if "\n" in command:
        raise ConfigError(f"a command to BIRD is one line: {command!r}")
    return command.encode() + b"\n"


# ---------------------------------------------------------------------------------------------------- show status


@dataclass(frozen=True, slots=True)
class Status:
    """`show status`. Times are BIRD's local time, without a zone, as it prints them."""

    version: str
    router_id: str
    hostname: str
    server_time: datetime
    last_reboot: datetime
    last_reconfiguration: datetime
    message: str
    recovering: bool = False
    waiting_channels: int = 0

    @property
    def ready(self) -> bool:
        """Running and with every route in the FIB: graceful restart recovery is over."""
        return not self.recovering


_STATUS_FIELDS = re.compile(
    r"^(Router ID|Hostname|Current server time|Last reboot|Last reconfiguration) (?:is|on) (.+)$"
)


def parse_status(reply: Reply) -> Status:
    """The answer to `show status`. Raises ConfigError for BIRD's errors, Unavailable for an answer of another kind."""
    _require(reply)
    fields: dict[str, str] = {}
    waiting = 0
    recovering = False
    for line in reply.lines:
        if line.code == Code.VERSION:
            fields["version"] = line.text.removeprefix("BIRD ").strip()
        elif line.code == Code.STATUS and (match := _STATUS_FIELDS.match(line.text)):
            fields[match[1]] = match[2]
        elif line.code == Code.GRACEFUL_RESTART:
            recovering = True
            if channels := re.search(r"Waiting for (\d+) channels", line.text):
                waiting = int(channels[1])
    try:
        return Status(
            version=fields["version"],
            router_id=fields["Router ID"],
            hostname=fields.get("Hostname", ""),
            server_time=datetime.fromisoformat(fields["Current server time"]),
            last_reboot=datetime.fromisoformat(fields["Last reboot"]),
            last_reconfiguration=datetime.fromisoformat(fields["Last reconfiguration"]),
            message=reply.text,
            recovering=recovering,
            waiting_channels=waiting,
        )
    except (KeyError, ValueError) as err:
        raise Unavailable(f"an answer to `show status` that is not understood: {err}") from None


# ------------------------------------------------------------------------------------------------- show protocols


class PeerKind(StrEnum):
    """Why a session exists, in the words of `calicoctl node status`."""

    MESH = "node-to-node mesh"
    GLOBAL = "global"
    NODE = "node specific"


_KINDS = {"Mesh": PeerKind.MESH, "Global": PeerKind.GLOBAL, "Node": PeerKind.NODE}
_PEER_NAME = re.compile(r"^(Mesh|Global|Node)_(.+?)(?:_port_(\d+))?$")
_IPV4_NAME = re.compile(r"^\d+_\d+_\d+_\d+$")


@dataclass(frozen=True, slots=True)
class PeerName:
    """What the name of a BGP protocol tells: `Global_10_0_0_9_port_1179`."""

    kind: PeerKind
    ip: IP
    port: int | None = None


def parse_peer_name(name: str) -> PeerName | None:
    """The peer that a protocol of this name speaks to; None for protocols that are no node's or operator's peer."""
    match = _PEER_NAME.match(name)
    if match is None:
        return None
    kind, address, port = match.groups()
    separator = "." if _IPV4_NAME.match(address) else ":"
    try:
        ip = parse_ip(address.replace("_", separator))
    except ConfigError:
        return None
    return PeerName(_KINDS[kind], ip, int(port) if port else None)


@dataclass(frozen=True, slots=True)
class Channel:
    """What one protocol exchanges with one table. Counts are routes now, not updates so far."""

    name: str
    state: str = ""
    table: str = ""
    preference: int = 0
    imported: int = 0
    filtered: int = 0
    exported: int = 0
    preferred: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """The BGP side of a protocol. Without `show protocols all` only `state` and `error` are known.

    BIRD tells no port; where it is not the usual one our protocol's name does (`Protocol.peer`). `restarting`: the peer
    is away to restart, and its routes are kept for it.
    """

    state: str
    error: str = ""
    neighbor: IP | None = None
    neighbor_as: int | None = None
    local_as: int | None = None
    neighbor_id: str = ""
    source: IP | None = None
    restarting: bool = False

    @property
    def established(self) -> bool:
        """Routes can flow."""
        return self.state == ESTABLISHED


@dataclass(frozen=True, slots=True)
class Protocol:
    """One row of `show protocols`; `state` is start, up, flush, stop or down; `since` as BIRD prints it."""

    name: str
    proto: str
    table: str
    state: str
    since: str
    info: str = ""
    session: Session | None = None
    channels: tuple[Channel, ...] = ()

    @property
    def peer(self) -> PeerName | None:
        """Whose session this is, for the BGP sessions that status reports count."""
        return parse_peer_name(self.name) if self.proto == "BGP" else None


# The time is one word, or two with a long `timeformat`.
_SINCE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?|\S+"
_PROTOCOL_ROW = re.compile(rf"^(\S+) +(\S+) +(\S+) +(\S+) +({_SINCE})(?: +(.*))?$")
_ROUTE_COUNT = re.compile(r"(\d+) (imported|filtered|exported|preferred)")


def parse_protocols(reply: Reply) -> tuple[Protocol, ...]:
    """The answer to `show protocols` or `show protocols all`, in BIRD's order; none when none matched."""
    if reply.code == Code.NO_PROTOCOL:
        return ()
    _require(reply)
    rows: list[tuple[str, list[str]]] = []
    for line in reply.lines:
        if line.code == Code.PROTOCOL and line.text:
            rows.append((line.text, []))
        elif line.code == Code.PROTOCOL_DETAILS and rows:
            rows[-1][1].append(line.text)
    return tuple(_protocol(row, details) for row, details in rows)


def _protocol(row: str, details: list[str]) -> Protocol:
    match = _PROTOCOL_ROW.match(row)
    if match is None:
        raise Unavailable(f"a protocol row that is not understood: {row!r}")
    name, proto, table, state, since, info = match.groups(default="")
    own, channels = _split_details(details)
    session = _session(info.strip(), own) if proto == "BGP" else None
    return Protocol(name, proto, table, state, since, " ".join(info.split()), session, channels)


def _split_details(details: list[str]) -> tuple[dict[str, str], tuple[Channel, ...]]:
    """The `Key: value` lines of the protocol itself, and those of each channel below it; a line without a colon is a
    key, too."""
    own: dict[str, str] = {}
    channels: list[tuple[str, dict[str, str]]] = []
    for text in details:
        if text.startswith("  Channel "):
            channels.append((text.removeprefix("  Channel ").strip(), {}))
            continue
        key, colon, value = text.strip().partition(":")
        into = channels[-1][1] if channels else own
        into.setdefault(key if colon else text.strip(), value.strip())
    return own, tuple(_channel(name, fields) for name, fields in channels)


def _channel(name: str, fields: Mapping[str, str]) -> Channel:
    counts = {word: int(number) for number, word in _ROUTE_COUNT.findall(fields.get("Routes", ""))}
    return Channel(
        name,
        state=fields.get("State", ""),
        table=fields.get("Table", ""),
        preference=int(fields.get("Preference", "0")),
        **counts,
    )


def _session(info: str, fields: Mapping[str, str]) -> Session:
    state, _, error = info.partition(" ")
    address = fields.get("Neighbor address", "").partition("%")[0]
    source = fields.get("Source address", "").partition("%")[0]
    return Session(
        state=fields.get("BGP state") or state or "Down",
        error=fields.get("Last error") or error.strip(),
        neighbor=parse_ip(address) if address else None,
        neighbor_as=_number(fields.get("Neighbor AS")),
        local_as=_number(fields.get("Local AS")),
        neighbor_id=fields.get("Neighbor ID", ""),
        source=parse_ip(source) if source else None,
        restarting="Neighbor graceful restart active" in fields,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


# ----------------------------------------------------------------------------------------------------- show route


class Origin(StrEnum):
    """Where a route was learned, in the words of CalicoNodeStatus (`learnedFrom.sourceType`)."""

    KERNEL = "Kernel"
    STATIC = "Static"
    DIRECT = "Direct"
    MESH = "NodeMesh"
    PEER = "BGPPeer"


@dataclass(frozen=True, slots=True)
class Hop:
    """One next hop: through a neighbour (`via`) or straight to a link. `dev` is empty for an unreachable one."""

    via: IP | None
    dev: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """One row of `show route`. `kind` is unicast, blackhole, unreachable or prohibited; attributes need `all`."""

    table: str
    prefix: Net
    kind: str
    protocol: str
    since: str
    best: bool
    preference: int
    hops: tuple[Hop, ...] = ()
    learned_from: IP | None = None
    sync_error: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def origin(self) -> Origin:
        """Told from the names that our configuration gives to protocols."""
        for prefix, origin in _ORIGINS:
            if self.protocol.startswith(prefix):
                return origin
        return Origin.PEER


_ORIGINS = (
    ("kernel", Origin.KERNEL),
    ("static", Origin.STATIC),
    ("direct", Origin.DIRECT),
    ("Mesh_", Origin.MESH),
)
_ROUTE_ROW = re.compile(
    r"^(?P<net>\S*) +(?P<kind>unicast|blackhole|unreachable|prohibited)"
    rf" \[(?P<protocol>\S+) (?P<since>{_SINCE}?)(?: from (?P<source>[^\s\]]+))?\]"
    r"(?: (?P<mark>[*!]))?(?: \((?P<preference>\d+)[^)]*\))?"
)
_HOP = re.compile(r"^\t(?:via (?P<via>\S+) on|dev) (?P<dev>\S+)(?:.* weight (?P<weight>\d+))?")


@dataclass(slots=True)
class _Row:
    """A route being read: its first line, and what follows it."""

    table: str
    prefix: Net
    match: re.Match[str]
    hops: list[Hop] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)

    def route(self) -> Route:
        mark, source = self.match["mark"], self.match["source"]
        return Route(
            table=self.table,
            prefix=self.prefix,
            kind=self.match["kind"],
            protocol=self.match["protocol"],
            since=self.match["since"],
            best=mark is not None,
            preference=int(self.match["preference"] or 0),
            hops=tuple(self.hops),
            learned_from=parse_ip(source.partition("%")[0]) if source else None,
            sync_error=mark == "!",
            attributes=self.attributes,
        )


def parse_routes(reply: Reply) -> tuple[Route, ...]:
    """The answer to `show route` or `show route all`, in BIRD's order; none when none matched."""
    if reply.code == Code.ROUTE_NOT_FOUND:
        return ()
    _require(reply)
    return tuple(row.route() for row in _rows(reply))


def _rows(reply: Reply) -> Iterator[_Row]:
    table = ""
    row: _Row | None = None
    for line in reply.lines:
        text = line.text
        if line.code in (Code.ROUTE_DETAILS, Code.ROUTE_ATTRIBUTES):
            if row is not None:
                key, _, value = text.strip().partition(":")
                row.attributes[key] = value.strip()
        elif line.code != Code.ROUTE:
            continue
        elif text.startswith("Table "):
            table = text.removeprefix("Table ").rstrip(":")
        elif hop := _HOP.match(text):
            if row is not None:
                row.hops.append(_hop(hop))
        elif match := _ROUTE_ROW.match(text):
            prefix = parse_net(match["net"]) if match["net"] else row.prefix if row is not None else None
            if prefix is None:
                raise Unavailable(f"a route row without a prefix: {text!r}")
            if row is not None:
                yield row
            row = _Row(table, prefix, match)
    if row is not None:
        yield row


def _hop(match: re.Match[str]) -> Hop:
    via = match["via"]
    return Hop(parse_ip(via.partition("%")[0]) if via else None, match["dev"], int(match["weight"] or 1))


def _require(reply: Reply) -> None:
    """Raises ConfigError with BIRD's words for an error reply."""
    if not reply.ok:
        raise ConfigError(f"{reply.code:04d} {reply.text}", "bird")
