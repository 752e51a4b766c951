"""The fixture that gives tests an API server: the double, or a real one, of which here only the start is tested."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kube_api import KubeApi
from kube_api.plain import Plain
from kube_server import RealKubeApi, kube_server, real_assets


@pytest.mark.skipif(real_assets() is not None, reason="a real API server is there")
async def test_without_assets_it_is_the_double(tmp_path: Path) -> None:
    async with kube_server(rbac=True) as server:
        assert isinstance(server, KubeApi)
        kubeconfig = yaml.safe_load(server.kubeconfig(tmp_path / "kubeconfig").read_text())
        async with Plain(
            kubeconfig["clusters"][0]["cluster"]["server"], kubeconfig["users"][0]["user"]["token"]
        ) as admin:
            assert (await admin.get("/api/v1/namespaces")).status == 200


def test_what_only_the_double_can_do_is_a_skip(tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match="a real API server has no `faults`; the double has"):
        RealKubeApi(tmp_path).faults  # noqa: B018


async def test_a_real_one_that_does_not_start_leaves_nothing(tmp_path: Path) -> None:
    noted = tmp_path / "etcd-pid"
    wait = f"while ! [ -s {noted} ]; do sleep 0.05; done"
    programs = {"etcd": f"echo $$ > {noted}\nexec sleep 60", "kube-apiserver": f"{wait}\necho broken >&2\nexit 1"}
    for name, lines in programs.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
    server = RealKubeApi(tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        await server.__aenter__()
    assert server.authority is not None
    assert not server.authority.directory.exists()
    assert not _runs(noted)


def _runs(noted: Path) -> bool:
    return Path(f"/proc/{noted.read_text().strip()}").exists()
