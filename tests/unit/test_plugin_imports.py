"""What a plugin's process has imported by the time that its work begins: only what is listed here, by name.

A pod waits while it is imported. `re`, `json`, `typing`, `enum`, `dataclasses`, `socket` and `subprocess` take a fifth
of a plugin's time and more, each, and are easily imported by accident.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tortie.cni import pack, plugins
from tortie.cni.install import base_python
from tortie.cni.plugin import Later

PACKAGE = Path(pack.__file__).parents[2]

# Frozen into the interpreter, written in C, or a few lines.
STANDARD = {
    *("__future__", "_collections_abc", "_stat", "genericpath", "os", "os.path", "posixpath", "stat", "struct"),
    *("_json", "_sha2", "_sha512", "_socket", "_struct", "errno", "fcntl", "gc", "select", "time"),
}
CORE = {
    *("tortie", "tortie.base", "tortie.base.errors", "tortie.base.record"),
    *("tortie.cni", "tortie.cni.gojson", "tortie.cni.launch", "tortie.cni.plugin", "tortie.cni.plugins"),
    *("tortie.cni.result", "tortie.cni.spec"),
}
KERNEL = {
    *("tortie.kernel", "tortie.kernel.addresses", "tortie.kernel.bridge_vlans", "tortie.kernel.children"),
    *("tortie.kernel.links", "tortie.kernel.netlink", "tortie.kernel.netlink.codec", "tortie.kernel.netlink.socket"),
    *("tortie.kernel.netlink.tables", "tortie.kernel.netns", "tortie.kernel.plain_routes", "tortie.kernel.sysctl"),
    *("tortie.kernel.tc",),
}
SHARED = {
    f"tortie.cni.{name}"
    for name in (
        *("attachments", "bridge_ports", "child", "delegate", "interface", "ipam", "masquerade", "nftables"),
        *("dhcp", "dhcp.rpc", "owner", "programs", "ranges", "sibling", "span", "spoof", "subnet_env", "veth"),
    )
}
LISTING = """
import sys
before = set(sys.modules)
sys.path.append({package!r})
from tortie.cni.launch import launch
launch([{program!r}])
print(*set(sys.modules) - before, file=sys.stderr)
"""


def imported(name: str, **env: str) -> tuple[str, set[str]]:
    """What the plugin said, and the modules that a bare interpreter does not have."""
    code = LISTING.format(package=str(PACKAGE), program=f"/nowhere/{name}")
    conf = {"cniVersion": "1.1.0", "name": "n", "type": name}
    argv = [base_python(), "-I", "-S", "-c", code]
    done = subprocess.run(argv, input=json.dumps(conf), env=env, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("name", plugins.NAMES)
def test_what_a_plugin_imports_to_say_its_versions(name: str) -> None:
    said, modules = imported(name, CNI_COMMAND="VERSION")
    assert json.loads(said)["supportedVersions"] == list(Later(name).versions)
    assert modules <= STANDARD | CORE


@pytest.mark.parametrize("name", plugins.NAMES)
def test_what_a_plugin_imports_to_begin_its_work(name: str) -> None:
    """The call is refused for its namespace, with all that the work needs imported."""
    attachment = {
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
    }
    said, modules = imported(name, CNI_COMMAND="ADD", **attachment)
    assert json.loads(said)["code"] == 8
    assert modules <= STANDARD | CORE | KERNEL | SHARED | {f"tortie.cni.plugins.{plugins.NAMES[name]}"}


@pytest.mark.parametrize("name", plugins.NAMES)
def test_versions_are_those_that_are_said_without_looking(name: str) -> None:
    assert tuple(plugins.load(name).versions) == Later(name).versions
    assert plugins.load(name).name == name


def test_a_pack_has_all_of_it_and_is_used(tmp_path: Path) -> None:
    made = tmp_path / "pack"
    subprocess.run([base_python(), "-I", "-S", pack.__file__, str(made)], check=True, timeout=60)
    start = pack.starter(str(PACKAGE), str(made)).replace("run()", "")
    code = start + "import tortie.cni.plugins.bridge as b; print(type(b.__spec__.loader).__name__, b.__file__)"
    found = subprocess.run([base_python(), "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["Packed", str(PACKAGE / "tortie/cni/plugins/bridge.py")]


@pytest.mark.parametrize("damage", ["none", "other Python", "cut", "stale"])
def test_plugins_do_without_a_good_pack(tmp_path: Path, damage: str) -> None:
    package = tmp_path / "package"
    copy = subprocess.run(["cp", "-r", str(PACKAGE), str(package)], check=False)
    assert copy.returncode == 0
    made = tmp_path / "pack"
    subprocess.run([base_python(), "-I", "-S", str(package / "tortie/cni/pack.py"), str(made)], check=True, timeout=60)
    if damage == "none":
        made.unlink()
    elif damage == "other Python":
        made.write_bytes(b"\0" * 4 + made.read_bytes()[4:])
    elif damage == "cut":
        made.write_bytes(made.read_bytes()[:5000])
    else:
        spec = package / "tortie/cni/spec.py"
        spec.write_text(spec.read_text().replace("SPEC_VERSION = SUPPORTED_VERSIONS[-1]", 'SPEC_VERSION = "9.9.9"'))
    argv = [base_python(), "-I", "-S", "-c", pack.starter(str(package), str(made)), "/nowhere/bridge"]
    done = subprocess.run(argv, env={"CNI_COMMAND": "VERSION"}, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["cniVersion"] == ("9.9.9" if damage == "stale" else "1.1.0")


def test_this_interpreter_is_not_a_virtual_environment() -> None:
    assert os.path.isfile(base_python())
    assert sys.prefix not in base_python() or sys.prefix == sys.base_prefix
