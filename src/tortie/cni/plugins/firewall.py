"""firewall: lets what a container sends, and the answers to it, through the host. Chained behind an interface plugin.

    backend                  `iptables`, `nftables`, `firewalld`; else firewalld if it runs, otherwise iptables
    ingressPolicy (open)     `same-bridge`: nothing comes from other bridges; `isolated`: nor from the same one
    iptablesAdminChainName   (CNI-ADMIN) a chain that is asked first, for operators to fill
    firewalldZone            (trusted) the zone that the container's addresses are put into

    FORWARD ─► CNI-ISOLATION-STAGE-1 ── leaves the bridge ─► CNI-ISOLATION-STAGE-2 ── into an isolated bridge ─► drop
            └► CNI-FORWARD ─► CNI-ADMIN ... then: to the container, and established: accept; from it: accept

An accept only counts in the table where it is: in another it cannot undo a drop of iptables' FORWARD. So the rules are
in iptables' own table, and written by iptables, which cannot read what nft writes there about connections. Where there
is no iptables, there is no FORWARD of its, and the same chains are in nft's table `inet cni_firewall`.
Comments of rules say whose they are. Source: plugins/meta/firewall of the CNI reference plugins.
"""

from __future__ import annotations

import os
import sys

from tortie.base.errors import KernelError, NotSupported
from tortie.base.record import record
from tortie.cni import nftables, owner, programs
from tortie.cni.interface import canonical, failed
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Result, prev_result
from tortie.cni.spec import SUPPORTED_VERSIONS, Call, CniError, Code, member, quote
from tortie.kernel.children import Alone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    Have = Mapping[str, Sequence[tuple[str, str]]]
    """The rules of a table by chain: the text of each, and what deletes it."""

VERSIONS = SUPPORTED_VERSIONS[4:]
FORWARD, PRIVATE = "FORWARD", "CNI-FORWARD"
STAGE_1, STAGE_2 = "CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"
ADMIN = "CNI-ADMIN"
OVERRIDES = "CNI firewall plugin admin overrides"
OURS = "CNI firewall plugin rules"
ANY_POLICY = f"{OURS} (ingressPolicy: same-bridge|isolated)"
VERDICTS = ("accept", "drop", "return")
POLICIES = ("open", "same-bridge", "isolated")
TABLE = "cni_firewall"
TRIES = 5
"""How often it is decided anew when somebody else made the same chain meanwhile."""


# --- what is wanted -----------------------------------------------------------------------------------------------


@record(frozen=True, slots=True)
class Rule:
    """A rule of a chain, in no language. `first` is before all that is there; `outside` is any link but `out`."""

    chain: str
    verdict: str  # accept, drop, return, or a chain to go to
    comment: str = ""
    src: str = ""
    dst: str = ""
    established: bool = False
    into: str = ""
    out: str = ""
    outside: str = ""
    first: bool = False

    @property
    def family(self) -> str:
        """ "4" or "6"; "" for both."""
        address = self.src or self.dst
        return "" if not address else "6" if ":" in address else "4"


@record(frozen=True, slots=True)
class Settings:
    """The configuration, read."""

    backend: str
    admin: str
    zone: str
    policy: str


def settings(call: Call) -> Settings:
    """Raises CniError."""
    conf = call.conf
    policy = member(conf, "ingressPolicy", str, "") or "open"
    if policy not in POLICIES:
        raise failed(f"unknown ingress policy: {quote(policy)}")
    admin = member(conf, "iptablesAdminChainName", str, "") or ADMIN
    if not admin.isascii() or not admin.replace("-", "").replace("_", "").isalnum() or len(admin) > 28:
        raise failed(f"iptablesAdminChainName: {quote(admin)} cannot be the name of a chain of iptables")
    return Settings(
        member(conf, "backend", str, ""), admin, member(conf, "firewalldZone", str, "") or "trusted", policy
    )


def shared_rules(admin: str) -> list[Rule]:
    """What leads to the containers' rules."""
    return [
        Rule(FORWARD, PRIVATE, OURS, first=True),
        Rule(PRIVATE, admin, OVERRIDES, first=True),
    ]


