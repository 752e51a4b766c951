"""The plugin `firewall` on the real kernel, with packets (situation 94 of the specification)."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chain_ground import HOST4, OUTSIDE4, OUTSIDE6, Ground, ask, make_ground, nft_rules, refused, serving

from cni_plugins import GO, Caller, put
from namespaces import Ns
from tortie.cni.plugins.firewall import container_rules, iptables_script, isolation_rules, saved, shared_rules

pytestmark = pytest.mark.root

JUMP = '-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD'
OVERRIDE = '-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN'
MINE = '-m comment --comment "ctr1 eth0 net1"'
TO_A = f"-A CNI-FORWARD -d 10.1.2.2/32 {MINE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
FROM_A = f"-A CNI-FORWARD -s 10.1.2.2/32 {MINE} -j ACCEPT"
BACKENDS = pytest.mark.parametrize("backend", ["iptables", "nftables"])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("bin"))


@pytest.fixture
def ground(make_ns: Callable[..., Ns], directory: Path) -> Ground:
    return make_ground(make_ns, directory)


def conf(prev: dict[str, Any] | None = None, backend: str = "iptables", **more: Any) -> dict[str, Any]:
    found = {"cniVersion": "1.0.0", "name": "net1", "type": "firewall", "backend": backend, **more}
    return found | ({"prevResult": prev} if prev else {})


def act(ground: Ground, command: str, config: dict[str, Any], pod: str = "a", container: str = "ctr1") -> Any:
    said = ground.call(command, config, netns=ground.pods[pod].path, container=container)
    assert said.code == 0, said
    return said.doc if said.stdout else None


def filter_rules(host: Ns, program: str = "iptables-save") -> list[str]:
    return [line for line in host.run(program, "-t", "filter").splitlines() if line.startswith("-A")]


# --- what is decided ----------------------------------------------------------------------------------------------


def test_script_for_an_empty_table() -> None:
    assert iptables_script([*shared_rules("CNI-ADMIN"), *container_rules(["10.1.2.2"], "c i n")], [], {}).split(
        "\n"
    ) == [
        "*filter",
        "-N CNI-FORWARD",
        "-N CNI-ADMIN",
        '-I FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD',
        '-I CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN',
        '-A CNI-FORWARD -d 10.1.2.2/32 -m comment --comment "c i n" '
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        '-A CNI-FORWARD -s 10.1.2.2/32 -m comment --comment "c i n" -j ACCEPT',
        "COMMIT",
        "",
    ]


def test_script_for_what_is_there() -> None:
    have = saved(f"*filter\n:FORWARD ACCEPT [0:0]\n:CNI-FORWARD - [0:0]\n:CNI-ADMIN - [0:0]\n{JUMP}\n{OVERRIDE}\n")
    assert iptables_script(shared_rules("CNI-ADMIN"), [], have) == ""
    assert iptables_script(shared_rules("lower-case"), [], have).split("\n")[1:3] == [
        "-N lower-case",
        '-I CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j lower-case',
    ]
    assert isolation_rules("open", "cni0") == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (conf(), "missing prevResult from earlier plugin"),
        (conf(ingressPolicy="x"), 'unknown ingress policy: "x"'),
        (
            conf(iptablesAdminChainName="A;B"),
            'iptablesAdminChainName: "A;B" cannot be the name of a chain of iptables',
        ),
        (
            conf({"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.2/24"}]}, ingressPolicy="same-bridge"),
            'interface needs to be set for ingress policy "same-bridge", make sure to chain "firewall" plugin with '
            '"bridge"',
        ),
    ],
)
def test_refused_configuration(directory: Path, config: dict[str, Any], words: str) -> None:
    assert Caller(directory)("ADD", config, netns="nobody-is-here").error == (999, words)


def test_versions(directory: Path) -> None:
    said = Caller(directory)("VERSION", b"", type="firewall")
    assert said.doc["supportedVersions"] == ["0.4.0", "1.0.0", "1.1.0"]


# --- rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_life(ground: Ground, version: str) -> None:
    """Situation 94."""
    result = ground.result(version=version)
    config = conf(result) | {"cniVersion": version}
    ground.on_host("iptables", "-A", "FORWARD", "-i", "eth7", "-j", "DROP")
    for _ in range(2):
        assert {"dns": {}, **act(ground, "ADD", config)} == {"dns": {}, **result}
        assert filter_rules(ground.host) == [JUMP, "-A FORWARD -i eth7 -j DROP", OVERRIDE, TO_A, FROM_A]
    assert filter_rules(ground.host, "ip6tables-save") == [
        JUMP,
        OVERRIDE,
        TO_A.replace("10.1.2.2/32", "fd00:1::2/128"),
        FROM_A.replace("10.1.2.2/32", "fd00:1::2/128"),
    ]
    act(ground, "CHECK", config)
    for _ in range(2):
        act(ground, "DEL", config)
        assert filter_rules(ground.host) == [JUMP, "-A FORWARD -i eth7 -j DROP", OVERRIDE]
    assert filter_rules(ground.host, "ip6tables-save") == [JUMP, OVERRIDE]
    code, words = ground.call("CHECK", config, netns=ground.pods["a"].path).error
    assert (code, words.endswith("is not in chain CNI-FORWARD")) == (999, True)


def test_life_in_nftables(ground: Ground) -> None:
    config = conf(ground.result(), "nftables", ingressPolicy="same-bridge")
    comment = 'comment "ctr1 eth0 net1"'
    policy = "CNI firewall plugin rules (ingressPolicy: same-bridge"
    empty = {
        "FORWARD": [
            f'jump CNI-ISOLATION-STAGE-1 comment "{policy}|isolated)"',
            'jump CNI-FORWARD comment "CNI firewall plugin rules"',
        ],
        "CNI-FORWARD": ['jump CNI-ADMIN comment "CNI firewall plugin admin overrides"'],
        "CNI-ADMIN": [],
        "CNI-ISOLATION-STAGE-1": [
            f'iifname "cni0" oifname != "cni0" jump CNI-ISOLATION-STAGE-2 comment "{policy})"',
            f'return comment "{policy}|isolated)"',
        ],
        "CNI-ISOLATION-STAGE-2": [
            f'oifname "cni0" drop comment "{policy})"',
            f'return comment "{policy}|isolated)"',
        ],
    }
    full = empty | {
        "CNI-FORWARD": [
            *empty["CNI-FORWARD"],
            f"ip daddr 10.1.2.2 ct state established,related accept {comment}",
            f"ip saddr 10.1.2.2 accept {comment}",
            f"ip6 daddr fd00:1::2 ct state established,related accept {comment}",
            f"ip6 saddr fd00:1::2 accept {comment}",
        ]
    }
    for _ in range(2):
        act(ground, "ADD", config)
        assert nft_rules(ground.host, "inet", "cni_firewall") == full
    act(ground, "CHECK", config)
    act(ground, "DEL", config)
    assert nft_rules(ground.host, "inet", "cni_firewall") == empty
    assert filter_rules(ground.host) == []


def test_without_iptables_it_is_nftables(ground: Ground) -> None:
    """A machine on which there is no program iptables."""
    hidden = f'mount -t tmpfs none /usr/sbin && exec nsenter --net={ground.host.path} "$0"'
    for command, rules in (("ADD", 4), ("DEL", 0)):
        said = subprocess.run(
            ["unshare", "--mount", "sh", "-c", hidden, str(ground.call.directory / "firewall")],
            input=json.dumps(conf(ground.result())).encode(),
            capture_output=True,
            check=False,
            timeout=30,
            env={
                "PATH": "/usr/bin:/bin",
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": "ctr1",
                "CNI_IFNAME": "eth0",
                "CNI_NETNS": ground.pods["a"].path,
                "CNI_PATH": str(ground.call.directory),
            },
        )
        assert said.returncode == 0, said
        there = nft_rules(ground.host, "inet", "cni_firewall")["CNI-FORWARD"]
        assert len([rule for rule in there if "ctr1 eth0 net1" in rule]) == rules
    assert filter_rules(ground.host) == []


def test_dead_containers_rules_are_not_those_of_its_successor(ground: Ground) -> None:
    """A late DEL of a container whose address another one has by now."""
    config = conf(ground.result())
    act(ground, "ADD", config, container="old")
    act(ground, "ADD", config, container="new")
    act(ground, "DEL", config, container="old")
    act(ground, "CHECK", config, container="new")
    act(ground, "DEL", config, container="old")
    act(ground, "CHECK", config, container="new")


def test_failure_leaves_nothing(ground: Ground, tmp_path: Path) -> None:
    """ip6tables does not do what it is told."""
    (tmp_path / "ip6tables-restore").symlink_to("/bin/false")
    said = ground.call("ADD", conf(ground.result()), netns=ground.pods["a"].path, PATH=f"{tmp_path}:/usr/sbin:/usr/bin")
    assert said.error == (999, "ip6tables-restore: exit status 1")
    assert filter_rules(ground.host) == [JUMP, OVERRIDE]


@BACKENDS
def test_garbage_collection(ground: Ground, backend: str) -> None:
    for container, network in (("ctr1", "net1"), ("ctr2", "net1"), ("ctr3", "net2")):
        act(ground, "ADD", conf(ground.result(), backend) | {"name": network}, container=container)
    valid = {"cni.dev/valid-attachments": [{"containerID": "ctr2", "ifname": "eth0"}]}
    assert ground.call("GC", conf(None, backend, **valid) | {"cniVersion": "1.1.0"}).code == 0
    for container, network in (("ctr2", "net1"), ("ctr3", "net2")):
        act(ground, "CHECK", conf(ground.result(), backend) | {"name": network}, container=container)
    config = conf(ground.result(), backend)
    assert ground.call("CHECK", config, netns=ground.pods["a"].path, container="ctr1").code == 1


@BACKENDS
def test_status(ground: Ground, backend: str) -> None:
    said = ground.call("STATUS", conf(None, backend) | {"cniVersion": "1.1.0"})
    assert (said.code, said.stdout) == (0, "")


@BACKENDS
def test_many_at_once(ground: Ground, backend: str) -> None:
    """The chains are made once, and every container has its rules."""
    config = conf(ground.result(), backend, ingressPolicy="same-bridge")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: act(ground, "ADD", config, container=f"c{n}"), range(12)))
    if backend == "iptables":
        rules = filter_rules(ground.host)
        assert len([rule for rule in rules if rule.startswith("-A FORWARD")]) == 2
        assert len([rule for rule in rules if rule.startswith("-A CNI-FORWARD")]) == 1 + 2 * 12
    else:
        there = nft_rules(ground.host, "inet", "cni_firewall")
        assert len(there["FORWARD"]) == 2
        assert len(there["CNI-FORWARD"]) == 1 + 4 * 12


@pytest.mark.skipif(not GO.joinpath("firewall").exists(), reason="no Go plugins (containernetworking-plugins)")
def test_the_go_plugin_beside_us(ground: Ground) -> None:
    """Same chains; the rules of a container that Go's plugin made are recognized, and go with our DEL."""
    config = conf(ground.result()) | {"cniVersion": "0.4.0", "prevResult": ground.result(version="0.4.0")}
    theirs = Caller(GO, ground.host.name)
    theirs.add(config, netns=ground.pods["a"].path)
    before = filter_rules(ground.host)
    act(ground, "CHECK", config)
    second = config | {"prevResult": ground.result("b", version="0.4.0")}
    act(ground, "ADD", second, "b", "ctr2")
    assert filter_rules(ground.host)[: len(before)] == before
    assert filter_rules(ground.host)[:2] == [JUMP, OVERRIDE]
    assert theirs("CHECK", config, netns=ground.pods["a"].path).code == 0
    act(ground, "DEL", config)
    left = filter_rules(ground.host)
    assert len(left) == 4
    assert all("10.1.2.2/" not in rule for rule in left)


