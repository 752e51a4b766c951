"""The plugin `sbr` on the real kernel (situation 96 of the specification), and what packets make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import GO, Caller, Said, put
from namespaces import Ns, make_ns  # noqa: F401

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


class Place:
    """A pod with eth0 in 10.1.0.0/16 and fd00:1::/64, and eth1 in .2, and a router with an end of both."""

    def __init__(self, router: Ns, pod: Ns, plugins: Path) -> None:
        self.router = router
        self.pod = pod
        self.call = Caller(plugins, router.name)
        for n in (0, 1):
            names = ("link", "add", f"veth{n}", "type", "veth", "peer", "name", f"eth{n}", "netns", pod.name)
            router.ip(*names)
            for ns, name, end in ((router, f"veth{n}", 1), (pod, f"eth{n}", 5)):
                ns.ip("link", "set", name, "up")
                ns.ip("addr", "add", f"10.{n + 1}.0.{end}/16", "dev", name)
                ns.ip("addr", "add", f"fd00:{n + 1}::{end}/64", "dev", name, "nodad")
        pod.ip("route", "add", "default", "via", "10.1.0.1", "dev", "eth0")
        pod.ip("route", "add", "172.16.0.0/12", "via", "10.2.0.1", "dev", "eth1", "metric", "7")
        pod.ip("route", "add", "172.30.0.0/16", "dev", "eth1", "mtu", "1300")
        pod.ip("-6", "route", "add", "fd77::/32", "via", "fd00:2::1", "dev", "eth1")

    def conf(self, version: str = "1.1.0", **fields: Any) -> dict[str, Any]:
        ips = [
            {"address": "10.2.0.5/16", "gateway": "10.2.0.1", "interface": 1},
            {"address": "fd00:2::5/64", "gateway": "fd00:2::1", "interface": 1},
        ]
        interfaces = [{"name": "veth1"}, {"name": "eth1", "sandbox": self.pod.path}]
        result = {"cniVersion": version, "interfaces": interfaces, "ips": ips}
        return {"cniVersion": version, "name": "net1", "type": "sbr", "prevResult": result, **fields}

    def __call__(self, verb: str, conf: dict[str, Any], **how: str) -> Said:
        return self.call(verb, conf, **{"netns": self.pod.name, "ifname": "eth1", **how})

    def rules(self, family: str = "-4") -> list[tuple[str, str]]:
        return [
            (rule["src"], rule["table"])
            for rule in self.pod.json(family, "rule", "show")
            if rule["table"] not in ("local", "main", "default")
        ]

    def routes(self, table: str, family: str = "-4", dev: str = "") -> list[dict[str, Any]]:
        words = ("dev", dev) if dev else ()
        shown = self.pod.json(family, "route", "show", "table", table, *words)
        return sorted(shown, key=lambda route: route["dst"])

    def main(self) -> list[Any]:
        return [self.routes("main", "-4"), self.routes("main", "-6")]


@pytest.fixture
def place(make_ns: Callable[..., Ns], plugins: Path) -> Place:  # noqa: F811
    return Place(make_ns("router"), make_ns("pod"), plugins)


def test_life(place: Place) -> None:
    conf = place.conf()
    said = place("ADD", conf)
    assert said.code == 0, said
    assert said.doc == {**conf["prevResult"], "cniVersion": "1.1.0"}
    assert place.rules() == [("10.2.0.5", "100")]
    assert place.rules("-6") == [("fd00:2::5", "101")]
    table = {route["dst"]: route for route in place.routes("100")}
    assert set(table) == {"default", "10.2.0.0/16", "172.16.0.0/12", "172.30.0.0/16"}
    assert table["default"]["gateway"] == "10.2.0.1"
    assert table["172.16.0.0/12"]["metric"] == 7
    assert table["172.30.0.0/16"]["metrics"] == [{"mtu": 1300}]
    six = {route["dst"]: route for route in place.routes("101", "-6")}
    assert set(six) == {"default", "fd00:2::/64", "fd77::/32"}
    assert [route["dst"] for route in place.routes("main", dev="eth1")] == []
    assert [route["dst"] for route in place.routes("main", "-6", dev="eth1")] == ["fe80::/64"]
    assert {route["dst"] for route in place.routes("main", dev="eth0")} == {"default", "10.1.0.0/16"}
    assert place("CHECK", conf).code == 0
    assert place("DEL", conf).code == 0
    assert place.rules() == place.rules("-6") == []
    assert place.routes("all", dev="eth1") == [r for r in place.routes("all", dev="eth1") if r.get("table") == "local"]
    assert place("DEL", conf).code == 0


def test_as_the_go_plugin(make_ns: Callable[..., Ns], plugins: Path) -> None:  # noqa: F811
    """But for fe80::/64, and for routes that it copies into tables of the other family's addresses."""
    if not (GO / "sbr").exists():
        pytest.skip("Debian's containernetworking-plugins are not installed")
    seen = []
    for directory in (plugins, GO):
        place = Place(make_ns("router"), make_ns("pod"), directory)
        assert place("ADD", place.conf("1.0.0")).code == 0
        six = [route for route in place.routes("101", "-6") if route["dst"] != "fe80::/64"]
        mine = [route for route in place.routes("main", "-6", dev="eth1") if route["dst"] != "fe80::/64"]
        seen.append((place.rules(), place.rules("-6"), place.routes("100"), six, place.routes("main"), mine))
    assert seen[0] == seen[1]


