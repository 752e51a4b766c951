"""`tortie manifest --network flannel` and `canal`: kube-flannel's names, no more rights than flanneld uses, and nothing
asked of a network that it does not have."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.cli.main import main
from tortie.cni.install import PLUGINS as STAND_ALONE
from tortie.cni.install import SERVED, build_served, install_plugins
from tortie.flannel.options import parse
from tortie.render.manifest import Options, documents, manifest, without_comments
from tortie.render.manifest.flannel import FLANNELD, OWN, PLUGINS
from tortie.render.manifest.removal import transcript

FLANNEL, CANAL = Options(network="flannel"), Options(network="canal")

made, printed = cache(documents), cache(manifest)


def found(options: Options, kind: str, name: str = "") -> Any:
    """The one document of a kind, or of that name."""
    (one,) = (one for one in made(options) if one["kind"] == kind and name in ("", one["metadata"]["name"]))
    return without_comments(one)


def pod(options: Options) -> Any:
    return found(options, "DaemonSet", "kube-flannel-ds")["spec"]["template"]["spec"]


def container(options: Options, name: str) -> Any:
    (one,) = (one for one in pod(options)["containers"] if one["name"] == name)
    return one


def net_conf(options: Options) -> Any:
    return json.loads(found(options, "ConfigMap", "kube-flannel-cfg")["data"]["net-conf.json"])


# --- what there is ------------------------------------------------------------------------------------------------


def test_it_takes_the_place_of_kube_flannels_objects() -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in made(FLANNEL)]
    assert names == [
        ("Namespace", "kube-flannel"), ("ServiceAccount", "flannel"), ("ClusterRole", "flannel"),
        ("ClusterRoleBinding", "flannel"), ("ConfigMap", "kube-flannel-cfg"), ("DaemonSet", "kube-flannel-ds"),
    ]  # fmt: skip
    spec = found(FLANNEL, "DaemonSet")["spec"]
    assert spec["selector"] == {"matchLabels": {"app": "flannel"}}, "it cannot be changed by applying"
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert [one["name"] for one in pod(FLANNEL)["initContainers"]] == ["install-cni-plugin", "install-cni"]
    assert {one["name"]: one["hostPath"]["path"] for one in pod(FLANNEL)["volumes"] if "hostPath" in one} == {
        "run": "/run/flannel",
        "cni-plugin": "/opt/cni/bin",
        "cni": "/etc/cni/net.d",
        "plugins": "/run/tortie",
    }
    (subject,) = found(FLANNEL, "ClusterRoleBinding")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "flannel", "namespace": "kube-flannel"}


def test_the_network_is_kube_flannels() -> None:
    assert net_conf(FLANNEL) == {"Network": "10.244.0.0/16", "EnableNFTables": False, "Backend": {"Type": "vxlan"}}
    conflist = json.loads(found(FLANNEL, "ConfigMap")["data"]["cni-conf.json"])
    assert (conflist["name"], conflist["cniVersion"]) == ("cbr0", "0.3.1")
    assert [plugin["type"] for plugin in conflist["plugins"]] == ["flannel", "portmap"]
    assert conflist["plugins"][0]["delegate"] == {"hairpinMode": True, "isDefaultGateway": True}


def test_flanneld_is_told_what_it_knows() -> None:
    daemon = container(FLANNEL, "kube-flannel")
    assert daemon["command"] == ["tortie", "flanneld"]
    told = parse(daemon["args"], {})
    assert (told.ip_masq, told.kube_subnet_mgr, told.healthz_port) == (True, True, 8081)
    assert not told.ip_blackhole_route
    assert [one["name"] for one in daemon["env"]] == ["NODE_NAME"]
    for probe in (daemon["livenessProbe"], daemon["readinessProbe"]):
        assert (probe["httpGet"]["host"], probe["httpGet"]["port"]) == (told.healthz_ip, told.healthz_port)
    mounted = {one["mountPath"] for one in daemon["volumeMounts"]}
    assert {str(told.subnet_file.parent), str(told.net_config_path.parent)} <= mounted


def test_what_it_may_do() -> None:
    rules = [(rule["resources"], rule["verbs"]) for rule in found(FLANNEL, "ClusterRole")["rules"]]
    assert rules == [(["nodes"], ["get", "list", "watch"]), (["nodes/status"], ["patch"]), (["pods"], ["get"])]
    for options in (FLANNEL, CANAL):
        for one in (*pod(options).get("initContainers", ()), *pod(options)["containers"]):
            context = one["securityContext"]
            assert "privileged" not in context
            assert context["capabilities"]["drop"] == ["ALL"]
            assert context["readOnlyRootFilesystem"] is True
        assert container(options, "kube-flannel")["securityContext"]["capabilities"]["add"] == list(FLANNELD)
    assert set(FLANNELD) == {"NET_ADMIN", "NET_RAW"}
    assert container(FLANNEL, "cni-plugins")["securityContext"]["capabilities"]["add"] == list(PLUGINS)


@pytest.mark.parametrize("options", [FLANNEL, CANAL, Options(network="flannel", flannel_backend="udp")])
def test_a_workload_fits_together(options: Options) -> None:
    volumes = {volume["name"] for volume in pod(options)["volumes"]}
    used: set[str] = set()
    for one in (*pod(options).get("initContainers", ()), *pod(options)["containers"]):
        used |= {mount["name"] for mount in one["volumeMounts"]}
    assert used == volumes
    read = list(yaml.load_all(printed(options), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    assert read == [without_comments(one) for one in made(options)]


# --- canal --------------------------------------------------------------------------------------------------------


def test_canal_is_the_policy_part_with_flanneld_beside_it() -> None:
    assert "initContainers" not in pod(CANAL), "the plugin is the agents'"
    assert [one["name"] for one in pod(CANAL)["containers"]] == ["kube-flannel"]
    assert parse(container(CANAL, "kube-flannel")["args"], {}).ip_blackhole_route
    assert set(found(CANAL, "ConfigMap", "kube-flannel-cfg")["data"]) == {"net-conf.json"}
    theirs = [one for one in made(CANAL) if one["metadata"].get("namespace") != "kube-flannel"]
    policy = made(Options(policy_only=True, mtu=1450))
    names = {(one["kind"], one["metadata"]["name"]) for one in policy}
    assert names <= {(one["kind"], one["metadata"]["name"]) for one in theirs}
    ours = Options(policy_only=True, mtu=1450, elsewhere=(parse_net("10.244.0.0/16"),))
    assert found(CANAL, "DaemonSet", "tortie-node") == found(ours, "DaemonSet", "tortie-node")
    (agent,) = found(CANAL, "DaemonSet", "tortie-node")["spec"]["template"]["spec"]["containers"]
    assert {"name": "TORTIE_CLUSTER_CIDR", "value": "10.244.0.0/16"} in agent["env"]


@pytest.mark.parametrize(
    ("backend", "mtu", "expected"),
    [("vxlan", 0, "1450"), ("wireguard", 0, "1420"), ("host-gw", 0, "0"), ("vxlan", 8900, "8900")],
)
def test_pods_of_canal_have_room_for_the_tunnel(backend: str, mtu: int, expected: str) -> None:
    options = Options(network="canal", flannel_backend=backend, mtu=mtu)
    assert found(options, "ConfigMap", "calico-config")["data"]["veth_mtu"] == expected


# --- options ------------------------------------------------------------------------------------------------------


def test_ipv6_takes_more_room() -> None:
    options = Options(network="canal", pools=("10.9.0.0/16", "fd00:9::/56"))
    assert found(options, "ConfigMap", "calico-config")["data"]["veth_mtu"] == "1430"


def test_pools_are_flannels_networks() -> None:
    dual = net_conf(Options(network="flannel", flannel_backend="host-gw", pools=("10.9.0.0/16", "fd00:9::/56")))
    assert dual == {
        "Network": "10.9.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "fd00:9::/56",
        "EnableNFTables": False,
        "Backend": {"Type": "host-gw"},
    }


def test_udp_has_its_device_and_others_have_not() -> None:
    udp = Options(network="flannel", flannel_backend="udp")
    assert "/dev/net/tun" in {mount["mountPath"] for mount in container(udp, "kube-flannel")["volumeMounts"]}
    assert "/dev/net/tun" not in printed(FLANNEL)


def test_offline_and_on_chosen_nodes() -> None:
    options = Options(network="flannel", registry="registry.example:5000/net", node_selector=("a/b=c",))
    containers = (*pod(options)["initContainers"], *pod(options)["containers"])
    assert {one["image"] for one in containers} == {options.where}
    assert options.where.startswith("registry.example:5000/net/")
    assert pod(options)["nodeSelector"] == {"kubernetes.io/os": "linux", "a/b": "c"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--network weave", '--network: "weave" is not one of calico, flannel, canal'),
        ("--flannel-backend udp", "--flannel-backend: goes with --network flannel and --network canal"),
        ("--network flannel --flannel-backend gre", '--flannel-backend: "gre" is not one of vxlan, host-gw, udp'),
        ("--network flannel --mtu 1400", "--mtu: does not go with --network flannel"),
        ("--network flannel --fanout 2", "--fanout: does not go with --network flannel"),
        ("--network flannel --encapsulation VXLAN", "--encapsulation: does not go with --network flannel"),
        ("--network canal --no-bgp", "--no-bgp: does not go with --network canal"),
        ("--network canal --policy-only", "--policy-only: does not go with --network canal"),
        ("--network flannel --pool fd00:9::/56", "--pool: flannel's network has IPv4: give a pool of it, too"),
        (
            "--network flannel --flannel-backend udp --pool 10.9.0.0/16 --pool fd00:9::/56",
            "--pool: udp carries IPv4 alone",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", *words.split()]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_calicos_manifest_knows_nothing_of_it() -> None:
    assert "flannel" not in printed(Options())
    with pytest.raises(ConfigError, match="is not one of"):
        documents(Options(network="flannel", flannel_backend=""))


# --- on a node ----------------------------------------------------------------------------------------------------


def run(tmp_path: Path, name: str) -> subprocess.CompletedProcess[str]:
    """The script of an init container, on directories of this test's."""
    (one,) = (one for one in pod(FLANNEL)["initContainers"] if one["name"] == name)
    script = one["command"][2].replace("/host/", f"{tmp_path}/host/").replace("/usr/lib/cni/", f"{tmp_path}/image/")
    script = script.replace("/etc/kube-flannel/", f"{tmp_path}/config/").replace(
        "exec tortie", f"exec {sys.executable} -m tortie.cli.main"
    )
    return subprocess.run([*one["command"][:2], script], capture_output=True, text=True, timeout=60, check=True)


