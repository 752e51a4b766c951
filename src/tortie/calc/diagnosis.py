"""Why a BGP session is not established, and what to do: from what BIRD says, what the objects say, what a look finds.

    Peer       what this node wants                    ─┐
    Session    what BIRD has of it                      ├─► diagnose ─► Diagnosis: code, text, what to do
    FarEnd     what the datastore knows of the peer     │
    Evidence   route, link, neighbour, tries to connect ┘

The first rule that holds decides, and they go from the nearest to the farthest: what is wrong here, on the way, at the
far end; then what the two ends said to each other. A session's last error may be old, so it counts after what is
seen now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from tortie.base.addr import IP
from tortie.base.dialled import Answer, Dialled
from tortie.bgp.birdc import Session
from tortie.bgp.sessions import BGP_PORT, Peer, Scope


class Cause(StrEnum):
    """What keeps a session down, as programs read it."""

    NOT_CONFIGURED = "not-configured"
    DUPLICATE_ADDRESS = "duplicate-address"
    NO_ROUTE = "no-route"
    LINK_DOWN = "link-down"
    DENIED = "denied-by-policy"
    WRONG_ADDRESS = "wrong-address"
    UNREACHABLE = "unreachable"
    AS_MISMATCH = "as-mismatch"
    REFUSED = "refused"
    PASSWORD = "password"
    TTL_SECURITY = "ttl-security"
    SILENT = "silent"
    NO_SESSION_THERE = "no-session-there"
    BOTH_PASSIVE = "both-passive"
    SHUT_DOWN = "shut-down"
    HOLD_TIMER = "hold-timer"
    STARTING = "starting"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One session's. `session` is its name, `text` what is the matter, `todo` what a person can do about it."""

    session: str
    cause: Cause
    text: str
    todo: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FarEnd:
    """The peer, as far as the datastore knows it. `nodes` are those whose address it is, by name.

    `session` is what the first of them wants with us; None when it wants none, or the peer is no node.
    `known` is False while what it wants cannot be told. `own_twins` are other nodes that claim this node's own address.
    """

    nodes: tuple[str, ...] = ()
    as_number: int | None = None
    listen_port: int | None = None
    cluster_id: str | None = None
    session: Peer | None = None
    known: bool = True
    own_twins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Md5Counters:
    """Segments that the kernel has dropped since it started, on all connections: TcpExt of /proc/net/netstat.

    `unsigned`: none of ours has a signature though we want one. `unexpected`: signed though we want none. `wrong`.
    """

    unsigned: int = 0
    unexpected: int = 0
    wrong: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a look around finds. `no_route` is why there is no way, else `route` is it, as `ip route` has it.

    `neighbour` is the state of the next hop's entry ("" for none). Tries that were not made are None: `plain` without
    a signature, `near` with a TTL of 255, `signed` with the session's password. `denied` is what of this node's own
    policy forbids the session. `too_far` counts packets whose TTL was lower than their socket wants.
    """

    route: str = ""
    no_route: str = ""
    interface: str = ""
    link_up: bool = True
    next_hop: IP | None = None
    neighbour: str = ""
    plain: Answer | None = None
    near: Answer | None = None
    signed: Answer | None = None
    denied: str = ""
    md5: Md5Counters = Md5Counters()
    too_far: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All there is to know of one session. `own` is the address that it speaks from, `session` None when BIRD has none
    of that name, `logged` the last error of it that BIRD's log has, `refusal` why BIRD does not run the newest
    configuration."""

    peer: Peer
    own: IP | None = None
    session: Session | None = None
    far: FarEnd = FarEnd()
    evidence: Evidence = Evidence()
    logged: str = ""
    refusal: str = ""

    @property
    def error(self) -> str:
        """What the two ends said to each other last, whatever a socket has met since."""
        last = self.session.error if self.session is not None else ""
        return last if last and not last.startswith("Socket: ") and not self.logged else self.logged or last

    @property
    def port(self) -> int:
        return self.peer.port or BGP_PORT

    @property
    def who(self) -> str:
        """`node2 (172.30.0.12)`, or the address alone."""
        return f"{self.far.nodes[0]} ({self.peer.ip})" if self.far.nodes else str(self.peer.ip)

    @property
    def mesh(self) -> bool:
        return self.peer.name.startswith(f"{Scope.MESH.value}_")

    @property
    def opened(self) -> bool:
        """Whether the peer has sent its OPEN message and waits for the answer to it, or we do."""
        return self.session is not None and self.session.state == "OpenConfirm"

    @property
    def answers(self) -> frozenset[Dialled]:
        """What came of all tries."""
        seen = (self.evidence.plain, self.evidence.near, self.evidence.signed)
        return frozenset(answer.result for answer in seen if answer is not None)


