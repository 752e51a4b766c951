"""Backend types that are not here, and what a person is told to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannel_nodes import network_config
from tortie.base.errors import ConfigError
from tortie.flannel.backend import Setting
from tortie.flannel.backends import MODULES, REFUSED, load
from tortie.flannel.config import NetworkConfig


def refusal(name: str) -> str:
    config = network_config("vxlan")
    config = NetworkConfig(config.v4, config.v6, name, {"Type": name})
    with pytest.raises(ConfigError) as error:
        load(config, Setting(Path("/nonexistent")))
    return str(error.value)


@pytest.mark.parametrize("name", ["gce", "ali-vpc", "tencent-vpc", "ipsec"])
def test_one_that_flannel_has_or_had_names_what_to_use(name: str) -> None:
    text = refusal(name)
    assert text.startswith(f'Backend.Type: "{name}" is not here: ')
    assert "\n" not in text
    assert any(f'"{other}"' in text for other in MODULES)


def test_clouds_are_sent_to_backends_that_need_none_of_their_interfaces() -> None:
    for name in ("gce", "ali-vpc", "tencent-vpc"):
        assert '"alloc"' in refusal(name)
        assert '"vxlan"' in refusal(name)
    assert '"wireguard"' in refusal("ipsec")


@pytest.mark.parametrize("name", ["", "vxlam", "Vxlan", "unknown"])
def test_one_that_nobody_knows_has_flannel_s_words(name: str) -> None:
    """Types are in lower case by then."""
    assert refusal(name).startswith(f"Backend.Type: unknown backend type: {name} (known: vxlan, host-gw, udp, ")


def test_none_is_both_here_and_refused() -> None:
    assert not set(MODULES) & set(REFUSED)


@pytest.mark.parametrize("name", MODULES)
def test_all_that_are_here_can_be_had(name: str, tmp_path: Path) -> None:
    made = load(network_config(name), Setting(tmp_path))
    assert made.versions <= {4, 6}
    assert 4 in made.versions
    if made.published_type:
        assert made.published_type == name
