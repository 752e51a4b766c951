"""A topology file: which racks, routers, links, nodes, pools and objects a lab is to consist of. Pure, but for reading.

    racks:  a switch with its subnets, the router that joins it to the rest, and nodes (node1, node2, ... throughout)
    routers and links between them; one with an AS number speaks BGP with its rack's nodes and with its neighbours

What a file says is checked as a whole before anything is built: every complaint names the file and the field.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field
from msgspec.structs import replace

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError, suggest
from tortie.lab.defaults import SERVICE_CIDRS
from tortie.lab.flannel_entry import FlannelEntry, complaints
from tortie.model.bgp import DEFAULT_AS, as_number
from tortie.model.document import convert, read
from tortie.model.ipam import IPPool
from tortie.model.meta import Problem, Resource, Value
from tortie.model.misfit import first_misfit, unknown_field, without_nulls

BUILT_IN = Path(__file__).parent / "topologies"
FABRIC = "fabric"
"""The router of a lab's only rack, where the file names none."""
MAX_NODES = 240
FIRST_NODE = 10
"""Node 1 has the address after this one, in whichever subnet it is, unless the subnet's rack says otherwise."""
MAX_LINKS = 64

LINK_NET = IPv4Network("172.31.0.0/16")
LINK_NET6 = IPv6Network("fd00:172:31::/48")
OUTSIDE_NET = IPv4Network("198.51.100.0/24")  # TEST-NET-2, RFC 5737
OUTSIDE_NET6 = IPv6Network("2001:db8:9::/64")  # documentation, RFC 3849
RESERVED: tuple[Net, ...] = (LINK_NET, LINK_NET6, OUTSIDE_NET, OUTSIDE_NET6)
"""What a lab itself uses, between routers and outside."""

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,11}[a-z0-9])?\Z")  # also names an interface, which has at most 15 characters
_CNI_FILE = re.compile(r"[\w.-]{1,200}\.(conf|json|conflist)\Z")
_TAKEN = re.compile(r"(node\d+|outside|lo|br0|uplink)\Z")

Mtu = Annotated[int, Meta(ge=1280, le=9000)]  # 1280: what IPv6 needs, RFC 8200


class NodeEntry(Value, frozen=True, kw_only=True):
    """`count` nodes that are alike."""

    count: Annotated[int, Meta(ge=1, le=MAX_NODES)] = 1
    labels: dict[str, str] = field(default_factory=dict)
    as_number: int | str | None = field(name="as", default=None)
    cluster_id: str = field(name="routeReflectorClusterID", default="")


class RackEntry(Value, frozen=True, kw_only=True):
    """A switch. `as_number` is that of its nodes; theirs, then the cluster's, where it is None. `first_address` is the
    number in the subnets that node1 has, or would have here."""

    name: str
    router: str = ""
    subnet: str = ""
    subnet6: str = ""
    first_address: Annotated[int, Meta(ge=2, le=MAX_NODES)] = FIRST_NODE + 1
    as_number: int | str | None = field(name="as", default=None)
    nodes: tuple[NodeEntry, ...] = ()

    @property
    def count(self) -> int:
        return sum(entry.count for entry in self.nodes)


class RouterEntry(Value, frozen=True, kw_only=True):
    """Without an AS number it forwards, and knows nothing of pods."""

    name: str
    as_number: int | str | None = field(name="as", default=None)
    daemon: Literal["bird", "frr"] | None = None


class LinkEntry(Value, frozen=True, kw_only=True):
    between: tuple[str, ...] = ()
    mtu: Mtu | None = None


class CniFile(Value, frozen=True, kw_only=True):
    """A file as a node has it in /etc/cni/net.d."""

    name: str
    text: str


class CniEntry(Value, frozen=True, kw_only=True):
    """CNI networks that are the nodes' own: `files` are one for all nodes or one for each.

    `plugins` is the directory of the programs, "" for those of this package. `routes`: the nodes and the router are
    told where the others' pods are, if those have networks of their own. `agents` run only where something is for them.
    """

    files: tuple[CniFile, ...] = ()
    plugins: str = ""
    routes: bool = True
    agents: bool = False


