"""The containers of `tortie manifest --network flannel` as a runtime confines them: these capabilities and no more,
/proc/sys read-only. flanneld makes its network all the same, and a host without Python has its pods connected."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Ns

from cni_plugins import GO
from tortie.agent.client import ask
from tortie.base.errors import NotFound, Unavailable
from tortie.cni.conflist import load_conflist
from tortie.cni.install import build_served, install_plugins
from tortie.cni.runtime import Runtime
from tortie.cni.spec import CniError
from tortie.model.k8s import K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata
from tortie.render.manifest import Options, documents, without_comments
from tortie.render.manifest.flannel import FLANNELD, PLUGINS, net_conf, network
from tortie.store import open_store

pytestmark = pytest.mark.root

OPTIONS = Options(network="flannel")
TORTIE = (sys.executable, "-m", "tortie.cli.main")
# What a container runtime does: a mount namespace of its own, and /proc/sys read-only.
RUNTIME = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
SECONDS = 20.0


def until(good: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := good()):
        assert time.monotonic() < deadline, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.05)
    return found


def container(name: str) -> dict[str, Any]:
    (workload,) = (one for one in documents(OPTIONS) if one["kind"] == "DaemonSet")
    every = without_comments(workload)["spec"]["template"]["spec"]["containers"]
    (found,) = (one for one in every if one["name"] == name)
    return dict(found)


@contextmanager
def confined(ns: Ns, capabilities: Any, argv: list[str], log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A container's process, until the block is left."""
    bounding = ",".join(("-all", *(f"+{name.lower()}" for name in capabilities)))
    mounts = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", RUNTIME, "sh"]
    words = ["nsenter", f"--net={ns.path}", *mounts, "setpriv", "--bounding-set", bounding, "--inh-caps", "-all", *argv]
    with log.open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, env=os.environ | env)
    try:
        yield process
    except BaseException as error:
        error.add_note(log.read_text(errors="replace"))
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def held(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    decoded = subprocess.run(["capsh", f"--decode={status['CapEff']}"], capture_output=True, text=True, check=True)
    return set(decoded.stdout.strip().partition("=")[2].split(","))


def capabilities(words: Any) -> set[str]:
    return {f"cap_{name.lower()}" for name in words}


@pytest.fixture
def node(make_ns: Callable[..., Ns]) -> Ns:
    ns = make_ns("node")
    ns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "wire")
    for name in ("eth0", "wire"):
        ns.ip("link", "set", name, "up")
    ns.ip("address", "add", "192.0.2.1/24", "dev", "eth0")
    ns.ip("route", "add", "default", "via", "192.0.2.254")
    return ns


def nodes_in(store: Path) -> None:
    """This one, and another that has published how it is reached."""
    prefix = "flannel.alpha.coreos.com/"
    far = {
        f"{prefix}backend-type": "vxlan",
        f"{prefix}backend-data": '{"VNI":1,"VtepMAC":"66:00:00:00:00:02"}',
        f"{prefix}public-ip": "192.0.2.2",
        f"{prefix}kube-subnet-manager": "true",
    }

    async def write() -> None:
        opened = open_store(str(store))
        try:
            for number, annotations in ((1, {}), (2, far)):
                cidr = f"10.244.{number}.0/24"
                spec = K8sNodeSpec(pod_cidr=cidr, pod_cidrs=(cidr,))
                await opened.create(
                    K8sNode(metadata=Metadata(name=f"worker-{number}", annotations=annotations), spec=spec)
                )
        finally:
            await opened.close()

    asyncio.run(write())


