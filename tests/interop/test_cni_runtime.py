"""The runtime runs the Go plugins bridge, host-local and loopback inside a node's namespace, as libcni would."""

import asyncio
import base64
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tortie.cni.conflist import load_conflist
from tortie.cni.delegate import find
from tortie.cni.runtime import Runtime
from tortie.cni.spec import CniError

GO = "/usr/lib/cni"
NEEDED = ("bridge", "host-local", "loopback", "tuning")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="not root"),
    pytest.mark.skipif(
        not all(Path(GO, name).exists() for name in NEEDED),
        reason=f"no Go plugins in {GO} (containernetworking-plugins)",
    ),
]

serial = itertools.count()


def ip(*argv):
    done = subprocess.run(["ip", *argv], capture_output=True, text=True, check=True)
    return json.loads(done.stdout) if "-j" in argv and done.stdout else None


@pytest.fixture
def namespace():
    """Makes namespaces, and deletes them."""
    made = []

    def make(role):
        name = f"tt-{os.getpid()}-{role}{next(serial)}"
        ip("netns", "add", name)
        made.append(name)
        return name

    yield make
    for name in made:
        ip("netns", "del", name)


@pytest.fixture
def node(namespace):
    return namespace("node")


@pytest.fixture
def pod(namespace):
    return namespace("pod")


@pytest.fixture
def runtime(node, tmp_path):
    prefix = ["nsenter", f"--net=/run/netns/{node}"]
    return Runtime([GO], tmp_path / "cache", exec_prefix=prefix, timeout=30)


def bridged(tmp_path, version="1.0.0", **more):
    ipam = {"type": "host-local", "subnet": "10.99.1.0/24", "dataDir": str(tmp_path / "ipam")}
    bridge = {"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": ipam}
    plugins = [{"type": "loopback"}, bridge, {"type": "tuning", "capabilities": {"mac": True}}]
    return load_conflist({"name": "net1", "cniVersion": version, "plugins": plugins} | more)


def leases(tmp_path):
    return sorted(path.name for path in (tmp_path / "ipam" / "net1").glob("10.*"))


def addresses(netns, device):
    links = ip("-n", netns, "-j", "addr", "show", "dev", device)
    return [one["local"] for one in links[0]["addr_info"] if one["family"] == "inet"]


async def test_an_attachment_is_made_checked_and_removed(runtime, node, pod, tmp_path):
    net, netns = bridged(tmp_path), f"/run/netns/{pod}"
    args = {"IgnoreUnknown": "1", "K8S_POD_NAME": "a"}
    capabilities = {"mac": "02:00:00:00:00:09", "portMappings": []}
    result = await runtime.add(net, "ctr1", netns, "eth0", args, capabilities)

    assert result["cniVersion"] == "1.0.0"
    [address] = result["ips"]
    assert result["interfaces"][address["interface"]]["sandbox"] == netns
    [link] = ip("-n", pod, "-j", "link", "show", "dev", "eth0")
    assert link["address"] == "02:00:00:00:00:09", "the capability that tuning declared reached it"
    assert addresses(pod, "eth0") == [address["address"].split("/")[0]]
    assert addresses(pod, "lo") == ["127.0.0.1"]
    assert addresses(node, "br0") == ["10.99.1.1"]
    assert "br0" not in {one["ifname"] for one in ip("-j", "link", "show")}, "the plugin ran inside the node"

    path = tmp_path / "cache" / "results" / "net1-ctr1-eth0"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    cached = json.loads(path.read_text())
    assert json.loads(base64.b64decode(cached.pop("config"))) == json.loads(net.source)
    assert cached == {
        "kind": "cniCacheV1",
        "containerId": "ctr1",
        "ifName": "eth0",
        "networkName": "net1",
        "netns": netns,
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "a"]],
        "capabilityArgs": capabilities,
        "result": result,
    }

    await runtime.check(net, "ctr1", netns, "eth0", args, capabilities)
    ip("-n", pod, "addr", "flush", "dev", "eth0")
    with pytest.raises(CniError, match='plugin "bridge": '):
        await runtime.check(net, "ctr1", netns, "eth0", args, capabilities)

    for _ in range(2):  # the second time nothing is there any more
        await runtime.delete(net, "ctr1", netns, "eth0", args, capabilities)
        assert list(path.parent.iterdir()) == []
        assert leases(tmp_path) == []
        assert [one["ifname"] for one in ip("-n", pod, "-j", "link", "show")] == ["lo"]


