"""A file as a whole: a list of plugins or a single one, and what of it this machine has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tortie.cni.spec import SUPPORTED_VERSIONS, CniError, check_network_name
from tortie.cni.validate import chain, nodes, plugins
from tortie.cni.validate.fields import get, json_word, near_word, section_of, text_of, walk
from tortie.cni.validate.findings import Finding, Report
from tortie.cni.validate.plugins import Plugin
from tortie.cni.validate.tables import IPAM, KINDS, LIST
from tortie.cni.validate.text import Document, NotJson, Path, parse

LISTS, SINGLES = (".conflist",), (".conf", ".json")


@dataclass(frozen=True, slots=True)
class Machine:
    """What is looked at besides the files: executables in the directories of `path`, links with their MTU by name.

    None: that is not looked at.
    """

    path: tuple[str, ...] = ()
    plugins: frozenset[str] | None = None
    links: Mapping[str, int] | None = None


NO_MACHINE = Machine()


def validate(files: Sequence[tuple[str, str]], machine: Machine = NO_MACHINE) -> list[Finding]:
    """What is wrong in files, given as name and text: by file in their order, then by line.

    Several files are taken for the configurations of several nodes.
    """
    reports: list[Report] = []
    networks: list[nodes.Network] = []
    for name, text in files:
        report, network = _file(name, text, machine)
        reports.append(report)
        if network is not None:
            networks.append(network)
    nodes.check(networks)
    found: list[Finding] = []
    for report in reports:
        found += sorted(set(report.findings), key=lambda one: (one.line, one.column, one.path, one.message))
    return found


def _file(name: str, text: str, machine: Machine) -> tuple[Report, nodes.Network | None]:
    try:
        document = parse(text)
    except NotJson as error:
        report = Report(name, Document(places={("",): error.place}))
        report.error(("",), f"not JSON: {error}")
        return report, None
    report = Report(name, document)
    for path in document.twice:
        report.warning(path, "the key is there twice: the last one counts")
    if not isinstance(document.value, dict):
        report.error((), f"must be an object, not {json_word(document.value)}")
        return report, None
    return report, _network(report, name, document.value, machine)


def _network(report: Report, name: str, conf: Mapping[str, Any], machine: Machine) -> nodes.Network:
    listed = "plugins" in conf or (name.endswith(LISTS) and not text_of(conf, "type"))
    if listed and name.endswith(SINGLES):
        report.error(("plugins",), "a list of plugins is only read from a file that ends in .conflist")
    if not listed and name.endswith(LISTS):
        report.error(("type",), "a single plugin is only read from a file that ends in .conf or .json")
    version = _version(report, conf)
    _name(report, conf)
    found = _list(report, conf, version) if listed else [_plugin(report, (), conf, version, 0)]
    there = [one for one in found if one is not None]
    chain.check(report, there)
    for one in there:
        _on(report, one, machine)
    return nodes.Network(report, text_of(conf, "name"), there)


def _list(report: Report, conf: Mapping[str, Any], version: tuple[int, int, int]) -> list[Plugin | None]:
    for key in conf:  # a list's keys are the only ones whose case matters
        near = near_word(key, LIST)
        if key not in LIST and near and near.casefold() == key.casefold():
            report.error((key,), f'must be written "{near}" here')
    walk(report, (), conf, LIST)
    listed = conf.get("plugins")
    if listed is None and conf.get("loadOnlyInlinedPlugins") not in (True, "true"):
        report.warning((), "no plugins: all of them must be in the directory of the network's name")
    if listed == [] or (listed is None and conf.get("loadOnlyInlinedPlugins") in (True, "true")):
        report.error(("plugins",), "a network needs at least one plugin")
    found: list[Plugin | None] = []
    for index, one in enumerate(listed if isinstance(listed, list) else ()):
        if isinstance(one, dict):
            found.append(_plugin(report, ("plugins", index), one, version, index))
            for key in ("name", "cniVersion"):
                if text_of(one, key) and text_of(one, key) != text_of(conf, key):
                    report.warning(("plugins", index, key), "no effect: that of the list is used")
    return found


def _plugin(
    report: Report, path: Path, conf: Mapping[str, Any], version: tuple[int, int, int], index: int
) -> Plugin | None:
    kind = text_of(conf, "type")
    if not kind:
        if get(conf, "type", str) is None and any(key.casefold() == "type" for key in conf):
            report.error((*path, "type"), "must be a string")
        else:
            report.error(path, "type is missing: the plugin's executable")
        return None
    if "/" in kind:
        report.error((*path, "type"), f"invalid plugin name: {kind}")
        return None
    return plugins.check(report, Plugin(path, conf, kind, version, index, kind))


def _name(report: Report, conf: Mapping[str, Any]) -> None:
    try:
        check_network_name(text_of(conf, "name"))
    except CniError as error:
        at: Path = ("name",) if text_of(conf, "name") else ()
        report.error(at, error.msg if not at else f"{error.msg}: letters, digits, _, . and -")


def _version(report: Report, conf: Mapping[str, Any]) -> tuple[int, int, int]:
    """The newest that is said and that we speak; 0.1.0 for none."""
    said = [("cniVersion", text_of(conf, "cniVersion"))] if text_of(conf, "cniVersion") else []
    several = conf.get("cniVersions")
    said += [("cniVersions", one) for one in several if isinstance(one, str)] if isinstance(several, list) else []
    if not said:
        text = "cniVersion is missing: it is 0.1.0, in which results have no interfaces and nothing can be checked"
        report.warning((), text)
    spoken = [one for _, one in said if one in SUPPORTED_VERSIONS]
    for key, one in said:
        if one not in SUPPORTED_VERSIONS and (key == "cniVersion" or not spoken):
            report.error((key,), f'"{one}" is no version of CNI: there are {", ".join(SUPPORTED_VERSIONS)}')
    newest = max((SUPPORTED_VERSIONS.index(one) for one in spoken), default=0)
    major, minor, micro = (int(part) for part in SUPPORTED_VERSIONS[newest].split("."))
    return major, minor, micro


# --- this machine -------------------------------------------------------------------------------------------------


def _on(report: Report, plugin: Plugin, machine: Machine) -> None:
    if machine.plugins is not None:
        wanted = {plugin.named: (*plugin.path, "type")}
        if plugin.type != plugin.named:
            wanted[plugin.type] = (*plugin.path, "delegate", "type")
        if plugin.ipam:
            wanted[plugin.ipam] = (*plugin.path, "ipam", "type")
        if plugin.named == "flannel":
            own = report.document.value
            for part in plugin.path:
                own = own[part]
            wanted[text_of(section_of(own, "ipam"), "type") or "host-local"] = (*plugin.path, "ipam", "type")
        for name, where in wanted.items():
            if name not in machine.plugins:
                ours = f": tortie cni install --plugins {name}" if name in KINDS or name in IPAM else ""
                report.error(where, f'there is no plugin "{name}" in {":".join(machine.path)}{ours}')
    if machine.links is not None:
        _links(report, plugin, machine.links)


def _links(report: Report, plugin: Plugin, links: Mapping[str, int]) -> None:
    where = (*plugin.path, "delegate") if plugin.type != plugin.named else plugin.path
    if plugin.type in ("ipvlan", "macvlan", "vlan") and not get(plugin.conf, "linkInContainer", bool):
        master = text_of(plugin.conf, "master")
        if master and master not in links:
            near = near_word(master, links)
            there = f'did you mean "{near}"?' if near else f"there are {', '.join(sorted(links))}"
            report.error((*where, "master"), f'this machine has no link "{master}": {there}')
        mtu = get(plugin.conf, "mtu", int)
        if master in links and mtu is not None and mtu > links[master]:
            text = f"{mtu} is more than the MTU of {master}, {links[master]}"
            if plugin.type == "ipvlan":
                report.warning((*where, "mtu"), f"{text}: larger packets would be lost")
            else:
                report.error((*where, "mtu"), text)
    device = text_of(plugin.conf, "device")
    if plugin.type == "host-device" and device and device not in links:
        report.error((*where, "device"), f'this machine has no link "{device}": there are {", ".join(sorted(links))}')
