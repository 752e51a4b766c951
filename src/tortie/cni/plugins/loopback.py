"""loopback: sets `lo` up in the pod, and down again.

Fields: none. CNI_IFNAME is ignored: it is always `lo`. Source: plugins/main/loopback of the CNI reference plugins.
"""

from __future__ import annotations

from tortie.cni.interface import failed, open_pod, pod_if_there
from tortie.cni.plugin import Plugin
from tortie.cni.result import Address, Interface, Result, prev_result
from tortie.cni.spec import Call, quote
from tortie.kernel import addresses, links

LO = "lo"
NO_MAC = "00:00:00:00:00:00"


def add(call: Call) -> Result:
    previous = prev_result(call)
    with open_pod(call) as pod:
        links.set_up(pod.nl, LO)
        lo = links.get_link(pod.nl, LO)
        there = [each.ip for each in addresses.list_addresses(pod.nl, lo.index)]
    for ip in there:
        if not _is_loopback(ip):
            raise failed(f"loopback interface found with non-loopback address {quote(ip.partition('/')[0])}")
    if previous is not None:
        return previous
    ips = tuple(Address(ip, interface=0) for ip in there)
    return Result((Interface(LO, NO_MAC, sandbox=call.netns),), ips)


def delete(call: Call) -> None:
    pod = pod_if_there(call)
    if pod is not None:
        with pod:
            links.set_down(pod.nl, LO)


def check(call: Call) -> None:
    prev_result(call)
    with open_pod(call) as pod:
        if not links.get_link(pod.nl, LO).up:
            raise failed("loopback interface is down")


def _is_loopback(ip: str) -> bool:
    return ip.startswith("127.") or ip == "::1/128"


PLUGIN = Plugin("loopback", add, delete, check)