@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "0.4.0", "1.0.0"])
async def test_every_version_makes_the_round(runtime, pod, tmp_path, version):
    net, netns = bridged(tmp_path, version), f"/run/netns/{pod}"
    result = await runtime.add(net, "ctr1", netns)
    assert result["cniVersion"] == version
    assert ("ip4" in result) == (version == "0.2.0")
    if version < "0.4.0":
        with pytest.raises(CniError) as caught:
            await runtime.check(net, "ctr1", netns)
        text = f'configuration version "{version}" does not support the CHECK command'
        assert (caught.value.code, caught.value.msg) == (1, text)
    else:
        await runtime.check(net, "ctr1", netns)
    await runtime.delete(net, "ctr1", netns)
    assert leases(tmp_path) == []


async def test_what_is_gone_or_spoilt_does_not_stop_a_delete(runtime, namespace, tmp_path):
    net, pod = bridged(tmp_path), namespace("gone")
    await runtime.add(net, "ctr1", f"/run/netns/{pod}")
    (tmp_path / "cache" / "results" / "net1-ctr1-eth0").write_text("spoilt")
    with pytest.raises(CniError, match='the cached result of network "net1" cannot be read'):
        await runtime.check(net, "ctr1", f"/run/netns/{pod}")
    await runtime.delete(net, "ctr1", "")
    assert leases(tmp_path) == []
    assert list((tmp_path / "cache" / "results").iterdir()) == []


async def test_gc_removes_what_is_not_valid_any_more(runtime, pod, tmp_path):
    net, netns = bridged(tmp_path), f"/run/netns/{pod}"
    for index in range(3):
        await runtime.add(net, f"ctr{index}", netns, f"eth{index}")
    foreign = bridged(tmp_path / "other", name="net1-ctr0")
    await runtime.add(load_conflist(json.loads(foreign.source) | {"plugins": [{"type": "loopback"}]}), "c", netns, "x")
    await runtime.gc(load_conflist(json.loads(net.source) | {"disableGC": True}), [])
    assert len(leases(tmp_path)) == 3

    await runtime.gc(net, [("ctr1", "eth1"), ("unheard-of", "eth0")])
    left = sorted(path.name for path in (tmp_path / "cache" / "results").iterdir())
    assert left == ["net1-ctr0-c-x", "net1-ctr1-eth1"]
    assert {one["ifname"] for one in ip("-n", pod, "-j", "link", "show")} == {"lo", "eth1"}
    assert len(leases(tmp_path)) == 1


async def test_a_failing_plugin_is_named_with_what_it_said(runtime, pod, tmp_path):
    net, netns = bridged(tmp_path), f"/run/netns/{pod}"
    await runtime.add(net, "ctr1", netns)
    with pytest.raises(CniError) as caught:
        await runtime.add(net, "ctr1", netns)
    assert (caught.value.plugin, caught.value.code) == ("bridge", 999)
    assert "already exists" in caught.value.msg or "duplicate allocation" in caught.value.msg
    future = load_conflist(json.loads(net.source) | {"cniVersion": "9.9.9"})
    with pytest.raises(CniError) as caught:
        await runtime.add(future, "ctr2", netns)
    assert (caught.value.plugin, caught.value.code) == ("loopback", 1)
    assert str(caught.value).startswith('plugin "loopback": incompatible CNI versions; config is "9.9.9", ')


async def test_plugins_tell_their_versions(runtime):
    assert await runtime.version("bridge") >= ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")


async def test_a_prefix_that_cannot_work_is_an_error_with_its_words(tmp_path):
    runtime = Runtime([GO], tmp_path, exec_prefix=["nsenter", "--net=/run/netns/tt-none"])
    with pytest.raises(CniError, match=r"netplugin failed: .*tt-none.*exit status 1"):
        await runtime.version("bridge")
    with pytest.raises(CniError, match=f"cannot run {tmp_path}/nothing: No such file"):
        await Runtime([GO], tmp_path, exec_prefix=[f"{tmp_path}/nothing"]).version("bridge")


# --- Plugins written for the occasion: programs as real as the others ------------------------------------------------