def test_the_init_containers_do_their_work(tmp_path: Path) -> None:
    bin_dir, net_dir = tmp_path / "host/opt/cni/bin", tmp_path / "host/etc/cni/net.d"
    for directory in (bin_dir, net_dir, tmp_path / "image", tmp_path / "config"):
        directory.mkdir(parents=True)
    for name in ("bridge", "host-local", "portmap", "loopback"):
        (tmp_path / "image" / name).write_text("the image's")
    (bin_dir / "bridge").write_text("the host's")
    (bin_dir / "flannel").write_text("upstream's")
    text = found(FLANNEL, "ConfigMap")["data"]["cni-conf.json"]
    (tmp_path / "config/cni-conf.json").write_text(text)
    for _again in range(2):
        run(tmp_path, "install-cni-plugin")
        run(tmp_path, "install-cni")
    assert {path.name for path in bin_dir.iterdir()} >= {"bridge", "flannel", "host-local", "loopback", "portmap"}
    assert (bin_dir / "bridge").read_text() == "the host's"
    assert (bin_dir / "portmap").read_text() == "the image's"
    assert b"tortie-plugin:" in (bin_dir / "flannel").read_bytes()
    assert {path.name: path.read_text() for path in net_dir.iterdir()} == {"10-flannel.conflist": text}


