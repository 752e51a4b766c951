"""What is concluded from what was seen of kube-proxy: which modes there are, whether we serve, what a takeover would
do and say."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kube_api import KubeApi
from tortie.base.errors import ConfigError, Unavailable
from tortie.cli.services import page, transcript, wrong
from tortie.model.apiconfig import ApiConfig
from tortie.proxy.choice import FILE, Choice
from tortie.proxy.daemon_set import LABEL, DaemonSet, command
from tortie.proxy.kube_proxy import (
    GONE,
    KubeProxy,
    Program,
    Seen,
    Standing,
    asked_for,
    decide,
    ipvs_connections,
    ipvs_services,
    judge,
    listening,
)
from tortie.proxy.kube_rules import Jump, Table, is_theirs, of_nft, of_save, removal, sign
from tortie.proxy.takeover import SHOWN, needs_yes, plan, release_plan
from tortie.store.kube.access import access
from tortie.store.kube.client import Client

SVC, SEP = "KUBE-SVC-NPX46M4PTMTKRN6Y", "KUBE-SEP-Q3HNNZPXUAYYDXW2"
NAT = "iptables-nft -t nat"
RUNS = KubeProxy("iptables", (), Program(7))
LEFT = KubeProxy("iptables", (GONE,))


# --- what is there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "modes"),
    [
        (Seen(), []),
        (Seen(tables=("ip",)), ["nftables"]),
        (Seen(chains={NAT: ("KUBE-SERVICES", SVC, SEP)}), ["iptables"]),
        (Seen(chains={NAT: ("KUBE-SERVICES",)}), ["iptables"]),
        (Seen(chains={NAT: ("KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-MARK-MASQ", "KUBE-POSTROUTING")}), []),
        (Seen(chains={NAT: ("KUBE-FORWARD",)}), []),
        (Seen(device=True), ["ipvs"]),
        (Seen(device=True, chains={NAT: ("KUBE-SERVICES", "KUBE-NODE-PORT")}), ["ipvs"]),
        (Seen(chains={NAT: ("KUBE-SERVICES", "KUBE-LOAD-BALANCER")}), ["ipvs"]),
        (Seen(device=True, chains={NAT: ("KUBE-SERVICES", SVC)}), ["iptables", "ipvs"]),
        (Seen(tables=("ip6",), chains={NAT: (SVC,)}, device=True), ["nftables", "iptables", "ipvs"]),
        (Seen(ipvs_services=3, ipvs_connections=9), []),  # keepalived's
        (Seen(programs=(Program(5),)), ["unknown"]),
        (Seen(listener=Program(5, "something")), []),
    ],
)
def test_modes(seen: Seen, modes: list[str]) -> None:
    assert [one.mode for one in judge(seen)] == modes


def test_who_runs_has_the_rules_that_there_are() -> None:
    (one,) = judge(Seen(tables=("ip",), programs=(Program(5),)))
    assert (one.pid, one.runs) == (5, True)
    (one,) = judge(Seen(tables=("ip",)))
    assert (one.pid, one.runs, one.evidence[-1]) == (0, False, GONE)
    (one,) = judge(Seen(tables=("ip",), listener=Program(0, "")))
    assert (one.pid, one.runs) == (0, True)
    assert GONE not in one.evidence


def test_of_two_modes_the_one_that_it_says_is_alive() -> None:
    own, old = judge(Seen(tables=("ip",), chains={NAT: (SVC,)}, programs=(Program(5, mode="nftables"),)))
    assert (own.runs, old.runs) == (True, False)
    both = judge(Seen(tables=("ip",), chains={NAT: (SVC,)}, programs=(Program(5),)))
    assert all(one.runs for one in both)


def test_a_process_whose_rules_cannot_be_looked_at() -> None:
    (one,) = judge(Seen(programs=(Program(5),), unseen=("install iptables",)))
    assert one.evidence == ("process 5 runs", "install iptables")


def test_only_ipvs_has_connections_that_end_with_it() -> None:
    found = judge(Seen(tables=("ip",), device=True, ipvs_services=2, ipvs_connections=4))
    assert [one.connections for one in found] == [0, 4]


def test_files_of_the_kernel() -> None:
    services = (
        "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
        "TCP  0A600001:01BB rr\n  -> 0A000001:192B      Masq    1      0          0\nUDP  0A60000A:0035 rr\n"
    )
    assert ipvs_services(services) == 2
    connections = (
        "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\nTCP C0000209 9C4C ..."
    )
    assert ipvs_connections(connections) == 1
    assert ipvs_services("") == ipvs_connections("") == 0
    tcp = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:2809 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0\n"
        "   1: 0100007F:2809 0100007F:8001 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0\n"
    )
    assert list(listening(tcp, 10249)) == ["4711"]
    assert list(listening(tcp, 10256)) == []


# --- whether we serve ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "looks", "on"),
    [
        ("auto", [()], [True]),
        ("auto", [(), (), ()], [True, True, True]),
        ("auto", [(RUNS,), (RUNS,)], [False, False]),
        ("auto", [(LEFT,), (LEFT,)], [False, False]),
        ("auto", [(), (RUNS,), (LEFT,), (), ()], [True, False, False, False, True]),
        ("auto", [(RUNS,), (), (RUNS,), (), ()], [False, False, False, False, True]),
        ("on", [(RUNS,), (), (LEFT,)], [True, True, True]),
        ("off", [(), (), ()], [False, False, False]),
    ],
)
def test_looks_one_after_the_other(asked: Any, looks: list[tuple[KubeProxy, ...]], on: list[bool]) -> None:
    before: Standing | None = None
    seen = []
    for found in looks:
        before = decide(asked, found, before)
        assert before.why
        assert "\n" not in before.why
        seen.append(before.on)
    assert seen == on


def test_turned_to_auto_after_a_while_without_kube_proxy_it_is_on_at_once() -> None:
    off = decide("off", (), decide("off", ()))
    assert decide("auto", (), off).on


def test_what_a_person_asks_is_no_look() -> None:
    """A kube-proxy that has just been stopped, and may be back: `auto` waits for another look, whatever was asked."""
    gone = decide("auto", (), decide("auto", (RUNS,)))
    assert not decide("auto", (), gone, looked=False).on
    assert decide("auto", (), decide("off", (), gone, looked=False)).on


def test_why_says_what_to_do() -> None:
    assert "takeover` takes its place" in decide("auto", (RUNS,)).why
    assert "takeover` removes them" in decide("auto", (LEFT,)).why
    assert "process 7" in decide("on", (RUNS,)).why


def test_what_can_be_asked_for() -> None:
    assert asked_for("auto", "--services") == "auto"
    with pytest.raises(ConfigError, match='--services: "yes" is not one of auto, on, off'):
        asked_for("yes", "--services")


# --- what was chosen ----------------------------------------------------------------------------------------------


def test_a_choice_outlives_a_restart(tmp_path: Path) -> None:
    directory = tmp_path / "lib"
    assert Choice(directory).asked == "auto"
    Choice(directory).note("on")
    assert Choice(directory).asked == "on"
    assert Choice(directory, "auto").asked == "on"
    assert [path.name for path in directory.iterdir()] == [FILE]


def test_what_is_configured_is_said_and_not_undone(tmp_path: Path) -> None:
    Choice(tmp_path).note("on")
    configured = Choice(tmp_path, "off")
    assert configured.asked == "off"
    with pytest.raises(ConfigError, match='TORTIE_SERVICES: is "off"'):
        configured.note("on")
    assert Choice(tmp_path).asked == "on"
    configured.note("off")
    assert Choice(tmp_path).asked == "off"
    with pytest.raises(ConfigError):
        Choice(tmp_path, "maybe")


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(b"\xff\x00")
    with caplog.at_level(logging.WARNING):
        assert Choice(tmp_path).asked == "auto"
    assert str(tmp_path / FILE) in caplog.text
    blocked = tmp_path / FILE
    with pytest.raises(Unavailable):
        Choice(blocked).note("on")


# --- chains -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chain",
    ["KUBE-ROUTER-INPUT", "KUBE-POD-FW-AAAAAAAAAAAAAAAA", "KUBE-NWPLCY-DEFAULT", "KUBE-SVC-", "KUBE", "DOCKER",
     "KUBE-SVC-NPX46M4PTMTKRN6Y-2", "kube-services", "KUBE-SERVICES-2"],
)  # fmt: skip
def test_chains_of_others(chain: str) -> None:
    assert not is_theirs(chain)
    assert sign(chain) == ""


def table(*jumps: Jump, chains: tuple[str, ...] = (), forward: str = "accept", family: str = "ip") -> Table:
    base = {"PREROUTING": "accept", "FORWARD": forward}
    return Table("nft", family, "filter", (*base, *chains), base, jumps)


def test_jumps_go_and_then_chains() -> None:
    doing = removal(table(Jump("PREROUTING", "KUBE-SERVICES", "7"), chains=("DOCKER", "KUBE-SERVICES", SVC)))
    assert doing.script().splitlines() == [
        "delete rule ip filter PREROUTING handle 7",
        "flush chain ip filter KUBE-SERVICES",
        f"flush chain ip filter {SVC}",
        "delete chain ip filter KUBE-SERVICES",
        f"delete chain ip filter {SVC}",
    ]


def test_nothing_to_remove_is_nothing() -> None:
    assert not removal(table(chains=("DOCKER",)))


def test_what_stays() -> None:
    jump = Jump("FORWARD", "KUBE-FORWARD", "3")
    doing = removal(table(jump, chains=("KUBE-FORWARD",), forward="drop"))
    assert (doing.jumps, doing.chains, doing.stays) == ((), (), ("KUBE-FORWARD",))
    assert removal(table(jump, chains=("KUBE-FORWARD",))).chains == ("KUBE-FORWARD",)
    assert removal(table(chains=("KUBE-FIREWALL",)), localnet=True).stays == ("KUBE-FIREWALL",)
    assert removal(table(chains=("KUBE-FIREWALL",), family="ip6"), localnet=True).stays == ()
    foreign = removal(table(Jump("CNI-X", "KUBE-MARK-MASQ", "9"), chains=("CNI-X", "KUBE-MARK-MASQ")))
    assert (foreign.stays, foreign.jumps, foreign.obstacles) == (("KUBE-MARK-MASQ",), (), ())
    middle = removal(table(Jump("MINE", SVC, "9"), chains=("MINE", SVC)))
    assert middle.obstacles == (
        f"iptables-nft -t filter: MINE, a chain of somebody else, jumps to {SVC}: delete that rule first",
    )


def test_a_legacy_table_as_it_is_saved() -> None:
    saved = (
        "# Generated\n*nat\n:PREROUTING ACCEPT [3:4]\n:FORWARD DROP [0:0]\n:KUBE-SERVICES - [0:0]\n:MINE - [0:0]\n"
        '-A PREROUTING -m comment --comment "kubernetes -j MINE" -j KUBE-SERVICES\n'
        '-A PREROUTING -m comment --comment "-j KUBE-SERVICES" -j RETURN\n'
        f"-A KUBE-SERVICES -g {SVC}\n-A MINE -g KUBE-SERVICES\nCOMMIT\n"
    )
    found = of_save(saved, "ip6", "nat")
    assert found.policies == {"PREROUTING": "accept", "FORWARD": "drop"}
    assert [(jump.chain, jump.target) for jump in found.jumps] == [
        ("PREROUTING", "KUBE-SERVICES"),
        ("MINE", "KUBE-SERVICES"),
    ]
    without = of_save(saved.replace("-A MINE -g KUBE-SERVICES\n", ""), "ip6", "nat")
    assert removal(without).script().splitlines() == [
        "*nat",
        '-D PREROUTING -m comment --comment "kubernetes -j MINE" -j KUBE-SERVICES',
        "-F KUBE-SERVICES",
        "-X KUBE-SERVICES",
        "COMMIT",
    ]


def test_a_table_as_nft_lists_it() -> None:
    chains = [{"name": "FORWARD", "hook": "forward", "policy": "drop"}, {"name": "KUBE-FORWARD"}]
    rules = [
        {"chain": "FORWARD", "handle": 5, "expr": [{"xt": {"type": "match"}}, {"jump": {"target": "KUBE-FORWARD"}}]},
        {"chain": "FORWARD", "handle": 6, "expr": [{"jump": {"target": "DOCKER"}}, "return"]},
        {"chain": "KUBE-FORWARD", "handle": 7, "expr": [{"goto": {"target": SVC}}]},
    ]
    assert of_nft("ip", "filter", chains, rules).jumps == (Jump("FORWARD", "KUBE-FORWARD", "5"),)


# --- the plan -----------------------------------------------------------------------------------------------------


def kinds(steps: Any) -> list[str]:
    return [step.kind for step in steps]


def test_a_plan_without_kube_proxy_is_ours_alone() -> None:
    assert kinds(plan(())) == ["serve"]


def test_the_order_of_a_plan() -> None:
    own = KubeProxy("nftables", ("nft table ip kube-proxy", "nft table ip6 kube-proxy"), Program(9))
    ipvs = KubeProxy("ipvs", (), Program(9), connections=3)
    steps = plan((own, ipvs), (table(chains=(SVC,)),))
    assert kinds(steps) == ["serve", "stop", "table", "table", "chains", "ipvs"]
    for step in steps:
        reason, *commands = str(step).splitlines()
        assert reason.startswith("# ")
        assert all(commands)
    assert needs_yes((own, ipvs), steps) == (
        "3 connections through IPVS are cut off: they are not in connection tracking as ours are",
    )


@pytest.mark.parametrize(
    ("program", "deployed", "command_", "by_person"),
    [
        (Program(9), False, "kill 9", True),
        (Program(9, unit="kube-proxy.service"), False, "systemctl disable --now kube-proxy.service", True),
        (Program(9, "k3s-server", unit="k3s.service"), False, "k3s-server ... --disable-kube-proxy", True),
        (Program(9, unit="pod"), False, command(run=False), True),
        (Program(9, unit="pod"), True, command(run=False), False),
        (Program(0, ""), False, command(run=False), True),
    ],
)
def test_how_it_is_ended(program: Program, deployed: bool, command_: str, by_person: bool) -> None:
    one = KubeProxy("iptables", (), program)
    step = next(step for step in plan((one,), deployed=deployed) if step.kind == "stop")
    assert (step.commands, step.by_person) == ((command_,), by_person)
    assert bool(needs_yes((one,), (step,))) is deployed


def test_a_plan_for_ten_thousand_services_is_one_page() -> None:
    many = table(Jump("PREROUTING", "KUBE-SERVICES", "1"), chains=tuple(f"KUBE-SVC-{i:016d}" for i in range(10_000)))
    (step,) = [step for step in plan((), (many,)) if step.kind == "chains"]
    assert len(step.commands) == 2 + 1 + 2 * (SHOWN + 1)
    assert f"# ... flush chain: {10_000 - SHOWN} more" in step.commands


def test_the_way_back() -> None:
    assert kinds(release_plan(back=True, deployed=False)) == ["leave"]
    (start, _) = release_plan(back=False, deployed=True)
    assert not start.by_person
    assert f'"{LABEL}":null' in start.commands[0]


# --- the DaemonSet ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[tuple[KubeApi, DaemonSet]]:
    async with KubeApi() as api:
        config = api.kubeconfig(directory / "kubeconfig")
        client = Client(access(ApiConfig(kubeconfig=str(config)), {}))
        try:
            yield api, DaemonSet(client)
        finally:
            await client.close()


async def test_a_daemon_set_is_kept_off_all_nodes_and_comes_back(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (api, daemon_set):
        assert not await daemon_set.there()
        labels = {"k8s-app": "kube-proxy"}
        pod = {"nodeSelector": {"kubernetes.io/os": "linux"}, "containers": [{"name": "kube-proxy", "image": "x"}]}
        api.create(
            {
                "apiVersion": "apps/v1",
                "kind": "DaemonSet",
                "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
                "spec": {
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod},
                },
            }
        )
        assert await daemon_set.there()

        def selector() -> Any:
            return api.get("daemonsets", "kube-proxy", "kube-system")["spec"]["template"]["spec"]["nodeSelector"]

        for _ in range(2):
            await daemon_set.stop()
            assert selector() == {"kubernetes.io/os": "linux", LABEL: "true"}
        for _ in range(2):
            await daemon_set.start()
            assert selector() == {"kubernetes.io/os": "linux"}


# --- what people read ---------------------------------------------------------------------------------------------


def answer(**more: Any) -> dict[str, Any]:
    about = {"node": "n1", "asked": "auto", "on": True, "why": "there is no kube-proxy here", "kubeProxy": []}
    return {**about, "problems": {}, "failures": [], "services": [], **more}


HERE = {
    "mode": "iptables",
    "evidence": ["iptables-nft -t nat: KUBE-SERVICES", "process 7 runs"],
    "pid": 7,
    "runs": True,
}
OLD = {"mode": "nftables", "evidence": ["nft table ip kube-proxy", GONE], "pid": 0, "runs": False}


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (answer(), ""),
        (answer(on=False, kubeProxy=[HERE]), ""),
        (answer(kubeProxy=[HERE]), "kube-proxy is here, too"),
        (answer(kubeProxy=[OLD]), "its rules are not"),
        (answer(on=False, kubeProxy=[OLD]), "its rules are not"),
        (answer(on=False), "nobody serves services"),
        (answer(asked="on", on=False, kubeProxy=[HERE]), "the agent's log"),
        (answer(asked="off", on=False, servedBy="process 7 (tortie proxy)"), ""),
        (answer(asked="on", on=False, servedBy="process 7", failures=["services: process 7"]), "services: process 7"),
        (answer(problems={"Service a/b": "has no address"}), "Service a/b: has no address"),
        (answer(failures=["nft -f -: no"]), "nft -f -: no"),
        ({"node": "n1", "error": "no agent"}, "no agent"),
    ],
)
def test_what_is_wrong(about: dict[str, Any], words: str) -> None:
    lines = list(wrong(about))
    assert bool(lines) is bool(words)
    assert any(words in line for line in lines) or not words
    text = page([about])
    assert ("✘" in text) is bool(words)


def test_the_table() -> None:
    text = page([answer(), answer(node="n2", on=False, why="x", kubeProxy=[HERE, OLD])])
    heading, first, second, *rest = text.splitlines()
    assert heading.split() == ["NODE", "ASKED", "SERVICES", "KUBE-PROXY", "WHY"]
    assert first.split()[:4] == ["n1", "auto", "on", "-"]
    assert "iptables, nftables (gone)" in second
    assert "  iptables: process 7 runs" in rest


def test_a_transcript() -> None:
    steps = [
        {"commands": ["a"], "why": "first", "byPerson": False, "state": "done"},
        {"commands": ["b", "c"], "why": "second", "byPerson": True, "state": "planned"},
    ]
    told = {"steps": steps, "needsYes": ["x is cut"], "todo": "b", "done": False}
    assert list(transcript(told, plan=False)) == [
        "# 1. first [done]", "a", "# 2. second (yours to do)", "b", "c", "# needs --yes: x is cut", "# to do: b",
    ]  # fmt: skip
    assert next(transcript({**told, "needsYes": [], "todo": ""}, plan=True)) == "# 1. first"
