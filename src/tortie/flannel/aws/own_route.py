"""This node's way in the route tables: looked at as a whole each time, and put right where it is not.

DescribeInstances ─► own ENI ─► source/destination check off?
DescribeRouteTables ─► steps ─► replace, create, delete
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from tortie.base.errors import TortieError
from tortie.flannel.aws.cloud import Cloud
from tortie.flannel.aws.tables import Eni, Table, find_eni, overlaps, steps


class OwnRoute:
    def __init__(self, cloud: Cloud, instance: str, address: IPv4Address, tables: Sequence[str]) -> None:
        """`address` is the node's own, by which its ENI is found. `tables` are IDs; without any it is the table of the
        subnet which the ENI is in."""
        self._cloud = cloud
        self._instance = instance
        self._address = address
        self._ids = tables

    async def look(self) -> tuple[Eni, tuple[Table, ...]]:
        """Anew each time: an administrator may have moved either. Raises ConfigError, Unavailable."""
        eni = find_eni(await self._cloud.enis(self._instance), self._address, self._instance)
        return eni, await (self._cloud.tables(self._ids) if self._ids else self._cloud.tables_of(eni))

    async def see_to(self, subnet: IPv4Network, network: IPv4Network) -> Sequence[str]:
        """A line for each thing that did not work; it keeps none of the others from being done."""
        try:
            eni, tables = await self.look()
        except TortieError as error:
            return (str(error),)
        lines: list[str] = []
        if eni.checked:
            try:
                await self._cloud.stop_checking(eni.id)
            except TortieError as error:
                text = f"failed to disable SourceDestCheck, so that the cloud drops pods' packets: {error}"
                lines.append(f"{text}; an administrator can do it by hand: docs/flannel-aws.md")
        for table in tables:
            lines += overlaps(table, network)
            for step in steps(table, subnet, eni.id, network):
                try:
                    await self._cloud.carry_out(step)
                except TortieError as error:
                    lines.append(str(error))
        return lines
