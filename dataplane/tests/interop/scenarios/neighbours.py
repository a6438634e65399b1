"""The uplink's neighbours: asked for its address it answers; it asks, waits, gives up, notices a new MAC, uses a gateway.

The peer is a plain kernel with a VXLAN device, so that a whole round trip proves each step.
"""

import socket
import time

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.utils6 import in6_getnsma, in6_getnsmac

from daemon import Host
from lab import check, step, wait_until
from scenarios._kernel_vxlan import KernelTenant
from topology import GATEWAY_MAC, UPLINK, Peer, Tenant, egress, pair_rules, underlay, uplink_port
from traffic import expect_ping, ping

GATEWAY = "192.0.2.254"
OFF_LINK = "198.51.100.7"
ABSENT = {4: "192.0.2.66", 6: "2001:db8::66"}
# Three questions, a second apart, are what hosts usually ask before they give up.
GIVE_UP_TIMEOUT_S = 12
# A silent change of a MAC is noticed when the entry is asked for again; RFC 4861 has 30 s of reachable time, and a few to probe.
NEW_MAC_TIMEOUT_S = 75


def run(lab):
    """One host, one kernel peer; the order matters: nothing must be known when the first packets wait."""
    namespace = lab.namespace("a")
    peer = Peer(lab, namespace)
    near = Tenant(lab, "vm1", 1, link_local=False)
    far = KernelTenant(peer, Tenant(lab, "vm2", 2))
    host = Host(lab, namespace, "host-a", [uplink_port(1, gateway=GATEWAY), near.port()], core=0)
    host.tenants = [near]
    host.start()
    for family in (4, 6):
        step(f"IPv{family}: the first packets wait for the answer: none is lost")
        host.load(pair_rules(near, far, underlay(2, family)))
        far.attach(family, near)
        expect_ping(near.namespace, far.v4, 5, interval_s=0.02)
    answers(host, peer)
    absent(host, near)
    new_mac(host, peer, near, far)
    gateway(host, peer, near)


def answers(host, peer):
    """ARP and ND are answered for the uplink's addresses, and for no others; it can be pinged."""
    step("the uplink answers for its own addresses")
    for family in (4, 6):
        peer.namespace.ip("neighbour", "flush", "dev", peer.INTERFACE)
        expect_ping(peer.namespace, underlay(1, family))

    step("and for no others")
    wire = peer.wire()
    uplink_mac = host.port_mac(UPLINK)
    ether = {"src": wire.mac}
    own = "2001:db8::2"

    def solicitation(target):
        group = in6_getnsma(socket.inet_pton(socket.AF_INET6, target))
        return (
            Ether(dst=in6_getnsmac(group), **ether) / IPv6(src=own, dst=socket.inet_ntop(socket.AF_INET6, group))
            / ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=wire.mac)
        )

    def request(target):
        return Ether(dst="ff:ff:ff:ff:ff:ff", **ether) / ARP(op=1, hwsrc=wire.mac, psrc=underlay(2), pdst=target)

    def answer_to(frame):
        wire.drain()
        wire.send(frame)
        def is_answer(got):
            parsed = Ether(got)
            return (ARP in parsed and parsed[ARP].op == 2) or (got[12:14] == b"\x86\xdd" and got[20] == 58 and got[54] == 136)
        return wire.receive(0.6, is_answer)

    for question, own_address, others in (
        (request, underlay(1), ("192.0.2.77", "10.1.0.1", GATEWAY)),
        (solicitation, underlay(1, 6), ("2001:db8::77", "fd00:1::1")),
    ):
        reply = answer_to(question(own_address))
        check(reply is not None, f"{own_address}: not answered")
        check(reply[6:12].hex(":") == uplink_mac, f"{own_address}: answered from {reply[6:12].hex(':')}, not {uplink_mac}")
        for target in others:
            reply = answer_to(question(target))
            check(reply is None, f"{target} is not the uplink's, and was answered: {reply.hex() if reply else ''}")
    wire.close()


def absent(host, near):
    """A remote that nobody answers for: every packet is counted, in bounded time."""
    for family, remote in ABSENT.items():
        step(f"IPv{family}: an absent neighbour")
        nobody = Tenant(host.lab, f"nobody{family}", 60 + family)
        host.load(egress(near, nobody, remote))
        before = host.at_rest()
        wire = near.wire()
        frame = Ether(src=near.mac, dst=GATEWAY_MAC) / IP(src=near.v4, dst=nobody.v4) / UDP(sport=9, dport=9) / (b"x" * 100)
        wire.send(*[frame] * 10)
        wire.close()
        host.expect_drops(before, near.name, "no_neighbor", exactly=10, timeout_s=GIVE_UP_TIMEOUT_S)
        host.at_rest()


def new_mac(host, peer, near, far):
    """The peer comes back with another MAC: traffic recovers, with an announcement soon, without one in bounded time."""
    host.load(pair_rules(near, far, underlay(2)))
    far.attach(4, near)
    expect_ping(near.namespace, far.v4)
    for mac, announced in (("02:00:00:00:0a:01", True), ("02:00:00:00:0a:02", False)):
        step(f"the peer's MAC becomes {mac}, {'announced' if announced else 'in silence'}")
        peer.namespace.sysctl(f"net/ipv4/conf/{peer.INTERFACE}/arp_notify", int(announced))
        peer.namespace.ip("link", "set", peer.INTERFACE, "down")
        peer.namespace.ip("link", "set", peer.INTERFACE, "address", mac)
        peer.up()
        if not announced:
            # What is left for the peer to say about itself is nothing: it does not even ask for the host.
            peer.namespace.ip("neighbour", "replace", underlay(1), "lladdr", host.port_mac(UPLINK), "dev", peer.INTERFACE, "nud", "permanent")
        began = time.monotonic()
        wait_until(lambda: ping(near.namespace, far.v4, 1, wait_s=1)[0] == 1, "no answer since the MAC changed",
                   10 if announced else NEW_MAC_TIMEOUT_S)
        print(f"    recovered after {time.monotonic() - began:.1f} s", flush=True)
        expect_ping(near.namespace, far.v4, 10)


def gateway(host, peer, near):
    """A remote beyond the underlay's prefix goes to the gateway's MAC."""
    step("an off-link remote goes through the gateway")
    beyond = Tenant(host.lab, "beyond", 50)
    peer.namespace.ip("address", "add", f"{GATEWAY}/24", "dev", peer.INTERFACE)
    host.load(egress(near, beyond, OFF_LINK))
    wire, sender = peer.wire(), near.wire()
    sender.send(Ether(src=near.mac, dst=GATEWAY_MAC) / IP(src=near.v4, dst=beyond.v4) / UDP(sport=9, dport=9) / b"beyond")
    frame = wire.receive(3, lambda got: b"beyond" in got)
    check(frame is not None, "nothing arrived at the gateway")
    outer = Ether(frame)
    check(outer.dst == wire.mac, f"sent to {outer.dst}, not to the gateway {wire.mac}")
    check(outer[IP].dst == OFF_LINK, f"the outer destination is {outer[IP].dst}, not {OFF_LINK}")
    wire.close()
    sender.close()
    host.at_rest()
