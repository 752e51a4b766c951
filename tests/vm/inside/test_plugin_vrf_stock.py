"""The plugin `vrf` on a kernel that has VRF (situation 95 of the specification), and what packets make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugins import Caller, Said, put
from namespaces import Ns

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


class Place:
    """A pod with eth0 and eth1, each with the same addresses, and a router for each."""

    def __init__(self, routers: list[Ns], pod: Ns, plugins: Path) -> None:
        self.routers = routers
        self.pod = pod
        self.call = Caller(plugins, routers[0].name)
        for n, router in enumerate(routers):
            router.ip("link", "add", "veth0", "type", "veth", "peer", "name", f"eth{n}", "netns", pod.name)
            for ns, name, end in ((router, "veth0", 1), (pod, f"eth{n}", 5)):
                ns.ip("link", "set", name, "up")
                ns.ip("addr", "add", f"10.{n + 1}.0.{end}/16", "dev", name)
                ns.ip("addr", "add", f"fd00:{n + 1}::{end}/64", "dev", name, "nodad")
            router.ip("addr", "add", "172.16.0.1/32", "dev", "lo")
            pod.ip("route", "add", f"172.{16 + n}.0.0/16", "via", f"10.{n + 1}.0.1", "dev", f"eth{n}", "metric", "7")
            pod.ip("-6", "route", "add", f"fd7{n}::/32", "via", f"fd00:{n + 1}::1", "dev", f"eth{n}")

    def conf(self, name: str = "blue", version: str = "1.1.0", **fields: Any) -> dict[str, Any]:
        result = {
            "cniVersion": version,
            "interfaces": [{"name": "eth1", "sandbox": self.pod.path}],
            "ips": [{"address": "10.2.0.5/16", "gateway": "10.2.0.1", "interface": 0}],
        }
        own = {"cniVersion": version, "name": "net1", "type": "vrf", "vrfname": name, "prevResult": result}
        return {**own, **fields}

    def __call__(self, verb: str, conf: dict[str, Any], **how: str) -> Said:
        return self.call(verb, conf, **{"netns": self.pod.name, "ifname": "eth1", **how})

    def link(self, name: str) -> dict[str, Any]:
        (found,) = self.pod.json("link", "show", "dev", name)
        return found

    def names(self) -> set[str]:
        return {link["ifname"] for link in self.pod.json("link", "show")}

    def routes(self, family: str, *words: str) -> set[str]:
        return {route["dst"] for route in self.pod.json(family, "route", "show", *words)}


@pytest.fixture
def place(make_ns: Callable[..., Ns], plugins: Path) -> Place:
    return Place([make_ns("r0"), make_ns("r1")], make_ns("pod"), plugins)


def test_life(place: Place) -> None:
    conf = place.conf()
    conf["prevResult"]["routes"] = [{"dst": "172.17.0.0/16"}, {"dst": "10.99.0.0/16"}]
    said = place("ADD", conf)
    assert said.code == 0, said
    routes = [{"dst": "172.17.0.0/16", "table": 1}, {"dst": "10.99.0.0/16"}]
    assert said.doc == {**conf["prevResult"], "routes": routes}
    blue = place.link("blue")
    assert blue["linkinfo"] == {"info_kind": "vrf", "info_data": {"table": 1}}
    assert "UP" in blue["flags"]
    assert place.link("eth1")["master"] == "blue"
    assert {"10.2.0.0/16", "172.17.0.0/16"} <= place.routes("-4", "vrf", "blue")
    assert {"fd00:2::/64", "fd71::/32"} <= place.routes("-6", "vrf", "blue")
    assert place.routes("-4", "dev", "eth1", "table", "main") == set()
    there = {
        a["local"] for a in place.pod.json("addr", "show", "dev", "eth1")[0]["addr_info"] if a["scope"] == "global"
    }
    assert there == {"10.2.0.5", "fd00:2::5"}
    place.pod.run("ping", "-c", "1", "-W", "2", "-I", "blue", "10.2.0.1")
    assert place("CHECK", conf).code == 0
    assert place("DEL", conf).code == 0
    assert place.names() == {"lo", "eth0", "eth1"}
    assert place("CHECK", conf).error == (999, "failed to find eth1 associated to vrf blue")
    assert place("DEL", conf).code == 0


def test_a_chain_can_be_checked(place: Place, plugins: Path) -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.3.0.5/16", "gateway": "10.3.0.1"}]}
    first = {"cniVersion": "1.0.0", "name": "net1", "type": "ptp", "ipam": {**ipam, "routes": [{"dst": "10.9.0.0/16"}]}}
    made = place.call.add(first, netns=place.pod.name, ifname="eth7")
    second = place.conf(version="1.0.0", prevResult=made)
    result = place.call.add(second, netns=place.pod.name, ifname="eth7")
    for conf in (first, second):
        said = place("CHECK", {**conf, "prevResult": result}, ifname="eth7")
        assert said.code == 0, said
    for conf in (second, first):
        assert place("DEL", {**conf, "prevResult": result}, ifname="eth7").code == 0


def test_the_last_takes_it_along(place: Place) -> None:
    conf = place.conf(table=10)
    assert place("ADD", conf).code == place("ADD", conf, ifname="eth0").code == 0
    assert place("ADD", conf).code == 0  # it is there: nothing to do
    assert place("DEL", conf).code == 0
    assert "blue" in place.names()
    place.pod.ip("link", "del", "eth0")
    assert place("DEL", conf, ifname="eth0").code == 0
    assert place.names() == {"lo", "eth1"}


def test_tables_that_are_taken(place: Place) -> None:
    assert place("ADD", place.conf("red"), ifname="eth0").code == 0
    assert place("ADD", place.conf("blue")).code == 0
    assert place.link("blue")["linkinfo"]["info_data"]["table"] == 2


def test_another_table(place: Place) -> None:
    place.pod.ip("link", "add", "blue", "type", "vrf", "table", "1")
    said = place("ADD", place.conf(table=10))
    assert said.error == (999, "cmdAdd failed: VRF blue already exist with different routing table 1")
    assert "master" not in place.link("eth1")


def test_another_master(place: Place) -> None:
    assert place("ADD", place.conf("blue")).code == 0
    said = place("ADD", place.conf("red"))
    assert said.error == (999, "cmdAdd failed: interface eth1 has already a master set: blue")
    assert "red" not in place.names()


def test_interface_that_is_not_there(place: Place) -> None:
    said = place("ADD", place.conf(), ifname="eth9")
    assert said.error == (999, 'cmdAdd failed: failed to lookup "eth9": Link not found')
    assert "blue" not in place.names()


def test_status(place: Place) -> None:
    assert place("STATUS", place.conf()).code == 0
    assert "vrf-probe" not in {link["ifname"] for link in place.routers[0].json("link", "show")}
