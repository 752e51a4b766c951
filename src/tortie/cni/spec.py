"""The CNI protocol as values: the call a plugin receives, the error it answers with, and the rules between versions.

Specification 1.1.0, with the texts and the order of checks of the Go plugins, which operators and runtimes match on.
Nothing here reads, writes or waits. Plugins are started once per pod, so only cheap modules are imported.

    environment + stdin ──read_call──► Call ──(plugin)──► Result ──dump(version)──► format_json ──► stdout
                            └─────────► CniError ──json──► stdout, exit 1
"""

from __future__ import annotations

from tortie.base.errors import ConfigError, TortieError, Unavailable
from tortie.base.record import field, record
from tortie.cni.gojson import compact_json as compact_json
from tortie.cni.gojson import format_json as format_json
from tortie.cni.gojson import json_type as json_type
from tortie.cni.gojson import quote as quote
from tortie.cni.gojson import read_json as read_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any, TypeVar

    T = TypeVar("T")

SUPPORTED_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
SPEC_VERSION = SUPPORTED_VERSIONS[-1]
DEFAULT_VERSION = "0.1.0"  # what a configuration without cniVersion means

# The first version that knows each of the later verbs.
VERB_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

ATTACHMENT_VERBS = frozenset({"ADD", "DEL", "CHECK"})
KNOWN_VERBS = ATTACHMENT_VERBS | {"GC", "STATUS", "VERSION"}

# In the order in which the Go framework looks at them: the variable, and the verbs that need it.
REQUIRED_BY = {
    "CNI_CONTAINERID": ATTACHMENT_VERBS,
    "CNI_NETNS": frozenset({"ADD", "CHECK"}),
    "CNI_IFNAME": ATTACHMENT_VERBS,
    "CNI_PATH": ATTACHMENT_VERBS | {"GC", "STATUS"},
}

IFNAME_BYTES = 15  # IFNAMSIZ of linux/if.h less the final NUL

_LETTERS_AND_DIGITS = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_IN_IDENTIFIERS = _LETTERS_AND_DIGITS | frozenset("_.-")


class Code:
    """The error codes of the specification. From 100 on they belong to the plugin."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    INVALID_NETNS = 8
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    INTERNAL = 999  # what the Go framework makes of every error without a code


class CniError(TortieError):
    """What a plugin answers instead of a result. `plugin` names the one that answered, where a runtime knows it."""

    def __init__(self, code: int, msg: str, details: str = "", plugin: str = "") -> None:
        super().__init__(code, msg, details, plugin)
        self.code = code
        self.msg = msg
        self.details = details
        self.plugin = plugin

    def __str__(self) -> str:
        who = f'plugin "{self.plugin}": ' if self.plugin else ""
        return f"{who}{self.msg}; {self.details}" if self.details else f"{who}{self.msg}"

    def json(self) -> str:
        """The error object as the plugin prints it."""
        answer: dict[str, Any] = {"code": self.code, "msg": self.msg}
        if self.details:
            answer["details"] = self.details
        return format_json(answer)


def as_cni_error(error: Exception) -> CniError:
    """The answer to any error that ends a call."""
    if isinstance(error, CniError):
        return error
    if isinstance(error, ConfigError):
        return CniError(Code.INVALID_CONFIG, str(error))
    if isinstance(error, Unavailable):
        return CniError(Code.TRY_AGAIN_LATER, str(error))
    return CniError(Code.INTERNAL, str(error) or type(error).__name__)


def failed(text: str) -> CniError:
    """The error of a plugin that has no code of its own."""
    return CniError(Code.INTERNAL, text)


def own_netns_error() -> CniError:
    """The refusal of a CNI_NETNS that is the namespace the plugin itself runs in (unless `Call.netns_override`)."""
    return CniError(Code.INVALID_NETNS, "plugin's netns and netns from CNI_NETNS should not be the same")


def child_error(plugin: str, stdout: bytes, stderr: bytes, why: str) -> CniError:
    """The error of a plugin that ended badly. `why` says how it ended, as in `exit status 1`."""
    if not stdout.strip():
        noise = stderr.decode(errors="replace").strip()
        text = f"netplugin failed: {quote(noise)}: {why}" if noise else f"netplugin failed with no error message: {why}"
        return CniError(Code.INTERNAL, text, plugin=plugin)
    try:
        answer = read_json(stdout)
        if not isinstance(answer, dict):
            raise ValueError(f"{json_type(answer)} instead of an object")
        code = member(answer, "code", int, Code.INTERNAL)
        return CniError(code, member(answer, "msg", str, ""), member(answer, "details", str, ""), plugin)
    except (ValueError, CniError) as error:
        said = quote(stdout.decode(errors="replace"))
        text = f"netplugin failed but error parsing its diagnostic message {said}: {error}"
        return CniError(Code.INTERNAL, text, plugin=plugin)


# --- Reading a configuration ----------------------------------------------------------------------------------------


def lookup(conf: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value of `key`, in whatever case it is written, as Go decodes objects. The last spelling wins; null is unset.

    >>> lookup({"Subnet": "10.0.0.0/8", "SUBNET": None}, "subnet")
    '10.0.0.0/8'
    """
    found = default
    length, folded = len(key), ""
    for name, value in conf.items():
        if len(name) != length or value is None:  # Go folds letter by letter
            continue
        folded = folded or key.casefold()
        if name == key or name.casefold() == folded:
            found = value
    return found


