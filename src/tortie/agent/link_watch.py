"""What the kernel announces of links and addresses, for routes and host endpoints that depend on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from tortie.agent.view import View
from tortie.kernel import events

Heard = Callable[[Iterable[events.Event]], None]


async def watch_links(view: View, again: Callable[[], None], *heard: Heard) -> None:
    """Forever. An endpoint's interface that comes or goes is a reason to plan the routes `again`, and so is a host's
    interface or address by which a host endpoint finds its own. That of a pod which is being attached is not, yet: its
    endpoint will be. Those who listen are told of everything."""
    loop = asyncio.get_running_loop()
    groups = (events.Group.LINK, events.Group.IPV4_ADDRESS, events.Group.IPV6_ADDRESS)
    with events.Monitor(groups=groups) as monitor:
        readable = asyncio.Event()
        loop.add_reader(monitor.fileno(), readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                told = monitor.read()
                if any(_matters(view, event) for event in told):
                    again()
                for listener in heard:
                    listener(told)
        finally:
            loop.remove_reader(monitor.fileno())


def _matters(view: View, event: events.Event) -> bool:
    match event:
        case events.LinkEvent():
            return event.name in view.interfaces or view.matches_interface(event.name)
        case events.AddressEvent(address):
            return view.matches_address(address.ip.partition("/")[0])
    return isinstance(event, events.Overrun)