# --- packets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_forward_policy_of_drop(ground: Ground, variant: str, directory: Path, tmp_path: Path) -> None:
    """What Docker leaves of a host. Whichever iptables the machine's is, ours is the same."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"):
        (tools / name).symlink_to(f"/usr/sbin/{name.replace('tables', f'tables-{variant}')}")
    ground.call.env["PATH"] = f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin"  # type: ignore[index]
    for program in ("iptables", "ip6tables"):
        ground.on_host(str(tools / program), "-P", "FORWARD", "DROP")
    config = conf(ground.result())
    with (
        serving(ground.outside, OUTSIDE4, 80, "out"),
        serving(ground.outside, OUTSIDE6, 80, "out6"),
        serving(ground.pods["a"], "10.1.2.2", 80, "a"),
    ):
        assert refused(ground.pods["a"], OUTSIDE4, 80)
        act(ground, "ADD", config)
        assert ask(ground.pods["a"], OUTSIDE4, 80) == "out 10.1.2.2"
        assert ask(ground.pods["a"], OUTSIDE6, 80) == "out6 fd00:1::2"
        assert refused(ground.outside, "10.1.2.2", 80)  # only what it began itself
        assert refused(ground.pods["b"], OUTSIDE4, 80)  # is not ours
        # operators have the first word
        ground.on_host(str(tools / "iptables"), "-A", "CNI-ADMIN", "-d", "10.1.2.0/24", "-j", "ACCEPT")
        assert ask(ground.outside, "10.1.2.2", 80) == f"a {OUTSIDE4}"
        ground.on_host(str(tools / "iptables"), "-I", "CNI-ADMIN", "-s", "10.1.2.2", "-j", "DROP")
        assert refused(ground.pods["a"], OUTSIDE4, 80)
        ground.on_host(str(tools / "iptables"), "-F", "CNI-ADMIN")
        act(ground, "DEL", config)
        assert refused(ground.pods["a"], OUTSIDE4, 80)


def test_published_port_behind_a_policy_of_drop(ground: Ground) -> None:
    """It needs one rule of the operator's, as with the Go plugins."""
    ground.on_host("iptables", "-P", "FORWARD", "DROP")
    act(ground, "ADD", conf(ground.result()))
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    act(ground, "ADD", conf(ground.result()) | {"type": "portmap", "runtimeConfig": ports})
    with serving(ground.pods["a"], "10.1.2.2", 80, "a"):
        assert refused(ground.outside, HOST4, 8080)
        ground.on_host("iptables", "-A", "CNI-ADMIN", "-m", "conntrack", "--ctstate", "DNAT", "-j", "ACCEPT")
        assert ask(ground.outside, HOST4, 8080) == f"a {OUTSIDE4}"


