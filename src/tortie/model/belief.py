"""What to make of what a datastore says: lists are not believed blindly. Values in, values out.

    a listing ─► older than what was seen of the kind? ──yes──► stale: not taken, looked at again
                   │ no
                   ▼
                 has another, older object than we know? ──yes──► rewritten: another history, a person must say
                   │ no
                   ▼
                 lacks objects that no watch said were deleted? ──yes──► in doubt: they are asked for, and listed again
                   │ no
                   ▼
                 taken

    ClusterInformation ─► gone, or of another GUID? ──yes──► none of this datastore is believed

A server that was restarted empty, restored from a backup, that lags behind its peers or leaves out half of a list looks
like a cluster in which everything has just been deleted. Nodes that believe it cut off all of their pods at once; nodes
that wait for a second word lose a second. So what is wrong here is told, and the picture stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tortie.model.node import ClusterInformation

Key = tuple[str, str]
"""Namespace and name."""

FEW = 8
"""Missing objects of a kind that are all asked for by name. Of more, so many are, and the kind is listed again."""
SECOND_LOOK = 0.5
"""Seconds until the second list: another moment, and behind a load balancer perhaps another server."""
FIRST_LOOK_AGAIN, LONGEST_LOOK_AGAIN = 0.2, 5.0
"""Seconds between two looks at a list that is not believed, doubled each time."""
PATIENCE = 10.0
"""Seconds of stale lists after which it is no server that lags behind, but a datastore that has gone back."""


class Verdict(StrEnum):
    TAKE = "take"
    STALE = "stale"
    REWRITTEN = "rewritten"
    DOUBT = "doubt"


@dataclass(frozen=True, slots=True)
class Judgement:
    """`why` in words, "" where all is well. `missing` are the objects in doubt, in their order."""

    verdict: Verdict
    why: str = ""
    missing: tuple[Key, ...] = ()


def revision_of(text: str) -> int:
    """The number of a revision; 0 where it has none, which says nothing."""
    return int(text) if text.isdecimal() else 0


def judge(plural: str, seen: int, known: Mapping[Key, int], revision: int, listed: Mapping[Key, int]) -> Judgement:
    """A listing at `revision` of objects at theirs, against the highest revision seen of the kind and what is known.

    >>> judge("pods", 9, {}, 7, {}).why
    'pods are listed as of revision 7, and 9 has been seen'
    """
    if 0 < revision < seen:
        return Judgement(Verdict.STALE, f"{plural} are listed as of revision {revision}, and {seen} has been seen")
    missing = []
    for key, at in known.items():
        if at > revision > 0:
            continue  # we have written or heard of it since
        now = listed.get(key)
        if now is None:
            missing.append(key)
        elif 0 < now < at:
            name = "/".join(filter(None, key))
            why = f"{plural}: {name} is of revision {now}, and {at} has been seen: this is not the history that was"
            return Judgement(Verdict.REWRITTEN, why)
    if not missing:
        return Judgement(Verdict.TAKE)
    many = f"{len(missing)} of {len(known)} {plural} are missing from a list, and nothing said that they went"
    return Judgement(Verdict.DOUBT, many, tuple(sorted(missing)))


def sample(missing: Sequence[Key], most: int = FEW) -> tuple[Key, ...]:
    """Those to ask for by name: all if they are few, else some from everywhere.

    >>> sample([("", name) for name in "abcdefghi"], 3)
    (('', 'a'), ('', 'd'), ('', 'g'))
    """
    if len(missing) <= most:
        return tuple(missing)
    return tuple(missing[number * len(missing) // most] for number in range(most))


def gone(missing: Collection[Key], second: Collection[Key], found: Collection[Key]) -> tuple[Key, ...]:
    """What really went: missing from both lists, and of those that were asked for none is there after all. One that is
    there says that the lists are wrong, and then nothing of what they lack is believed."""
    return () if found else tuple(sorted(set(missing) & set(second)))


def wrong_cluster(guid: str, information: ClusterInformation | None) -> str:
    """Why a datastore is not that of the cluster with this GUID; "" where it is, or nobody knows the GUID yet."""
    if not guid:
        return ""
    if information is None:
        return f"its ClusterInformation is gone: it may have been emptied; the cluster's GUID is {guid}"
    if information.spec.cluster_guid != guid:
        there = information.spec.cluster_guid or "none"
        return f"it is of another cluster: its GUID is {there}, and that of this node's cluster {guid}"
    return ""
