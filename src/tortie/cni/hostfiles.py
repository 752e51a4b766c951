"""What a node's container runtime finds: the plugin executables and the network's conflist.

    install     executables into every writable directory of plugins, then the conflist, which makes the node ready
    uninstall   the conflist first, then the executables that are ours, by their mark

Source: Calico's install-cni, its environment variables and its built-in network. No credential is written, for the
plugin has none; and there are no bundled extras, so SKIP_CNI_BINARIES has nothing to skip.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tortie.base.errors import ConfigError, KernelError
from tortie.cni.install import NAMES, build_stub, is_ours

log = logging.getLogger(__name__)

BIN_DIRS = ("/opt/cni/bin",)
NET_DIR = "/etc/cni/net.d"
CONF_NAME = "10-calico.conflist"
CONF_MODE = 0o600


@dataclass(frozen=True, slots=True)
class HostFiles:
    """Where to put what. `conflist` is the text as it will be, already checked."""

    bin_dirs: tuple[Path, ...]
    net_dir: Path
    conf_name: str
    old_conf_name: str
    conflist: str
    update: bool = True

    @property
    def conf(self) -> Path:
        return self.net_dir / self.conf_name


def host_files(env: Mapping[str, str], bin_dirs: tuple[Path, ...] = (), net_dir: Path | None = None) -> HostFiles:
    """What the environment asks for. Raises ConfigError naming the variable."""
    where = net_dir or Path(env.get("CNI_NET_DIR") or NET_DIR)
    name = env.get("CNI_CONF_NAME") or CONF_NAME
    for variable, value in (("CNI_CONF_NAME", name), ("CNI_OLD_CONF_NAME", env.get("CNI_OLD_CONF_NAME", ""))):
        if "/" in value or value in (".", ".."):
            raise ConfigError(f'"{value}" is not a file name', variable)
    return HostFiles(
        bin_dirs or tuple(Path(one) for one in BIN_DIRS),
        where,
        name,
        env.get("CNI_OLD_CONF_NAME") or CONF_NAME,
        conflist(env, where),
        env.get("UPDATE_CNI_BINARIES", "true").lower() != "false",
    )


def conflist(env: Mapping[str, str], net_dir: Path) -> str:
    """The network's configuration: a template of the user's with its placeholders filled in, or the built-in one."""
    source, template = _template(env)
    if template is None:
        return json.dumps(built_in(env), indent=2) + "\n"
    for placeholder, value in placeholders(env, net_dir).items():
        template = template.replace(f"__{placeholder}__", value)
    try:
        document = json.loads(template)
    except ValueError as error:
        raise ConfigError(f"is not JSON once its placeholders are filled in: {error}", source) from None
    if not isinstance(document, dict):
        raise ConfigError("must be a JSON object", source)
    return template if template.endswith("\n") else template + "\n"


def built_in(env: Mapping[str, str]) -> dict[str, Any]:
    """Calico's default network, but for what concerns a plugin with credentials of its own."""
    values = _values(env)
    calico = {
        "type": "calico",
        "log_level": values["LOG_LEVEL"],
        "log_file_path": values["LOG_FILE_PATH"],
        "datastore_type": values["DATASTORE_TYPE"],
        "nodename": values["KUBERNETES_NODE_NAME"],
        "mtu": _number(values["CNI_MTU"], "CNI_MTU"),
        "ipam": {"type": "calico-ipam"},
        "policy": {"type": "k8s"},
        "require_mtu_file": values["REQUIRE_MTU_FILE"] == "true",
        "calico_api_group": values["CALICO_API_GROUP"],
    }
    portmap = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
    return {"name": "k8s-pod-network", "cniVersion": "1.0.0", "plugins": [calico, portmap]}


