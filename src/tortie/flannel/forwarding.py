"""Other people's chains that drop what they do not know: which of them keep pods from one another, and the remedy.

    a packet that is forwarded ─► chain 1: accept ─► chain 2: policy drop ✗       an accept ends only its own chain

Read from nft's JSON. Decisions on values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tortie.base.addr import Net, parse_ip, parse_net, within
from tortie.base.errors import ConfigError

OWN = ("flannel-ipv4", "flannel-ipv6")
FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}
WORDS = {4: "ip", 6: "ip6"}
DOCKER = "DOCKER-USER"
"""Docker's chain for rules of people, before its own."""
HARMLESS = ("counter", "accept", "xt")
Object = Mapping[str, Any]


def dropping(chains: Iterable[Object]) -> Iterator[Object]:
    """The base chains that drop by themselves what is forwarded; none of flannel's."""
    for item in chains:
        chain = item.get("chain", {})
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain.get("table") not in OWN:
            yield chain


def table_of(chain: Object) -> str:
    return f"{chain['family']} {chain['table']}"


def closed(networks: Iterable[Net], chains: Sequence[Object], rules: Mapping[str, Sequence[Object]]) -> Iterator[str]:
    """A line for each chain that lets a network's packets through in at most one direction."""
    for network in networks:
        for chain in dropping(chains):
            if chain["family"] not in FAMILIES[network.version]:
                continue
            table = table_of(chain)
            listed = rules.get(table, ())
            if not all(_accepted(listed, network, side) for side in ("saddr", "daddr")):
                yield (
                    f"chain {chain['name']} of table {table} drops what is forwarded and none of its rules accepts "
                    f"{network}, and what flannel's own chain accepts is dropped there all the same: "
                    f"{_remedy(chain, network, chains)}"
                )


def _remedy(chain: Object, network: Net, chains: Iterable[Object]) -> str:
    word = WORDS[network.version]
    if chain["table"] != "filter" or chain["name"] != "FORWARD" or chain["family"] == "inet":
        insert = f"nft insert rule {table_of(chain)} {chain['name']} {word}"
        return f"{insert} saddr {network} accept; {insert} daddr {network} accept"
    command = "iptables" if network.version == 4 else "ip6tables"
    names = {item["chain"]["name"] for item in chains if item.get("chain", {}).get("family") == chain["family"]}
    into = DOCKER if DOCKER in names else "FORWARD"
    return f"{command} -I {into} -s {network} -j ACCEPT; {command} -I {into} -d {network} -j ACCEPT"


def _accepted(listed: Iterable[Object], network: Net, side: str) -> bool:
    """Whether some rule accepts packets from the network (`saddr`) or to it (`daddr`), whatever else they are."""
    return any(_accepts(item["rule"].get("expr", ()), network, side) for item in listed if "rule" in item)


def _accepts(expressions: Iterable[Object | None], network: Net, side: str) -> bool:
    """Of one rule: on no other condition than that."""
    accepts = False
    for expression in (one for one in expressions if one):
        word, value = next(iter(expression.items()))
        accepts = accepts or word == "accept"
        if word == "match":
            if not _covers(value, network, side):
                return False
        elif word not in HARMLESS or (word == "xt" and (value or {}).get("name") not in (None, "comment")):
            return False
    return accepts


def _covers(match: Object, network: Net, side: str) -> bool:
    payload = match.get("left", {}).get("payload", {}) if isinstance(match.get("left"), Mapping) else {}
    if match.get("op") != "==" or payload != {"protocol": WORDS[network.version], "field": side}:
        return False
    right = match.get("right")
    try:
        if isinstance(right, Mapping):
            prefix = right["prefix"]
            return within(network, parse_net(f"{prefix['addr']}/{prefix['len']}"))
        return within(network, parse_net(str(parse_ip(str(right)))))
    except (ConfigError, KeyError):  # a set, a range, a name
        return False
