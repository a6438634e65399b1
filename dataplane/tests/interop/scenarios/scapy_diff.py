"""What goes out is, byte for byte, what scapy builds; what scapy encapsulates comes in as the inner frame, untouched.

The free choices of an encapsulator that this pins: outer IPv4 id 0 with DF, UDP checksum 0 over IPv4 and computed over
IPv6, the inner ECN copied outwards (RFC 6040, normal mode), a source port from 49152 up that belongs to the flow.
The UDP source port and the IPv6 flow label are taken from the frame, and checked by themselves.
The tenant's device is a tap: through af_packet its IPv4 fragments would arrive reassembled (docs/configuration.md).
"""

import struct

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from daemon import Host
from lab import Failure, check, step
from scenarios._shapes import fragmented, frames
from topology import GATEWAY_MAC, UPLINK, Peer, Tenant, egress, ingress, underlay, uplink_port
from traffic import expect_ping

VXLAN_PORT = 4789
# The dynamic ports, RFC 6335; RFC 7348 section 5 asks for them.
ENTROPY_PORTS = range(49152, 65536)
FLOWS = 64


class Path:
    """One way to encapsulate: the tenant that it leads to, and what the outer headers say."""

    def __init__(self, lab, number, family=4, vni=100, ttl=None, dscp=None, push_vlan=None):
        self.peer = Tenant(lab, f"far{number}", number, vni)
        self.family, self.vni, self.push_vlan = family, vni, push_vlan
        self.ttl, self.dscp = ttl or 64, dscp or 0
        self.options = {k: v for k, v in (("ttl", ttl), ("dscp", dscp), ("push_vlan", push_vlan)) if v is not None}

    def rules(self, near):
        """The rules for this path."""
        rules = egress(near, self.peer, underlay(2, self.family), **self.options)
        for rule in rules:
            rule["action"]["forward"]["vni"] = self.vni
        return rules

    def inner(self, frame):
        """The frame as the other tenant shall see it."""
        tag = b"" if self.push_vlan is None else struct.pack("!HH", 0x8100, self.push_vlan)
        return bytes.fromhex(self.peer.mac.replace(":", "")) + frame[6:12] + tag + frame[12:]

    def outer(self, frame, got, uplink_mac, peer_mac):
        """The whole frame that shall be on the wire, by scapy; what is free is taken from `got`."""
        tos = self.dscp << 2 | inner_ecn(frame)
        ether = Ether(dst=peer_mac, src=uplink_mac)
        seen = Ether(got)
        source_port = seen[UDP].sport if UDP in seen else 0
        vxlan = VXLAN(flags=0x08, vni=self.vni) / Raw(self.inner(frame))
        if self.family == 4:
            ip = IP(src=underlay(1), dst=underlay(2), id=0, flags="DF", ttl=self.ttl, tos=tos)
            return bytes(ether / ip / UDP(sport=source_port, dport=VXLAN_PORT, chksum=0) / vxlan)
        label = seen[IPv6].fl if IPv6 in seen else 0
        ip = IPv6(src=underlay(1, 6), dst=underlay(2, 6), hlim=self.ttl, tc=tos, fl=label)
        return bytes(ether / ip / UDP(sport=source_port, dport=VXLAN_PORT) / vxlan)


def inner_ecn(frame):
    """The ECN bits of the IP packet in a frame, behind any VLAN tags; 0 where it is none."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    if frame[at : at + 2] == b"\x08\x00":
        return frame[at + 3] & 3
    if frame[at : at + 2] == b"\x86\xdd":
        return frame[at + 3] >> 4 & 3
    return 0


def is_tunnel(frame):
    """A frame to the VXLAN port, over IPv4 or IPv6."""
    port = VXLAN_PORT.to_bytes(2, "big")
    return (frame[12:14] == b"\x08\x00" and frame[36:38] == port) or (frame[12:14] == b"\x86\xdd" and frame[56:58] == port)


def source_port(frame):
    """The outer UDP source port."""
    at = 34 if frame[12:14] == b"\x08\x00" else 54
    return int.from_bytes(frame[at : at + 2], "big")


def run(lab):
    """Out, flows, in."""
    namespace = lab.namespace("a")
    peer = Peer(lab, namespace)
    sink = peer.swallow(VXLAN_PORT)
    near = Tenant(lab, "vm1", 1, link_local=False)
    host = Host(lab, namespace, "host-a", [uplink_port(1), near.port()], core=0)
    host.tenants = [near]
    host.start()
    paths = [
        Path(lab, 2), Path(lab, 3, family=6), Path(lab, 4, ttl=17, dscp=46), Path(lab, 5, family=6, ttl=255, dscp=63),
        Path(lab, 6, push_vlan=77), Path(lab, 7, vni=0), Path(lab, 8, vni=0xFFFFFF),
    ]
    host.load([rule for path in paths for rule in path.rules(near)] + [ingress(near)])
    for family in (4, 6):
        expect_ping(peer.namespace, underlay(1, family))
    # The sender is a raw socket: the tenant's kernel shall add nothing of its own.
    near.namespace.ip("address", "flush", "dev", near.interface)
    outward(host, peer, near, paths)
    flows(host, peer, near, paths[:2])
    inward(host, peer, near)
    fragments(host, peer, near)
    congestion(host, peer, near)
    for socket in sink:
        socket.close()


def arrived(got, what, host, port):
    """The frame that was waited for, or a failure that shows where the port's packets went."""
    if got is None:
        raise Failure(f"{what}: nothing arrived; {port} counts {host.stats().ports[port]}")
    return got


