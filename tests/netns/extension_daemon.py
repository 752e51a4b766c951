"""A daemon of the extension backend, run as a program inside a node's namespace, where /sys is the node's own.

argv: what the node is, in JSON; stdin: the leases of the others, a line of JSON for each time they change
stdout: what is published; then, for each line, what did not work
"""

from __future__ import annotations

import asyncio
import json
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from flannel_nodes import network_config, subnet_of
from tortie.flannel import backends
from tortie.flannel.backend import Setting
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import External, Place, Site


def lease(number: int, data: str | None) -> Lease:
    return Lease(subnet_of(number), None, Attrs(ip_address(f"192.0.2.{number}"), None, "extension", data))  # type: ignore[arg-type]


async def main(number: int, run_dir: str, options: dict[str, Any]) -> None:
    config = network_config("extension", **options)
    backend = backends.load(config, Setting(Path(run_dir)))
    own = lease(number, None)
    site = Site(config, External("eth0", 2, 1500, own.attrs.public_ip), own.attrs.public_ip)
    published = await backend.begin(site, None)
    print(json.dumps(published.data), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        problems = await backend.carry_out(Place(site, own), [lease(*one) for one in json.loads(line)])
        print(json.dumps(problems), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*json.loads(sys.argv[1])))
