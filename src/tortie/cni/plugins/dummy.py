"""dummy: a link in the pod that leads nowhere, for addresses that should be there whatever else is.

Fields: `ipam`, which must be given. Source: plugins/main/dummy of the CNI reference plugins.
"""

from __future__ import annotations

from tortie.base.errors import Exists, KernelError
from tortie.cni import child, delegate
from tortie.cni.interface import attached, check_interface, configure, failed, open_pod
from tortie.cni.plugin import Plugin, Undo
from tortie.cni.result import Interface, Result, prev_result
from tortie.cni.spec import Call
from tortie.kernel import links

KIND = "dummy"


def add(call: Call) -> Result:
    _require_ipam(call)
    with open_pod(call) as pod, Undo() as undo:
        try:
            links.create_link(pod.nl, call.ifname, KIND)
        except (KernelError, Exists) as error:
            raise child.refused(KIND, error) from None
        own = links.get_link(pod.nl, call.ifname)
        undo.then(links.delete_link, pod.nl, own.index)
        ipam = child.addresses(call, undo)
        result = attached(ipam, [Interface(own.name, own.mac, sandbox=call.netns)], 0, ipam.dns)
        configure(pod, own.name, result)
        return result


def delete(call: Call) -> None:
    child.remove(call)


def check(call: Call) -> None:
    _require_ipam(call)
    previous = prev_result(call)
    with open_pod(call) as pod:
        _, previous = child.checked(call, pod, previous, KIND, "dummy: Required prevResult missing")
        check_interface(pod, call.ifname, previous)


def gc(call: Call) -> None:
    delegate.ipam_gc(call)


def status(call: Call) -> None:
    _require_ipam(call)
    child.status(call, KIND)


def _require_ipam(call: Call) -> None:
    if not delegate.ipam_type(call):
        raise failed("dummy interface requires an IPAM configuration")


PLUGIN = Plugin("dummy", add, delete, check, gc, status)
