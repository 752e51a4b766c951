"""The plugin's files on a node: as Calico's installer would have them, in one step each, and gone without a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tortie.base.errors import ConfigError, KernelError
from tortie.cni.hostfiles import HostFiles, absent, host_files, install, uninstall


def files_in(tmp_path: Path, **env: str) -> HostFiles:
    return host_files({"KUBERNETES_NODE_NAME": "n1", **env}, (tmp_path / "bin",), tmp_path / "net.d")


def everything(tmp_path: Path) -> set[str]:
    return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}


def test_the_default_network_is_calicos(tmp_path: Path) -> None:
    document = json.loads(files_in(tmp_path).conflist)
    assert (document["name"], document["cniVersion"]) == ("k8s-pod-network", "1.0.0")
    calico, portmap = document["plugins"]
    assert calico["type"] == "calico"
    assert calico["ipam"] == {"type": "calico-ipam"}
    assert calico["policy"] == {"type": "k8s"}
    assert (calico["mtu"], calico["nodename"], calico["require_mtu_file"]) == (1500, "n1", False)
    assert portmap == {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}


def test_installing_twice_changes_nothing_and_uninstalling_leaves_nothing(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    first = install(files)
    assert everything(tmp_path) == {"bin/calico", "bin/calico-ipam", "net.d/10-calico.conflist"}
    assert len(first) == 3
    assert files.conf.stat().st_mode & 0o777 == 0o600
    assert os.access(tmp_path / "bin" / "calico", os.X_OK)
    assert install(files) == []
    (tmp_path / "bin" / "bridge").write_text("somebody else's")
    assert len(uninstall(files)) == 3
    assert everything(tmp_path) == {"bin/bridge"}
    assert uninstall(files) == []


def test_plugins_that_the_network_names_and_nobody_has_installed_are_told(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    assert absent(files) == ["calico", "calico-ipam", "portmap"]
    install(files)
    assert absent(files) == ["portmap"]
    (tmp_path / "bin" / "portmap").write_text("")
    assert absent(files) == []
    for odd, wanted in (
        ('{"type": "calico", "ipam": {"type": "dhcp"}}', ["dhcp"]),
        ('{"plugins": [1, {"ipam": "x"}]}', []),
        ('{"plugins": "all"}', []),
        ("{}", []),
    ):
        assert absent(files_in(tmp_path, CNI_NETWORK_CONFIG=odd)) == wanted


def test_a_plugin_of_the_same_name_that_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "calico").write_text("the other Calico")
    assert uninstall(files_in(tmp_path)) == []
    assert everything(tmp_path) == {"bin/calico"}


def test_a_users_template_is_filled_in_and_checked(tmp_path: Path) -> None:
    template = (
        '{"name": "mine", "plugins": [{"type": "calico", "mtu": __CNI_MTU__, "kubeconfig": "__KUBECONFIG_FILEPATH__"}]}'
    )
    files = files_in(tmp_path, CNI_NETWORK_CONFIG=template, CNI_MTU="1400", CNI_CONF_NAME="05-mine.conflist")
    assert json.loads(files.conflist)["plugins"][0] == {
        "type": "calico",
        "mtu": 1400,
        "kubeconfig": str(tmp_path / "net.d" / "calico-kubeconfig"),
    }
    install(files)
    assert "net.d/05-mine.conflist" in everything(tmp_path)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"CNI_NETWORK_CONFIG": "{"}, "CNI_NETWORK_CONFIG: is not JSON once its placeholders are filled in"),
        ({"CNI_NETWORK_CONFIG": "[]"}, "CNI_NETWORK_CONFIG: must be a JSON object"),
        ({"CNI_NETWORK_CONFIG_FILE": "/nope"}, "CNI_NETWORK_CONFIG_FILE: /nope cannot be read"),
        ({"CNI_MTU": "big"}, 'CNI_MTU: "big" is not a number'),
        ({"CNI_CONF_NAME": "../x"}, 'CNI_CONF_NAME: "../x" is not a file name'),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, env: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        files_in(tmp_path, **env)
    assert str(refused.value).startswith(words)
    assert everything(tmp_path) == set()


def test_the_old_network_goes_when_the_name_changes(tmp_path: Path) -> None:
    install(files_in(tmp_path))
    install(files_in(tmp_path, CNI_CONF_NAME="20-new.conflist"))
    assert everything(tmp_path) == {"bin/calico", "bin/calico-ipam", "net.d/20-new.conflist"}


def test_executables_that_are_there_stay_when_they_are_not_to_be_updated(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("calico", "calico-ipam"):
        (tmp_path / "bin" / name).write_text("kept")
    install(files_in(tmp_path, UPDATE_CNI_BINARIES="false"))
    assert (tmp_path / "bin" / "calico").read_text() == "kept"


def test_nowhere_to_write_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bin").write_text("a file, not a directory")
    with pytest.raises(KernelError, match="none of the directories can be written"):
        install(files_in(tmp_path))
    assert everything(tmp_path) == {"bin"}


def test_what_is_missing_is_said_with_where_it_comes_from(tmp_path: Path) -> None:
    """A plugin that is not ours is only named."""
    plugins = [{"type": "calico"}, {"type": "portmap"}, {"type": "weave"}]
    network = json.dumps({"name": "n", "cniVersion": "1.0.0", "plugins": plugins})
    bin_dir, net_dir = tmp_path / "bin", tmp_path / "net"
    bin_dir.mkdir()
    variables = {"CNI_NETWORK_CONFIG": network}
    command = [sys.executable, "-m", "tortie.cli.main", "cni", "install", "--bin-dir", bin_dir, "--net-dir", net_dir]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    until = f"in {bin_dir}: until it is there, no container is connected"
    assert done.stderr.splitlines() == [
        f'no plugin "portmap" {until}; tortie cni install --plugins portmap puts ours there',
        f'no plugin "weave" {until}',
    ]
