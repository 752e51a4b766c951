"""The plugin `portmap` on the real kernel, with packets (situations 80 to 87 of the specification)."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chain_ground import HOST4, HOST6, OUTSIDE4, Ground, Udp, ask, make_ground, nft_rules, refused, serving

from cni_plugins import GO, Caller, put
from namespaces import Ns

pytestmark = pytest.mark.root

WEB = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
MINE = 'comment "ctr1 eth0 net1"'
CHAINED = "must be called as chained plugin"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def ground(make_ns: Callable[..., Ns], directory: Path) -> Ground:
    return make_ground(make_ns, directory)


def conf(*mappings: dict[str, Any], prev: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    found = {"cniVersion": "1.0.0", "name": "net1", "type": "portmap", "snat": True, **more}
    if mappings:
        found["runtimeConfig"] = {"portMappings": list(mappings)}
    return found | ({"prevResult": prev} if prev else {})


def add(ground: Ground, config: dict[str, Any], pod: str = "a", **more: str) -> Any:
    return ground.call.add(config, netns=ground.pods[pod].path, **more)


# --- what the configuration may say (no namespace of a container is looked at) ------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (conf(WEB), CHAINED),
        (conf({**WEB, "hostPort": 0}), "failed to parse config: Invalid host port number: 0"),
        (conf({**WEB, "containerPort": 0}), "failed to parse config: Invalid container port number: 0"),
        (conf({**WEB, "hostPort": 70000}), "failed to parse config: Invalid host port number: 70000"),
        (conf({**WEB, "hostIP": "x; flush"}), 'failed to parse config: Invalid host IP: "x; flush"'),
        (
            conf({**WEB, "protocol": "carp"}),
            'failed to parse config: Invalid protocol of host port 8080: "carp" is none of tcp, udp, sctp, dccp',
        ),
        (conf(WEB, backend="foo"), 'failed to parse config: unrecognized backend "foo"'),
        (conf(WEB, markMasqBit=32), "failed to parse config: MasqMarkBit must be between 0 and 31"),
        (
            conf(WEB, markMasqBit=14, externalSetMarkChain="KUBE-MARK-MASQ"),
            "failed to parse config: Cannot specify externalSetMarkChain and markMasqBit",
        ),
        (
            conf(WEB, backend="nftables", conditionsV4=["!", "-s", "192.0.2.0/24"]),
            "failed to parse config: nftables backend was requested but configuration contains "
            "iptables-specific options [conditionsV4]",
        ),
        (
            conf(WEB, backend="iptables", conditionsV6=["ip6", "saddr", "::1"]),
            "failed to parse config: iptables backend was requested but configuration contains "
            "nftables-specific options [conditionsV6]",
        ),
        (
            conf(WEB, conditionsV4=["ip saddr ::1 accept; flush ruleset"]),
            'failed to parse config: conditionsV4: "ip saddr ::1 accept; flush ruleset" is more than a condition',
        ),
        (
            conf(WEB, snat="yes"),
            "failed to parse config: failed to load netconf: json: cannot unmarshal string into field snat "
            "of type bool",
        ),
    ],
)
def test_refused_configuration(directory: Path, config: dict[str, Any], words: str) -> None:
    """Situations 81, 82 and 87."""
    assert Caller(directory)("ADD", config, netns="nobody-is-here").error == (999, words)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"externalSetMarkChain": "KUBE-MARK-MASQ"}, '"KUBE-MARK-MASQ" is a chain of iptables'),
        (
            {"conditionsV4": ["!", "-d", "192.0.2.0/24"]},
            'use those of nft, such as ["ip", "saddr", "!=", "192.0.2.0/24"]',
        ),
    ],
)
def test_what_only_iptables_can(ground: Ground, more: dict[str, Any], words: str) -> None:
    config = conf(WEB, prev=ground.result(), **more)
    code, said = ground.call("ADD", config, netns=ground.pods["a"].path).error
    assert code == 999
    assert words in said
    assert ground.call("DEL", config, netns=ground.pods["a"].path).code == 0
    assert nft_rules(ground.host, "ip", "cni_hostport") == {}


def test_nothing_to_do(ground: Ground) -> None:
    result = ground.result()
    assert add(ground, conf(prev=result)) == result
    assert ground.call("DEL", conf(prev=result), netns=ground.pods["a"].path).code == 0
    assert nft_rules(ground.host, "ip", "cni_hostport") == {}


def test_check_without_result(directory: Path) -> None:
    said = Caller(directory)("CHECK", conf(WEB), netns="nobody-is-here")
    assert said.error == (999, "Required prevResult missing")
    said = Caller(directory)("CHECK", conf({**WEB, "hostPort": 0}), netns="nobody-is-here")
    assert said.error == (999, "Invalid host port number: 0")


# --- rules --------------------------------------------------------------------------------------------------------


def test_rules(ground: Ground) -> None:
    """Situation 80."""
    result = ground.result()
    for _ in range(2):  # the second ADD changes nothing
        assert add(ground, conf(WEB, prev=result)) == result
        assert nft_rules(ground.host, "ip", "cni_hostport") == {
            "hostports": [f"tcp dport 8080 dnat to 10.1.2.2:80 {MINE}"],
            "hostip_hostports": [],
            "hostports_all": ["jump hostip_hostports", "jump hostports"],
            "prerouting": ["fib daddr type local jump hostports_all"],
            "output": ["fib daddr type local jump hostports_all"],
            "masquerading": [
                f"ip saddr 10.1.2.2 ip daddr 10.1.2.2 masquerade {MINE}",
                f"ip saddr 127.0.0.1 ip daddr 10.1.2.2 masquerade {MINE}",
            ],
        }
        there = nft_rules(ground.host, "ip6", "cni_hostport")
        assert there["hostports"] == [f"tcp dport 8080 dnat to [fd00:1::2]:80 {MINE}"]
        assert there["masquerading"] == [f"ip6 saddr fd00:1::2 ip6 daddr fd00:1::2 masquerade {MINE}"]
    listed = ground.on_host("nft", "list", "tables", "ip"), ground.on_host("nft", "list", "table", "ip", "cni_hostport")
    assert 'comment "CNI portmap plugin"' in listed[1]
    assert ground.on_host("sysctl", "-n", "net.ipv4.conf.cni0.route_localnet").strip() == "1"


def test_life(ground: Ground) -> None:
    config = conf(WEB, {**WEB, "hostPort": 8081, "hostIP": HOST4}, prev=ground.result())
    where = {"netns": ground.pods["a"].path}
    add(ground, config)
    assert ground.call("CHECK", config, **where).code == 0
    for _ in range(2):
        assert ground.call("DEL", config, **where).code == 0
    for family in ("ip", "ip6"):
        there = nft_rules(ground.host, family, "cni_hostport")
        assert [there["hostports"], there["masquerading"]] == [[], []]
    missing = (999, 'missing hostport rules in "hostports" chain')
    assert ground.call("CHECK", config, **where).error == missing


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version(ground: Ground, version: str) -> None:
    """Results of the first two have no interfaces: their addresses are the container's."""
    result = ground.result(version=version)
    if version < "0.3":
        result = {
            "cniVersion": version,
            "ip4": {"ip": "10.1.2.2/24", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd00:1::2/64"},
        }
    config = conf(WEB, prev=result) | {"cniVersion": version}
    assert {"dns": {}, **add(ground, config)} == {"dns": {}, **result}
    assert nft_rules(ground.host, "ip", "cni_hostport")["hostports"] == [f"tcp dport 8080 dnat to 10.1.2.2:80 {MINE}"]
    assert len(nft_rules(ground.host, "ip6", "cni_hostport")["hostports"]) == 1
    assert ground.call("CHECK", config, netns=ground.pods["a"].path).code == (0 if version >= "0.4" else 1)
    assert ground.call("DEL", config, netns="").code == 0
    assert nft_rules(ground.host, "ip", "cni_hostport")["hostports"] == []


def test_check_sees_what_is_missing(ground: Ground) -> None:
    config, where = conf(WEB, prev=ground.result()), {"netns": ground.pods["a"].path}
    add(ground, config)
    ground.on_host("nft", "flush", "chain", "ip", "cni_hostport", "masquerading")
    assert ground.call("CHECK", config, **where).error[1] == 'missing masquerade rules in "masquerading" chain'
    add(ground, config)
    ground.on_host("nft", "flush", "chain", "ip", "cni_hostport", "output")
    assert ground.call("CHECK", config, **where).error[1] == 'missing jump to "hostports_all" in "output" chain'
    add(ground, config)
    assert ground.call("CHECK", config, **where).code == 0


def test_many_ports(ground: Ground) -> None:
    """Situation 83: nothing of nft's counts to 15."""
    mappings = [{**WEB, "hostPort": port} for port in range(9000, 9016)]
    add(ground, conf(*mappings, prev=ground.result()))
    assert len(nft_rules(ground.host, "ip", "cni_hostport")["hostports"]) == 16


def test_host_address_of_the_other_family(ground: Ground) -> None:
    """Situation 84."""
    config = conf({**WEB, "hostIP": "::1"}, prev=ground.result(v6=False))
    add(ground, config)
    assert nft_rules(ground.host, "ip", "cni_hostport")["hostports"] == []
    assert nft_rules(ground.host, "ip6", "cni_hostport") == {}
    assert ground.call("CHECK", config, netns=ground.pods["a"].path).code == 0


def test_without_masquerade(ground: Ground) -> None:
    """Situation 85."""
    add(ground, conf(WEB, prev=ground.result(), snat=False))
    assert "masquerading" not in nft_rules(ground.host, "ip", "cni_hostport")
    assert ground.on_host("sysctl", "-n", "net.ipv4.conf.cni0.route_localnet").strip() == "0"


def test_any_address_is_no_address(ground: Ground) -> None:
    add(ground, conf({**WEB, "hostIP": "0.0.0.0"}, {**WEB, "hostPort": 81, "hostIP": "::"}, prev=ground.result()))
    assert [line.split(" dnat")[0] for line in nft_rules(ground.host, "ip", "cni_hostport")["hostports"]] == [
        "tcp dport 8080",
        "tcp dport 81",
    ]


# --- packets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["", "iptables", "nftables"])
def test_from_everywhere(ground: Ground, backend: str) -> None:
    config = conf(WEB, prev=ground.result(), **({"backend": backend} if backend else {}))
    add(ground, config)
    with serving(ground.pods["a"], "10.1.2.2", 80, "a"), serving(ground.pods["a"], "fd00:1::2", 80, "a6"):
        assert ask(ground.outside, HOST4, 8080) == f"a {OUTSIDE4}"  # who asks is seen
        assert ask(ground.outside, HOST6, 8080) == "a6 fd00:2::2"
        assert ask(ground.host, HOST4, 8080).startswith("a ")
        assert ask(ground.host, "127.0.0.1", 8080) == "a 10.1.2.1"
        assert ask(ground.pods["b"], HOST4, 8080) == "a 10.1.2.3"
        assert ask(ground.pods["a"], HOST4, 8080) == "a 10.1.2.1"  # by the bridge's hairpin
        assert ask(ground.pods["a"], HOST6, 8080) == "a6 fd00:1::1"
        assert refused(ground.outside, HOST4, 80)
        assert ground.call("DEL", config, netns=ground.pods["a"].path).code == 0
        assert refused(ground.outside, HOST4, 8080)


def test_masquerade_all(ground: Ground) -> None:
    add(ground, conf(WEB, prev=ground.result(), masqAll=True))
    with serving(ground.pods["a"], "10.1.2.2", 80, "a"):
        assert ask(ground.outside, HOST4, 8080) == "a 10.1.2.1"
        assert ask(ground.host, "127.0.0.1", 8080) == "a 10.1.2.1"
        assert ask(ground.outside, "10.1.2.2", 80) == f"a {OUTSIDE4}"  # was not forwarded by us


def test_one_address_of_the_host(ground: Ground) -> None:
    """The container that has a port of one address has it, whoever has the port of all others."""
    ground.host.ip("addr", "add", "192.0.2.11/24", "dev", "eth0")
    add(ground, conf(WEB, prev=ground.result("a")))
    add(ground, conf({**WEB, "hostIP": "192.0.2.11"}, prev=ground.result("b")), "b", container="ctr2")
    with serving(ground.pods["a"], "10.1.2.2", 80, "a"), serving(ground.pods["b"], "10.1.2.3", 80, "b"):
        assert ask(ground.outside, HOST4, 8080) == f"a {OUTSIDE4}"
        assert ask(ground.outside, "192.0.2.11", 8080) == f"b {OUTSIDE4}"


def test_conditions(ground: Ground) -> None:
    """They are of the network that has them, not of all."""
    add(ground, conf(WEB, prev=ground.result("a"), conditionsV4=["ip", "saddr", "!=", OUTSIDE4]))
    other = conf({**WEB, "hostPort": 8081}, prev=ground.result("b")) | {"name": "net2"}
    add(ground, other, "b", container="ctr2")
    with serving(ground.pods["a"], "10.1.2.2", 80, "a"), serving(ground.pods["b"], "10.1.2.3", 80, "b"):
        assert refused(ground.outside, HOST4, 8080)
        assert ask(ground.pods["b"], HOST4, 8080) == "a 10.1.2.3"
        assert ask(ground.outside, HOST4, 8081) == f"b {OUTSIDE4}"


def test_condition_that_nft_does_not_know(ground: Ground) -> None:
    config = conf(WEB, prev=ground.result(), conditionsV4=["bananas"])
    code, words = ground.call("ADD", config, netns=ground.pods["a"].path).error
    assert code == 999
    assert words.startswith('nft refuses the rules with conditionsV4 "bananas": ')
    assert nft_rules(ground.host, "ip", "cni_hostport") == {}
    config = conf(WEB, prev=ground.result(), conditionsV6=["bananas"])
    assert "conditionsV6" in ground.call("ADD", config, netns=ground.pods["a"].path).error[1]
    assert nft_rules(ground.host, "ip", "cni_hostport")["hostports"] == []  # what IPv4 got is taken back


def test_udp_flow_of_before(ground: Ground) -> None:
    """Situation 86: who asked before the port was there is forwarded from then on."""
    dns = {"hostPort": 5353, "containerPort": 53, "protocol": "UDP"}
    with (
        serving(ground.host, HOST4, 5353, "host", socket.SOCK_DGRAM),
        serving(ground.pods["a"], "10.1.2.2", 53, "a", socket.SOCK_DGRAM),
        Udp(ground.outside) as client,
    ):
        ground.on_host("nft", "add table ip watch; add chain ip watch p { type filter hook prerouting priority 0; }")
        ground.on_host("nft", "add rule ip watch p ct state new accept")  # connections are tracked from now on
        assert client.ask(HOST4, 5353) == f"host {OUTSIDE4}"
        assert "dport=5353" in ground.on_host("conntrack", "-L", "-p", "udp")
        add(ground, conf(dns, prev=ground.result()))
        assert client.ask(HOST4, 5353) == f"a {OUTSIDE4}"


# --- whose rules --------------------------------------------------------------------------------------------------


def test_two_interfaces_of_one_container(ground: Ground) -> None:
    """They do not share their fate, as with the Go plugin."""
    first = conf(WEB, prev=ground.result("a"))
    second_result = json.loads(json.dumps(ground.result("b")).replace('"eth0"', '"net1"'))
    second = conf({**WEB, "hostPort": 8081}, prev=second_result)
    add(ground, first)
    add(ground, second, "b", ifname="net1")
    assert ground.call("DEL", first, netns=ground.pods["a"].path).code == 0
    assert nft_rules(ground.host, "ip", "cni_hostport")["hostports"] == [
        'tcp dport 8081 dnat to 10.1.2.3:80 comment "ctr1 net1 net1"'
    ]


def test_many_at_once(ground: Ground) -> None:
    """Of each container the rules are there, and gone when it is."""

    def config(number: int) -> dict[str, Any]:
        return conf({**WEB, "hostPort": 9000 + number}, prev=ground.result())

    def live(number: int) -> None:
        add(ground, config(number), container=f"c{number}")
        if number % 2:
            where = {"netns": ground.pods["a"].path, "container": f"c{number}"}
            assert ground.call("DEL", config(number), **where).code == 0

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(live, range(16)))
    there = nft_rules(ground.host, "ip", "cni_hostport")
    assert sorted(line.split()[2] for line in there["hostports"]) == [str(9000 + number) for number in range(0, 16, 2)]
    assert len(there["masquerading"]) == 16
    assert there["prerouting"] == ["fib daddr type local jump hostports_all"]