class Blueprint(Value, frozen=True, kw_only=True):
    """The whole file. A pool is an IPPool's spec with a `name`; `manifests` are objects, or files of them."""

    about: str = ""
    as_number: int | str = field(name="as", default=DEFAULT_AS)
    mesh: bool = True
    mtu: Mtu | None = None
    routers: tuple[RouterEntry, ...] = ()
    links: tuple[LinkEntry, ...] = ()
    racks: tuple[RackEntry, ...] = ()
    outside: str = ""
    pools: tuple[dict[str, Any], ...] = ()
    manifests: tuple[Any, ...] = ()
    cni: CniEntry | None = None
    flannel: FlannelEntry | None = None

    @property
    def has_agents(self) -> bool:
        """Whether nodes have one. Without, pods are connected by CNI plugins that need none."""
        if self.flannel is not None:
            return self.flannel.policy
        return self.cni is None or self.cni.agents

    @property
    def plugins_alone(self) -> bool:
        """Whether CNI plugins connect the pods, and nobody enforces policy."""
        return self.cni is not None or (self.flannel is not None and not self.flannel.policy)

    @property
    def begins_with_pods(self) -> bool:
        """Whether it is about a network: its pods are there from the beginning."""
        return self.cni is not None or self.flannel is not None

    @property
    def unknown_outside(self) -> tuple[Net, ...]:
        """Networks of pods that leave with a node's address: outside nobody has a way there. Raises ConfigError."""
        own = self.flannel.nets if self.flannel is not None else ()
        return (*(pool.spec.net for pool in self.ippools if pool.spec.nat_outgoing), *own)

    @property
    def node_count(self) -> int:
        return sum(rack.count for rack in self.racks)

    @property
    def ippools(self) -> list[IPPool]:
        """Raises ConfigError naming the field."""
        return [_pool(entry, f"pools[{i}]") for i, entry in enumerate(self.pools)]

    @property
    def objects(self) -> list[Resource]:
        """What `manifests` says. Raises ConfigError."""
        return [read(entry, f"manifests[{i}]") for i, entry in enumerate(self.manifests)]

    @property
    def outside_router(self) -> str:
        """The router at which the outside host is."""
        return self.outside or self.routers[0].name


def built_in() -> list[str]:
    """The names of the topologies that come with the program."""
    return sorted(path.stem for path in BUILT_IN.glob("*.yaml"))


def load(name: str) -> Blueprint:
    """A built-in topology by its name, or a file. Raises ConfigError: file, field, what is wrong."""
    path = BUILT_IN / f"{name}.yaml"
    if "/" in name or name.endswith((".yaml", ".yml")) or not path.exists():
        path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        what = f"is neither a file ({error.strerror}) nor one of {', '.join(built_in())}"
        raise ConfigError(what, name) from None
    except UnicodeDecodeError:
        raise ConfigError("is no text in UTF-8", name) from None
    return parse(text, str(path), path.parent)


def parse(text: str, source: str, folder: Path | None = None) -> Blueprint:
    """A topology from YAML; `folder` is where its manifests' files are. Raises ConfigError."""
    from tortie.model import text as yaml_text

    try:
        documents = list(yaml_text.load_all(text))
        if len(documents) != 1 or not isinstance(documents[0], dict):
            raise ConfigError("is not one mapping with racks, routers, links, pools")
        return checked(shape(documents[0]), folder)
    except ConfigError as error:
        raise error.within(source) from None


def shape(document: dict[str, Any]) -> Blueprint:
    """A document as a value of the right types. Raises ConfigError naming the field."""
    for path, problem in unknown_field(document, Blueprint):
        raise ConfigError(problem, path)
    document = without_nulls(document, Blueprint)
    try:
        return msgspec.convert(document, Blueprint)
    except msgspec.ValidationError as error:
        path, problem = first_misfit(document, Blueprint) or ("", str(error))
        raise ConfigError(problem, path) from None


def checked(blueprint: Blueprint, folder: Path | None = None) -> Blueprint:
    """The same with all filled in that may be left out: routers, subnets, manifests' files. Raises ConfigError."""
    whole = _with_manifests(_with_defaults(blueprint), folder)
    for path, problem in problems(whole):
        raise ConfigError(problem, path)
    return whole


def document(blueprint: Blueprint) -> dict[str, Any]:
    """As a file would have it."""
    made: dict[str, Any] = msgspec.to_builtins(blueprint)
    return made


# --- filling in ---------------------------------------------------------------------------------------------------


def _with_defaults(blueprint: Blueprint) -> Blueprint:
    racks, routers = blueprint.racks, blueprint.routers
    if len(racks) == 1 and not racks[0].router:
        racks = (replace(racks[0], router=FABRIC),)
        if FABRIC not in {router.name for router in routers}:
            routers = (*routers, RouterEntry(name=FABRIC))
    racks = tuple(
        replace(
            rack,
            subnet=rack.subnet or f"172.30.{i}.0/24",
            subnet6=rack.subnet6 or str(IPv6Network(f"fd00:172:30:{i}::/64")),
        )
        for i, rack in enumerate(racks)
    )
    routers = tuple(
        replace(router, daemon=router.daemon or ("bird" if router.as_number is not None else None))
        for router in routers
    )
    mesh = blueprint.mesh and blueprint.flannel is None  # whose nodes speak no BGP
    return replace(blueprint, racks=racks, routers=routers, mesh=mesh)


