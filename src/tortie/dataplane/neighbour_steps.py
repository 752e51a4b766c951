"""The steps to neighbours and forwarding entries, and carrying them out: the one thing that these stages do alike."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

from tortie.base.plan import Op, Plan, Verb, diff
from tortie.kernel.live_neighbours import Entry, Key
from tortie.kernel.neighbours import Forwarding, apply_many
from tortie.kernel.netlink import Netlink

GONE = (errno.ENOENT, errno.ENODEV)


def plan(want: Mapping[Key, Entry], have: Mapping[Key, Entry]) -> Plan[Key, Entry]:
    """The steps from what is to what should be."""
    return diff(want, have, _words)


def _words(verb: Verb, _: Key, entry: Entry) -> str:
    what = "bridge fdb" if isinstance(entry, Forwarding) else "ip neighbour"
    return f"{what} {'delete' if verb is Verb.DELETE else 'replace'} {entry}"


def carry_out(ops: Iterable[Op[Key, Entry]], netns: str | None) -> None:
    """All steps, in a namespace (path; None: this one's). The first refusal is raised after the others were tried; what
    is gone already is none. Raises KernelError."""
    steps = [("replace", op.want) if op.want is not None else ("delete", op.have) for op in ops]
    if not steps:
        return
    with Netlink(netns) as nl:
        refused = apply_many(nl, [(verb, entry) for verb, entry in steps if entry is not None])
    serious = [error for _, error in refused if error.errno not in GONE]
    if serious:
        raise serious[0]
