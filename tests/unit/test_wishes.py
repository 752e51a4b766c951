"""What a pod wants: its annotations before its namespace's before the configuration, and only what is switched on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tortie.agent.cni.wishes import wishes
from tortie.agent.netconf import NetConf
from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError
from tortie.calc import annotations as asked

CONF = NetConf("net", "a", "red", 0, 1, False, True, False, ("conf",), ())
OPEN = replace(CONF, may_skip_ipam=True, may_float=True)


def test_without_annotations_the_configuration_holds() -> None:
    found = wishes(CONF, {}, {})
    assert (found.conf, found.fixed, found.given, found.mac, found.floating) == (CONF, (), (), "", ())


def test_pools_and_families_come_from_the_pod_then_from_its_namespace() -> None:
    namespace = {asked.IPV4_POOLS: '["ns"]', asked.IP_FAMILIES: '["IPv4", "IPv6"]'}
    assert wishes(CONF, {}, namespace).conf == replace(CONF, pools4=("ns",), ipv6=True)
    pod = {asked.IPV4_POOLS: '["pod"]', asked.IP_FAMILIES: '["IPv6"]', asked.IPV6_POOLS: '["six"]'}
    assert wishes(CONF, pod, namespace).conf == replace(CONF, pools4=("pod",), pools6=("six",), ipv4=False, ipv6=True)


@pytest.mark.parametrize(
    ("name", "switch"), [(asked.IP_ADDRS_NO_IPAM, "ip_addrs_no_ipam"), (asked.FLOATING_IPS, "floating_ips")]
)
def test_what_needs_a_switch_is_refused_without_it(name: str, switch: str) -> None:
    with pytest.raises(ConfigError, match=f"requested feature is not enabled: {switch}"):
        wishes(CONF, {name: '["192.0.2.1"]'}, {})
    assert wishes(OPEN, {name: '["192.0.2.1"]'}, {})


def test_fixed_addresses_need_no_switch_but_cannot_be_had_both_ways() -> None:
    assert wishes(CONF, {asked.IP_ADDRS: '["10.244.0.9"]'}, {}).fixed == (parse_ip("10.244.0.9"),)
    both = {asked.IP_ADDRS: '["10.244.0.9"]', asked.IP_ADDRS_NO_IPAM: '["192.0.2.1"]'}
    with pytest.raises(ConfigError, match="cannot be combined"):
        wishes(OPEN, both, {})


@pytest.mark.parametrize("name", [asked.IP_ADDRS, asked.IP_ADDRS_NO_IPAM])
def test_fixed_addresses_need_ipam_of_ours(name: str) -> None:
    with pytest.raises(ConfigError, match=r'needs ipam\.type "calico-ipam", and it is "host-local"'):
        wishes(replace(OPEN, ipam_type="host-local"), {name: '["10.244.0.9"]'}, {})


def test_floating_ips_stand_on_the_address_that_the_pod_got() -> None:
    pod = {asked.FLOATING_IPS: '["192.0.2.1"]'}
    found = wishes(OPEN, pod, {}).nats(pod, (parse_ip("10.244.0.9"), parse_ip("fd00::9")))
    assert [(nat.external_ip, nat.internal_ip) for nat in found] == [("192.0.2.1", "10.244.0.9")]
    with pytest.raises(ConfigError, match="the pod has no IPv4 address"):
        wishes(OPEN, pod, {}).nats(pod, (parse_ip("fd00::9"),))
