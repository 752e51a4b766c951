"""The plugin `tuning` on the real kernel (situations 20, 92 and 93 of the specification)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import Caller, Said, put
from namespaces import Ns, make_ns  # noqa: F401
from traces import ip

pytestmark = pytest.mark.root

MAC = "02:00:5e:10:00:07"
LAST = "net/ipv4/conf/IFNAME/arp_notify"


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


class Place:
    """A pod with an `eth0`, whose other end is in a host of its own, and calls of the plugin for it."""

    def __init__(self, host: Ns, pod: Ns, plugins: Path, data: Path) -> None:
        self.pod = pod
        self.data = data
        self.call = Caller(plugins, host.name)
        host.ip("link", "add", "veth1", "type", "veth", "peer", "name", "eth0", "netns", pod.name)
        pod.ip("link", "set", "eth0", "up")
        self.result = {
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "veth1", "mac": "02:00:00:00:00:01"},
                {"name": "eth0", "mac": self.link()["address"], "mtu": 1500, "sandbox": pod.path},
            ],
            "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1}],
            "strange": {"kept": True},
        }

    def conf(self, **fields: Any) -> dict[str, Any]:
        own = {"cniVersion": "1.1.0", "name": "net1", "type": "tuning", "dataDir": str(self.data)}
        return {**own, "prevResult": self.result, **fields}

    def __call__(self, verb: str, conf: Mapping[str, Any] | bytes, **how: str) -> Said:
        return self.call(verb, conf, **{"netns": self.pod.name, "type": "tuning", **how})

    def link(self) -> dict[str, Any]:
        found: dict[str, Any] = ip("-n", self.pod.name, "link", "show", "eth0")[0]
        return found

    def sysctl(self, path: str) -> str:
        return self.pod.run("cat", f"/proc/sys/{path}").strip()

    @property
    def kept(self) -> list[str]:
        return sorted(file.name for file in self.data.glob("*"))


@pytest.fixture
def place(make_ns: Callable[..., Ns], plugins: Path, tmp_path: Path) -> Place:  # noqa: F811
    return Place(make_ns("host"), make_ns("pod"), plugins, tmp_path / "data")


# --- sysctls ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("net.ipv4.conf.IFNAME.arp_filter", "net/ipv4/conf/eth0/arp_filter"),
        ("net/ipv4/conf/IFNAME/arp_filter", "net/ipv4/conf/eth0/arp_filter"),
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
    ],
)
def test_sysctl_in_either_form(place: Place, key: str, path: str) -> None:
    conf = place.conf(sysctl={key: "1"})
    assert place.sysctl(path) == "0"
    assert place("ADD", conf).code == 0
    assert place.sysctl(path) == "1"
    assert place("CHECK", conf).code == 0
    place.pod.run("sh", "-c", f"echo 0 > /proc/sys/{path}")
    assert place("CHECK", conf).error == (999, f"Error: sysctl {path} is 0, and was set to 1")
    assert place("DEL", conf).code == 0
    assert place.kept == []


def test_interface_with_a_dot_in_its_name(place: Place) -> None:
    place.pod.ip("link", "set", "eth0", "name", "eth0.7")
    assert place("ADD", place.conf(sysctl={"net.ipv4.conf.IFNAME.arp_filter": "1"}), ifname="eth0.7").code == 0
    assert place.sysctl("net/ipv4/conf/eth0.7/arp_filter") == "1"
    assert place("ADD", place.conf(sysctl={"net.ipv4.conf.eth0/7.arp_filter": "0"}), ifname="eth0.7").code == 0
    assert place.sysctl("net/ipv4/conf/eth0.7/arp_filter") == "0"


def test_values_of_several_words_are_compared_by_word(place: Place) -> None:
    conf = place.conf(sysctl={"net.ipv4.ip_local_port_range": "20000 30000"})
    assert place("ADD", conf).code == 0
    assert place.sysctl("net/ipv4/ip_local_port_range") == "20000\t30000"
    assert place("CHECK", conf).code == 0


@pytest.mark.parametrize("key", ["kernel/msgmax", "kernel.msgmax", "net/../kernel/msgmax", "net", ""])
def test_sysctl_outside_of_the_network(place: Place, key: str) -> None:
    said = place("ADD", place.conf(sysctl={LAST: "1", key: "65536"}))
    assert said.error == (999, f'invalid net sysctl key: "{key}"')
    assert place.sysctl("net/ipv4/conf/eth0/arp_notify") == "0"


@pytest.mark.parametrize(
    "pairs",
    [
        '"net.ipv4.ip_forward": "1", "net.ipv4.ip_forward": "0"',
        '"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"',
    ],
)
def test_sysctl_that_is_given_twice(place: Place, pairs: str) -> None:
    conf = json.dumps(place.conf(sysctl={"x": "y"})).replace('"x": "y"', pairs).encode()
    assert place("ADD", conf).error == (999, "duplicated sysctl keys are not allowed")


def test_key_that_is_elsewhere_too_is_no_twin(place: Place) -> None:
    labels = {"net.ipv4.ip_forward": "yes"}
    conf = place.conf(sysctl={"net.ipv4.ip_forward": "0"}, args={"cni": {"labels": labels, "sysctl": {LAST: "1"}}})
    assert place("ADD", conf).code == 0


def test_allow_list(place: Place, tmp_path: Path) -> None:
    """In a mount namespace of its own: the list is this machine's."""
    etc = tmp_path / "etc"
    (etc / "tuning").mkdir(parents=True)
    (etc / "tuning/allowlist.conf").write_text("^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n\n")
    plugin = tmp_path / "tuning"
    real = place.call.directory / "tuning"
    plugin.write_text(f"#!/bin/sh\nmount --bind {etc} /etc/cni && exec {real}\n")
    (tmp_path / "with-list").write_text(f"#!/bin/sh\nexec unshare -m --propagation private {plugin}\n")
    for file in (plugin, tmp_path / "with-list"):
        file.chmod(0o755)
    call = Caller(tmp_path, place.call.host)
    good, bad = {"net.ipv4.conf.IFNAME.arp_filter": "1"}, {"net.ipv4.ip_forward": "1"}
    assert call("ADD", place.conf(sysctl=good), netns=place.pod.name, type="with-list").code == 0
    said = call("ADD", place.conf(sysctl=good | bad), netns=place.pod.name, type="with-list")
    only = "Only the following sysctls are allowed: [^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$]"
    assert said.error == (999, f"Sysctl net.ipv4.ip_forward is not allowed. {only}")
    (etc / "tuning/allowlist.conf").write_text("[\n")
    status = call("STATUS", place.conf(sysctl=good), type="with-list").error
    assert status[0] == 50
    assert "not a regular expression" in status[1]


