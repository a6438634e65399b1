"""Bytes that no honest sender makes, from a tenant and from the underlay: nothing breaks, nothing crosses, all is counted.

Two tenants of two VNIs share the host; the second must see nothing of what is thrown at the first or at the uplink.
Every batch ends with a valid packet in each direction, so that a daemon that merely went deaf is noticed too.
The tenants have taps, which hand over every frame as it is. Below the uplink's af_packet the kernel takes IPv4 fragments
away, and hands over what it has put together of them (docs/configuration.md): those alone need not be counted one by one.
"""

import random

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from daemon import Host
from lab import check, step, wait_until
from scenarios._shapes import fragmented, frames, noise
from scenarios.scapy_diff import VXLAN_PORT, is_tunnel
from topology import GATEWAY_MAC, JUMBO_MTU, UPLINK, Peer, Tenant, egress, ingress, underlay, uplink_port
from traffic import expect_ping

VICTIM_VNI, OWN_VNI = 200, 100
# The same bytes every run, so that a failure comes again.
SEED = 7348
RANDOM_FRAMES = 1500
ETHERNET_HEADER_BYTES = 14
# Linux takes the first VLAN tag out of a frame before a packet socket sees it, and drops what is shorter than this.
TAGGED_BYTES_MIN = 20
JUMBO_BYTES = (1601, 1700, 2047, 2048, 4000, 9000)


class Arena:
    """One host, a hostile tenant, an innocent one, and the underlay's end of the cable."""

    def __init__(self, lab):
        namespace = lab.namespace("a")
        self.peer = Peer(lab, namespace, mtu=JUMBO_MTU)
        self.sink = self.peer.swallow(VXLAN_PORT)
        self.near = Tenant(lab, "vm1", 1, OWN_VNI, link_local=False, mtu=JUMBO_MTU)
        self.victim = Tenant(lab, "vm9", 9, VICTIM_VNI, link_local=False, mtu=JUMBO_MTU)
        tenants = [self.near, self.victim]
        self.host = Host(lab, namespace, "host-a", [uplink_port(1)] + [tenant.port() for tenant in tenants], core=0)
        self.host.tenants = tenants
        self.host.start()
        self.far = Tenant(lab, "far", 2, OWN_VNI)
        self.far_victim = Tenant(lab, "far9", 3, VICTIM_VNI)
        self.host.load(
            egress(self.near, self.far, underlay(2)) + egress(self.victim, self.far_victim, underlay(2)) + [ingress(self.near), ingress(self.victim)]
        )
        for family in (4, 6):
            expect_ping(self.peer.namespace, underlay(1, family))
        for tenant in tenants:
            tenant.namespace.ip("address", "flush", "dev", tenant.interface)
        self.uplink_mac = self.host.port_mac(UPLINK)
        self.tenant, self.innocent, self.wire = self.near.wire(), self.victim.wire(), self.peer.wire()
        self.good_out = bytes(
            Ether(src=self.near.mac, dst=GATEWAY_MAC) / IP(src=self.near.v4, dst=self.far.v4) / UDP(sport=1, dport=2) / b"honest packet"
        )
        inner = Ether(src=self.far.mac, dst=self.near.mac) / IP(src=self.far.v4, dst=self.near.v4) / UDP(sport=2, dport=1) / b"honest packet"
        self.good_in = bytes(self.outer() / self.vxlan(OWN_VNI) / inner)

    def outer(self, **ip):
        """Outer Ethernet and IPv4 headers to the uplink, and UDP to the VXLAN port."""
        addresses = {"src": underlay(2), "dst": underlay(1), **ip}
        return Ether(src=self.wire.mac, dst=self.uplink_mac) / IP(**addresses) / UDP(sport=50000, dport=VXLAN_PORT)

    def outer6(self):
        """The same over IPv6."""
        return Ether(src=self.wire.mac, dst=self.uplink_mac) / IPv6(src=underlay(2, 6), dst=underlay(1, 6)) / UDP(sport=50000, dport=VXLAN_PORT)

    @staticmethod
    def vxlan(vni, flags=0x08):
        """A VXLAN header."""
        return VXLAN(flags=flags, vni=vni)

    def clear(self):
        """Forgets what has arrived."""
        for wire in (self.tenant, self.innocent, self.wire):
            wire.drain()

    def throw(self, what, frames_of, wire, port, may_pass=True, reassembled=0):
        """Sends frames; all are counted as received, none reaches the innocent tenant, and none passes where none may.

        Of IPv4 fragments on the uplink, the packets that the kernel has `reassembled` are counted instead.
        """
        batch, kept = [bytes(frame) for frame in frames_of], 0
        if port == UPLINK:
            batch = [frame for frame in batch if survives_kernel(frame)]
            kept = sum(map(kernel_keeps, batch))
        wanted = len(batch) - kept + reassembled
        step(f"{what}: {len(batch)} frames" + (f", {kept} of them IPv4 fragments" if kept else ""))
        self.clear()
        before = self.host.at_rest()
        wire.send(*batch)
        last = [0]

        def all_received():
            check(self.host.running(), f"{what}: the daemon died with {self.host.process.returncode}")
            last[0] = self.host.stats().counter(port, "rx_packets") - before.counter(port, "rx_packets")
            return last[0] >= wanted

        wait_until(all_received, lambda: f"{what}: {port} counts {last[0]} of {wanted} frames as received")
        after = self.host.at_rest()
        if not may_pass:
            for counter in ("sent_packets", "delivered_packets"):
                if counter in after.ports[port]:
                    passed = after.counter(port, counter) - before.counter(port, counter)
                    check(passed == 0, f"{what}: {counter} of {port} rose by {passed}: {after.changes(before, port)}")
        crossed = self.innocent.collect(0.1)
        check(not crossed, f"{what}: {len(crossed)} frames reached the other tenant, the first: {crossed[0].hex() if crossed else ''}")
        for frame in self.wire.collect(0.1, is_tunnel):
            at = 46 if frame[12:14] == b"\x08\x00" else 66
            vni = int.from_bytes(frame[at : at + 3], "big")
            check(vni == OWN_VNI, f"{what}: a frame left in VNI {vni}: {frame.hex()}")
        self.still_works(what)

    def still_works(self, what):
        """One honest packet each way."""
        self.clear()
        self.tenant.send(self.good_out)
        got = self.wire.receive(3, lambda frame: b"honest packet" in frame)
        check(got is not None, f"after {what}: the tenant's honest packet did not leave")
        self.wire.send(self.good_in)
        got = self.tenant.receive(3, lambda frame: b"honest packet" in frame)
        check(got is not None, f"after {what}: an honest packet was not delivered")
        self.host.at_rest()


