#!/usr/bin/env python3
"""Two hosts on SR-IOV virtual functions, inside the guest that scripts/sriov-guest starts.

    scripts/sriov-guest python3 dataplane/tests/sriov/run.py --forebay target/debug/forebay

Each NIC belongs to one host. Of its virtual functions one is the host's uplink, one is the near end of the tenant's link,
and one, on the kernel's igbvf driver in a namespace of its own, is the tenant; a VLAN that the PF sets for the latter two
keeps the tenant's link apart. The cable between the NICs is the underlay.

    vm1 = igbvf nic0/2 -- VLAN 10 -- nic0/1 [host-a] nic0/0 -- cable -- nic1/0 [host-b] nic1/1 -- VLAN 20 -- nic1/2 igbvf = vm2
                                                                 |
                                                               nic1, the PF: a kernel VXLAN device, vm3

Exit status 0 where all is as promised. Emulated time is noisy: limits are generous, and nothing timed decides.
"""

import argparse
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "interop"))
import daemon  # noqa: E402
from lab import Failure, Lab, check, run, wait_until  # noqa: E402
from traffic import expect_ping as expect_ping_within  # noqa: E402
from traffic import ping, tcp_transfer  # noqa: E402

GATEWAY_MAC = {"host-a": "02:00:00:00:0a:fe", "host-b": "02:00:00:00:0b:fe"}
UPLINK_MAC = {"host-a": "02:00:00:00:0a:01", "host-b": "02:00:00:00:0b:01"}
TENANT_MAC = {"vm1": "02:00:00:00:01:01", "vm2": "02:00:00:00:01:02", "vm3": "02:00:00:00:01:03"}
ADDRESS = {"vm1": "10.1.0.1", "vm2": "10.1.0.2", "vm3": "10.1.0.3"}
UNDERLAY = {"host-a": "192.0.2.1", "host-b": "192.0.2.2", "kernel": "192.0.2.3"}
UNDERLAY_V6 = {"host-a": "2001:db8::1", "host-b": "2001:db8::2", "kernel": "2001:db8::3"}
UPLINK_MTU = 1600
VNI = 100
ETH_P_IPV6 = 0x86DD
PINGS = 5
TRANSFER_BYTES = 1_000_000
# A PF takes seconds to get its link back, and the emulated CPU may be a busy one.
RECOVERY_S = 60
RECORD = "/run/forebay/vf/record.json"


def step(text):
    """Tells the reader of the log what comes next, and when."""
    print(f"  - {time.monotonic():.0f} s: {text}", flush=True)


def expect_ping(namespace, target, count, **keywords):
    """Every echo request is answered, however long that takes an emulated CPU."""
    expect_ping_within(namespace, target, count, wait_s=20, **keywords)


class Root:
    """The guest's own network namespace, where the PFs are."""

    name = "root"

    def __init__(self, lab):
        self.lab = lab

    def spawn(self, *command, **keywords):
        """Starts a command; the lab ends it if nobody else does."""
        return self.lab.spawn(*command, **keywords)

    def run(self, *command, **keywords):
        """Runs a command to its end."""
        return run(*command, **keywords)


class Forebay:
    """`forebay vf`, which asks no daemon."""

    def __init__(self, path):
        self.path = path

    def vf(self, *words, status=0, says=""):
        """forebay vf WORDS; it ends with `status`, and one of its outputs has `says`."""
        done = run(self.path, "vf", *words, check_status=False, timeout_s=60)
        command = f"forebay vf {' '.join(words)}"
        text = done.stdout + done.stderr
        check(done.returncode == status, f"{command}: status {done.returncode}, not {status}: {text}")
        check(says in text, f"{command}: no {says!r} in: {text}")
        return done.stdout

    def listed(self):
        """Name to what `vf list` says of it."""
        lines = [json.loads(line) for line in self.vf("list", "--json").splitlines()]
        return {line["name"]: line for line in lines}

    def expect(self, name, **values):
        """`vf list` has these values for a function."""
        found = self.listed().get(name)
        check(found is not None, f"vf list has no {name}")
        for key, value in values.items():
            check(found[key] == value, f"vf list: {name} has {key} = {found[key]!r}, not {value!r}")