def member(conf: Mapping[str, Any], key: str, kind: type[T], default: T) -> T:
    """`lookup` of a value of one JSON type (str, int, bool, float, list or dict). Raises CniError 999 for another."""
    value = lookup(conf, key)
    if value is None:
        return default
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise CniError(Code.INTERNAL, f"failed to load netconf: {wrong_type(value, key, kind)}")
    return value  # type: ignore[return-value]  # an int may stand for a float


def wrong_type(value: Any, key: str, kind: type) -> str:
    """What is wrong with a value of another type than `kind`."""
    wanted = {str: "string", int: "int", float: "number", bool: "bool", list: "array", dict: "object"}[kind]
    return f"json: cannot unmarshal {json_type(value)} into field {key} of type {wanted}"


def load_args(text: str, known: Collection[str]) -> dict[str, str]:
    """CNI_ARGS for a plugin that understands the keys `known`. Keys are case-sensitive; the last of equal ones wins.

    Other keys are an error unless IgnoreUnknown is 1 or true. Raises CniError 999 with the texts of the Go library.
    """
    args: dict[str, str] = {}
    unknown: list[str] = []
    ignore = False
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if not equals or "=" in value:
            raise CniError(Code.INTERNAL, f"ARGS: invalid pair {quote(pair)}")
        if key == "IgnoreUnknown":
            if value.lower() not in {"1", "true", "0", "false"}:
                why = f"boolean unmarshal error: invalid input {value}"
                raise CniError(Code.INTERNAL, f"ARGS: error parsing value of pair {quote(pair)}: {why}")
            ignore = value.lower() in {"1", "true"}
        elif key in known:
            args[key] = value
        else:
            unknown.append(pair)
    if unknown and not ignore:
        raise CniError(Code.INTERNAL, f"ARGS: unknown args [{' '.join(map(quote, unknown))}]")
    return args


def _readable_args(text: str) -> dict[str, str]:
    """The well-formed pairs of CNI_ARGS; most plugins ignore the variable, so nothing in it may fail a call here."""
    pairs = (pair.split("=") for pair in text.split(";"))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


# --- Versions -------------------------------------------------------------------------------------------------------


def version_number(version: str) -> tuple[int, int, int]:
    """A version to compare; "" is 0.1.0. Raises ValueError."""
    parts = (version or DEFAULT_VERSION).split(".")
    if len(parts) > 3:
        raise ValueError(f"invalid version {quote(version)}: too many parts")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"invalid version {quote(version)}: its parts must be numbers")
    major, minor, micro = (int(part) for part in (*parts, "0", "0")[:3])
    return major, minor, micro


def at_least(version: str, floor: str) -> bool:
    """Whether `version` is `floor` or newer. Raises ValueError."""
    return version_number(version) >= version_number(floor)


def check_version(command: str, version: str, supported: Sequence[str] = SUPPORTED_VERSIONS) -> None:
    """Raises CniError 1 when a configuration of `version` cannot be served, 6 when a late verb meets a non-version."""
    if command in VERB_SINCE:
        try:
            allowed = at_least(version, VERB_SINCE[command])
            served = any(at_least(one, version) for one in supported)
        except ValueError as error:
            raise CniError(Code.DECODING_FAILURE, str(error)) from None
        if not allowed:
            raise CniError(Code.INCOMPATIBLE_VERSION, f"config version does not allow {command}")
        if not served:
            raise CniError(Code.INCOMPATIBLE_VERSION, f"plugin version does not allow {command}")
    if (version or DEFAULT_VERSION) not in supported:
        details = f"config is {quote(version)}, plugin supports [{' '.join(map(quote, supported))}]"
        raise CniError(Code.INCOMPATIBLE_VERSION, "incompatible CNI versions", details)


def version_reply(versions: Sequence[str] = SUPPORTED_VERSIONS) -> str:
    """The answer to VERSION, with its newline. The number outside is the protocol's, whatever the caller sent."""
    return compact_json({"cniVersion": SPEC_VERSION, "supportedVersions": list(versions)}) + "\n"


def about(plugin: str, version: str, versions: Sequence[str] = SUPPORTED_VERSIONS) -> str:
    """What a plugin started without CNI_COMMAND says on stderr before it exits with 0."""
    return f"CNI {plugin} plugin version {version}\nCNI protocol versions supported: {', '.join(versions)}\n"


