"""Tenants behind VLAN tags of one port, and rules that push and pop tags.

The trunk's tap carries VLANs 10 and 20, each a tenant, and ends in a switch that gives each its own untagged cable.
The switch is a thread, because many small kernels come without VLAN devices. Two raw ports show the tags that rules
push and pop, byte for byte.
"""

import select
import struct
import threading

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from daemon import Host
from lab import check, step
from topology import GATEWAY_MAC, UPLINK_INTERFACE, Tenant, pair_rules, underlay, uplink_port
from traffic import expect_ping, tcp_transfer, udp_datagrams
from wire import Wire

TRUNK = "trunk"
TRUNK_MAC = "02:00:00:00:09:01"


class VlanTenant(Tenant):
    """A tenant behind a tag of the trunk."""

    def __init__(self, lab, vlan, number, vni):
        super().__init__(lab, f"vlan{vlan}", number, vni)
        self.vlan = vlan

    def port(self, **extra):
        return super().port(device=f"vlan:{TRUNK}/{self.vlan}", **extra)


class Trunk:
    """The tap with the tags, in the namespace of the switch that splits it."""

    def __init__(self, lab, tenants):
        self.lab = lab
        self.namespace = lab.namespace("trunk")
        self.tenants = tenants

    def port(self):
        """The trunk itself: a port without rules, so that untagged frames go nowhere."""
        return {"name": TRUNK, "kind": "vf", "device": f"tap:{TRUNK}", "mac": TRUNK_MAC, "ip": ["10.9.0.1"], "gateway_mac": GATEWAY_MAC}

    def connect(self, host):
        """Moves the tap, lays each tenant's cable, and starts the switch."""
        host.namespace.ip("link", "set", TRUNK, "netns", self.namespace.name)
        self.namespace.up(TRUNK, ipv6=False)
        cables = {}
        for tenant in self.tenants:
            end = f"to-{tenant.name}"
            self.lab.veth(self.namespace, end, tenant.namespace, tenant.name)
            self.namespace.up(end, ipv6=False)
            tenant.namespace.up(tenant.name, [f"{tenant.v4}/24", f"{tenant.v6}/64"], mac=tenant.mac)
            cables[tenant.vlan] = Wire(self.namespace, end)
        trunk = Wire(self.namespace, TRUNK)
        threading.Thread(target=switch, args=(trunk, cables), daemon=True).start()


def switch(trunk, cables):
    """Forwards between the trunk and its VLANs' cables, until the process ends or an interface goes."""
    vlan_of = {wire.socket: vlan for vlan, wire in cables.items()}
    while True:
        for ready in select.select([trunk.socket, *vlan_of], [], [])[0]:
            try:
                if ready is trunk.socket:
                    frame = trunk.receive(0.001)
                    if frame and frame[12:14] == b"\x81\x00":
                        vlan = int.from_bytes(frame[14:16], "big") & 0xFFF
                        if vlan in cables:
                            cables[vlan].send(frame[:12] + frame[16:])
                else:
                    frame = cables[vlan_of[ready]].receive(0.001)
                    if frame:
                        trunk.send(frame[:12] + struct.pack("!HH", 0x8100, vlan_of[ready]) + frame[12:])
            except OSError:
                return