def explain(what, got, wanted):
    """Where two frames differ."""
    at = next((i for i, pair in enumerate(zip(got, wanted)) if pair[0] != pair[1]), min(len(got), len(wanted)))
    return f"{what}: {len(got)} bytes, {len(wanted)} wanted; byte {at} differs:\n  got    {got.hex()}\n  wanted {wanted.hex()}"


def outward(host, peer, near, paths):
    """Every shape on every path."""
    sender, wire = near.wire(), peer.wire()
    uplink_mac = host.port_mac(UPLINK)
    count = 0
    for path in paths:
        step(f"out: IPv{path.family}, VNI {path.vni}, {path.options or 'plain'}")
        wire.drain()
        for name, frame in frames(near.mac, GATEWAY_MAC, near.v4, path.peer.v4, near.v6, path.peer.v6):
            sender.send(frame)
            got = arrived(wire.receive(2, is_tunnel), name, host, near.name)
            wanted = path.outer(frame, got, uplink_mac, wire.mac)
            check(got == wanted, explain(name, got, wanted))
            check(source_port(got) in ENTROPY_PORTS, f"{name}: UDP source port {source_port(got)}")
            count += 1
    print(f"    {count} frames equal", flush=True)
    extra = wire.collect(0.2, is_tunnel)
    check(not extra, f"{len(extra)} frames more than were sent")
    sender.close()
    wire.close()


