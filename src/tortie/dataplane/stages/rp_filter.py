"""The kernel's own reverse-path filter, off for IPv4 on the interface of a pod that may send from addresses of others.

Ours: `rp_filter` of pods' interfaces (`cali*`) where it is 0 and new interfaces get another value.
Order: any. The kernel takes the stricter of an interface's value and that of `all`, which is the host's affair.
Source: Calico's Felix. IPv6 has no such filter; what pods may send is the nft stage's to say, for both families.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress

from tortie.base.errors import KernelError
from tortie.base.plan import Plan, Verb, diff
from tortie.calc.state import DesiredState
from tortie.dataplane.converge import Work
from tortie.kernel import links, netns, sysctl
from tortie.model.workload import INTERFACE_PREFIX


def plan(open_to: Iterable[str], have: Mapping[str, int], default: int) -> Plan[str, int]:
    """The steps so that the filter is off on these interfaces, and on no other where the default is another."""
    off = set(open_to)
    want = {name: 0 if name in off else value or default for name, value in have.items()}
    return diff(want, have, lambda verb, name, value: f"sysctl -w {_path(name)}={value}")


class RpFilter:
    name = "rp_filter"
    guard = False

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._nothing = False
        """The last look found nothing of ours: there is nothing to look for while nobody needs it."""

    def select(self, state: DesiredState) -> set[str]:
        return {name for name, one in state.endpoints.items() if any(net.version == 4 for net in one.sources)}

    def plan(self, state: DesiredState) -> Plan[str, int]:
        off = self.select(state)
        if self._nothing and not off:
            return Plan()
        names = [name for name in links.names(self._netns).values() if name.startswith(INTERFACE_PREFIX)]
        have: dict[str, int] = {}
        with nullcontext() if self._netns is None else netns.entered(self._netns):
            default = int(sysctl.read(_path("default")))
            for name in names:
                with suppress(KernelError):  # gone meanwhile
                    have[name] = int(sysctl.read(_path(name)))
        found = plan(off, have, default)
        self._nothing = not found and not off
        return found

    def make(self, work: Work) -> None:
        assert isinstance(work, Plan)
        there = set(links.names(self._netns).values())
        with nullcontext() if self._netns is None else netns.entered(self._netns):
            for op in work:
                if op.verb is Verb.CHANGE and op.key in there:
                    sysctl.write(_path(op.key), op.want or 0)

    def unmake(self, work: Work) -> None:
        """Nothing: a value is changed, never deleted."""

    def forget(self) -> None:
        self._nothing = False


def _path(name: str) -> str:
    return f"net/ipv4/conf/{name}/rp_filter"
