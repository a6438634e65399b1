"""Nothing acknowledged is lost, and nothing is half there: SIGKILL at random instants under a stream of transactions.

Transaction N adds 40 rules of its own and replaces 10 that all transactions share, whose priority becomes N. After
a kill, N's own rules are all there or none, all of them if N was acknowledged, and the shared ones agree on one N.
"""

import json
import random
import threading
import time

from daemon import Host, rule_lines
from lab import check, step
from topology import Tenant, underlay, uplink_port, Peer

ROUNDS = 15
OWN_RULES = 40
SHARED_RULES = 10


def transaction(number, tenant):
    """The rules of transaction `number`, as JSON lines."""

    def rule(rule_id, host_byte, priority):
        destination = f"10.{number % 256}.{number // 256}.{host_byte}/32"
        action = {"forward": {"tunnel": "vxlan", "vni": 100, "remote": underlay(2), "inner_dst_mac": "02:00:00:00:01:02"}}
        return {"id": rule_id, "port": tenant.name, "priority": priority, "match": {"dst": destination}, "action": action}

    own = [rule(f"t{number:05}-{index:02}", index, 1) for index in range(OWN_RULES)]
    shared = [rule(f"shared-{index:02}", 100 + index, number) for index in range(SHARED_RULES)]
    return rule_lines(own + shared)


class Client:
    """Loads one transaction after another, and remembers which were tried and which acknowledged."""

    def __init__(self, host, tenant):
        self.host, self.tenant = host, tenant
        self.tried = self.acknowledged = 0
        self.refusal = None

    def run_until_killed(self, first, killed):
        """Transactions from `first` on, until the daemon is gone."""
        number = first
        while not killed.is_set():
            self.tried = number
            done = self.host.cli("rule", "load", "-", stdin=transaction(number, self.tenant), check_status=False)
            if done.returncode == 0:
                self.acknowledged = number
            elif not killed.is_set() and self.host.running():
                self.refusal = done.stderr
                return
            number += 1


def run(lab):
    """ROUNDS times: load, kill, start, compare."""
    namespace = lab.namespace("a")
    Peer(lab, namespace)
    tenant = Tenant(lab, "vm1", 1, tap=False)
    tenant.cable(lab, namespace)
    host = Host(lab, namespace, "host-a", [uplink_port(1), tenant.port()], core=0)
    client = Client(host, tenant)
    chance = random.Random(time.time_ns())
    # Transactions that may be there although nobody was told so.
    unclear = set()
    settled = set()
    step(f"{ROUNDS} kills at random instants")
    host.start()
    for turn in range(ROUNDS):
        first = client.tried + 1
        killed = threading.Event()
        thread = threading.Thread(target=client.run_until_killed, args=(first, killed), daemon=True)
        thread.start()
        time.sleep(chance.uniform(0.02, 0.8))
        killed.set()
        host.kill()
        thread.join()
        check(client.refusal is None, f"turn {turn}: refused: {client.refusal}")
        settled.update(range(first, client.acknowledged + 1))
        unclear.update(range(max(first, client.acknowledged + 1), client.tried + 1))
        host.start()
        compare(host, client, settled, unclear, f"after kill {turn + 1}")
    print(f"    {len(settled)} transactions acknowledged, {len(unclear)} cut off", flush=True)
    check(settled, "no transaction was ever acknowledged: this proves nothing")


def compare(host, client, settled, unclear, when):
    """The rules that are there against those that must, and those that may."""
    own, shared = {}, {}
    for name, rule in host.rules().items():
        if name.startswith("shared-"):
            shared[name] = int(rule["priority"])
        else:
            number = int(name[1:6])
            own[number] = own.get(number, 0) + 1
    torn = {number: count for number, count in own.items() if count != OWN_RULES}
    check(not torn, f"{when}: half there (transaction: rules of {OWN_RULES}): {torn}")
    lost = sorted(settled - set(own))
    check(not lost, f"{when}: acknowledged and gone: {lost[:20]}")
    strange = sorted(set(own) - settled - unclear)
    check(not strange, f"{when}: never sent: {strange[:20]}")
    if own:
        newest = max(own)
        wanted = {f"shared-{index:02}": newest for index in range(SHARED_RULES)}
        check(shared == wanted, f"{when}: the shared rules are of {sorted(set(shared.values()))}, not all of {newest}: {json.dumps(shared)}")
    check(client.tried >= max(own, default=0), f"{when}: rules of the future")
