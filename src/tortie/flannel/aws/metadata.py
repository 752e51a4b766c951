"""Who this instance is: its ID and region, by the metadata service that every instance has on its link.

    PUT /latest/api/token ─► a token ─► GET /latest/meta-data/...       version 2
                        404 or 405 ─► the same without one              version 1

`AWS_EC2_METADATA_SERVICE_ENDPOINT` and `AWS_EC2_METADATA_DISABLED` mean what they mean to AWS's own programs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from tortie.base.errors import ConfigError, Unavailable

ENDPOINT = "http://169.254.169.254"
TIMEOUT = 3.0
"""Seconds for an answer: the service is on this very machine's host."""
TRIES = 3
WITHOUT = (403, 404, 405)
"""What a service that knows version 1 alone answers when it is asked for a token."""


@dataclass(frozen=True, slots=True)
class Instance:
    id: str
    region: str


async def instance(environment: Mapping[str, str]) -> Instance:
    """This machine. Raises ConfigError, and Unavailable when nobody answers."""
    if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise ConfigError("aws-vpc has to ask which instance this is: unset it", "AWS_EC2_METADATA_DISABLED")
    endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "").rstrip("/") or ENDPOINT
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout) as session:  # never by a proxy: it would answer for itself
        for _ in range(TRIES):
            try:
                return await _ask(session, endpoint)
            except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
                text = f'"{endpoint}" is not a URL such as {ENDPOINT}'
                raise ConfigError(text, "AWS_EC2_METADATA_SERVICE_ENDPOINT") from None
            except (aiohttp.ClientError, TimeoutError) as error:
                why = str(error) or "no answer in time"
                await asyncio.sleep(0.2)
    text = f"the instance metadata service at {endpoint} does not answer: {why}"
    raise Unavailable(f"{text}: is this an EC2 instance, with the service enabled?")


async def _ask(session: aiohttp.ClientSession, endpoint: str) -> Instance:
    headers: dict[str, str] = {}
    life = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    async with session.put(f"{endpoint}/latest/api/token", headers=life) as answer:
        if answer.status not in WITHOUT:
            answer.raise_for_status()
            headers["X-aws-ec2-metadata-token"] = await answer.text()

    async def value(path: str) -> str:
        async with session.get(f"{endpoint}/latest/meta-data/{path}", headers=headers) as answer:
            answer.raise_for_status()
            return (await answer.text()).strip()

    return Instance(await value("instance-id"), await value("placement/region"))
