"""The extension backend: how a command becomes words, what it is told, and what is run for whom, when, and again."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from flannel_nodes import network_config, subnet6_of, subnet_of
from tortie.base.errors import ConfigError
from tortie.flannel import backends
from tortie.flannel.backend import Setting
from tortie.flannel.backends.extension import REMOVALS, Extension, Notes, Wishes, node_of, wishes
from tortie.flannel.commands import CommandFailed, is_for_a_shell, run, words
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.state import External, FlannelState, Place, Site

VARIABLES = {"SUBNET": "10.5.2.0/24", "PUBLIC_IP": "192.0.2.2", "BLANK": "two words"}


# --- a line and its words ---------------------------------------------------------------------------------------------

PLAIN = [
    ("echo $SUBNET $PUBLIC_IP", ["echo", "10.5.2.0/24", "192.0.2.2"]),
    ("ip route add ${SUBNET} via ${PUBLIC_IP}", ["ip", "route", "add", "10.5.2.0/24", "via", "192.0.2.2"]),
    ("  a\t b  ", ["a", "b"]),
    ("a --to=$SUBNET:$PUBLIC_IP", ["a", "--to=10.5.2.0/24:192.0.2.2"]),
    ("a $BLANK", ["a", "two words"]),
    ("a $UNSET b ${UNSET}c", ["a", "", "b", "c"]),
    ("a 5$ $", ["a", "5$", "$"]),
    ('curl -d {"subnet":"$SUBNET"} x', ["curl", "-d", '{"subnet":"10.5.2.0/24"}', "x"]),
    ("find . -exec a {} ;", ["find", ".", "-exec", "a", "{}", ";"]),
    ("find . -exec a {} ; -print", ["find", ".", "-exec", "a", "{}", ";", "-print"]),
    ("a b|c x=1", ["a", "b|c", "x=1"]),
]
SHELL = [
    "sh -c 'ip route add $SUBNET via $PUBLIC_IP'",
    'ip route add "$SUBNET" via "$PUBLIC_IP"',
    "export VNI=1; ip link del x 2>/dev/null; ip link add x type vxlan id $VNI && cat /sys/class/net/x/address",
    "export IP=$(echo $SUBNET | cut -d/ -f1)",
    "echo `date`",
    "echo $SUBNET >> /tmp/subnets",
    "a || b",
]


@pytest.mark.parametrize(("line", "expected"), PLAIN)
def test_a_line_without_a_shell_is_split_first_and_then_expanded(line: str, expected: list[str]) -> None:
    assert words(line, None, VARIABLES) == expected
    assert words(line, True, VARIABLES) == ["/bin/sh", "-c", line]


@pytest.mark.parametrize("line", SHELL)
def test_a_line_that_only_a_shell_understands_is_given_to_one(line: str) -> None:
    assert is_for_a_shell(line)
    assert words(line, None, VARIABLES) == ["/bin/sh", "-c", line]
    assert words(line, False, VARIABLES)[0] == line.split()[0]


# --- one command ------------------------------------------------------------------------------------------------------


async def test_it_has_the_variables_the_input_and_the_daemon_s_environment(tmp_path: Path) -> None:
    line = "cat; echo $SUBNET; echo $HOME; echo $0 >&2"
    assert await run(line, True, {"SUBNET": "10.5.2.0/24"}, "data\n", 10) == f"data\n10.5.2.0/24\n{os.environ['HOME']}"
    assert await run("printenv SUBNET", None, VARIABLES, "\n", 10) == "10.5.2.0/24"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("sh -c 'echo out; echo err >&2; exit 3'", "failed to run command: {}: exit 3. Output: out | err"),
        ("/nonexistent/program x", "failed to run command: {}: /nonexistent/program: No such file or directory"),
        ("kill -9 $(echo $$)", "failed to run command: {}: ended by SIGKILL"),
    ],
)
async def test_a_failure_says_what_was_run_and_what_it_said(line: str, text: str) -> None:
    with pytest.raises(CommandFailed) as error:
        await run(line, None, {}, "", 10)
    assert str(error.value) == text.format(line)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def gone_soon(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


async def test_one_that_hangs_is_killed_with_what_it_has_started(tmp_path: Path) -> None:
    line = f"sleep 600 & echo $! > {tmp_path}/pid; echo waiting; wait"
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match=r"not done after 0\.5 s, killed\. Output: waiting$"):
        await run(line, True, {}, "", 0.5)
    assert time.monotonic() - begun < 5
    assert gone_soon(int((tmp_path / "pid").read_text()))


def written(file: Path) -> None:
    deadline = time.monotonic() + 10
    while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)


async def test_a_daemon_that_ends_takes_its_command_along(tmp_path: Path) -> None:
    task = asyncio.create_task(run(f"echo $$ > {tmp_path}/pid; sleep 600", True, {}, "", 60))
    await asyncio.to_thread(written, tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone_soon(int((tmp_path / "pid").read_text()))


async def test_what_it_leaves_running_goes_on_and_is_not_waited_for(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert await run(f"sleep 20 & echo $! > {tmp_path}/pid; echo done", True, {}, "", 60) == "done"
    assert time.monotonic() - begun < 5
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    os.kill(pid, 9)


async def test_much_output_and_much_input_do_no_harm() -> None:
    found = await run("yes | head -c 3000000; echo; echo end", True, {}, "x" * 200_000, 30)
    assert len(found) <= 1 << 16
    assert found.endswith("end")
    assert len(await run("cat", None, {}, "x" * 60_000 + "\n", 30)) == 60_000


async def test_one_that_never_stops_writing_is_killed() -> None:
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match="not done after 1 s, killed"):
        await run("yes", None, {}, "", 1)
    assert time.monotonic() - begun < 5


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    await run("true", None, {}, "", 10)
    before = sorted(os.listdir("/proc/self/fd"))
    for line in ("true", "false", "/nonexistent"):
        try:
            await run(line, None, {}, "x", 10)
        except CommandFailed:
            continue
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- options ----------------------------------------------------------------------------------------------------------


def test_what_is_not_said() -> None:
    found = wishes(network_config("extension", SubnetAddCommand=" echo "))
    assert found == Wishes(
        {"PreStartupCommand": "", "PostStartupCommand": "", "SubnetAddCommand": "echo", "SubnetRemoveCommand": ""}
    )
    assert wishes(network_config("extension", shell=True, Timeout=5)).shell is True
    assert wishes(network_config("extension", Shell=False)).shell is False


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"SubnetAddCommand": ["echo"]}, "Backend.SubnetAddCommand: ['echo'] is not a string"),
        ({"Shell": "yes"}, "Backend.Shell: 'yes' is neither true nor false"),
        ({"Timeout": 0}, "Backend.Timeout: 0 is not a whole number from 1 to 86400"),
    ],
)
def test_options_that_are_wrong_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        wishes(network_config("extension", **options))
    assert str(error.value) == text


def test_an_option_without_effect_is_told(caplog: pytest.LogCaptureFixture) -> None:
    wishes(network_config("extension", ShutdownCommand="ip link del x"))
    assert "Backend.ShutdownCommand: is not an option of extension, without effect" in caplog.text


# --- leases -----------------------------------------------------------------------------------------------------------


def lease(number: int, *, v6: bool = False, data: str | None = None, host: int = 0) -> Lease:
    ips = ip_address(f"192.0.2.{host or number}"), ip_address(f"2001:db8::{number}") if v6 else None
    attrs = Attrs(*ips, "extension", data)  # type: ignore[arg-type]
    return Lease(subnet_of(number), subnet6_of(number) if v6 else None, attrs, None, f"node{number}")


def test_what_a_command_is_told_of_a_node() -> None:
    node = node_of(lease(2, v6=True, data='"02:00:00:00:00:01"'))
    assert node.variables == {
        "SUBNET": "10.5.2.0/24",
        "IPV6SUBNET": "fd00:5:0:2::/64",
        "PUBLIC_IP": "192.0.2.2",
        "PUBLIC_IPV6": "2001:db8::2",
    }
    assert node.data == "02:00:00:00:00:01"
    assert node_of(lease(2)).variables["IPV6SUBNET"] == ""
    assert (node_of(lease(2)).data, node_of(lease(2, data="null")).data) == ("", "")


@pytest.mark.parametrize("data", ["{", '{"VNI":1}', "5", "true"])
def test_data_that_is_no_text_is_told(data: str) -> None:
    with pytest.raises(ConfigError, match="is not a JSON string"):
        node_of(lease(2, data=data))


# --- what is run ------------------------------------------------------------------------------------------------------


@dataclass
class World:
    """Commands that write down what they were told."""

    directory: Path

    def options(self, **more: str | bool | int) -> dict[str, Any]:
        commands = {
            f"Subnet{verb}Command": f'echo {verb} "$SUBNET" "$PUBLIC_IP" "$(cat)" >> {self.log}; {self.unless(verb)}'
            for verb in ("Add", "Remove")
        }
        return {**commands, **more}

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def unless(self, verb: str) -> str:
        return f"test ! -e {self.directory}/no-$(echo {verb})-$(echo $SUBNET | tr / -)"

    def refuse(self, verb: str, number: int) -> None:
        self.refusal(verb, number).touch()

    def allow(self, verb: str, number: int) -> None:
        self.refusal(verb, number).unlink()

    def refusal(self, verb: str, number: int) -> Path:
        return self.directory / f"no-{verb}-10.5.{number}.0-24"

    def told(self) -> list[str]:
        """Since the last time."""
        found = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return found

    def daemon(self, retry: float = 0.0, **more: str | bool | int) -> Extension:
        notes = Notes(self.directory / "run" / "notes.json")
        return Extension(wishes(network_config("extension", **self.options(**more))), notes, retry)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def place(v6: bool = False) -> Place:
    config = network_config("extension", v6=v6)
    site = Site(config, External("eth0", 2, 1400), ip_address("192.0.2.1"))  # type: ignore[arg-type]
    return Place(site, lease(1, v6=v6))


async def tell(daemon: Extension, *leases: Lease) -> Sequence[str]:
    return await daemon.carry_out(place(), leases)


async def test_what_is_published_is_what_the_first_command_prints(world: World) -> None:
    daemon = world.daemon(PreStartupCommand='read line; echo "got <$line>"; echo noise >&2')
    found = await daemon.begin(place().site, None)
    assert found.data == '"got <>"'
    assert (daemon.mtu(place().site), daemon.published_type) == (1400, "extension")
    assert (await world.daemon().begin(place().site, None)).data is None
    assert daemon.want(place(), [lease(2)], {}) == FlannelState(networks=(place().site.config.v4.network,))  # type: ignore[union-attr]


async def test_what_follows_the_first_command_is_run_again_with_it(world: World) -> None:
    """When the node has another address; it may have made everything anew."""
    daemon = world.daemon(PreStartupCommand=f"echo pre >> {world.log}", PostStartupCommand=f"echo post >> {world.log}")
    for _ in range(2):
        await daemon.begin(place().site, None)
        assert await tell(daemon, lease(2)) == ()
        assert await tell(daemon, lease(2)) == ()
        found = world.told()
        assert found[:2] == ["pre", "post"]
        assert [line.split()[:2] for line in found[2:]] == [["Add", "10.5.2.0/24"]]


async def test_a_start_that_fails_is_fatal_and_says_why(world: World) -> None:
    with pytest.raises(ConfigError) as error:
        await world.daemon(PreStartupCommand="ls /nonexistent").begin(place().site, None)
    assert str(error.value).startswith(
        "Backend.PreStartupCommand: failed to run command: ls /nonexistent: exit 2. Output: "
    )
    assert "No such file" in str(error.value)
    with pytest.raises(ConfigError, match=r"Backend\.PostStartupCommand: failed to run command: false: exit 1$"):
        await tell(world.daemon(PostStartupCommand="false"), lease(2))
    assert world.told() == []


async def test_the_second_command_knows_this_node_s_subnet(world: World) -> None:
    line = f'echo $NETWORK $SUBNET $IPV6SUBNET $PUBLIC_IP "$PUBLIC_IPV6" "$(cat)" >> {world.log}'
    daemon = world.daemon(PostStartupCommand=line)
    await daemon.carry_out(place(v6=True), [])
    await daemon.carry_out(place(v6=True), [])
    assert world.told() == ["10.5.0.0/16 10.5.1.0/24 fd00:5:0:1::/64 192.0.2.1 2001:db8::1 "]


async def test_every_node_is_added_once_and_removed_as_it_was(world: World) -> None:
    daemon = world.daemon()
    assert await tell(daemon, lease(2, data='"mac2"'), lease(3)) == ()
    assert world.told() == ["Add 10.5.2.0/24 192.0.2.2 mac2", "Add 10.5.3.0/24 192.0.2.3 "]
    assert await tell(daemon, lease(3), lease(2, data='"mac2"')) == ()
    assert world.told() == []
    assert await tell(daemon, lease(3)) == ()
    assert world.told() == ["Remove 10.5.2.0/24 192.0.2.2 mac2"]


async def test_a_subnet_that_goes_to_another_node_is_removed_before_it_is_added(world: World) -> None:
    daemon = world.daemon()
    await tell(daemon, lease(2), lease(3))
    world.told()
    await tell(daemon, replace(lease(2, host=9), node="node9"), lease(4))
    assert world.told() == [
        "Remove 10.5.2.0/24 192.0.2.2 ",
        "Remove 10.5.3.0/24 192.0.2.3 ",
        "Add 10.5.2.0/24 192.0.2.9 ",
        "Add 10.5.4.0/24 192.0.2.4 ",
    ]


async def test_the_next_daemon_removes_who_went_meanwhile_and_adds_all_others_again(world: World) -> None:
    await tell(world.daemon(), lease(2, data='"mac2"'), lease(3))
    world.told()
    assert await tell(world.daemon(), lease(3), lease(4)) == ()
    assert world.told() == [
        "Remove 10.5.2.0/24 192.0.2.2 mac2",
        "Add 10.5.3.0/24 192.0.2.3 ",
        "Add 10.5.4.0/24 192.0.2.4 ",
    ]


async def test_what_is_there_already_may_refuse_to_be_added_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """As `ip route add` does. One that was never added is another matter."""
    caplog.set_level(logging.INFO)
    await tell(world.daemon(), lease(2))
    world.refuse("Add", 2)
    daemon = world.daemon()
    assert await tell(daemon, lease(2)) == ()
    assert "10.5.2.0/24 was added by the daemon before this one" in caplog.text
    world.told()
    await tell(daemon, lease(2))
    assert world.told() == []


async def test_a_daemon_that_is_killed_while_it_adds_leaves_nothing_behind(world: World) -> None:
    """What was begun is noted: a node that goes then is removed, one that stays is not taken for added."""
    daemon = world.daemon()
    world.refuse("Add", 2)
    assert len(await tell(daemon, lease(2))) == 1  # killed now
    world.told()
    assert len(await tell(world.daemon(), lease(2))) == 1
    world.told()
    await tell(world.daemon())
    assert world.told() == ["Remove 10.5.2.0/24 192.0.2.2 "]


async def test_what_fails_is_told_and_tried_until_it_works(world: World) -> None:
    daemon = world.daemon()
    world.refuse("Add", 2)
    for _ in range(REMOVALS + 2):
        (line,) = await tell(daemon, lease(2), lease(3))
        assert line.startswith("10.5.2.0/24: SubnetAddCommand: failed to run command: echo Add ")
        assert line.endswith(": exit 1")
    assert world.told().count("Add 10.5.3.0/24 192.0.2.3 ") == 1
    world.allow("Add", 2)
    assert await tell(daemon, lease(2), lease(3)) == ()


async def test_what_cannot_be_removed_is_given_up_in_the_end(world: World) -> None:
    daemon = world.daemon()
    await tell(daemon, lease(2))
    world.refuse("Remove", 2)
    world.told()
    for _ in range(REMOVALS - 1):
        assert len(await tell(daemon)) == 1
    assert await tell(daemon) == ()
    assert await tell(daemon) == ()
    assert world.told() == ["Remove 10.5.2.0/24 192.0.2.2 "] * REMOVALS
    await tell(world.daemon())
    assert world.told() == []


async def test_a_node_that_comes_back_while_it_is_being_removed_is_added(world: World) -> None:
    daemon = world.daemon()
    await tell(daemon, lease(2))
    world.refuse("Remove", 2)
    await tell(daemon)
    world.told()
    assert await tell(daemon, lease(2)) == ()
    assert world.told() == ["Add 10.5.2.0/24 192.0.2.2 "]


async def test_tries_are_further_and_further_apart(world: World) -> None:
    daemon = world.daemon(retry=600.0)
    world.refuse("Add", 2)
    assert await tell(daemon, lease(2)) == await tell(daemon, lease(2)) != ()
    assert len(world.told()) == 1
    assert await tell(daemon) == ()  # what is to be removed does not wait for what was to be added
    assert world.told() == ["Remove 10.5.2.0/24 192.0.2.2 "]


async def test_a_lease_that_cannot_be_read_is_told_and_changes_nothing(world: World) -> None:
    daemon = world.daemon()
    await tell(daemon, lease(2))
    world.told()
    (line,) = await tell(daemon, lease(2, data="{}"), lease(3))
    assert line == "node2: its BackendData {} is not a JSON string"
    assert world.told() == ["Add 10.5.3.0/24 192.0.2.3 "]


async def test_without_commands_nothing_is_run(tmp_path: Path) -> None:
    daemon = backends.load(network_config("extension"), Setting(tmp_path))
    assert await daemon.carry_out(place(), [lease(2)]) == ()
    assert await daemon.carry_out(place(), []) == ()
    assert os.listdir(tmp_path) == ["extension-10.5.0.0-16.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"nodes": [{"subnet": "x"}]}', '{"nodes": 5}', "\xff"])
async def test_notes_that_cannot_be_read_are_told(world: World, text: str, caplog: pytest.LogCaptureFixture) -> None:
    file = world.directory / "run" / "notes.json"
    file.parent.mkdir()
    file.write_bytes(text.encode("latin-1"))
    assert await tell(world.daemon(), lease(2)) == ()
    assert f"{file}: cannot be read" in caplog.text
    assert json.loads(file.read_text())["nodes"][0]["subnet"] == "10.5.2.0/24"


async def test_notes_that_cannot_be_written_are_told_and_keep_no_command_from_running(world: World) -> None:
    (world.directory / "run").touch()
    (line,) = await tell(world.daemon(), lease(2))
    assert line == f"{world.directory}/run/notes.json: cannot be written: File exists"
    assert world.told() == ["Add 10.5.2.0/24 192.0.2.2 "]