def diagnose(facts: Facts) -> Diagnosis:
    """The first cause that holds; STARTING when nothing is found wrong."""
    found = next((one for rule in RULES for one in rule(facts)), None)
    cause, text, todo = found if found is not None else _nothing_found(facts)
    if facts.session is not None and facts.session.restarting:
        text += "; it is restarting gracefully: its routes are kept until it is back, or its time is over"
    return Diagnosis(facts.peer.name, cause, text, todo)


Finding = tuple[Cause, str, str]
Rule = Callable[[Facts], Iterator[Finding]]


# --- here ---------------------------------------------------------------------------------------------------------


def _not_configured(facts: Facts) -> Iterator[Finding]:
    if facts.session is None:
        why = f": {facts.refusal}" if facts.refusal else ""
        todo = "mend what it refuses; until then the configuration before it runs" if why else "wait for the agent"
        yield Cause.NOT_CONFIGURED, f"BIRD does not have this session{why}", todo


def _duplicate_address(facts: Facts) -> Iterator[Finding]:
    todo = "give each Node an address of its own: spec.bgp.ipv4Address, ipv6Address"
    if facts.far.own_twins:
        twins = " and ".join(facts.far.own_twins)
        yield Cause.DUPLICATE_ADDRESS, f"this node's address {facts.own} is also that of {twins}", todo
    if len(facts.far.nodes) > 1:
        yield Cause.DUPLICATE_ADDRESS, f"{facts.peer.ip} is the address of {' and '.join(facts.far.nodes)}", todo


def _no_way(facts: Facts) -> Iterator[Finding]:
    seen = facts.evidence
    if seen.no_route:
        todo = f"ip route get {facts.peer.ip}; add a route, or correct the address"
        yield Cause.NO_ROUTE, f"no route to {facts.who}: {seen.no_route}", todo
    elif not seen.link_up:
        text = f"the way to {facts.who} leads out of {seen.interface}, which is down"
        yield Cause.LINK_DOWN, text, f"ip link show {seen.interface}: is it up, has it a carrier?"
    if seen.denied:
        todo = f"allow TCP {facts.port} there, or have it in FelixConfiguration's failsafe ports, in and out"
        yield Cause.DENIED, f"this node's own policy denies it: {seen.denied}", todo


# --- on the way ---------------------------------------------------------------------------------------------------


def _nobody_there(facts: Facts) -> Iterator[Finding]:
    seen, ip = facts.evidence, facts.peer.ip
    if facts.answers - {Dialled.UNREACHABLE, Dialled.SILENT}:
        return
    if seen.neighbour not in ("failed", "incomplete") and Dialled.UNREACHABLE not in facts.answers:
        return
    if seen.next_hop is not None and seen.next_hop != ip:
        tries = (answer for answer in (seen.plain, seen.near, seen.signed) if answer is not None and answer.why)
        why = next((answer.why for answer in tries), f"nobody has the address {seen.next_hop}")
        text = f"{facts.who} cannot be reached: {why}, by way of {seen.next_hop} on {seen.interface}"
        yield Cause.UNREACHABLE, text, f"tracepath {ip}; does {seen.next_hop} know the way?"
    elif facts.far.nodes:
        text = f"{facts.who} does not answer on {seen.interface}: nobody there has this address now"
        yield Cause.UNREACHABLE, text, f"is {facts.far.nodes[0]} up, on this link, and has it the address of its Node?"
    else:
        text = f"nobody on {seen.interface} has the address {ip}, and no Node has it"
        yield Cause.WRONG_ADDRESS, text, "correct peerIP, or start the machine that should have it"


def _refused(facts: Facts) -> Iterator[Finding]:
    if Dialled.REFUSED not in facts.answers:
        return
    listens = facts.far.listen_port
    if listens is not None and listens != facts.port:
        text = f"{facts.who} listens on port {listens}, and this node dials {facts.port}"
        yield Cause.REFUSED, text, "leave the port out of peerIP, or give the right one"
        return
    if facts.peer.passive and not facts.far.nodes:
        text = f"this node waits for {facts.who} to dial; it does not, nor does anybody listen there"
        yield Cause.REFUSED, text, f"start BGP there, and have it dial {facts.own or 'this node'}"
        return
    todo = "is BIRD running there (tortie node status), and does it listen on this address and port?"
    if not facts.far.nodes:
        todo = f"start BGP there, or give its port: peerIP: {facts.peer.ip}:PORT"
    yield Cause.REFUSED, f"{facts.who} refuses TCP {facts.port}: nobody listens there", todo