def _with_manifests(blueprint: Blueprint, folder: Path | None) -> Blueprint:
    """Files of objects are read once: the lab keeps what they said then."""
    from tortie.model.document import load_documents

    objects: list[Any] = []
    for i, entry in enumerate(blueprint.manifests):
        if not isinstance(entry, str):
            objects.append(entry)
            continue
        path = (folder or Path()) / entry
        try:
            objects += load_documents(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", f"manifests[{i}]") from None
    return replace(blueprint, manifests=tuple(objects))


# --- what cannot be -----------------------------------------------------------------------------------------------


def problems(blueprint: Blueprint) -> Iterator[Problem]:
    """Everything that types alone cannot say, as (field path, what is wrong)."""
    yield from _name_problems(blueprint)
    yield from _router_problems(blueprint)
    yield from _rack_problems(blueprint)
    yield from _number_problems(blueprint)
    yield from _cni_problems(blueprint)
    yield from _flannel_problems(blueprint)
    yield from _object_problems(blueprint)
    yield from _net_problems(blueprint)


def _name_problems(blueprint: Blueprint) -> Iterator[Problem]:
    for kind, entries in (("racks", blueprint.racks), ("routers", blueprint.routers)):
        names = [entry.name for entry in entries]
        for i, name in enumerate(names):
            if not _NAME.match(name) or _TAKEN.match(name):
                yield f"{kind}[{i}].name", f'"{name}" is no name: a letter, then at most 12 of a-z, 0-9 and -'
            elif name in names[:i]:
                yield f"{kind}[{i}].name", f'"{name}" is there twice'


def _router_problems(blueprint: Blueprint) -> Iterator[Problem]:
    known = [router.name for router in blueprint.routers]
    for i, router in enumerate(blueprint.routers):
        if router.daemon and router.as_number is None:
            yield f"routers[{i}].as", f"is required: {router.daemon} speaks BGP"
    if len(blueprint.links) > MAX_LINKS:
        yield "links", f"has {len(blueprint.links)} entries, at most {MAX_LINKS} are allowed"
    seen: set[frozenset[str]] = set()
    for i, link in enumerate(blueprint.links):
        path = f"links[{i}].between"
        if len(link.between) != 2 or link.between[0] == link.between[1]:
            yield path, "must name two routers"
            continue
        yield from _unknown(path, link.between, known)
        if frozenset(link.between) in seen:
            yield path, f"{' and '.join(link.between)} have a link already"
        seen.add(frozenset(link.between))
    if blueprint.outside:
        yield from _unknown("outside", [blueprint.outside], known)


def _unknown(path: str, names: Iterable[str], known: list[str]) -> Iterator[Problem]:
    for name in names:
        if name not in known:
            hint = suggest(name, known)
            yield path, f'"{name}" is no router' + (f", {hint}" if hint else "")


def _rack_problems(blueprint: Blueprint) -> Iterator[Problem]:
    if not blueprint.racks:
        yield "racks", "is required: a lab has at least one"
        return
    known = [router.name for router in blueprint.routers]
    joined: dict[str, str] = {}
    for i, rack in enumerate(blueprint.racks):
        path = f"racks[{i}].router"
        if not rack.router:
            yield path, "is required where there are several racks"
            continue
        yield from _unknown(path, [rack.router], known)
        if rack.router in joined:
            yield path, f"{rack.router} is the router of rack {joined[rack.router]} already"
        joined[rack.router] = rack.name
    if not 1 <= blueprint.node_count <= MAX_NODES:
        yield "racks", f"{blueprint.node_count} nodes: a lab has from 1 to {MAX_NODES}"
    apart = sorted(set(known) - _reached(blueprint))
    if apart:
        yield "links", f"there is no way from {blueprint.outside_router} to {', '.join(apart)}"


def _reached(blueprint: Blueprint) -> set[str]:
    """The routers that links join to the one where the outside is."""
    found, new = set[str](), {blueprint.outside_router}
    while new:
        found |= new
        new = {end for link in blueprint.links if found & set(link.between) for end in link.between} - found
    return found


def _number_problems(blueprint: Blueprint) -> Iterator[Problem]:
    numbers: list[tuple[str, int | str | None]] = [("as", blueprint.as_number)]
    numbers += [(f"routers[{i}].as", router.as_number) for i, router in enumerate(blueprint.routers)]
    for i, rack in enumerate(blueprint.racks):
        numbers.append((f"racks[{i}].as", rack.as_number))
        numbers += [(f"racks[{i}].nodes[{j}].as", entry.as_number) for j, entry in enumerate(rack.nodes)]
    for path, number in numbers:
        try:
            as_number(number or 1)
        except ConfigError as error:
            yield path, str(error)
    for i, rack in enumerate(blueprint.racks):
        for j, entry in enumerate(rack.nodes):
            if entry.cluster_id and not re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", entry.cluster_id):
                where = f"racks[{i}].nodes[{j}].routeReflectorClusterID"
                yield where, f'"{entry.cluster_id}" must look like an IPv4 address'


def _cni_problems(blueprint: Blueprint) -> Iterator[Problem]:
    if blueprint.cni is not None and len(blueprint.cni.files) not in (1, blueprint.node_count):
        found, nodes = len(blueprint.cni.files), blueprint.node_count
        yield "cni.files", f"{found} for {nodes} nodes: one for all of them, or one for each"
    for i, file in enumerate(blueprint.cni.files if blueprint.cni else ()):
        if not _CNI_FILE.match(file.name):
            yield f"cni.files[{i}].name", f'"{file.name}" is no name of a file such as 10-net.conf or 10-net.conflist'


def _flannel_problems(blueprint: Blueprint) -> Iterator[Problem]:
    entry = blueprint.flannel
    if entry is None:
        return
    if blueprint.cni is not None:
        yield "flannel", "and cni exclude each other"
    if blueprint.pools:
        yield "pools", "addresses are flannel's to give: leave them out"
    for key, problem in complaints(entry, blueprint.node_count):
        yield f"flannel.{key}", problem


def _object_problems(blueprint: Blueprint) -> Iterator[Problem]:
    try:
        names = Counter(pool.name for pool in blueprint.ippools)
        for i, pool in enumerate(blueprint.ippools):
            if names[pool.name] > 1:
                yield f"pools[{i}].name", f'"{pool.name}" is there twice'
        _ = blueprint.objects
    except ConfigError as error:
        yield ": ".join(error.where), error.message


def _net_problems(blueprint: Blueprint) -> Iterator[Problem]:
    """Networks that are not what they should be, too small for the nodes, or in each other's way."""
    taken: list[tuple[str, Net]] = [("the lab itself", net) for net in RESERVED]
    taken += [("services", parse_net(net)) for net in SERVICE_CIDRS if blueprint.cni is None]
    for i, rack in enumerate(blueprint.racks):
        last = rack.first_address - 1 + blueprint.node_count
        for key, text, version in (("subnet", rack.subnet, 4), ("subnet6", rack.subnet6, 6)):
            path = f"racks[{i}].{key}"
            try:
                net = parse_net(text)
            except ConfigError as error:
                yield path, str(error)
                continue
            if net.version != version:
                yield path, f"{text} is not an IPv{version} network"
            elif net.num_addresses <= (last + 1 if version == 4 else int(str(last), 16)):
                yield path, f"{text} has no room for addresses up to number {last}"
            yield from _overlaps(path, net, taken)
            taken.append((f"rack {rack.name}", net))
    for key in ("network", "network6") if blueprint.flannel is not None else ():
        with suppress(ConfigError):
            net = parse_net(getattr(blueprint.flannel, key))
            yield from _overlaps(f"flannel.{key}", net, taken)
            taken.append(("flannel", net))
    for i, pool in enumerate(blueprint.ippools):
        yield from _overlaps(f"pools[{i}].cidr", pool.spec.net, taken)
        taken.append((f"pool {pool.name}", pool.spec.net))


def _overlaps(path: str, net: Net, taken: list[tuple[str, Net]]) -> Iterator[Problem]:
    for whose, other in reversed(taken):
        if net.version == other.version and net.overlaps(other):
            yield path, f"{net} overlaps {other} of {whose}"
            return


def _pool(entry: dict[str, Any], path: str) -> IPPool:
    body = dict(entry)
    name = body.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError("is required", f"{path}.name")
    try:
        return convert(IPPool, {"metadata": {"name": name}, "spec": body})
    except ConfigError as error:
        inner = [part.removeprefix("spec").removeprefix(".") for part in error.where]
        raise ConfigError(error.message, ".".join((path, *filter(None, inner)))) from None
