"""Where name servers are: `10.96.0.10`, `10.96.0.10:5353`, `[fd00::a]:53`, `:53` on every address; with commas more."""

from __future__ import annotations

from dataclasses import dataclass

from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError

PORT = 53


@dataclass(frozen=True, slots=True)
class Place:
    """Without a host: every address of this machine."""

    host: str
    port: int = PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def place(text: str, where: str, *, anywhere: bool = False) -> Place:
    """One of them; `anywhere`: it may be every address. Raises ConfigError that begins with `where`.

    >>> str(place("fd00::a", "")), str(place("[fd00::a]:99", "")), str(place(":99", "", anywhere=True))
    ('[fd00::a]:53', '[fd00::a]:99', ':99')
    """
    text = text.strip()
    host, colon, port = text, "", ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = (rest[:1], rest[1:]) if bracket else ("?", "")
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    number = int(port) if port.isascii() and port.isdecimal() and len(port) < 6 else -1
    number = PORT if not colon else number
    if not 0 <= number < 65536 or colon not in ("", ":") or not _is_host(host, anywhere=anywhere):
        forms = f"ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT{', or :PORT' if anywhere else ''}"
        raise ConfigError(f'"{text}" is not where a name server can be: write {forms}', where)
    return Place(host, number)


def places(text: str, where: str, *, anywhere: bool = False) -> tuple[Place, ...]:
    """Those of a list with commas, each once. Raises ConfigError, also when there is none."""
    found = tuple(dict.fromkeys(place(one, where, anywhere=anywhere) for one in text.split(",") if one.strip()))
    if not found:
        raise ConfigError("names no address", where)
    return found


def _is_host(text: str, *, anywhere: bool) -> bool:
    try:
        parse_ip(text)
    except ConfigError:
        return anywhere and not text
    return True
