"""Which versions the servers of a datastore have: etcd's members, Kubernetes' API server. Files have none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

from msgspec.structs import replace

from tortie.base.errors import TortieError
from tortie.model.apiconfig import ApiConfig
from tortie.store.place import Place

PATIENCE = 3.0
"""Seconds that a server is given to say it."""


async def versions(place: Place, environment: Mapping[str, str]) -> dict[str, str]:
    """By server; in the place of a version, why it does not say one."""
    found: dict[str, str] = {}
    if place.backend == "etcd":
        members = [_of_etcd(place.config, url) for url in place.config.endpoints]
        found |= dict(zip(place.config.endpoints, await asyncio.gather(*members), strict=True))
    if place.backend == "kubernetes" or place.kubernetes_too:
        server, version = await _of_kubernetes(place.config, environment)
        found[server] = version
    return found


async def _of_etcd(config: ApiConfig, url: str) -> str:
    from aetcd import rpc

    from tortie.store.etcd.wire import Wire

    wire = Wire(replace(config, etcd_endpoints=url, etcd_discovery_srv=""), PATIENCE)
    try:
        told = await wire.ask("Status", rpc.StatusRequest())
    except TortieError as error:
        return str(error)
    finally:
        await wire.close()
    leads = ", leader" if told.leader and told.leader == told.header.member_id else ""
    return f"etcd {told.version}{leads}"


async def _of_kubernetes(config: ApiConfig, environment: Mapping[str, str]) -> tuple[str, str]:
    from tortie.store.kube.access import access
    from tortie.store.kube.client import Client

    client = Client(access(config, environment), patience=PATIENCE)
    try:
        told = json.loads(await client.request("GET", "/version"))
    except TortieError as error:
        return client.access.server, str(error)
    except ValueError:
        told = None
    finally:
        await client.close()
    version = told.get("gitVersion", "?") if isinstance(told, dict) else "?"
    return client.access.server, f"Kubernetes {version}"
