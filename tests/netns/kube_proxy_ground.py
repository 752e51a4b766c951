"""A node with a pod that echoes, a client beside it, and one service between them, by rules of kube-proxy's form.

client 192.0.2.9 ──veth── node 192.0.2.1 ──veth── pod 10.244.1.5:8080
                          10.96.0.10:80 ─► the pod, and so for IPv6
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from namespaces import Ns
from tortie.kernel.netns import entered

VIP = {4: "10.96.0.10", 6: "fd00:10:96::a"}
POD = {4: "10.244.1.5", 6: "fd00:10:244:1::5"}
PORT, TARGET = 80, 8080
SVC, SEP = "KUBE-SVC-NPX46M4PTMTKRN6Y", "KUBE-SEP-Q3HNNZPXUAYYDXW2"

KUBELET = """*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL {outside} -m comment --comment "block incoming localnet connections" -j DROP
COMMIT
"""
STRANGERS = """*mangle
-A FORWARD -j MARK --set-xmark 0x0/0x10000
COMMIT
*nat
:KUBE-ROUTER-HAIRPIN - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment "not -j KUBE-SERVICES" -j RETURN
-A POSTROUTING -j KUBE-ROUTER-HAIRPIN
-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER
COMMIT
*filter
:KUBE-NWPLCY-DEFAULT - [0:0]
:KUBE-POD-FW-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
-A FORWARD -j KUBE-ROUTER-FORWARD
-A KUBE-ROUTER-FORWARD -j KUBE-POD-FW-AAAAAAAAAAAAAAAA
-A KUBE-POD-FW-AAAAAAAAAAAAAAAA -j KUBE-NWPLCY-DEFAULT
COMMIT
"""
KUBE_PROXY = """*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-PROXY-CANARY - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment "externally-visible" -j KUBE-EXTERNAL-SERVICES
-I INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:{svc} - [0:0]
:{sep} - [0:0]
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -d {vip} -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80 -j {svc}
-A KUBE-SERVICES -m comment --comment "nodeports" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A {svc} -m comment --comment "default/web" -j {sep}
-A {sep} -s {pod} -m comment --comment "default/web" -j KUBE-MARK-MASQ
-A {sep} -p tcp -m comment --comment "default/web" -m tcp -j DNAT --to-destination {target}
COMMIT
"""
OWN_TABLE = """table {family} kube-proxy {{
  map service-ips {{
    type {address}_addr . inet_proto . inet_service : verdict
    elements = {{ {vip} . tcp . 80 : goto service-web }}
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain services {{ {family} daddr . meta l4proto . th dport vmap @service-ips; }}
  chain service-web {{ meta l4proto tcp dnat to {target}; }}
}}
"""
OURS = """table inet tortie-services {{
  counter taken {{ }}
  chain prerouting {{
    type nat hook prerouting priority -101
    {family} daddr {vip} tcp dport 80 counter name taken dnat {family} to {target}
  }}
  chain output {{
    type nat hook output priority -101
    {family} daddr {vip} tcp dport 80 counter name taken dnat {family} to {target}
  }}
}}
"""


def filled(text: str, version: int) -> str:
    pod = POD[version]
    return text.format(
        family="ip" if version == 4 else "ip6",
        address=f"ipv{version}",
        vip=VIP[version],
        pod=pod,
        target=f"{pod}:{TARGET}" if version == 4 else f"[{pod}]:{TARGET}",
        svc=SVC,
        sep=SEP,
        outside="! -s 127.0.0.0/8 -d 127.0.0.0/8" if version == 4 else "! -s ::1/128 -d ::1/128",
    )


@dataclass
class Ground:
    node: Ns
    pod: Ns
    client: Ns
    version: int = 4
    _servers: list[socket.socket] = field(default_factory=list)

    def begin(self) -> None:
        for ns in (self.node, self.pod, self.client):  # so that no address waits before it may be used
            ns.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
        self.node.batch(
            f"link add to-pod type veth peer name eth0 netns {self.pod.name}",
            f"link add to-client type veth peer name eth0 netns {self.client.name}",
            "addr add 10.244.1.1/24 dev to-pod",
            "addr add fd00:10:244:1::1/64 dev to-pod nodad",
            "addr add 192.0.2.1/24 dev to-client",
            "addr add 2001:db8::1/64 dev to-client nodad",
            "link set to-pod up",
            "link set to-client up",
        )
        for ns, four, six in (
            (self.pod, "10.244.1.5/24", "fd00:10:244:1::5/64"),
            (self.client, "192.0.2.9/24", "2001:db8::9/64"),
        ):
            ns.batch(f"addr add {four} dev eth0", f"addr add {six} dev eth0 nodad", "link set eth0 up")
            gateway4, gateway6 = ("10.244.1.1", "fd00:10:244:1::1") if ns is self.pod else ("192.0.2.1", "2001:db8::1")
            ns.batch(f"route add default via {gateway4}", f"route add ::/0 via {gateway6}")
        self.node.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for version in (4, 6):
            self._echo(version)

    def end(self) -> None:
        for one in self._servers:
            one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _echo(self, version: int) -> None:
        with entered(self.pod.path):
            server = socket.create_server((POD[version], TARGET), family=_family(version))
        self._servers.append(server)
        threading.Thread(target=_serve, args=(server,), daemon=True).start()

    def dial(self) -> socket.socket:
        """A connection of the client's to the service."""
        with entered(self.client.path):
            one = socket.socket(_family(self.version), socket.SOCK_STREAM)
        one.settimeout(20)
        try:
            one.connect((VIP[self.version], PORT))
        except BaseException:
            one.close()
            raise
        return one

    def restore(self, variant: str, text: str) -> None:
        program = "iptables" if self.version == 4 else "ip6tables"
        self.node.run(f"{program}-{variant}-restore", "--noflush", stdin=filled(text, self.version))

    def saved(self, variant: str) -> str:
        program = "iptables" if self.version == 4 else "ip6tables"
        text = self.node.run(f"{program}-{variant}-save")
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        return "\n".join(line.partition(" [")[0] if line.startswith(":") else line for line in lines)

    def taken(self) -> int:
        """Connections that our table has translated."""
        import json

        listed = json.loads(self.node.run("nft", "-j", "list", "counters", "table", "inet", "tortie-services"))
        return sum(one["counter"]["packets"] for one in listed["nftables"] if "counter" in one)


def _family(version: int) -> socket.AddressFamily:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _serve(server: socket.socket) -> None:
    while True:
        try:
            caller, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(caller,), daemon=True).start()


def _answer(caller: socket.socket) -> None:
    with caller:
        while data := caller.recv(100):
            caller.sendall(data)


def echoes(one: socket.socket, text: bytes = b"hello") -> bool:
    one.sendall(text)
    return one.recv(100) == text


def until(true: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


def process_named(directory: Path, ns: Ns, name: str = "kube-proxy") -> subprocess.Popen[bytes]:
    """A process of that name in the namespace, which does nothing."""
    link = directory / name
    if not link.exists():
        link.symlink_to("/bin/sleep")
    return subprocess.Popen(["nsenter", f"--net={ns.path}", str(link), "300"])
