"""What is found of kube-proxy in a namespace: its rules by every interface, its process, the port of its metrics."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kube_proxy_ground import KUBE_PROXY, KUBELET, OWN_TABLE, STRANGERS, Ground, filled, process_named, until

from namespaces import Ns
from tortie.kernel.netns import entered
from tortie.proxy.kube_proxy import DEVICE, GONE, METRICS_PORT, found, look
from tortie.proxy.kube_rules import unseen

pytestmark = pytest.mark.root


@pytest.fixture(params=["nft", "legacy"])
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if shutil.which(f"iptables-{name}") is None:
        pytest.skip(f"iptables-{name} is not installed")
    return name


@pytest.fixture
def ground(ns: Ns) -> Ground:
    """The node alone."""
    return Ground(ns, ns, ns)


def test_an_empty_machine_has_none(ns: Ns) -> None:
    assert found(ns.path) == ()
    assert ns.run("nft", "list", "ruleset") == ""
    assert ns.run("cat", "/proc/net/ip_tables_names", check=False).strip() == ""


def test_rules_of_the_kubelet_and_of_others_are_no_kube_proxy(ground: Ground, variant: str) -> None:
    ground.restore(variant, KUBELET)
    ground.restore(variant, STRANGERS)
    assert found(ground.node.path) == ()


@pytest.mark.parametrize("version", [4, 6])
def test_rules_in_iptables(ground: Ground, variant: str, version: int) -> None:
    ground.version = version
    ground.restore(variant, KUBELET)
    ground.restore(variant, KUBE_PROXY)
    (one,) = found(ground.node.path)
    program = "iptables" if version == 4 else "ip6tables"
    assert (one.mode, one.pid, one.runs, one.has_rules) == ("iptables", 0, False, True)
    assert f"{program}-{variant} -t mangle: KUBE-PROXY-CANARY" in one.evidence
    assert any(line.startswith(f"{program}-{variant} -t nat: KUBE-") for line in one.evidence)
    assert one.evidence[-1] == GONE


def test_the_programs_process_is_told_and_only_in_its_namespace(
    ground: Ground, make_ns: Callable[..., Ns], tmp_path: Path
) -> None:
    ground.restore("nft", KUBE_PROXY)
    other = make_ns()
    process = process_named(tmp_path, ground.node)
    try:
        until(lambda: found(ground.node.path)[0].runs, "the process")
        (one,) = found(ground.node.path)
        assert one.pid == process.pid
        assert f"process {process.pid} runs" in one.evidence
        assert found(other.path) == ()
    finally:
        process.kill()
        process.wait()
    assert found(ground.node.path)[0].pid == 0


def test_a_process_without_rules_counts(ns: Ns, tmp_path: Path) -> None:
    process = process_named(tmp_path, ns)
    try:
        until(lambda: found(ns.path), "the process")
        (one,) = found(ns.path)
        assert (one.mode, one.pid, one.has_rules) == ("unknown", process.pid, False)
    finally:
        process.kill()
        process.wait()


def test_tables_of_nftables_mode(ns: Ns) -> None:
    for version in (4, 6):
        ns.run("nft", "-f", "-", stdin=filled(OWN_TABLE, version))
    (one,) = found(ns.path)
    assert one.mode == "nftables"
    assert one.evidence == ("nft table ip kube-proxy", "nft table ip6 kube-proxy", GONE)


def test_two_modes_are_two(ground: Ground) -> None:
    ground.restore("nft", KUBE_PROXY)
    ground.node.run("nft", "-f", "-", stdin=filled(OWN_TABLE, 4))
    assert [one.mode for one in found(ground.node.path)] == ["nftables", "iptables"]


def test_the_device_of_ipvs_mode(ground: Ground) -> None:
    ground.node.ip("link", "add", DEVICE, "type", "bridge")
    ground.node.run("iptables-nft", "-t", "nat", "-N", "KUBE-NODE-PORT")
    ground.node.run("iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES")
    (one,) = found(ground.node.path)
    assert one.mode == "ipvs"
    assert one.evidence[0] == f"device {DEVICE}"
    assert any("KUBE-" in line for line in one.evidence)


LISTEN = f"""
import socket, time
with socket.create_server(("127.0.0.1", {METRICS_PORT})):
    print("listens", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def listener(ns: Ns) -> Iterator[subprocess.Popen[str]]:
    words = ["nsenter", f"--net={ns.path}", sys.executable, "-c", LISTEN]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listens\n"
            yield process
        finally:
            process.kill()


def test_who_listens_at_the_port_of_metrics_without_rules_is_not_looked_for(
    ground: Ground, listener: subprocess.Popen[str]
) -> None:
    """That costs as much as all the rest: every agent looks for a kube-proxy, four times a minute."""
    ground.restore("nft", KUBELET)
    assert look(ground.node.path).listener is None
    ground.restore("nft", KUBE_PROXY)
    found_there = look(ground.node.path).listener
    assert found_there is not None
    assert found_there.pid == listener.pid


def test_who_listens_at_the_port_of_metrics_has_the_rules(ground: Ground, listener: subprocess.Popen[str]) -> None:
    """As k3s, whose process has another name; without rules it says nothing."""
    assert found(ground.node.path) == ()
    ground.restore("nft", KUBE_PROXY)
    (one,) = found(ground.node.path)
    assert one.pid == listener.pid
    assert f"listened at by process {listener.pid}" in one.evidence[-1]
    listener.kill()
    listener.wait()
    assert not found(ground.node.path)[0].runs


def test_our_own_metrics_are_no_kube_proxy(ground: Ground) -> None:
    """`tortie proxy` has the same port."""
    ground.restore("nft", KUBE_PROXY)
    with entered(ground.node.path), closing(socket.create_server(("127.0.0.1", METRICS_PORT))):
        assert not found(ground.node.path)[0].runs


def test_in_the_namespace_of_the_thread(ground: Ground) -> None:
    ground.restore("nft", KUBE_PROXY)
    with entered(ground.node.path):
        assert [one.mode for one in found()] == ["iptables"]


def test_without_iptables_programs(ground: Ground, tmp_path: Path) -> None:
    """What iptables-nft has written is seen; that legacy tables cannot be looked into is said."""
    if shutil.which("iptables-legacy") is None:
        pytest.skip("iptables-legacy is not installed")
    ground.restore("nft", KUBE_PROXY)
    ground.restore("legacy", STRANGERS)
    for name in ("nft", "nsenter"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    code = (
        "import json; from tortie.proxy.kube_proxy import found; from tortie.proxy.kube_rules import unseen;"
        "print(json.dumps([[one.mode for one in found()], unseen()]))"
    )
    modes, lines = json.loads(ground.node.run("env", f"PATH={tmp_path}", sys.executable, "-c", code))
    assert modes == ["iptables"]
    assert len(lines) == 1
    assert "iptables-legacy-save is not installed" in lines[0]
    assert unseen(ground.node.path) == ()


def test_ten_thousand_services(ns: Ns) -> None:
    """Only names are read, so that a look stays cheap."""
    names = [f"KUBE-{kind}-{i:016X}" for i in range(10_000) for kind in ("SEP", "SVC")]
    ns.run("nft", "-f", "-", stdin="add table ip nat\n" + "".join(f"add chain ip nat {name}\n" for name in names))
    (one,) = found(ns.path)
    assert "19999 more chains" in one.evidence[0]