def _passwords(facts: Facts) -> Iterator[Finding]:
    seen, ours, far = facts.evidence, facts.peer.password, facts.far.session
    todo = "give both ends the same: BGPPeer password, or BGPConfiguration nodeMeshPassword"
    if far is not None and (far.password is None) != (ours is None):
        one, other = ("this node", facts.who) if ours is not None else (facts.who, "this node")
        yield Cause.PASSWORD, f"{one} has a password for this session, and {other} has none", todo
    elif far is not None and far.password != ours:
        yield Cause.PASSWORD, f"{facts.who} has another password for this session", todo
    if ours is not None and _is(seen.signed, Dialled.SILENT):
        if _is(seen.plain, Dialled.OPEN, Dialled.CLOSED):
            yield Cause.PASSWORD, f"{facts.who} has no password: it answers without a signature, and not with one", todo
        elif seen.md5.wrong:
            yield Cause.PASSWORD, f"{facts.who} signs with another password ({_dropped(seen.md5.wrong)})", todo
        elif _is(seen.plain, Dialled.SILENT) and far is None:
            text = f"{facts.who} does not answer what is signed with this password, nor what is not signed"
            yield Cause.PASSWORD, text, f"compare the passwords of both ends; else a firewall drops TCP {facts.port}"
    if ours is None and seen.md5.unexpected and facts.answers == {Dialled.SILENT}:
        text = f"{facts.who} signs its packets, and this node has no password ({_dropped(seen.md5.unexpected)})"
        yield Cause.PASSWORD, text, todo


def _ttl(facts: Facts) -> Iterator[Finding]:
    seen, hops = facts.evidence, facts.peer.ttl_hops
    if _is(seen.plain, Dialled.SILENT, Dialled.DEAF) and _is(seen.near, Dialled.OPEN, Dialled.CLOSED) and hops is None:
        text = f"{facts.who} wants TTL security: it answers packets with a TTL of 255, and no others"
        yield Cause.TTL_SECURITY, text, "give the session ttlSecurity: the number of hops to the peer"
    if facts.opened and hops is None:
        text = f"{facts.who} has opened the session and does not hear this node: it wants TTL security, as it seems"
        yield Cause.TTL_SECURITY, text, "give the session ttlSecurity: the number of hops to the peer"
    far = facts.far.session
    if far is not None and (far.ttl_hops is None) != (hops is None):
        one, other = ("this node", facts.who) if hops is not None else (facts.who, "this node")
        text = f"{one} wants TTL security for this session, and {other} does not"
        yield Cause.TTL_SECURITY, text, "give both ends ttlSecurity, or neither"
    if hops is not None and facts.answers & {Dialled.OPEN, Dialled.CLOSED} and seen.too_far:
        text = f"{facts.who} is more than {hops} hop{'s' * (hops != 1)} away, or does not send with a TTL of 255"
        yield Cause.TTL_SECURITY, f"{text} ({_dropped(seen.too_far)})", "raise ttlSecurity, or give it to the peer too"


def _silent(facts: Facts) -> Iterator[Finding]:
    if facts.answers == {Dialled.SILENT}:
        since = ", and the hold timer has expired" if "old timer" in facts.error else ""
        text = f"{facts.who} does not answer TCP {facts.port} at all{since}"
        todo = "a firewall on the way or there, or a password that it wants: tortie doctor tries other packets"
        yield Cause.SILENT, text, todo
    if facts.answers == {Dialled.FAILED}:
        why = next(a.why for a in (facts.evidence.plain, facts.evidence.signed) if a is not None)
        text = f"this node cannot speak to {facts.who} from {facts.own}: {why}"
        yield Cause.UNREACHABLE, text, "has this node the address of its Node? ip address"


# --- at the far end -----------------------------------------------------------------------------------------------