def container_rules(ips: Iterable[str], comment: str) -> list[Rule]:
    """Of each address: what it gets answered, and all that it sends. Without comment, as the Go plugin writes them."""
    found: list[Rule] = []
    for ip in ips:
        found.append(Rule(PRIVATE, "accept", comment, dst=ip, established=True))
        found.append(Rule(PRIVATE, "accept", comment, src=ip))
    return found


def isolation_rules(policy: str, bridge: str) -> list[Rule]:
    """In the order in which they are to be put there, `first` before what was `first` already."""
    if policy == "open":
        return []
    concrete = f"{OURS} (ingressPolicy: {policy})"
    isolated = [Rule(STAGE_1, "drop", concrete, into=bridge, out=bridge, first=True)] if policy == "isolated" else []
    return [
        Rule(FORWARD, STAGE_1, ANY_POLICY, first=True),
        *isolated,
        Rule(STAGE_1, STAGE_2, concrete, into=bridge, outside=bridge, first=True),
        Rule(STAGE_1, "return", ANY_POLICY),
        Rule(STAGE_2, "drop", concrete, out=bridge, first=True),
        Rule(STAGE_2, "return", ANY_POLICY),
    ]


def bridge_of(result: Result, policy: str) -> str:
    """The name of the bridge that a policy is about; "" for the policy that needs none. Raises CniError."""
    if policy == "open":
        return ""
    if not result.interfaces:
        raise failed(
            f"interface needs to be set for ingress policy {quote(policy)}, "
            'make sure to chain "firewall" plugin with "bridge"'
        )
    name = result.interfaces[0].name
    if '"' in name or " " in name:
        raise failed(f"{quote(name)} cannot be the name of a bridge")
    return name


def addresses(result: Result) -> list[str]:
    return [canonical(ip.address.partition("/")[0]) for ip in result.ips]


def missing(wanted: Iterable[Rule], have: Have, words: Callable[[Rule], str]) -> list[Rule]:
    return [rule for rule in wanted if all(words(rule) != text for text, _ in have.get(rule.chain, ()))]


def new_chains(wanted: Iterable[Rule], have: Have) -> list[str]:
    """Those that rules are in or lead to, and that are not there."""
    named = [name for rule in wanted for name in (rule.chain, rule.verdict) if name not in VERDICTS]
    return [name for name in dict.fromkeys(named) if name != FORWARD and name not in have]


# --- in the words of iptables -------------------------------------------------------------------------------------

IPTABLES = {"4": "iptables", "6": "ip6tables"}


def iptables_words(rule: Rule) -> str:
    """A rule as iptables-save prints it, without its chain."""
    words: list[str] = []
    for option, ip in (("-s", rule.src), ("-d", rule.dst)):
        words += [f"{option} {ip}/{128 if ':' in ip else 32}"] if ip else []
    for option, link in (("-i", rule.into), ("-o", rule.out), ("! -o", rule.outside)):
        words += [f"{option} {link}"] if link else []
    words += [f'-m comment --comment "{rule.comment}"'] if rule.comment else []
    words += ["-m conntrack --ctstate RELATED,ESTABLISHED"] if rule.established else []
    verdict = rule.verdict.upper() if rule.verdict in VERDICTS else rule.verdict
    return " ".join((*words, f"-j {verdict}"))


def iptables_script(wanted: Sequence[Rule], unwanted: Sequence[tuple[str, str]], have: Have) -> str:
    """For iptables-restore: makes what is missing, deletes rules (chain and text); "" for nothing."""
    needed = missing(wanted, have, iptables_words)
    lines = [f"-N {name}" for name in new_chains(needed, have)]
    lines += [f"-D {chain} {text}" for chain, text in unwanted]
    for rule in needed:
        lines.append(f"{'-I' if rule.first else '-A'} {rule.chain} {iptables_words(rule)}")
    return "\n".join(("*filter", *lines, "COMMIT", "")) if lines else ""


