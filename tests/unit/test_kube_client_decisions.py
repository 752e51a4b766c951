"""What a client of an API server decides: what a refusal means, whether to ask again, when; and texts on the line."""

from __future__ import annotations

import json
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kube_peers import jwt

from tortie.base.errors import (
    Compacted,
    ConfigError,
    Conflict,
    Exists,
    NotFound,
    NotSupported,
    Unavailable,
)
from tortie.store.kube.credentials import ends
from tortie.store.kube.limits import Bucket, pause
from tortie.store.kube.refusals import refusal, repeatable
from tortie.store.kube.tls import disbelief, issuer
from tortie.store.kube.wire import Lines, one_line, template, url, warnings

SERVER = "https://192.0.2.1:6443"


def status(code: int, reason: str, message: str, **details: object) -> bytes:
    return json.dumps(
        {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, "details": details}
    ).encode()


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (404, "NotFound", NotFound),
        (409, "AlreadyExists", Exists),
        (409, "Conflict", Conflict),
        (410, "Gone", Compacted),
        (410, "Expired", Compacted),
        (400, "BadRequest", ConfigError),
        (413, "RequestEntityTooLarge", ConfigError),
        (422, "Invalid", ConfigError),
        (405, "MethodNotAllowed", NotSupported),
        (415, "UnsupportedMediaType", NotSupported),
        (501, "", NotSupported),
    ],
)
def test_a_refusal_of_what_was_asked_is_final_and_in_the_servers_words(code: int, reason: str, kind: type) -> None:
    trouble = refusal(SERVER, "/api/v1/pods/a", code, {}, status(code, reason, 'pods "a": so it is', name="a"))
    assert type(trouble.error) is kind
    assert 'pods "a": so it is' in str(trouble.error)
    assert (trouble.again, trouble.untaken, trouble.unknown) == (False, True, False)


@pytest.mark.parametrize(
    ("code", "headers", "again", "untaken", "after"),
    [
        (429, {}, True, True, None),
        (429, {"Retry-After": "2"}, True, True, 2.0),
        (503, {}, True, False, None),
        (503, {"Retry-After": "1"}, True, True, 1.0),
        (500, {"Retry-After": "1"}, True, False, 1.0),
        (504, {}, True, False, None),
        (502, {"Retry-After": "soon"}, True, False, None),
        (401, {}, False, True, None),
        (403, {}, False, True, None),
        (302, {"Location": "https://elsewhere/?token=sekrit"}, False, False, None),
    ],
)
def test_what_may_be_over_soon(
    code: int, headers: dict[str, str], again: bool, untaken: bool, after: float | None
) -> None:
    trouble = refusal(SERVER, "/api/v1/pods", code, headers, status(code, "", "no"))
    assert type(trouble.error) is Unavailable
    assert (trouble.again, trouble.untaken, trouble.after) == (again, untaken, after)
    assert trouble.unknown is (code == 401)
    assert "sekrit" not in str(trouble.error)


def test_a_date_to_come_back_at_counts_from_the_servers_clock() -> None:
    headers = {"Date": formatdate(1000, usegmt=True), "Retry-After": formatdate(1007, usegmt=True)}
    assert refusal(SERVER, "/", 503, headers, b"").after == 7.0
    del headers["Date"]
    assert refusal(SERVER, "/", 503, headers, b"").after is None


def test_seconds_may_be_in_the_status_too() -> None:
    assert refusal(SERVER, "/", 429, {}, status(429, "", "slow", retryAfterSeconds=3)).after == 3.0


def test_who_is_not_let_in_reads_calicos_words() -> None:
    error = refusal(SERVER, "/", 403, {}, status(403, "Forbidden", 'User "x" cannot list')).error
    assert str(error) == f'connection is unauthorized: User "x" cannot list ({SERVER})'


def test_a_kind_that_is_not_there_is_told_from_an_object_that_is_not() -> None:
    path = "/apis/crd.projectcalico.org/v1/ippools"
    assert str(refusal(SERVER, path, 404, {}, b"404 page not found\n").error) == f"the server does not know {path}"


def test_a_body_that_is_no_status_is_told_in_one_line() -> None:
    error = refusal(SERVER, "/", 500, {"Content-Type": "text/plain"}, b"line\none\x1b[31m" + b"x" * 5000).error
    assert "line one" in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 500
    assert "<html>" not in str(refusal(SERVER, "/", 502, {"Content-Type": "text/html"}, b"<html>").error)


