"""A router of the underlay passes on less than the uplink does: the host learns it, tenants are told, TCP goes on."""

from daemon import Host
from lab import check, step, wait_until
from topology import Peer, Tenant, pair_rules, underlay, uplink_port
from traffic import cached_mtu, expect_ping, ping, tcp_transfer

PATH_MTU = 1400
# Outer IP, UDP and VXLAN headers and the inner Ethernet header.
FITTING_MTU = {4: PATH_MTU - 50, 6: PATH_MTU - 70}
# The far end of the tunnel, behind the router, and the router's address there.
FAR = {4: "198.51.100.2", 6: "2001:db8:1::2"}
ROUTER = {4: "198.51.100.1", 6: "2001:db8:1::1"}
BITS = {4: 24, 6: 64}
DEVICE = "vx100"


def run(lab):
    """The router is the kernel of one namespace, the far end a kernel VXLAN device in another."""
    namespace = lab.namespace("a")
    router = Peer(lab, namespace)
    far_space = lab.namespace("far")
    lab.veth(router.namespace, "out0", far_space, "in0", PATH_MTU)
    router.namespace.up("out0", [f"{ROUTER[family]}/{BITS[family]}" for family in ROUTER])
    router.namespace.sysctl("net/ipv4/ip_forward", 1)
    router.namespace.sysctl("net/ipv6/conf/all/forwarding", 1)
    far_space.up("in0", [f"{FAR[family]}/{BITS[family]}" for family in FAR])
    for flag, family in (("-4", 4), ("-6", 6)):
        far_space.ip(flag, "route", "add", "default", "via", ROUTER[family])

    near, far = Tenant(lab, "vm1", 1), Tenant(lab, "vm2", 2)
    port = uplink_port(1, gateway=[underlay(2), underlay(2, 6)])
    host = Host(lab, namespace, "host-a", [port, near.port()], core=0)
    host.tenants = [near]
    host.start()
    for family, wanted in FITTING_MTU.items():
        step(f"IPv{family} underlay: a router takes {PATH_MTU} bytes, the uplink more")
        far_space.run("ip", "link", "delete", DEVICE, check_status=False)
        far_space.ip(
            "link", "add", DEVICE, "type", "vxlan", "id", near.vni, "dstport", 4789,
            "local", FAR[family], "remote", underlay(1, family),
        )
        far_space.plain_frames(DEVICE)
        far_space.up(DEVICE, [f"{far.v4}/24", f"{far.v6}/64"], mac=far.mac, mtu=wanted)
        for address in (near.v4, near.v6):
            far_space.ip("neighbour", "replace", address, "lladdr", near.mac, "dev", DEVICE, "nud", "permanent")
        near.namespace.ip("route", "flush", "cache")
        near.namespace.ip("-6", "route", "flush", "cache")
        host.load(pair_rules(near, far, FAR[family]))
        expect_ping(near.namespace, far.v4)

        step(f"IPv{family} underlay: after the router has complained, the tenant is told {wanted}")
        full = ("-M", "do", "-s", "1472")
        before = host.stats()
        ping(near.namespace, far.v4, 1, extra=full, wait_s=1)
        wait_until(lambda: "mtu" in ping(near.namespace, far.v4, 1, extra=full, wait_s=1)[1].lower(), "the tenant is not told")
        found = cached_mtu(near.namespace, far.v4)
        check(found == wanted, f"path MTU to {far.v4} is {found}, not {wanted}")
        host.expect_drops(before, near.name, "too_big", at_least=1)
        expect_ping(near.namespace, far.v4, extra=("-M", "do", "-s", str(wanted - 28)))

        step(f"IPv{family} underlay: TCP finds its way")
        tcp_transfer(near.namespace, far_space, far.v4, 2_000_000)
        tcp_transfer(near.namespace, far_space, far.v6, 2_000_000)
    host.at_rest()