# --- the link -----------------------------------------------------------------------------------------------------


def test_life(place: Place) -> None:
    before = place.link()
    conf = place.conf(mac=MAC, mtu=1400, promisc=True, allmulti=True, txQLen=77)
    said = place("ADD", conf)
    assert said.code == 0, said
    link = place.link()
    assert (link["address"], link["mtu"], link["txqlen"]) == (MAC, 1400, 77)
    assert {"PROMISC", "ALLMULTI"} <= set(link["flags"])
    assert said.doc["interfaces"] == [
        {"name": "veth1", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": MAC, "mtu": 1400, "sandbox": place.pod.path},
    ]
    assert said.doc["ips"] == place.result["ips"]
    assert said.doc["strange"] == {"kept": True}
    assert place.kept == ["ctr1_eth0.json"]
    assert (place.data / "ctr1_eth0.json").stat().st_mode & 0o777 == 0o600
    assert place("CHECK", conf).code == 0
    assert place("DEL", conf).code == 0
    after = place.link()
    for field in ("address", "mtu", "txqlen", "flags"):
        assert after[field] == before[field], field
    assert place.kept == []
    assert place("DEL", conf).code == 0


def test_mtu_and_its_file(place: Place) -> None:
    conf = place.conf(mtu=1400)
    assert place("ADD", conf).code == 0
    assert place.link()["mtu"] == 1400
    assert json.loads((place.data / "ctr1_eth0.json").read_text())["mtu"] == 1500
    assert place("DEL", conf).code == 0
    assert place.link()["mtu"] == 1500
    assert place.kept == []


def test_what_is_not_asked_for_is_not_touched(place: Place) -> None:
    before = place.link()
    said = place("ADD", place.conf(mac="", promisc=False, mtu=0))
    assert said.doc["interfaces"][1]["mac"] == before["address"]
    assert place.link() == before
    assert place.kept == []


def test_allmulti_and_queue_can_be_set_to_nothing(place: Place) -> None:
    place.pod.ip("link", "set", "eth0", "allmulticast", "on")
    conf = place.conf(allmulti=False, txQLen=0)
    assert place("ADD", conf).code == 0
    assert "ALLMULTI" not in place.link()["flags"]
    assert place.link().get("txqlen", 0) == 0
    assert place("DEL", conf).code == 0
    assert "ALLMULTI" in place.link()["flags"]


@pytest.mark.parametrize(
    ("fields", "args", "mac"),
    [
        ({"mac": "02-00-00-00-00-0A"}, "", "02:00:00:00:00:0a"),
        ({"mac": "02:00:00:00:00:01"}, "MAC=02:00:00:00:00:02", "02:00:00:00:00:02"),
        ({"runtimeConfig": {"mac": "02:00:00:00:00:03"}}, "MAC=02:00:00:00:00:02", "02:00:00:00:00:03"),
        (
            {"runtimeConfig": {"mac": "02:00:00:00:00:03"}, "args": {"cni": {"mac": "0200.0000.0004"}}},
            "IgnoreUnknown=1;K8S_POD_NAME=x;MAC=02:00:00:00:00:02",
            "02:00:00:00:00:04",
        ),
    ],
)
def test_which_mac(place: Place, fields: Mapping[str, Any], args: str, mac: str) -> None:
    said = place("ADD", place.conf(**fields), CNI_ARGS=args)
    assert said.code == 0, said
    assert place.link()["address"] == mac
    assert said.doc["interfaces"][1]["mac"] == mac


def test_args_of_cni_win(place: Place) -> None:
    asked = {"mtu": 1300, "promisc": True, "txQLen": 5, "allmulti": True, "sysctl": {LAST: "1"}}
    assert place("ADD", place.conf(mtu=1400, sysctl={LAST: "0"}, args={"cni": asked})).code == 0
    link = place.link()
    assert (link["mtu"], link["txqlen"]) == (1300, 5)
    assert {"PROMISC", "ALLMULTI"} <= set(link["flags"])
    assert place.sysctl("net/ipv4/conf/eth0/arp_notify") == "1"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"mac": "zz"}, "invalid args zz for MAC addr: address zz: invalid MAC address"),
        ({"mtu": "1400"}, "failed to load netconf: json: cannot unmarshal string into field mtu of type int"),
        (
            {"sysctl": {LAST: 1}},
            f"failed to load netconf: json: cannot unmarshal number into field sysctl.{LAST} of type string",
        ),
        ({"prevResult": None}, "Required prevResult missing"),
    ],
)
def test_what_cannot_be(place: Place, fields: Mapping[str, Any], error: str) -> None:
    assert place("ADD", place.conf(**fields)).error == (999, error)


