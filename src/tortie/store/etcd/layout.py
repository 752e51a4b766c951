"""Where etcd keeps what, and how: the keys and the JSON of Calico, so that both can share one. No sockets.

    /calico/resources/v3/projectcalico.org/ippools/default       the whole object
    /calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26            IPAM's records, which have no metadata:
    /calico/ipam/v2/host/node1/ipv4/block/10.0.0.0-26            names, uids and labels of these are made up from
    /calico/ipam/v2/handle/k8s-pod-network.3f25...               the key and the revision at which it was created
    /calico/ipam/v2/config
    /tortie/v1/pods/red/a                                        what Calico never keeps in etcd

Source: Calico's key layout for etcd v3.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError, NotSupported
from tortie.ipam import names
from tortie.ipam.owner import Owner
from tortie.model.bgpfilter import BGPFilter
from tortie.model.closed_rules import closed, opened, unknown_conditions
from tortie.model.ipam import (
    BlockAffinity,
    IPAMBlock,
    IPAMBlockSpec,
    IPAMConfig,
    IPAMConfigSpec,
    IPAMHandle,
)
from tortie.model.meta import Metadata, Resource, changed
from tortie.model.policy import GlobalNetworkPolicy, NetworkPolicy, Profile
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedNetworkPolicy
from tortie.store import foreign

R = TypeVar("R", bound=Resource)
Paths = list[str]

CALICO = "projectcalico.org/v3"
RESOURCES = "/calico/resources/v3/projectcalico.org/"
OWN = "/tortie/v1/"
BLOCKS = "/calico/ipam/v2/assignment/"
AFFINITIES = ("/calico/ipam/v2/host/", "/calico/ipam/v2/virtual/")
HANDLES = "/calico/ipam/v2/handle/"
CONFIG = "/calico/ipam/v2/config"
OTHER_CONFIGS = (f"{RESOURCES}ipamconfigs/default", f"{RESOURCES}ipamconfigurations/default")
"""Where the resource is that Calico's clients write; its IPAM and ours follow `CONFIG`. Read where that is missing."""

NAMED = "projectcalico.org/metadata"
"""Annotation in which Calico notes a policy's name. Nobody is shown it."""
POLICIES = (NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy)
RULED = (*POLICIES, Profile, BGPFilter)
"""Kinds with rules, in which a field that is not known may be a condition."""
_FILTERS = ("importV", "exportV")
"""How a BGPFilter's lists of rules begin."""
IPAM = (IPAMBlock, BlockAffinity, IPAMHandle, IPAMConfig)
"""Kinds whose values are records of IPAM."""

_UIDS = uuid.UUID("6d1b0f6c-6a55-4d0f-8d4d-9b0c6f5ed0a1")
"""The name space of uids that are made up."""


# Keys -----------------------------------------------------------------------------------------------------------


def span(kind: type[Resource], namespace: str | None = None) -> tuple[bytes, bytes]:
    """The keys among which the objects of a kind are: from the first to before the second. Others may lie between."""
    if kind is BlockAffinity:
        return AFFINITIES[0].encode(), after_all(AFFINITIES[1])
    if kind is IPAMConfig:
        return CONFIG.encode(), CONFIG.encode() + b"\0"
    prefix = _prefix(kind)
    if namespace is not None and kind.KIND.namespaced:
        prefix += f"{namespace}/"
    return prefix.encode(), after_all(prefix)


def after_all(prefix: str) -> bytes:
    """The key after all that begin with a prefix, which ends in `/`."""
    return prefix[:-1].encode() + b"0"


def key(obj: Resource) -> bytes:
    """The key that an object is written to. Raises ConfigError when its name is not what its content demands."""
    if isinstance(obj, BlockAffinity):
        owner, net = Owner.of(obj), parse_net(obj.spec.cidr)
        _must_be(obj, names.affinity_name(owner.name, net))
        return _affinity_key(owner, net)
    if isinstance(obj, IPAMBlock):
        _must_be(obj, names.block_name(parse_net(obj.spec.cidr)))
    if isinstance(obj, IPAMHandle):
        _must_be(obj, names.handle_name(obj.spec.handle_id))
        return _handle_key(obj.spec.handle_id)
    if isinstance(obj, IPAMConfig):
        _must_be(obj, "default")
        return CONFIG.encode()
    return keys(type(obj), obj.name, obj.namespace)[0]


