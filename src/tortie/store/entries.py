"""Lists whose entries each stand for themselves: one that cannot be read is left out, and costs none of the others.

    endpoints: [good, bad, good] ──► [good, good], and a line that says where the bad one is and what is wrong with it

All readers of what other programs wrote ask here, so that the datastore makes no difference. Where an entry that is
missing would change what the others mean (rules, networks, ports that a policy is about) the object is refused whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from tortie.model.meta import Resource
from tortie.model.misfit import first_misfit, without_nulls
from tortie.model.service import EndpointSlice

SEPARATE: Mapping[type[Resource], tuple[str, ...]] = {EndpointSlice: ("endpoints", "ports")}
"""The lists of each kind that are so. Their names are the same in documents as here."""


def readable(kind: type[Resource], name: str, entries: Any, told: list[str]) -> Any:
    """What can be read of a field, if it is such a list. `told` gets a line for each entry that is left out."""
    if name not in SEPARATE.get(kind, ()) or not isinstance(entries, list):
        return entries
    (item, _), whole = get_args(get_type_hints(kind)[name]), []
    for number, one in enumerate(entries):
        place = f"{name}[{number}]"
        misfit = first_misfit(without_nulls(one, item), item, place)
        if misfit is None:
            whole.append(one)
        else:
            told.append(f"{misfit[0]}: {misfit[1]}; {place} is left out")
    return whole