def run(lab):
    """From the tenant, then from the underlay."""
    arena = Arena(lab)
    chance = random.Random(SEED)
    arena.still_works("start")
    from_tenant(arena, chance)
    from_underlay(arena, chance)
    fragments_from_underlay(arena)
    for socket in arena.sink:
        socket.close()


def survives_kernel(frame):
    """The kernel between the raw socket and the daemon's packet socket lets the frame through."""
    tagged = frame[12:14] in (b"\x81\x00", b"\x88\xa8")
    return len(frame) >= (TAGGED_BYTES_MIN if tagged else ETHERNET_HEADER_BYTES)


def kernel_keeps(frame):
    """The kernel takes the frame for an IPv4 fragment, and keeps it from af_packet: Linux's ip_check_defrag()."""
    at = ETHERNET_HEADER_BYTES
    if frame[12:14] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    ip = frame[at:]
    if frame[at - 2 : at] != b"\x08\x00" or len(ip) < 20:
        return False
    header_bytes, total_bytes = (ip[0] & 15) * 4, int.from_bytes(ip[2:4], "big")
    if ip[0] >> 4 != 4 or header_bytes < 20 or not header_bytes <= total_bytes <= len(ip):
        return False
    return int.from_bytes(ip[6:8], "big") & 0x3FFF != 0


def truncations(frame):
    """The frame cut at every length, but not whole."""
    return [frame[:length] for length in range(ETHERNET_HEADER_BYTES, len(frame))]


def flips(frame, chance, count, start=0):
    """Copies of the frame with one to three random bytes changed, from byte `start` on."""
    for _ in range(count):
        copy = bytearray(frame)
        for _ in range(chance.randint(1, 3)):
            copy[chance.randrange(start, len(copy))] = chance.randrange(256)
        yield bytes(copy)


