"""rtnetlink's structs and attributes, each table naming the kernel header it is from.

Only attributes that somebody here reads or writes are listed; the others are passed over when decoding.
"""

from __future__ import annotations

from tortie.kernel.netlink.codec import (
    BE16,
    FLAG,
    IP,
    MAC,
    RAW,
    S32,
    TEXT,
    U8,
    U16,
    U32,
    U64,
    VIA,
    Codec,
    Nexthops,
    Record,
    Table,
)

# nlmsghdr.nlmsg_type (linux/rtnetlink.h)
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
RTM_NEWNSID, RTM_GETNSID = 88, 90

# address families (linux/socket.h), which `socket` has too but for the bridge
AF_UNSPEC, AF_INET, AF_BRIDGE, AF_INET6 = 0, 2, 7, 10

# enum rt_scope_t (linux/rtnetlink.h), in the words of ip(8)
SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_SCOPE_NUMBERS = {name: number for number, name in SCOPES.items()}


def scope_number(scope: str) -> int:
    """The number of a scope, which may be a name or a number. Raises ValueError for what is neither."""
    number = _SCOPE_NUMBERS.get(scope)
    if number is None and not scope.isdecimal():
        raise ValueError(f"{scope!r} is no scope")
    return int(scope) if number is None else number


# --- links: struct ifinfomsg and IFLA_* ---------------------------------------------------------------------------

_LINK_ROWS: dict[int, tuple[str, Codec]] = {
    1: ("address", MAC),
    2: ("broadcast", MAC),
    3: ("ifname", TEXT),
    4: ("mtu", U32),
    5: ("link", S32),
    10: ("master", U32),
    13: ("txqlen", U32),
    16: ("operstate", U8),
    19: ("net_ns_pid", U32),
    20: ("ifalias", TEXT),
    27: ("group", U32),
    28: ("net_ns_fd", U32),
    29: ("ext_mask", U32),
    30: ("promiscuity", U32),
    31: ("num_tx_queues", U32),
    32: ("num_rx_queues", U32),
    33: ("carrier", U8),
    37: ("link_netnsid", S32),
}

IFLA_BRIDGE = Table(
    "linux/if_link.h IFLA_BR_*",
    {
        1: ("forward_delay", U32),
        4: ("ageing_time", U32),
        5: ("stp_state", U32),
        7: ("vlan_filtering", U8),
        23: ("mcast_snooping", U8),
        39: ("vlan_default_pvid", U16),
    },
)

IFLA_BRIDGE_PORT = Table(
    "linux/if_link.h IFLA_BRPORT_*",
    {
        1: ("state", U8),
        2: ("priority", U16),
        3: ("cost", U32),
        4: ("hairpin", U8),  # IFLA_BRPORT_MODE
        5: ("guard", U8),
        8: ("learning", U8),
        9: ("unicast_flood", U8),
        10: ("proxyarp", U8),
        27: ("mcast_flood", U8),
        30: ("bcast_flood", U8),
        32: ("neigh_suppress", U8),
        33: ("isolated", U8),
    },
)

# Without linkinfo, or a forged message could nest peers in peers without end. Nobody needs it there.
IFLA_PEER = Record(
    "=BxHiII",
    ("ifi_family", "ifi_type", "ifi_index", "ifi_flags", "ifi_change"),
    Table("linux/if_link.h IFLA_*", _LINK_ROWS),
)

IFLA_VETH = Table("linux/veth.h VETH_INFO_*", {1: ("peer", IFLA_PEER)})

IFLA_NETKIT = Table(
    "linux/if_link.h IFLA_NETKIT_*",
    {1: ("peer", IFLA_PEER), 2: ("primary", U8), 3: ("policy", U32), 4: ("peer_policy", U32), 5: ("mode", U32)},
)
# enum netkit_mode and netkit_action (linux/if_link.h)
NETKIT_L2, NETKIT_PASS = 0, 0

IFLA_VXLAN = Table(
    "linux/if_link.h IFLA_VXLAN_*",
    {
        1: ("id", U32),
        2: ("group", IP),
        3: ("link", U32),
        4: ("local", IP),
        5: ("ttl", U8),
        7: ("learning", U8),
        8: ("ageing", U32),
        15: ("port", BE16),
        16: ("group6", IP),
        17: ("local6", IP),
        18: ("udp_csum", U8),
        19: ("udp_zero_csum6_tx", U8),
        20: ("udp_zero_csum6_rx", U8),
        23: ("gbp", FLAG),
        25: ("collect_metadata", U8),
        29: ("df", U8),
    },
)

