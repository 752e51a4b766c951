"""portmap: ports of the host lead to ports of a container. Chained behind the plugin that gives it addresses.

    runtimeConfig.portMappings   what to forward: hostPort, containerPort, protocol (tcp), hostIP (any of the host's)
    backend                      `nftables`, or `iptables`, which is served by nftables too
    snat (true)                  masquerade what would come back another way: the container's own and 127.0.0.1's
    masqAll (false)              masquerade everything that is forwarded
    conditionsV4, conditionsV6   more that a packet must match, in the words of nft
    markMasqBit (13)             accepted; nothing needs a mark here
    externalSetMarkChain         a chain of iptables: refused

    prerouting, output ── to an address of the host ─► hostports_all ─► hostports: tcp dport 8080 dnat to 10.1.2.2:80
    postrouting ── masquerading: ip saddr 10.1.2.2 ip daddr 10.1.2.2 masquerade

In the tables `ip cni_hostport` and `ip6 cni_hostport`. A rule's comment is whose it is: container, interface, network.
Rules that the Go plugin made (whose comment is the container) are known by the address that they lead to, and its
iptables chains by their name: DEL takes them away, too. Source: plugins/meta/portmap of the CNI reference plugins.
"""

from __future__ import annotations

import sys

from tortie.base.errors import KernelError, NotFound, NotSupported
from tortie.base.record import record
from tortie.cni import nftables, owner
from tortie.cni.attachments import all_of
from tortie.cni.interface import canonical, failed, hashed
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Result, prev_result
from tortie.cni.spec import Call, CniError, Code, lookup, member, quote, wrong_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any

    from tortie.base.flow import Flow

TABLE = "cni_hostport"
FAMILIES = ("ip", "ip6")
PROTOCOLS = ("tcp", "udp", "sctp", "dccp")
MOST_PORT = 65535
UDP = 17


@record(frozen=True, slots=True)
class PortMapping:
    """A port of the host (of `host_ip`, "" for all its addresses), and the container's that it leads to."""

    host_port: int
    container_port: int
    protocol: str
    host_ip: str = ""

    def concerns(self, family: str) -> bool:
        return not self.host_ip or (":" in self.host_ip) == (family == "ip6")


@record(frozen=True, slots=True)
class Settings:
    """The configuration, read."""

    mappings: tuple[PortMapping, ...]
    snat: bool
    masquerade_all: bool
    conditions: Mapping[str, str]  # by family


# --- the configuration --------------------------------------------------------------------------------------------


def settings(call: Call) -> Settings:
    """Raises CniError: in the words of the Go plugin, and for what only iptables could do."""
    conf = call.conf
    conditions = {"ip": _words(conf, "conditionsV4"), "ip6": _words(conf, "conditionsV6")}
    _check_backend(conf, conditions)
    bit = lookup(conf, "markMasqBit")
    if lookup(conf, "externalSetMarkChain") is not None and bit is not None:
        raise failed("Cannot specify externalSetMarkChain and markMasqBit")
    if not 0 <= member(conf, "markMasqBit", int, 13) <= 31:
        raise failed("MasqMarkBit must be between 0 and 31")
    return Settings(
        mappings=_mappings(conf),
        snat=member(conf, "snat", bool, True),
        masquerade_all=member(conf, "masqAll", bool, False),
        conditions={family: " ".join(words) for family, words in conditions.items()},
    )


def _words(conf: Mapping[str, Any], key: str) -> tuple[str, ...]:
    words = member(conf, key, list, [])
    for word in words:
        if type(word) is not str:
            raise failed(f"failed to load netconf: {wrong_type(word, key, str)}")
        if ";" in word or "\n" in word:
            raise failed(f"{key}: {quote(word)} is more than a condition")
    return tuple(words)


def _is_of_iptables(words: Sequence[str]) -> bool:
    return bool(words) and words[0][:1] in ("-", "!")


def _check_backend(conf: Mapping[str, Any], conditions: Mapping[str, Sequence[str]]) -> None:
    """One that there is, and that the other options are not of the other one."""
    backend = member(conf, "backend", str, "")
    if backend not in ("", "iptables", "nftables"):
        raise failed(f"unrecognized backend {quote(backend)}")
    given = {"conditionsV4": conditions["ip"], "conditionsV6": conditions["ip6"]}
    of_iptables = [key for key, words in given.items() if _is_of_iptables(words)]
    of_nftables = [key for key, words in given.items() if words and key not in of_iptables]
    if member(conf, "externalSetMarkChain", str, ""):
        of_iptables = ["externalSetMarkChain", *of_iptables]
    for wanted, foreign in (("nftables", of_iptables), ("iptables", of_nftables)):
        other = "iptables" if wanted == "nftables" else "nftables"
        if backend == wanted and foreign:
            listed = " ".join(foreign)
            raise failed(
                f"{wanted} backend was requested but configuration contains {other}-specific options [{listed}]"
            )


