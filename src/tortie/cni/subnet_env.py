"""subnet.env: what flanneld tells the plugin of this node. Imports next to nothing: a pod waits for it.

    FLANNEL_NETWORK=10.244.0.0/16          FLANNEL_IPV6_NETWORK=fc00::/48
    FLANNEL_SUBNET=10.244.1.1/24           FLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64
    FLANNEL_MTU=1450
    FLANNEL_IPMASQ=true

A subnet is written with its first address, not with the network's. Networks may be lists, with commas. Errors are in
the words of flannel's own plugin.
"""

from __future__ import annotations

from tortie.base.record import record
from tortie.cni.gojson import quote
from tortie.cni.span import cidr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FILE = "/run/flannel/subnet.env"
NETWORK, SUBNET = "FLANNEL_NETWORK", "FLANNEL_SUBNET"
NETWORK6, SUBNET6 = "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"
MTU, MASQ = "FLANNEL_MTU", "FLANNEL_IPMASQ"
LARGEST = 2**32 - 1


@record(frozen=True, slots=True)
class SubnetEnv:
    """Texts as they are in the file; () and "" for what is not there. `mtu` 0 and `masq` None: not there."""

    networks: tuple[str, ...] = ()
    subnet: str = ""
    networks6: tuple[str, ...] = ()
    subnet6: str = ""
    mtu: int = 0
    masq: bool | None = None


def load(text: str, where: str) -> SubnetEnv:
    """`where` is the file, for people. Raises ValueError: for a value that is none, and naming what is missing."""
    said: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        said[key] = value
    env = SubnetEnv(
        networks=_networks(said, NETWORK),
        subnet=_subnet(said, SUBNET),
        networks6=_networks(said, NETWORK6),
        subnet6=_subnet(said, SUBNET6),
        mtu=_number(said[MTU]) if MTU in said else 0,
        masq=said[MASQ] == "true" if MASQ in said else None,
    )
    missing = _missing(env)
    if missing:
        raise ValueError(f"{where} is missing {', '.join(missing)}")
    return env


def _networks(said: Mapping[str, str], key: str) -> tuple[str, ...]:
    """Each once."""
    found = dict.fromkeys(said[key].split(",") if key in said else ())
    for text in found:
        cidr(text)
    return tuple(found)


def _subnet(said: Mapping[str, str], key: str) -> str:
    return str(cidr(said[key])) if key in said else ""


def _number(text: str) -> int:
    why = "" if text.isascii() and text.isdigit() else "invalid syntax"
    if not why and (len(text.lstrip("0")) > len(str(LARGEST)) or int(text) > LARGEST):
        why = "value out of range"
    if why:
        raise ValueError(f"strconv.ParseUint: parsing {quote(text)}: {why}")
    return int(text)


def _missing(env: SubnetEnv) -> list[str]:
    """One IP version is enough."""
    missing = [] if env.networks or env.networks6 else [NETWORK, NETWORK6]
    missing += [] if env.subnet or env.subnet6 else [SUBNET, SUBNET6]
    missing += [] if env.mtu else [MTU]
    return missing + ([] if env.masq is not None else [MASQ])


def dump(env: SubnetEnv) -> str:
    """The file's text: of one IP version, or of both."""
    lines = {
        NETWORK: ",".join(env.networks),
        SUBNET: env.subnet,
        NETWORK6: ",".join(env.networks6),
        SUBNET6: env.subnet6,
        MTU: str(env.mtu),
        MASQ: "true" if env.masq else "false",
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items() if value)
