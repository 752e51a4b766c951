"""The double as a program: prints its URL, and runs until it is interrupted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path

import yaml

from kube_api.server import KubeApi


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kube_api", description="A Kubernetes API server for tests and labs.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--kubeconfig", type=Path, help="write the administrator's kubeconfig to this file")
    parser.add_argument("--load", type=Path, action="append", default=[], help="YAML file of objects to begin with")
    parser.add_argument("--tls", action="store_true", help="serve HTTPS")
    parser.add_argument("--rbac", action="store_true", help="authorise requests")
    parser.add_argument("--bookmarks", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--no-kubelet", action="store_true", help="pods stay until somebody deletes them with grace 0")
    return parser.parse_args()


async def main() -> None:
    given = _arguments()
    api = KubeApi(
        host=given.host,
        port=given.port,
        tls=given.tls,
        rbac=given.rbac,
        bookmark_every=given.bookmarks,
        kubelet=not given.no_kubelet,
        control=True,
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with api:
        for file in given.load:
            for obj in yaml.safe_load_all(file.read_text()):
                for one in (obj or {}).get("items") or ([obj] if obj else []):
                    api.create(one)
        if given.kubeconfig:
            api.kubeconfig(given.kubeconfig)
        print(api.url, flush=True)
        await stop.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
