"""`tortie manifest`: prints what `kubectl apply` installs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tortie import __version__

Datastore = Annotated[str, typer.Option("--datastore", metavar="kubernetes|etcd", help="Where the cluster is kept.")]
Endpoints = Annotated[str, typer.Option("--etcd-endpoints", metavar="URL,...", help="etcd's; https needs a Secret.")]
Pools = Annotated[
    list[str] | None, typer.Option("--pool", metavar="CIDR", help="The first pool; one of IPv4, one of IPv6.")
]
Encapsulation = Annotated[
    str,
    typer.Option(
        "--encapsulation",
        metavar="IPIP|IPIPCrossSubnet|VXLAN|VXLANCrossSubnet|None",
        help="How packets of pods go between nodes.",
    ),
]
Bgp = Annotated[bool, typer.Option("--bgp/--no-bgp", help="Run BIRD on every node.")]
PolicyOnly = Annotated[
    bool, typer.Option("--policy-only", help="Addresses are host-local's, routes somebody else's; policy is ours.")
]
Mtu = Annotated[int, typer.Option("--mtu", metavar="BYTES", help="Of pods; 0: each node finds its own out.")]
Image = Annotated[str, typer.Option("--image", metavar="IMAGE", help="What the nodes run.")]
Offline = Annotated[str, typer.Option("--offline", metavar="REGISTRY", help="Pull the image from this registry.")]
Selector = Annotated[
    list[str] | None, typer.Option("--node-selector", metavar="KEY=VALUE", help="Only on nodes with this label.")
]
Passwords = Annotated[
    bool, typer.Option("--bgp-passwords", help="Let nodes read Secrets of kube-system, for BGP sessions.")
]
Fanout = Annotated[
    int, typer.Option("--fanout", metavar="N", help="So many fan-out servers between datastore and agents.", min=0)
]
Network = Annotated[
    str,
    typer.Option(
        "--network",
        metavar="calico|flannel|canal",
        help="canal: flannel makes the ways between nodes, policy is ours.",
    ),
]
FlannelBackend = Annotated[
    str,
    typer.Option(
        "--flannel-backend",
        metavar="TYPE",
        help="With flannel or canal: vxlan, host-gw, udp, ipip, wireguard, alloc.",
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")]


def manifest(
    datastore: Datastore = "kubernetes",
    etcd_endpoints: Endpoints = "",
    pool: Pools = None,
    encapsulation: Encapsulation = "IPIP",
    bgp: Bgp = True,
    policy_only: PolicyOnly = False,
    mtu: Mtu = 0,
    image: Image = f"tortie:{__version__}",
    offline: Offline = "",
    node_selector: Selector = None,
    bgp_passwords: Passwords = False,
    fanout: Fanout = 0,
    network: Network = "calico",
    flannel_backend: FlannelBackend = "vxlan",
    output: Output = None,
) -> None:
    """Print all that a Kubernetes cluster needs to run this network: kubectl apply -f FILE."""
    from tortie.base.errors import ConfigError
    from tortie.render.manifest import Options
    from tortie.render.manifest import manifest as rendered

    options = Options(
        datastore=datastore,  # type: ignore[arg-type]  # looked at there
        etcd_endpoints=tuple(url.strip() for url in etcd_endpoints.split(",") if url.strip()),
        pools=tuple(pool or ()),
        encapsulation=encapsulation,  # type: ignore[arg-type]
        bgp=bgp,
        policy_only=policy_only,
        mtu=mtu,
        image=image,
        registry=offline,
        node_selector=tuple(node_selector or ()),
        bgp_passwords=bgp_passwords,
        fanout=fanout,
        network=network,  # type: ignore[arg-type]
        flannel_backend=flannel_backend,
    )
    text = rendered(options, _command())
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror}", "--output") from None


def _command() -> str:
    """What was typed, without where it was to go."""
    words = sys.argv[1:] if sys.argv[1:2] == ["manifest"] else ["manifest"]
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith("--output="):
            skip = False
        elif word in ("-o", "--output"):
            skip = True
        else:
            kept.append(word)
    return shlex.join(["tortie", *kept])
