"""The routing daemons of a lab's routers: configuring, keeping them running, and asking with whom they speak.

A router's files are in its directory; the daemon runs in the router's namespace. FRR's are two: zebra, which writes the
kernel's routes, and bgpd.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import NotSupported, Unavailable
from tortie.bgp.birdc import ESTABLISHED, parse_protocols
from tortie.kernel import netns
from tortie.kernel.bird import Bird
from tortie.lab import processes
from tortie.lab.routers import configuration
from tortie.lab.state import LabDirectory, write_whole
from tortie.lab.topology import Router, Topology

FRR = Path("/usr/lib/frr")
FRR_TEMPORARY = Path("/var/tmp/frr")
"""Where each of its daemons makes a directory, which only an orderly end removes. Compiled in."""
ROUTER_VARIABLE = "TORTIE_PROCESS_OF_ROUTER"
"""Every process of a router's daemons has its lab and name in this environment variable."""
RESTART_PAUSE = 1.0  # seconds
_ASK_SECONDS = 5.0
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

log = logging.getLogger(__name__)


def check_programs(lab: Topology) -> None:
    """Raises NotSupported where a router's daemon is not installed."""
    frr = [router.name for router in lab.routers if router.daemon == "frr"]
    if frr and not (FRR / "bgpd").exists():
        raise NotSupported(f"{frr[0]} wants FRR, and there is no {FRR / 'bgpd'}: apt-get install frr, or daemon: bird")


def configure(lab: Topology, directory: LabDirectory) -> None:
    """Writes every router's configuration. Raises NotSupported, ConfigError for one that BIRD would refuse."""
    check_programs(lab)
    for router in lab.routers:
        if router.daemon:
            text = configuration(lab, router)
            if router.daemon == "bird":
                _bird(directory, router).check(text)
            write_whole(_configuration(directory, router), text)


async def keep_running(directory: LabDirectory, router: Router) -> None:
    """Starts the router's daemon, or takes over the one that runs, and starts another whenever it ends. For ever."""
    mark = f"{directory.name}/{router.name}"
    while True:
        pid_file = directory.router_pid(router.name)
        running = processes.read_pid(pid_file)
        if running is None:
            child = await asyncio.to_thread(
                processes.spawn,
                _command(directory, router),
                pid_file,
                directory.router_log(router.name),
                netns_path=netns.path(router.netns),
                hostname=router.name,
                env={ROUTER_VARIABLE: mark},
            )
            running = processes.process(child.pid)
            log.info("%s of %s is pid %d", router.daemon, router.name, child.pid)
            if running:
                await running.ended()
            await asyncio.to_thread(child.wait)
        else:
            await running.ended()
        await asyncio.to_thread(processes.kill_all, lambda: processes.marked(ROUTER_VARIABLE, mark))
        log.warning("%s of %s ended; starting it again in %.0f s", router.daemon, router.name, RESTART_PAUSE)
        await asyncio.sleep(RESTART_PAUSE)


def established(directory: LabDirectory, router: Router) -> frozenset[IP]:
    """The neighbours with whom a router has a session: nobody while its daemon does not answer. Blocks for seconds."""
    try:
        return _frr_established(directory, router) if router.daemon == "frr" else _bird_established(directory, router)
    except (Unavailable, OSError, subprocess.SubprocessError, ValueError):
        return frozenset()


def _configuration(directory: LabDirectory, router: Router) -> Path:
    return directory.router(router.name) / f"{router.daemon}.conf"


def _command(directory: LabDirectory, router: Router) -> Sequence[str]:
    if router.daemon == "frr":
        return _frr_command(directory, router)
    bird = _bird(directory, router)
    program = shutil.which("bird", path=_SBIN) or "bird"
    return [program, "-f", "-c", str(bird.config), "-s", str(bird.socket)]


# --- BIRD ---------------------------------------------------------------------------------------------------------


def _bird(directory: LabDirectory, router: Router) -> Bird:
    where = directory.router(router.name)
    return Bird(where / "bird.conf", where / "bird.ctl", router.netns, log=directory.router_log(router.name))


def _bird_established(directory: LabDirectory, router: Router) -> frozenset[IP]:
    sessions = (one.session for one in parse_protocols(_bird(directory, router).ask("show protocols all")))
    return frozenset(one.neighbor for one in sessions if one and one.neighbor and one.state == ESTABLISHED)


# --- FRR ----------------------------------------------------------------------------------------------------------


def _frr_command(directory: LabDirectory, router: Router) -> Sequence[str]:
    """zebra beside bgpd; the lab's pid file names the shell that has started both. What they leave behind when they are
    killed is in memory, and goes with them."""
    where = directory.router(router.name)
    try:
        shutil.chown(where, "frr", "frr")  # the user that the daemons become, and who makes their sockets
    except LookupError:
        raise NotSupported("FRR runs as a user frr, and there is none: apt-get install --reinstall frr") from None
    common = ["-P", "0", "-z", str(where / "zserv.api"), "--vty_socket", str(where)]
    zebra = [str(FRR / "zebra"), *common, "-f", "/dev/null", "-i", str(where / "zebra.pid")]
    bgpd = [str(FRR / "bgpd"), *common, "-f", str(_configuration(directory, router)), "-i", str(where / "bgpd.pid")]
    memory = f"mkdir -p {FRR_TEMPORARY} && mount -t tmpfs -o mode=1777 tmpfs {FRR_TEMPORARY}"
    script = f"{memory} || exit; {shlex.join(zebra)} & zebra=$!; {shlex.join(bgpd)}; kill $zebra"
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script]


def _frr_established(directory: LabDirectory, router: Router) -> frozenset[IP]:
    command = ["vtysh", "--vty_socket", str(directory.router(router.name)), "-c", "show bgp summary json"]
    environment = os.environ | {"VTYSH_HISTFILE": os.devnull}  # else it is in the user's home
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True)
    families = json.loads(done.stdout)
    return frozenset(
        parse_ip(address)
        for family in families.values()
        for address, peer in family.get("peers", {}).items()
        if peer.get("state") == "Established"
    )