def check_servable(call: Call) -> None:
    """Raises CniError for what is valid, but needs iptables. DEL does not ask: there may be something to clean up."""
    if chain := member(call.conf, "externalSetMarkChain", str, ""):
        raise failed(
            f"failed to parse config: externalSetMarkChain: {quote(chain)} is a chain of iptables, and portmap writes "
            "nftables rules: leave the option out, portmap masquerades by rules of its own"
        )
    for key in ("conditionsV4", "conditionsV6"):
        words = _words(call.conf, key)
        if _is_of_iptables(words):
            raise failed(
                f"failed to parse config: {key}: {quote(' '.join(words))} is in the words of iptables, and portmap "
                'writes nftables rules: use those of nft, such as ["ip", "saddr", "!=", "192.0.2.0/24"]'
            )


def _mappings(conf: Mapping[str, Any]) -> tuple[PortMapping, ...]:
    given = member(member(conf, "runtimeConfig", dict, {}), "portMappings", list, [])
    return tuple(_mapping(each) for each in given)


def _mapping(given: Any) -> PortMapping:
    if type(given) is not dict:
        raise failed(f"failed to load netconf: {wrong_type(given, 'portMappings', dict)}")
    host, inner = member(given, "hostPort", int, 0), member(given, "containerPort", int, 0)
    if not 1 <= inner <= MOST_PORT:
        raise failed(f"Invalid container port number: {inner}")
    if not 1 <= host <= MOST_PORT:
        raise failed(f"Invalid host port number: {host}")
    protocol = member(given, "protocol", str, "").lower() or "tcp"
    if protocol not in PROTOCOLS:
        raise failed(f"Invalid protocol of host port {host}: {quote(protocol)} is none of {', '.join(PROTOCOLS)}")
    return PortMapping(host, inner, protocol, _host_ip(member(given, "hostIP", str, "")))


def _host_ip(text: str) -> str:
    """ "" for any address. One that is none would end up in the text that nft reads."""
    from tortie.cni import span

    try:
        host_ip = str(span.ip(text)) if text else ""
    except ValueError:
        raise failed(f"Invalid host IP: {quote(text)}") from None
    return "" if host_ip in ("0.0.0.0", "::") else host_ip


# --- deciding -----------------------------------------------------------------------------------------------------


def pod_addresses(result: Result, ifname: str) -> dict[str, str]:
    """By family the container's first address, of those that are on the interface or do not say where they are."""
    found: dict[str, str] = {}
    for ip in result.ips:
        if ip.interface is not None:
            if not 0 <= ip.interface < len(result.interfaces):
                continue
            interface = result.interfaces[ip.interface]
            if interface.name != ifname or not interface.sandbox:
                continue
        found.setdefault("ip6" if ip.family == "6" else "ip", canonical(ip.address.partition("/")[0]))
    return found


def rules(wanted: Settings, family: str, pod: str, comment: str) -> str:
    """The lines that add an attachment's rules. Those that match less go before those that match any packet."""
    to = f"[{pod}]" if family == "ip6" else pod
    lines: list[str] = []
    for each in wanted.mappings:
        if not each.concerns(family):
            continue
        condition = wanted.conditions.get(family, "")
        matches = [condition] if condition else []
        matches += [f"{family} daddr {each.host_ip}"] if each.host_ip else []
        verb = "insert" if matches else "add"
        matches.append(f"{each.protocol} dport {each.host_port} dnat to {to}:{each.container_port}")
        lines.append(f"{verb} rule {family} {TABLE} hostports {' '.join(matches)} comment {nftables.quoted(comment)}")
    if wanted.snat and lines:
        sources = [f"{family} saddr {pod} "]
        if wanted.masquerade_all:
            sources = ["ct status dnat "]
        elif family == "ip":
            sources.append("ip saddr 127.0.0.1 ")
        tail = f"{family} daddr {pod} masquerade comment {nftables.quoted(comment)}"
        lines += [f"add rule {family} {TABLE} masquerading {source}{tail}" for source in sources]
    return "".join(f"{line}\n" for line in lines)


