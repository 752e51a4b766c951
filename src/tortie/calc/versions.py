"""Which Calico's data model a datastore holds, against the one that this software knows. Pure.

A newer node writes its version into the ClusterInformation; a command of another version asks before it touches data
whose meaning may be another.
"""

from __future__ import annotations

from msgspec.structs import replace

from tortie.model.node import ClusterInformation

CALICO_VERSION = "v3.32.1"
"""The release of Calico whose resources and behaviour these are."""


def mismatch(ours: str, information: ClusterInformation | None) -> str:
    """What to say of a datastore of another version; "" when versions agree, or nobody has said one."""
    theirs = "" if information is None else information.spec.calico_version
    if not theirs or _numbers(theirs) == _numbers(ours):
        return ""
    return (
        f"version mismatch: client version {ours}, cluster version {theirs}. Use --allow-version-mismatch to override"
    )


def raised(ours: str, information: ClusterInformation) -> ClusterInformation | None:
    """The ClusterInformation as a node of `ours` writes it; None when it says as much or more already."""
    theirs = information.spec.calico_version
    if theirs and _numbers(theirs) >= _numbers(ours):
        return None
    return replace(information, spec=replace(information.spec, calico_version=ours))


def _numbers(version: str) -> tuple[int, ...]:
    """`v3.32.1-dirty` is (3, 32, 1). What has no numbers is older than all."""
    parts = version.removeprefix("v").partition("-")[0].split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()
