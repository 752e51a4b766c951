"""What the rest of the datastore asks of a Kubernetes API server; `client` is the one that speaks HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class Api(Protocol):
    """Bytes in, bytes out: whoever asks knows the type of the answer. Paths as in `/api/v1/pods`, without a query.

    Every method raises Unavailable when the server cannot be reached, is overloaded or broken after patient tries, or
    does not let us ("connection is unauthorized: ..."): all of that may be over soon. What is retried is safe to be
    asked twice, or was not taken.
    """

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        content_type: str = JSON,
    ) -> bytes:
        """The body of the answer.

        Raises NotFound (404: no such object, or no such kind), Exists (409 AlreadyExists), Conflict (409), Compacted
        (410 Gone, or Expired), ConfigError (400, 413, 422: the server's words for what is wrong), NotSupported (405,
        415 and others: this server does not do that at all).
        """
        ...

    def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The JSON of one watch event after the other: {"type": ..., "object": ...}, bookmarks and errors among them.

        Ends when the server ends it, which it does every few minutes. Raises as `request` does, at its begin; later
        Unavailable when the connection breaks or is silent for too long.
        """
        ...

    async def close(self) -> None: ...