def frame(family: str, snat: bool) -> str:
    """The lines that make the table and its chains, whatever is there already."""
    table = f"{family} {TABLE}"
    local = "fib daddr type local jump hostports_all"
    return "".join(
        (
            f'add table {table} {{ comment "CNI portmap plugin"; }}\n',
            *(f"add chain {table} {name}\n" for name in ("hostports", "hostip_hostports", "hostports_all")),
            f"add chain {table} prerouting {{ type nat hook prerouting priority -100; }}\n",
            f"add chain {table} output {{ type nat hook output priority -100; }}\n",
            f"add chain {table} masquerading {{ type nat hook postrouting priority 100; }}\n" if snat else "",
            *(f"flush chain {table} {name}\n" for name in ("hostports_all", "prerouting", "output")),
            f"add rule {table} hostports_all jump hostip_hostports\n",
            f"add rule {table} hostports_all jump hostports\n",
            *(f"add rule {table} {name} {local}\n" for name in ("prerouting", "output")),
        )
    )


def removal(listed: list[dict[str, Any]], is_ours: Callable[[dict[str, Any]], bool]) -> str:
    """The lines that delete what is ours of a listing."""
    return "".join(
        f"delete rule {rule['family']} {rule['table']} {rule['chain']} handle {rule['handle']}\n"
        for rule in nftables.rules(listed)
        if is_ours(rule)
    )


def belongs(call: Call, pods: Collection[str]) -> Callable[[dict[str, Any]], bool]:
    """Whether a rule is this attachment's. The Go plugin's comment is the container alone: there the address decides,
    and where no address is known, all of the container's are meant."""
    mine = owner.of(call)

    def is_ours(rule: dict[str, Any]) -> bool:
        comment = rule.get("comment", "")
        return comment == mine or (comment == call.container_id and (not pods or target(rule)[0] in pods))

    return is_ours


def target(rule: Mapping[str, Any]) -> tuple[str, int]:
    """The address that a rule is about, and the port that it translates to; "" and 0 for none."""
    address = ""
    for each in rule["expr"]:
        if "dnat" in each:
            return each["dnat"].get("addr", ""), each["dnat"].get("port", 0)
        match = each.get("match", {})
        if match.get("left", {}) in ({"payload": {"protocol": one, "field": "daddr"}} for one in FAMILIES):
            address = match["right"] if isinstance(match["right"], str) else ""
    return address, 0


def ports(rule: Mapping[str, Any]) -> tuple[str, int]:
    """Protocol and port that a rule matches."""
    for each in rule["expr"]:
        payload = each.get("match", {}).get("left", {}).get("payload", {}) if "match" in each else {}
        if payload.get("field") == "dport":
            return payload["protocol"], each["match"]["right"]
    return "", 0


# --- doing --------------------------------------------------------------------------------------------------------


def add(call: Call) -> Result:
    wanted, result = _parsed(call), prev_result(call)
    if result is None:
        raise failed("must be called as chained plugin")
    if not wanted.mappings:
        return result
    check_servable(call)
    pods = pod_addresses(result, call.ifname)
    comment = owner.of(call)
    is_ours = belongs(call, pods.values())
    with Undo() as undo:
        for family, pod in pods.items():
            undo.then(_replace, family, is_ours)
            lines = frame(family, wanted.snat) + rules(wanted, family, pod, comment)
            try:
                _replace(family, is_ours, lines)
            except KernelError as why:
                raise _with_condition(why, wanted, family) from None
        if wanted.snat and "ip" in pods:
            _route_localnet(pods["ip"])
    _forget_flows(wanted.mappings)
    return result


def _with_condition(why: KernelError, wanted: Settings, family: str) -> Exception:
    """nft's refusal together with what we do not know to be nft's words."""
    condition = wanted.conditions[family]
    key = "conditionsV6" if family == "ip6" else "conditionsV4"
    return failed(f"nft refuses the rules with {key} {quote(condition)}: {why}") if condition else why


def delete(call: Call) -> None:
    wanted = _parsed(call)
    if not wanted.mappings:
        return
    try:
        result = prev_result(call)
    except CniError:
        result = None
    pods = {} if result is None else pod_addresses(result, call.ifname)

    def clean(family: str) -> None:
        _replace(family, belongs(call, pods.values()))
        _remove_chain(family, hashed(28, "CNI-DN-", call.network + call.container_id))

    try:
        all_of(lambda: clean("ip"), lambda: clean("ip6"))
    except NotSupported as why:
        sys.stderr.write(f"{why}: whoever has no nft has no rules\n")


def check(call: Call) -> None:
    wanted, result = settings(call), prev_result(call)
    if result is None:
        raise failed("Required prevResult missing")
    if not wanted.mappings:
        return
    check_servable(call)
    pods = pod_addresses(result, call.ifname)
    for family, pod in pods.items():
        _check_family(call, wanted, family, pod)