@pytest.mark.parametrize(
    ("method", "path", "body", "safe"),
    [
        ("GET", "/api/v1/pods", "", True),
        ("POST", "/api/v1/namespaces/a/pods", "{}", False),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "{}", True),
        ("PUT", "/api/v1/nodes/a", '{"metadata": {"resourceVersion": "4"}}', True),
        ("PUT", "/api/v1/nodes/a", '{"metadata": {}}', False),
        ("PATCH", "/api/v1/nodes/a", '{"metadata": {"resourceVersion": "4"}}', True),
        ("PATCH", "/api/v1/nodes/a", '{"spec": {}}', False),
        ("PATCH", "/api/v1/nodes/a", '[{"op": "remove"}]', False),
        ("DELETE", "/api/v1/nodes/a", "", False),
        ("DELETE", "/api/v1/nodes/a", '{"preconditions": {"uid": "u"}}', True),
        ("DELETE", "/api/v1/nodes/a", '{"preconditions": {"resourceVersion": "4"}}', True),
        ("DELETE", "/api/v1/nodes/a", '{"preconditions": {}}', False),
        ("PUT", "/api/v1/nodes/a", "not: json", False),
    ],
)
def test_what_may_be_asked_twice(method: str, path: str, body: str, safe: bool) -> None:
    assert repeatable(method, path, body.encode()) is safe


# --- how often --------------------------------------------------------------------------------------------------


def test_a_bucket_lets_a_burst_through_and_then_so_many_a_second() -> None:
    bucket = Bucket(10, 3)
    assert [round(bucket.take(100.0), 3) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    assert bucket.take(200.0) == 0


def test_no_limit() -> None:
    bucket = Bucket(0, 1)
    assert not any(bucket.take(1.0) for _ in range(1000))


@given(st.lists(st.floats(0, 2), min_size=1, max_size=60), st.floats(0.5, 50), st.integers(1, 10))
def test_in_no_span_is_more_let_through_than_the_bucket_holds(gaps: list[float], qps: float, burst: int) -> None:
    bucket, now, through = Bucket(qps, burst), 0.0, []
    for gap in gaps:
        now += gap
        through.append(now + bucket.take(now))
    for i, first in enumerate(through):
        for j in range(i, len(through)):
            assert j - i + 1 <= burst + (through[j] - first) * qps + 1e-3


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pauses_grow_and_stay_below_their_bound(tries: int, chance: float) -> None:
    assert 0 <= pause(tries, chance) <= min(3.0, 0.1 * 2 ** min(tries - 1, 20))
    assert 5 <= pause(tries, chance, 5) <= 5.5


# --- texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/pods", "/api/v1/pods"),
        ("/api/v1/nodes/n/status", "/api/v1/nodes/{name}/status"),
        ("/api/v1/namespaces", "/api/v1/namespaces"),
        ("/api/v1/namespaces/red", "/api/v1/namespaces/{name}"),
        ("/api/v1/namespaces/red/finalize", "/api/v1/namespaces/{name}/finalize"),
        ("/api/v1/namespaces/red/pods", "/api/v1/namespaces/{namespace}/pods"),
        ("/api/v1/namespaces/red/pods/a/proxy/x/y", "/api/v1/namespaces/{namespace}/pods/{name}/proxy"),
        ("/apis/crd.projectcalico.org/v1/ippools/p", "/apis/crd.projectcalico.org/v1/ippools/{name}"),
        ("/apis", "/apis"),
        ("/version", "/version"),
        ("/anything/else", "/anything"),
    ],
)
def test_paths_are_counted_without_names(path: str, expected: str) -> None:
    assert template(path) == expected


def test_urls_are_encoded_once() -> None:
    assert url("https://h/k8s", "/api/v1/x/a b%2f", {"labelSelector": "a in (b,c)", "limit": "5"}) == (
        "https://h/k8s/api/v1/x/a%20b%252f?labelSelector=a%20in%20%28b%2Cc%29&limit=5"
    )


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)), st.data())
def test_lines_come_out_whole_however_they_are_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"rest"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    reader, found = Lines(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[begin:end])
    assert found == [line for line in lines if line.strip()]
    assert reader.rest == b"rest"


def test_warnings_are_taken_out_of_their_header() -> None:
    assert warnings(['299 - "old \\"v1\\"", 299 k8s "other" "Sat, 21 Nov 2026 00:00:00 GMT"', '110 - "stale"']) == [
        'old "v1"',
        "other",
    ]
    assert one_line("a\n\tb\x00") == "a b"


# --- certificates and tokens -------------------------------------------------------------------------------------


def test_when_a_token_ends() -> None:
    assert ends(jwt({"exp": 1234567})) == 1234567
    for text in ("plain", "a.b.c", jwt({}), jwt([]), jwt({"exp": "soon"}), "a.é.c"):
        assert ends(text) is None


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (20, "certificate-authority"),
        (18, "certificate-authority"),
        (62, "is not for h: tls-server-name"),
        (64, "is not for h: tls-server-name"),
        (10, "has expired"),
        (9, "is not valid yet"),
        (3, "is not believed: odd"),
    ],
)
def test_why_a_server_is_not_believed(code: int, words: str) -> None:
    assert words in disbelief(code, "odd", "h", b"")


@given(st.binary(max_size=60))
def test_no_bytes_upset_the_reading_of_an_issuer(der: bytes) -> None:
    assert isinstance(issuer(der), str)
