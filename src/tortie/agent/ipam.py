"""The `calico-ipam` plugin, served by the agent, for plugins that delegate to it: addresses, and nothing else.

`calico` itself does not come through here: it assigns its pods' addresses in its own ADD.
"""

from __future__ import annotations

from tortie.agent.holdings import Holdings
from tortie.agent.netconf import read_netconf
from tortie.cni.result import Address, Result, Route
from tortie.cni.spec import Call, format_json


class IpamServer:
    """CHECK, STATUS and GC have nothing to say here, as in Calico."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    async def answer(self, call: Call) -> str:
        """What the plugin prints on success. Raises CniError or a TortieError, which the border translates."""
        match call.command:
            case "ADD":
                got = await self._holdings.assign(call.container_id, read_netconf(call))
                addresses = tuple(Address(str(each)) for each in got)
                routes = tuple(Route(str(each)) for each in got)
                return format_json(Result(ips=addresses, routes=routes).dump(call.cni_version))
            case "DEL":
                await self._holdings.release(call.container_id, read_netconf(call))
        return ""
