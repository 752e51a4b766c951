"""`tortie.cni.gojson` against the standard library's `json`, of which it uses the parts that are written in C."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.cni import gojson
from tortie.cni.gojson import compact_json, format_json, quote, read_json
from tortie.cni.install import base_python

plain = st.text(st.characters(exclude_characters="<>&\u2028\u2029", exclude_categories=["Cs"]), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain, inner, max_size=4), max_leaves=12
)
documents = st.recursive(
    st.sampled_from(
        ["1", "-0", "1.5e3", "01", "true", "nul", "NaN", "-Infinity", '"a"', '"\\u00e9"', '"\\q"', '"\x01"', ""]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda all: "[" + ",".join(all) + "]")
        | st.lists(inner, max_size=3).map(lambda all: "{" + ", ".join(f'"k" : {one}' for one in all) + "}")
        | inner.map(lambda one: f" {one}\n")
        | inner.map(lambda one: one[:-1])
    ),
    max_leaves=6,
)


@given(values)
def test_written_as_json_writes_it(value: Any) -> None:
    assert format_json(value) == json.dumps(value, ensure_ascii=False, indent=4)
    assert compact_json(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert read_json(format_json(value).encode()) == value


@given(plain)
def test_quoted_as_json_quotes_it(text: str) -> None:
    assert quote(text) == json.dumps(text, ensure_ascii=False)


@given(documents)
def test_what_json_reads_and_nothing_else_is_read(text: str) -> None:
    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        expected = json.loads(text, parse_constant=refuse)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            read_json(text.encode())
    else:
        assert read_json(text.encode()) == expected


def test_what_go_escapes() -> None:
    assert format_json("<a> & \u2028\u2029 \ud800 é") == '"\\u003ca\\u003e \\u0026 \\u2028\\u2029 \ufffd é"'


@pytest.mark.parametrize("value", [object(), {1, 2}, {(1, 2): 3}, b"bytes"])
def test_what_json_cannot_say(value: Any) -> None:
    with pytest.raises(TypeError):
        format_json(value)


@pytest.mark.parametrize("text", ["", "{", '{"a" 1}', '{"a": }', '["\\q"]', '["', "[1,]", "{} x", "[NaN]", '{"a":1,}'])
def test_errors_are_the_same_where_json_was_never_imported(text: str) -> None:
    """The scanner looks for the exception that it raises among the modules that are there."""
    package = Path(gojson.__file__).parents[2]
    code = (
        f"import sys; sys.path.append({str(package)!r}); from tortie.cni.gojson import read_json\n"
        "try: read_json(sys.stdin.buffer.read())\nexcept ValueError as why: print(why, end='')"
    )
    argv = [base_python(), "-I", "-S", "-c", code]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30, check=True)
    with pytest.raises(ValueError, match=r".") as caught:
        read_json(text.encode())
    assert done.stdout == str(caught.value)
