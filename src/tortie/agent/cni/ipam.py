"""The `calico-ipam` plugin, served by the agent, for plugins that delegate to it: addresses, and nothing else.

`calico` itself does not come through here: it assigns its pods' addresses in its own ADD.
"""

from __future__ import annotations

from tortie.agent.cni.addresses import of_ipam
from tortie.agent.holdings import Holdings
from tortie.agent.netconf import read_netconf
from tortie.cni.spec import Call, format_json


class IpamServer:
    """CHECK, STATUS and GC have nothing to say here, as in Calico."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    async def answer(self, call: Call) -> str:
        """What the plugin prints on success. Raises CniError or a TortieError, which the border translates."""
        match call.command:
            case "ADD":
                conf = read_netconf(call)
                got = await self._holdings.assign(call.container_id, conf)
                return format_json(of_ipam(got, await self._holdings.routed(conf)).dump(call.cni_version))
            case "DEL":
                await self._holdings.release(call.container_id, read_netconf(call))
        return ""
