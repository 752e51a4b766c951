"""What every plugin answers before its own work begins (situations 1 to 22 of the plugins), as a runtime hears it.

Which plugin it is makes no difference, so most tests are of all of them, with real processes. What is not answered by
all is asked of those that do: arguments of those that read them, a result of before of those that are chained, an
address plugin of those that delegate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chain_ground import Ground, make_ground

from cni_plugins import Caller, Said, put
from namespaces import Ns, namespaces
from tortie.cni.plugins import NAMES

pytestmark = pytest.mark.root

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
SINCE = {"bandwidth": "0.3.0", "vrf": "0.3.1", "firewall": "0.4.0"}
CHAINED: dict[str, dict[str, Any]] = {
    "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 1_000_000},
    "firewall": {"backend": "nftables"},
    "portmap": {
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    },
    "sbr": {},
    "tuning": {"mtu": 1400, "sysctl": {"net.ipv4.conf.all.arp_filter": "1"}},
    "vrf": {"vrfname": "blue"},
}
STATIC = {
    "type": "static",
    "addresses": [{"address": "10.9.0.5/24", "gateway": "10.9.0.1"}],
    "routes": [{"dst": "10.7.0.0/16"}],
}
MAIN: dict[str, dict[str, Any]] = {
    "bridge": {"bridge": "br9", "isGateway": True, "ipam": STATIC},
    "dummy": {"ipam": STATIC},
    "flannel": {"delegate": {"bridge": "br9"}},
    "host-device": {"device": "nic0", "ipam": STATIC},
    "ipvlan": {"master": "eth0", "ipam": STATIC},
    "loopback": {},
    "macvlan": {"master": "eth0", "mode": "vepa", "mtu": 1400, "ipam": STATIC},
    "ptp": {"mtu": 1400, "ipam": STATIC},
    "tap": {"mac": "02:00:00:00:00:0a", "multiQueue": True, "ipam": STATIC},
    "vlan": {"master": "eth0", "vlanId": 7, "ipam": STATIC},
}
READ_ARGS: dict[str, dict[str, Any]] = {
    "bridge": {"bridge": "br9"},
    "host-local": {},
    "macvlan": {"master": "eth0"},
    "static": {"ipam": STATIC},
    "tap": {},
    "tuning": {"mtu": 1400},
}
"""Those that read CNI_ARGS, without an address plugin that would read them, too."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="module")
def ground(directory: Path) -> Iterator[Ground]:
    """Shared: its pods have an `eth0`, so that what is made in them is called `net1`."""
    with_ns = namespaces()
    make: Callable[..., Ns] = next(with_ns)
    try:
        yield grounded(make, directory)
    finally:
        next(with_ns, None)


@pytest.fixture
def fresh(make_ns: Callable[..., Ns], directory: Path) -> Ground:
    """For what cannot be done twice in a pod."""
    return grounded(make_ns, directory)


def grounded(make: Callable[..., Ns], directory: Path) -> Ground:
    found = make_ground(make, directory)
    found.host.ip("link", "add", "nic0", "type", "veth", "peer", "name", "nic1")
    return found


@pytest.fixture
def call(ground: Ground) -> Caller:
    return ground.call


