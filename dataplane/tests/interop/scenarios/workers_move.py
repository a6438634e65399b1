"""Workers, queues and cores move while numbered datagrams flow: nothing is lost, and nothing overtakes within a flow.

By hand (`worker add` and `worker remove`), between stages with cores of their own, and between pipelines by priority.
"""

import time

from lab import Failure, Lab, check, step, wait_until
from topology import Tenant, join, two_hosts
from traffic import NumberedFlows, expect_full_exchange, ping, tcp_transfer

ROUNDS = 6
# The move itself is due within 100 ms; the machine may be busy, and nothing timed decides.
MOVE_TIMEOUT_S = 20


def run(lab):
    """Each way in which something moves."""
    for name, part in (("by hand", by_hand), ("between stages", staged), ("by priority", by_priority)):
        step(name)
        inner = Lab(lab.forebay)
        try:
            part(inner)
        except Exception:
            for host in inner.hosts:
                print(f"--- end of the log of {host.name}\n{host.log_text()[-4000:]}")
            raise
        finally:
            inner.close()


def tenants(lab):
    """One pair of tenants on taps, one on veths."""
    return [
        (Tenant(lab, "vm1", 1), Tenant(lab, "vm2", 2)),
        (Tenant(lab, "vm3", 3, vni=200, tap=False), Tenant(lab, "vm4", 4, vni=200, tap=False)),
    ]


def meet(pairs):
    """The links are up and next hops are known: what is lost from now on, a move has lost."""
    for left, right in pairs:
        for near, far in ((left, right), (right, left)):
            for address in (far.v4, far.v6):
                wait_until(lambda near=near, to=address: ping(near.namespace, to, 1, wait_s=1)[0] == 1, f"{near.name}: no way to {address}", 10)


def workers(host):
    """Core to worker."""
    return {worker["core"]: worker for worker in host.json("worker", "list")}


def refused(host, *words, says, status=1):
    """The command fails with this status and one line that says this."""
    done = host.cli(*words, check_status=False)
    check(done.returncode == status and says in done.stderr, f"{words}: status {done.returncode}, {done.stderr!r}, not {says!r}")


def by_hand(lab):
    """Workers come to and go from both hosts, in turns, whichever had the transmit queues at the start."""
    pairs = tenants(lab)
    hosts = two_hosts(lab, pairs)
    join(hosts, pairs)
    meet(pairs)
    flows = [NumberedFlows(left.namespace, right.namespace, right.v4) for left, right in pairs]
    flows += [NumberedFlows(right.namespace, left.namespace, left.v6) for left, right in pairs]
    for turn in range(ROUNDS):
        for host in hosts:
            (core,) = workers(host)
            added = host.json("worker", "add", 1 - core)
            check(added["changed"], f"{host.name}: {added}")
            check(not host.json("worker", "add", 1 - core)["changed"], f"{host.name}: a worker was added twice")
            shown = workers(host)
            queues = [worker["receive_queues"] for worker in shown.values()]
            check(len(shown) == 2 and min(queues) > 0, f"{host.name}: {shown}")
            host.cli("worker", "remove", core if turn % 2 else 1 - core)
    for one in flows:
        one.stop.set()
    try:
        total = sum(one.expect_all() for one in flows)
    except Failure as failure:
        lost = {f"{host.name} {name}": port["drops"] for host in hosts for name, port in host.stats().ports.items()}
        reasons = {name: {reason: count for reason, count in drops.items() if count} for name, drops in lost.items()}
        counts = {host.name: {name: (port["rx_packets"], port["tx_packets"]) for name, port in host.stats().ports.items()} for host in hosts}
        raise Failure(f"{failure}; drops: {reasons}; received and sent: {counts}; workers: {[host.json('pipeline', 'show') for host in hosts]}") from failure
    print(f"    {total} datagrams in {sum(len(one.senders) for one in flows)} flows, {ROUNDS * 4} changes", flush=True)
    for host in hosts:
        host.at_rest()
        (core,) = workers(host)
        refused(host, "worker", "remove", core, says="is the only one that runs receive, classify, transform")
        refused(host, "worker", "remove", 1 - core, says="no worker has it")
        refused(host, "worker", "add", 1023, says="not available", status=2)
        refused(host, "worker", "add", 1 - core, "--pipeline", "none", says='there is no pipeline "none" (there are: main)')
    expect_full_exchange(*pairs[0], tcp_bytes=5_000_000)


def staged(lab):
    """Receiving has a core of its own, and waits where the next stage is slower."""
    stages = [{"run": ["receive"], "cores": "0"}, {"run": ["classify", "transform"], "cores": "1", "when_full": "wait"}]
    pairs = tenants(lab)
    hosts = two_hosts(lab, pairs, workers={"cores": "0-1"}, pipelines=[[{"name": "all", "stage": stages}]] * 2)
    join(hosts, pairs)
    for pair in pairs:
        expect_full_exchange(*pair, tcp_bytes=5_000_000)
    for host in hosts:
        host.at_rest()
        shown = [(worker["name"], worker["stages"][0], worker["receive_queues"] > 0) for worker in workers(host).values()]
        check(shown == [("receiver0", "receive", True), ("worker0", "receive", False)], f"{host.name}: {shown}")
        for queue in host.json("pipeline", "show", "--interval-ms", "0")["workers"][1]["queues"]:
            check(queue["refused"] == 0 or not queue["name"].startswith("receiver"), f"{host.name}: {queue}")


def pipeline(host, name):
    """What is shown of a pipeline."""
    shown = host.json("pipeline", "show", "--interval-ms", "0")["pipelines"]
    return next(one for one in shown if one["name"] == name)


def by_priority(lab):
    """The more important pipeline gets the core of the other while it is under load, and gives it back."""
    gold = {"name": "gold", "priority": 10, "ports": ["vm1"], "cores": "0", "memory_mib": 32}
    silver = {"name": "silver", "cores": "1", "min_cores": 0}
    pairs = tenants(lab)
    hosts = two_hosts(lab, pairs, workers={"cores": "0-1"}, pipelines=[[gold, silver], []])
    host = hosts[0]
    join(hosts, pairs)
    meet(pairs)
    check(pipeline(host, "gold")["buffers"] > 0 and pipeline(host, "silver")["buffers"] is None, f"{pipeline(host, 'gold')}")
    flows = NumberedFlows(pairs[1][0].namespace, pairs[1][1].namespace, pairs[1][1].v4, flows=4)
    ends = time.monotonic() + MOVE_TIMEOUT_S
    while pipeline(host, "gold")["cores_gained"] == 0:
        if time.monotonic() > ends:
            raise Failure(f"no core moved under load: {host.json('pipeline', 'show')}")
        left, right = pairs[0]
        tcp_transfer(left.namespace, right.namespace, right.v4, 20_000_000)
    wait_until(lambda: pipeline(host, "silver")["cores"] == 1, lambda: f"the core is not given back: {pipeline(host, 'silver')}", MOVE_TIMEOUT_S)
    check(pipeline(host, "gold")["cores"] == 1, f"{pipeline(host, 'gold')}")
    moves = [line for line in host.log_text().splitlines() if " got worker " in line]
    print(f"    {flows.expect_all()} datagrams of the less important one; {len(moves)} moves: {moves[:2]}", flush=True)
    for pair in pairs:
        expect_full_exchange(*pair, tcp_bytes=2_000_000)
    host.at_rest()
