"""What a change does to sessions: which are new, which go, which are closed and opened again, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tortie.bgp.sessions import Peer
from tortie.calc.bgp_plan.moment import VERSIONS, Moment
from tortie.calc.bgp_plan.reach import Half, Link, differences, pairs


class Fate(StrEnum):
    """What becomes of a session."""

    ADDED = "added"
    REMOVED = "removed"
    RESTARTED = "restarted"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Session:
    """A session between two ends, before and after. `kind` is the word that its name begins with, of the two the later:
    `Mesh`, `Global`, `Node`. `why` has words for each thing that it is restarted for."""

    ends: tuple[str, str]
    version: int
    fate: Fate
    kind: str
    why: tuple[str, ...] = ()


def session_changes(before: Moment, after: Moment) -> tuple[Session, ...]:
    """Every session of either moment, by IP version and ends, a node first."""
    nodes = before.nodes.keys() | after.nodes.keys()
    return tuple(
        _session((here, there) if here in nodes else (there, here), version, before, after)
        for version in VERSIONS
        for here, there in sorted({*pairs(before.graphs[version].links), *pairs(after.graphs[version].links)})
        if here in nodes or there in nodes
    )


def one_sided(moment: Moment) -> Iterator[Half]:
    """The sessions that will not come about, as one end wants them and the other does not."""
    for version in VERSIONS:
        yield from moment.graphs[version].halves


def _session(ends: tuple[str, str], version: int, before: Moment, after: Moment) -> Session:
    here, there = ends
    old = before.graphs[version].links.get(here, {}).get(there)
    new = after.graphs[version].links.get(here, {}).get(there)
    kind = _kind(new or old)
    if old is None or new is None:
        return Session(ends, version, Fate.ADDED if old is None else Fate.REMOVED, kind)
    why = dict.fromkeys((*_reasons(here, old.mine, new.mine), *_reasons(there, old.theirs, new.theirs)))
    for node, was, now in ((here, old, new), (there, *_backwards(before, after, version, ends))):
        if was.own != now.own:
            why[f"router id, address, port or binding of {node}"] = None
    if old.steady != new.steady:
        why["one of two for one neighbour" if old.steady else "no longer one of two for one neighbour"] = None
    return Session(ends, version, Fate.RESTARTED if why else Fate.KEPT, kind, tuple(why))


def _backwards(before: Moment, after: Moment, version: int, ends: tuple[str, str]) -> tuple[Link, Link]:
    """The session as the other end has it."""
    here, there = ends
    return before.graphs[version].links[there][here], after.graphs[version].links[there][here]


def _kind(link: Link | None) -> str:
    return link.mine.name.partition("_")[0] if link is not None else ""


def _reasons(node: str, old: Peer, new: Peer) -> Iterator[str]:
    """In words; a password is not told."""
    fields = differences(old, new)
    if _word(old.name) != _word(new.name):
        yield f"{_word(old.name)} becomes {_word(new.name)}"
        fields = tuple(name for name in fields if name != "passive")  # which follows from it
    if {"rr_client", "cluster_id"} & set(fields):
        yield f"{node} reflects with cluster id {new.cluster_id}" if new.rr_client else f"{node} reflects no more"
    for name, words in _FIELDS.items():
        if name in fields:
            was, now = getattr(old, name), getattr(new, name)
            yield f"{words} on {node}" + ("" if name == "password" else f": {_said(was)} → {_said(now)}")
    rest = [name for name in fields if name not in (*_FIELDS, "name", "rr_client", "cluster_id")]
    if rest:
        yield f"{', '.join(rest)} on {node}"


_FIELDS = {
    "passive": "passive",
    "local_as": "local AS",
    "remote_as": "peer's AS",
    "password": "password",
    "ip": "address",
    "source": "source address",
    "port": "port",
    "ttl_hops": "TTL security",
    "keepalive_time": "keepalive time",
    "restart_time": "restart time",
    "allowed_local_as": "own AS allowed",
}
"""The fields of a session whose change restarts it, in words."""


def _word(name: str) -> str:
    return name.partition("_")[0]


def _said(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)
