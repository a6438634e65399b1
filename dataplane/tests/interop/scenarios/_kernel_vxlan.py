"""What kernel_vxlan_v4 and kernel_vxlan_v6 share: the kernel's VXLAN device is the other host.

Over IPv6 the kernel's defaults drop datagrams without a UDP checksum, so this proves that ours are there and right.
"""

from daemon import Host
from lab import step
from topology import Peer, Tenant, pair_rules, underlay, uplink_port
from traffic import expect_full_exchange, expect_ping, tcp_transfer

DEVICE = "vx100"


class KernelTenant:
    """The far tenant: the peer's namespace itself, with the VXLAN device as its interface."""

    def __init__(self, peer, like):
        self.name = "kernel"
        self.namespace = peer.namespace
        self.mac, self.v4, self.v6 = like.mac, like.v4, like.v6

    def attach(self, family, near, *options):
        """Makes the VXLAN device anew, with the near tenant as a static neighbour."""
        self.namespace.run("ip", "link", "delete", DEVICE, check_status=False)
        self.namespace.ip(
            "link", "add", DEVICE, "type", "vxlan", "id", near.vni, "dstport", 4789,
            "local", underlay(2, family), "remote", underlay(1, family), *options,
        )
        self.namespace.plain_frames(DEVICE)
        self.namespace.up(DEVICE, [f"{self.v4}/24", f"{self.v6}/64"], mac=self.mac, mtu=1500)
        for address in (near.v4, near.v6):
            self.namespace.ip("neighbour", "replace", address, "lladdr", near.mac, "dev", DEVICE, "nud", "permanent")


def run(lab, family):
    """Everything between a Forebay tenant and a kernel VXLAN device."""
    namespace = lab.namespace("a")
    peer = Peer(lab, namespace)
    near = Tenant(lab, "vm1", 1)
    far = KernelTenant(peer, Tenant(lab, "vm2", 2))
    host = Host(lab, namespace, "host-a", [uplink_port(1), near.port()], core=0)
    host.tenants = [near]
    host.start()
    host.load(pair_rules(near, far, underlay(2, family)))

    step("kernel VXLAN with its defaults: ping, UDP, TCP, both directions, both inner families")
    far.attach(family, near)
    expect_full_exchange(near, far)
    if family == 4:
        step("kernel VXLAN with UDP checksums: ours to check, or to ignore")
        far.attach(family, near, "udpcsum")
        expect_ping(near.namespace, far.v4)
        tcp_transfer(far.namespace, near.namespace, near.v4, 5_000_000)
