"""A tenant that sends more than the underlay carries is told so, with the size that fits, and its TCP goes on."""

import re

from lab import check, step, wait_until
from topology import Tenant, join, two_hosts
from traffic import cached_mtu, expect_ping, ping, tcp_transfer

UPLINK_MTU = 1500
# Outer IP, UDP and VXLAN headers and the inner Ethernet header: 20 + 8 + 8 + 14 and 40 + 8 + 8 + 14 bytes.
FITTING_MTU = {4: UPLINK_MTU - 50, 6: UPLINK_MTU - 70}


def run(lab):
    """Both inner families over both outer ones."""
    pair = Tenant(lab, "vm1", 1), Tenant(lab, "vm2", 2)
    hosts = two_hosts(lab, [pair], uplink_mtu=UPLINK_MTU)
    near, far = pair
    for family, wanted in FITTING_MTU.items():
        join(hosts, [pair], family)
        for tenant in pair:
            for ip in ("-4", "-6"):
                tenant.namespace.ip(ip, "route", "flush", "cache")
        expect_ping(near.namespace, far.v4)
        expect_ping(near.namespace, far.v6)

        for address, overhead in ((far.v4, 28), (far.v6, 48)):
            step(f"IPv{family} underlay, {address}: a full packet that must not be fragmented")
            before = hosts[0].stats()
            # Linux would answer the second one itself: only the first leaves the tenant.
            received, output = ping(near.namespace, address, 1, extra=("-M", "do", "-s", str(1500 - overhead)), wait_s=2)
            check(received == 0, f"a packet of 1500 bytes went through an underlay of {UPLINK_MTU}:\n{output}")
            told = [int(mtu) for mtu in re.findall(r"mtu ?= ?(\d+)", output)]
            check(told == [wanted], f"ping was told mtu {told}, not [{wanted}]:\n{output}")
            hosts[0].expect_drops(before, near.name, "too_big", at_least=1)
            wait_until(lambda a=address: cached_mtu(near.namespace, a) == wanted,
                       lambda a=address: f"path MTU to {a} is {cached_mtu(near.namespace, a)}, not {wanted}")
            step(f"IPv{family} underlay, {address}: the largest packet that fits")
            expect_ping(near.namespace, address, extra=("-M", "do", "-s", str(wanted - overhead)))

        step(f"IPv{family} underlay: TCP finds its way, both directions")
        tcp_transfer(near.namespace, far.namespace, far.v4, 5_000_000)
        tcp_transfer(far.namespace, near.namespace, near.v4, 5_000_000)
        tcp_transfer(near.namespace, far.namespace, far.v6, 5_000_000)
