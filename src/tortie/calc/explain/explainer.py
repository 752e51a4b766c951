"""Questions about connections, answered for one moment of a cluster."""

from __future__ import annotations

from collections.abc import Iterable

from tortie.base.addr import IP
from tortie.base.errors import ConfigError
from tortie.calc.cluster import Cluster
from tortie.calc.explain.explanation import Explanation
from tortie.calc.explain.journey import Journey
from tortie.calc.explain.parties import Parties
from tortie.calc.explain.party import Party
from tortie.calc.explain.past import past_the_rules
from tortie.calc.explain.picture import Picture
from tortie.calc.explain.services import Services
from tortie.model.meta import Resource
from tortie.model.policy import PORT_PROTOCOLS, no_protocol, protocol_number
from tortie.policy.verdict import Packet

SOURCE_PORT = 40000
"""Where connections come from unless somebody says otherwise: a port of no service."""
ECHO = {4: 8, 6: 128}
"""The ICMP type of an echo request, by IP version (RFC 792, RFC 4443)."""
_UDPLITE = 136


class Explainer:
    """`cluster` must be one with `node=None`. `also` are resources that it does not keep: services with their slices,
    K8sNodes, whose zones count for them, and block affinities, which say what a route is for."""

    def __init__(self, cluster: Cluster, also: Iterable[Resource] = ()) -> None:
        everything = list(also)
        self.state = cluster.state()
        self._picture = Picture(cluster, self.state, everything)
        self._parties = Parties(cluster, self.state, self._picture, Services(self.state, everything))

    def party(self, text: str) -> Party:
        """Who is meant: see `parties`. Raises NotFound; ConfigError, also for words that mean several."""
        return self._parties.one(text)

    def parties(self, text: str, protocol: str = "tcp", port: int = 80, source: Party | None = None) -> list[Party]:
        """All who are meant: of a service each backend behind the port that `source` may get, or the address where it
        gets none. Raises NotFound, ConfigError."""
        return self._parties.every(text, protocol, port, source)

    def port(self, party: Party, protocol: str, name: str) -> int:
        """The port that a party declares under a name. Raises ConfigError."""
        number = protocol_number(protocol)
        for known, of, port in party.ports:
            if (known, of) == (name, number):
                return port
        names = ", ".join(sorted({known for known, of, _ in party.ports if of == number}))
        text = f"its {protocol} ports with a name are {names}" if names else f"it has no {protocol} ports with a name"
        raise ConfigError(f'{party.name} has no port "{name}": {text}', "--port")

    def explain(
        self,
        source: Party,
        destination: Party,
        protocol: str,
        port: int,
        version: int,
        *,
        source_port: int = SOURCE_PORT,
        icmp: tuple[int, int] | None = None,
    ) -> Explanation:
        """What becomes of a connection's first packet. `icmp` is type and code, an echo request if not given.

        Raises ConfigError when an end has no address of the IP version, or the protocol is none.
        """
        number = protocol_number("ICMPv6" if protocol.lower() in ("icmp", "1") and version == 6 else protocol)
        if number is None:
            raise ConfigError(no_protocol(protocol), "--protocol")
        lead = destination.translation(version)
        port = lead.port or port if lead is not None else port
        destination_ip = lead.address if lead is not None else destination.ip(version)
        source_ip = self._source(source, destination, version)
        for party, ip in ((source, source_ip), (destination, destination_ip)):
            if ip is None:
                raise ConfigError(f"{party.name} has no IPv{version} address")
        assert source_ip is not None
        assert destination_ip is not None
        kind, code = icmp or (ECHO[version], 0)
        packet = Packet(source_ip, destination_ip, number, source_port, port, kind, code)
        journey = Journey(self._picture, source, destination, packet)
        steps = tuple(journey.steps())
        allowed = all(step.allowed for step in steps)
        past = tuple(past_the_rules(self._picture, source, destination, number)) if allowed else ()
        is_icmp = number in (1, 58)
        return Explanation(
            source,
            destination,
            version,
            protocol.lower(),
            port,
            steps,
            tuple(journey.routes),
            source_port,
            (kind, code) if is_icmp else None,
            past,
        )

    def _source(self, source: Party, destination: Party, version: int) -> IP | None:
        """What the packet comes from: a process of a node speaks to pods in a tunnel from the tunnel's address."""
        to, lead = destination.ip(version), destination.translation(version)
        if lead is not None and lead.door is not None:
            return source.ip(version)  # of the way to the service; it is another's when it has been translated
        if source.is_pod or not source.node or to is None or not destination.is_pod or source.node == destination.node:
            return source.ip(version)
        return self._picture.tunnel_source(source.node, to, destination.node) or source.ip(version)

    def versions(self, source: Party, destination: Party) -> list[int]:
        """The IP versions that both ends have."""
        return [version for version in (4, 6) if source.ip(version) and destination.ip(version)]


def has_ports(protocol: str) -> bool:
    return protocol_number(protocol) in (*PORT_PROTOCOLS, _UDPLITE)