@pytest.fixture
def second_bridge(ground: Ground, make_ns: Callable[..., Ns]) -> Ns:
    """A container on another bridge of the host."""
    other = make_ns("other")
    ground.host.ip("link", "add", "cni1", "type", "bridge")
    ground.host.ip("addr", "add", "10.1.3.1/24", "dev", "cni1")
    ground.host.ip("link", "set", "cni1", "up")
    ground.host.ip("link", "add", "vetho", "type", "veth", "peer", "name", "eth0", "netns", other.name)
    ground.host.ip("link", "set", "vetho", "master", "cni1", "up")
    other.ip("addr", "add", "10.1.3.2/24", "dev", "eth0")
    other.ip("link", "set", "eth0", "up")
    other.ip("route", "add", "default", "via", "10.1.3.1")
    return other


@BACKENDS
@pytest.mark.parametrize("policy", ["open", "same-bridge", "isolated"])
def test_ingress_policy(ground: Ground, second_bridge: Ns, backend: str, policy: str) -> None:
    act(ground, "ADD", conf(ground.result(), backend, ingressPolicy=policy))
    other = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "cni1"}, {"name": "eth0", "sandbox": second_bridge.path}],
        "ips": [{"address": "10.1.3.2/24", "interface": 1}],
    }
    said = ground.call("ADD", conf(other, backend, ingressPolicy=policy), netns=second_bridge.path, container="ctr2")
    assert said.code == 0, said
    ground.on_host("sh", "-c", "echo 1 >/sys/class/net/cni0/bridge/nf_call_iptables || true")
    with serving(ground.pods["a"], "10.1.2.2", 80, "a"), serving(ground.outside, OUTSIDE4, 80, "out"):
        assert ask(ground.pods["a"], OUTSIDE4, 80) == "out 10.1.2.2"
        assert ask(ground.outside, "10.1.2.2", 80) == f"a {OUTSIDE4}"
        if policy == "open":
            assert ask(second_bridge, "10.1.2.2", 80) == "a 10.1.3.2"
        else:
            assert refused(second_bridge, "10.1.2.2", 80)
        if policy == "isolated":  # frames of one bridge come here by br_netfilter
            assert refused(ground.pods["b"], "10.1.2.2", 80)
        else:
            assert ask(ground.pods["b"], "10.1.2.2", 80) == "a 10.1.2.3"