def test_long_names(ground: Ground) -> None:
    container, network = "c" * 100, "n" * 200
    config = conf(WEB, prev=ground.result()) | {"name": network}
    add(ground, config, container=container)
    where = {"netns": ground.pods["a"].path, "container": container}
    assert ground.call("CHECK", config, **where).code == 0
    assert ground.call("DEL", config, **where).code == 0
    assert nft_rules(ground.host, "ip", "cni_hostport")["hostports"] == []


def test_garbage_collection(ground: Ground) -> None:
    add(ground, conf(WEB, prev=ground.result("a")))
    add(ground, conf({**WEB, "hostPort": 8081}, prev=ground.result("b")), "b", container="ctr2")
    other = conf({**WEB, "hostPort": 8082}, prev=ground.result("b")) | {"name": "net2"}
    add(ground, other, "b", container="ctr3")
    said = ground.call("GC", conf() | {"cniVersion": "1.1.0"})
    words = "GC needs cni.dev/valid-attachments: without it everything would be collected"
    assert said.error == (7, words)
    valid = {"cni.dev/valid-attachments": [{"containerID": "ctr2", "ifname": "eth0"}]}
    assert ground.call("GC", conf(**valid) | {"cniVersion": "1.1.0"}).code == 0
    ports = [line.split()[2] for line in nft_rules(ground.host, "ip", "cni_hostport")["hostports"]]
    assert ports == ["8081", "8082"]
    assert len(nft_rules(ground.host, "ip6", "cni_hostport")["masquerading"]) == 2