def life_cycle(forebay):
    """What the command line promises of functions, on one that nobody uses."""
    step("functions are listed, made, bound, set up, and all of it is taken back")
    forebay.expect("nic0", kind="pf", driver="igb", num_vfs=0, total_vfs=7, interfaces=["nic0"])
    forebay.vf("create", "nic0", "8", status=1, says="more than it can have, 7")
    forebay.vf("create", "nic0", "x", status=2, says="invalid value")
    forebay.vf("create", "nic0", "2", says="nic0: 2 VFs, 0 before")
    forebay.expect("nic0/1", kind="vf", driver=None, index=1, pf="0000:01:00.0", changed_by=None)
    forebay.vf("bind", "nic0/1", "--mac", "02:00:00:00:00:01", "--vlan", "5", "--spoof-check", "off", "--trust", "on")
    settings = {"mac": "02:00:00:00:00:01", "vlan": 5, "spoof_check": False, "trust": True}
    forebay.expect("nic0/1", driver="vfio-pci", changed_by="command", **settings)
    shown = run("ip", "link", "show", "nic0").stdout
    check("vf 1     link/ether 02:00:00:00:00:01" in shown and "vlan 5, spoof checking off" in shown, f"ip link says:\n{shown}")

    step("what fails half-way is undone: the PF's driver knows no link states, and says so after MAC and trust")
    forebay.vf("bind", "nic0/0", "--mac", "02:00:00:00:00:02", "--trust", "on", "--link-state", "enable",
               status=1, says="does not take link state enable")
    forebay.expect("nic0/0", driver=None, mac="00:00:00:00:00:00", trust=False, changed_by=None)

    step("what carries the host, or is shared, is refused with what and who")
    run("ip", "address", "add", "198.51.100.1/24", "dev", "nic1")
    forebay.vf("create", "nic1", "1", status=1, says="interface nic1 has the address 198.51.100.1")
    run("ip", "address", "delete", "198.51.100.1/24", "dev", "nic1")
    run("ip", "route", "add", "default", "dev", "nic1")
    forebay.vf("bind", "0000:02:00.0", status=1, says="interface nic1 carries the host's default route")
    run("ip", "route", "delete", "default", "dev", "nic1")
    forebay.vf("bind", "0000:00:1f.2", status=1, says="shares IOMMU group")

    forebay.vf("release", "nic0", says="nic0: 0 VFs, as before")
    forebay.expect("nic0", num_vfs=0, changed_by=None)
    forebay.vf("release", "nic0", status=1, says="has not changed it")


class Tenant:
    """A tenant's machine: a namespace with a VF on the kernel's driver."""

    def __init__(self, lab, forebay, name, function, vlan):
        self.name = name
        self.namespace = lab.namespace(name)
        self.v4, self.mac = ADDRESS[name], TENANT_MAC[name]
        forebay.vf("bind", function, "--driver", "igbvf", "--mac", self.mac, "--vlan", str(vlan))
        interface = wait_until(lambda: forebay.listed()[function]["interfaces"], f"{function} has no interface", 30)[0]
        run("ip", "link", "set", interface, "netns", self.namespace.name, "name", "eth0")
        self.namespace.up("eth0", [f"{self.v4}/24"], ipv6=False)


class KernelTenant:
    """The independent peer: the kernel's VXLAN device over a PF, in the guest's own namespace."""

    def __init__(self, root, peer):
        self.namespace, self.peer = root, peer
        self.v4, self.mac = ADDRESS["vm3"], TENANT_MAC["vm3"]
        # The PF's MTU stays: its driver would reset the NIC, and the VFs with it.
        run("ip", "address", "add", f"{UNDERLAY['kernel']}/24", "dev", "nic1")
        self._add_device(UNDERLAY)

    def move_to_ipv6(self):
        """The same device with its tunnel over IPv6; what comes without a right checksum, the kernel drops."""
        run("ip", "address", "replace", f"{UNDERLAY_V6['kernel']}/64", "dev", "nic1", "nodad")
        run("ip", "link", "del", "vx100")
        self._add_device(UNDERLAY_V6, "noudp6zerocsumrx", "noudp6zerocsumtx")

    def _add_device(self, underlay, *words):
        run("ip", "link", "add", "vx100", "address", self.mac, "type", "vxlan", "id", VNI, "dstport", 4789,
            "local", underlay["kernel"], "remote", underlay["host-a"], "dev", "nic1", *words)
        run("ip", "link", "set", "vx100", "up", "addrgenmode", "none")
        run("ip", "address", "add", f"{self.v4}/24", "dev", "vx100")
        # Host A's rules know no broadcasts, so nobody would answer its ARP.
        run("ip", "neighbour", "replace", self.peer.v4, "lladdr", self.peer.mac, "dev", "vx100", "nud", "permanent")


