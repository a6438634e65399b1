"""Tenants that share addresses do not see each other, and a tenant that lies is dropped and counted.

Red and blue use the same addresses and MACs in two VNIs, on both hosts. Red then forges its source, speaks for other
tenants in ARP, and sends VXLAN itself, to put a frame into blue's network.
"""

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from lab import check, step
from topology import GATEWAY_MAC, UPLINK, Tenant, two_hosts, pair_rules, underlay
from traffic import expect_ping

COUNT = 20
# A foreign sender in ARP is a forged address, or a forged MAC, or both: any of the reasons says so.
FORGED = ("source_mac", "source_ip", "malformed")


class Colour(Tenant):
    """A tenant network's machine: number and addresses are shared between the networks, names are not."""

    def __init__(self, lab, colour, number, vni):
        super().__init__(lab, f"{colour}{number}", number, vni, link_local=False)


def run(lab):
    """Same addresses first, then the lies."""
    pairs = [(Colour(lab, colour, 1, vni), Colour(lab, colour, 2, vni)) for colour, vni in (("red", 100), ("blue", 200))]
    hosts = two_hosts(lab, pairs)
    for side, host in enumerate(hosts):
        host.load([rule for pair in pairs for rule in pair_rules(pair[side], pair[1 - side], underlay(2 - side))])
    same_addresses(hosts, pairs)
    red, blue_far = pairs[0][0], pairs[1][1]
    watch = {"blue2": blue_far.wire(), "red2": pairs[0][1].wire(), "blue1": pairs[1][0].wire()}
    forged_sources(hosts[0], red, watch)
    forged_arp(hosts[0], red, watch)
    own_tunnels(hosts, red, watch)
    step("the honest tenants still talk")
    for near, far in pairs:
        expect_ping(near.namespace, far.v4)
        expect_ping(near.namespace, far.v6)


def same_addresses(hosts, pairs):
    """Each network's packets are decided by its own rules only."""
    for near, far in pairs:
        step(f"{near.name} pings {far.v4}: only its own network's rules count it")
        before = [host.rules() for host in hosts]
        expect_ping(near.namespace, far.v4, 10)
        for host, then, own, back in ((hosts[0], before[0], near, far), (hosts[1], before[1], far, near)):
            for name, rule in host.rules().items():
                count = int(rule["packets"]) - int(then[name]["packets"])
                mine = name in (f"out-{own.name}-{back.name}-4", f"in-{own.name}")
                check(count == (10 if mine else 0), f"{host.name}: rule {name} counts {count} of 10 pings of {near.name}")


def expect_silence(watch, what):
    """No tenant received anything."""
    for name, wire in watch.items():
        frames = wire.collect(0.2)
        check(not frames, f"{what}: {name} received {len(frames)} frames, the first: {frames[0].hex() if frames else ''}")


def attempt(host, sender, watch, what, frame, reasons):
    """The tenant sends the frame COUNT times: all dropped for one of the reasons, none seen anywhere."""
    step(what)
    for wire in watch.values():
        wire.drain()
    before = host.at_rest()
    wire = sender.wire()
    wire.send(*[frame] * COUNT)
    host.expect_drops(before, sender.name, reasons, exactly=COUNT)
    expect_silence(watch, what)
    replies = wire.collect(0.2)
    check(not replies, f"{what}: answered with {replies[0].hex() if replies else ''}")
    wire.close()
    after = host.at_rest()
    # What the host sends of its own, such as ARP to see whether a neighbour is still there, is not the tenant's.
    changes = after.changes(before, UPLINK)
    sent = changes.get("tx_packets", 0) - changes.get("originated_packets", 0)
    check(sent == 0, f"{what}: {sent} packets left through the uplink")