# --- firewalld ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[str]:
    """A system bus on which there is no firewalld."""
    address = f"unix:path={tmp_path}/bus"
    config = tmp_path / "bus.conf"
    kinds = ("method_call", "signal", "method_return", "error")
    allowed = ['user="*"', 'own="*"', *(f'{way}_type="{kind}"' for way in ("send", "receive") for kind in kinds)]
    allowed += [f'send_requested_reply="true" send_type="{kind}"' for kind in kinds[2:]]
    config.write_text(
        f"<busconfig><type>system</type><listen>{address}</listen><auth>EXTERNAL</auth>"
        f'<policy context="default">{"".join(f"<allow {each}/>" for each in allowed)}</policy></busconfig>'
    )
    words = ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address=1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as bus:
        assert bus.stdout is not None
        assert bus.stdout.readline()
        try:
            yield address
        finally:
            bus.terminate()
            bus.wait(10)


def test_bus_without_firewalld(ground: Ground, bus: str) -> None:
    where = {"netns": ground.pods["a"].path, "DBUS_SYSTEM_BUS_ADDRESS": bus}
    said = ground.call("ADD", conf(ground.result(), "firewalld"), **where)
    words = 'backend "firewalld": firewalld is not on the system bus: start it, or leave the backend out'
    assert said.error == (999, words)
    said = ground.call("STATUS", conf(None, "firewalld") | {"cniVersion": "1.1.0"}, **where)
    assert said.error == (50, f"firewall cannot write rules: {words}")
    said = ground.call("ADD", conf(ground.result(), ""), **where)
    assert said.code == 0
    assert filter_rules(ground.host) == [JUMP, OVERRIDE, TO_A, FROM_A]
    assert ground.call("DEL", conf(ground.result(), "firewalld"), **where).code == 0
    assert filter_rules(ground.host) == [JUMP, OVERRIDE]