def keys(kind: type[Resource], name: str, namespace: str = "") -> tuple[bytes, ...]:
    """Where an object of this name may be, the likeliest first; a name may stand for several, or none."""
    if kind is BlockAffinity:
        pairs = [(Owner(host, type_), net) for host, net in _affinities(name) for type_ in ("host", "virtual")]
        return tuple(_affinity_key(owner, net) for owner, net in sorted(pairs, key=lambda pair: pair[0].type))
    if kind is IPAMBlock:
        net = net_of(name)
        return (f"{BLOCKS}ipv{net.version}/block/{_dashed(net)}".encode(),) if net else ()
    if kind is IPAMHandle:
        return (_handle_key(name),)
    if kind is IPAMConfig:
        return tuple(one.encode() for one in (CONFIG, *OTHER_CONFIGS)) if name == "default" else ()
    place = f"{namespace}/{name}" if kind.KIND.namespaced else name
    return (f"{_prefix(kind)}{place}".encode(),)


def identity(kind: type[Resource], found: bytes) -> tuple[str, str] | None:
    """Namespace and name of the object that a key is of; None where it is of something else."""
    text = found.decode(errors="replace")
    if kind is BlockAffinity:
        affinity = _affinity(text)
        return ("", names.affinity_name(affinity[0].name, affinity[1])) if affinity else None
    if kind is IPAMConfig:
        return ("", "default") if text == CONFIG or text in OTHER_CONFIGS else None
    if not text.startswith(_prefix(kind)):
        return None
    rest = text.removeprefix(_prefix(kind))
    if kind is IPAMBlock:
        version, _, cidr = rest.partition("/block/")
        net = _undashed(cidr)
        return ("", names.block_name(net)) if net and version == f"ipv{net.version}" else None
    if kind is IPAMHandle:
        return ("", names.handle_name(unescaped(rest))) if rest and "/" not in rest else None
    if not kind.KIND.namespaced:
        return ("", rest) if rest and "/" not in rest else None
    namespace, between, name = rest.partition("/")
    return (namespace, name) if namespace and between and name and "/" not in name else None


def escaped(name: str) -> str:
    """A name as a part of a key of IPAM's."""
    return name.replace("%", "%25").replace("/", "%2f")


def unescaped(part: str) -> str:
    return part.replace("%2f", "/").replace("%2F", "/").replace("%25", "%")


def net_of(name: str) -> Net | None:
    """The network that the name of a block stands for: `10-0-0-0-26`, `fd80---122`. None where it is none."""
    base, _, length = name.rpartition("-")
    for mark in (".", ":"):
        try:
            net = parse_net(f"{base.replace('-', mark)}/{length}")
        except ConfigError:
            continue
        if names.block_name(net) == name:
            return net
    return None


def _prefix(kind: type[Resource]) -> str:
    if kind is IPAMBlock:
        return BLOCKS
    if kind is IPAMHandle:
        return HANDLES
    if kind.KIND.api_version == CALICO:
        return f"{RESOURCES}{kind.KIND.plural}/"
    return f"{OWN}{kind.KIND.key}/"


def _handle_key(handle: str) -> bytes:
    return f"{HANDLES}{escaped(handle)}".encode()


def _affinity_key(owner: Owner, net: Net) -> bytes:
    root = AFFINITIES[owner.type == "virtual"]
    return f"{root}{escaped(owner.name)}/ipv{net.version}/block/{_dashed(net)}".encode()


def _affinity(text: str) -> tuple[Owner, Net] | None:
    for root, type_ in zip(AFFINITIES, ("host", "virtual"), strict=True):
        if not text.startswith(root):
            continue
        match text.removeprefix(root).split("/"):
            case [host, version, "block", cidr]:
                net = _undashed(cidr)
                if net and version == f"ipv{net.version}":
                    return Owner(unescaped(host), "virtual" if type_ == "virtual" else "host"), net
    return None