def ports(name, pf, tenant):
    """The ports of a host: both on virtual functions of one PF."""
    return [
        {"name": "uplink0", "kind": "uplink", "device": f"vf:{pf}/0", "mac": UPLINK_MAC[name],
         "ipv4": f"{UNDERLAY[name]}/24", "ipv6": f"{UNDERLAY_V6[name]}/64", "mtu": UPLINK_MTU},
        {"name": tenant, "kind": "vf", "device": f"vf:{pf}/1", "mac": TENANT_MAC[tenant], "ip": [ADDRESS[tenant]],
         "gateway_mac": GATEWAY_MAC[name]},
    ]


def rules(tenant, peers, underlay=None):
    """Rules of a host: towards tenants behind other underlay addresses, and towards its own."""
    underlay = underlay or UNDERLAY
    made = [
        {"id": f"to-{peer}", "port": tenant, "match": {"dst": f"{ADDRESS[peer]}/32"},
         "action": {"forward": {"tunnel": "vxlan", "vni": VNI, "remote": underlay[host], "inner_dst_mac": TENANT_MAC[peer]}}}
        for peer, host in peers.items()
    ]
    made.append({"id": "in", "ingress": {"tunnel": "vxlan", "vni": VNI}, "match": {"dst_mac": TENANT_MAC[tenant]},
                 "action": {"deliver": {"port": tenant}}})
    return made


def passed(host, before, least):
    """Since `before`, at least so many packets went through the ports of a host; every packet is accounted for."""
    now = host.at_rest()
    for what, count in least.items():
        port, way = what.split()
        found = now.counter(port, f"{way}_packets") - before.counter(port, f"{way}_packets")
        check(found >= count, f"{host.name}: {what} counts {found} packets, not {count} or more")
    return now


def two_hosts(lab, forebay, root):
    """Tenants of two hosts talk, and one of them with a kernel's VXLAN device."""
    step("host-a's functions are made and bound by hand, host-b's by its daemon")
    forebay.vf("create", "nic0", "3")
    forebay.vf("bind", "nic0/0")
    forebay.vf("bind", "nic0/1", "--vlan", "10")
    # Of what a daemon makes, the tenant's is one too.
    forebay.vf("create", "nic1", "3")
    # Naps of 50 us would keep an emulated CPU busy with nothing else.
    common = {"hugepages": "auto", "workers": {"max_added_latency_us": 2000}}
    host_a = daemon.Host(lab, root, "host-a", ports("host-a", "nic0", "vm1"), core=1, **common)
    host_b = daemon.Host(lab, root, "host-b", ports("host-b", "nic1", "vm2"), core=2, **common)
    for host in (host_a, host_b):
        host.start()
    forebay.expect("nic0/1", driver="vfio-pci", mac=GATEWAY_MAC["host-a"], vlan=10, spoof_check=False, changed_by="command")
    forebay.expect("nic1/0", driver="vfio-pci", mac=UPLINK_MAC["host-b"], changed_by="daemon host-b")
    forebay.vf("release", "nic1/0", status=1, says="in use by forebay")
    forebay.vf("bind", "nic1/1", "--vlan", "20")
    vm1 = Tenant(lab, forebay, "vm1", "nic0/2", 10)
    vm2 = Tenant(lab, forebay, "vm2", "nic1/2", 20)
    port = host_a.ports()["vm1"]
    check(port["driver"] == "net_e1000_igb_vf" and port["device"] == "vf:nic0/1", f"port list says: {port}")
    host_a.load(rules("vm1", {"vm2": "host-b", "vm3": "kernel"}))
    host_b.load(rules("vm2", {"vm1": "host-a"}))
    before = host_a.stats(), host_b.stats()

    step("tenants on virtual functions of two NICs ping and send TCP, both ways, through two daemons and VXLAN")
    expect_ping(vm1.namespace, vm2.v4, PINGS)
    expect_ping(vm2.namespace, vm1.v4, PINGS)
    tcp_transfer(vm1.namespace, vm2.namespace, vm2.v4, TRANSFER_BYTES)
    expect_ping(vm1.namespace, vm2.v4, PINGS, extra=("-s", 1472, "-M", "do"))
    full = 3 * PINGS + TRANSFER_BYTES // 1500
    middle = passed(host_a, before[0], {"vm1 rx": full, "uplink0 tx": full, "uplink0 rx": 3 * PINGS, "vm1 tx": 3 * PINGS})
    passed(host_b, before[1], {"uplink0 rx": full, "vm2 tx": full, "vm2 rx": 3 * PINGS, "uplink0 tx": 3 * PINGS})

    step("the kernel's VXLAN device on a PF is the peer of one of them")
    kernel = KernelTenant(root, vm1)
    expect_ping(vm1.namespace, kernel.v4, PINGS)
    expect_ping(root, vm1.v4, PINGS, extra=("-I", "vx100"))
    passed(host_a, middle, {what: 2 * PINGS for what in ("vm1 rx", "uplink0 tx", "uplink0 rx", "vm1 tx")})
    over_ipv6(host_a, vm1, kernel)
    return host_a, host_b, vm1, vm2