IFLA_MACVLAN = Table("linux/if_link.h IFLA_MACVLAN_*", {1: ("mode", U32), 2: ("flags", U16), 7: ("bc_queue_len", U32)})

IFLA_IPVLAN = Table("linux/if_link.h IFLA_IPVLAN_*", {1: ("mode", U16), 2: ("flags", U16)})

IFLA_VLAN = Table("linux/if_link.h IFLA_VLAN_*", {1: ("id", U16), 5: ("protocol", BE16)})

IFLA_IPTUN = Table(
    "linux/if_tunnel.h IFLA_IPTUN_*",
    {
        1: ("link", U32),
        2: ("local", IP),
        3: ("remote", IP),
        4: ("ttl", U8),
        5: ("tos", U8),
        9: ("proto", U8),
        10: ("pmtudisc", U8),
    },
)

IFLA_TUN = Table(
    "linux/if_link.h IFLA_TUN_*",
    {1: ("owner", U32), 2: ("group", U32), 3: ("type", U8), 4: ("pi", U8), 5: ("vnet_hdr", U8), 6: ("persist", U8)},
)

IFLA_VRF = Table("linux/if_link.h IFLA_VRF_*", {1: ("table", U32)})

LINK_DATA: dict[str, Codec] = {
    "bridge": IFLA_BRIDGE,
    "ipip": IFLA_IPTUN,
    "ipvlan": IFLA_IPVLAN,
    "macvlan": IFLA_MACVLAN,
    "netkit": IFLA_NETKIT,
    "sit": IFLA_IPTUN,
    "tun": IFLA_TUN,
    "veth": IFLA_VETH,
    "vlan": IFLA_VLAN,
    "vrf": IFLA_VRF,
    "vxlan": IFLA_VXLAN,
}

IFLA_LINKINFO = Table(
    "linux/if_link.h IFLA_INFO_*",
    {1: ("kind", TEXT), 2: ("data", RAW), 4: ("slave_kind", TEXT), 5: ("slave_data", RAW)},
    choices={"data": ("kind", LINK_DATA), "slave_data": ("slave_kind", {"bridge": IFLA_BRIDGE_PORT})},
)

IFLA = Table("linux/if_link.h IFLA_*", {**_LINK_ROWS, 18: ("linkinfo", IFLA_LINKINFO)})

LINK = Record(
    "=BxHiII",  # struct ifinfomsg (linux/rtnetlink.h)
    ("ifi_family", "ifi_type", "ifi_index", "ifi_flags", "ifi_change"),
    IFLA,
)

# ifinfomsg.ifi_flags (linux/if.h)
IFF_UP, IFF_PROMISC, IFF_ALLMULTI, IFF_LOWER_UP = 0x1, 0x100, 0x200, 0x10000

# IFLA_EXT_MASK (linux/rtnetlink.h): half of a link's bytes are counters that nobody here reads
RTEXT_FILTER_SKIP_STATS = 1 << 3

# IFLA_OPERSTATE (linux/if.h IF_OPER_*), in the words of ip(8)
OPERSTATES = ("UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP")

# --- addresses: struct ifaddrmsg and IFA_* ------------------------------------------------------------------------

ADDRESS = Record(
    "=BBBBI",  # struct ifaddrmsg (linux/if_addr.h)
    ("ifa_family", "ifa_prefixlen", "ifa_flags", "ifa_scope", "ifa_index"),
    Table(
        "linux/if_addr.h IFA_*",
        {
            1: ("address", IP),
            2: ("local", IP),
            3: ("label", TEXT),
            4: ("broadcast", IP),
            8: ("flags", U32),
            9: ("rt_priority", U32),
        },
    ),
)

# --- routes: struct rtmsg and RTA_* -------------------------------------------------------------------------------

RTAX = Table("linux/rtnetlink.h RTAX_*", {1: ("lock", U32), 2: ("mtu", U32), 8: ("advmss", U32), 10: ("hoplimit", U32)})