def test_answers_leave_where_the_question_came_in(place: Place) -> None:
    """From a network behind the router that the pod's default route would answer through eth0."""
    place.router.ip("addr", "add", "192.168.9.9/32", "dev", "lo")
    for name in ("veth0", "veth1", "all"):
        place.router.run("sh", "-c", f"echo 1 > /proc/sys/net/ipv4/conf/{name}/rp_filter")
    ping = ("ping", "-c", "1", "-W", "1", "-I", "192.168.9.9", "10.2.0.5")
    place.router.ip("route", "change", "10.2.0.0/16", "dev", "veth1", "src", "10.2.0.1")
    assert "1 received" not in place.router.run(*ping, check=False)
    assert place("ADD", place.conf()).code == 0
    assert "1 received" in place.router.run(*ping)


def test_source_hints(place: Place) -> None:
    said = place("ADD", place.conf(addSourceHints=True))
    assert said.code == 0, said
    kept = {route["dst"]: route for route in place.routes("main", dev="eth1")}
    assert set(kept) == {"10.2.0.0/16"}
    assert kept["10.2.0.0/16"]["prefsrc"] == "10.2.0.5"
    six = {route["dst"]: route for route in place.routes("main", "-6", dev="eth1")}
    assert six["fd00:2::/64"]["prefsrc"] == "fd00:2::5"
    assert set(six) == {"fd00:2::/64", "fe80::/64"}


def test_the_result_says_where_routes_are_now(place: Place) -> None:
    """Or the plugin before would miss them in the main table when it checks."""
    conf = place.conf()
    told = [{"dst": "172.16.0.0/12", "gw": "10.2.0.1"}, {"dst": "0.0.0.0/0"}, {"dst": "10.99.0.0/16"}]
    conf["prevResult"]["routes"] = told
    assert place("ADD", conf).doc["routes"] == [{**told[0], "table": 100}, {**told[1], "table": 100}, told[2]]


def test_fixed_table(place: Place) -> None:
    before = place.main()
    conf = place.conf(table=77)
    assert place("ADD", conf).code == 0
    assert place.rules() == [("10.2.0.5", "77")]
    assert place.rules("-6") == [("fd00:2::5", "77")]
    assert place.main() == before
    assert place("CHECK", conf).code == 0
    place.pod.ip("rule", "add", "from", "10.9.9.9", "table", "77")
    assert place("DEL", conf).code == 0
    assert place.rules() == place.rules("-6") == []
    assert place.main() == before


def test_gateways_of_the_configuration(place: Place) -> None:
    conf = place.conf(gateways=["10.2.0.7", "fd00:2::7"])
    assert place("ADD", conf).code == 0
    assert {route["dst"]: route for route in place.routes("100")}["default"]["gateway"] == "10.2.0.7"
    assert {route["dst"]: route for route in place.routes("101", "-6")}["default"]["gateway"] == "fd00:2::7"
    assert place("CHECK", conf).code == 0
    assert place("CHECK", place.conf()).error[1].startswith("no default route via 10.2.0.1 in table 100")


