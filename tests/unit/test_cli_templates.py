"""Go's templates on values: what text/template and text/tabwriter of Go 1.26 printed for the same templates and values
is what ours print; what they refuse, ours refuse."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.errors import ConfigError
from tortie.cli.template_parse import read
from tortie.cli.templates import aligned, carry_out, shown


@dataclass(frozen=True)
class BGP:
    IPv4Address: str
    ASNumber: int


@dataclass(frozen=True)
class Spec:
    CIDR: str = ""
    NATOutgoing: bool = False
    Order: float | None = None
    Nets: tuple[str, ...] = ()
    BGP: BGP | None = None
    BlockSize: int = 0


@dataclass(frozen=True)
class Meta:
    Name: str
    Labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Object:
    Meta: Meta
    Spec: Spec


@dataclass(frozen=True)
class List:
    Items: tuple[Object, ...]


NETS = ("1.1.1.0/24", "2.2.2.0/24", "3.3.3.0/24")
DATA = [
    List((
        Object(
            Meta("alpha", {"rack": "a", "zone": "z1"}),
            Spec("10.0.0.0/16", True, 1000000.0, NETS, BGP("192.0.2.1/24", 64512), 26),
        ),
        Object(Meta("b"), Spec("fd00::/64", False, 12.5, (), None, 122)),
        Object(Meta("gamma-long-name"), Spec()),
    ))
]  # fmt: skip


def lookup(value: Any, name: str) -> Any:
    """A field, or one of the embedded Meta."""
    for place in (value, getattr(value, "Meta", None)):
        if name in getattr(place, "__dataclass_fields__", ()):
            return getattr(place, name)
    raise ConfigError(f"can't evaluate field {name} in {type(value).__name__}")


def printed(template: str, data: Any = DATA) -> str:
    return aligned(carry_out(read(template), data, lookup))


PRINTED: list[tuple[str, str]] = [
    ("{{range .}}{{range .Items}}{{.Name}} {{end}}{{end}}", "alpha b gamma-long-name "),
    (
        '{{range .}}{{range .Items}}{{.Meta.Name}}{{"\\t"}}{{.Spec.CIDR}}{{"\\n"}}{{end}}{{end}}',
        "alpha             10.0.0.0/16\nb                 fd00::/64\ngamma-long-name   \n",
    ),
    (
        '{{range .}}{{range .Items}}{{printf "%s\\t%v\\t%d\\n" .Name .Spec.NATOutgoing .Spec.BlockSize}}{{end}}{{end}}',
        "alpha             true    26\nb                 false   122\ngamma-long-name   false   0\n",
    ),
    ("{{range .}}{{range $i, $x := .Items}}{{if $i}}, {{end}}{{$x.Name}}{{end}}{{end}}", "alpha, b, gamma-long-name"),
    (
        "{{range .}}{{range .Items}}{{.Spec.Order}} {{.Spec.Nets}} {{.Labels}} {{.Spec.NATOutgoing}};{{end}}{{end}}",
        "1e+06 [1.1.1.0/24 2.2.2.0/24 3.3.3.0/24] map[rack:a zone:z1] true;12.5 [] map[] false;<nil> [] map[] false;",
    ),
    ("{{range .}}{{len .Items}}{{end}}", "3"),
    ("{{(index (index . 0).Items 1).Name}}", "b"),
    (
        "{{range .}}{{range .Items}}{{with .Spec.BGP}}{{.IPv4Address}} as "
        "{{.ASNumber}}{{else}}none{{end}};{{end}}{{end}}",
        "192.0.2.1/24 as 64512;none;none;",
    ),
    (
        '{{range .}}{{range .Items}}{{if and .Spec.NATOutgoing (eq .Name "alpha" "x")}}yes{{else if eq .Name '
        '"b"}}bee{{else}}no{{end}} {{end}}{{end}}',
        "yes bee no ",
    ),
    (
        "{{- range . -}}  a {{- range .Items }} x {{ .Name -}}   y   {{ end -}} z {{- end }}",
        "a x alphay    x by    x gamma-long-namey   z",
    ),
    ("{{/* nothing */}}a{{- /* b */ -}} c", "ac"),
    (
        '{{range .}}{{range .Items}}{{join .Spec.Nets ","}}|{{joinAndTruncate .Spec.Nets "," 20}};{{end}}{{end}}',
        "1.1.1.0/24,2.2.2.0/24,3.3.3.0/24|1.1.1.0/24,2.2.2....;|;|;",
    ),
    (
        '{{range .}}{{range .Items}}{{.Labels.rack}}-{{index .Labels "rack"}};{{end}}{{end}}',
        "a-a;<no value>-;<no value>-;",
    ),
    (
        "{{range .}}{{range .Items}}{{range $k, $v := .Labels}}{{$k}}={{$v}} {{else}}empty {{end}}{{end}}{{end}}",
        "rack=a zone=z1 empty empty ",
    ),
    ("{{$n := 0}}{{range .}}{{range .Items}}{{$n = len .Name}}{{$n}} {{end}}{{end}}{{$n}}", "5 1 15 15"),
    (
        '{{"x" | printf "%-5s|%5s" "a"}} {{printf "%05d %+d %x %q %t %6.2f %v %%" 42 7 255 "a\\"b" true 3.14159 1.0}}',
        'a    |    x 00042 +7 ff "a\\"b" true   3.14 1 %',
    ),
    (
        '{{printf "%d" "a"}} {{printf "%s" 3}} {{printf "%d"}} {{printf "a" 1}} {{printf "%v %v" nil true}}',
        "%!d(string=a) %!s(int=3) %!d(MISSING) a%!(EXTRA int=1) <nil> true",
    ),
    ('{{print 1 2 "a" "b" 3 4}}|{{println "a" 1}}', "1 2ab3 4|a 1\n"),
    (
        '{{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 2 1}} {{ne 1 2}} {{not true}} {{or 0 "" "x"}} {{and 1 0 2}}',
        "true true false true true false x 0",
    ),
    (
        '{{define "row"}}<{{.Name}}>{{end}}{{range .}}{{range .Items}}{{template "row" .}}{{end}}{{end}}',
        "<alpha><b><gamma-long-name>",
    ),
    ('{{range .}}{{range .Items}}{{if eq .Name "b"}}{{continue}}{{end}}{{.Name}}{{break}}{{end}}{{end}}', "alpha"),
    (
        '{{slice "abcdef" 1 3}} {{len "abc"}} {{index "abc" 1}} {{`raw "x"`}} {{\'a\'}} {{1.5}} {{1e6}} {{0x10}} '
        "{{-3}}",
        'bc 3 98 raw "x" 97 1.5 1e+06 16 -3',
    ),
    (
        "{{123456.0}} {{1234567.0}} {{0.0001}} {{0.00001}} {{100000.0}} {{1e20}} {{0.1}}",
        "123456 1.234567e+06 0.0001 1e-05 100000 1e+20 0.1",
    ),
    ("a\tb\tc", "a    b    c"),
    ("no tabs here", "no tabs here"),
    ("{{range .}}{{range .Items}}{{if .Spec.BGP}}{{.Spec.BGP.IPv4Address}}{{end}};{{end}}{{end}}", "192.0.2.1/24;;;"),
    ('{{with $x := "abc"}}{{$x}}{{.}}{{end}} {{with ""}}a{{else with "b"}}{{.}}{{end}}', "abcabc b"),
    ("{{range 3}}{{.}}{{end}}", "012"),
    ("{{print nil}}", "<nil>"),
    ('{{ "quoted }} brace" }}', "quoted }} brace"),
    (
        "{{range .}}NAME\tCIDR\tLONG HEADING\tX\n"
        "{{range .Items}}{{.Name}}\t{{.Spec.CIDR}}\t{{.Spec.BlockSize}}\tx\n"
        "{{end}}{{end}}",
        "NAME              CIDR          LONG HEADING   X\n"
        "alpha             10.0.0.0/16   26             x\n"
        "b                 fd00::/64     122            x\n"
        "gamma-long-name                 0              x\n",
    ),
    (
        "a\tb\tc\nno tabs here\nlonger than before\tb\tc\t\nx\t\ty\n",
        "a    b    c\nno tabs here\nlonger than before   b    c    \nx                         y\n",
    ),
    ("a\tb\n\nlong long long\tc\n", "a    b\n\nlong long long   c\n"),
]
"""Templates, and what Go prints."""


@pytest.mark.parametrize(("template", "text"), PRINTED, ids=range(len(PRINTED)))
def test_prints_what_go_prints(template: str, text: str) -> None:
    assert printed(template) == text


REFUSED: list[str] = [
    '{{eq "a" 1}}',
    "{{range .Items}}x{{end}}",
    "{{range .}}{{.Foo}}{{end}}",
    "{{index . 5}}",
    "{{if}}x{{end}}",
    "{{range .}}x",
    "{{range .}}NAME\tCIDR\tLONG HEADING\tX",
    "{{range .Items}}{{.Name}}\t{{.Spec.CIDR}}\t{{.Spec.BlockSize}}\tx",
    "{{end}}{{end}}",
    "{{range .}}{{range .Items}}{{.Spec.BGP.IPv4Address}}{{end}}{{end}}",
    '{{ (printf "%s" "a") | len }} {{"a" "b"}}',
    "{{.}",
    "{{end}}",
    "{{$x}}",
]
"""Templates that Go refuses, when it reads them or when it carries them out."""


@pytest.mark.parametrize("template", REFUSED, ids=range(len(REFUSED)))
def test_refuses_what_go_refuses(template: str) -> None:
    with pytest.raises(ConfigError, match=r"^template"):
        printed(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{{if true}}x", "template: line 2: if has no end"),
        ("{{nofunc 1}}", 'template: function "nofunc" is not defined'),
        ("{{range .}}{{.Foo}}{{end}}", "template: can't evaluate field Foo in List"),
        ("{{.Items}}", "template: can't evaluate field Items in a list: is a {{range}} missing?"),
        ("{{index . 7}}", "template: error calling index: index out of range: 7"),
        ("{{join 1 2}}", "template: error calling join: int is no list"),
        (
            '{{define "a"}}{{template "a"}}{{end}}{{template "a"}}',
            "template: templates call one another more than 100 deep",
        ),
    ],
)
def test_says_what_is_wrong(template: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        printed(template)
    assert str(caught.value) == message


@given(st.text(alphabet='{}}{-. |"`()$:=,aeif rngwthd/*1\n', max_size=40))
def test_any_text_is_a_template_or_is_refused(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(printed(text), str)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_printed_such_that_it_can_be_read_back(number: float) -> None:
    assert float(shown(number)) == number


def test_what_a_loop_sets_is_seen_after_it() -> None:
    assert printed("{{$n := 0}}{{range 3}}{{$n = .}}{{end}}{{$n}}") == "2"
    assert printed("{{$n := 0}}{{range 3}}{{$n := .}}{{end}}{{$n}}") == "0"
    assert printed('{{range $i, $x := slice "abc" 0 2 | printf "%s" | len}}{{$i}}{{end}}') == "01"