def test_arguments_that_are_unknown(place: Place) -> None:
    assert place("ADD", place.conf(), CNI_ARGS="A=B").error == (999, 'ARGS: unknown args ["A=B"]')


def test_results_of_another_family(place: Place) -> None:
    said = place("ADD", place.conf(prevResult={**place.result, "cniVersion": "0.4.0"}))
    why = 'result type supports [1.0.0 1.1.0] but unmarshalled CNIVersion is "0.4.0"'
    assert said.error == (999, f"could not parse prevResult: {why}")


def test_an_add_that_fails_takes_back_what_it_did(place: Place) -> None:
    before = place.link()
    said = place("ADD", place.conf(sysctl={LAST: "1"}, mac=MAC, promisc=True, mtu=99_999_999))
    assert said.code == 1
    assert "mtu 99999999" in said.error[1]
    assert place.link() == before
    assert place.sysctl("net/ipv4/conf/eth0/arp_notify") == "0"
    assert place.kept == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("promisc on", "promisc of eth0 is true, and was set to false"),
        ("mtu 1300", "mtu of eth0 is 1300, and was set to 1400"),
        ("txqueuelen 9", "txQLen of eth0 is 9, and was set to 77"),
        ("address 02:00:00:00:00:99", f"mac of eth0 is 02:00:00:00:00:99, and was set to {MAC}"),
        ("allmulticast off", "allmulti of eth0 is false, and was set to true"),
    ],
)
def test_check_finds(place: Place, words: str, error: str) -> None:
    conf = place.conf(mtu=1400, mac=MAC, txQLen=77, allmulti=True)
    assert place("ADD", conf).code == 0
    place.pod.ip("link", "set", "eth0", *words.split())
    assert place("CHECK", conf).error == (999, f"Error: {error}")