def test_tables_that_are_taken(place: Place) -> None:
    place.pod.ip("rule", "add", "from", "10.9.9.9", "table", "100")
    place.pod.ip("-6", "route", "add", "fd99::/64", "dev", "eth0", "table", "101")
    assert place("ADD", place.conf()).code == 0
    assert ("10.2.0.5", "102") in place.rules()
    assert place.rules("-6") == [("fd00:2::5", "103")]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"prevResult": None}, "This plugin must be called as chained plugin"),
        ({"gateways": ["10.2.0.1", "10.2.0.2"]}, "more than one gateway of a family: 10.2.0.1, 10.2.0.2"),
        ({"gateways": ["here"]}, "invalid gateway address: here"),
        ({"table": -1}, "invalid table -1: must be between 1 and 4294967295"),
        ({"table": "7"}, "failed to load netconf: json: cannot unmarshal string into field table of type int"),
    ],
)
def test_what_cannot_be(place: Place, fields: dict[str, Any], error: str) -> None:
    assert place("ADD", place.conf(**fields)).error == (999, error)


def test_interface_without_addresses(place: Place) -> None:
    said = place("ADD", place.conf(), ifname="eth0")
    assert said.error == (999, "No IP addresses supplied on interface: eth0")


def test_old_results_name_no_interface(place: Place) -> None:
    result = {"cniVersion": "0.2.0", "ip4": {"ip": "10.2.0.5/16", "gateway": "10.2.0.1"}}
    said = place("ADD", {**place.conf("0.2.0"), "prevResult": result})
    assert said.code == 0, said
    assert place.rules() == [("10.2.0.5", "100")]


def test_an_add_that_fails_takes_back_what_it_did(place: Place) -> None:
    before = place.main()
    said = place("ADD", place.conf(gateways=["fe80::1", "127.0.0.9"]))
    assert said.code == 1
    assert place.rules() == place.rules("-6") == []
    assert place.main() == before
    assert not place.routes("100")


def test_check_misses_the_rule(place: Place) -> None:
    conf = place.conf()
    assert place("ADD", conf).code == 0
    place.pod.ip("rule", "del", "from", "10.2.0.5", "table", "100")
    assert place("CHECK", conf).error == (999, "no rule for packets from 10.2.0.5/32")


def test_pod_that_is_gone(place: Place, tmp_path: Path) -> None:
    """Upstream makes an ordinary file of the path that it locks."""
    missing = tmp_path / "netns"
    assert place("DEL", place.conf(), netns=str(missing)).code == 0
    assert not missing.exists()
    assert place("DEL", place.conf(), netns="").code == 0
    assert place("ADD", place.conf(), netns=str(missing)).code == 1
    assert not missing.exists()


def test_delete_without_interface_or_result(place: Place) -> None:
    conf = place.conf()
    assert place("ADD", conf).code == 0
    place.pod.ip("link", "del", "eth1")
    assert place("DEL", {key: value for key, value in conf.items() if key != "prevResult"}).code == 0
    assert place.rules() == [("10.2.0.5", "100")]  # nobody says whose it is
    assert place("DEL", conf).code == 0
    assert place.rules() == []


def test_delete_with_a_result_that_cannot_be_read(place: Place) -> None:
    conf = place.conf()
    assert place("ADD", conf).code == 0
    assert place("DEL", {**conf, "prevResult": {"cniVersion": "0.2.0", "ip4": 7}}).code == 0
    assert place.rules() == []


def test_two_at_once(place: Place) -> None:
    """They would choose the same table but for the lock."""
    import threading

    other = place.conf()
    ips = [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0}]
    other["prevResult"] = {
        **other["prevResult"],
        "interfaces": [{"name": "eth0", "sandbox": place.pod.path}],
        "ips": ips,
    }
    said: list[Said] = []
    threads = [
        threading.Thread(target=lambda: said.append(place("ADD", place.conf()))),
        threading.Thread(target=lambda: said.append(place("ADD", other, ifname="eth0"))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.code for one in said] == [0, 0]
    tables = [table for _, table in place.rules() + place.rules("-6")]
    assert len(tables) == len(set(tables)) == 3
