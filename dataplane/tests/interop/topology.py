"""The address plan of the scenarios, and the set-ups that several of them start from.

Tenant N has MAC 02:00:00:00:01:N, addresses 10.1.0.N and fd00:1::N. The underlay is 192.0.2.0/24 and 2001:db8::/64.
Every tenant's neighbours resolve to GATEWAY_MAC: the host answers for them, and rewrites the destination MAC.
"""

import socket

from daemon import Host
from wire import Wire

GATEWAY_MAC = "02:00:00:00:00:fe"
UPLINK = "uplink0"
UPLINK_INTERFACE = "und0"
UPLINK_MTU = 1600
TENANT_MTU = 1500
# A veth's own limit is far above the port's, so that it is Forebay that meets what is too large.
JUMBO_MTU = 9200


def underlay(number, family=4):
    """The underlay address of host `number`."""
    return f"192.0.2.{number}" if family == 4 else f"2001:db8::{number:x}"


class Tenant:
    """A tenant: its port on a host, and its machine, a namespace that the port's tap or veth is put into."""

    def __init__(self, lab, name, number, vni=100, tap=True, link_local=True, mtu=TENANT_MTU):
        self.mtu = mtu
        self.name = name
        self.number = number
        self.vni = vni
        self.tap = tap
        self.link_local = link_local
        self.mac = f"02:00:00:00:01:{number:02x}"
        self.v4 = f"10.1.0.{number}"
        self.v6 = f"fd00:1::{number:x}"
        # A tap has one name on both sides of the move; a veth has an end for the host and one for the tenant.
        self.interface = name if tap else f"{name}-t"
        self.namespace = lab.namespace(name)

    def port(self, **extra):
        """The port's table of the config file, or the object of `port add`."""
        device = f"tap:{self.name}" if self.tap else f"af_packet:{self.name}"
        spec = {"name": self.name, "kind": "vf", "device": device, "mac": self.mac, "ip": [self.v4, self.v6], "gateway_mac": GATEWAY_MAC}
        return {**spec, **extra}

    def cable(self, lab, host_namespace):
        """For a veth: lays it, with the host's end ready for the daemon."""
        lab.veth(host_namespace, self.name, self.namespace, self.interface, JUMBO_MTU)
        host_namespace.up(self.name, ipv6=False)

    def connect(self, host):
        """Puts the tap that the daemon has made into the tenant's namespace, and gives it its addresses."""
        if self.tap:
            host.namespace.ip("link", "set", self.interface, "netns", self.namespace.name)
        mac = None if self.tap else self.mac
        addresses = [f"{self.v4}/24", f"{self.v6}/64"]
        self.namespace.up(self.interface, addresses, mac=mac, mtu=self.mtu, link_local=self.link_local)

    def wire(self):
        """Raw Ethernet as the tenant."""
        return Wire(self.namespace, self.interface)


def uplink_port(number, **extra):
    """The uplink's table of the config file."""
    spec = {
        "name": UPLINK, "kind": "uplink", "device": f"af_packet:{UPLINK_INTERFACE}",
        "ipv4": f"{underlay(number)}/24", "ipv6": f"{underlay(number, 6)}/64", "mtu": UPLINK_MTU,
    }
    return {**spec, **extra}


def egress(tenant, peer, remote, rule_id=None, **forward):
    """The two rules (IPv4, IPv6) that send a tenant's packets for `peer` to the host at `remote`."""
    action = {"tunnel": "vxlan", "vni": tenant.vni, "remote": remote, "inner_dst_mac": peer.mac, **forward}
    prefix = rule_id or f"out-{tenant.name}-{peer.name}"
    return [
        {"id": f"{prefix}-4", "port": tenant.name, "match": {"dst": f"{peer.v4}/32"}, "action": {"forward": action}},
        {"id": f"{prefix}-6", "port": tenant.name, "match": {"dst": f"{peer.v6}/128"}, "action": {"forward": action}},
    ]


def ingress(tenant, **deliver):
    """The rule that delivers a VNI's packets for a tenant's MAC to it."""
    return {
        "id": f"in-{tenant.name}", "ingress": {"tunnel": "vxlan", "vni": tenant.vni}, "match": {"dst_mac": tenant.mac},
        "action": {"deliver": {"port": tenant.name, **deliver}},
    }


def pair_rules(tenant, peer, remote):
    """What a host needs so that its tenant and a peer behind `remote` reach each other."""
    return egress(tenant, peer, remote) + [ingress(tenant)]


def two_hosts(lab, pairs, uplink_mtu=UPLINK_MTU, workers=None, pipelines=((), ())):
    """Hosts A and B on one underlay; pairs of tenants, the first of each on A. Both daemons run, without rules.

    `pipelines` are the [[pipeline]] tables of A and those of B.
    """
    spaces = lab.namespace("a"), lab.namespace("b")
    lab.veth(spaces[0], UPLINK_INTERFACE, spaces[1], UPLINK_INTERFACE, uplink_mtu)
    hosts = []
    for side, namespace in enumerate(spaces):
        namespace.up(UPLINK_INTERFACE, ipv6=False)
        tenants = [pair[side] for pair in pairs]
        for tenant in tenants:
            if not tenant.tap:
                tenant.cable(lab, namespace)
        ports = [uplink_port(side + 1, mtu=uplink_mtu)] + [tenant.port() for tenant in tenants]
        host = Host(lab, namespace, f"host-{'ab'[side]}", ports, core=side, workers=workers, pipelines=pipelines[side])
        host.tenants = tenants
        hosts.append(host)
    for host in hosts:
        host.start()
    return hosts


def join(hosts, pairs, family=4):
    """Loads the rules that let each pair talk over the underlay of this family."""
    for side, host in enumerate(hosts):
        remote = underlay(2 - side, family)
        host.load([rule for pair in pairs for rule in pair_rules(pair[side], pair[1 - side], remote)])


class Peer:
    """A plain kernel on the other end of a host's uplink, with addresses of the underlay."""

    INTERFACE = "und1"

    def __init__(self, lab, host_namespace, number=2, mtu=UPLINK_MTU):
        self.lab = lab
        self.number = number
        self.namespace = lab.namespace("peer")
        lab.veth(host_namespace, UPLINK_INTERFACE, self.namespace, self.INTERFACE, mtu)
        host_namespace.up(UPLINK_INTERFACE, ipv6=False)
        self.up()

    def up(self):
        """Brings the interface up with its underlay addresses."""
        addresses = [f"{underlay(self.number)}/24", f"{underlay(self.number, 6)}/64"]
        self.namespace.up(self.INTERFACE, addresses)

    def wire(self):
        """Raw Ethernet on the underlay."""
        return Wire(self.namespace, self.INTERFACE)

    def swallow(self, *ports):
        """Takes UDP datagrams to these ports and says nothing, where the kernel would answer port unreachable."""
        sockets = []
        for port in ports:
            receiver = self.namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            receiver.bind(("::", port))
            sockets.append(receiver)
        return sockets
