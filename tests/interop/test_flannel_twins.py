"""flannel's own CNI plugin and ours, asked for the same: they tell the delegate the same, and answer in the same words.

FLANNEL_CNI names the plugin's executable. Where ours does better on purpose, that is asserted in the place of equality
(docs/differences.md).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import namespaces
from attachments import addresses, routes
from cni_plugins import GO, Caller, Said, put
from namespaces import Ns

FLANNEL = os.environ.get("FLANNEL_CNI", "")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not FLANNEL, reason="needs flannel's CNI plugin: FLANNEL_CNI names its executable"),
]

ENV = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
SIX = "FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\n"
RECORDER = """#!/bin/sh
cat > "$RECORDS/$CNI_COMMAND"
[ -z "$FAILS" ] || { echo "$FAILS"; exit 1; }
[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.244.1.2/24"}]}'
"""


class Twin:
    """One of the two, with a subnet.env and a state directory of its own."""

    def __init__(self, call: Caller, directory: Path, pod: Ns) -> None:
        self.call, self.directory, self.pod = call, directory, pod
        self.env, self.state = directory / "subnet.env", directory / "state"
        (directory / "records").mkdir(parents=True)
        self.env.write_text(ENV)

    def conf(self, **more: Any) -> dict[str, Any]:
        files = {"subnetFile": str(self.env), "dataDir": str(self.state)}
        ipam = {"dataDir": str(self.directory / "ipam")}
        return {"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "ipam": ipam, **files, **more}

    def __call__(self, command: str, conf: Mapping[str, Any], **env: str) -> Said:
        return self.call(command, conf, netns=self.pod.path, RECORDS=str(self.directory / "records"), **env)

    def plain(self, text: str) -> str:
        return text.replace(str(self.directory), "DIR")

    def told(self, command: str) -> str:
        found = self.directory / "records" / command
        return self.plain(found.read_text()) if found.exists() else ""

    @property
    def kept(self) -> list[str]:
        """What is in the files of the state directory, whatever their names."""
        files = sorted(self.state.iterdir()) if self.state.exists() else []
        return [self.plain(each.read_text()) for each in files]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Theirs, with Debian's plugins beside it, and ours."""
    theirs, ours = tmp_path_factory.mktemp("theirs"), put(tmp_path_factory.mktemp("ours"))
    shutil.copy(FLANNEL, theirs / "flannel")
    for each in GO.iterdir():
        (theirs / each.name).symlink_to(each)
    for directory in (theirs, ours):
        (directory / "recorder").write_text(RECORDER)
        (directory / "recorder").chmod(0o755)
    return theirs, ours


@pytest.fixture
def twins(directories: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[Twin, Twin]]:
    for make in namespaces.namespaces():
        theirs, ours = (
            Twin(Caller(directory, make(f"{name}-host").name), tmp_path / name, make(f"{name}-pod"))
            for name, directory in zip(("go", "ours"), directories, strict=True)
        )
        yield theirs, ours


def both(twins: tuple[Twin, Twin], act: Callable[[Twin], Any]) -> tuple[Any, Any]:
    return act(twins[0]), act(twins[1])


TOLD: Mapping[str, tuple[str, dict[str, Any]]] = {
    "plain": (ENV, {}),
    "no-masquerade": (ENV.replace("true", "false"), {}),
    "odd-masquerade": (ENV.replace("true", "yes"), {}),
    "dual": (ENV + SIX, {}),
    "six": (ENV.replace("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n", SIX), {}),
    "networks": (ENV.replace("10.244.0.0/16", "10.244.0.0/16,10.245.7.7/16,10.244.0.0/16"), {}),
    "six-under-fours-names": (ENV.replace("10.244.0.0/16", "fd00::/48").replace("10.244.1.1/24", "fd00::1/64"), {}),
    "noise": (f"# a comment\n\nBAD\nOTHER=1=2\n{ENV}", {}),
    "windows": (ENV.replace("\n", "\r\n"), {}),
    "given": (ENV, {"delegate": {"mtu": 9000, "ipMasq": True, "isGateway": False, "z": [1, {"y": "<&>", "x": None}]}}),
    "null-mtu": (ENV, {"delegate": {"mtu": 1400, "bridge": None}}),
    "runtime": (ENV, {"runtimeConfig": {"portMappings": [{"hostPort": 80}], "mac": "x"}}),
    "ipam": (ENV, {"ipam": {"type": "other", "ranges": [[{"subnet": "10.0.0.0/8"}]], "range": 7}}),
    "routes": (ENV, {"ipam": {"routes": [{"dst": "10.9.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.244.1.9"}]}}),
    "no-version": (ENV, {"cniVersion": ""}),
    "old-version": (ENV, {"cniVersion": "0.3.1"}),
}


@pytest.mark.parametrize("case", TOLD)
def test_delegates_are_told_the_same(twins: tuple[Twin, Twin], case: str) -> None:
    env, more = TOLD[case]

    def live(twin: Twin) -> Any:
        twin.env.write_bytes(env.encode())
        conf = twin.conf(**{**more, "delegate": {"type": "recorder", **more.get("delegate", {})}})
        said = twin("ADD", conf)
        assert said.code == 0, said
        kept = twin.kept
        gone = twin("DEL", conf)
        assert (gone.code, twin.kept) == (0, [])
        return twin.told("ADD"), kept, twin.told("DEL"), json.loads(said.stdout)

    theirs, ours = both(twins, live)
    # A result in another version than was asked for is put right by ours alone.
    assert ours[: 3 if "version" in case else 4] == theirs[: 3 if "version" in case else 4]
    assert ours[0] == ours[1][0] == ours[2]


REFUSED: Mapping[str, tuple[str | None, dict[str, Any]]] = {
    "no-env": (None, {}),
    "empty": ("", {}),
    "no-mtu": (ENV.replace("FLANNEL_MTU", "X"), {}),
    "no-masquerade": (ENV.replace("FLANNEL_IPMASQ", "X"), {}),
    "no-subnet": (ENV.replace("FLANNEL_SUBNET", "X"), {}),
    "no-network": (ENV.replace("FLANNEL_NETWORK", "X"), {}),
    "bad-mtu": (ENV.replace("1450", "14k"), {}),
    "no-number": (ENV.replace("1450", ""), {}),
    "negative": (ENV.replace("1450", "-1"), {}),
    "large": (ENV.replace("1450", "4294967296"), {}),
    "bad-network": (ENV.replace("10.244.0.0/16", "10.244.0.0"), {}),
    "bad-list": (ENV.replace("10.244.0.0/16", "10.244.0.0/16,"), {}),
    "bad-subnet": (ENV.replace("10.244.1.1/24", "10.244.1.300/24"), {}),
    "delegate-name": (ENV, {"delegate": {"name": "x"}}),
    "delegate-ipam": (ENV, {"delegate": {"ipam": {}}}),
    "delegate-type": (ENV, {"delegate": {"type": 7}}),
    "env-first": (None, {"delegate": {"ipam": {}}}),
    "type-first": (ENV, {"delegate": {"type": 7, "name": "x", "ipam": {}}}),
    "name-first": (ENV, {"delegate": {"name": "x", "ipam": {}}}),
    "no-such-delegate": (ENV, {"delegate": {"type": "nope"}}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_same_is_refused_in_the_same_words(twins: tuple[Twin, Twin], case: str) -> None:
    env, more = REFUSED[case]

    def refused(twin: Twin) -> Any:
        if env is None:
            twin.env.unlink()
        else:
            twin.env.write_text(env)
        code, text = twin("ADD", twin.conf(**more)).error
        return code, twin.plain(text).replace(str(twin.call.directory), "BIN"), twin.kept

    theirs, ours = both(twins, refused)
    assert ours == theirs


def test_what_fails_is_kept_for_del(twins: tuple[Twin, Twin]) -> None:
    error = '{"code": 11, "msg": "not now", "details": "later"}'

    def fail(twin: Twin) -> Any:
        conf = twin.conf(delegate={"type": "recorder"})
        added = twin("ADD", conf, FAILS=error)
        kept = twin.kept
        return added.doc, kept, twin("DEL", conf, FAILS=error).doc, len(twin.kept)

    theirs, ours = both(twins, fail)
    assert ours[:3] == theirs[:3]
    assert (theirs[3], ours[3]) == (0, 1), "flannel's forgets what it could not take away"


def test_del_with_nothing_there(twins: tuple[Twin, Twin]) -> None:
    def twice(twin: Twin) -> Any:
        twin.env.unlink()
        return [twin("DEL", twin.conf()) for _ in range(2)]

    theirs, ours = both(twins, twice)
    assert ours == theirs == [Said(0, "", "")] * 2


def test_each_takes_away_what_flannels_has_made(twins: tuple[Twin, Twin]) -> None:
    """A node goes over to our plugin while its pods run."""
    theirs, ours = twins
    conf = theirs.conf(delegate={"bridge": "br9", "isDefaultGateway": True})
    how: dict[str, str] = {"netns": theirs.pod.path}
    theirs.call.add(conf, **how)
    assert [each.name for each in theirs.state.iterdir()] == ["ctr1"]
    assert addresses(theirs.pod, "eth0") == ["10.244.1.2/24"]
    here = Caller(ours.call.directory, theirs.call.host)
    assert here("DEL", conf, **how).code == 0
    assert list(theirs.state.iterdir()) == []
    assert {each["ifname"] for each in theirs.pod.json("link", "show")} == {"lo"}
    assert not list((theirs.directory / "ipam").rglob("10.244.1.2"))


def test_pods_are_the_same(twins: tuple[Twin, Twin]) -> None:
    """Each with bridge and host-local of its own kind, as kube-flannel configures them."""

    def live(twin: Twin) -> Any:
        twin.env.write_text(ENV + SIX)
        conf = twin.conf(cniVersion="0.3.1", delegate={"hairpinMode": True, "isDefaultGateway": True})
        result = twin.call.add(conf, netns=twin.pod.path)
        pod, host = twin.pod, Ns(twin.call.host)
        seen = [addresses(pod, "eth0"), routes(pod), routes(pod, "-6"), addresses(host, "cni0")]
        mtu = [pod.json("link", "show", "dev", "eth0")[0]["mtu"], host.json("link", "show", "dev", "cni0")[0]["mtu"]]
        assert twin("DEL", conf | {"prevResult": result}).code == 0
        return [result["cniVersion"], result["ips"], result["routes"]], seen, mtu

    theirs, ours = both(twins, live)
    assert ours == theirs
