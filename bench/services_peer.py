"""kube-proxy beside ours, both on the same API server's double: for the script `services`, where KUBE_PROXY names one.

The double is a thread of the measuring process, and as slow for one as for the other.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from tortie.model.document import dump
from tortie.model.k8s import K8sNode
from tortie.model.meta import Metadata, Resource

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from kube_api import KubeApi
from kube_thread import ApiThread

VARIABLE = "KUBE_PROXY"
MODES = ("nftables", "iptables")
AT_ONCE = 500
"""Objects made in one turn of the double's loop."""


@contextlib.contextmanager
def cluster(path: str, resources: Iterable[Resource], node: str, kubeconfig: Path) -> Iterator[str]:
    """An API server with these objects, on loopback of a namespace; the text that names it as a datastore."""
    thread = ApiThread(path, KubeApi())
    thread.start()
    try:
        every = iter((K8sNode(metadata=Metadata(name=node)), *resources))
        while some := [dump(one) for one in islice(every, AT_ONCE)]:
            thread.do(_created, thread.api, some)
        thread.do(thread.api.kubeconfig, kubeconfig)
        yield f"kubernetes:{kubeconfig}"
    finally:
        thread.stop()


def _created(api: KubeApi, documents: Sequence[dict[str, object]]) -> None:
    for document in documents:
        api.create(document)


def command(mode: str, node: str, kubeconfig: Path) -> list[str]:
    """Nothing of the machine outside of its namespace is set."""
    return [
        os.environ[VARIABLE], f"--hostname-override={node}", f"--kubeconfig={kubeconfig}", f"--proxy-mode={mode}",
        "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s",
        "--oom-score-adj=0", "--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249",
        "--cluster-cidr=10.65.0.0/16",
    ]  # fmt: skip
