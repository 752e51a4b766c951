"""What `tortie flannel` prints, of values: daemons in every state, leases and what is odd of them, Docker's options."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tortie.base.errors import ConfigError, TortieError
from tortie.cli.flannel_text import leases_document, leases_table, page, wrong
from tortie.cli.main import main
from tortie.flannel.docker_opts import text
from tortie.flannel.lease import Attrs, Lease
from tortie.kernel.routes import Nexthop, Route

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NODE = {
    "subnet": "10.5.1.0/24", "subnet6": None, "public_ip": "192.0.2.1", "public_ipv6": None, "interface": "eth0",
    "mtu": 1500, "pod_mtu": 1450, "expires": (NOW + timedelta(hours=23)).isoformat(),
}  # fmt: skip
OTHER = {
    "key": "10.5.2.0-24", "node": None, "subnet": "10.5.2.0/24", "subnet6": "fc00:5::/64", "public_ip": "192.0.2.2",
    "public_ipv6": None, "type": "vxlan", "path": "via 10.5.2.0 dev flannel.1", "expires": None,
}  # fmt: skip
WELL: dict[str, Any] = {
    "socket": "/run/flannel/subnet.sock", "version": "1.2", "pid": 7, "since": (NOW - timedelta(minutes=5)).isoformat(),
    "mode": "etcd", "where": "http://192.0.2.9:2379", "backend": "vxlan", "node": NODE, "neighbours": [OTHER],
    "in_sync": True, "ready": True, "failures": [], "problems": [], "findings": [], "counters": None,
}  # fmt: skip


def shown(**changes: Any) -> list[str]:
    return page(WELL | changes, NOW).splitlines()


# --- status -------------------------------------------------------------------------------------------------------


def test_a_daemon_that_is_well() -> None:
    assert shown() == [
        "/run/flannel/subnet.sock  well",
        "  node      10.5.1.0/24 on eth0 (MTU 1500), reached by 192.0.2.1",
        "  lease     expires in 23 h",
        "  backend   vxlan, pods' MTU 1450",
        "  subnets   etcd, http://192.0.2.9:2379",
        "  daemon    tortie 1.2, process 7, runs for 5 min",
        "",
        "SUBNET                     PUBLIC IP   NODE    WAY                          STATE",
        "10.5.2.0/24, fc00:5::/64   192.0.2.2   -       via 10.5.2.0 dev flannel.1   up",
    ]


def test_before_it_has_a_subnet() -> None:
    waiting = "waiting: etcd does not answer"
    lines = shown(
        node=None, backend=None, neighbours=[], in_sync=False, ready=False, problems=[waiting], where="http://x:1"
    )
    assert lines[0].endswith("not well")
    assert "  node      has no subnet yet" in lines
    assert "  backend   not known yet" in lines
    assert "  subnets   etcd, http://x:1, not read yet" in lines
    assert lines[-3].split() == ["not", "known", "yet", "-", "-", "-", "-"]
    assert lines[-2:] == ["", f"✘ {waiting}"]
    assert shown(ready=False)[0].endswith("not ready yet")


def test_what_is_not_well_comes_last_and_findings_are_not_failures() -> None:
    lines = shown(failures=["routes: no"], problems=["node2 is nowhere"], findings=["MTU differs"])
    assert lines[-4:] == ["", "✘ routes: no", "✘ node2 is nowhere", "! MTU differs"]
    assert wrong(WELL | {"findings": ["MTU differs"]}) == []
    assert shown(findings=["MTU differs"])[0].endswith("  well")


@pytest.mark.parametrize(
    ("changes", "of_neighbour", "state"),
    [
        ({}, {}, "up"),
        ({"failures": ["routes: no"]}, {}, "failing"),
        ({"in_sync": False}, {}, "not known yet"),
        ({}, {"type": "host-gw", "path": None}, "backend host-gw"),
        ({"backend": "udp"}, {"type": ""}, "up"),
    ],
)
def test_the_state_of_a_neighbour(changes: dict[str, Any], of_neighbour: dict[str, Any], state: str) -> None:
    row = next(line for line in shown(neighbours=[OTHER | of_neighbour], **changes) if line.startswith("10.5.2.0"))
    assert row.endswith(f"   {state}")


def test_nobody_there() -> None:
    assert any(line.startswith("no other node ") for line in shown(neighbours=[]))
    assert any(line.startswith("none looked for ") for line in shown(neighbours=[], backend="alloc"))


def test_counters_and_rules_where_there_are_some() -> None:
    rules = {"ip flannel-ipv4": {"flanneld masq: host to pods": (3, 252)}}
    lines = shown(counters={"sent": 5, "unknown": 0}, rules=rules)
    assert "  counted   sent 5" in lines, "nothing is said of what never happened"
    assert lines[-2].split() == ["TABLE", "RULE", "PACKETS", "BYTES"]
    assert lines[-1] == "ip flannel-ipv4   masq: host to pods   3         252"


def test_a_daemon_that_does_not_answer() -> None:
    assert page({"socket": "/x", "problems": ["no flanneld at /x"]}, NOW) == "/x  not well\n✘ no flanneld at /x\n"


@pytest.mark.parametrize(
    ("expires", "said"),
    [(None, "never expires"), (60, "expires in 60 s"), (-60, "expired 60 s ago")],
)
def test_when_a_lease_ends(expires: int | None, said: str) -> None:
    when = None if expires is None else (NOW + timedelta(seconds=expires)).isoformat()
    assert f"  lease     {said}" in shown(node=NODE | {"expires": when})


# --- leases -------------------------------------------------------------------------------------------------------


def lease(subnet: str, public: str, expires: float | None = 1000.0, node: str = "", backend: str = "vxlan") -> Lease:
    return Lease(ip_network(subnet), None, Attrs(ip_address(public), None, backend), expires, node)


LEASES = {
    "10.5.10.0-24": lease("10.5.10.0/24", "192.0.2.10", None),
    "10.5.9.0-24": lease("10.5.9.0/24", "10.0.2.15", backend=""),
    "10.5.2.0-24": lease("10.5.2.0/24", "10.0.2.15"),
}


def test_leases_in_the_order_of_subnets_with_what_is_odd() -> None:
    assert leases_table(leases_document(LEASES, reserves=True), 940.0).splitlines() == [
        "SUBNET         PUBLIC IP    NODE    BACKEND   EXPIRES   REMARK",
        "10.5.2.0/24    10.0.2.15    -       vxlan     in 60 s   same public IP as 10.5.9.0/24",
        "10.5.9.0/24    10.0.2.15    -       -         in 60 s   same public IP as 10.5.2.0/24",
        "10.5.10.0/24   192.0.2.10   -       vxlan     never     reservation",
    ]


def test_in_kubernetes_no_lease_is_a_reservation_and_nodes_have_names() -> None:
    nodes = {name: lease(f"10.5.{i}.0/24", "10.0.2.15", None, name) for i, name in enumerate(("a", "b"))}
    documents = leases_document(nodes, reserves=False)
    assert [one["reservation"] for one in documents] == [False, False]
    assert [one["same_public_ip"] for one in documents] == [["b"], ["a"]]


def test_an_output_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flannel", "leases", "-etcd-endpoints=http://127.0.0.1:1", "-o", "xml"]) == 2
    assert '"xml" is not one of table, json, yaml' in capsys.readouterr().err
    assert main(["flannel", "leases", "--output=xml"]) == 2
    assert main(["flannel", "status", "-o", "xml"]) == 2


def test_flags_and_options_of_leases_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flannel", "leases", "-o", "json", "-etcd-prefix", "-o", "-nonsense"]) == 2
    assert "is not one of" in capsys.readouterr().err  # -o is the command's own wherever it stands
    assert main(["flannel", "leases", "-ooo=1"]) == 2
    assert "flag provided but not defined: -ooo" in capsys.readouterr().err


# --- Docker's options ---------------------------------------------------------------------------------------------

ENV = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
SINGLE = 'DOCKER_OPT_BIP="--bip=10.5.52.1/24"\nDOCKER_OPT_IPMASQ="--ip-masq=false"\nDOCKER_OPT_MTU="--mtu=1450"\n'
COMBINED = 'DOCKER_OPTS=" --bip=10.5.52.1/24 --ip-masq=false --mtu=1450"\n'
OWN = ip_network("10.5.52.0/24")


def options(said: str = ENV, *routes: Route, key: str = "DOCKER_OPTS", **how: bool) -> str:
    return text(said, "subnet.env", routes, key, **{"single": True, "combined": True, "masq": True} | how)


def test_each_in_a_variable_and_all_in_one() -> None:
    assert options() == SINGLE + COMBINED
    assert options(combined=False) == SINGLE
    assert options(single=False) == COMBINED
    assert options(single=False, key="OPTS") == COMBINED.replace("DOCKER_OPTS", "OPTS")
    assert options(masq=False, combined=False) == SINGLE.replace('DOCKER_OPT_IPMASQ="--ip-masq=false"\n', "")


def test_docker_masquerades_where_flannel_does_not() -> None:
    assert "--ip-masq=true" in options(ENV.replace("true", "false"))


@pytest.mark.parametrize("value", ["", "yes", "True"])
def test_neither_true_nor_false(value: str) -> None:
    with pytest.raises(
        TortieError, match=f"subnet.env: Invalid value of FLANNEL_IPMASQ: {value}: it is true or"
    ) as why:
        options(ENV.replace("true", value))
    assert not isinstance(why.value, ConfigError)


def test_a_file_without_what_is_needed() -> None:
    with pytest.raises(ConfigError, match="missing FLANNEL_MTU"):
        options(ENV.replace("FLANNEL_MTU=1450\n", ""))
    only6 = ENV.replace("FLANNEL_NETWORK=10.5.0.0/16", "FLANNEL_IPV6_NETWORK=fc00::/48")
    with pytest.raises(ConfigError, match="needs an IPv4 subnet"):
        options(only6.replace("FLANNEL_SUBNET=10.5.52.1/24", "FLANNEL_IPV6_SUBNET=fc00::1/64"))


def test_a_subnet_that_another_node_has() -> None:
    via = ip_address("192.0.2.2")
    for route in (Route(OWN, via=via, dev=2), Route(OWN, nexthops=(Nexthop(via, 2), Nexthop(via, 3)))):
        with pytest.raises(TortieError, match=r"10\.5\.52\.0/24 is routed to 192\.0\.2\.2: another node has it"):
            options(ENV, route)
    others = (Route(OWN, dev=4), Route(ip_network("10.5.0.0/16"), via=via, dev=2), Route(OWN, type="blackhole"))
    assert options(ENV, *others) == SINGLE + COMBINED