def tunnel_sums(wire, source):
    """Of each UDP packet that came from `source` over IPv6: what pseudo-header and datagram, checksum included, sum up to."""
    sums = []
    wire.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while frame := wire.recv(1 << 16):
            header, datagram = frame[14:54], frame[54:]
            if header[6] == socket.IPPROTO_UDP and header[8:24] == socket.inet_pton(socket.AF_INET6, source):
                summed = header[8:40] + header[4:6] + bytes([0, socket.IPPROTO_UDP]) + datagram + bytes(len(datagram) % 2)
                total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
                while total > 0xFFFF:
                    total = (total & 0xFFFF) + (total >> 16)
                sums.append(total)
    return sums


def over_ipv6(host, tenant, kernel):
    """A tunnel over IPv6: its UDP checksum covers the whole packet, the function fills it in, and the kernel looks at it.

    Only with the kernel: the emulated NIC gives no VF multicast that its driver wants all of, so that a daemon would not
    hear the other's neighbour solicitations. The PF hears them.
    """
    step("over IPv6, where the function computes the checksum that covers the whole packet")
    check("tx_udp_checksum" in host.ports()["uplink0"]["capabilities"], "the function computes no UDP checksums")
    host.load(rules("vm1", {"vm2": "host-b", "vm3": "kernel"}, {**UNDERLAY, "kernel": UNDERLAY_V6["kernel"]}))
    kernel.move_to_ipv6()
    before = host.stats()
    wait_until(lambda: ping(tenant.namespace, kernel.v4, 1)[0], "no ping over IPv6", RECOVERY_S)
    with contextlib.closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IPV6))) as wire:
        wire.bind(("nic1", ETH_P_IPV6))
        for bytes_of_data in (56, 57, 1372):
            expect_ping(tenant.namespace, kernel.v4, PINGS, extra=("-s", bytes_of_data))
        sums = tunnel_sums(wire, UNDERLAY_V6[host.name])
    check(len(sums) >= 3 * PINGS, f"{len(sums)} tunnelled packets came over the wire")
    check(set(sums) == {0xFFFF}, f"sums that their checksums come to: {[hex(found) for found in sums]}")
    expect_ping(kernel.namespace, tenant.v4, PINGS, extra=("-I", "vx100"))
    passed(host, before, {what: 4 * PINGS for what in ("vm1 rx", "uplink0 tx", "uplink0 rx", "vm1 tx")})


def expect_ping_soon(tenant, target, why):
    """A ping gets through before long."""
    def answered():
        return ping(tenant.namespace, target, 1)[0]

    wait_until(answered, f"no ping from {tenant.name} to {target} {why}", RECOVERY_S)
    expect_ping(tenant.namespace, target, PINGS)