@contextmanager
def flanneld(node: Ns, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Told what the manifest tells it, but for the places of its files."""
    nodes_in(folder / "store.db")
    (folder / "net-conf.json").write_text(json.dumps(net_conf(OPTIONS)))
    told = container("kube-flannel")
    assert told["command"] == ["tortie", "flanneld"]
    files = [f"--datastore={folder}/store.db", f"--net-config-path={folder}/net-conf.json"]
    argv = [*TORTIE, "flanneld", *told["args"], *files, f"--subnet-file={folder}/run/subnet.env"]
    with confined(node, FLANNELD, argv, folder / "flanneld.log", NODE_NAME="worker-1") as process:
        yield process


def ready(folder: Path) -> bool:
    try:
        return bool(ask(folder / "run/subnet.sock", "/status", who="flanneld")["ready"])
    except (NotFound, Unavailable):
        return False


def test_flanneld_makes_its_network_with_these(node: Ns, tmp_path: Path) -> None:
    assert container("kube-flannel")["securityContext"]["capabilities"]["add"] == list(FLANNELD)
    with flanneld(node, tmp_path) as process:
        until(lambda: ready(tmp_path), "flanneld is ready")
        assert held(process.pid) == capabilities(FLANNELD)
        (route,) = node.json("route", "show", "10.244.2.0/24")
        assert (route["dev"], route["protocol"]) == ("flannel.1", "70")
        assert "masquerade" in node.run("nft", "list", "table", "ip", "flannel-ipv4")
        problems = ask(tmp_path / "run/subnet.sock", "/status", who="flanneld")
        assert (problems["failures"], problems["problems"]) == ([], [])
    assert "FLANNEL_SUBNET=10.244.1.1/24" in (tmp_path / "run/subnet.env").read_text()


@pytest.mark.skipif(not (GO / "bridge").exists(), reason="needs Debian's containernetworking-plugins")
async def test_pods_are_connected_on_a_host_without_python(
    node: Ns, tmp_path: Path, make_ns: Callable[..., Ns]
) -> None:
    """The plugin is the compiled one, which asks the server in its container; the others are those of the image."""
    assert container("cni-plugins")["securityContext"]["capabilities"]["add"] == list(PLUGINS)
    bin_dir, socket = tmp_path / "bin", tmp_path / "plugins.sock"
    build_served(tmp_path / "prebuilt")
    install_plugins(bin_dir, ["flannel"], compiler="", prebuilt=tmp_path / "prebuilt")
    for name in ("bridge", "host-local"):
        (bin_dir / name).symlink_to(GO / name)
    (tmp_path / "run").mkdir()
    lines = ("NETWORK=10.244.0.0/16", "SUBNET=10.244.1.1/24", "MTU=1450", "IPMASQ=true")
    (tmp_path / "run/subnet.env").write_text("".join(f"FLANNEL_{line}\n" for line in lines))
    document = network()
    document["plugins"][0] |= {"subnetFile": f"{tmp_path}/run/subnet.env", "dataDir": f"{tmp_path}/flannel"}
    document["plugins"][0]["ipam"] = {"dataDir": f"{tmp_path}/networks"}
    del document["plugins"][1]
    conflist = load_conflist(document)
    runtime = Runtime(
        [str(bin_dir)],
        tmp_path / "cache",
        {"TORTIE_PLUGINS_SOCKET": str(socket), "TORTIE_PLUGINS_PATIENCE": "5000"},
        ["nsenter", f"--net={node.path}"],
    )
    pod = make_ns("pod")
    with pytest.raises(CniError, match="nobody serves plugins on this node at the moment") as refused:
        await runtime.add(conflist, "container", pod.path)
    assert refused.value.code == 11
    argv = [*TORTIE, *container("cni-plugins")["command"][1:-1], str(socket)]
    with confined(node, PLUGINS, argv, tmp_path / "plugins.log") as process:
        until(socket.exists, "the server listens")
        assert held(process.pid) == capabilities(PLUGINS)
        await runtime.add(conflist, "container", pod.path)
        (link,) = pod.json("address", "show", "eth0")
        assert link["mtu"] == 1450
        assert {one["local"] for one in link["addr_info"] if one["family"] == "inet"} == {"10.244.1.2"}
        assert {route["dst"]: route.get("gateway") for route in pod.json("route", "show")}["default"] == "10.244.1.1"
        assert pod.run("ping", "-c", "1", "-W", "5", "10.244.1.1")
        await runtime.delete(conflist, "container", pod.path)
        assert not (tmp_path / "networks/cbr0/10.244.1.2").exists()
        assert "eth0" not in {one["ifname"] for one in pod.json("link", "show")}