def plugin(directory, name, script):
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def chain(*names, version="1.1.0", big="", **more):
    plugins = [{"type": name} | ({"big": big} if big else {}) for name in names]
    return load_conflist({"name": "net1", "cniVersion": version, "plugins": plugins} | more)


RECORD = r"""printf '%s %s %s %s|' "$CNI_COMMAND" "${0##*/}" "$CNI_CONTAINERID" "$CNI_IFNAME" >>"$LOG"
cat >>"$LOG"; echo >>"$LOG"
"""


@pytest.fixture
def scripted(tmp_path):
    """A runtime whose plugins a and b record what they are told, and a reader of the record."""
    log = tmp_path / "log"
    answer = '{"ips": [{"address": "10.0.0.1/8"}], "from": "%s"}'
    for name in "ab":
        plugin(tmp_path / "bin", name, f"{RECORD}[ $CNI_COMMAND = ADD ] && echo '{answer % name}'; exit 0")

    def told():
        lines = [line.split("|", 1) for line in log.read_text().splitlines()]
        log.unlink()
        return [(who.split(), json.loads(stdin)) for who, stdin in lines]

    return Runtime([str(tmp_path / "none"), str(tmp_path / "bin")], tmp_path / "cache", {"LOG": str(log)}), told


async def test_the_documents_of_a_chain(scripted):
    runtime, told = scripted
    net = load_conflist(
        {
            "name": "net1",
            "cniVersion": "1.1.0",
            "plugins": [{"TYPE": "a", "type": "a", "CNIVersion": "0.1.0", "Name": "x", "keep": 1}, {"type": "b"}],
        }
    )
    result = await runtime.add(net, "ctr1", "/run/netns/x")
    assert result == {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.1/8"}], "from": "b"}
    common = {"cniVersion": "1.1.0", "name": "net1"}
    first = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.1/8"}], "from": "a"}
    attachment = ["ctr1", "eth0"]
    assert told() == [
        (["ADD", "a", *attachment], {"TYPE": "a", "type": "a", "keep": 1, **common}),
        (["ADD", "b", *attachment], {"type": "b", **common, "prevResult": first}),
    ]
    net = chain("a", "b")
    await runtime.check(net, "ctr1", "/run/netns/x")
    previous = {**common, "prevResult": result}
    assert told() == [(["CHECK", name, *attachment], {"type": name, **previous}) for name in "ab"]
    await runtime.status(net)
    assert told() == [(["STATUS", name], {"type": name, **common}) for name in "ab"]
    await runtime.gc(net, [("ctr1", "eth0")])
    valid = [{"containerID": "ctr1", "ifname": "eth0"}]
    keys = {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
    assert told() == [(["GC", name], {"type": name, **common, **keys}) for name in "ab"]
    await runtime.delete(net, "ctr1", "/run/netns/x")
    assert told() == [(["DEL", name, *attachment], {"type": name, **previous}) for name in "ba"]
    await runtime.delete(net, "ctr1", "/run/netns/x")
    assert told() == [(["DEL", name, *attachment], {"type": name, **common}) for name in "ba"]


async def test_late_verbs_are_not_asked_of_earlier_versions(scripted, tmp_path):
    runtime, _ = scripted
    net = chain("a", version="1.0.0")
    await runtime.status(net)
    await runtime.gc(net, [])
    await runtime.check(chain("a", disableCheck=True), "ctr1", "/x")
    assert not (tmp_path / "log").exists(), "no plugin was run"


async def test_an_answer_in_another_version_is_converted_and_none_is_an_error(scripted, tmp_path):
    runtime, _ = scripted
    old = '{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/8"}}'
    plugin(tmp_path / "bin", "old", f"cat >/dev/null; echo '{old}'")
    result = await runtime.add(chain("old", "b", version="0.4.0"), "ctr1", "/x")
    assert result["cniVersion"] == "0.4.0"
    [line] = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line.split("|", 1)[1])["prevResult"]["ips"] == [{"version": "4", "address": "10.0.0.1/8"}]
    for said, text in (
        ("", "cannot decode result: unexpected end of JSON input"),
        ("[]", "cannot decode result: it is not an object"),
        ('{"cniVersion": "7"}', 'unsupported CNI result version "7"'),
    ):
        plugin(tmp_path / "bin", "odd", f"echo '{said}'")
        with pytest.raises(CniError) as caught:
            await runtime.add(chain("odd"), "ctr2", "/x")
        assert (caught.value.plugin, caught.value.msg) == ("odd", text)
    plugin(tmp_path / "bin", "odd", "echo null")
    assert await runtime.add(chain("odd"), "ctr2", "/x") == {"cniVersion": "1.1.0"}


async def test_errors_of_plugins(scripted, tmp_path):
    runtime, told = scripted
    error = '{"code": 7, "msg": "m", "details": "d"}'
    plugin(tmp_path / "bin", "bad", f"echo '{error}'; exit 1")
    plugin(tmp_path / "bin", "noisy", "echo why >&2; exit 3")
    plugin(tmp_path / "bin", "killed", "kill -9 $$")
    for name, code, text in (
        ("bad", 7, 'plugin "bad": m; d'),
        ("noisy", 999, 'plugin "noisy": netplugin failed: "why": exit status 3'),
        ("killed", 999, 'plugin "killed": netplugin failed with no error message: signal: Killed'),
        ("none", 999, f'failed to find plugin "none" in path [{tmp_path}/none {tmp_path}/bin]'),
        ("../a", 999, "invalid plugin name: ../a"),
    ):
        with pytest.raises(CniError) as caught:
            await runtime.add(chain("a", name, "b"), "ctr1", "/x")
        assert (caught.value.code, str(caught.value)) == (code, text)
        assert [who[1] for who, _ in told()] == ["a"], "nothing runs after an error"
    assert not (tmp_path / "cache").exists(), "a failed ADD is not remembered"
    with pytest.raises(CniError, match='"bad"'):
        await runtime.delete(chain("a", "bad", "b"), "ctr1", "/x")
    assert [who[1] for who, _ in told()] == ["b"]
    with pytest.raises(CniError) as caught:
        await runtime.gc(chain("bad", "a", "noisy"), [])
    assert caught.value.code == 7
    assert str(caught.value) == 'plugin "bad": m; d; plugin "noisy": netplugin failed: "why": exit status 3'
    assert [who[1] for who, _ in told()] == ["a"], "GC goes on after an error"
    with pytest.raises(CniError, match="no plugin name provided"):
        find("", [])


@pytest.mark.parametrize(
    ("container_id", "ifname", "text"),
    [
        ("../ctr", "eth0", "invalid characters in containerID"),
        ("", "eth0", "missing containerID"),
        ("ctr1", "a/b", "interface name contains"),
        ("ctr1", "", "interface name is empty"),
    ],
)
async def test_names_are_checked_before_anything_is_run(scripted, tmp_path, container_id, ifname, text):
    runtime, _ = scripted
    for verb in (runtime.add, runtime.delete, runtime.check):
        with pytest.raises(CniError, match=text):
            await verb(chain("a"), container_id, "/x", ifname)
    assert not (tmp_path / "log").exists()


async def test_a_forged_cache_entry_does_not_lead_out_of_the_cache(scripted, tmp_path):
    runtime, _ = scripted
    await runtime.add(chain("a"), "ctr1", "/x")
    path = tmp_path / "cache" / "results" / "net1-ctr1-eth0"
    forged = json.loads(path.read_text()) | {"containerId": "../../x"}
    path.write_text(json.dumps(forged))
    with pytest.raises(CniError, match="invalid characters in containerID"):
        await runtime.gc(chain("a"), [])


def alive(pid):
    """A process that is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def children():
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


async def gone(pids):
    for _ in range(100):
        if not any(map(alive, pids)):
            return True
        await asyncio.sleep(0.02)
    for pid in filter(alive, pids):
        os.kill(pid, signal.SIGKILL)
    return False


async def started(path):
    for _ in range(250):
        if path.exists() and len(path.read_text().split()) == 2:
            return [int(pid) for pid in path.read_text().split()]
        await asyncio.sleep(0.02)
    raise AssertionError("the plugin did not start")


SLEEPER = 'sleep 60 & echo $$ $! >"$PIDS.new" && mv "$PIDS.new" "$PIDS"; trap "" TERM; wait'


@pytest.mark.parametrize("steps", range(12))
async def test_an_add_that_is_cancelled_while_its_plugin_is_started(tmp_path, steps):
    """However far the event loop has come with it, the plugin ends before the call does."""
    plugin(tmp_path / "bin", "slow", "exec sleep 60")
    before = children()
    task = asyncio.create_task(Runtime([str(tmp_path / "bin")], tmp_path).add(chain("slow"), "ctr1", "/x"))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)
    assert children() <= before


@pytest.mark.parametrize("prefix", [[], ["nsenter", f"--net=/proc/{os.getpid()}/ns/net"]])
async def test_a_cancelled_add_kills_the_plugin_and_what_it_started(tmp_path, prefix):
    pids = tmp_path / "pids"
    plugin(tmp_path / "bin", "slow", SLEEPER)
    runtime = Runtime([str(tmp_path / "bin")], tmp_path / "cache", {"PIDS": str(pids)}, prefix)
    task = asyncio.create_task(runtime.add(chain("slow"), "ctr1", "/x"))
    running = await started(pids)
    assert all(map(alive, running))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(running)
    assert not (tmp_path / "cache").exists()


async def test_a_plugin_that_takes_too_long_is_killed(tmp_path):
    pids = tmp_path / "pids"
    plugin(tmp_path / "bin", "slow", SLEEPER)
    runtime = Runtime([str(tmp_path / "bin")], tmp_path / "cache", {"PIDS": str(pids)}, timeout=0.5)
    with pytest.raises(CniError) as caught:
        await runtime.add(chain("slow"), "ctr1", "/x")
    assert (caught.value.code, str(caught.value)) == (11, 'plugin "slow": ADD took longer than 0.5 s and was killed')
    assert await gone(await started(pids))


async def test_a_daemon_that_keeps_the_plugins_output_open_does_not_hold_the_runtime(tmp_path):
    pids = tmp_path / "pids"
    plugin(tmp_path / "bin", "daemon", 'exec 3<&0; setsid sleep 60 & echo $$ $! >"$PIDS"; wait')
    runtime = Runtime([str(tmp_path / "bin")], tmp_path / "cache", {"PIDS": str(pids)}, timeout=0.3)
    try:
        async with asyncio.timeout(5):
            with pytest.raises(CniError, match=r"ADD took longer than 0\.3 s"):
                await runtime.add(chain("daemon", big="x" * (1 << 20)), "ctr1", "/x")
    finally:
        _, daemon = await started(pids)
        os.kill(daemon, signal.SIGKILL)


@pytest.mark.parametrize("prefix", [[], ["env"]])
async def test_a_plugin_still_being_written_is_tried_again(tmp_path, prefix):
    path = tmp_path / "bin" / "busy"
    plugin(tmp_path / "bin", "busy", 'echo "{}"')
    runtime = Runtime([str(tmp_path / "bin")], tmp_path / "cache", exec_prefix=prefix)
    with path.open("a"):
        begun = time.monotonic()
        task = asyncio.create_task(runtime.add(chain("busy"), "ctr1", "/x"))
        await asyncio.sleep(0.3)
        assert not task.done()
    assert await task == {"cniVersion": "1.1.0"}
    assert time.monotonic() - begun >= 1


async def test_a_plugin_that_does_not_read_gets_a_large_document_all_the_same(tmp_path):
    plugin(tmp_path / "bin", "deaf", "echo '{}'")
    net = chain("deaf", big="x" * (1 << 20))
    assert await Runtime([str(tmp_path / "bin")], tmp_path / "cache").add(net, "ctr1", "/x") == {"cniVersion": "1.1.0"}


def test_inherited_cni_variables_do_not_leak_into_a_call(scripted, tmp_path):
    """As when this runtime is itself run by a plugin."""
    code = (
        "import asyncio, sys; from pathlib import Path; from tortie.cni.conflist import load_conflist;"
        "from tortie.cni.runtime import Runtime;"
        "net = load_conflist({'name': 'n', 'cniVersion': '1.1.0', 'plugins': [{'type': 'a'}]});"
        "asyncio.run(Runtime([sys.argv[1]], Path(sys.argv[2])).status(net))"
    )
    env = os.environ | {"CNI_CONTAINERID": "leaked", "CNI_IFNAME": "leaked", "LOG": str(tmp_path / "log")}
    argv = [sys.executable, "-c", code, str(tmp_path / "bin"), str(tmp_path / "cache")]
    subprocess.run(argv, env=env, check=True)
    _, told = scripted
    assert [who for who, _ in told()] == [["STATUS", "a"]]