def test_status(ground: Ground) -> None:
    said = ground.call("STATUS", conf() | {"cniVersion": "1.1.0"})
    assert (said.code, said.stdout) == (0, "")


def test_rules_of_the_go_plugins_nftables(ground: Ground) -> None:
    """Their comment is the container alone. DEL takes those that lead to the interface's addresses."""
    add(ground, conf(WEB, prev=ground.result("a")))
    for port, ip in ((8080, "10.1.2.2"), (9090, "10.1.2.9")):
        rule = f'ip cni_hostport hostports tcp dport {port} dnat to {ip}:80 comment "ctr1"'
        ground.on_host("nft", f"add rule {rule}")
    assert ground.call("DEL", conf(WEB, prev=ground.result("a")), netns=ground.pods["a"].path).code == 0
    left = nft_rules(ground.host, "ip", "cni_hostport")["hostports"]
    assert left == ['tcp dport 9090 dnat to 10.1.2.9:80 comment "ctr1"']


@pytest.mark.skipif(not GO.joinpath("portmap").exists(), reason="no Go plugins (containernetworking-plugins)")
def test_container_of_the_go_plugin(ground: Ground) -> None:
    """The plugins are exchanged while containers run: what Go's made with iptables goes with our DEL."""
    config = conf(WEB, prev=ground.result())
    theirs = Caller(GO, ground.host.name)
    theirs.add(config, netns=ground.pods["a"].path)
    other = conf({**WEB, "hostPort": 8081}, prev=ground.result("b"))
    theirs.add(other, netns=ground.pods["b"].path, container="ctr2")
    assert ground.call("DEL", config, netns=ground.pods["a"].path).code == 0
    for program in ("iptables-save", "ip6tables-save"):
        left = ground.on_host(program, "-t", "nat")
        assert "8080" not in left
        assert left.count("CNI-DN-") > 0  # the other container's
    with serving(ground.pods["b"], "10.1.2.3", 80, "b"):
        assert ask(ground.outside, HOST4, 8081) == f"b {OUTSIDE4}"
