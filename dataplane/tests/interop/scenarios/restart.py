"""A host that is stopped, or killed, in the middle of traffic comes back as it was: ports and rules, from disk."""

import json
import threading
import time

from daemon import Host
from lab import check, step
from topology import UPLINK_INTERFACE, Tenant, pair_rules, underlay, uplink_port
from traffic import UDP_PORT, expect_ping, tcp_transfer


class Flood:
    """Datagrams from one tenant to another, until stopped: traffic for the daemon to be interrupted in."""

    def __init__(self, source, target):
        self.stopping = threading.Event()
        self.source, self.target = source, target
        self.thread = threading.Thread(target=self._send, daemon=True)
        self.thread.start()

    def _send(self):
        import socket

        with self.source.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not self.stopping.is_set():
                try:
                    for _ in range(20):
                        sender.sendto(b"x" * 1000, (self.target.v4, UDP_PORT))
                except OSError:
                    # The tenant's tap goes away with its daemon, and comes back.
                    pass
                time.sleep(0.005)

    def stop(self):
        """Ends the traffic."""
        self.stopping.set()
        self.thread.join()


def run(lab):
    """SIGTERM twice, SIGKILL twice; after each, the same ports and rules, and traffic."""
    near, far = Tenant(lab, "vm1", 1), Tenant(lab, "vm2", 2)
    spaces = lab.namespace("a"), lab.namespace("b")
    lab.veth(spaces[0], UPLINK_INTERFACE, spaces[1], UPLINK_INTERFACE, 1600)
    hosts = []
    for number, (namespace, tenant, peer) in enumerate(((spaces[0], near, far), (spaces[1], far, near)), start=1):
        namespace.up(UPLINK_INTERFACE, ipv6=False)
        host = Host(lab, namespace, f"host-{number}", [uplink_port(number)], core=number - 1).start()
        reply = host.cli("port", "add", json.dumps(tenant.port()))
        check(reply.returncode == 0, f"port add: {reply.stderr}")
        host.tenants = [tenant]
        tenant.connect(host)
        host.load(pair_rules(tenant, peer, underlay(3 - number)))
        hosts.append(host)
    expect_ping(near.namespace, far.v4)

    host = hosts[0]
    rules = {name: {key: rule.get(key) for key in ("port", "ingress", "match", "action")} for name, rule in host.rules().items()}
    for way in ("SIGTERM", "SIGKILL", "SIGTERM", "SIGKILL"):
        step(f"{way} in the middle of traffic")
        floods = Flood(far, near), Flood(near, far)
        time.sleep(0.5)
        if way == "SIGTERM":
            print(f"    exit 0 after {host.stop():.2f} s", flush=True)
        else:
            host.kill()
        host.start()
        time.sleep(0.5)
        for flood in floods:
            flood.stop()
        ports = host.ports()
        check(set(ports) == {"uplink0", near.name}, f"after {way}: ports {sorted(ports)}")
        back = host.rules()
        check(set(back) == set(rules), f"after {way}: rules {sorted(back)}, not {sorted(rules)}")
        for name, wanted in rules.items():
            for key, value in wanted.items():
                check(back[name].get(key) == value, f"after {way}: rule {name}: {key} is {back[name].get(key)}, not {value}")
        expect_ping(near.namespace, far.v4)
        expect_ping(far.namespace, near.v6)
        tcp_transfer(near.namespace, far.namespace, far.v4, 5_000_000)