def faults(host_a, host_b, vm1, vm2):
    """What befalls functions under traffic is survived, and told."""
    step("a PF that goes down and up resets its VFs under traffic: both ports of its host come back by themselves")
    flood = vm1.namespace.spawn("ping", "-n", "-q", "-i", "0.02", vm2.v4, stdout=subprocess.DEVNULL)
    begin = os.path.getsize(host_a.log)
    run("ip", "link", "set", "nic0", "down")
    run("ip", "link", "set", "nic0", "up")
    for port in ("uplink0", "vm1"):
        reset = f'port "{port}": its device was reset'
        wait_until(lambda text=reset: text in host_a.log_text(begin), f"host-a does not say: {reset}", RECOVERY_S)
        told = f'port "{port}": its device is open again'
        wait_until(lambda text=told: text in host_a.log_text(begin), f"host-a does not say: {told}", RECOVERY_S)
    expect_ping_soon(vm1, vm2.v4, "after the reset")
    expect_ping_soon(vm2, vm1.v4, "after the reset")
    check(flood.poll() is None, "the stream of pings has ended by itself")

    step("VFs that are taken away under traffic are let go of; the ports are down, and up again once VFs are back")
    count = "/sys/class/net/nic0/device/sriov_numvfs"
    begin = os.path.getsize(host_a.log)
    # Returns when everybody has let go.
    run("bash", "-c", f"echo 0 >{count}", timeout_s=RECOVERY_S)
    for port in ("uplink0", "vm1"):
        told = f'port "{port}": its device is taken away'
        wait_until(lambda text=told: text in host_a.log_text(begin), f"host-a does not say: {told}", RECOVERY_S)
        wait_until(lambda name=port: not host_a.ports()[name]["up"], f"port list has {port} up", RECOVERY_S)
    flood.kill()
    flood.wait()
    host_a.at_rest()
    run("bash", "-c", f"echo 3 >{count}", timeout_s=RECOVERY_S)
    for port in ("uplink0", "vm1"):
        wait_until(lambda name=port: host_a.ports()[name]["up"], f"port list has {port} down", RECOVERY_S)
    wait_until(lambda: ping(host_a.namespace, UNDERLAY["host-a"], 1)[0], "host-a does not answer on the underlay", RECOVERY_S)
    host_a.at_rest()
    host_b.at_rest()


def take_back(forebay, host_a, host_b):
    """Daemons restore what they did, and the command line what it did."""
    step("a daemon that ends gives back what it bound, and leaves what others bound")
    for host in (host_a, host_b):
        host.stop()
    forebay.expect("nic1/0", driver=None, mac="00:00:00:00:00:00", changed_by=None)
    forebay.expect("nic1/1", driver=None, vlan=0, spoof_check=True, changed_by=None)
    forebay.expect("nic0/0", driver="vfio-pci", changed_by="command")
    for pf in ("nic0", "nic1"):
        forebay.vf("release", pf, says=f"{pf}: 0 VFs, as before")
    with open(RECORD, encoding="utf-8") as file:
        record = json.load(file)
    check(not record["functions"] and not record["physical"], f"the record has: {record}")


def main():
    """Runs it all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forebay", required=True, help="the binary under test")
    words = parser.parse_args()
    daemon.REST_TIMEOUT_S = 30
    daemon.STOP_TIMEOUT_S = 60
    lab = Lab(words.forebay)
    forebay = Forebay(lab.forebay)
    status = 1
    try:
        life_cycle(forebay)
        host_a, host_b, vm1, vm2 = two_hosts(lab, forebay, Root(lab))
        faults(host_a, host_b, vm1, vm2)
        take_back(forebay, host_a, host_b)
        print("sriov: passed")
        status = 0
    except Failure as failure:
        print(f"sriov: FAILED: {failure}")
    except Exception:  # pylint: disable=broad-exception-caught
        print(f"sriov: FAILED: it broke off:\n{traceback.format_exc()}")
    finally:
        for host in lab.hosts if status else []:
            print(f"--- end of the log of {host.name}\n{host.log_text()[-4000:]}")
            if host.running():
                print(host.cli("stats", check_status=False).stdout)
        lab.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
