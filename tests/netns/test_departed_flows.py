"""An address that goes from one pod to another: the second gets nothing by flows that the first one had."""

from __future__ import annotations

import asyncio

import pytest
from agent_node import Node, applied, soon, udp
from agent_pods import MakeSandbox

from namespaces import Ns
from tortie.base.addr import IP, parse_ip
from tortie.calc.cluster import Cluster
from tortie.dataplane.converge import converge
from tortie.dataplane.stages.departed_flows import Departed, DepartedFlows
from tortie.kernel.conntrack import FEW
from tortie.model.store import Store

pytestmark = pytest.mark.root

CLOSED = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: closed, namespace: red}
spec: {selector: "closed == 'yes'", types: [Ingress], ingress: []}
"""
IPS = "10.65.77.7", "fd00:65::77:7"
SAME = {"cni.projectcalico.org/ipAddrs": '["10.65.77.7", "fd00:65::77:7"]'}


@pytest.mark.parametrize("ip", IPS, ids=["4", "6"])
async def test_the_next_pod_gets_nothing_of_the_one_before(sandbox: MakeSandbox, store: Store, ip: str) -> None:
    async with applied(store, CLOSED):
        client = await sandbox("client")
        await client.add()
        first, second = await sandbox("first", annotations=SAME), await sandbox("second", {"closed": "yes"}, SAME)
        await first.add()
        with udp(client.ns, "::" if ":" in ip else "") as out:
            with udp(first.ns, ip, 5000) as into:
                out.connect((ip, 5000))
                into.settimeout(5)
                out.send(b"hello")
                _, whence = into.recvfrom(64)
                into.sendto(b"hello", whence)
            await first.delete()
            await second.add()
            with udp(second.ns, ip, 5000) as into:
                into.settimeout(0.5)
                out.send(b"still there?")
                with pytest.raises(TimeoutError):
                    await asyncio.to_thread(into.recv, 64)


async def test_flows_go_whether_anybody_gets_the_address_or_not(node: Node, sandbox: MakeSandbox, store: Store) -> None:
    ip = IPS[0]
    client, first = await sandbox("client"), await sandbox("first", annotations=SAME)
    await client.add()
    await first.add()
    with udp(client.ns) as out, udp(first.ns, ip, 5000) as into:
        into.settimeout(5)
        out.sendto(b"hello", (ip, 5000))
        into.recv(64)

        def known() -> bool:
            return f"dst={ip} " in listed(node.ns)

        assert known()
        await first.delete()
        await soon(known, lambda there: not there, "the flow has gone")


def listed(ns: Ns) -> str:
    return "".join(ns.run("conntrack", "-L", "-f", family) for family in ("ipv4", "ipv6"))


def flow(ns: Ns, source: str, destination: str, port: int) -> None:
    words = f"conntrack -I -p udp -s {source} -d {destination} --sport {port} --dport 80 --timeout 600"
    ns.run(*words.split())


@pytest.fixture
def tracking(ns: Ns) -> Ns:
    """With flows from, to and between some pods, and others."""
    ns.ip("link", "set", "lo", "up")
    for last in range(1, FEW + 3):
        flow(ns, f"10.65.0.{last}", "192.0.2.1", 1000)
        flow(ns, "192.0.2.1", f"10.65.0.{last}", 1001)
        flow(ns, f"fd00:65::{last}", "2001:db8::1", 1002)
        flow(ns, "2001:db8::1", f"fd00:65::{last}", 1003)
    return ns


@pytest.mark.parametrize("count", [1, FEW + 1], ids=["few", "many"])
@pytest.mark.parametrize("most", [1, 3, 10_000])
def test_only_theirs_however_many(tracking: Ns, count: int, most: int) -> None:
    gone: frozenset[IP] = frozenset(
        parse_ip(f"{net}{last}") for last in range(1, count + 1) for net in ("10.65.0.", "fd00:65::")
    )
    departed = Departed()
    departed.note(gone)
    stage = DepartedFlows(departed, tracking.path, most=most)
    state = Cluster("node").state()
    assert converge([stage], state) == []
    assert departed.noted() == {}
    left = listed(tracking)
    assert left.count("udp") == 4 * (FEW + 2 - count)
    assert not any(f"={ip} " in left for ip in gone)
    assert not stage.plan(state)


def test_an_address_that_left_once_more_is_not_struck_off() -> None:
    departed = Departed()
    ip = frozenset({parse_ip(IPS[0])})
    departed.note(ip)
    before = departed.noted()
    departed.note(ip)
    departed.strike(before)
    assert departed.noted().keys() == ip
    departed.strike(departed.noted())
    assert departed.noted() == {}
