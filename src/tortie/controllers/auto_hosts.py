"""Host endpoints that nobody has to write: one for all interfaces of every node, and those that templates ask for.

    KubeControllersConfiguration + Nodes ─► wanted ─┐
    host endpoints with our label ─► have ──────────┴─► changes: create, update, delete

Source: Calico's node controller in kube-controllers. Off unless `autoCreate` is Enabled; switched off, what was made
goes. A host endpoint without our label is somebody's own, and stays even under a name that we would use.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from datetime import timedelta

from msgspec.structs import replace

from tortie.base.addr import IP, parse_ip, parse_net
from tortie.base.errors import ConfigError, TortieError
from tortie.controllers.backoff import Backoff, at_once
from tortie.controllers.carry_out import carry_out
from tortie.controllers.configuration import NODE, Configured, Settings, locked
from tortie.controllers.unreadable import Unreadable
from tortie.ipam.pools import Matches
from tortie.model.controllers import AutoHostEndpointConfig, HostEndpointTemplate
from tortie.model.hostendpoint import EVERY_INTERFACE, HostEndpoint, HostEndpointSpec
from tortie.model.meta import Metadata
from tortie.model.node import Node, NodeBGPSpec, NodeSpec, NodeWireguardSpec
from tortie.model.store import Store
from tortie.policy.translate import DEFAULT_ALLOW

log = logging.getLogger(__name__)

CREATED_BY = "projectcalico.org/created-by"
CREATOR = "calico-kube-controllers"
SUFFIX = "auto-hep"
NAME_LIMIT = 253


@dataclass(frozen=True)
class Change:
    """What is to be done to a host endpoint: `verb` is create, update or delete."""

    verb: str
    endpoint: HostEndpoint

    def __str__(self) -> str:
        return f"{self.verb} {self.endpoint.title}"


def endpoint_name(*parts: str) -> str:
    """The parts and `auto-hep` joined; a name that would be too long is a hash of itself."""
    name = "-".join((*filter(None, parts), SUFFIX))
    if len(name) <= NAME_LIMIT:
        return name
    digest = base64.urlsafe_b64encode(hashlib.sha256(name.encode()).digest()).decode().lower()
    return "".join(char for char in digest if char not in "-_.=") + f"-{SUFFIX}"


@dataclass(frozen=True)
class Wanted:
    """The host endpoints that there should be. `unclear`: what could not be said and why; nothing is taken away then,
    for it might be wanted."""

    endpoints: tuple[HostEndpoint, ...] = ()
    unclear: tuple[str, ...] = ()


def survey(nodes: Iterable[Node], config: AutoHostEndpointConfig, matches: Matches) -> Wanted:
    """All of them, each node and template by itself."""
    found: list[HostEndpoint] = []
    unclear: list[str] = []
    if config.auto_create != "Enabled":
        return Wanted()
    for node in nodes:
        if config.create_default_host_endpoint != "Disabled":
            found.append(_endpoint(node, endpoint_name(node.name), EVERY_INTERFACE, addresses(node.spec)))
        for i, template in enumerate(config.templates):
            try:
                if not template.node_selector or matches(template.node_selector, node.labels):
                    found += _of_template(node, template)
            except (TortieError, re.error) as error:
                unclear.append(f"template {template.generate_name or i} for {node.title}: {error}")
    return Wanted(tuple(found), tuple(unclear))


def wanted(nodes: Iterable[Node], config: AutoHostEndpointConfig, matches: Matches) -> Iterator[HostEndpoint]:
    """All host endpoints that there should be, as far as that is clear."""
    yield from survey(nodes, config, matches).endpoints


def addresses(spec: NodeSpec) -> tuple[str, ...]:
    """A node's own: of BGP, of its tunnels, those that Kubernetes calls internal, of its interfaces; each once."""
    bgp, wireguard = spec.bgp or NodeBGPSpec(), spec.wireguard or NodeWireguardSpec()
    found = [
        bgp.ipv4_address,
        bgp.ipv6_address,
        bgp.ipv4_ipip_tunnel_addr,
        spec.ipv4_vxlan_tunnel_addr,
        spec.ipv6_vxlan_tunnel_addr,
        wireguard.interface_ipv4_address,
        wireguard.interface_ipv6_address,
        *(each.address for each in spec.addresses if each.type == "InternalIP"),
        *(address for interface in spec.interfaces for address in interface.addresses),
    ]
    return tuple(dict.fromkeys(_bare(each) for each in found if each))


