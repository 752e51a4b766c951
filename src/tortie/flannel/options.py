"""flanneld's flags, as its command line and its environment give them.

    -ip-masq  --iface=eth1  -iface eth2     ──┐
    FLANNELD_IP_MASQ=true (where no flag is) ─┴─► parse ─► Options

The syntax is Go's: one dash or two, the value after "=" or as the next word, of booleans only after "=". Names and
defaults are flannel's; `-datastore` and `-status-socket` are our own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError, TortieError, suggest
from tortie.cni.subnet_env import DEFAULT_FILE

VARIABLE = "FLANNELD_"
LOWEST_MARGIN, HIGHEST_MARGIN = 1, 24 * 60 - 1
"""Minutes: a lease lives for a day, and has to be renewed before it ends."""
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


# --- kinds of values ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """What a flag takes. `read` raises ValueError or ConfigError; `right` says what would do."""

    word: str
    right: str
    read: Callable[[str], Any]
    repeated: bool = False


def _boolean(text: str) -> bool:
    if text not in _TRUE | _FALSE:
        raise ValueError
    return text in _TRUE


def _seconds(text: str) -> int:
    number = int(text, 0)
    if number < 1:
        raise ValueError
    return number


def _port(text: str) -> int:
    number = int(text, 0)
    if not 0 <= number <= 65535:
        raise ValueError
    return number


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(str(error)) from None
    return text


def _file(text: str) -> Path:
    if not text:
        raise ValueError
    return Path(text)


def _maybe(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """An empty value is as if the flag were not there."""
    return lambda text: read(text) if text else None


TEXT = Kind("string", "", str)
LIST = Kind("string", "", lambda text: tuple(part for one in text.split(",") if (part := one.strip())))
BOOLEAN = Kind("bool", "write true or false", _boolean)
INTEGER = Kind("int", "write a whole number", lambda text: int(text, 0))
SECONDS = Kind("int", "write a whole number of seconds, at least 1", _seconds)
PORT = Kind("int", "write a port from 1 to 65535, or 0", _port)
FILE = Kind("path", "write a path", _file)
MAYBE_FILE = Kind("path", "write a path", _maybe(Path))
IPV4 = Kind("IP", "write an IPv4 address such as 192.0.2.7", _maybe(IPv4Address))
IPV6 = Kind("IP", "write an IPv6 address such as 2001:db8::7", _maybe(IPv6Address))
ANY_IP = Kind("IP", "write an IP address such as 192.0.2.1", _maybe(parse_ip))
TEXTS = Kind("value", "", str, repeated=True)
REGEXES = Kind("value", "write a regular expression", _regex, repeated=True)


# --- the flags ----------------------------------------------------------------------------------------------------


def _about(kind: Kind, meaning: str) -> Mapping[str, Any]:
    return {"kind": kind, "meaning": meaning}


@dataclass(frozen=True, slots=True)
class Options:
    """Every flag under its name, with `_` for `-`. `help` and `version`: asked for, and then nothing else counts."""

    etcd_endpoints: tuple[str, ...] = field(
        default=("http://127.0.0.1:4001", "http://127.0.0.1:2379"), metadata=_about(LIST, "etcd's URLs, with commas")
    )
    etcd_prefix: str = field(
        default="/coreos.com/network", metadata=_about(TEXT, "where the network's keys begin in etcd")
    )
    etcd_keyfile: str = field(default="", metadata=_about(TEXT, "the key to show to etcd, with -etcd-certfile"))
    etcd_certfile: str = field(default="", metadata=_about(TEXT, "the certificate to show to etcd, with -etcd-keyfile"))
    etcd_cafile: str = field(
        default="", metadata=_about(TEXT, "the authority that etcd's certificate has to be signed by")
    )
    etcd_username: str = field(default="", metadata=_about(TEXT, "etcd's user"))
    etcd_password: str = field(default="", repr=False, metadata=_about(TEXT, "that user's password"))
    iface: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            TEXTS, "the interface to the other nodes, by name or by its address; given again, the first that is there"
        ),
    )
    iface_regex: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            REGEXES, "the same by a regular expression, on addresses and then on names; looked at after every -iface"
        ),
    )
    iface_can_reach: IPv4Address | IPv6Address | None = field(
        default=None, metadata=_about(ANY_IP, "the interface by which packets to this address leave")
    )
    public_ip: IPv4Address | None = field(
        default=None, metadata=_about(IPV4, "what other nodes are told to reach this one by")
    )
    public_ipv6: IPv6Address | None = field(default=None, metadata=_about(IPV6, "the same for IPv6"))
    subnet_file: Path = field(
        default=Path(DEFAULT_FILE), metadata=_about(FILE, "where this node's subnet, MTU and so on are written")
    )
    net_config_path: Path = field(
        default=Path("/etc/kube-flannel/net-conf.json"),
        metadata=_about(FILE, "the network's configuration, with -kube-subnet-mgr"),
    )
    subnet_lease_renew_margin: int = field(
        default=60,
        metadata=_about(INTEGER, "how long before its end a lease in etcd is renewed, in minutes from 1 to 1439"),
    )
    ip_masq: bool = field(default=False, metadata=_about(BOOLEAN, "masquerade what leaves the network"))
    ip_masq_fully_random_disable: bool = field(
        default=False, metadata=_about(BOOLEAN, "without random ports where it is masqueraded")
    )
    kube_subnet_mgr: bool = field(
        default=False, metadata=_about(BOOLEAN, "the pod CIDRs of Kubernetes' Nodes are the subnets, instead of etcd's")
    )
    kube_api_url: str = field(
        default="", metadata=_about(TEXT, "Kubernetes' API, where it is not that of the pod this runs in")
    )
    kubeconfig_file: str = field(default="", metadata=_about(TEXT, "a kubeconfig, where this does not run in a pod"))
    kube_annotation_prefix: str = field(
        default="flannel.alpha.coreos.com", metadata=_about(TEXT, "what the Nodes' annotations begin with")
    )
    iptables_resync: int = field(
        default=5, metadata=_about(SECONDS, "how often everything is looked at again, in seconds")
    )
    iptables_forward_rules: bool = field(
        default=True, metadata=_about(BOOLEAN, "let the network's packets be forwarded")
    )
    ip_blackhole_route: bool = field(
        default=False, metadata=_about(BOOLEAN, "a blackhole route for this node's subnet behind those of its pods")
    )
    set_node_network_unavailable: bool = field(
        default=True, metadata=_about(BOOLEAN, "tell Kubernetes when the node's network is there")
    )
    healthz_ip: str = field(default="0.0.0.0", metadata=_about(TEXT, "where /healthz and /readyz are served"))
    healthz_port: int = field(default=0, metadata=_about(PORT, "its port; 0 for none"))
    datastore: str = field(
        default="",
        metadata=_about(
            TEXT, "our own: the Nodes are in this datastore, as -c of other commands names it; with -kube-subnet-mgr"
        ),
    )
    status_socket: Path | None = field(
        default=None,
        metadata=_about(
            MAYBE_FILE, "our own: where `tortie flannel status` asks; beside the subnet file if unset, with .sock"
        ),
    )
    v: int = field(
        default=0, metadata=_about(INTEGER, "how much is logged: 0, or from 1 on what is otherwise only for debugging")
    )
    vmodule: str = field(
        default="", metadata=_about(TEXT, "levels for single files of flanneld's source; without effect here")
    )
    log_backtrace_at: str = field(default="", metadata=_about(TEXT, "a line of flanneld's source; without effect here"))
    version: bool = field(default=False, metadata=_about(BOOLEAN, "print the version and end"))
    help: bool = field(default=False, repr=False)

    @property
    def socket(self) -> Path:
        """Where the daemon answers `tortie flannel status`."""
        return self.status_socket or self.subnet_file.with_suffix(".sock")


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag for people. `default` is "" for none."""

    name: str
    kind: Kind
    meaning: str
    default: str

    @property
    def variable(self) -> str:
        """What it is called in the environment; "" for what is only a question."""
        return "" if self.name == "version" else VARIABLE + self.name.upper().replace("-", "_")


