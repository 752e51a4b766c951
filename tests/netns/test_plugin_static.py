"""The plugin `static` as runtimes call it (situations 1 to 18 and 42 to 44 of the specification), beside Go's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from cni_plugins import GO, Caller, Said, put
from tortie.kernel import netns

pytestmark = pytest.mark.root

HOST = f"st-host-{os.getpid()}"
NO_NETNS = "/run/netns/not-looked-at"
ONE = {"addresses": [{"address": "10.0.0.7/24", "gateway": "10.0.0.9"}]}


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    netns.create(HOST)
    yield Caller(put(tmp_path_factory.mktemp("bin")), HOST)
    netns.delete(HOST)


def call(caller: Caller, command: str, ipam: dict[str, Any], version: str = "1.0.0", **how: Any) -> Said:
    conf = {"cniVersion": version, "name": "net1", **how.pop("conf", {}), "ipam": {"type": "static", **ipam}}
    return caller(command, conf, netns=NO_NETNS, type="static", **how)


def ips(caller: Caller, ipam: dict[str, Any], **how: Any) -> list[tuple[str, str]]:
    said = call(caller, "ADD", ipam, **how)
    assert said.code == 0, said
    return [(each["address"], each.get("gateway", "")) for each in said.doc["ips"]]


def test_what_is_configured(caller: Caller) -> None:
    ipam = {
        "addresses": [{"address": "10.0.0.7/24", "gateway": "10.0.0.9"}, {"address": "FD00::0:5/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd01::/16", "gw": "fd00::1", "mtu": 1400}],
        "dns": {"nameservers": ["1.1.1.1"], "domain": "a.b", "search": ["a.b"], "options": ["ndots:5"]},
    }
    assert call(caller, "ADD", ipam, "1.1.0").doc == {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.0.0.7/24", "gateway": "10.0.0.9"}, {"address": "fd00::5/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd01::/16", "gw": "fd00::1", "mtu": 1400}],
        "dns": ipam["dns"],
    }
    old = call(caller, "ADD", ipam, "0.2.0").doc
    assert old["ip4"] == {"ip": "10.0.0.7/24", "gateway": "10.0.0.9", "routes": [{"dst": "0.0.0.0/0"}]}
    assert old["ip6"]["ip"] == "fd00::5/64"
    assert call(caller, "ADD", {}, "1.1.0").doc == {"cniVersion": "1.1.0"}


def test_what_is_asked_for(caller: Caller) -> None:  # 43, 44
    args = {"CNI_ARGS": "IP=10.0.0.5/24, 10.1.0.5/24;GATEWAY=10.0.0.1"}
    both = [("10.0.0.7/24", "10.0.0.1"), ("10.0.0.5/24", "10.0.0.1"), ("10.1.0.5/24", "")]
    assert ips(caller, ONE, **args) == both
    runtime = {"runtimeConfig": {"ips": ["10.2.0.5/24", "fd00::5/64"]}}
    assert ips(caller, ONE, conf=runtime, **args) == [("10.2.0.5/24", ""), ("fd00::5/64", "")]
    cni = {"args": {"cni": {"ips": ["10.3.0.5/24"]}}}
    assert ips(caller, ONE, conf=cni) == [("10.3.0.5/24", "")]
    assert ips(caller, ONE, conf={**cni, **runtime})[0] == ("10.2.0.5/24", "")


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"addresses": [{"address": "10.0.0.1"}]},
        {},
        "the 'address' field is expected to be in CIDR notation, got: '10.0.0.1'",
    ),
    ({"addresses": [{"address": "10.0.0.1/24", "gateway": "foo"}]}, {}, "invalid IP address: foo"),
    ({}, {"CNI_ARGS": "IP=10.0.0.5"}, "the 'ip' field is expected to be in CIDR notation, got: '10.0.0.5'"),
    ({}, {"CNI_ARGS": "IP=10.0.0.5/24;GATEWAY=foo"}, "invalid gateway address: foo"),
    ({}, {"CNI_ARGS": "FOO=BAR"}, 'ARGS: unknown args ["FOO=BAR"]'),
    (
        {},
        {"conf": {"runtimeConfig": {"ips": ["x"]}}},
        "an entry in the 'ips' field is NOT in CIDR notation, got: 'x'",
    ),
    (
        {},
        {"conf": {"args": {"cni": {"ips": ["10.0.0.1"]}}}},
        "an entry in the 'ips' field is NOT in CIDR notation, got: '10.0.0.1'",
    ),
    (
        {"addresses": [{"address": "10.0.0.1/24"}, {"address": "10.0.0.2/24"}]},
        {"version": "0.2.0"},
        "CNI version 0.2.0 does not support more than 1 address per family",
    ),
    ({"routes": [{"dst": "0.0.0.0"}]}, {}, "invalid CIDR address: 0.0.0.0"),
    ({"routes": [{"dst": "0.0.0.0/0", "gw": "a"}]}, {}, "invalid IP address: a"),
]


@pytest.mark.parametrize(("ipam", "how", "why"), WRONG)
def test_what_is_wrong(caller: Caller, ipam: dict[str, Any], how: dict[str, Any], why: str) -> None:  # 42
    said = call(caller, "ADD", ipam, **how)
    assert said.error == (999, why)
    assert call(caller, "DEL", ipam).code == 0
    if (GO / "static").exists():
        assert said == call(Caller(GO, HOST), "ADD", ipam, **how)
    if "version" not in how:
        assert call(caller, "STATUS", ipam, "1.1.0", **how).error == (50, why)


def test_check(caller: Caller) -> None:
    def checked(gateway: str, *there: dict[str, str]) -> Said:
        previous = {"prevResult": {"cniVersion": "1.0.0", "ips": list(there)}}
        address = {"address": "10.0.0.7/24", **({"gateway": gateway} if gateway else {})}
        return call(caller, "CHECK", {"addresses": [address]}, conf=previous)

    good = {"address": "10.0.0.7/24", "gateway": "10.0.0.9"}
    assert checked("10.0.0.9", good).code == 0
    assert checked("", good).code == 0
    assert checked("10.0.0.9", {"address": "10.0.0.8/24"}).code == 0
    why = "static: Failed to match addr 10.0.0.7/24 on interface eth0"
    assert checked("10.0.0.8", good).error[1].startswith("static: Failed to match addr ")
    assert checked("10.0.0.8", good).error == (999, why)
    assert call(caller, "CHECK", ONE).error == (999, "Required prevResult missing")


def test_the_protocol(caller: Caller) -> None:
    """What every plugin answers, before it is asked to do anything (1 to 18)."""
    said = caller("", b"", type="static")
    assert (said.code, said.stdout) == (0, "")
    assert said.stderr.startswith("CNI static plugin version ")
    versions = '["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]'
    assert caller("VERSION", b"", type="static").stdout == f'{{"cniVersion":"1.1.0","supportedVersions":{versions}}}\n'
    error = caller("ADD", b"{}", type="static", ifname="").error
    assert error == (4, "required env variables [CNI_NETNS,CNI_IFNAME] missing")
    assert call(caller, "STATUS", ONE, "1.1.0") == Said(0, "", "")
    assert call(caller, "GC", ONE, "1.1.0") == Said(0, "", "")
    assert call(caller, "CHECK", ONE, "0.3.1").error == (1, "config version does not allow CHECK")
    assert call(caller, "STATUS", ONE).error == (1, "config version does not allow STATUS")
    no_ipam = caller("ADD", {"cniVersion": "1.0.0", "name": "net1"}, netns=NO_NETNS, type="static")
    assert no_ipam.error == (999, "IPAM config missing 'ipam' key")
    assert ips(caller, {"ADDRESSES": ONE["addresses"]}) == [("10.0.0.7/24", "10.0.0.9")]