def _check_family(call: Call, wanted: Settings, family: str, pod: str) -> None:
    """Every rule that ADD made is there, and is come to. Raises CniError."""
    is_ours = belongs(call, (pod,))
    there = nftables.rules(nftables.list_table(family, TABLE))
    forwarded = [(*ports(each), *target(each)) for each in there if each["chain"] == "hostports" and is_ours(each)]
    needed = [each for each in wanted.mappings if each.concerns(family)]
    for each in needed:
        if (each.protocol, each.host_port, pod, each.container_port) not in forwarded:
            raise failed('missing hostport rules in "hostports" chain')
    if needed and wanted.snat:
        found = sum(each["chain"] == "masquerading" and is_ours(each) for each in there)
        if found < (2 if family == "ip" and not wanted.masquerade_all else 1):
            raise failed('missing masquerade rules in "masquerading" chain')
    jumps = {(each["chain"], one["jump"]["target"]) for each in there for one in each["expr"] if "jump" in one}
    for chain, to in (("prerouting", "hostports_all"), ("output", "hostports_all"), ("hostports_all", "hostports")):
        if (chain, to) not in jumps:
            raise failed(f'missing jump to "{to}" in "{chain}" chain')


def gc(call: Call) -> None:
    """Takes away the rules of this network's other attachments. Those that the Go plugin made do not say their network,
    and stay."""
    is_stale = owner.stale(call)
    for family in FAMILIES:
        _replace(family, lambda rule: is_stale(rule.get("comment", "")))


def status(call: Call) -> None:
    """Raises CniError 50 where nftables cannot be used."""
    _parsed(call)
    check_servable(call)
    try:
        for family in FAMILIES:
            nftables.list_table(family, TABLE)
    except (KernelError, NotSupported) as why:
        raise CniError(Code.NOT_AVAILABLE, f"portmap cannot use nftables: {why}") from None


def _parsed(call: Call) -> Settings:
    try:
        return settings(call)
    except CniError as why:
        raise CniError(why.code, f"failed to parse config: {why.msg}", why.details) from None


def _replace(family: str, is_ours: Callable[[dict[str, Any]], bool], lines: str = "") -> None:
    """These rules by what the lines add, in one step."""
    nftables.change(family, TABLE, lambda there: removal(there, is_ours) + lines)


def _remove_chain(family: str, chain: str) -> None:
    """The chain that the Go plugin made of an attachment with iptables (nft's), and what leads to it."""

    def lines(there: list[dict[str, Any]]) -> str:
        if not any(item.get("chain", {}).get("name") == chain for item in there):
            return ""
        leading = removal(there, lambda rule: any(_leads(each, chain) for each in rule["expr"]))
        return f"{leading}flush chain {family} nat {chain}\ndelete chain {family} nat {chain}\n"

    if nftables.list_chain(family, "nat", chain):
        nftables.change(family, "nat", lines)


def _leads(expression: Any, chain: str) -> bool:
    return isinstance(expression, dict) and expression.get("jump") == {"target": chain}


def _route_localnet(pod: str) -> None:
    """Packets from 127.0.0.1 may leave by the link that leads to the container."""
    from tortie.kernel import links, sysctl
    from tortie.kernel.netlink import Netlink
    from tortie.kernel.plain_routes import dev_to

    with Netlink() as nl:
        try:
            link = links.get_link(nl, dev_to(nl, pod)).name
        except (KernelError, NotFound):
            return  # no route: nothing leads there, from 127.0.0.1 or elsewhere
    sysctl.write(f"net/ipv4/conf/{link}/route_localnet", 1)


def _forget_flows(mappings: Sequence[PortMapping]) -> None:
    """Deletes what connection tracking knows of UDP to these ports: without, a client that asked before the port was
    there, and still asks, stays where it was sent then."""
    wanted = {(each.host_port, each.host_ip) for each in mappings if each.protocol == "udp"}
    if not wanted:
        return
    from tortie.kernel.conntrack import Conntrack

    def is_stale(flow: Flow) -> bool:
        to = flow.opened
        ways = ((to.destination_port, ""), (to.destination_port, str(to.destination)))
        return to.protocol == UDP and not wanted.isdisjoint(ways)

    try:
        with Conntrack() as table:
            stale = [each for each in table.flows() if is_stale(each)]
            for flow, why in table.delete(stale):
                sys.stderr.write(f"{flow}: {why}\n")
    except (KernelError, NotSupported) as why:
        sys.stderr.write(f"flows to the host's UDP ports may go on as before: {why}\n")


PLUGIN = Plugin("portmap", add, delete, check, gc, status)