def flows(host, peer, near, paths):
    """A flow keeps its source port; flows differ in it."""
    sender, wire = near.wire(), peer.wire()
    for path in paths:
        step(f"source ports of {FLOWS} flows over IPv{path.family}")
        ports = {}
        for _ in range(2):
            for flow in range(FLOWS):
                ip = IP(src=near.v4, dst=path.peer.v4) if flow % 2 else IPv6(src=near.v6, dst=path.peer.v6)
                sender.send(Ether(src=near.mac, dst=GATEWAY_MAC) / ip / UDP(sport=1000 + flow, dport=53) / b"flow")
                got = wire.receive(2, is_tunnel)
                check(got is not None, f"flow {flow}: nothing arrived")
                ports.setdefault(flow, set()).add(source_port(got))
        moved = {flow: sorted(seen) for flow, seen in ports.items() if len(seen) != 1}
        check(not moved, f"flows that changed their source port: {moved}")
        distinct = len(set.union(*ports.values()))
        # Random choice of 64 out of 16384 has a collision in one run of eight; half of them is broken for certain.
        check(distinct > FLOWS // 2, f"{FLOWS} flows have only {distinct} source ports")
    sender.close()
    wire.close()
    host.at_rest()


def inward(host, peer, near):
    """Every shape, in outer headers of every kind, arrives as it was."""
    receiver, wire = near.wire(), peer.wire()
    uplink_mac = host.port_mac(UPLINK)
    ether = Ether(src=wire.mac, dst=uplink_mac)
    v4, v6 = {"src": underlay(2), "dst": underlay(1)}, {"src": underlay(2, 6), "dst": underlay(1, 6)}
    udp = {"sport": 55555, "dport": VXLAN_PORT}
    outers = {
        "IPv4, no checksum": ether / IP(**v4) / UDP(chksum=0, **udp),
        "IPv4, checksum": ether / IP(id=77, ttl=3, **v4) / UDP(**udp),
        "IPv4, DSCP": ether / IP(tos=0xB8, flags="DF", **v4) / UDP(chksum=0, sport=1, dport=VXLAN_PORT),
        "IPv6, checksum": ether / IPv6(tc=0x20, fl=0xABCDE, **v6) / UDP(**udp),
    }
    for outer_name, outer in outers.items():
        step(f"in: {outer_name}")
        receiver.drain()
        for name, inner in frames("02:00:00:00:01:02", near.mac, "10.1.0.2", near.v4, "fd00:1::2", near.v6):
            wire.send(outer / VXLAN(flags=0x08, vni=100) / Raw(inner))
            got = arrived(receiver.receive(2), f"{outer_name}, {name}", host, UPLINK)
            check(got == inner, explain(f"{outer_name}, {name}", got, inner))
    extra = receiver.collect(0.2)
    check(not extra, f"{len(extra)} frames more than were sent")
    receiver.close()
    wire.close()
    host.at_rest()


def fragments(host, peer, near):
    """Fragments of the outer packet: what the kernel below af_packet has put together arrives; IPv6 it leaves alone."""
    step("in: fragmented on the way")
    receiver, wire = near.wire(), peer.wire()
    ether = Ether(src=wire.mac, dst=host.port_mac(UPLINK))
    udp = {"sport": 55555, "dport": VXLAN_PORT}
    before, count = host.at_rest(), 0
    for checksum in ({"chksum": 0}, {}):
        outer = ether / IP(src=underlay(2), dst=underlay(1)) / UDP(**checksum, **udp) / VXLAN(flags=0x08, vni=100)
        for name, inner in frames("02:00:00:00:01:02", near.mac, "10.1.0.2", near.v4, "fd00:1::2", near.v6):
            for turn in (1, -1):
                count += 1
                wire.send(*fragmented(bytes(outer / Raw(inner)), count, 8, 16, 48)[::turn])
                got = arrived(receiver.receive(2), f"fragmented, {name}", host, UPLINK)
                check(got == inner, explain(f"fragmented, {name}", got, inner))
    delivered = host.at_rest().counter(UPLINK, "delivered_packets") - before.counter(UPLINK, "delivered_packets")
    check(delivered == count, f"of {count} fragmented packets {delivered} were delivered")
    payload = bytes(UDP(**udp) / VXLAN(flags=0x08, vni=100) / Raw(inner))
    before = host.at_rest()
    for start, end in ((0, 16), (16, len(payload))):
        header = IPv6ExtHdrFragment(nh=17, id=1, offset=start // 8, m=int(end < len(payload)))
        wire.send(ether / IPv6(src=underlay(2, 6), dst=underlay(1, 6)) / header / Raw(payload[start:end]))
    host.expect_drops(before, UPLINK, "outer_fragment", exactly=2)
    extra = receiver.collect(0.2)
    check(not extra, f"{len(extra)} frames more than were sent")
    receiver.close()
    wire.close()
    host.at_rest()


def congestion(host, peer, near):
    """A congestion mark outside becomes one inside, or drops a packet that does not take marks (RFC 6040, section 4.2)."""
    step("in: congestion marked on the way")
    receiver, wire = near.wire(), peer.wire()
    ether = Ether(src=wire.mac, dst=host.port_mac(UPLINK))
    outer = ether / IP(src=underlay(2), dst=underlay(1), tos=3) / UDP(sport=55555, dport=VXLAN_PORT, chksum=0) / VXLAN(flags=0x08, vni=100)
    payload = UDP(sport=1, dport=2) / b"marked"

    def inner4(tos):
        return Ether(src="02:00:00:00:01:02", dst=near.mac) / IP(src="10.1.0.2", dst=near.v4, tos=tos) / payload

    def inner6(tos):
        return Ether(src="02:00:00:00:01:02", dst=near.mac) / IPv6(src="fd00:1::2", dst=near.v6, tc=tos) / payload

    for inner in (inner4, inner6):
        for ecn in (1, 2, 3):
            wire.send(outer / inner(0xB8 | ecn))
            got = arrived(receiver.receive(2), f"inner ECN {ecn}", host, UPLINK)
            check(got == bytes(inner(0xB8 | 3)), explain(f"inner ECN {ecn}, outer CE", got, bytes(inner(0xB8 | 3))))
        before = host.at_rest()
        wire.send(outer / inner(0xB8))
        host.expect_drops(before, UPLINK, "congestion", exactly=1)
        check(receiver.receive(0.2) is None, "a packet that does not take marks was delivered, its mark lost")
    receiver.close()
    wire.close()
