"""static: the addresses that the configuration names. Nothing is kept and nothing is reserved.

Fields of `ipam`: `addresses` (each `address` with its prefix length, and `gateway`), `routes`, `dns`. What is asked for
in CNI_ARGS (`IP`, `GATEWAY`) is added to them; `args.cni.ips` is used instead of them, and `runtimeConfig.ips` instead
of all.

Source: plugins/ipam/static of the CNI reference plugins.
"""

from __future__ import annotations

from tortie.cni.ipam import check_families, failed, routes, section, wished
from tortie.cni.plugin import Plugin
from tortie.cni.result import Address, Dns, Result, prev_result
from tortie.cni.span import Cidr, Ip, cidr, ip
from tortie.cni.spec import Call, CniError, Code, load_args, lookup, member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Wanted = tuple[Cidr, Ip | None]  # an address and its gateway


def wanted(call: Call, ipam: Mapping[str, Any]) -> list[Wanted]:
    """The addresses with their gateways. Raises CniError."""
    found = [_configured(each) for each in member(ipam, "addresses", list, [])]
    found = _with_args(call, found)
    for texts in wished(call):
        if texts:
            found = [(_cidr(text, "an entry in the 'ips' field is NOT"), None) for text in texts]
    check_families(call, ("4" if each.bits == 32 else "6" for each, _ in found))
    return found


def _configured(conf: Any) -> Wanted:
    if type(conf) is not dict:
        raise failed("failed to load netconf: an entry of addresses is not an object")
    gateway = member(conf, "gateway", str, "")
    address = _cidr(member(conf, "address", str, ""), "the 'address' field is expected to be")
    try:
        return address, ip(gateway) if gateway else None
    except ValueError as error:
        raise failed(str(error)) from None


def _with_args(call: Call, found: list[Wanted]) -> list[Wanted]:
    """A gateway of CNI_ARGS is that of every address in whose network it lies."""
    args = load_args(call.args_text, ("IP", "GATEWAY"))
    if ips := args.get("IP"):
        found = found + [(_cidr(text.strip(), "the 'ip' field is expected to be"), None) for text in ips.split(",")]
    if gateways := args.get("GATEWAY"):
        for text in gateways.split(","):
            gateway = _gateway(text.strip())
            found = [(address, gateway if gateway in address else old) for address, old in found]
    return found


def _cidr(text: str, complaint: str) -> Cidr:
    try:
        return cidr(text)
    except ValueError:
        raise failed(f"{complaint} in CIDR notation, got: '{text}'") from None


def _gateway(text: str) -> Ip:
    try:
        return ip(text)
    except ValueError:
        raise failed(f"invalid gateway address: {text}") from None


def dns(ipam: Mapping[str, Any]) -> Dns:
    try:
        return Result.load({"cniVersion": "1.0.0", "dns": lookup(ipam, "dns", {})}).dns
    except CniError as error:
        raise failed(f"failed to load netconf: {error.msg}") from None


def add(call: Call) -> Result:
    ipam = section(call)
    ips = tuple(Address(str(address), str(gateway or "")) for address, gateway in wanted(call, ipam))
    return Result(ips=ips, routes=routes(ipam), dns=dns(ipam))


def delete(call: Call) -> None:
    """Nothing is kept of an attachment."""


def check(call: Call) -> None:
    """An address that the result has, too, has there the gateway that it has here."""
    expected = wanted(call, section(call))
    previous = prev_result(call)
    if previous is None:
        raise failed("Required prevResult missing")
    there = {each.address: each.gateway for each in previous.ips}
    for address, gateway in expected:
        if gateway is not None and there.get(str(address), str(gateway)) != str(gateway):
            raise failed(f"static: Failed to match addr {address} on interface {call.ifname}")


def status(call: Call) -> None:
    """An ADD can be served when the addresses and routes can be read."""
    try:
        ipam = section(call)
        wanted(call, ipam)
        routes(ipam)
        dns(ipam)
    except CniError as error:
        raise CniError(Code.NOT_AVAILABLE, error.msg) from None


PLUGIN = Plugin("static", add, delete, check, status=status)