def saved(text: str) -> dict[str, list[tuple[str, str]]]:
    """What iptables-save has printed."""
    have: dict[str, list[tuple[str, str]]] = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "-A":
            chain, _, rule = rest.partition(" ")
            have.setdefault(chain, []).append((rule, rule))
        elif word.startswith(":"):
            have.setdefault(word[1:], [])
    return have


def comment_of(text: str) -> str:
    """The comment of a rule in the words of iptables, or of nft."""
    return text.partition('comment "')[2].partition('"')[0]


class Iptables:
    """The table `filter` of iptables, be it nft's or the legacy one: whatever the machine's `iptables` is."""

    def __init__(self, family: str) -> None:
        self.program = IPTABLES[family]
        self.words = iptables_words

    def have(self) -> Have:
        """Raises NotSupported in the program's words."""
        return saved(programs.output([f"{self.program}-save", "-t", "filter"]))

    def change(self, wanted: Sequence[Rule], unwanted: Callable[[str], bool] = lambda _: False) -> None:
        """Raises NotSupported. To look whether a rule is there and to make it are two steps: `Alone`, or two of us
        would make the same one."""
        with Alone():
            for left in reversed(range(TRIES)):
                have = self.have()
                gone = [(PRIVATE, text) for text, _ in have.get(PRIVATE, ()) if unwanted(text)]
                script = iptables_script(wanted, gone, have)
                try:
                    if script:
                        programs.output([f"{self.program}-restore", "--noflush", "-w"], script)
                    return
                except NotSupported:
                    if not left:
                        raise


# --- in the words of nft ------------------------------------------------------------------------------------------


def nft_words(rule: Rule) -> str:
    """A rule as nft prints it."""
    words: list[str] = []
    for option, ip in (("saddr", rule.src), ("daddr", rule.dst)):
        words += [f"{'ip6' if ':' in ip else 'ip'} {option} {ip}"] if ip else []
    for option, link in (("iifname", rule.into), ("oifname", rule.out), ("oifname !=", rule.outside)):
        words += [f'{option} "{link}"'] if link else []
    words += ["ct state established,related"] if rule.established else []
    words += [rule.verdict if rule.verdict in VERDICTS else f"jump {rule.verdict}"]
    return " ".join((*words, f'comment "{rule.comment}"')) if rule.comment else " ".join(words)


def nft_script(wanted: Sequence[Rule], unwanted: Sequence[tuple[str, str]], have: Have) -> str:
    """Makes what is missing, deletes rules (chain and handle); "" for nothing."""
    needed = missing(wanted, have, nft_words)
    if not needed and not unwanted:
        return ""
    lines = [f"add table inet {TABLE}"]
    lines += [f"add chain inet {TABLE} {name}" for name in new_chains(needed, have)]
    if needed and FORWARD not in have:
        lines.append(f"add chain inet {TABLE} {FORWARD} {{ type filter hook forward priority 0; policy accept; }}")
    lines += [f"delete rule inet {TABLE} {chain} handle {handle}" for chain, handle in unwanted]
    for rule in needed:
        lines.append(f"{'insert' if rule.first else 'add'} rule inet {TABLE} {rule.chain} {nft_words(rule)}")
    return "".join(f"{line}\n" for line in lines)