def placeholders(env: Mapping[str, str], net_dir: Path) -> dict[str, str]:
    """What `__NAME__` stands for in a template."""
    tls = net_dir / "calico-tls"
    assets = Path(env.get("TLS_ASSETS_DIR") or "/calico-secrets")
    files = {
        f"ETCD_{word}_FILE": str(tls / name) if (assets / name).exists() else ""
        for word, name in (("CERT", "etcd-cert"), ("CA_CERT", "etcd-ca"), ("KEY", "etcd-key"))
    }
    extra = {
        "KUBECONFIG_FILEPATH": str(net_dir / "calico-kubeconfig"),
        "SERVICEACCOUNT_TOKEN": "",
        "KUBERNETES_SERVICE_HOST": env.get("KUBERNETES_SERVICE_HOST", ""),
        "KUBERNETES_SERVICE_PORT": env.get("KUBERNETES_SERVICE_PORT", ""),
        "ETCD_ENDPOINTS": env.get("ETCD_ENDPOINTS", ""),
        "ETCD_DISCOVERY_SRV": env.get("ETCD_DISCOVERY_SRV", ""),
    }
    return _values(env) | files | extra


def install(files: HostFiles) -> list[str]:
    """Do it; a line for each thing that changed. Raises KernelError when nothing can be written."""
    done: list[str] = []
    writable = [one for one in files.bin_dirs if _writable(one)]
    if not writable and not (not files.update and any(_complete(one) for one in files.bin_dirs)):
        where = ", ".join(map(str, files.bin_dirs))
        raise KernelError(13, f"install the CNI plugins in {where}", "none of the directories can be written")
    for directory in writable:
        if not files.update and _complete(directory):
            continue
        before = {name: _content(directory / name) for name in NAMES}
        build_stub(directory)
        done += [f"{directory / name}" for name in NAMES if _content(directory / name) != before[name]]
    if files.conf.is_file() and _content(files.conf) == files.conflist.encode():
        files.conf.chmod(CONF_MODE)
    else:
        _write(files.conf, files.conflist)
        done.append(str(files.conf))
    old = files.net_dir / files.old_conf_name
    if files.old_conf_name != files.conf_name and old.exists():
        old.unlink()
        done.append(f"{old} removed")
    return done


def absent(files: HostFiles) -> list[str]:
    """The plugins that the network names and none of the directories has: without them no container is connected."""
    document = json.loads(files.conflist)
    listed = document.get("plugins", [document])
    plugins = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    parts = [part for plugin in plugins for part in (plugin, plugin.get("ipam")) if isinstance(part, dict)]
    wanted = dict.fromkeys(str(part["type"]) for part in parts if part.get("type"))
    return [name for name in wanted if not any((one / name).exists() for one in files.bin_dirs)]


def uninstall(files: HostFiles) -> list[str]:
    """Take away what `install` puts there; executables only when they are ours. A line for each thing removed."""
    done: list[str] = []
    if files.conf.exists():
        files.conf.unlink()
        done.append(str(files.conf))
    for directory in files.bin_dirs:
        for name in NAMES:
            path = directory / name
            if path.is_file() and is_ours(path):
                path.unlink()
                done.append(str(path))
    return done


_DEFAULTS = {
    "LOG_LEVEL": "info",
    "LOG_FILE_PATH": "/var/log/calico/cni/cni.log",
    "LOG_FILE_MAX_SIZE": "100",
    "LOG_FILE_MAX_AGE": "30",
    "LOG_FILE_MAX_COUNT": "10",
    "DATASTORE_TYPE": "kubernetes",
    "CNI_MTU": "1500",
    "REQUIRE_MTU_FILE": "false",
    "CALICO_API_GROUP": "crd.projectcalico.org/v1",
}


def _values(env: Mapping[str, str]) -> dict[str, str]:
    values = {name: env.get(name) or default for name, default in _DEFAULTS.items()}
    values["KUBERNETES_NODE_NAME"] = env.get("KUBERNETES_NODE_NAME") or socket.gethostname()
    return values


def _template(env: Mapping[str, str]) -> tuple[str, str | None]:
    path = env.get("CNI_NETWORK_CONFIG_FILE")
    if path:
        try:
            return path, Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", "CNI_NETWORK_CONFIG_FILE") from None
    return "CNI_NETWORK_CONFIG", env.get("CNI_NETWORK_CONFIG") or None


def _number(text: str, variable: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f'"{text}" is not a number', variable)
    return int(text)


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)


def _complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in NAMES)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _write(path: Path, text: str) -> None:
    """Whole or not at all: the runtime takes the directory's first file, half a one included."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            staged.write_text(text, encoding="utf-8")
            staged.chmod(CONF_MODE)
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(error.errno or 5, f"write {path}") from None
