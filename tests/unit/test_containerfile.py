"""The image of the Containerfile, as far as it can be looked at without one, and what its init container does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from tortie import __version__
from tortie.cni.install import build_stub
from tortie.render.manifest import Options, documents, without_comments
from tortie.render.manifest.node import BUNDLED

ROOT = Path(__file__).parents[2]


def of_kind(kind: str) -> Any:
    """The one document of a kind in the manifest."""
    (one,) = (document for document in documents(Options()) if document["kind"] == kind)
    return without_comments(one)


CONTAINERFILE = ROOT / "Containerfile"


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE))
    return [(word, rest.strip()) for line in joined.splitlines() if line for word, _, rest in [line.partition(" ")]]


def test_the_containerfile_copies_what_there_is() -> None:
    """It is not built here, for tests download no images: this is what can be said without."""
    known = {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "ENTRYPOINT"}
    assert {word for word, _ in instructions()} <= known
    stages = {rest.split(" AS ")[1] for word, rest in instructions() if word == "FROM" and " AS " in rest}
    ignored = (ROOT / ".containerignore").read_text().splitlines()
    for word, rest in instructions():
        if word == "FROM":
            assert rest.split()[0] == "debian:12-slim"
        if word != "COPY":
            continue
        *sources, _target = [part for part in rest.split() if not part.startswith("--")]
        if "--from=" in rest:
            assert re.findall(r"--from=(\w+)", rest)[0] in stages
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source


def test_the_image_has_the_program_and_what_it_runs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    entry = json.loads(next(rest for word, rest in instructions() if word == "ENTRYPOINT"))
    assert entry[0] in project["project"]["scripts"]
    text = CONTAINERFILE.read_text()
    assert set(re.findall(r"\.\[(\w+)\]", text)) <= set(project["project"]["optional-dependencies"])
    last = text[text.rindex("FROM ") :]
    for package in ("bird2", "nftables", "iproute2", "python3", "mount", "containernetworking-plugins"):
        assert re.search(rf"\b{package}\b", last)
    assert not re.search(r"\b(curl|wget|git clone)\b|ADD http", text)
    assert next(rest for word, rest in reversed(instructions()) if word == "USER") == "65532:65532"
    assert f"tortie:{__version__} ." in text


def test_the_lock_gives_constraints_for_the_image() -> None:
    (script,) = re.findall(r"sed -nE '(.*?)' requirements.lock", CONTAINERFILE.read_text())
    words = ["sed", "-nE", script, str(ROOT / "requirements.lock")]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["etcd"]]
    pinned = {re.split(r"==|\[", line)[0].lower() for line in lines if "==" in line}
    assert {re.split(r"[<>=\[]", name)[0].lower() for name in wanted} <= pinned


def test_an_image_without_a_compiler_installs_the_stub_that_it_brings(tmp_path: Path) -> None:
    """Not a script: the host has not the image's Python."""
    ready = build_stub(tmp_path / "ready")
    assert ready.read_bytes()[:4] == b"\x7fELF"
    container = {"compiler": "no-such-compiler", "python": "/opt/tortie/bin/python"}
    made = build_stub(tmp_path / "host", **container, prebuilt=ready.parent)
    assert made.read_bytes() == ready.read_bytes()
    assert build_stub(tmp_path / "other", **container, prebuilt=tmp_path / "none").read_bytes()[:2] == b"#!"
    ready.write_bytes(b"of another version")
    assert build_stub(tmp_path / "third", **container, prebuilt=ready.parent).read_bytes()[:2] == b"#!"


def test_the_plugins_init_container_does_its_work(tmp_path: Path) -> None:
    """Run as it is there, on directories of this test's."""
    (container, _) = of_kind("DaemonSet")["spec"]["template"]["spec"]["initContainers"]
    host, image = tmp_path / "host", tmp_path / "image"
    (host / "opt/cni/bin").mkdir(parents=True)
    image.mkdir()
    for name in BUNDLED:
        (image / name).write_text("the image's")
    (host / "opt/cni/bin/portmap").write_text("the host's")
    script = container["command"][2].replace("/host/", f"{host}/").replace("/usr/lib/cni/", f"{image}/")
    script = script.replace("exec tortie", f"exec {sys.executable} -m tortie.cli.main")
    config = of_kind("ConfigMap")["data"]
    values = {
        one["name"]: config[one["valueFrom"]["configMapKeyRef"]["key"]]
        if "configMapKeyRef" in one.get("valueFrom", {})
        else one.get("value", "worker-1")
        for one in container["env"]
    }
    for _again in range(2):
        words = [*container["command"][:2], script]
        environment = {"PATH": "/usr/bin:/bin", **values}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (host / "opt/cni/bin/portmap").read_text() == "the host's"
    assert (host / "opt/cni/bin/loopback").read_text() == "the image's"
    assert (host / "opt/cni/bin/calico").stat().st_mode & 0o111
    written = json.loads((host / "etc/cni/net.d/10-calico.conflist").read_text())
    assert written["plugins"][0]["nodename"] == "worker-1"
    assert written["plugins"][0]["mtu"] == 0
    assert [path.name for path in (host / "etc/cni/net.d").iterdir()] == ["10-calico.conflist"], "and no credential"