# --- The call -------------------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class Call:
    """One invocation of a plugin, already checked. The attachment is "" for verbs that have none (GC, STATUS)."""

    command: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: Mapping[str, str] = field(default_factory=dict)  # the well-formed pairs; plugins use `load_args(args_text)`
    args_text: str = ""
    path: tuple[str, ...] = ()
    conf: Mapping[str, Any] = field(default_factory=dict)
    cni_version: str = DEFAULT_VERSION
    network: str = ""
    stdin: bytes = b""
    netns_override: bool = False


def read_call(env: Mapping[str, str], stdin: bytes, supported: Sequence[str] = SUPPORTED_VERSIONS) -> Call:
    """The call that environment and stdin make, checked in the order of the Go framework. Raises CniError.

    An empty CNI_COMMAND is an error here; a plugin's main prints `about` before it comes to this. For VERSION stdin is
    not looked at.
    """
    command = env.get("CNI_COMMAND", "")
    _check_environment(env, command)
    if command == "VERSION":
        return Call(command)
    conf, network = _read_conf(stdin)
    if command not in KNOWN_VERBS:
        raise CniError(Code.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {command}")
    version = lookup(conf, "cniVersion", "")
    if not isinstance(version, str):
        raise _undecodable(wrong_type(version, "cniVersion", str))
    check_version(command, version, supported)
    attachment = env if command in ATTACHMENT_VERBS else {}
    args_text = env.get("CNI_ARGS", "")
    return Call(
        command=command,
        container_id=attachment.get("CNI_CONTAINERID", ""),
        netns=attachment.get("CNI_NETNS", ""),
        ifname=attachment.get("CNI_IFNAME", ""),
        args=_readable_args(args_text),
        args_text=args_text,
        path=tuple(one for one in env.get("CNI_PATH", "").split(":") if one),
        conf=conf,
        cni_version=version or DEFAULT_VERSION,
        network=network,
        stdin=stdin,
        netns_override=env.get("CNI_NETNS_OVERRIDE", "").lower() in {"1", "true"},
    )


def _check_environment(env: Mapping[str, str], command: str) -> None:
    """A variable that is there is validated at once; those that are missing are reported together."""
    missing = [] if command else ["CNI_COMMAND"]
    for name, verbs in REQUIRED_BY.items():
        if command not in verbs:
            continue
        value = env.get(name, "")
        if not value:
            missing.append(name)
        elif name == "CNI_CONTAINERID":
            check_container_id(value)
        elif name == "CNI_IFNAME":
            check_ifname(value)
    if missing:
        raise CniError(Code.INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")


def _read_conf(stdin: bytes) -> tuple[dict[str, Any], str]:
    """The configuration and the network's name."""
    try:
        conf = read_json(stdin)
    except ValueError as error:
        raise _undecodable(str(error)) from None
    if b"\\u0000" in stdin and _has_nul(conf):
        raise _undecodable("a string has a NUL character in it, which no name, path or address can have")
    if conf is None:
        conf = {}
    if not isinstance(conf, dict):
        raise _undecodable(wrong_type(conf, "(whole configuration)", dict))
    network = lookup(conf, "name", "")
    if not isinstance(network, str):
        raise _undecodable(wrong_type(network, "name", str))
    check_network_name(network)
    return conf, network


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_has_nul, value))


def _undecodable(why: str) -> CniError:
    return CniError(Code.DECODING_FAILURE, f"error unmarshall network config: {why}")


def check_container_id(container_id: str) -> None:
    """Raises CniError 3 for none, 4 for one with characters that could not be part of a file name."""
    if not container_id:
        raise CniError(Code.UNKNOWN_CONTAINER, "missing containerID")
    if not _is_identifier(container_id):
        raise CniError(Code.INVALID_ENVIRONMENT, "invalid characters in containerID", container_id)


def check_network_name(name: str) -> None:
    """Raises CniError 7."""
    if not name:
        raise CniError(Code.INVALID_CONFIG, "missing network name")
    if not _is_identifier(name):
        raise CniError(Code.INVALID_CONFIG, "invalid characters found in network name", name)


def _is_identifier(text: str) -> bool:
    return text[:1] in _LETTERS_AND_DIGITS and _IN_IDENTIFIERS.issuperset(text)


def check_ifname(ifname: str) -> None:
    """Raises CniError 4 for what the kernel would not take as the name of an interface."""
    details = ""
    if not ifname:
        why = "interface name is empty"
    elif len(ifname.encode("utf-8", "surrogateescape")) > IFNAME_BYTES:
        why = "interface name is too long"
        details = f"interface name should be less than {IFNAME_BYTES + 1} characters"
    elif ifname in {".", ".."}:
        why = "interface name is . or .."
    elif any(char in "/:" or char.isspace() for char in ifname):
        why = "interface name contains / or : or whitespace characters"
    else:
        return
    raise CniError(Code.INVALID_ENVIRONMENT, why, details)
