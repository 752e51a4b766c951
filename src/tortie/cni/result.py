"""What a plugin answers to ADD: interfaces, addresses, routes and DNS, written as each version of CNI writes them.

    family of versions       addresses                          interfaces   dns
    0.1.0  0.2.0             ip4, ip6: one each, with routes    none         always
    0.3.0  0.3.1  0.4.0      ips, each with version "4"/"6"     yes          always
    1.0.0  1.1.0             ips                                yes          when there is any

Inside a family only the number differs. What a version does not know, and what this code does not know (`extra`), is
carried along where there is a place for it: a chained plugin must not lose the work of the one before.
"""

from __future__ import annotations

from tortie.base.record import field, record
from tortie.cni.spec import DEFAULT_VERSION, Call, CniError, Code, lookup, quote, wrong_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TypeVar

    V = TypeVar("V", "Interface", "Address", "Route", "Dns")

# "" belongs to the oldest family: the Go library lists it, and its error texts show it.
FAMILIES = (("", "0.1.0", "0.2.0"), ("0.3.0", "0.3.1", "0.4.0"), ("1.0.0", "1.1.0"))
_OLDEST, _MIDDLE, _NEWEST = FAMILIES


def _extra() -> Any:
    return field(default_factory=dict, hash=False)


@record(frozen=True, slots=True)
class Interface:
    """A link that the plugin made. `sandbox` is the network namespace it is in, "" for the host's own."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""
    extra: Mapping[str, Any] = _extra()


@record(frozen=True, slots=True)
class Address:
    """An address with its prefix length. `interface` is an index into the interfaces of the same result."""

    address: str
    gateway: str = ""
    interface: int | None = None
    extra: Mapping[str, Any] = _extra()

    @property
    def family(self) -> str:
        """ "4" or "6"."""
        return _family(self.address)


@record(frozen=True, slots=True)
class Route:
    """A route inside the container. No `gw` on a default route means through the gateway of the address."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None
    extra: Mapping[str, Any] = _extra()


@record(frozen=True, slots=True)
class Dns:
    """What belongs into the container's resolv.conf."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    extra: Mapping[str, Any] = _extra()


@record(frozen=True, slots=True)
class Result:
    """The outcome of ADD, in no version: `load` reads it from any, `dump` writes it in any."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)
    extra: Mapping[str, Any] = _extra()

    @classmethod
    def load(cls, doc: Mapping[str, Any] | None, version: str = "") -> Result:
        """A decoded result. One that does not say its version has `version`; none at all is empty.

        Raises CniError 1 for a version nobody knows, 6 for a result that is not one.
        """
        doc = doc or {}
        said = _typed(lookup(doc, "cniVersion", ""), "cniVersion", str)
        if family_of(said or version) is _OLDEST:
            return cls._load_oldest(doc)
        return cls(
            interfaces=tuple(_each(Interface, doc, "interfaces", _INTERFACE)),
            ips=tuple(_each(Address, doc, "ips", _ADDRESS)),
            routes=tuple(_each(Route, doc, "routes", _ROUTE)),
            dns=_dns(doc),
            extra=_unknown(doc, ("cniVersion", "interfaces", "ips", "routes", "dns")),
        )

    @classmethod
    def _load_oldest(cls, doc: Mapping[str, Any]) -> Result:
        ips: list[Address] = []
        routes: list[Route] = []
        for key in ("ip4", "ip6"):
            part = lookup(doc, key)
            if part is not None:
                ips.append(_decode(Address, part, key, _OLD_ADDRESS))
                routes.extend(_each(Route, part, "routes", _ROUTE, key))
        extra = _unknown(doc, ("cniVersion", "ip4", "ip6", "dns"))
        return cls((), tuple(ips), tuple(routes), _dns(doc), extra)

    def dump(self, version: str = DEFAULT_VERSION) -> dict[str, Any]:
        """The object a plugin prints for a configuration of `version`, in the order of keys of the Go library.

        Raises CniError 1 for an unknown version, 999 when nothing of the result can be said in an old one.
        """
        family = family_of(version)
        doc: dict[str, Any] = {"cniVersion": version or DEFAULT_VERSION}
        if family is _OLDEST:
            doc |= self._oldest_addresses()
        else:
            doc |= {
                "interfaces": [_encode(one, _INTERFACE) for one in self.interfaces],
                "ips": [self._address(one, family is _MIDDLE) for one in self.ips],
                "routes": [_encode(one, _ROUTE) for one in self.routes],
            }
            doc = {key: value for key, value in doc.items() if value}
        dns = _encode(self.dns, _DNS)
        if dns or family is not _NEWEST:
            doc["dns"] = dns
        return doc | dict(self.extra)

    @staticmethod
    def _address(address: Address, with_family: bool) -> dict[str, Any]:
        body = _encode(address, _ADDRESS)
        return {"version": address.family, **body} if with_family else body

    def _oldest_addresses(self) -> dict[str, Any]:
        """The first address of each family, with the routes of that family. Interfaces have no place."""
        doc: dict[str, Any] = {}
        for key, family in (("ip4", "4"), ("ip6", "6")):
            address = next((one for one in self.ips if one.family == family), None)
            if address is None:
                continue
            doc[key] = _encode(address, _OLD_ADDRESS)
            routes = [_encode(one, _OLD_ROUTE) for one in self.routes if _family(one.dst) == family]
            if routes:
                doc[key]["routes"] = routes
        if not doc:
            raise CniError(Code.INTERNAL, "cannot convert: no valid IP addresses")
        return doc