def test_a_second_one_that_fails_leaves_what_the_first_remembered(place: Place) -> None:
    first = place.conf(mtu=1400)
    assert place("ADD", first).code == 0
    kept = (place.data / "ctr1_eth0.json").read_text()
    assert place("ADD", place.conf(txQLen=5, mtu=10_000_000)).code != 0
    assert place.link()["mtu"] == 1400
    assert (place.data / "ctr1_eth0.json").read_text() == kept
    assert place("DEL", first).code == 0
    assert place.link()["mtu"] == 1500
    assert place.kept == []


def test_two_in_one_chain(place: Place) -> None:
    first, second = place.conf(mtu=1400), place.conf(mtu=1300, txQLen=5)
    before = place.link()
    assert place("ADD", first).code == place("ADD", second).code == 0
    assert place("DEL", second).code == place("DEL", first).code == 0
    assert place.link() == before


def test_file_of_the_go_plugin(place: Place) -> None:
    place.data.mkdir()
    old = {"mac": "02:00:00:00:00:55", "promisc": False, "mtu": 1333, "allmulti": True, "txQLen": 44}
    (place.data / "ctr1_eth0.json").write_text(json.dumps(old))
    assert place("DEL", place.conf(mtu=1400)).code == 0
    link = place.link()
    assert (link["address"], link["mtu"], link["txqlen"]) == ("02:00:00:00:00:55", 1333, 44)
    assert "ALLMULTI" in link["flags"]
    assert place.kept == []


def test_the_go_plugin_takes_back_ours(place: Place) -> None:
    go = Path("/usr/lib/cni")
    if not (go / "tuning").exists():
        pytest.skip("Debian's containernetworking-plugins are not installed")
    conf = {**place.conf(mtu=1400, mac=MAC), "cniVersion": "1.0.0"}
    conf["prevResult"] = {**place.result, "cniVersion": "1.0.0"}
    before = place.link()
    assert place("ADD", conf).code == 0
    assert Caller(go, place.call.host)("DEL", conf, netns=place.pod.name).code == 0
    assert place.link() == before
    assert place.kept == []


# --- what is gone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ['{"mtu": 1400, "mac": 7}', "no JSON", "", "[]"])
@pytest.mark.parametrize("netns", ["", "nobody-is-here", "pod"])
def test_delete_always_succeeds(place: Place, netns: str, content: str) -> None:
    place.data.mkdir()
    (place.data / "ctr1_eth9.json").write_text(content)
    where = place.pod.name if netns == "pod" else netns
    assert place("DEL", place.conf(mtu=1400), netns=where, ifname="eth9").code == 0
    assert place.kept == []


def test_delete_succeeds_where_the_namespace_left_a_plain_file(place: Place, tmp_path: Path) -> None:
    place.data.mkdir()
    (place.data / "ctr1_eth9.json").write_text('{"mtu": 1400}')
    (tmp_path / "left").touch()
    said = place("DEL", place.conf(mtu=1400), netns=str(tmp_path / "left"), ifname="eth9")
    assert said.code == 0
    assert "eth9 is not put back: unknown FS magic" in said.stderr
    assert place.kept == []


def test_interface_that_is_not_there(place: Place) -> None:
    said = place("ADD", place.conf(mtu=1400), ifname="eth9")
    assert said.error == (999, 'failed to get "eth9": Link not found')


def test_gc(place: Place) -> None:
    conf = place.conf(mtu=1400)
    for container in ("ctr1", "ctr2"):
        assert place("ADD", conf, container=container).code == 0
    assert place("ADD", {**conf, "name": "net2"}, container="ctr3").code == 0
    (place.data / "ctr4_eth0.json").write_text('{"mtu": 1500}')  # the Go plugin's: nobody knows whose
    valid = [{"containerID": "ctr2", "ifname": "eth0"}]
    assert place("GC", {**conf, "cni.dev/valid-attachments": valid}).code == 0
    assert place.kept == ["ctr2_eth0.json", "ctr3_eth0.json", "ctr4_eth0.json"]


def test_status(place: Place) -> None:
    assert place("STATUS", place.conf(mtu=1400)).code == 0
    assert place("STATUS", place.conf(sysctl={"kernel.x": "1"})).error[0] == 50


def test_versions(place: Place) -> None:
    said = subprocess.run(
        [place.call.directory / "tuning"], env=os.environ | {"CNI_COMMAND": "VERSION"}, capture_output=True, check=True
    )
    assert len(json.loads(said.stdout)["supportedVersions"]) == 7
