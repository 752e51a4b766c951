"""How a lease is got, kept and lost: what to send when, and what an answer means. No socket, and no clock but `now`.

                 OFFER             ACK            T1             T2              end
    SELECTING ─────────► REQUESTING ───► BOUND ─────► RENEWING ─────► REBINDING ─────► EXPIRED
        ▲ ◄───NAK, no answer──┘            ▲─────ACK────┘──────ACK───────┘   NAK ─────────▲
        └── no server in time ─► FAILED

`now` and all times are seconds of any clock that only goes forward. Source: RFC 2131 4.1 and 4.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from tortie.cni.dhcp import wire
from tortie.cni.dhcp.wire import ANY, BROADCAST_FLAG, EVERYONE, Kind, Message, Option

DEFAULT_SECONDS = 3600.0
FOREVER = 0xFFFFFFFF
RENEWAL, REBINDING = 0.5, 0.85
"""T1 and T2 as parts of the lease, where the server does not say them. RFC 2131 has 0.875, the Go plugin this."""
FIRST_RESEND = 0.5
"""RFC 2131 has 4 s; the first message through a port that has just come up is often lost, and a pod waits for it."""
JITTER = 0.25
"""Of a pause, in either direction."""
LEAST_PAUSE = 60.0
"""Between two renewals that nobody answers, or a 20th of the lease if that is shorter."""
MESSAGE_SIZE = 1472


class State(Enum):
    SELECTING = "selecting"
    REQUESTING = "requesting"
    BOUND = "bound"
    RENEWING = "renewing"
    REBINDING = "rebinding"
    EXPIRED = "expired"
    FAILED = "failed"
    RELEASED = "released"


OVER = frozenset({State.EXPIRED, State.FAILED, State.RELEASED})
HELD = frozenset({State.BOUND, State.RENEWING, State.REBINDING})


@dataclass(frozen=True, slots=True)
class Terms:
    """What a server grants: times in seconds from when it was asked for, infinite ones as `inf`."""

    address: str
    length: int
    server: str
    seconds: float
    renewal: float
    rebinding: float
    gateway: str = ""
    routes: tuple[tuple[str, str], ...] = ()
    dns: tuple[str, ...] = ()
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: how long one offer is waited for to become a lease, the longest pause between two messages, and how
    long a lease is sought."""

    patience: float = 10.0
    longest_pause: float = 62.0
    give_up: float = 208.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and what is said with every question. `broadcast`: answers shall go to everybody on the link."""

    mac: bytes
    client_id: bytes
    provide: Mapping[int, bytes] = field(default_factory=dict)
    request: tuple[int, ...] = ()
    broadcast: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """A message to be sent, to everybody on the link (`EVERYONE`) or to a server."""

    message: Message
    to: str = EVERYONE

    @property
    def source(self) -> str:
        """Our own address, once we may use it."""
        return self.message.ciaddr


class Lease:
    """One attachment's. `wake` when `due` has come, `hear` what arrives; both answer what is to be sent.

    `chance` gives numbers from 0 to 1: for pauses, and for the numbers of exchanges. `unanswered` is how many messages
    were sent since a server was heard last, while a lease is sought.
    """

    def __init__(self, who: Identity, now: float, chance: Callable[[], float], timing: Timing | None = None) -> None:
        self.who = who
        self.state = State.SELECTING
        self.terms: Terms | None = None
        self.due = now
        self.why = ""
        self.unanswered = 0
        self._timing = timing or Timing()
        self._chance = chance
        self._begun = now  # of the search
        self._asked = now  # when the message was sent first that an answer is waited for
        self._pause = FIRST_RESEND
        self._xid = self._number()
        self._offer: Message | None = None
        self._bound = now

    @classmethod
    def resumed(
        cls, who: Identity, terms: Terms, bound: float, chance: Callable[[], float], timing: Timing | None = None
    ) -> Lease:
        """One that was got at `bound`, by a daemon before this."""
        lease = cls(who, bound, chance, timing)
        lease.terms, lease.state, lease.due = terms, State.BOUND, bound + terms.renewal
        return lease

    @property
    def bound(self) -> float:
        """When it was got, or renewed last."""
        return self._bound

    @property
    def ends(self) -> float:
        """When the address may no longer be used."""
        return self._bound + self.terms.seconds if self.terms else self._bound

    # --- what is due --------------------------------------------------------------------------------------------

    def wake(self, now: float) -> list[Send]:
        """What is to be sent now. Nothing before `due`."""
        if now < self.due or self.state in OVER:
            return []
        if self.state in HELD:
            return self._keep(now)
        if now >= self._begun + self._timing.give_up:
            self._over(State.FAILED, f"no more tries{self.why and f': {self.why}'}")
            return []
        if self.state is State.REQUESTING and now >= self._asked + self._timing.patience:
            self._select(now)
        self._wait(now)
        self.unanswered += 1
        return [self._discover(now) if self.state is State.SELECTING else self._request(now)]

    def _keep(self, now: float) -> list[Send]:
        assert self.terms is not None
        terms, ends = self.terms, self.ends
        if now >= ends:
            self._over(State.EXPIRED, "the lease has expired")
            return []
        state = State.REBINDING if now >= self._bound + terms.rebinding else State.RENEWING
        if state is not self.state:
            self.state, self._xid, self._asked = state, self._number(), now
        until = ends if state is State.REBINDING else self._bound + terms.rebinding
        pause = max((until - now) / 2, min(LEAST_PAUSE, terms.seconds / 20))
        self.due = min(now + pause, until)
        to = EVERYONE if state is State.REBINDING else terms.server
        return [Send(self._message(Kind.REQUEST, now, {}, ciaddr=terms.address), to)]

    def _wait(self, now: float) -> None:
        """Doubles the pauses, and makes them uneven: many pods may be asking since the same moment."""
        limit = self._begun + self._timing.give_up
        if self.state is State.REQUESTING:
            limit = min(limit, self._asked + self._timing.patience)
        self.due = min(now + self._pause * (1 + JITTER * (2 * self._chance() - 1)), max(limit, now + 0.1))
        self._pause = min(self._pause * 2, self._timing.longest_pause)

    def _over(self, state: State, why: str) -> None:
        self.state, self.why, self.due = state, why, float("inf")

    # --- what is heard ------------------------------------------------------------------------------------------

    def hear(self, message: Message, now: float) -> list[Send]:
        """What follows from an answer. What is not for us, or not awaited, changes nothing."""
        if message.op != 2 or message.xid != self._xid or message.mac != self.who.mac or self.state in OVER:
            return []
        self.unanswered = 0
        if self.state is State.SELECTING and message.kind == Kind.OFFER:
            return self._take(message, now)
        if self.state is State.BOUND or self.state is State.SELECTING:
            return []
        if message.kind == Kind.ACK:
            self._acknowledged(message)
        elif message.kind == Kind.NAK and self._is_from_the_server(message):
            self._refused(message, now)
        return []

    def _take(self, offer: Message, now: float) -> list[Send]:
        """The first offer that can be used."""
        try:
            read_terms(offer)
        except ValueError as why:
            self.why = str(why)
            return []
        self.state, self._offer = State.REQUESTING, offer
        self._asked, self._pause = now, FIRST_RESEND
        self._wait(now)
        return [self._request(now)]

    def _acknowledged(self, message: Message) -> None:
        try:
            terms = read_terms(message, self.terms)
        except ValueError as why:
            self.why = str(why)
            return
        if self.terms is not None and terms.address != self.terms.address:
            self._over(State.EXPIRED, f"the server now gives {terms.address} instead of {self.terms.address}")
            return
        self.terms, self.state, self._bound, self.why = terms, State.BOUND, self._asked, ""
        self.due = self._bound + terms.renewal

    def _refused(self, message: Message, now: float) -> None:
        said = message.options.get(Option.MESSAGE, b"").decode("utf-8", "replace")
        if self.state is not State.REQUESTING:
            self._over(State.EXPIRED, f"the server refused to renew the lease{said and f': {said}'}")
            return
        self._select(now)
        self._wait(now)  # not at once: a server that always refuses would be asked without end

    def _is_from_the_server(self, message: Message) -> bool:
        asked = self._offer.address(Option.SERVER) if self._offer and self.state is State.REQUESTING else ""
        return not asked or message.address(Option.SERVER) in ("", asked)

    def _select(self, now: float) -> None:
        self.state, self._offer, self._xid = State.SELECTING, None, self._number()

    # --- messages -----------------------------------------------------------------------------------------------

    def release(self, now: float) -> Send | None:
        """Gives the address back; None when there is none."""
        terms, held = self.terms, self.state in HELD
        self._over(State.RELEASED, "released")
        if terms is None or not held:
            return None
        options: dict[int, bytes] = {
            Option.MESSAGE_TYPE: bytes((Kind.RELEASE,)),
            Option.CLIENT_ID: self.who.provide.get(Option.CLIENT_ID, self.who.client_id),
            Option.SERVER: wire.packed(terms.server),
        }
        return Send(Message(1, self._number(), self.who.mac, options, ciaddr=terms.address), terms.server)

    def _discover(self, now: float) -> Send:
        return Send(self._message(Kind.DISCOVER, now, {}))

    def _request(self, now: float) -> Send:
        offer = self._offer
        assert offer is not None
        options: dict[int, bytes] = {
            Option.REQUESTED_ADDRESS: wire.packed(offer.yiaddr),
            Option.SERVER: wire.packed(offer.address(Option.SERVER)),
        }
        return Send(self._message(Kind.REQUEST, now, options))

    def _message(self, kind: Kind, now: float, options: Mapping[int, bytes], ciaddr: str = ANY) -> Message:
        every = {
            Option.MESSAGE_TYPE: bytes((kind,)),
            Option.CLIENT_ID: self.who.client_id,
            Option.LONGEST_MESSAGE: MESSAGE_SIZE.to_bytes(2, "big"),
            **options,
            **self.who.provide,
        }
        if self.who.request:
            every[Option.REQUEST_LIST] = bytes(self.who.request)
        # With an address of its own a client can be spoken to, and the flag has no use.
        flags = BROADCAST_FLAG if self.who.broadcast and ciaddr == ANY else 0
        since = self._begun if self.terms is None else self._asked
        secs = min(int(now - since), 0xFFFF)
        return Message(1, self._xid, self.who.mac, every, secs, flags, ciaddr)

    def _number(self) -> int:
        return int(self._chance() * 0xFFFFFFFF)


def read_terms(message: Message, former: Terms | None = None) -> Terms:
    """The terms in an answer. Server and mask may go unsaid for a renewed lease. Raises ValueError."""
    if message.yiaddr == ANY:
        raise ValueError("the server's answer has no address in it")
    server = message.address(Option.SERVER) or (former.server if former else "")
    if not server:
        raise ValueError("the server does not say who it is (option 54)")
    mask = message.options.get(Option.SUBNET_MASK)
    if mask is None and former is None:
        raise ValueError("DHCP option Subnet Mask not found in DHCPACK")
    length = wire.prefix_length(mask) if mask is not None else former.length if former else 0
    gateway = message.address(Option.ROUTERS)
    return Terms(
        message.yiaddr,
        length,
        server,
        *_times(message),
        gateway=gateway,
        routes=_routes(message, gateway),
        dns=tuple(message.addresses(Option.DNS)),
        domain=message.options.get(Option.DOMAIN, b"").rstrip(b"\0").decode("utf-8", "replace"),
    )


def _times(message: Message) -> tuple[float, float, float]:
    """How long the lease is, T1 and T2, in this order and sensible: T1 < T2 < the whole."""
    said = message.number(Option.LEASE_SECONDS)
    if said == FOREVER:
        return float("inf"), float("inf"), float("inf")
    seconds = float(said) if said else DEFAULT_SECONDS
    rebinding = float(message.number(Option.REBINDING_SECONDS) or seconds * REBINDING)
    if rebinding >= seconds:
        rebinding = seconds * REBINDING
    renewal = float(message.number(Option.RENEWAL_SECONDS) or seconds * RENEWAL)
    if renewal >= rebinding:
        renewal = seconds * RENEWAL if seconds * RENEWAL < rebinding else rebinding * RENEWAL
    return seconds, renewal, rebinding


def _routes(message: Message, gateway: str) -> tuple[tuple[str, str], ...]:
    """Classless routes stand instead of static ones and of the router (RFC 3442)."""
    classless = wire.classless_routes(message.options.get(Option.CLASSLESS_ROUTES, b""))
    if classless:
        return tuple(classless)
    static = wire.static_routes(message.options.get(Option.STATIC_ROUTES, b""))
    return (*static, *([("0.0.0.0/0", gateway)] if gateway else []))
