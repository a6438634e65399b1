"""Workers on two cores, fused and split, with each idle policy: devices with a queue per worker and devices with one.

A tap and an AF_PACKET device have a queue per worker; what goes to a VLAN port or between workers takes the rings.
"""

from lab import Lab, check, step
from topology import Tenant, join, two_hosts, underlay
from traffic import UDP_PORT, expect_full_exchange


def run(lab):
    """The full exchange under every layout; nothing is lost between the workers."""
    for layout, idle in (("fused", "busy-poll"), ("split", "last-packet"), ("fused", "interrupt")):
        step(f"two workers, {layout}, {idle}")
        inner = Lab(lab.forebay)
        try:
            exchange(inner, {"cores": "0-1", "layout": layout, "idle": idle})
        finally:
            inner.close()


def exchange(lab, workers):
    """One pair of tenants on taps, one on veths."""
    pairs = [
        (Tenant(lab, "vm1", 1), Tenant(lab, "vm2", 2)),
        (Tenant(lab, "vm3", 3, vni=200, tap=False), Tenant(lab, "vm4", 4, vni=200, tap=False)),
    ]
    hosts = two_hosts(lab, pairs, workers=workers)
    join(hosts, pairs)
    for pair in pairs:
        expect_full_exchange(*pair, tcp_bytes=10_000_000)
        expect_flows(hosts, *pair)
    for host in hosts:
        host.at_rest()
        pipeline = host.json("pipeline", "show")
        names = [worker["name"] for worker in pipeline["workers"]]
        wanted = ["front0", "back0"] if workers["layout"] == "split" else ["worker0", "worker1"]
        check(names == wanted, f"{host.name}: workers {names}, not {wanted}")
        for worker in pipeline["workers"]:
            check(worker["panics"] == 0, f"{host.name}: {worker['name']} panicked")


def expect_flows(hosts, left, right):
    """Both hosts list the exchange's datagrams, 300 of 1400 bytes each way: from the tenant, and through the tunnel."""
    for near, far, sends, receives in ((left, right, 0, 1), (right, left, 1, 0)):
        for src, dst, headers in ((near.v4, far.v4, 42), (near.v6, far.v6, 62)):
            flow = {"src": src, "dst": dst, "proto": "udp", "dst_port": UDP_PORT}
            total = {"packets": 300, "bytes": 300 * (headers + 1400)}
            listed_on(hosts[sends], {**flow, "port": near.name}, total)
            listed_on(hosts[receives], {**flow, "port": "uplink0", "vni": near.vni, "remote": underlay(sends + 1)}, total)


def listed_on(host, wanted, total):
    """The flows with these values have these totals over all workers, and rules decided about them."""
    flows = [flow for flow in host.json("flow", "list") if all(flow.get(key) == value for key, value in wanted.items())]
    found = {key: sum(flow[key] for flow in flows) for key in total}
    check(found == total and all(flow.get("rule") for flow in flows), f"{host.name}: {wanted}: {flows}, not {total}")