def _affinities(name: str) -> list[tuple[str, Net]]:
    """Every host and network whose affinity may have this name: where a host's name ends is not marked."""
    found = []
    for at, character in enumerate(name):
        net = net_of(name[at + 1 :]) if character == "-" and at else None
        if net and names.affinity_name(name[:at], net) == name:
            found.append((name[:at], net))
    return found


def _dashed(net: Net) -> str:
    return str(net).replace("/", "-")


def _undashed(text: str) -> Net | None:
    try:
        net = parse_net(text.replace("-", "/"))
    except ConfigError:
        return None
    return net if _dashed(net) == text else None


def _must_be(obj: Resource, name: str) -> None:
    if obj.name != name:
        raise ConfigError(f'is "{obj.name}" and must be "{name}"', obj.KIND.kind, "metadata.name")


# Values ---------------------------------------------------------------------------------------------------------


def value(obj: Resource) -> bytes:
    """What is stored of a new object."""
    return msgspec.json.encode(_document(obj))


def value_over(stored: bytes, before: Resource, obj: Resource) -> bytes:
    """What is stored of an object over what was stored, of which `before` is all that we know."""
    try:
        raw = msgspec.json.decode(stored) if stored else None
    except msgspec.DecodeError:
        raw = None
    known, new = _document(before), _document(obj)
    if any(unknown_conditions(before)):
        plain = _document(foreign.read(type(before), stored))
        new["spec"] = opened(new["spec"], known["spec"], plain["spec"])
        known["spec"] = plain["spec"]
    return msgspec.json.encode(new if raw == known else foreign.kept(raw, known, new))


def read(kind: type[R], found: bytes, stored: bytes, revision: int, created: int, left_out: Paths | None = None) -> R:
    """The object of a key and value; `revision` is that of the last write, `created` that of the first. `left_out` gets
    the paths of the spec's fields that are not known, and a sentence for each entry that cannot be read (`entries`).

    Raises NotSupported when this version cannot read it.
    """
    place = identity(kind, found)
    if place is None:
        raise NotSupported(f"{found.decode(errors='replace')} is not the key of a {kind.KIND.kind}")
    namespace, name = place
    if issubclass(kind, IPAM) and found.decode() not in OTHER_CONFIGS:
        uid = str(uuid.uuid5(_UIDS, f"{found.decode()}@{created}"))
        spec, labels = _record(kind, found.decode(), stored, left_out)
        metadata = Metadata(name=name, labels=labels, uid=uid, resource_version=str(revision))
        return kind(metadata=metadata, spec=spec)
    obj = foreign.read(kind, stored, partial(_known, kind, left_out), left_out)
    annotations = obj.metadata.annotations
    if issubclass(kind, POLICIES) and NAMED in annotations:
        annotations = {each: text for each, text in annotations.items() if each != NAMED}
    return changed(obj, name=name, namespace=namespace, annotations=annotations, resource_version=str(revision))


def _known(
    kind: type[Resource], left_out: Paths | None, spec: dict[str, Any], unknown: Sequence[str]
) -> dict[str, Any]:
    """A spec of which some is not known, on the safe side. Raises NotSupported for rules of routes: they have none."""
    if left_out is not None:
        left_out += (f"spec.{path}" for path in unknown)
    if kind not in RULED:
        return spec
    if any(path.startswith(_FILTERS) for path in unknown):
        raise NotSupported(f"spec.{unknown[0]}: is not known to this version: upgrade")
    return closed(spec, unknown)


def normal(obj: R) -> R:
    """The object as it will be read back; what IPAM's records have no room for is gone."""
    if not isinstance(obj, IPAM):
        return obj
    back = read(type(obj), key(obj), value(obj), 0, 0)
    return changed(back, uid=obj.metadata.uid, resource_version=obj.metadata.resource_version)


def _document(obj: Resource) -> Any:
    if isinstance(obj, IPAM):
        return _RECORDS[type(obj)](obj.spec)
    body = msgspec.json.decode(msgspec.json.encode(obj))
    metadata = body.pop("metadata", {})
    metadata.pop("resourceVersion", None)
    if isinstance(obj, POLICIES):
        note = msgspec.json.encode({"name": obj.name}).decode()
        metadata["annotations"] = metadata.get("annotations", {}) | {NAMED: note}
    if obj.KIND.api_version == CALICO:
        body.setdefault("spec", {})
    return {"kind": obj.KIND.kind, "apiVersion": obj.KIND.api_version, "metadata": metadata, **body}