def _of_template(node: Node, template: HostEndpointTemplate) -> Iterator[HostEndpoint]:
    nets = [parse_net(each) for each in template.interface_cidrs]

    def inside(every: Iterable[str]) -> tuple[str, ...]:
        return tuple(each for each in every if any(ip in net for ip in _ips(each) for net in nets))

    if not template.interface_pattern:
        found = inside(addresses(node.spec))
        if found:
            yield _endpoint(node, endpoint_name(node.name, template.generate_name), "", found, template)
        return
    for interface in node.spec.interfaces:
        own = tuple(map(_bare, interface.addresses))
        if re.search(template.interface_pattern, interface.name) and (not nets or inside(own)):
            name = endpoint_name(node.name, template.generate_name, interface.name)
            yield _endpoint(node, name, interface.name, inside(own) if nets else own, template)


def _endpoint(
    node: Node, name: str, interface: str, ips: tuple[str, ...], template: HostEndpointTemplate | None = None
) -> HostEndpoint:
    labels = {**node.labels, **(template.labels if template else {}), CREATED_BY: CREATOR}
    return HostEndpoint(
        metadata=Metadata(name=name, labels=labels, annotations=template.annotations if template else {}),
        spec=HostEndpointSpec(node=node.name, interface_name=interface, expected_ips=ips, profiles=(DEFAULT_ALLOW,)),
    )


def _ips(address: str) -> Iterator[IP]:
    """None for what is no address: nodes write them, and not every datastore looks at what is written."""
    try:
        yield parse_ip(_bare(address))
    except ConfigError:
        return


def _bare(address: str) -> str:
    """Without its prefix length."""
    return address.partition("/")[0]


def changes(want: Iterable[HostEndpoint], have: Iterable[HostEndpoint]) -> Iterator[Change]:
    """From one set to the other. What others made stays; raises nothing: a name that they have is passed over."""
    every = {each.name: each for each in have}
    wanting = {each.name: each for each in want}
    for name, each in every.items():
        if name not in wanting and each.labels.get(CREATED_BY) == CREATOR:
            yield Change("delete", each)
    for name, each in wanting.items():
        there = every.get(name)
        if there is None:
            yield Change("create", each)
        elif there.labels.get(CREATED_BY) != CREATOR:
            log.warning("%s is not ours: the host endpoint that should have that name is not made", there.title)
        elif _said(there) != _said(each):
            metadata = replace(there.metadata, labels=each.labels, annotations=each.metadata.annotations)
            yield Change("update", replace(each, metadata=metadata))


async def _stays(change: Change, listed: Set[str] | None, unreadable: Unreadable) -> bool:
    """Whether it would delete the host endpoint of a node that is there, and in no list. `listed`: None while there
    are to be none at all."""
    node = change.endpoint.spec.node
    if change.verb != "delete" or listed is None or not node or node in listed:
        return False
    return await unreadable.is_there(Node, node)


def _said(endpoint: HostEndpoint) -> tuple[object, ...]:
    return endpoint.spec, endpoint.labels, endpoint.metadata.annotations


class AutoHostEndpoints:
    """Decides and acts; each host endpoint on its own."""

    name = "auto-host-endpoints"
    option = NODE

    def __init__(
        self, store: Store, matches: Matches, *, configured: Configured | None = None, later: Backoff | None = None
    ) -> None:
        self._store = store
        self._matches = matches
        self._configured = configured or Configured()
        self.later = later or at_once()
        self._said: tuple[str, ...] = ()

    def period(self, settings: Settings) -> timedelta:
        return settings.period(NODE)

    async def run_once(self) -> int:
        """One pass; how many host endpoints could not be changed. Raises Unavailable."""
        auto = (await self._configured(self._store)).spec.controllers.node.host_endpoint
        have = (await self._store.list(HostEndpoint)).items
        if auto.auto_create != "Enabled" and not any(each.labels.get(CREATED_BY) == CREATOR for each in have):
            return 0
        if await locked(self._store):
            return 0
        nodes = (await self._store.list(Node)).items
        want = survey(nodes, auto, self._matches)
        for line in want.unclear:
            if line not in self._said:
                log.warning("%s", line)
        self._said = want.unclear
        todo = [each for each in changes(want.endpoints, have) if each.verb != "delete" or not want.unclear]
        listed = {each.name for each in nodes} if auto.auto_create == "Enabled" else None
        unreadable = Unreadable(self._store)
        return sum(
            [
                await carry_out(self._store, self.later, log, each, each.endpoint)
                for each in todo
                if not await _stays(each, listed, unreadable)
            ]
        )