def run(lab):
    """VLAN tenants on host A, plain ones on host B; then the tags of rules."""
    spaces = lab.namespace("a"), lab.namespace("b")
    lab.veth(spaces[0], UPLINK_INTERFACE, spaces[1], UPLINK_INTERFACE, 1600)
    behind = [VlanTenant(lab, 10, 1, 100), VlanTenant(lab, 20, 1, 200)]
    plain = [Tenant(lab, "vm100", 2, 100), Tenant(lab, "vm200", 2, 200)]
    raw = [Tenant(lab, name, number, 300, tap=False, link_local=False) for name, number in (("raw1", 11), ("raw2", 12))]
    trunk = Trunk(lab, behind)
    for namespace in spaces:
        namespace.up(UPLINK_INTERFACE, ipv6=False)
    for tenant in raw:
        tenant.cable(lab, spaces[0])
    ports_a = [uplink_port(1), trunk.port()] + [tenant.port() for tenant in behind + raw]
    ports_b = [uplink_port(2)] + [tenant.port() for tenant in plain]
    hosts = [Host(lab, spaces[0], "host-a", ports_a, core=0), Host(lab, spaces[1], "host-b", ports_b, core=1)]
    hosts[0].tenants, hosts[1].tenants = [trunk, *raw], plain
    for host in hosts:
        host.start()
    hosts[0].load([rule for near, far in zip(behind, plain) for rule in pair_rules(near, far, underlay(2))])
    hosts[1].load([rule for near, far in zip(plain, behind) for rule in pair_rules(near, far, underlay(1))])

    for near, far in zip(behind, plain):
        step(f"VLAN {near.vlan} and a plain tenant of VNI {near.vni}, same addresses as the other pair")
        before = {name: int(rule["packets"]) for name, rule in hosts[1].rules().items()}
        expect_ping(near.namespace, far.v4)
        expect_ping(far.namespace, near.v6)
        udp_datagrams(near.namespace, far.namespace, far.v4, size_bytes=1400)
        udp_datagrams(far.namespace, near.namespace, near.v4, size_bytes=1472)
        tcp_transfer(near.namespace, far.namespace, far.v4, 5_000_000)
        other = next(tenant for tenant in plain if tenant is not far)
        crossed = hosts[1].rule_packets(f"in-{other.name}") - before[f"in-{other.name}"]
        check(crossed == 0, f"{crossed} packets of VLAN {near.vlan} were delivered to {other.name}")
    for host in hosts:
        host.at_rest()
    unknown_tag(hosts[0], trunk)
    tags_of_rules(hosts[0], *raw)


def unknown_tag(host, trunk):
    """A tag that is nobody's, and a tenant's MAC behind the wrong tag: dropped."""
    step("tags that are nobody's")
    before = host.at_rest()
    wire = Wire(trunk.namespace, TRUNK)
    inner = IP(src="10.1.0.1", dst="10.1.0.2") / UDP(sport=9, dport=9) / b"unknown"
    wire.send(*[Ether(src=trunk.tenants[0].mac, dst=GATEWAY_MAC) / Dot1Q(vlan=30) / inner] * 10)
    wire.send(*[Ether(src=trunk.tenants[0].mac, dst=GATEWAY_MAC) / inner] * 10)
    wire.close()
    host.expect_drops(before, TRUNK, ("source_mac", "source_ip", "no_rule", "malformed"), exactly=20)
    for tenant in trunk.tenants:
        came = host.at_rest().counter(tenant.name, "rx_packets") - before.counter(tenant.name, "rx_packets")
        check(came == 0, f"{came} of the frames counted as {tenant.name}'s")


def tags_of_rules(host, left, right):
    """deliver with push_vlan and pop_vlan, and a match on the tag."""
    step("push and pop by local delivery")
    host.load([
        {"id": "push", "port": left.name, "match": {"dst_mac": right.mac, "vlan": 0}, "action": {"deliver": {"port": right.name, "push_vlan": 30}}},
        {"id": "pop", "port": right.name, "match": {"dst_mac": left.mac, "vlan": 30}, "action": {"deliver": {"port": left.name, "pop_vlan": True}}},
    ])
    wires = left.wire(), right.wire()
    payload = UDP(sport=7, dport=7) / (b"tagged" * 20)
    there, back = IP(src=left.v4, dst=right.v4) / payload, IP(src=right.v4, dst=left.v4) / payload
    cases = (
        ("push 30", 0, Ether(src=left.mac, dst=right.mac) / there, Ether(src=left.mac, dst=right.mac) / Dot1Q(vlan=30) / there),
        ("pop 30", 1, Ether(src=right.mac, dst=left.mac) / Dot1Q(vlan=30) / back, Ether(src=right.mac, dst=left.mac) / back),
    )
    for what, sender, frame, wanted in cases:
        for wire in wires:
            wire.drain()
        wires[sender].send(frame)
        got = wires[1 - sender].receive(2, lambda data: b"tagged" in data)
        check(got == bytes(wanted), f"{what}: received {got.hex() if got else None}, not {bytes(wanted).hex()}")
    before = host.at_rest()
    wires[1].send(Ether(src=right.mac, dst=left.mac) / Dot1Q(vlan=31) / back)
    host.expect_drops(before, right.name, "no_rule", exactly=1)
    for wire in wires:
        wire.close()
    host.at_rest()