_NEXTHOP_ROWS: dict[int, tuple[str, Codec]] = {5: ("gateway", IP), 18: ("via", VIA)}

ROUTE = Record(
    "=BBBBBBBBI",  # struct rtmsg (linux/rtnetlink.h)
    (
        "rtm_family",
        "rtm_dst_len",
        "rtm_src_len",
        "rtm_tos",
        "rtm_table",
        "rtm_protocol",
        "rtm_scope",
        "rtm_type",
        "rtm_flags",
    ),
    Table(
        "linux/rtnetlink.h RTA_*",
        {
            1: ("dst", IP),
            2: ("src", IP),
            3: ("iif", U32),
            4: ("oif", U32),
            **_NEXTHOP_ROWS,
            6: ("priority", U32),
            7: ("prefsrc", IP),
            8: ("metrics", RTAX),
            9: ("multipath", Nexthops(Table("linux/rtnetlink.h RTA_*", _NEXTHOP_ROWS))),
            15: ("table", U32),
            16: ("mark", U32),
            20: ("pref", U8),
            23: ("expires", U32),
            30: ("nh_id", U32),
        },
    ),
)

# rtmsg.rtm_type (linux/rtnetlink.h RTN_*), in the words of ip(8)
ROUTE_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
    10: "nat",
}
ROUTE_TYPE_NUMBERS = {name: number for number, name in ROUTE_TYPES.items()}

# rtmsg.rtm_flags (linux/rtnetlink.h)
RTNH_F_ONLINK, RTM_F_CLONED, RTM_F_FIB_MATCH = 4, 0x200, 0x2000

# rtmsg.rtm_table (linux/rtnetlink.h); a table above 255 is RT_TABLE_COMPAT there and whole in RTA_TABLE
RT_TABLE_COMPAT, RT_TABLE_DEFAULT, RT_TABLE_MAIN, RT_TABLE_LOCAL = 252, 253, 254, 255
TABLES = {RT_TABLE_DEFAULT: "default", RT_TABLE_MAIN: "main", RT_TABLE_LOCAL: "local"}

RTPROT_KERNEL, RTPROT_BOOT, RTPROT_STATIC, RTPROT_BIRD = 2, 3, 4, 12  # whose a route is (linux/rtnetlink.h)
RTPROT_AGENT = 80  # our own, and Felix' (deviceRouteProtocol); no other program is known to use it
RTPROT_POD_NETWORKS = 87  # our own: routes to pods of stand-alone plugins on other nodes
RTPROT_FLANNEL = 70  # our own: flanneld's routes
# rtmsg.rtm_protocol (linux/rtnetlink.h RTPROT_*), in the words of ip(8)
PROTOCOLS = {1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 12: "bird", 16: "dhcp", 186: "bgp"}

# --- neighbours and bridge forwarding entries: struct ndmsg and NDA_* ---------------------------------------------

NEIGHBOUR = Record(
    "=BxxxiHBB",  # struct ndmsg (linux/neighbour.h)
    ("ndm_family", "ndm_ifindex", "ndm_state", "ndm_flags", "ndm_type"),
    Table(
        "linux/neighbour.h NDA_*",
        {
            1: ("dst", IP),
            2: ("lladdr", MAC),
            5: ("vlan", U16),
            6: ("port", BE16),
            7: ("vni", U32),
            8: ("ifindex", U32),
            9: ("master", U32),
            11: ("src_vni", U32),
            12: ("protocol", U8),
        },
    ),
)

# ndmsg.ndm_state (linux/neighbour.h NUD_*), in the words of ip(8)
NEIGHBOUR_STATES = {
    0x00: "none",
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}
NEIGHBOUR_STATE_NUMBERS = {name: number for number, name in NEIGHBOUR_STATES.items()}

# ndmsg.ndm_flags (linux/neighbour.h)
NTF_SELF, NTF_MASTER, NTF_PROXY, NTF_EXT_LEARNED, NTF_STICKY, NTF_ROUTER = 0x02, 0x04, 0x08, 0x10, 0x40, 0x80

# --- policy rules: struct fib_rule_hdr and FRA_* ------------------------------------------------------------------

