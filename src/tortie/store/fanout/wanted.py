"""What an agent is told of fan-out servers: by `--fanout`, or by the variables with which Felix is told of Typha.

FELIX_TYPHAADDR                HOST:PORT, several with commas
FELIX_TYPHAK8SSERVICENAME      a Service of Kubernetes, in FELIX_TYPHAK8SNAMESPACE (kube-system): its ready pods
FELIX_TYPHACAFILE, FELIX_TYPHACERTFILE, FELIX_TYPHAKEYFILE
                               TLS: who signs servers, our own certificate, its key
FELIX_TYPHACN, FELIX_TYPHAURISAN
                               what a server's certificate must have
"""

from __future__ import annotations

from collections.abc import Mapping

from tortie.model.service import EndpointSlice
from tortie.model.store import Store
from tortie.store.fanout.address import Address, addresses, of_service
from tortie.store.fanout.client import FanoutStore
from tortie.store.fanout.servers import Addresses, Patience, Servers
from tortie.store.fanout.tls import Tls

ADDRESS, SERVICE, NAMESPACE = "FELIX_TYPHAADDR", "FELIX_TYPHAK8SSERVICENAME", "FELIX_TYPHAK8SNAMESPACE"
CA, CERT, KEY = "FELIX_TYPHACAFILE", "FELIX_TYPHACERTFILE", "FELIX_TYPHAKEYFILE"
CN, URI = "FELIX_TYPHACN", "FELIX_TYPHAURISAN"
NO_SERVICE = ("", "none")
"""`none` is what Calico's manifests say."""


def by_fanout(
    direct: Store, given: str, who: str, environment: Mapping[str, str], patience: Patience | None = None
) -> Store:
    """`direct` by way of the servers that are `given` or in the environment; itself if there are none. `who` is a name
    for their logs. Raises ConfigError for addresses and files that cannot be."""
    where = addresses(given, "--fanout") or addresses(environment.get(ADDRESS, ""), ADDRESS)
    service = environment.get(SERVICE, "")
    if not where and service in NO_SERVICE:
        return direct
    tls = Tls(*(environment.get(name, "") for name in (CA, CERT, KEY, CN, URI))).checked(CA, CERT, KEY)
    asked = _these(where) if where else _behind(direct, service, environment.get(NAMESPACE) or "kube-system")
    return FanoutStore(direct, Servers(asked, tls, who, patience))


def _these(where: tuple[Address, ...]) -> Addresses:
    async def found() -> tuple[Address, ...]:
        return where

    return found


def _behind(direct: Store, service: str, namespace: str) -> Addresses:
    async def found() -> tuple[Address, ...]:
        return of_service((await direct.list(EndpointSlice, namespace)).items, service)

    return found
