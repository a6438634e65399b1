"""Ethernet frames of every shape that a tenant may send, built by scapy: the input of scapy_diff and of hostile."""

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, PadN,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

# Lengths of the IP packet: around the smallest frame, powers of two, both ends of the MTU.
SIZES_BYTES = (46, 47, 60, 64, 65, 128, 256, 512, 576, 1024, 1280, 1499, 1500)
FRAME_BYTES_MIN = 60


def noise(count):
    """Bytes that show where one is missing or moved."""
    return Raw(bytes((7 * index + index // 256) & 0xFF for index in range(count)))


def fragmented(frame, ident, *cuts):
    """The fragments of a frame whose IPv4 packet has no options; its payload is cut before these bytes, multiples of 8."""
    whole = Ether(frame)
    payload = bytes(whole[IP].payload)[: whole[IP].len - 20]
    edges = [0, *cuts, len(payload)]
    pieces = []
    for start, end in zip(edges, edges[1:]):
        ip = IP(src=whole[IP].src, dst=whole[IP].dst, proto=whole[IP].proto, id=ident, flags="MF" if end < len(payload) else 0, frag=start // 8)
        pieces.append(bytes(Ether(src=whole.src, dst=whole.dst) / ip / Raw(payload[start:end])))
    return pieces


def frames(src_mac, dst_mac, src4, dst4, src6, dst6):
    """Yields (name, bytes) of valid frames from these sources to these destinations."""
    ether = Ether(src=src_mac, dst=dst_mac)
    v4, v6 = IP(src=src4, dst=dst4), IPv6(src=src6, dst=dst6)
    udp, tcp = UDP(sport=4000, dport=5000), TCP(sport=4000, dport=5000, flags="PA", seq=0xFFFFFFF0, ack=1)
    shapes = {
        "udp4 empty": ether / v4 / udp,
        "udp4 no checksum": ether / v4 / UDP(sport=4000, dport=5000, chksum=0) / noise(40),
        "udp4 ect1": ether / IP(src=src4, dst=dst4, tos=0xB9) / udp / noise(40),
        "udp4 ce": ether / IP(src=src4, dst=dst4, tos=0x03) / udp / noise(40),
        "udp4 ttl 1": ether / IP(src=src4, dst=dst4, ttl=1) / udp / noise(40),
        "udp4 options": ether / IP(src=src4, dst=dst4, options=[IPOption_RR(routers=["0.0.0.0"] * 9)]) / udp / noise(40),
        "udp4 timestamp option": ether / IP(src=src4, dst=dst4, options=[IPOption_Timestamp()]) / udp / noise(40),
        "udp4 df": ether / IP(src=src4, dst=dst4, flags="DF", id=0x1234) / udp / noise(40),
        "udp4 first fragment": ether / IP(src=src4, dst=dst4, flags="MF", id=7) / udp / noise(992),
        "udp4 middle fragment": ether / IP(src=src4, dst=dst4, flags="MF", frag=125, id=7, proto=17) / noise(1000),
        "udp4 last fragment": ether / IP(src=src4, dst=dst4, frag=250, id=7, proto=17) / noise(33),
        "tcp4": ether / v4 / tcp / noise(100),
        "tcp4 syn options": ether / v4 / TCP(sport=1, dport=80, flags="S", options=[("MSS", 1460), ("SAckOK", b""), ("WScale", 7)]),
        "icmp4": ether / v4 / ICMP(id=1, seq=2) / noise(56),
        "esp4": ether / IP(src=src4, dst=dst4, proto=50) / noise(80),
        "udp6 empty": ether / v6 / udp,
        "udp6 tc": ether / IPv6(src=src6, dst=dst6, tc=0xBA, fl=0x12345) / udp / noise(40),
        "tcp6": ether / v6 / tcp / noise(100),
        "icmp6": ether / v6 / ICMPv6EchoRequest(id=1, seq=2) / noise(56),
        "udp6 destination options": ether / v6 / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)]) / udp / noise(40),
        "udp6 hop by hop": ether / v6 / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 12)]) / udp / noise(40),
        "udp6 first fragment": ether / v6 / IPv6ExtHdrFragment(m=1, id=9) / udp / noise(992),
        "udp6 last fragment": ether / v6 / IPv6ExtHdrFragment(offset=125, id=9, nh=17) / noise(33),
        "no next header": ether / IPv6(src=src6, dst=dst6, nh=59) / noise(20),
        "vlan udp4": ether / Dot1Q(vlan=5, prio=3) / v4 / udp / noise(40),
        "vlan udp6": ether / Dot1Q(vlan=4094) / v6 / udp / noise(40),
        "vlan tcp4 ect0": ether / Dot1Q(vlan=1) / IP(src=src4, dst=dst4, tos=0x02) / tcp / noise(1460),
        "double vlan udp4": ether / Dot1AD(vlan=100) / Dot1Q(vlan=200) / v4 / udp / noise(40),
    }
    for name, packet in shapes.items():
        yield name, bytes(packet)
    for size in SIZES_BYTES:
        yield f"udp4 of {size}", bytes(ether / v4 / udp / noise(size - 28))
        if size >= 48:
            yield f"udp6 of {size}", bytes(ether / v6 / udp / noise(size - 48))
    yield "udp4 padded", bytes(ether / v4 / udp).ljust(FRAME_BYTES_MIN, b"\0")