def _as_numbers(facts: Facts) -> Iterator[Finding]:
    peer, far = facts.peer, facts.far
    todo = "correct asNumber of the BGPPeer, or of the Node that is meant"
    actual = far.session.local_as if far.session is not None else far.as_number
    if actual is not None and actual != peer.remote_as:
        yield Cause.AS_MISMATCH, f"{facts.who} is in AS {actual}, and this node expects {peer.remote_as}", todo
    elif far.session is not None and far.session.remote_as != peer.local_as:
        text = f"{facts.who} expects AS {far.session.remote_as} here, and this node is in AS {peer.local_as}"
        yield Cause.AS_MISMATCH, text, todo
    elif "Bad peer AS" in facts.error:
        number = facts.error.rpartition("Bad peer AS: ")[2]
        if facts.error.startswith("Received"):
            text = f"{facts.who} expects another AS number than {peer.local_as} of this node"
            todo = f"correct the session at {facts.who}, or localASNumber of the BGPPeer"
        elif number.isdecimal():
            text = f"{facts.who} is in AS {number}, and this node expects {peer.remote_as}"
        else:
            text = f"{facts.who} is in another AS than {peer.remote_as}"
        yield Cause.AS_MISMATCH, text, todo


def _no_session_there(facts: Facts) -> Iterator[Finding]:
    far = facts.far
    if far.nodes and far.known and far.session is None:
        text = f"{facts.who} has no session with {facts.own or 'this node'}"
        if facts.mesh and far.cluster_id:
            text += f": it reflects routes (cluster id {far.cluster_id}) and takes no part in the mesh"
            todo = "write a BGPPeer for it: nodeSelector, peerSelector"
        else:
            text += ": no BGPPeer makes one there"
            todo = "tortie get bgppeers: its selectors do not choose this node, or reversePeering is Manual"
        yield Cause.NO_SESSION_THERE, text, todo
    elif not far.nodes and facts.answers == {Dialled.CLOSED} and not facts.opened:
        text = f"{facts.who} accepts connections and closes them: it has no session with {facts.own or 'this node'}"
        yield Cause.NO_SESSION_THERE, text, f"configure it there: neighbour {facts.own}, AS {facts.peer.local_as}"


def _both_passive(facts: Facts) -> Iterator[Finding]:
    if not facts.peer.passive:
        return
    if facts.far.session is not None and facts.far.session.passive:
        text = f"both this node and {facts.who} wait for the other to dial"
        yield Cause.BOTH_PASSIVE, text, "two BGPPeers make one session: keep one of them"
    elif not facts.far.nodes and Dialled.OPEN in facts.answers:
        text = f"this node waits for {facts.who} to dial, and it does not, though it listens"
        yield Cause.BOTH_PASSIVE, text, f"have {facts.who} dial: it must not be passive too"


# --- what they said -----------------------------------------------------------------------------------------------


def _shut_down(facts: Facts) -> Iterator[Finding]:
    error = facts.error
    if "dministrative" in error or "de-configured" in error:
        by = facts.who if error.startswith("Received") else "this node"
        yield Cause.SHUT_DOWN, f"{by} has shut the session down: {error}", "enable it again where it was disabled"


def _lost(facts: Facts) -> Iterator[Finding]:
    error = facts.error
    if "old timer" in error:
        by = "it has heard nothing from this node" if error.startswith("Received") else "nothing was heard from it"
        text = f"{facts.who}: {by} for the hold time ({error})"
        yield Cause.HOLD_TIMER, text, "a link that loses packets, or a peer that hangs; it dials again by itself"
    elif "Link down" in error or "Neighbor lost" in error:
        text = f"the link to {facts.who} was lost ({error})"
        yield Cause.LINK_DOWN, text, f"ip link show {facts.evidence.interface}".rstrip()


def _nothing_found(facts: Facts) -> Finding:
    if facts.error and "Socket: " not in facts.error and "Connection" not in facts.error:
        return Cause.UNKNOWN, f"{facts.who}: {facts.error}", "the log of BIRD (bird.log) tells more, on both ends"
    how = "waits for it to dial" if facts.peer.passive else "dials it"
    text = f"nothing is found wrong with {facts.who}: this node {how}"
    return Cause.STARTING, text, "wait some seconds; then look at the other end: tortie node status there"


def _is(answer: Answer | None, *results: Dialled) -> bool:
    return answer is not None and answer.result in results


def _dropped(count: int) -> str:
    return f"{count} packet{'s' * (count != 1)} dropped"


RULES: tuple[Rule, ...] = (
    _not_configured,
    _duplicate_address,
    _no_way,
    _nobody_there,
    _as_numbers,
    _shut_down,
    _no_session_there,
    _passwords,
    _ttl,
    _refused,
    _both_passive,
    _silent,
    _lost,
)
"""In this order: what the objects make impossible comes before what the network says of it."""
