"""Long lists of a Kubernetes API server, and the documents that are kept at hand."""

from __future__ import annotations

import json

from tortie.base.errors import Compacted
from tortie.store.kube.decoding import identity
from tortie.store.kube.lists import listed
from tortie.store.kube.recent import Recent


def encoded(document):
    return json.dumps(document).encode()


class Paging:
    """The API of a server with some objects, whose pages expire after so many answers."""

    def __init__(self, count: int, *, expires_after: int = 1000) -> None:
        self.count, self.left = count, expires_after
        self.queries: list[dict[str, str]] = []

    async def request(self, method, path, *, query=None, body=b"", content_type=""):
        assert (method, path) == ("GET", "/api/v1/pods")
        self.queries.append(dict(query))
        start, limit = int(query.get("continue", 0)), int(query.get("limit", 10**9))
        if start and self.left <= 0:
            raise Compacted("The provided continue parameter is too old")
        self.left -= 1
        end = min(self.count, start + limit)
        more = {"continue": str(end)} if end < self.count else {}
        items = [{"metadata": {"name": f"p{number}"}} for number in range(start, end)]
        return encoded({"metadata": {"resourceVersion": "7"} | more, "items": items or None})

    async def watch(self, path, query):
        raise AssertionError("nobody watches")
        yield b""

    async def close(self) -> None:
        pass


async def names(api: Paging, query: dict[str, str]) -> tuple[list[str], str]:
    return await listed(api, "/api/v1/pods", query, lambda raw: identity(raw).name)


async def test_a_long_list_comes_in_pages_of_one_revision():
    api = Paging(1201)
    found, revision = await names(api, {"fieldSelector": "spec.nodeName=n"})
    assert found == [f"p{number}" for number in range(1201)]
    assert revision == "7"
    assert [query.get("continue") for query in api.queries] == [None, "500", "1000"]
    assert all(query["fieldSelector"] == "spec.nodeName=n" for query in api.queries)
    assert await names(Paging(0), {}) == ([], "7")


async def test_a_list_that_expires_begins_again_and_in_the_end_asks_for_all_at_once():
    api = Paging(1201, expires_after=2)
    assert len((await names(api, {}))[0]) == 1201, "none is there twice"
    assert [(query.get("limit"), query.get("continue")) for query in api.queries] == [
        ("500", None), ("500", "500"), ("500", "1000"), ("500", None), ("500", "500"), (None, None)]  # fmt: skip


def test_what_was_read_last_is_kept_within_bounds():
    recent = Recent(800)
    for number in range(20):
        recent.put(("pods", "red", f"p{number}"), str(number + 1), b"x" * 100)
    assert [recent.get(("pods", "red", f"p{number}")) is not None for number in (11, 12, 19)] == [False, True, True]
    recent.put(("pods", "red", "p19"), "5", b"older")
    assert recent.get(("pods", "red", "p19"), "20") == b"x" * 100
    assert recent.get(("pods", "red", "p19"), "5") is None
    recent.put(("pods", "red", "large"), "30", b"x" * 101)
    assert recent.get(("pods", "red", "large")) is None
    recent.drop(("pods", "red", "p19"))
    assert recent.get(("pods", "red", "p19")) is None
