"""What policy means, situation by situation: whom and what a rule of Calico's matches."""

from __future__ import annotations

import pytest
from situations import (
    ALLOW,
    BAD_SET,
    BLUE_IN,
    BLUE_SET,
    CALICO_ON_A,
    DENY,
    EOT_IN,
    EOT_OUT,
    GNP0,
    NP0,
    RED_IN,
    Situation,
    W,
    cases,
    check,
    gnp,
    gns,
    np,
)

PEERS = [
    Situation(
        "P44 all() means the known ones",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: all()}}}}]")],
        [W("d", "a", 80, ALLOW, GNP0), W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P45 notSelector alone takes in the unknown ones",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{notSelector: app == 'client'}}}}]")],
        [W("X", "a", 80, ALLOW, GNP0), W("b", "a", 80, ALLOW, GNP0), W("d", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P46 but in a namespaced policy only those of the namespace",
        [np(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{notSelector: app == 'client'}}}}]")],
        [
            W("b", "a", 80, ALLOW, NP0),
            W("X", "a", 80, DENY, EOT_IN),
            W("d", "a", 80, DENY, EOT_IN),
            W("c", "a", 80, DENY, EOT_IN),
        ],
    ),
    Situation(
        "P47 of any namespace",
        [
            np(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, "
                "source: {selector: app == 'client', namespaceSelector: all()}}]"
            )
        ],
        [W("d", "a", 80, ALLOW, NP0), W("X", "a", 80, DENY, EOT_IN), W("c", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "a namespaceSelector alone",
        [np(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{namespaceSelector: team == 'blue'}}}}]")],
        [W("d", "a", 80, ALLOW, NP0), W("c", "a", 80, ALLOW, NP0), W("b", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "a namespaceSelector that negates",
        [np(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{namespaceSelector: \"!(team == 'blue')\"}}}}]")],
        [W("d", "a", 80, DENY, EOT_IN), W("b", "a", 80, ALLOW, NP0), W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "all() inside a larger namespaceSelector, and as a text, is not rewritten blindly",
        [
            np(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{namespaceSelector: "
                "\"all() && team != 'all()' && team != 'red'\"}}]"
            )
        ],
        [W("d", "a", 80, ALLOW, NP0), W("b", "a", 80, DENY, EOT_IN), W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P48 a global network set",
        [BAD_SET, gnp("order: 1, ingress: [{action: Deny, source: {selector: bad == 'true'}}, {action: Allow}]")],
        [W("X", "a", 80, DENY, GNP0), W("d", "a", 80, ALLOW, "gnp/g|ingress|1")],
    ),
    Situation(
        "P49 a global set is in no namespace",
        [BAD_SET, np(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: bad == 'true'}}}}]")],
        [W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P50 which global() says",
        [
            BAD_SET,
            np(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, "
                "source: {selector: bad == 'true', namespaceSelector: global()}}]"
            ),
        ],
        [W("X", "a", 80, ALLOW, NP0), W("d", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P51 a network set inherits its namespace's labels",
        [
            BLUE_SET,
            np(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, "
                "source: {selector: p == 'q', namespaceSelector: team == 'blue'}}]"
            ),
        ],
        [W("X", "a", 80, ALLOW, NP0), W("d", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P51 and is a member of it",
        [BLUE_SET, np(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: p == 'q'}}}}]")],
        [W("X", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "a network set of everything",
        [
            gns("world", "0.0.0.0/0", "net: world"),
            gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: net == 'world'}}}}]"),
        ],
        [W("X", "a", 80, ALLOW, GNP0), W("d", "a", 80, ALLOW, GNP0)],
    ),
    Situation(
        "P53 the clauses of a rule must all hold",
        [
            gnp(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, "
                "source: {nets: [10.244.2.0/24], selector: app == 'web'}}]"
            )
        ],
        [W("d", "a", 80, DENY, EOT_IN), W("c", "a", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P54 ports are alternatives",
        [
            gnp(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: TCP, "
                'destination: {ports: [80, "http", "9000:9010"]}}]'
            )
        ],
        [
            W("d", "a", 80, ALLOW, GNP0),
            W("d", "a", 8080, ALLOW, GNP0),
            W("d", "a", 9005, ALLOW, GNP0),
            W("d", "a", 81, DENY, EOT_IN),
            W("d", "a", "udp 80", DENY, EOT_IN),
        ],
    ),
    Situation(
        "a named port is that of the endpoints that the selector matches",
        [
            gnp(
                "selector: app == 'client', egress: [{action: Allow, protocol: TCP, "
                'destination: {selector: app == \'db\', ports: ["http", "pg"]}}]'
            )
        ],
        [
            W("d", "b", 5432, ALLOW, RED_IN),
            W("d", "a", 8080, DENY, EOT_OUT),
            W("d", "b", 8080, DENY, EOT_OUT),
        ],
    ),
    Situation(
        "with a number beside the name, the selector still holds",
        [
            gnp(
                "selector: app == 'client', egress: [{action: Allow, protocol: TCP, "
                'destination: {selector: app == \'db\', ports: [80, "pg"]}}]'
            )
        ],
        [W("d", "b", 80, ALLOW, RED_IN), W("d", "a", 80, DENY, EOT_OUT), W("d", "b", 5432, ALLOW, RED_IN)],
    ),
    Situation(
        "a named port without a protocol is that of any protocol that declares it",
        [gnp(f'{CALICO_ON_A}, ingress: [{{action: Allow, destination: {{ports: ["http"]}}}}]')],
        [W("d", "a", 8080, ALLOW, GNP0), W("d", "a", "udp 8080", DENY, EOT_IN)],
    ),
    Situation(
        "notPorts: none of the ranges and none of the named",
        [
            gnp(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: TCP, "
                'destination: {notPorts: [80, "http", "9000:9010"]}}]'
            )
        ],
        [
            W("d", "a", 80, DENY, EOT_IN),
            W("d", "a", 8080, DENY, EOT_IN),
            W("d", "a", 9010, DENY, EOT_IN),
            W("d", "a", 9011, ALLOW, GNP0),
        ],
    ),
    Situation(
        "ports of the source",
        [gnp(f'{CALICO_ON_A}, ingress: [{{action: Allow, protocol: TCP, source: {{ports: ["39999:40001"]}}}}]')],
        [W("d", "a", 1, ALLOW, GNP0), W("d", "a", "udp 1", DENY, EOT_IN)],
    ),
    Situation(
        "notNets",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{notNets: [10.244.2.0/24]}}}}]")],
        [W("d", "a", 1, DENY, EOT_IN), W("c", "a", 1, ALLOW, GNP0), W("X", "a", 1, ALLOW, GNP0)],
    ),
    Situation(
        "selector and notSelector of one end are one set",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{selector: has(app), notSelector: app == 'db'}}}}]")],
        [W("d", "a", 1, ALLOW, GNP0), W("b", "a", 1, DENY, EOT_IN), W("X", "a", 1, DENY, EOT_IN)],
    ),
    Situation(
        "P55 service accounts by name are those of the namespace",
        [np("selector: app == 'db', ingress: [{action: Allow, source: {serviceAccounts: {names: [web-sa]}}}]")],
        [W("a", "b", 80, ALLOW, NP0), W("c", "b", 80, DENY, EOT_IN)],
    ),
    Situation(
        "P56 service accounts by label",
        [
            gnp(
                "selector: app == 'db', ingress: [{action: Allow, "
                "source: {serviceAccounts: {selector: tier == 'front'}}}]"
            )
        ],
        [W("a", "b", 80, ALLOW, GNP0), W("c", "b", 80, DENY, EOT_IN)],
    ),
    Situation(
        "service account names and selector must both hold",
        [
            gnp(
                "selector: app == 'db', ingress: [{action: Allow, "
                "source: {serviceAccounts: {names: [default, web-sa], selector: tier == 'front'}}}]"
            )
        ],
        [W("a", "b", 80, ALLOW, GNP0), W("c", "b", 80, DENY, EOT_IN), W("d", "b", 80, DENY, EOT_IN)],
    ),
    Situation(
        "serviceAccountSelector says to which pods a policy applies",
        [gnp("serviceAccountSelector: tier == 'front', ingress: [{action: Deny}]")],
        [W("d", "a", 80, DENY, GNP0), W("d", "b", 80, ALLOW, RED_IN), W("d", "c", 80, ALLOW, BLUE_IN)],
    ),
    Situation(
        "namespaceSelector of a global policy says so by namespace",
        [gnp("namespaceSelector: team == 'red', selector: app == 'web', ingress: [{action: Deny}]")],
        [W("d", "a", 80, DENY, GNP0), W("d", "b", 80, ALLOW, RED_IN), W("d", "c", 80, ALLOW, BLUE_IN)],
    ),
    Situation(
        "P60 notProtocol",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, notProtocol: TCP}}]")],
        [W("d", "a", "udp 80", ALLOW, GNP0), W("d", "a", 80, DENY, EOT_IN), W("d", "a", "icmp", ALLOW, GNP0)],
    ),
    Situation(
        "P59 an ICMP rule is one of its family",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: ICMP, icmp: {{type: 8}}}}]")],
        [W("d", "a", "icmp", ALLOW, GNP0)],
    ),
    Situation(
        "P59 so ping6 does not match IPv4's",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: 1, icmp: {{type: 8, code: 0}}}}]")],
        [W("d", "a", "icmp", DENY, EOT_IN)],
        (6,),
    ),
    Situation(
        "P61 ipVersion of the other family",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, ipVersion: 6}}]")],
        [W("d", "a", 80, DENY, EOT_IN)],
        (4,),
    ),
    Situation(
        "P62 networks of the other family make the rule one of that family",
        [gnp(f"{CALICO_ON_A}, ingress: [{{action: Allow, source: {{nets: ['2001:db8::/32']}}}}]")],
        [W("d", "a", 80, DENY, EOT_IN), W("X", "a", 80, DENY, EOT_IN)],
        (4,),
    ),
    Situation(
        "P63 HTTP is not the kernel's to ask",
        [
            np(
                f"{CALICO_ON_A}, ingress: [{{action: Allow, protocol: TCP, "
                "http: {methods: [GET], paths: [{prefix: /public}]}}]"
            )
        ],
        [W("d", "a", 8080, ALLOW, NP0)],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("situation", "version"), cases(PEERS))
def test_situation(situation: Situation, version: int) -> None:
    check(situation, version)