def listed(table: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """What `nft -j list table` has printed, in our words for rules of our kind."""
    have: dict[str, list[tuple[str, str]]] = {}
    for item in table:
        if "chain" in item:
            have.setdefault(item["chain"]["name"], [])
        elif "rule" in item:
            rule = item["rule"]
            words = [_nft_expression(each) for each in rule["expr"]]
            words += [f'comment "{rule["comment"]}"'] if "comment" in rule else []
            have.setdefault(rule["chain"], []).append((" ".join(words), str(rule["handle"])))
    return have


def _nft_expression(each: Mapping[str, Any]) -> str:
    [(kind, body)] = each.items()
    if kind == "jump":
        return f"jump {body['target']}"
    if kind != "match":
        return str(kind)
    left, right, negation = body["left"], body["right"], "!= " if body["op"] == "!=" else ""
    if "payload" in left:
        return f"{left['payload'].get('protocol')} {left['payload'].get('field')} {negation}{right}"
    if "meta" in left:
        return f'{left["meta"]["key"]} {negation}"{right}"'
    if "ct" in left and isinstance(right, list):
        return f"ct {left['ct']['key']} {negation}{','.join(sorted(map(str, right)))}"
    return str(kind)


class Nft:
    """The table `inet cni_firewall`."""

    def __init__(self) -> None:
        self.words = nft_words

    def have(self) -> Have:
        return listed(nftables.list_table("inet", TABLE))

    def change(self, wanted: Sequence[Rule], unwanted: Callable[[str], bool] = lambda _: False) -> None:
        """Raises KernelError, NotSupported."""

        def decide(there: Any) -> str:
            have = listed(there)
            gone = [(PRIVATE, handle) for text, handle in have.get(PRIVATE, ()) if unwanted(text)]
            return nft_script(wanted, gone, have)

        with Alone():
            nftables.change("inet", TABLE, decide)


# --- firewalld ----------------------------------------------------------------------------------------------------

FIREWALLD = "org.fedoraproject.FirewallD1"
BUS = "/run/dbus/system_bus_socket"
PATIENCE = 10
"""Seconds for an answer on the bus."""


def firewalld_runs() -> bool:
    if "DBUS_SYSTEM_BUS_ADDRESS" not in os.environ and not os.path.exists(BUS):
        return False
    name = "org.freedesktop.DBus"
    try:
        return _busctl(name, "/org/freedesktop/DBus", name, "NameHasOwner", "s", FIREWALLD) == "b true"
    except NotSupported:
        return False


def _zone(method: str, zone: str, ip: str) -> str:
    """Raises NotSupported in firewalld's words."""
    path, interface = "/" + FIREWALLD.replace(".", "/"), f"{FIREWALLD}.zone"
    return _busctl(FIREWALLD, path, interface, method, "ss", zone, f"{ip}/{128 if ':' in ip else 32}")


def _busctl(*words: str) -> str:
    return programs.output(["busctl", "--system", f"--timeout={PATIENCE}", "call", *words]).strip()


def _add_to_zone(zone: str, ip: str) -> None:
    try:
        _zone("addSource", zone, ip)
    except NotSupported as why:
        if "ZONE_ALREADY_SET" not in str(why):
            raise


def _remove_from_zone(zone: str, ip: str) -> None:
    try:
        _zone("removeSource", zone, ip)
    except NotSupported as why:
        sys.stderr.write(f"{why}\n")


# --- the verbs ----------------------------------------------------------------------------------------------------


def uses_firewalld(wanted: Settings) -> bool:
    """Raises CniError when it is asked for and does not run."""
    if wanted.backend in ("iptables", "nftables"):
        return False
    runs = firewalld_runs()
    if wanted.backend == "firewalld" and not runs:
        raise failed('backend "firewalld": firewalld is not on the system bus: start it, or leave the backend out')
    return runs


def tables(wanted: Settings) -> dict[str, Iptables | Nft]:
    """By family of addresses ("" is both) where rules are."""
    if wanted.backend == "nftables" or programs.find("iptables") is None:
        return {"": Nft()}
    return {family: Iptables(family) for family in IPTABLES}


def add(call: Call) -> Result:
    wanted, result = settings(call), prev_result(call)
    if result is None:
        raise failed("missing prevResult from earlier plugin")
    bridge, ips = bridge_of(result, wanted.policy), addresses(result)
    with Undo() as undo:
        if uses_firewalld(wanted):
            for ip in ips:
                _add_to_zone(wanted.zone, ip)
                undo.then(_remove_from_zone, wanted.zone, ip)
            rules = []
        else:
            rules = shared_rules(wanted.admin) + container_rules(ips, owner.of(call))
            undo.then(_withdraw, wanted, owner.of(call), ())
        _install(wanted, rules, isolation_rules(wanted.policy, bridge))
    return result


def _install(wanted: Settings, rules: Sequence[Rule], isolation: Sequence[Rule]) -> None:
    """Each family's rules where they belong. Isolation also of a family that the container has no address of, as far
    as the machine can."""
    for family, table in tables(wanted).items():
        own = [rule for rule in rules if rule.family and family in ("", rule.family)]
        chosen = [*([rule for rule in rules if not rule.family] if own else []), *own, *isolation]
        try:
            if chosen:
                table.change(chosen)
        except NotSupported as why:
            if own:
                raise
            sys.stderr.write(f"no isolation of IPv{family}: {why}\n")


def _withdraw(wanted: Settings, comment: str, ips: Sequence[str]) -> None:
    """Deletes the rules with this comment, and those that the Go plugin would have made for the addresses."""
    theirs = container_rules(ips, "")

    def is_gone(table: Iptables | Nft) -> Callable[[str], bool]:
        texts = {table.words(rule) for rule in theirs}
        return lambda text: comment_of(text) == comment or text in texts

    _delete(wanted, is_gone)


def _delete(wanted: Settings, is_gone: Callable[[Iptables | Nft], Callable[[str], bool]]) -> None:
    """What cannot be deleted, since the machine has no such table, is not there."""
    for table in tables(wanted).values():
        try:
            table.change((), is_gone(table))
        except (NotSupported, KernelError) as why:
            sys.stderr.write(f"{why}\n")


def delete(call: Call) -> None:
    wanted = settings(call)
    try:
        result = prev_result(call)
    except CniError:
        result = None
    ips = [] if result is None else addresses(result)
    if wanted.backend not in ("iptables", "nftables") and firewalld_runs():
        for ip in ips:
            _remove_from_zone(wanted.zone, ip)
    _withdraw(wanted, owner.of(call), ips)


def check(call: Call) -> None:
    wanted, result = settings(call), prev_result(call)
    if result is None:
        raise failed("missing prevResult from earlier plugin")
    ips = addresses(result)
    rules = isolation_rules(wanted.policy, bridge_of(result, wanted.policy))
    if uses_firewalld(wanted):
        for ip in ips:
            if _zone("querySource", wanted.zone, ip) != "b true":
                raise failed(f"{ip} is not in firewalld's zone {quote(wanted.zone)}")
        ips = []
    elif ips:
        rules += shared_rules(wanted.admin)
    _check_rules(wanted, rules, ips, owner.of(call))


def _check_rules(wanted: Settings, rules: Sequence[Rule], ips: Sequence[str], comment: str) -> None:
    """All are there; a container's with our comment or, as the Go plugin makes them, without. Raises CniError."""
    for family, table in tables(wanted).items():
        own = [ip for ip in ips if family in ("", "6" if ":" in ip else "4")]
        if not own and (ips or not rules):
            continue  # a family without addresses has no rules of ours
        have = table.have()
        absent = missing(rules, have, table.words)
        if missing(container_rules(own, ""), have, table.words):
            absent += missing(container_rules(own, comment), have, table.words)
        if absent:
            raise failed(f"rule {quote(table.words(absent[0]))} is not in chain {absent[0].chain}")


def gc(call: Call) -> None:
    """Deletes the rules of this network's other attachments. Those that the Go plugin made do not say whose they are,
    and stay; firewalld's sources, too."""
    is_stale = owner.stale(call)
    _delete(settings(call), lambda _: lambda text: is_stale(comment_of(text)))


def status(call: Call) -> None:
    """Raises CniError 50 where no rule can be written."""
    wanted = settings(call)
    try:
        uses_firewalld(wanted)
        next(iter(tables(wanted).values())).have()
    except (NotSupported, KernelError, CniError) as why:
        raise CniError(Code.NOT_AVAILABLE, f"firewall cannot write rules: {why}") from None


PLUGIN = Plugin("firewall", add, delete, check, gc, status, VERSIONS)
