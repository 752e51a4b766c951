"""`tortie flannel` beside real daemons: what a person sees of a node and its network, and what Docker's file gets."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flannel_daemons import TORTIE, Daemon, Town, until
from flannel_nodes import Wire
from namespaces import Ns, namespaces

pytestmark = pytest.mark.root


@dataclass(frozen=True, slots=True)
class Pair:
    town: Town
    one: Daemon
    two: Daemon


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two nodes that know each other."""
    with closing(namespaces()) as made:
        town = Town(Wire(next(made)), tmp_path_factory.mktemp("town"))
        with closing(town):
            one, two = (town.node(number, "-ip-masq").start() for number in (1, 2))
            one.until_ready().knows(2)
            two.until_ready().knows(1)
            yield Pair(town, one, two)


def tortie(ns: Ns, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["ip", "netns", "exec", ns.name, TORTIE, "flannel", *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def socket(daemon: Daemon) -> str:
    return str(daemon.subnet_file.with_suffix(".sock"))


def status(daemon: Daemon, *words: str) -> tuple[int, str]:
    code, out, err = tortie(daemon.node.ns, "status", "--socket", socket(daemon), *words)
    assert not err
    return code, out


def test_a_node_on_a_page(pair: Pair) -> None:
    one, two = pair.one, pair.two
    assert one.node.reaches(two.node)

    code, page = status(one)
    first, *lines = page.splitlines()
    assert code == 0, page
    assert first == f"{socket(one)}  well"
    parts = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[:5]}
    assert parts["node"] == "10.5.1.0/24 on eth0 (MTU 1500), reached by 192.0.2.1"
    assert parts["backend"] == "vxlan, pods' MTU 1450"
    assert parts["lease"] == "never expires"
    assert parts["subnets"] == f"kubernetes, {pair.town.datastore}"
    neighbour = next(line for line in lines if line.startswith("10.5.2.0/24"))
    assert neighbour.split() == ["10.5.2.0/24", "192.0.2.2", "node2", "via", "10.5.2.0", "dev", "flannel.1", "up"]
    passed = next(line for line in lines if "masq: own pods to pods" in line)
    assert int(passed.split()[-2]) > 0

    code, text = status(one, "-o", "json")
    (answer,) = json.loads(text)
    assert code == 0
    assert answer["node"]["subnet"] == "10.5.1.0/24"
    assert set(answer["rules"]) == {"ip flannel-ipv4"}
    code, text = status(one, "-o", "yaml")
    assert yaml.safe_load(text)[0]["node"] == answer["node"]


def test_several_daemons(pair: Pair) -> None:
    one, two = pair.one, pair.two
    code, page, _ = tortie(one.node.ns, "status", "--socket", socket(one), "--socket", socket(two))
    assert code == 0
    assert page.count("  well\n") == 2
    assert "\n\n" + socket(two) in page


def test_no_daemon_at_all(ns: Ns) -> None:
    code, out, err = tortie(ns, "status", "--socket", "/nowhere/subnet.sock")
    assert (code, err) == (1, "")
    assert "✘ no flanneld at /nowhere/subnet.sock: is it running on this node?" in out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (
            "-kube-subnet-mgr",
            "-kube-subnet-mgr: this is no pod with a service account: name the cluster by -kubeconfig-",
        ),
        ("-kube-subnet-mgr -kube-api-url x", '-kube-api-url: server: "x" is not a URL such as https://192.0.2.1:6443'),
        (
            "-healthz-ip x -healthz-port 8471",
            '--healthz-ip x --healthz-port 8471: cannot listen: "x" is no address of this machine',
        ),
        (
            "-subnet-file /proc/1/none/subnet.env",
            "/proc/1/none/subnet.sock: cannot listen: No such file or directory: --subnet-file or --status-socket must",
        ),
    ],
)
def test_what_a_daemon_cannot_begin_with_is_one_line_about_its_flags(
    ns: Ns, tmp_path: Path, flags: str, complaint: str
) -> None:
    words = [f"-subnet-file={tmp_path}/subnet.env", *flags.split()]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        ["ip", "netns", "exec", ns.name, TORTIE, "flanneld", *words],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"tortie: {complaint}")
    assert done.stderr.count("\n") == 1


def test_leases_of_all_nodes(pair: Pair) -> None:
    town, two = pair.town, pair.two
    flags = ("-kube-subnet-mgr", "-datastore", town.datastore, f"-net-config-path={town.net_conf}")
    code, table, err = tortie(two.node.ns, "leases", *flags)
    assert (code, err) == (0, "")
    assert [line.split() for line in table.splitlines()] == [
        ["SUBNET", "PUBLIC", "IP", "NODE", "BACKEND", "EXPIRES", "REMARK"],
        ["10.5.1.0/24", "192.0.2.1", "node1", "vxlan", "never"],
        ["10.5.2.0/24", "192.0.2.2", "node2", "vxlan", "never"],
    ]
    code, text, _ = tortie(two.node.ns, "leases", *flags, "-o", "json")
    assert [each["key"] for each in json.loads(text)] == ["node1", "node2"]


def test_dockers_options(pair: Pair, tmp_path: Path) -> None:
    one = pair.one
    ns, file, into = one.node.ns, str(one.subnet_file), tmp_path / "docker" / "opts.env"
    assert tortie(ns, "docker-opts", "-f", file, "-d", str(into)) == (0, "", "")
    shell = ns.run("sh", "-c", f'. {into}; echo "$DOCKER_OPT_BIP|$DOCKER_OPT_IPMASQ|$DOCKER_OPT_MTU|$DOCKER_OPTS"')
    options = ["--bip=10.5.1.1/24", "--ip-masq=false", "--mtu=1450"]
    assert shell.strip().split("|") == [*options, " " + " ".join(options)]
    assert [each.name for each in into.parent.iterdir()] == [into.name]

    own: list[dict[str, Any]] = ns.json("route", "show", "10.5.1.0/24")
    assert own  # of the bridge: not another node's
    ns.ip("route", "add", "10.5.1.0/24", "via", "192.0.2.2", "metric", "9")
    code, out, err = tortie(ns, "docker-opts", "-f", file, "-d", "-")
    assert (code, out) == (1, "")
    assert err == ("tortie: 10.5.1.0/24 is routed to 192.0.2.2: another node has it; Docker must not use it here\n")
    ns.ip("route", "delete", "10.5.1.0/24", "via", "192.0.2.2")


def test_what_is_wrong_is_said_and_is_the_exit_status(pair: Pair) -> None:
    one = pair.town.node(3).start().until_ready()
    one.node.ns.ip("link", "set", "eth0", "down")
    one.node.ns.ip("address", "flush", "dev", "eth0")
    until("it says so", lambda: one.status()["problems"])
    code, page = status(one)
    assert code == 1
    assert page.splitlines()[0] == f"{socket(one)}  not well"
    assert "✘ waiting: " in page
    one.kill()
    code, page = status(one)
    assert code == 1
    assert page.splitlines()[1:] == [f"✘ nobody listens at {socket(one)}: the flanneld has ended; its log says why"]