def noise_frames(chance, dst_mac, src_mac):
    """Random bytes behind plausible MACs and ethertypes."""
    header = bytes.fromhex((dst_mac + src_mac).replace(":", ""))
    for _ in range(RANDOM_FRAMES):
        ethertype = chance.choice((b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x88\xa8", b"\x08\x06", chance.randbytes(2)))
        yield header + ethertype + chance.randbytes(chance.choice((0, 1, 7, 19, 20, 27, 40, 60, 200, 1400)))


def from_tenant(arena, chance):
    """Everything out of the hostile tenant's port."""
    near, far = arena.near, arena.far

    def throw(what, batch, may_pass=True):
        arena.throw(f"tenant: {what}", batch, arena.tenant, near.name, may_pass)

    shapes = dict(frames(near.mac, GATEWAY_MAC, near.v4, far.v4, near.v6, far.v6))
    for name in ("udp4 options", "tcp6", "udp6 destination options", "vlan udp4", "double vlan udp4"):
        throw(f"{name}, cut at every length", truncations(shapes[name][:200]), may_pass=False)
    ether = Ether(src=near.mac, dst=GATEWAY_MAC)
    v4 = {"src": near.v4, "dst": far.v4}
    v6 = {"src": near.v6, "dst": far.v6}
    throw("IP lengths and versions that lie", [
        ether / IP(len=length, **v4) / UDP() / noise(40) for length in (0, 19, 69, 1500, 65535)
    ] + [
        ether / IP(ihl=4, **v4) / UDP() / noise(40), ether / IP(ihl=0, **v4) / UDP() / noise(40),
        ether / IP(version=5, **v4) / UDP() / noise(40), ether / IP(version=6, **v4) / UDP() / noise(40),
        ether / IPv6(plen=1500, **v6) / UDP() / noise(40), ether / IPv6(version=4, **v6) / UDP() / noise(40),
    ], may_pass=False)
    throw("UDP and TCP lengths that lie", [
        ether / IP(**v4) / UDP(len=length) / noise(40) for length in (0, 7, 8, 47, 49, 65535)
    ] + [shapes["tcp4"][:46] + bytes([offset << 4]) + shapes["tcp4"][47:] for offset in range(16)])
    throw("fragments that overlap, end past 65535, or are one byte", [
        ether / IP(flags="MF", frag=offset, **v4) / noise(size) for offset in (0, 1, 2, 8189, 8191) for size in (1, 8, 1400)
    ])
    throw("VLAN stacks", [
        bytes(ether)[:12] + b"\x81\x00\x00\x05" * depth + b"\x08\x00" + bytes(IP(**v4) / UDP() / noise(40)) for depth in (1, 2, 3, 8, 40, 300)
    ])
    chain = b"".join(bytes([60, 0, 1, 4, 0, 0, 0, 0]) for _ in range(150))
    throw("IPv6 extension header chains", [
        ether / IPv6(nh=60, **v6) / Raw(chain[: 8 * depth] + bytes([17, 0, 1, 4, 0, 0, 0, 0])) / UDP() / noise(8) for depth in (1, 8, 9, 60, 150)
    ] + [ether / IPv6(nh=number, **v6) / Raw(b"\x3c\xff" + b"\0" * 30) for number in (0, 43, 44, 51, 60, 135)])
    throw("wrong ethertypes", [
        Ether(src=near.mac, dst=GATEWAY_MAC, type=ethertype) / noise(60) for ethertype in (0, 1, 46, 1500, 0x0600, 0x0806, 0x88CC, 0x8847, 0xFFFF)
    ])
    throw("empty and jumbo frames", [bytes(ether)[:12] + ethertype for ethertype in (b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x08\x06")] + [
        ether / IP(**v4) / UDP() / noise(size) for size in JUMBO_BYTES
    ])
    tunnel = ether / IP(**v4)
    for _ in range(10):
        tunnel = tunnel / UDP(sport=1, dport=VXLAN_PORT) / VXLAN(flags=0x08, vni=VICTIM_VNI) / Ether(src=far.mac, dst=arena.victim.mac) / IP(dst=arena.victim.v4)
    throw("VXLAN in VXLAN, ten deep", [tunnel / UDP() / b"deep"])
    for name in ("udp4 options", "tcp6", "vlan udp4"):
        throw(f"{name}, random bytes changed", list(flips(shapes[name], chance, 500)))
    throw("random bytes", list(noise_frames(chance, GATEWAY_MAC, near.mac)))
    throw("random bytes to the broadcast address", list(noise_frames(chance, "ff:ff:ff:ff:ff:ff", near.mac)))


def from_underlay(arena, chance):
    """Everything into the uplink; the inner frame is for the innocent tenant's MAC wherever its VNI is not."""
    near, victim = arena.near, arena.victim

    def throw(what, batch, may_pass=True):
        arena.throw(f"underlay: {what}", batch, arena.wire, UPLINK, may_pass)

    inner = Ether(src=arena.far.mac, dst=near.mac) / IP(src=arena.far.v4, dst=near.v4) / UDP(sport=9, dport=9) / noise(60)
    planted = Ether(src=arena.far.mac, dst=victim.mac) / IP(src=arena.far.v4, dst=victim.v4) / UDP(sport=9, dport=9) / noise(60)
    good = bytes(arena.outer() / arena.vxlan(OWN_VNI) / inner)
    for name, outer in (("IPv4", arena.outer()), ("IPv6", arena.outer6())):
        throw(f"VXLAN over {name}, cut at every length", truncations(bytes(outer / arena.vxlan(OWN_VNI) / inner)), may_pass=False)
    throw("the innocent tenant's MAC in a foreign VNI", [
        arena.outer() / arena.vxlan(vni) / planted for vni in (0, 1, OWN_VNI, 199, 201, 0xC80000, 0xFFFFFF)
    ], may_pass=False)
    throw("no I flag", [
        arena.outer() / Raw(bytes([flags, 0, 0, 0]) + (VICTIM_VNI << 8).to_bytes(4, "big") + bytes(planted)) for flags in (0, 0x07, 0x40, 0x80, 0xF7)
    ], may_pass=False)
    throw("reserved bits set", [
        arena.outer() / Raw(bytes([flags, a, b, c]) + (OWN_VNI << 8 | d).to_bytes(4, "big") + bytes(inner))
        for flags, a, b, c, d in ((0xFF, 0, 0, 0, 0), (0x08, 1, 2, 3, 0), (0x08, 0, 0, 0, 255), (0x0C, 0, 0, 3, 0))
    ])
    bad_sum = bytearray(good)
    bad_sum[24] ^= 0xFF
    throw("outer IPv4 headers that lie", [
        bytes(bad_sum),
        arena.outer(len=20) / arena.vxlan(OWN_VNI) / inner, arena.outer(len=35) / arena.vxlan(OWN_VNI) / inner,
        arena.outer(len=65535) / arena.vxlan(OWN_VNI) / inner,
        arena.outer(ihl=4) / arena.vxlan(OWN_VNI) / inner, arena.outer(version=6) / arena.vxlan(OWN_VNI) / inner,
        arena.outer(flags="MF") / arena.vxlan(OWN_VNI) / inner, arena.outer(frag=3) / arena.vxlan(OWN_VNI) / inner,
    ], may_pass=False)

    def datagram(length):
        packet = arena.outer() / arena.vxlan(OWN_VNI) / inner
        packet[UDP].len = length
        packet[UDP].chksum = 0
        return packet

    throw("outer UDP lengths that lie", [datagram(length) for length in (0, 7, 8, 15, 16, 29, 2000, 65535)], may_pass=False)
    wrong_sum, wrong_sum6 = arena.outer() / arena.vxlan(OWN_VNI) / inner, arena.outer6() / arena.vxlan(OWN_VNI) / inner
    wrong_sum[UDP].chksum = wrong_sum6[UDP].chksum = 0x0BAD
    throw("outer UDP checksums that are wrong", [wrong_sum, wrong_sum6], may_pass=False)
    throw("inner frames that are none", [arena.outer() / arena.vxlan(OWN_VNI) / Raw(bytes(inner)[:length]) for length in range(0, 34)], may_pass=False)
    tunnel = arena.outer() / arena.vxlan(OWN_VNI)
    for _ in range(9):
        tunnel = tunnel / Ether(src=arena.far.mac, dst=near.mac) / IP(src=underlay(2), dst=underlay(1)) / UDP(sport=1, dport=VXLAN_PORT) / arena.vxlan(VICTIM_VNI)
    throw("VXLAN in VXLAN, ten deep", [tunnel / planted])
    throw("for others: MAC, address, port", [
        overwritten(good, 0, bytes.fromhex("020000007777")), arena.outer(dst="192.0.2.77") / arena.vxlan(OWN_VNI) / inner,
        overwritten(good, 36, (4790).to_bytes(2, "big")), arena.outer(proto=6) / arena.vxlan(OWN_VNI) / inner,
    ], may_pass=False)
    stack = [good[:12] + b"\x81\x00\x00\x05" * depth + good[12:] for depth in (1, 2, 8, 300)]
    throw("VLAN stacks", stack)
    throw("empty and jumbo frames", [good[:12] + ethertype for ethertype in (b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x08\x06")] + [
        arena.outer() / arena.vxlan(OWN_VNI) / inner / noise(size) for size in JUMBO_BYTES
    ])
    throw("ARP and ND that lie", [
        good[:12] + b"\x08\x06" + chance.randbytes(28) for _ in range(100)
    ] + [Ether(src=arena.wire.mac, dst=arena.uplink_mac) / IPv6(src=underlay(2, 6), dst=underlay(1, 6), nh=58, hlim=255)
         / Raw(bytes([kind, 0, 0, 0]) + chance.randbytes(size)) for kind in (133, 134, 135, 136, 137) for size in (0, 4, 20, 28, 100)])
    # The VNI is left alone: a changed VNI that is by chance the victim's would be rightly delivered.
    throw("random bytes changed in the inner frame", list(flips(good, chance, 700, start=50)))
    throw("random bytes changed in the outer headers", [frame[:46] + good[46:] for frame in flips(good[:46], chance, 700)])
    throw("random bytes", list(noise_frames(chance, arena.uplink_mac, arena.wire.mac)))


def fragments_from_underlay(arena):
    """Fragments of tunnel packets: no order of them smuggles in what the whole packet could not."""
    near, victim = arena.near, arena.victim

    def throw(what, batch, **keywords):
        arena.throw(f"underlay: {what}", batch, arena.wire, UPLINK, may_pass=False, **keywords)

    def tunnelled(vni, target):
        inner = Ether(src=arena.far.mac, dst=target.mac) / IP(src=arena.far.v4, dst=target.v4) / UDP(sport=9, dport=9) / noise(60)
        return bytes(arena.outer() / arena.vxlan(vni) / inner)

    # UDP's header is the first eight bytes of the payload, VXLAN's the second: the VNI comes by itself.
    cuts = (8, 16, 64)
    planted = [fragmented(tunnelled(vni, victim), 100 + vni, *cuts) for vni in (OWN_VNI, 199, 201)]
    throw("the innocent tenant's MAC in a foreign VNI, in fragments", [piece for pieces in planted for piece in pieces], reassembled=len(planted))
    throw("the same, last fragment first", fragmented(tunnelled(OWN_VNI, victim), 310, *cuts)[::-1], reassembled=1)
    whole, other = tunnelled(OWN_VNI, near), tunnelled(VICTIM_VNI, victim)
    # Of two fragments for the same bytes Linux keeps the first; one that overlaps in part undoes the whole packet.
    own, foreign = fragmented(whole, 320, *cuts), fragmented(other, 320, *cuts)
    throw("a second fragment for the bytes of the VNI", [*own[:2], *foreign[1:]], reassembled=1)
    throw("a fragment that overlaps the VNI", fragmented(whole, 330, 16, 64)[:1] + fragmented(other, 330, 8, 24, 64)[1:])
    throw("fragments of two senders under one id", [
        fragmented(whole, 340, 16)[0], fragmented(bytes(arena.outer(src=underlay(3)) / arena.vxlan(OWN_VNI) / Raw(whole[50:])), 340, 16)[1],
    ])
    pieces = fragmented(whole, 350, *cuts)
    throw("fragments of which one is missing", pieces[:1] + pieces[2:])
    throw("fragments that end past 65535, or are one byte", [
        arena.outer(id=360 + index, flags="MF", frag=offset) / noise(size)
        for index, (offset, size) in enumerate((offset, size) for offset in (0, 1, 8189, 8191) for size in (1, 8, 1400))
    ])
    payload = whole[34:]
    throw("fragments over IPv6", [
        Ether(src=arena.wire.mac, dst=arena.uplink_mac) / IPv6(src=underlay(2, 6), dst=underlay(1, 6))
        / IPv6ExtHdrFragment(nh=17, id=7, offset=start // 8, m=int(end < len(payload))) / Raw(payload[start:end])
        for start, end in ((0, 8), (8, 16), (0, 64), (16, len(payload)))
    ])


def overwritten(frame, at, data):
    """The frame with `data` written over it at byte `at`."""
    return frame[:at] + data + frame[at + len(data) :]
