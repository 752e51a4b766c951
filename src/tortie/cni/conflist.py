"""The network configurations of a runtime: one network is a list of plugins, run one after another.

A file is a list (`*.conflist`) or a single plugin (`*.conf`, `*.json`), which becomes a list of one. Unlike in the
plugins' own objects, the case of the top-level keys of a list matters, as it does to libcni.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tortie.base.errors import ConfigError, NotFound
from tortie.cni.spec import (
    SPEC_VERSION,
    CniError,
    at_least,
    check_network_name,
    compact_json,
    lookup,
    quote,
    read_json,
    version_number,
)

PLUGIN_SUFFIXES = (".conf", ".json")


@dataclass(frozen=True, slots=True)
class ConfList:
    """A network: what to run, in which order, and in which version of the protocol to talk ("" is 0.1.0)."""

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False
    source: bytes = b"{}"  # the text it came from, kept in the cache of results

    def speaks(self, floor: str) -> bool:
        """Whether the network's version is `floor` or newer."""
        return at_least(self.version, floor)


def load_conflist(source: Path | Mapping[str, Any]) -> ConfList:
    """A network from a file or from a decoded list. Raises ConfigError naming the file and the field.

    Plugins in a directory beside the file that bears the network's name join the list, unless it says otherwise.
    """
    if not isinstance(source, Path):
        return _conflist(source, compact_json(source).encode(), None)
    try:
        return _load_file(source)
    except ConfigError as error:
        raise error.within(str(source)) from None


def network_named(name: str, directory: Path) -> ConfList:
    """The network `name` among the files of a directory: lists before single plugins, each kind in order of file names.

    Raises NotFound, or ConfigError for the first file that cannot be read.
    """
    for conflist in map(load_conflist, _files(directory)):
        if conflist.name == name:
            return conflist
    raise NotFound(f'no network "{name}" in {directory}')


def default_network(directory: Path) -> ConfList:
    """The network that Kubernetes' container runtimes take: the first file in order of names, whatever its kind."""
    files = sorted(_files(directory), key=lambda path: path.name)
    if not files:
        raise NotFound(f"no network configuration in {directory}")
    return load_conflist(files[0])


def _files(directory: Path) -> list[Path]:
    files = sorted(path for path in directory.glob("*") if path.is_file())
    lists = [path for path in files if path.suffix == ".conflist"]
    return lists + [path for path in files if path.suffix in PLUGIN_SUFFIXES]


def _load_file(path: Path) -> ConfList:
    source, doc = _read(path)
    if path.suffix in PLUGIN_SUFFIXES:
        _checked_plugins([doc], "")
        version = lookup(doc, "cniVersion", "")
        listed = {"name": lookup(doc, "name", ""), "cniVersion": version, "plugins": [doc]}
        return _conflist(listed, compact_json(listed).encode(), None)
    return _conflist(doc, source, path.parent)


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        source = path.read_bytes()
        doc = read_json(source)
    except (OSError, ValueError) as error:
        raise ConfigError(getattr(error, "strerror", None) or str(error)) from None
    if not isinstance(doc, dict):
        raise ConfigError("must be a JSON object")
    return source, doc


def _conflist(doc: Mapping[str, Any], source: bytes, directory: Path | None) -> ConfList:
    name = _text(doc, "name")
    try:
        check_network_name(name)
    except CniError as error:
        raise ConfigError(str(error), "name") from None
    inlined_only = _flag(doc, "loadOnlyInlinedPlugins")
    plugins = _plugins(doc, inlined_only)
    if directory is not None and not inlined_only:
        plugins += _beside(directory / name)
    if not plugins:
        raise ConfigError("a network needs at least one plugin", "plugins")
    return ConfList(
        name=name,
        version=_version(doc),
        plugins=tuple(plugins),
        disable_check=_flag(doc, "disableCheck"),
        disable_gc=_flag(doc, "disableGC"),
        source=source,
    )


def _plugins(doc: Mapping[str, Any], inlined_only: bool) -> list[Mapping[str, Any]]:
    if "plugins" not in doc:
        if inlined_only:
            raise ConfigError("missing, and loadOnlyInlinedPlugins leaves no other place for them", "plugins")
        return []
    plugins = doc["plugins"]
    if not isinstance(plugins, Sequence) or isinstance(plugins, str) or not plugins:
        raise ConfigError("must be a list of at least one plugin", "plugins")
    return _checked_plugins(plugins, "plugins")


def _checked_plugins(plugins: Sequence[Any], where: str) -> list[Mapping[str, Any]]:
    for index, plugin in enumerate(plugins):
        place = f"{where}[{index}]" if where else ""
        if not isinstance(plugin, Mapping):
            raise ConfigError("must be an object", place)
        kind = lookup(plugin, "type")
        if not isinstance(kind, str) or not kind:
            raise ConfigError("must name the plugin's executable", f"{place}.type" if place else "type")
        capabilities = lookup(plugin, "capabilities", {})
        if not isinstance(capabilities, Mapping) or not all(isinstance(on, bool) for on in capabilities.values()):
            where_to = f"{place}.capabilities" if place else "capabilities"
            raise ConfigError("must be an object of true and false", where_to)
    return list(plugins)


def _beside(directory: Path) -> list[Mapping[str, Any]]:
    """The plugins in the directory of the network's name, in order of file names."""
    plugins: list[Mapping[str, Any]] = []
    for path in sorted(directory.glob("*.conf")):
        try:
            plugins += _checked_plugins([_read(path)[1]], "")
        except ConfigError as error:
            raise error.within(str(path)) from None
    return plugins


def _version(doc: Mapping[str, Any]) -> str:
    """The newest of cniVersion and cniVersions that is not newer than the protocol this code speaks."""
    single = _text(doc, "cniVersion")
    several = doc.get("cniVersions")
    if several is None:
        _checked_version(single, "cniVersion")
        return single
    if not isinstance(several, list) or not all(isinstance(one, str) for one in several):
        raise ConfigError("must be a list of versions", "cniVersions")
    candidates = [one for one in (single, *several) if one]
    for one in candidates:
        _checked_version(one, "cniVersions")
    spoken = [one for one in candidates if not at_least(one, SPEC_VERSION) or one == SPEC_VERSION]
    if candidates and not spoken:
        raise ConfigError(f"none of them is {SPEC_VERSION} or older", "cniVersions")
    return max(spoken, key=version_number, default="")


def _checked_version(version: str, where: str) -> None:
    try:
        version_number(version)
    except ValueError as error:
        raise ConfigError(str(error), where) from None


def _text(doc: Mapping[str, Any], key: str) -> str:
    value = doc.get(key, "")
    if not isinstance(value, str):
        raise ConfigError("must be a string", key)
    return value


def _flag(doc: Mapping[str, Any], key: str) -> bool:
    """true, false, or either as a string in any case: what people had written before libcni read it."""
    value = doc.get(key, False)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    raise ConfigError(f"must be true or false, not {quote(str(value))}", key)