def _shown(default: Any) -> str:
    if default is None or default == () or default == "":
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _name(of_field: str) -> str:
    """Only flannel's own flags have dashes; those of its logging library are written with underscores."""
    return of_field if of_field == "log_backtrace_at" else of_field.replace("_", "-")


FLAGS: Mapping[str, Flag] = {
    _name(one.name): Flag(_name(one.name), one.metadata["kind"], one.metadata["meaning"], _shown(one.default))
    for one in fields_of(Options)
    if one.metadata
}
"""All of them, by name."""


# --- reading ------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """The flags. Raises ConfigError for what cannot be read, and TortieError for a margin out of range: flanneld ends
    with another status then."""
    given: dict[str, Any] = {}
    for name, text in _words(list(arguments)):
        if name in ("h", "help"):
            return Options(help=True)
        _take(given, FLAGS[name], text, f"flag -{name}")
    on_the_line = frozenset(given)
    for name, flag in FLAGS.items():
        if flag.variable and _field(name) not in on_the_line and environment.get(flag.variable):
            _take(given, flag, environment[flag.variable], flag.variable)
    options = replace(Options(), **given)
    if not options.version:
        _check_margin(options)
        _check_datastore(options)
    return options


def _words(words: list[str]) -> Iterator[tuple[str, str]]:
    """Name and value of each flag."""
    while words:
        word = words.pop(0)
        if word == "--" and not words:
            return
        if word in ("-", "--") or not word.startswith("-"):
            what = f'"{words[0] if word == "--" else word}" is not a flag'
            raise ConfigError(f'{what}; a value of true or false is written with "=", as -ip-masq=true')
        name, equals, text = word.removeprefix("-").removeprefix("-").partition("=")
        if not name or name.startswith("-"):
            raise ConfigError(f"bad flag syntax: {word}")
        if name in ("h", "help"):
            yield name, ""
            return
        if name not in FLAGS:
            raise ConfigError(f"flag provided but not defined: -{name} {suggest(name, FLAGS)}".rstrip())
        if not equals and FLAGS[name].kind is BOOLEAN:
            text = "true"
        elif not equals:
            if not words:
                raise ConfigError(f"flag needs an argument: -{name}")
            text = words.pop(0)
        yield name, text


def _take(given: dict[str, Any], flag: Flag, text: str, where: str) -> None:
    try:
        value = flag.kind.read(text)
    except (ValueError, ConfigError):
        what = "boolean value" if flag.kind is BOOLEAN else "value"
        raise ConfigError(f'invalid {what} "{text}" for {where}: {flag.kind.right}') from None
    name = _field(flag.name)
    given[name] = (*given.get(name, ()), value) if flag.kind.repeated else value


def _field(name: str) -> str:
    return name.replace("-", "_")


def _check_margin(options: Options) -> None:
    if not LOWEST_MARGIN <= options.subnet_lease_renew_margin <= HIGHEST_MARGIN:
        raise TortieError(
            "Invalid subnet-lease-renew-margin option, out of acceptable range: "
            f"{options.subnet_lease_renew_margin} is not from {LOWEST_MARGIN} to {HIGHEST_MARGIN} minutes"
        )


def _check_datastore(options: Options) -> None:
    if options.datastore and not options.kube_subnet_mgr:
        raise ConfigError("-datastore is for Kubernetes' Nodes: give -kube-subnet-mgr, too, or etcd by -etcd-endpoints")
    if options.datastore and (options.kube_api_url or options.kubeconfig_file):
        raise ConfigError("-datastore and -kube-api-url or -kubeconfig-file name two places for the Nodes: give one")


# --- for people ---------------------------------------------------------------------------------------------------


def usage(program: str) -> str:
    """All flags in a table."""
    rows = [(f"-{flag.name}{'' if flag.kind is BOOLEAN else f' {flag.kind.word}'}", flag) for flag in FLAGS.values()]
    width = max(len(left) for left, _ in rows)
    lines = [f"Usage: {program} [FLAG]...", ""]
    for left, flag in rows:
        default = f" (default {flag.default})" if flag.default not in ("", "false") else ""
        lines.append(f"  {left:<{width}}  {flag.meaning}{default}")
    lines += ["", f"A flag that is not given is read from the environment: -iface from {FLAGS['iface'].variable}."]
    return "\n".join(lines) + "\n"
