"""A host and its pods, each a network namespace, and the plugins of a directory called for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni_plugins import Caller, Said
from namespaces import Ns

Conf = Mapping[str, Any]


@dataclass
class Ground:
    """`conf` is of the network, with addresses from a `host-local` whose files are in `data`."""

    call: Caller
    host: Ns
    data: Path
    conf: dict[str, Any]
    make: Callable[..., Ns]
    pods: dict[str, Ns] = field(default_factory=dict)

    def pod(self, name: str) -> Ns:
        """The pod of that name, which is the id of its container, too; made if it is not there."""
        if name not in self.pods:
            self.pods[name] = self.make(name)
        return self.pods[name]

    def __call__(self, verb: str, name: str = "a", /, **conf: Any) -> Said:
        """A verb for a pod, with these members of the configuration other than in `conf`."""
        return self.call(verb, {**self.conf, **conf}, netns=self.pod(name).path, container=name)

    def add(self, name: str = "a", /, **conf: Any) -> Any:
        """The result of an ADD that must succeed."""
        said = self("ADD", name, **conf)
        assert said.code == 0, said
        return said.doc

    def done(self, verb: str, name: str = "a", /, **conf: Any) -> None:
        """A verb that must succeed, and says nothing."""
        said = self(verb, name, **conf)
        assert (said.code, said.stdout) == (0, ""), said

    def ipam(self, *subnets: str, **members: Any) -> dict[str, Any]:
        ranges = [[{"subnet": subnet}] for subnet in subnets]
        return {"type": "host-local", "dataDir": str(self.data), "ranges": ranges, **members}

    @property
    def held(self) -> set[str]:
        """The addresses that are reserved."""
        directory = self.data / self.conf["name"]
        return {each.name for each in directory.glob("*[.:]*") if each.name[0] in "0123456789abcdef"}

    def links(self, kind: str = "") -> set[str]:
        """The host's links but for lo and its way out."""
        return {
            each["ifname"]
            for each in self.host.json("link", "show")
            if each["ifname"] not in ("lo", "out") and kind in ("", each.get("linkinfo", {}).get("info_kind"))
        }

    def nft(self, family: str, table: str) -> list[dict[str, Any]]:
        """The rules of a table, which may not be there."""
        listed = json.loads(self.host.run("nft", "-j", "list", "ruleset"))["nftables"]
        rules = [each["rule"] for each in listed if "rule" in each]
        return [each for each in rules if (each["family"], each["table"]) == (family, table)]

    def chains(self, family: str, table: str) -> set[str]:
        listed = json.loads(self.host.run("nft", "-j", "list", "ruleset"))["nftables"]
        chains = [each["chain"] for each in listed if "chain" in each]
        return {each["name"] for each in chains if (each["family"], each["table"]) == (family, table)}


def addresses(ns: Ns, link: str, scope: str = "global") -> list[str]:
    """Of a link, with their prefix lengths."""
    return [
        f"{each['local']}/{each['prefixlen']}"
        for item in ns.json("addr", "show", "dev", link)
        for each in item["addr_info"]
        if each["scope"] == scope
    ]


def routes(ns: Ns, family: str = "-4") -> list[str]:
    """The routes of the main table in ip's words, shortened to destination, gateway, device, scope link and source."""
    return sorted(
        " ".join(
            [each["dst"]]
            + ([f"via {each['gateway']}"] if "gateway" in each else [])
            + [f"dev {each.get('dev')}"]
            + (["scope link"] if each.get("scope") == "link" else [])
            + ([f"src {each['prefsrc']}"] if "prefsrc" in each else [])
        )
        for each in ns.json(family, "route", "show")
        if not each["dst"].startswith("fe80:")
    )


def reaches(ns: Ns, ip: str, *options: str) -> bool:
    return " 0% packet loss" in ns.run("ping", "-n", "-c1", "-W1", *options, ip, check=False)


def outside(ground: Ground) -> Ns:
    """A machine that the host reaches and that knows no way to the pods: 192.0.2.9 and 2001:db8::9."""
    far = ground.make("outside")
    ground.host.ip("link", "add", "out", "type", "veth", "peer", "name", "eth0", "netns", far.name)
    for ns, link, number in ((ground.host, "out", 1), (far, "eth0", 9)):
        ns.ip("link", "set", link, "up")
        ns.ip("addr", "add", f"192.0.2.{number}/24", "dev", link)
        ns.ip("addr", "add", f"2001:db8::{number}/64", "dev", link, "nodad")
    return far
