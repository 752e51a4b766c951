"""What the tests of the plugin's configuration need besides nodes and pods: a node with a /var/lib of its own, on which
other plugins are installed, and containers that are no pods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agent_node import Node, Sandbox, Site, conflist

from tortie.cni.conflist import ConfList
from tortie.cni.runtime import Runtime
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint, container_interface_name

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins installs."""
needs_host_local = pytest.mark.skipif(
    not (PLUGINS / "host-local").exists(),
    reason="needs /usr/lib/cni/host-local: apt install containernetworking-plugins",
)


@dataclass
class Machine(Node):
    """Its agent, and the plugins that the agent runs, see `var_lib` as /var/lib."""

    @property
    def var_lib(self) -> Path:
        return self.site.directory / f"var-lib-{self.name}"

    def command(self, *more: str) -> list[str]:
        self.var_lib.mkdir(exist_ok=True)
        script = 'mount --bind "$0" /var/lib && exec "$@"'
        unshare = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, str(self.var_lib)]
        return unshare + super().command(*more)

    def runtime(self, **environment: str) -> Runtime:
        made = super().runtime(**environment)
        made.path = (*made.path, str(PLUGINS))
        return made


def machine(site: Site, name: str, *words: str) -> Machine:
    """Not started yet; the site ends it."""
    made = site.node(name, "--no-bgp", "--lib-dir", "/var/lib/calico", *words)
    site.nodes[-1] = found = Machine(site, name, made.ns, made.words)
    return found


@dataclass
class Container(Sandbox):
    """No pod: the runtime names none. `pod` is "", as in its endpoint."""

    pod: str = ""
    namespace: str = "default"
    ns: Any = None

    @property
    def host_ifname(self) -> str:
        return container_interface_name(self.container_id)

    @property
    def where(self) -> dict[str, Any]:
        return {"container_id": self.container_id, "ifname": self.ifname, "args": {}}

    async def endpoint(self, store: Store) -> WorkloadEndpoint:
        """The only one that it has."""
        every = (await store.list(WorkloadEndpoint)).items
        (found,) = (one for one in every if one.spec.container_id == self.container_id)
        return found


def plain_conflist(version: str = "1.0.0", name: str = "plainnet", **more: Any) -> ConfList:
    """A network without Kubernetes policy."""
    return conflist(version, name=name, **{"policy": {}, **more})