def prev_result(call: Call) -> Result | None:
    """The result of the plugin before this one in the chain (ADD) or of the whole chain (CHECK, DEL), if given.

    It must be written as the configuration's own version writes results. Raises CniError 999.
    """
    doc = lookup(call.conf, "prevResult")
    if doc is None:
        return None
    try:
        _typed(doc, "prevResult", dict)
        same_family(_typed(lookup(doc, "cniVersion", ""), "cniVersion", str) or call.cni_version, call.cni_version)
        return Result.load(doc, call.cni_version)
    except CniError as error:
        raise CniError(Code.INTERNAL, f"could not parse prevResult: {error.msg}") from None


def family_of(version: str) -> tuple[str, ...]:
    """The versions that write results as `version` does. Raises CniError 1."""
    for family in FAMILIES:
        if version in family:
            return family
    raise CniError(Code.INCOMPATIBLE_VERSION, f"unsupported CNI result version {quote(version)}")


def same_family(version: str, wanted: str) -> None:
    """Raises CniError 999 when a result of `version` is not written as one of `wanted`."""
    family = family_of(wanted)
    if version not in family:
        supported = f"result type supports [{' '.join(family)}]"
        raise CniError(Code.INTERNAL, f"{supported} but unmarshalled CNIVersion is {quote(version)}")


# --- JSON key -> attribute, type and default, in the order in which Go prints them -----------------------------------

if TYPE_CHECKING:
    _Keys = Mapping[str, tuple[str, type, object]]

_NEEDED = object()
"""The default of what must be there."""

_INTERFACE: _Keys = {
    "name": ("name", str, _NEEDED),
    "mac": ("mac", str, ""),
    "mtu": ("mtu", int, 0),
    "sandbox": ("sandbox", str, ""),
    "socketPath": ("socket_path", str, ""),
    "pciID": ("pci_id", str, ""),
}
_ADDRESS: _Keys = {
    "interface": ("interface", int, None),
    "address": ("address", str, _NEEDED),
    "gateway": ("gateway", str, ""),
}
_OLD_ADDRESS: _Keys = {"ip": ("address", str, _NEEDED), "gateway": ("gateway", str, "")}
_OLD_ROUTE: _Keys = {"dst": ("dst", str, _NEEDED), "gw": ("gw", str, "")}
_ROUTE: _Keys = {
    **_OLD_ROUTE,
    "mtu": ("mtu", int, 0),
    "advmss": ("advmss", int, 0),
    "priority": ("priority", int, 0),
    "table": ("table", int, None),
    "scope": ("scope", int, None),
}
_DNS: _Keys = {
    "nameservers": ("nameservers", list, ()),
    "domain": ("domain", str, ""),
    "search": ("search", list, ()),
    "options": ("options", list, ()),
}
# Members of an address that are read elsewhere or follow from it: no unknown ones to carry along.
_DERIVED: Mapping[type, tuple[str, ...]] = {Address: ("version", "routes")}


def _typed(value: Any, where: str, kind: type) -> Any:
    if type(value) is not kind:
        raise CniError(Code.DECODING_FAILURE, f"cannot decode result: {wrong_type(value, where, kind)}")
    return value


def _unknown(doc: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    folded = {key.casefold() for key in known}
    return {key: value for key, value in doc.items() if key.casefold() not in folded}


def _decode(cls: type[V], doc: Any, where: str, keys: _Keys) -> V:
    _typed(doc, where, dict)
    known: dict[str, Any] = {}
    for key, (name, kind, _) in keys.items():
        value = lookup(doc, key)
        if value is None:
            continue
        _typed(value, f"{where}.{key}", kind)
        if kind is list:
            value = tuple(_typed(one, f"{where}.{key}[{i}]", str) for i, one in enumerate(value))
        known[name] = value
    for name, _, default in keys.values():
        if default is _NEEDED and not known.get(name):
            raise CniError(Code.DECODING_FAILURE, f"cannot decode result: {where} has no {name}")
    return cls(**known, extra=_unknown(doc, (*keys, *_DERIVED.get(cls, ()))))


def _each(cls: type[V], doc: Mapping[str, Any], key: str, keys: _Keys, where: str = "") -> list[V]:
    place = f"{where}.{key}" if where else key
    items = _typed(lookup(doc, key, []), place, list)
    return [_decode(cls, one, f"{place}[{i}]", keys) for i, one in enumerate(items)]


def _dns(doc: Mapping[str, Any]) -> Dns:
    return _decode(Dns, lookup(doc, "dns", {}), "dns", _DNS)


def _encode(value: Interface | Address | Route | Dns, keys: _Keys) -> dict[str, Any]:
    """Members at their default are left out. An index, a table and a scope of 0 are not defaults; None is."""
    doc: dict[str, Any] = {}
    for key, (name, _, default) in keys.items():
        item = getattr(value, name)
        if item != default:
            doc[key] = list(item) if isinstance(item, tuple) else item
    return doc | dict(value.extra)


def _family(prefix: str) -> str:
    return "6" if ":" in prefix else "4"