UNPACKED = os.environ.get("FIREWALLD_ROOT", "")
"""Where Debian's packages firewalld, python3-firewall and python3-nftables are unpacked, if they are not installed."""
NO_FIREWALLD = not Path(f"{UNPACKED}/usr/sbin/firewalld").exists()


@pytest.fixture
def firewalld(ground: Ground, bus: str, tmp_path: Path) -> Iterator[str]:
    """A firewalld of the host's, on a bus of its own; the bus."""
    settings = tmp_path / "etc"
    settings.mkdir()
    words = ["/usr/bin/python3", f"{UNPACKED}/usr/sbin/firewalld", "--nofork", "--nopid"]
    words += [f"--default-config={UNPACKED}/usr/lib/firewalld", f"--system-config={settings}"]
    words += [f"--log-file={tmp_path}/firewalld.log"]
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": f"{UNPACKED}/usr/lib/python3/dist-packages",
        "DBUS_SYSTEM_BUS_ADDRESS": bus,
    }
    words = ["nsenter", f"--net={ground.host.path}", *words]
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(words, env=env, stdout=nowhere, stderr=nowhere) as process:
        try:
            deadline = time.monotonic() + 20
            while "tt-none" not in sources(bus, "tt-none"):
                assert time.monotonic() < deadline, process.poll()
                time.sleep(0.2)
            yield bus
        finally:
            process.terminate()
            process.wait(20)


def sources(bus: str, otherwise: str = "") -> str:
    """The addresses in firewalld's zone `trusted`; `otherwise` behind them, once it answers."""
    name = "org.fedoraproject.FirewallD1"
    words = ["busctl", "--system", "call", name, "/org/fedoraproject/FirewallD1", f"{name}.zone"]
    done = subprocess.run(
        [*words, "getSources", "s", "trusted"],
        env={"PATH": "/usr/bin:/bin", "DBUS_SYSTEM_BUS_ADDRESS": bus},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return f"{done.stdout.strip()} {otherwise}" if done.returncode == 0 else ""


@pytest.mark.skipif(NO_FIREWALLD, reason="no firewalld: install it, or name where it is unpacked in FIREWALLD_ROOT")
@pytest.mark.parametrize("backend", ["", "firewalld"])
def test_firewalld(ground: Ground, firewalld: str, backend: str) -> None:
    where = {"netns": ground.pods["a"].path, "DBUS_SYSTEM_BUS_ADDRESS": firewalld}
    config = conf(ground.result(), backend)
    assert ground.call("STATUS", conf(None, backend) | {"cniVersion": "1.1.0"}, **where).code == 0
    with serving(ground.outside, OUTSIDE4, 80, "out"), serving(ground.outside, OUTSIDE6, 80, "out6"):
        assert refused(ground.pods["a"], OUTSIDE4, 80)
        for _ in range(2):
            ground.call.add(config, **where)
            assert '"10.1.2.2/32" "fd00:1::2/128"' in sources(firewalld)
        assert filter_rules(ground.host) == []
        assert ask(ground.pods["a"], OUTSIDE4, 80) == "out 10.1.2.2"
        assert ask(ground.pods["a"], OUTSIDE6, 80) == "out6 fd00:1::2"
        assert ground.call("CHECK", config, **where).code == 0
        for _ in range(2):
            assert ground.call("DEL", config, **where).code == 0
            assert "10.1.2.2" not in sources(firewalld)
        assert refused(ground.pods["a"], OUTSIDE4, 80)
    said = ground.call("CHECK", config, **where)
    assert said.error == (999, '10.1.2.2 is not in firewalld\'s zone "trusted"')
    said = ground.call("ADD", config | {"firewalldZone": "nowhere"}, **where)
    assert said.error[0] == 999
    assert "INVALID_ZONE" in said.error[1]
