"""EC2 as aws-vpc asks it: a few calls, with their errors in this program's words.

boto3 blocks, and takes half a second to import: both happen in a thread, and the import only where it is needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from tortie.base.errors import ConfigError, NotFound, NotSupported, Unavailable
from tortie.flannel.aws.refusals import refusal
from tortie.flannel.aws.tables import Eni, Step, Table, read_enis, read_tables

log = logging.getLogger(__name__)

RETRIES = 5
CONNECT, READ = 5, 15
"""Seconds."""


class Cloud:
    """One region's EC2. Every method raises ConfigError or Unavailable."""

    def __init__(self, region: str) -> None:
        """Raises NotSupported when what is needed to ask is not installed."""
        if find_spec("boto3") is None:
            raise NotSupported("aws-vpc needs the Python package boto3: pip install 'tortie[aws]'")
        self._region = region
        self._client: Any = None

    async def enis(self, instance: str) -> tuple[Eni, ...]:
        """The network interfaces of an instance."""
        return read_enis(await self._ask("DescribeInstances", instance, InstanceIds=[instance]))

    async def stop_checking(self, eni: str) -> None:
        """Packets from and to pods' addresses may pass."""
        off = {"Value": False}
        await self._ask("ModifyNetworkInterfaceAttribute", eni, NetworkInterfaceId=eni, SourceDestCheck=off)

    async def tables(self, ids: Sequence[str]) -> tuple[Table, ...]:
        return read_tables(await self._ask("DescribeRouteTables", " ".join(ids), RouteTableIds=list(ids)))

    async def tables_of(self, eni: Eni) -> tuple[Table, ...]:
        """That of the subnet which an ENI is in: its own, or the VPC's main one."""
        for filters in ({"association.subnet-id": eni.subnet}, {"association.main": "true", "vpc-id": eni.vpc}):
            asked = [{"Name": name, "Values": [value]} for name, value in filters.items()]
            found = read_tables(await self._ask("DescribeRouteTables", eni.subnet, Filters=asked))
            if found:
                return found[:1]
        raise ConfigError(f"main route table not found: {eni.vpc} has none: name one", "Backend.RouteTableID")

    async def carry_out(self, step: Step) -> None:
        """What somebody else has done already is done: several nodes clear away the same dead routes."""
        log.info("%s%s", step, f"  # it led to {step.before}" if step.before else "")
        values = {"RouteTableId": step.table, "DestinationCidrBlock": str(step.dst)}
        if step.eni:
            values["NetworkInterfaceId"] = step.eni
        try:
            await self._ask(step.action, step.table, **values)
        except NotFound:
            if step.verb == "replace":  # it went since the table was listed
                await self._ask("CreateRoute", step.table, **values)

    async def _ask(self, action: str, where: str, **values: Any) -> Any:
        return await asyncio.to_thread(self._call, action, where, values)

    def _call(self, action: str, where: str, values: dict[str, Any]) -> Any:
        from botocore import xform_name
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        try:
            if self._client is None:
                self._client = self._connect()
            return getattr(self._client, xform_name(action))(**values)
        except ClientError as error:
            said = error.response.get("Error", {})
            raise refusal(str(said.get("Code", "")), str(said.get("Message", "")), action, where) from None
        except (NoCredentialsError, PartialCredentialsError) as error:
            text = f"{action}: {error}: attach an IAM role to this instance, or set AWS_ACCESS_KEY_ID and its secret"
            raise ConfigError(text) from None
        except BotoCoreError as error:
            raise Unavailable(f"{where}: {action}: {error}") from None

    def _connect(self) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(
            retries={"total_max_attempts": RETRIES + 1, "mode": "standard"},
            connect_timeout=CONNECT,
            read_timeout=READ,
        )
        return boto3.session.Session(region_name=self._region).client("ec2", config=config)