RULE = Record(
    "=BBBBBxxBI",  # struct fib_rule_hdr (linux/fib_rules.h), whose fields have no prefix there
    ("frh_family", "frh_dst_len", "frh_src_len", "frh_tos", "frh_table", "frh_action", "frh_flags"),
    Table(
        "linux/fib_rules.h FRA_*",
        {
            1: ("dst", IP),
            2: ("src", IP),
            3: ("iifname", TEXT),
            4: ("goto", U32),
            6: ("priority", U32),
            10: ("fwmark", U32),
            14: ("suppress_prefixlen", U32),
            15: ("table", U32),
            16: ("fwmask", U32),
            17: ("oifname", TEXT),
            21: ("protocol", U8),
            22: ("ip_proto", U8),
        },
    ),
)

# fib_rule_hdr.action and .flags (linux/fib_rules.h), the actions in the words of ip(8)
RULE_ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
RULE_ACTION_NUMBERS = {name: number for number, name in RULE_ACTIONS.items()}
FIB_RULE_INVERT = 0x2

# --- what a namespace calls another: struct rtgenmsg and NETNSA_* --------------------------------------------------

NSID = Record(
    "=Bxxx",  # struct rtgenmsg (linux/rtnetlink.h)
    ("rtgen_family",),
    Table("linux/net_namespace.h NETNSA_*", {1: ("nsid", S32), 2: ("pid", U32), 3: ("fd", U32)}),
)

# --- traffic control: struct tcmsg and TCA_* -----------------------------------------------------------------------

# struct tc_tbf_qopt (linux/pkt_sched.h): two struct tc_ratespec, of which the kernel reads only linklayer and rate
_TBF_PARMS = Record(
    "=xBxxxxxxIxBxxxxxxIIII",
    ("linklayer", "rate", "peak_linklayer", "peakrate", "limit", "buffer", "mtu"),
    Table("linux/pkt_sched.h struct tc_tbf_qopt", {}),
)
TCA_TBF = Table("linux/pkt_sched.h TCA_TBF_*", {1: ("parms", _TBF_PARMS), 4: ("rate64", U64), 5: ("prate64", U64)})

_MIRRED_PARMS = Record(
    "=IIiiiiI",  # struct tc_mirred (linux/tc_act/tc_mirred.h)
    ("index", "capab", "action", "refcnt", "bindcnt", "eaction", "ifindex"),
    Table("linux/tc_act/tc_mirred.h struct tc_mirred", {}),
)
TCA_MIRRED = Table("linux/tc_act/tc_mirred.h TCA_MIRRED_*", {2: ("parms", _MIRRED_PARMS)})

TCA_ACT = Table(
    "linux/pkt_cls.h TCA_ACT_*",
    {1: ("kind", TEXT), 2: ("options", RAW)},
    choices={"options": ("kind", {"mirred": TCA_MIRRED})},
)

TCA_U32 = Table(
    "linux/pkt_cls.h TCA_U32_*",
    {5: ("selector", RAW), 7: ("actions", Table("linux/pkt_cls.h: actions by their order", {1: ("first", TCA_ACT)}))},
)

TC = Record(
    "=BxxxiIII",  # struct tcmsg (linux/rtnetlink.h)
    ("tcm_family", "tcm_ifindex", "tcm_handle", "tcm_parent", "tcm_info"),
    Table(
        "linux/rtnetlink.h TCA_*",
        {1: ("kind", TEXT), 2: ("options", RAW)},
        choices={"options": ("kind", {"tbf": TCA_TBF, "u32": TCA_U32})},
    ),
)

# tcmsg.tcm_parent (linux/pkt_sched.h); the last is TC_H_CLSACT with the minor number TC_H_MIN_INGRESS
TC_H_ROOT, TC_H_INGRESS, TC_INGRESS_FILTERS = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFFFFF2

# tc_ratespec.linklayer (linux/pkt_sched.h); tc_gen.action (linux/pkt_cls.h); tc_mirred.eaction
TC_LINKLAYER_ETHERNET, TC_ACT_STOLEN, TCA_EGRESS_REDIR = 1, 4, 1

# --- multicast groups (linux/rtnetlink.h RTNLGRP_*) ---------------------------------------------------------------

RTNLGRP_LINK, RTNLGRP_NEIGH = 1, 3
RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE = 5, 7
RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE = 9, 11
