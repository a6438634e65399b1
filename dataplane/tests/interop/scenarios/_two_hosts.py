"""What two_hosts_v4 and two_hosts_v6 share: real kernels of two tenants, across two Forebay hosts."""

from lab import check, step
from topology import Tenant, join, two_hosts
from traffic import expect_full_exchange


def run(lab, family):
    """Everything between two tenants over an underlay of this family; nothing is dropped but link-local chatter."""
    pair = Tenant(lab, "vm1", 1), Tenant(lab, "vm2", 2)
    step(f"two hosts, IPv{family} underlay")
    hosts = two_hosts(lab, [pair])
    join(hosts, [pair], family)
    before = [host.stats() for host in hosts]
    step("ping, UDP, TCP, both directions, both inner families")
    expect_full_exchange(*pair)
    for host, tenant, then in zip(hosts, pair, before):
        now = host.at_rest()
        for reason in ("malformed", "too_big", "source_mac", "no_neighbor", "unknown_tunnel", "port_down"):
            for port in ("uplink0", tenant.name):
                lost = now.drop(port, reason) - then.drop(port, reason)
                check(lost == 0, f"{host.name}: {port} dropped {lost} as {reason} of good traffic")
        rules = host.rules()
        for rule in (f"in-{tenant.name}", *(name for name in rules if name.startswith("out-"))):
            check(int(rules[rule]["packets"]) > 0, f"{host.name}: rule {rule} counts nothing")