def test_an_image_without_a_compiler_installs_what_its_server_serves(tmp_path: Path) -> None:
    """Not a script: the host has not the image's Python."""
    ready = build_served(tmp_path / "ready")
    assert (ready.name, ready.read_bytes()[:4]) == (SERVED, b"\x7fELF")
    made = install_plugins(tmp_path / "host", OWN, compiler="no-such-compiler", prebuilt=ready.parent)
    assert made == [tmp_path / "host" / name for name in OWN]
    assert {path.name for path in (tmp_path / "host").iterdir()} == set(OWN), "no pack: nobody would read it"
    assert made[0].read_bytes() == ready.read_bytes()
    assert install_plugins(tmp_path / "host", OWN, compiler="no-such-compiler", prebuilt=ready.parent) == []
    env = {"CNI_COMMAND": "VERSION", "TORTIE_PLUGINS_SOCKET": str(tmp_path / "nobody")}
    said = subprocess.run([made[0]], env=env, input="{}", capture_output=True, text=True, timeout=10, check=False)
    assert said.returncode == 1
    assert json.loads(said.stdout)["code"] == 11, "the runtime tries again"
    ready.write_bytes(b"of another version")
    other = install_plugins(tmp_path / "other", OWN, compiler="no-such-compiler", prebuilt=ready.parent, packed=False)
    assert other[0].read_bytes()[:2] == b"#!"


def test_our_plugins_are_plugins_of_ours() -> None:
    assert set(OWN) <= set(STAND_ALONE)


def test_the_way_back_is_said_and_not_done() -> None:
    lines = [line for line in transcript() if "kube-flannel" in line]
    assert len(lines) == 1
    assert lines[0].startswith("#"), "upstream's has the same names"
