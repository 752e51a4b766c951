"""How large packets may be: the host's MTU, what tunnels take, what is told; and the sum as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tortie.agent.netconf import NetConf
from tortie.agent.pod_mtu import PodMtu
from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.calc.mtu import Mtu, mtu
from tortie.calc.node_addresses import Link
from tortie.calc.settings import settings_of
from tortie.calc.state import DesiredState, Pool, Settings
from tortie.cli.node_addresses import mtu_text
from tortie.model.node import FelixConfigurationSpec

V4, V6 = parse_net("10.65.0.0/16"), parse_net("fd00:65::/48")
ETH0 = Link("eth0", 2, True, mtu=1500)


def said(**fields: object) -> Settings:
    return settings_of(FelixConfigurationSpec(**fields))  # type: ignore[arg-type]


def pool(tunnel: str = "", net: str = "10.65.0.0/16", **more: bool) -> Pool:
    return Pool("p", parse_net(net), tunnel=tunnel, **more)


def summed(found: Mtu, path: str) -> tuple[int, bool, str]:
    return next((one.mtu, one.used, one.text) for one in found.paths if one.path == path)


@pytest.mark.parametrize(
    ("pools", "pod", "text"),
    [
        ((), 1500, "no encapsulation: 1500 of eth0"),
        ((pool(),), 1500, "no encapsulation: 1500 of eth0"),
        ((pool("IPIP"),), 1480, "IPIP: 1500 of eth0 − 20 IPIP = 1480"),
        ((pool("VXLAN"),), 1450, "VXLAN: 1500 of eth0 − 50 VXLAN = 1450"),
        ((pool("VXLAN", "fd00:65::/48"),), 1430, "VXLAN over IPv6: 1500 of eth0 − 70 VXLAN over IPv6 = 1430"),
        ((pool("IPIP"), pool("VXLAN")), 1450, "VXLAN: 1500 of eth0 − 50 VXLAN = 1450"),
        ((pool("VXLAN", load_balancer_only=True),), 1500, "no encapsulation: 1500 of eth0"),
        ((pool("VXLAN", disabled=True),), 1450, "VXLAN: 1500 of eth0 − 50 VXLAN = 1450"),
    ],
)
def test_smallest_of_what_is_used(pools: tuple[Pool, ...], pod: int, text: str) -> None:
    found = mtu([ETH0], said(), pools)
    assert (found.pod, found.text, found.warning) == (pod, text, "")


def test_host_mtu_is_the_smallest_of_the_links_that_count() -> None:
    links = [
        Link("eth0", 2, True, mtu=9000),
        Link("enp3s0", 3, True, mtu=1400),
        Link("ens4", 4, False, mtu=1300),
        Link("docker0", 5, True, mtu=1200),
    ]
    assert mtu(links, said(), ()).text == "no encapsulation: 1400 of enp3s0"
    assert mtu(links, said(mtu_iface_pattern="^docker"), ()).pod == 1200
    assert mtu(links, said(mtu_iface_pattern="h0$"), ()).pod == 9000
    nothing = mtu([Link("lo", 1, True, mtu=65536)], said(), ())
    assert nothing.pod == 1460
    assert nothing.text.startswith("no encapsulation: 1460, as no link that is up matches mtuIfacePattern ^((en|")


def test_told_wins_and_is_compared_with_what_fits() -> None:
    found = mtu([ETH0], said(vxlan_mtu=1400), [pool("VXLAN")])
    assert (found.pod, found.warning) == (1400, "")
    assert found.text == "VXLAN: 1400 told by vxlanMTU; 1500 of eth0 − 50 VXLAN = 1450"
    found = mtu([ETH0], said(vxlan_mtu=1480), [pool("VXLAN")])
    assert found.pod == 1480
    assert "more than fits (1500 of eth0 − 50 VXLAN = 1450)" in found.warning
    assert summed(mtu([ETH0], said(ipip_mtu=1300), ()), "IPIP")[:2] == (1300, False)


def test_switches_beat_pools() -> None:
    assert mtu([ETH0], said(vxlan_enabled=False), [pool("VXLAN")]).pod == 1500
    assert mtu([ETH0], said(ipip_enabled=True), ()).pod == 1480
    assert mtu([ETH0], said(vxlan_enabled=False), [pool("VXLAN", "fd00:65::/48")]).pod == 1500
    assert mtu([ETH0], said(wireguard_enabled=True), ()).pod == 1440
    assert mtu([ETH0], said(wireguard_enabled_v6=True), ()).pod == 1420


def test_too_little_for_ipv6_is_said() -> None:
    found = mtu([Link("eth0", 2, True, mtu=1300)], said(), [pool("VXLAN")])
    assert "1250 is less than the 1280 that IPv6 needs" in found.warning


@pytest.mark.parametrize("fields", [{"mtu_iface_pattern": "["}])
def test_settings_that_cannot_be(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="mtuIfacePattern"):
        said(**fields)


# --- the file -----------------------------------------------------------------------------------------------------


def state(*pools: Pool, settings: Settings | None = None) -> DesiredState:
    return DesiredState(1, "n", {}, {}, {}, pools, settings=settings or Settings())


def conf(mtu: int = 0) -> NetConf:
    return NetConf("net", "", "", mtu, 1, False, True, False, (), ())


def test_file_and_new_pods_follow_links_pools_and_settings(tmp_path: Path) -> None:
    live = PodMtu(tmp_path / "lib" / "mtu")
    live.see_links([ETH0])
    assert live.of(conf()) == 0  # nothing is known of pools yet
    assert not live.file.exists()
    live.see(state())
    assert (live.of(conf()), live.file.read_text()) == (1500, "1500\n")
    live.see(state(pool("VXLAN")))
    assert (live.of(conf()), live.file.read_text()) == (1450, "1450\n")
    live.see_links([Link("eth0", 2, True, mtu=9000)])
    assert (live.of(conf()), live.file.read_text()) == (8950, "8950\n")
    live.see(state(pool("VXLAN"), settings=said(vxlan_mtu=1400)))
    assert (live.of(conf()), live.file.read_text()) == (1400, "1400\n")
    assert live.of(conf(1300)) == 1300  # what a network says is the network's
    answer = live.answer({"cali1": 1500, "cali2": 1400})
    assert (answer["pod"], answer["others"], answer["pods"]) == (1400, {"cali1": 1500}, 2)
    text = mtu_text({"node": "n1", **answer})
    assert text.startswith("n1: new pods 1400 (VXLAN: 1400 told by vxlanMTU; 9000 of eth0 − 50 VXLAN = 8950), noted")
    assert text.endswith("  1 of 2 pods have another MTU, made before or told: cali1 1500\n")


def test_file_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "lib").touch()
    live = PodMtu(tmp_path / "lib" / "mtu")
    live.see_links([ETH0])
    live.see(state())
    assert live.of(conf()) == 1500
    assert any("plugins that read it do not learn the MTU" in line for line in caplog.messages)