def conf(name: str, data: Path, version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    """A configuration of the plugin that is in order, with files in `data` alone."""
    ipams = {
        "host-local": {"type": "host-local", "subnet": "10.1.2.0/24", "dataDir": str(data)},
        "dhcp": {"type": "dhcp", "daemonSocketPath": str(data / "dhcp.sock")},
        "static": STATIC,
    }
    own = {**CHAINED, **MAIN}.get(name, {})
    ipam = {"ipam": ipams[name]} if name in ipams else {}
    files = {"dataDir": str(data)} if name in ("flannel", "tuning") else {}
    files |= {"subnetFile": str(data / "subnet.env")} if name == "flannel" else {}
    return {"cniVersion": version, "name": "net1", "type": name, **own, **ipam, **files, **more}


def every(function: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("name", NAMES)(function)


def versions(name: str) -> tuple[str, ...]:
    return VERSIONS[VERSIONS.index(SINCE.get(name, "0.1.0")) :]


# --- before the configuration is looked at ------------------------------------------------------------------------


@every
def test_1_no_command(call: Caller, name: str) -> None:
    said = call("", b"", type=name)
    assert (said.code, said.stdout) == (0, "")
    first, second = said.stderr.splitlines()
    assert first.startswith(f"CNI {name} plugin version ")
    assert second == f"CNI protocol versions supported: {', '.join(versions(name))}"


@every
def test_2_3_version(call: Caller, name: str) -> None:
    listed = ",".join(f'"{each}"' for each in versions(name))
    text = f'{{"cniVersion":"1.1.0","supportedVersions":[{listed}]}}\n'
    assert call("VERSION", b"", type=name) == Said(0, text, "")


@every
def test_4_what_is_missing(call: Caller, name: str) -> None:
    said = call("ADD", b"{}", type=name, ifname="")
    assert said.error == (4, "required env variables [CNI_NETNS,CNI_IFNAME] missing")


@every
def test_5_del_needs_no_namespace(call: Caller, name: str, tmp_path: Path) -> None:
    said = call("DEL", conf(name, tmp_path))
    assert (said.code, said.stdout) == (0, ""), said


@every
def test_6_7_8_what_is_no_name(call: Caller, name: str) -> None:
    for how, error in (
        ({"container": "a b"}, {"code": 4, "msg": "invalid characters in containerID", "details": "a b"}),
        (
            {"ifname": "this_is_too_long_"},
            {
                "code": 4,
                "msg": "interface name is too long",
                "details": "interface name should be less than 16 characters",
            },
        ),
        ({"ifname": "../e"}, {"code": 4, "msg": "interface name contains / or : or whitespace characters"}),
    ):
        said = call("ADD", b"{}", type=name, netns="nobody-is-here", **how)
        assert (said.code, said.doc) == (1, error)


# --- the configuration --------------------------------------------------------------------------------------------


@every
def test_9_10_11_what_is_no_call(call: Caller, name: str) -> None:
    good = {"cniVersion": "1.0.0", "name": "net1"}
    listed = " ".join(f'"{each}"' for each in versions(name))
    end = "unexpected end of JSON input"
    for command, stdin, error in (
        ("FOO", good, {"code": 4, "msg": "unknown CNI_COMMAND: FOO"}),
        ("FOO", b"", {"code": 6, "msg": f"error unmarshall network config: {end}"}),
        ("ADD", {"cniVersion": "1.0.0"}, {"code": 7, "msg": "missing network name"}),
        (
            "ADD",
            good | {"name": "bad name"},
            {"code": 7, "msg": "invalid characters found in network name", "details": "bad name"},
        ),
        (
            "ADD",
            good | {"cniVersion": "9.9.9"},
            {
                "code": 1,
                "msg": "incompatible CNI versions",
                "details": f'config is "9.9.9", plugin supports [{listed}]',
            },
        ),
    ):
        said = call(command, stdin, type=name, netns="nobody-is-here")
        assert (said.code, said.doc) == (1, error)


@every
def test_12_13_verbs_of_later_versions(call: Caller, name: str) -> None:
    for command, version in (("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")):
        said = call(command, {"cniVersion": version, "name": "net1"}, type=name, netns="nobody-is-here")
        assert said.error == (1, f"config version does not allow {command}")


@pytest.mark.parametrize("name", ["static", "host-local", "portmap"])
def test_14_status(call: Caller, name: str, tmp_path: Path) -> None:
    assert call("STATUS", conf(name, tmp_path, "1.1.0")) == Said(0, "", "")


def shouted(doc: Any) -> Any:
    """With the names of all fields in capitals; those of sysctls are no fields."""
    if isinstance(doc, list):
        return [shouted(each) for each in doc]
    if not isinstance(doc, dict):
        return doc
    return {key.upper(): value if key == "sysctl" else shouted(value) for key, value in doc.items()}


def likened(result: Any, ns: Ns) -> str:
    """Without what differs between two pods, or is drawn by lot."""
    text = json.dumps(result, sort_keys=True).replace(ns.path, "NETNS")
    text = re.sub(r"veth[0-9a-f]{8}|vetha|vethb", "VETH", text).replace("10.1.2.3/", "10.1.2.2/")
    return re.sub(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC", text.replace("fd00:1::3/", "fd00:1::2/"))


KEYS = [name for name in NAMES if name not in ("dhcp", "dummy", "flannel", "ipvlan", "vlan", "vrf")]


@pytest.mark.parametrize("name", KEYS)
def test_15_keys_in_any_case(fresh: Ground, name: str, tmp_path: Path) -> None:
    answers = []
    for pod, spoken in (("a", dict), ("b", shouted)):
        where = {"netns": fresh.pods[pod].path, "type": name, "ifname": "eth0" if name in CHAINED else "net1"}
        previous = {"prevResult": fresh.result(pod)} if name in CHAINED else {}
        wanted = spoken(conf(name, tmp_path / pod, **previous))
        answers.append(likened(fresh.call.add(wanted, **where), fresh.pods[pod]))
        assert fresh.call("DEL", wanted, **where).code == 0
    assert answers[0] == answers[1]


def test_15_keys_in_any_case_of_what_a_kernel_may_lack(ground: Ground) -> None:
    """Seen in what is refused before the kernel is asked."""
    where = {"netns": ground.pods["a"].path, "ifname": "net1"}
    for name, fields, text in (
        ("dhcp", {"IPAM": {"TYPE": "dhcp", "DAEMONSOCKETPATH": "/not/there"}}, "dial unix /not/there"),
        ("dummy", {"IPAM": {"TYPE": "nope"}}, "dummy|nope"),
        ("ipvlan", {"MASTER": "eth0", "MODE": "l4"}, 'unknown ipvlan mode: "l4"'),
        ("vlan", {"MASTER": "eth0", "VLANID": 5000}, "invalid VLAN ID 5000 "),
        ("vrf", {"VRFNAME": "a-name-that-is-too-long", "PREVRESULT": ground.result()}, "a-name-that-is-too-long"),
    ):
        said = ground.call("ADD", {"CNIVERSION": "1.0.0", "NAME": "net1", **fields}, type=name, **where)
        assert re.search(text, said.error[1]), said
        assert "requires an IPAM" not in said.error[1]


# --- arguments ----------------------------------------------------------------------------------------------------


def with_args(ground: Ground, name: str, data: Path, args: str, command: str = "ADD") -> Said:
    own = READ_ARGS[name]
    previous = {"prevResult": ground.result()} if name in CHAINED else {}
    wanted = {key: value for key, value in conf(name, data, **previous).items() if key != "ipam" or name not in MAIN}
    where = {"netns": ground.pods["a"].path, "ifname": "eth0" if name in CHAINED else "net1"}
    return ground.call(command, {**wanted, **own}, CNI_ARGS=args, **where)


@pytest.mark.parametrize("name", READ_ARGS)
def test_16_17_18_arguments(ground: Ground, name: str, tmp_path: Path) -> None:
    why = 'error parsing value of pair "IgnoreUnknown=yes": boolean unmarshal error: invalid input yes'
    for args, text in (
        ("FOO", 'invalid pair "FOO"'),
        ("FOO=BAR", 'unknown args ["FOO=BAR"]'),
        ("IgnoreUnknown=yes", why),
    ):
        said = with_args(ground, name, tmp_path, args)
        assert said.error == (999, f"ARGS: {text}")
        assert "net1" not in {each["ifname"] for each in ground.pods["a"].json("link", "show")}
    for command in ("ADD", "DEL"):
        said = with_args(ground, name, tmp_path, "IgnoreUnknown=1;FOO=BAR", command)
        assert said.code == 0, said


@pytest.mark.parametrize("name", ["loopback", "host-device", "portmap", "firewall"])
def test_16_17_18_arguments_of_others_are_ignored(ground: Ground, name: str, tmp_path: Path) -> None:
    previous = {"prevResult": ground.result("b")} if name in CHAINED else {}
    wanted = {key: value for key, value in conf(name, tmp_path, **previous).items() if key != "ipam"}
    where = {"netns": ground.pods["b"].path, "ifname": "eth0" if name in CHAINED else "net1"}
    for args in ("FOO", "FOO=BAR", "IgnoreUnknown=yes"):
        for command in ("ADD", "DEL"):
            said = ground.call(command, wanted, CNI_ARGS=args, **where)
            assert said.code == 0, said


# --- results ------------------------------------------------------------------------------------------------------


def test_19_no_version_is_the_first(call: Caller, tmp_path: Path) -> None:
    wanted = conf("host-local", tmp_path)
    del wanted["cniVersion"]
    assert call.add(wanted, netns="/run/netns/not-looked-at") == {
        "cniVersion": "0.1.0",
        "ip4": {"ip": "10.1.2.2/24", "gateway": "10.1.2.1"},
        "dns": {},
    }


@pytest.mark.parametrize("name", CHAINED)
def test_20_a_result_of_another_family(ground: Ground, name: str, tmp_path: Path) -> None:
    wanted = conf(name, tmp_path, prevResult=ground.result(version="0.4.0"))
    why = 'result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "0.4.0"'
    said = ground.call("ADD", wanted, netns=ground.pods["a"].path)
    assert said.error == (999, f"could not parse prevResult: {why}")


@every
def test_20_del_does_not_mind_it(ground: Ground, name: str, tmp_path: Path) -> None:
    """Nor one that is no result at all. A host's link that would be given back is not there."""
    result = ground.result(version="0.4.0")
    for previous in (result, {**result, "cniVersion": "1.0.0", "ips": 7, "interfaces": "none", "routes": [{}]}):
        wanted = conf(name, tmp_path, prevResult=previous)
        said = ground.call("DEL", wanted, netns=ground.pods["a"].path, ifname="net7")
        assert (said.code, said.stdout) == (0, ""), said


def pictured(ns: Ns) -> Any:
    """Links, their addresses, routes and rules."""
    links = [
        (each["ifname"], each["flags"], each["mtu"], [ip["local"] for ip in each["addr_info"]])
        for each in ns.json("addr", "show")
    ]
    return links, ns.json("route", "show", "table", "all"), ns.run("nft", "-j", "list", "tables")


@every
def test_21_own_namespace(ground: Ground, name: str, tmp_path: Path) -> None:
    """Refused before anything is done, and nothing but the error is said."""
    before = pictured(ground.host)
    previous = {"prevResult": ground.result()} if name in CHAINED else {}
    said = ground.call("ADD", conf(name, tmp_path, **previous), netns=ground.host.path, ifname="net1")
    assert said.error == (8, "plugin's netns and netns from CNI_NETNS should not be the same")
    assert said.stderr == ""
    assert pictured(ground.host) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["bridge", "host-device", "macvlan", "ptp", "tap"])
def test_22_no_such_address_plugin(ground: Ground, name: str, tmp_path: Path) -> None:
    wanted = conf(name, tmp_path) | {"ipam": {"type": "nope"}}
    path = f"{ground.call.directory}:/not/there"
    said = ground.call("ADD", wanted, netns=ground.pods["a"].path, ifname="net1", CNI_PATH=path)
    assert said.error == (999, f'failed to find plugin "nope" in path [{ground.call.directory} /not/there]')
    assert {each["ifname"] for each in ground.pods["a"].json("link", "show")} == {"lo", "eth0"}
