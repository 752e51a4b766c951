"""BGPFilter, Secret and what names them, as a user writes them: what is refused, in which words, and what is stored."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tortie.base.errors import ConfigError
from tortie.bgp.passwords import unfit
from tortie.calc.admission import Objects, admit, bootstrap
from tortie.model.bgpfilter import BGPFilter
from tortie.model.document import dump_yaml, parse
from tortie.model.secret import Secret

HUSHED = "nobody may read this"


def filter_(rule: str, where: str = "importV4") -> str:
    return f"{{apiVersion: projectcalico.org/v3, kind: BGPFilter, metadata: {{name: f}}, spec: {{{where}: [{rule}]}}}}"


def secret(body: str) -> str:
    return f"{{apiVersion: v1, kind: Secret, metadata: {{name: s, namespace: kube-system}}, {body}}}"


@pytest.mark.parametrize(
    ("rule", "where", "problem"),
    [
        ("{}", "importV4", "spec.importV4[0].action: is required"),
        ("{action: Drop}", "exportV6", 'spec.exportV6[0].action: "Drop" is not one of Accept, Reject'),
        ("{action: Accept, cidr: 10.0.0.0/8}", "importV4", "matchOperator: is required with cidr"),
        ("{action: Accept, matchOperator: In}", "importV4", "cidr: is required with matchOperator"),
        ("{action: Accept, cidr: 10.0.0.1/8, matchOperator: In}", "importV4", 'the network is "10.0.0.0/8"'),
        (
            "{action: Accept, cidr: 'fd00::/8', matchOperator: In}",
            "exportV4",
            'cidr: "fd00::/8" is not an IPv4 network',
        ),
        ("{action: Accept, cidr: 10.0.0.0/8, matchOperator: In}", "importV6", "is not an IPv6 network"),
        ("{action: Accept, cidr: 10.0.0.0/8, matchOperator: Inside}", "importV4", "matchOperator: "),
        ("{action: Accept, prefixLength: {min: 8}}", "importV4", "spec.importV4[0].prefixLength: needs cidr"),
        (
            "{action: Accept, cidr: 10.0.0.0/8, matchOperator: Equal, prefixLength: {min: 8}}",
            "importV4",
            "prefixLength: goes with matchOperator In or NotIn only",
        ),
        (
            "{action: Accept, cidr: 10.0.0.0/8, matchOperator: In, prefixLength: {max: 33}}",
            "importV4",
            "prefixLength.max: 33 is not from 0 to 32",
        ),
        (
            "{action: Accept, cidr: 10.0.0.0/8, matchOperator: In, prefixLength: {min: 24, max: 20}}",
            "importV4",
            "prefixLength: allows no prefix: 24 at least, 20 at most",
        ),
        ("{action: Accept, source: Peers}", "importV4", "source: "),
        (
            "{action: Accept, interface: 'eth0\"'}",
            "importV4",
            "is not an interface name or pattern such as eth1 or veth*",
        ),
        ("{action: Accept, interface: averyveryverylongname}", "importV4", "is not an interface name"),
        ("{action: Accept, peerType: both}", "importV4", "peerType: "),
        (
            "{action: Accept, communities: {}}",
            "importV4",
            "communities.values: has 0 communities, must have exactly one",
        ),
        ("{action: Accept, communities: {values: ['1:2', '1:3']}}", "importV4", "has 2 communities"),
        ("{action: Accept, communities: {values: ['1:70000']}}", "importV4", "each of its 2 numbers goes to 65535"),
        ("{action: Accept, asPathPrefix: [1, x]}", "importV4", 'asPathPrefix[1]: "x" is not an AS number'),
        ("{action: Accept, priority: 0}", "importV4", "priority: 0 is not from 1 to 2147483646"),
        ("{action: Reject, operations: [{setPriority: {value: 1}}]}", "importV4", "operations: go with action Accept"),
        ("{action: Accept, operations: [{}]}", "importV4", "operations[0]: must have exactly one of addCommunity"),
        (
            "{action: Accept, operations: [{setPriority: {value: 1}, addCommunity: {value: '1:2'}}]}",
            "importV4",
            "must have exactly one of addCommunity, prependASPath, setPriority",
        ),
        ("{action: Accept, operations: [{addCommunity: {}}]}", "importV4", "addCommunity.value: "),
        ("{action: Accept, operations: [{prependASPath: {}}]}", "importV4", "prependASPath.prefix: must have 1 to 10"),
        (
            f"{{action: Accept, operations: [{{prependASPath: {{prefix: {list(range(1, 12))}}}}}]}}",
            "importV4",
            "prefix: has 11 entries, at most 10 are allowed",
        ),
        ("{action: Accept, colour: red}", "importV4", "colour: is not a known field"),
    ],
)
def test_what_is_wrong_with_a_filter_is_one_line_with_its_path(rule: str, where: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(filter_(rule, where))
    assert problem in str(caught.value)
    assert f"BGPFilter f: spec.{where}[0]" in str(caught.value)


def test_a_filter_with_everything_is_understood() -> None:
    rule = (
        "{action: Accept, cidr: 10.0.0.0/8, matchOperator: In, prefixLength: {min: 16}, source: RemotePeers, "
        "interface: eth*, peerType: iBGP, communities: {values: ['1:2:3']}, asPathPrefix: [65000, '1.1'], priority: 9, "
        "operations: [{addCommunity: {value: '1:2'}}, {prependASPath: {prefix: [1]}}, {setPriority: {value: 1}}]}"
    )
    (one,) = parse(filter_(rule))
    assert isinstance(one, BGPFilter)
    assert parse(dump_yaml(one)) == [one]


def test_a_peer_needs_its_filters_when_it_is_written() -> None:
    view = Objects(bootstrap("0" * 32))
    text = (
        "{apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: p}, spec: {peerIP: 10.0.0.9, asNumber: 1, "
    )
    (peer,) = parse(text + "filters: [f, g]}}")
    with pytest.raises(ConfigError, match=r"^spec\.filters: BGPFilter\(s\) not found: f, g$"):
        admit(peer, None, view)
    (one,) = parse(filter_("{action: Accept}"))
    view.put(admit(one, None, view))
    with pytest.raises(ConfigError, match=r"not found: g$"):
        admit(peer, None, view)


# --- secrets ----------------------------------------------------------------------------------------------------------


def admitted(body: str, old: Secret | None = None) -> Secret:
    (one,) = parse(secret(body))
    assert isinstance(one, Secret)
    return admit(one, old, Objects(bootstrap("0" * 32)))


def test_plain_text_is_stored_as_kubernetes_stores_it() -> None:
    one = admitted(f"data: {{a: aGk=, b: eA==}}, stringData: {{b: {HUSHED}}}")
    assert (one.data["a"], one.string_data, one.type) == ("aGk=", {}, "Opaque")
    assert (one.value("a"), one.value("b"), one.value("c")) == (b"hi", HUSHED.encode(), None)
    assert "data:\n  a: aGk=" in dump_yaml(one)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (f"data: {{a: {HUSHED}}}", "data[a]: is not base64: write plain text under stringData"),
        ("stringData: {a: 314159265}", "stringData[a]: must be text: put it in quotes"),
        (f"stringData: {{a: [{HUSHED}]}}", "stringData[a]: must be text"),
        (f"stringData: {HUSHED}", "stringData: must be a mapping of keys to text"),
        (f"data: [{HUSHED}]", "data: must be a mapping of keys to text"),
        (f"stringData: {{'a b': {HUSHED}}}", "stringData[a b]: a key must be of letters"),
    ],
)
def test_what_is_wrong_with_a_secret_is_said_without_what_it_holds(body: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(secret(body))
    assert problem in str(caught.value)
    assert HUSHED not in str(caught.value)
    assert "314159265" not in str(caught.value)


def test_an_immutable_secret_stays_as_it_is() -> None:
    old = admitted("immutable: true, stringData: {a: x}")
    assert admitted("immutable: true, data: {a: eA==}", old) == old
    with pytest.raises(ConfigError, match=r"^data: cannot change, for the secret is immutable"):
        admitted("immutable: true, stringData: {a: y}", old)


def test_a_secret_tells_nobody() -> None:
    one = admitted(f"stringData: {{a: {HUSHED}}}")
    held: list[Any] = [one, {"x": one}]
    for text in (repr(one), str(one), repr(held), f"{one!r}", str(one.__rich_repr__())):
        assert "kube-system/s" in text
        assert not re.search(f"{HUSHED}|{one.data['a']}", text)


def test_passwords_that_no_session_can_have_are_not_repeated() -> None:
    for password in ('a "b" c', "a\nb c", "a b c\n", "ab c" * 30, "a\x7fb c"):
        assert unfit(password)
        assert password.strip() not in unfit(password)
    assert [unfit(password) for password in ("it's fine; {really}", "ümlaut", "x" * 80)] == ["", "", ""]
    assert unfit("ü" * 41)