def forged_sources(host, red, watch):
    """Wrong source MAC, wrong source addresses."""
    good = {"src": red.mac, "dst": GATEWAY_MAC}
    other_mac = {"src": "02:00:00:00:01:77", "dst": GATEWAY_MAC}
    v4, v6 = IP(src=red.v4, dst="10.1.0.2"), IPv6(src=red.v6, dst="fd00:1::2")
    attempt(host, red, watch, "source MAC of nobody", Ether(**other_mac) / v4 / ICMP(), "source_mac")
    attempt(host, red, watch, "source MAC of nobody, IPv6", Ether(**other_mac) / v6 / ICMPv6EchoRequest(), "source_mac")
    attempt(host, red, watch, "source IPv4 of another", Ether(**good) / IP(src="10.1.0.2", dst="10.1.0.2") / ICMP(), "source_ip")
    attempt(host, red, watch, "source IPv4 0.0.0.0", Ether(**good) / IP(src="0.0.0.0", dst="10.1.0.2") / UDP(dport=9), "source_ip")
    attempt(host, red, watch, "source IPv6 of another",
            Ether(**good) / IPv6(src="fd00:1::2", dst="fd00:1::2") / ICMPv6EchoRequest(), "source_ip")
    attempt(host, red, watch, "source IPv4 of the underlay",
            Ether(**good) / IP(src=underlay(1), dst="10.1.0.2") / UDP(dport=4789), "source_ip")


def forged_arp(host, red, watch):
    """ARP in the name of another: no answer, no neighbour learns it."""
    ether = Ether(src=red.mac, dst="ff:ff:ff:ff:ff:ff")
    attempt(host, red, watch, "ARP request, foreign sender address",
            ether / ARP(op=1, hwsrc=red.mac, psrc="10.1.0.2", pdst="10.1.0.3"), FORGED)
    attempt(host, red, watch, "ARP request, foreign sender MAC",
            ether / ARP(op=1, hwsrc="02:00:00:00:01:77", psrc=red.v4, pdst="10.1.0.2"), FORGED)
    attempt(host, red, watch, "gratuitous ARP for another's address",
            ether / ARP(op=2, hwsrc=red.mac, psrc="10.1.0.2", hwdst="ff:ff:ff:ff:ff:ff", pdst="10.1.0.2"), FORGED)


def own_tunnels(hosts, red, watch):
    """VXLAN made by the tenant goes nowhere, or where any datagram of its would go: never into another network."""
    host = hosts[0]
    victim = Ether(src=red.mac, dst="02:00:00:00:01:02") / IP(src=red.v4, dst="10.1.0.2") / ICMP() / Raw(b"planted" * 8)
    tunnel = UDP(sport=50000, dport=4789) / VXLAN(flags="Instance", vni=200) / victim
    ether = Ether(src=red.mac, dst=GATEWAY_MAC)
    for what, number in (("remote host", 2), ("own host", 1)):
        attempt(host, red, watch, f"VXLAN to the {what}'s IPv4 underlay address", ether / IP(src=red.v4, dst=underlay(number)) / tunnel, "no_rule")
        attempt(host, red, watch, f"VXLAN to the {what}'s IPv6 underlay address", ether / IPv6(src=red.v6, dst=underlay(number, 6)) / tunnel, "no_rule")

    step("VXLAN to its own network's peer arrives there as it is, and nowhere else")
    for wire in watch.values():
        wire.drain()
    wire = red.wire()
    sent = bytes(ether / IP(src=red.v4, dst="10.1.0.2") / tunnel)
    wire.send(*[sent] * COUNT)
    wire.close()
    got = watch["red2"].collect(0.3, lambda frame: b"planted" in frame)
    inner = bytes.fromhex("020000000102") + sent[6:]
    check(got == [inner] * COUNT, f"red2 received {len(got)} of {COUNT} datagrams, as they were sent: {[frame.hex() for frame in got[:1]]}")
    for name in ("blue1", "blue2"):
        frames = watch[name].collect(0.2)
        check(not frames, f"{name} received {len(frames)} frames of red's own making")
    for each in hosts:
        each.at_rest()
