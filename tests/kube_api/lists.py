"""LIST: which objects at which revision, page by page."""

from __future__ import annotations

import base64
import binascii
import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kube_api.faults import Lie
from kube_api.kinds import Kind
from kube_api.selectors import Selection
from kube_api.statuses import Cause, bad_request, expired, forbidden_field, invalid, too_large_revision
from kube_api.storage import Record, Storage

EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)
TOO_OLD = "The resourceVersion for the provided list is too old."


class Asked(msgspec.Struct, frozen=True):
    """The query of a list. `start`: the key to go on from. `exact`: at that very revision."""

    revision: int | None
    exact: bool
    limit: int
    start: str


def revision_of(text: str) -> int | None:
    """Of a query; None: not given. Raises Refusal (400)."""
    if not text:
        return None
    if not text.isdigit():
        raise bad_request(
            f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        )
    return int(text)


def asked(query: Mapping[str, str], floor: int) -> Asked:
    """Raises Refusal: 400, 422 for a query that is wrong, 410 for a continue token that is too old."""
    revision, match = revision_of(query.get("resourceVersion", "")), query.get("resourceVersionMatch", "")
    limit = query.get("limit", "") or "0"
    if not limit.lstrip("-").isdigit():
        raise bad_request(f'strconv.ParseInt: parsing "{limit}": invalid syntax')
    _check_match(match, revision, query)
    token = query.get("continue", "")
    if not token:
        legacy = match == "" and int(limit) > 0 and bool(revision)
        return Asked(revision, match == "Exact" or legacy, max(int(limit), 0), "")
    if revision:
        raise bad_request("specifying resource version is not allowed when using continue")
    try:
        found = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        number, start = int(found["rv"]), str(found["start"])
    except (binascii.Error, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise bad_request(f"continue key is not valid: {error}") from None
    if number < 0:
        return Asked(None, False, max(int(limit), 0), start)
    if number < floor:
        raise expired(EXPIRED, continuation(-1, start))
    return Asked(number, True, max(int(limit), 0), start)


def _check_match(match: str, revision: int | None, query: Mapping[str, str]) -> None:
    causes: list[Cause] = []
    field = "resourceVersionMatch"
    if match and revision is None:
        causes.append(forbidden_field(field, "resourceVersionMatch is forbidden unless resourceVersion is provided"))
    if match and query.get("continue"):
        causes.append(forbidden_field(field, "resourceVersionMatch is forbidden when continue is provided"))
    if match == "Exact" and revision == 0:
        causes.append(forbidden_field(field, 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'))
    if match not in ("", "Exact", "NotOlderThan"):
        words = f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan"'
        causes.append(Cause(field, "FieldValueNotSupported", words))
    if causes:
        raise invalid("meta.k8s.io", "ListOptions", "", causes)


def continuation(revision: int, start: str) -> str:
    token = msgspec.json.encode({"v": "meta.k8s.io/v1", "rv": revision, "start": start})
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def listing(storage: Storage, kind: Kind, selection: Selection, query: Mapping[str, str], lie: Lie | None) -> bytes:
    """The body of the answer. Raises Refusal as `asked`; 410: an exact revision that is gone, 504: one to come."""
    floor = storage.floor(kind.resource)
    want = asked(query, floor)
    newest = storage.revision
    if want.revision is not None and want.revision > newest:
        raise too_large_revision(want.revision, newest)
    shown = want.revision if want.exact and want.revision else newest
    if shown < floor:
        raise expired(TOO_OLD)
    if lie is not None and lie.revision is not None and not want.start:
        shown = lie.revision
    records = storage.snapshot(kind.resource, shown)
    if lie is not None:
        records = lie.left(records)
        shown = lie.says if lie.says is not None and not want.start else shown
    # As the real server's cache does: whoever takes any revision gets everything at once, whatever the limit.
    limit = 0 if want.revision == 0 and not want.start else want.limit
    page, more = _page(records, kind, selection, want.start, limit)
    metadata: dict[str, Any] = {"resourceVersion": str(shown)}
    if more:
        metadata["continue"] = continuation(shown, page[-1].key + "\0")
        if selection.everything:
            metadata["remainingItemCount"] = more
    return _body(kind, page, metadata)


def _page(
    records: Sequence[Record], kind: Kind, selection: Selection, start: str, limit: int
) -> tuple[list[Record], int]:
    """Those chosen, and how many more there are (with a selector: 1 for any)."""
    begin, end = 0, len(records)
    if selection.namespace and kind.namespaced:
        begin = bisect.bisect_left(records, f"{selection.namespace}/", key=lambda record: record.key)
        end = bisect.bisect_left(records, f"{selection.namespace}0", key=lambda record: record.key)
    if start:
        begin = max(begin, bisect.bisect_left(records, start, key=lambda record: record.key))
    if selection.everything:
        stop = min(end, begin + limit) if limit else end
        return list(records[begin:stop]), end - stop
    page: list[Record] = []
    for number in range(begin, end):
        record = records[number]
        if selection.holds(record.namespace, record.name, record.labels, record.fields):
            if limit and len(page) == limit:
                return page, 1
            page.append(record)
    return page, 0


def _body(kind: Kind, page: Sequence[Record], metadata: dict[str, Any]) -> bytes:
    """Items of built-in kinds have neither kind nor apiVersion; those of custom resources have."""
    head = kind.list_header + b'"metadata":' + msgspec.json.encode(metadata) + b',"items":['
    items = (record.full(kind) for record in page) if kind.custom else (record.body for record in page)
    return head + b",".join(items) + b"]}\n"