def _block(spec: IPAMBlockSpec) -> dict[str, Any]:
    attributes = []
    for one in spec.attributes:
        made: dict[str, Any] = {"handle_id": one.handle_id, "secondary": one.secondary}
        if one.alternate_owner_attrs:
            made["alternateOwnerAttrs"] = one.alternate_owner_attrs
        if one.released_at is not None:
            made["releasedAt"] = one.released_at
        attributes.append(made)
    block: dict[str, Any] = {"cidr": spec.cidr, "affinity": spec.affinity}
    if spec.affinity_claim_time is not None:
        block["affinity_claim_time"] = spec.affinity_claim_time
    return block | {
        "allocations": list(spec.allocations),
        "unallocated": list(spec.unallocated),
        "attributes": attributes,
        "sequenceNumber": spec.sequence_number,
        "sequenceNumberForAllocation": spec.sequence_number_for_allocation,
        "deleted": spec.deleted,
    }


def _config(spec: IPAMConfigSpec) -> dict[str, Any]:
    made: dict[str, Any] = {
        "strict_affinity": spec.strict_affinity,
        "auto_allocate_blocks": spec.auto_allocate,
        "maxBlocksPerHost": spec.max_blocks_per_host,
    }
    if spec.kube_virt_vm_address_persistence is not None:
        made["kubeVirtVMAddressPersistence"] = spec.kube_virt_vm_address_persistence
    if spec.ip_cooldown_seconds:
        made["ipCooldownSeconds"] = spec.ip_cooldown_seconds
    return made


_RECORDS: dict[type[Resource], Any] = {
    IPAMBlock: _block,
    BlockAffinity: lambda spec: {"state": spec.state, "deleted": spec.deleted},
    IPAMHandle: lambda spec: {"block": spec.block, "deleted": spec.deleted},
    IPAMConfig: _config,
}


def _record(kind: type[Resource], found: str, stored: bytes, left_out: Paths | None) -> tuple[Any, dict[str, str]]:
    """Spec and labels of one of IPAM's records."""
    try:
        body = msgspec.json.decode(stored) if stored.strip() else {}
    except msgspec.DecodeError as error:
        raise NotSupported(f"{found} is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise NotSupported(f"{found} is not an object")
    labels: dict[str, str] = {}
    if kind is IPAMBlock:
        spec = _block_spec(body)
    elif kind is BlockAffinity:
        affinity = _affinity(found)
        assert affinity is not None
        owner, net = affinity
        labels = names.affinity_labels(owner, net.version)
        body |= {"node": owner.name, "cidr": str(net), "type": owner.type}
        spec = body
    elif kind is IPAMHandle:
        spec = body | {"handleID": unescaped(found.removeprefix(HANDLES))}
    else:
        renamed = {"strict_affinity": "strictAffinity", "auto_allocate_blocks": "autoAllocateBlocks"}
        spec = {renamed.get(str(each), str(each)): inner for each, inner in body.items()}
    document = {"metadata": {"name": "x"}, "spec": spec}
    return foreign.read_document(kind, document, partial(_known, kind, left_out)).spec, labels  # type: ignore[attr-defined]


def _block_spec(body: dict[str, Any]) -> dict[str, Any]:
    """Old clusters wrote the owner of a block in another field; claim times are spelt as in the rest of the record."""
    spec = {name: inner for name, inner in body.items() if name not in ("affinity_claim_time", "hostAffinity")}
    if body.get("affinity_claim_time"):
        spec["affinityClaimTime"] = body["affinity_claim_time"]
    if not spec.get("affinity") and body.get("hostAffinity"):
        spec["affinity"] = f"host:{body['hostAffinity']}"
    for one in spec.get("attributes") or ():
        if isinstance(one, dict) and one.get("secondary", "") is None:
            del one["secondary"]
    return spec
