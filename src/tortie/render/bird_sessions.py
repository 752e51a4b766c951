"""BGP sessions in bird.conf: a template for each family, and a protocol for each peer."""

from __future__ import annotations

from collections.abc import Iterator

from tortie.base.addr import IP
from tortie.base.errors import ConfigError
from tortie.bgp.filters import Direction
from tortie.bgp.passwords import unfit
from tortie.bgp.sessions import HOLD_TIME, NextHop, Peer
from tortie.render.bird_config import BindMode, BirdConfig, Family, debug_lines
from tortie.render.bird_filters import filter_calls


def session_blocks(config: BirdConfig, family: Family) -> Iterator[list[str]]:
    """The template and the protocols. Raises ConfigError for what BIRD's syntax cannot hold."""
    if not family.peers:
        yield [f"# No IPv{family.version} peers"]
        return
    v = family.version
    yield [
        f"template bgp peer{v} {{",
        '  description "Connection to BGP peer";',
        *debug_lines(config, "{ states, events }"),
        "  multihop;",
        "  graceful restart;",
        f"  connect delay time {config.connect_delay};",
        f"  connect retry time {config.connect_retry};",
        "  error wait time 5,30;",
        *(["  strict bind on;"] if config.bind_mode is BindMode.NODE_IP else []),
        f"  {family.channel} {{",
        "    gateway recursive;",
        "    add paths on;",
        f"    import filter from_peer{v};",
        "    export none;",
        "  };",
        "}",
    ]
    for peer in family.peers:
        yield _session(config, family, peer)


def _session(config: BirdConfig, family: Family, peer: Peer) -> list[str]:
    local = ["local", *_word("", _local(config, family, peer)), *_word("port", config.listen_port)]
    neighbor = ["neighbor", str(peer.ip), *_word("port", peer.port), "as", str(peer.remote_as)]
    next_hop = [] if peer.next_hop is NextHop.AUTO else [f"next hop {peer.next_hop.value.lower()};"]
    filters = [*next_hop, *_import(family, peer), _export(family, peer)]
    plain = all("{" not in one for one in filters)
    channel = [f"  {family.channel} {{ {' '.join(filters)} }};"]
    if not plain:
        channel = [f"  {family.channel} {{", *(f"    {one}" for one in filters), "  };"]
    return [
        f"protocol bgp {peer.name} from peer{family.version} {{",
        f"  {' '.join(local)} as {peer.local_as};",
        f"  {' '.join(neighbor)};",
        *_session_options(peer),
        *channel,
        "}",
    ]


def _local(config: BirdConfig, family: Family, peer: Peer) -> IP | None:
    """Where the session is from, and where it listens when that is not everywhere."""
    if config.bind_mode is not BindMode.NODE_IP:
        return peer.source
    dialled = [ip for ip in config.workload_ips if ip.version == family.version]
    return dialled[0] if peer.workload and dialled else family.own


def _import(family: Family, peer: Peer) -> Iterator[str]:
    """Nothing where the template says it all. What filters reject is kept aside, to be shown to who asks."""
    calls = filter_calls(family, peer.filters, Direction.IMPORT, same_as=peer.same_as)
    if calls:
        yield "import keep filtered on;"
        yield f"import filter {{ {calls}admit{family.version}(); }};"


def _export(family: Family, peer: Peer) -> str:
    v = family.version
    calls = filter_calls(family, peer.filters, Direction.EXPORT, same_as=peer.same_as)
    if not calls:
        return f"export filter to_{'ibgp' if peer.same_as else 'ebgp'}{v};"
    word = "true" if peer.same_as else "false"
    return f"export filter {{ metric_to_preference{v}(); {calls}announce{v}({word}); }};"


def _session_options(peer: Peer) -> Iterator[str]:
    if peer.ttl_hops is None:
        yield "  ttl security off;"
    else:
        yield "  ttl security on;"
        yield f"  multihop {peer.ttl_hops};"
    if peer.passive:
        yield "  passive on;"
    if peer.rr_client:
        yield "  rr client;"
        yield f"  rr cluster id {peer.cluster_id};"
    if peer.password is not None:
        yield f'  password "{_password(peer)}";'
    if peer.keepalive_time is not None:
        if peer.keepalive_time > HOLD_TIME:
            raise ConfigError(
                f"keepalive time {peer.keepalive_time} s is more than the hold time {HOLD_TIME} s", peer.name
            )
        yield f"  keepalive time {peer.keepalive_time};"
    if peer.restart_time is not None:
        yield f"  graceful restart time {peer.restart_time};"
    if peer.allowed_local_as is not None:
        yield f"  allow local as {peer.allowed_local_as};"


def _password(peer: Peer) -> str:
    password = peer.password or ""
    if why := unfit(password):
        raise ConfigError(f"its password {why}", peer.name)
    return password


def _word(keyword: str, value: object) -> list[str]:
    """`port 177` as words; nothing for None."""
    if value is None:
        return []
    return [keyword, str(value)] if keyword else [str(value)]
