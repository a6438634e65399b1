"""A virtual machine on a vhost-user port talks TCP through the overlay to a tap tenant of another host, while its host is
stopped, killed and started again, and while its own driver is.

The guest is a Debian kernel under QEMU's emulation (scripts/sriov-guest --vhost). How long an outage lasts is measured and
printed, and decides nothing: what decides is that every byte arrives, and that traffic goes on.
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

from daemon import Host
from lab import Failure, Skip, check, run as run_command, step, wait_until
from topology import UPLINK, UPLINK_INTERFACE, Tenant, join, uplink_port

HERE = os.path.dirname(os.path.abspath(__file__))
AGENT = os.path.join(HERE, "..", "guest_agent.py")
SCRIPT = os.path.join(HERE, "..", "..", "..", "..", "scripts", "sriov-guest")
ECHO_PORT, WORD_PORT = 7, 9
FETCH_TIMEOUT_S = 180
# The guest comes up in a third of it where nothing else runs.
BOOT_TIMEOUT_S = 150
PATIENCE_S = 60
PROBE_INTERVAL_S = 0.05
TRANSFER_BYTES = 4_000_000


class Guest(Tenant):
    """A tenant whose machine is a virtual one."""

    def __init__(self, lab, name, number):
        super().__init__(lab, name, number)
        self.lab = lab
        self.path = os.path.join(lab.directory, f"{name}.sock")
        self.output = os.path.join(lab.directory, f"{name}.out")
        self.process = None

    def port(self, **extra):
        return super().port(device=f"vhost:{self.path}", **extra)

    def connect(self, host):
        """Nothing to move: the guest comes to its socket by itself."""

    def boot(self):
        """Starts the machine; it is ready when it answers."""
        command = [SCRIPT, "--limit", "280", "--vhost", self.path, "python3", os.path.abspath(AGENT), self.mac]
        with open(self.output, "wb") as output:
            self.process = self.lab.spawn(*command, f"{self.v4}/24", f"{self.v6}/64", stdout=output, stderr=output)

    def said(self):
        """What the machine and its script wrote."""
        with open(self.output, encoding="utf-8", errors="replace") as file:
            return file.read()

    def end(self):
        """Ends the machine with its script: a script that is killed would leave it behind."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()


def obstacle():
    """Why there can be no guest here, or None."""
    for tool in ("qemu-system-x86_64", "busybox", "cpio", "depmod"):
        if shutil.which(tool) is None:
            return f"no {tool} (remedy: scripts/setup --guest)"
    done = run_command(SCRIPT, "--fetch", check_status=False, timeout_s=FETCH_TIMEOUT_S)
    return None if done.returncode == 0 else f"no guest: {(done.stderr.strip().splitlines() or ['?'])[-1]}"


def ask(far, guest, *words):
    """The agent's answer to a line."""
    with far.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((guest.v4, WORD_PORT))
        sock.sendall((" ".join(words) + "\n").encode())
        return b"".join(iter(lambda: sock.recv(1 << 16), b"")).decode()


class Transfer:
    """Bytes to the guest and back over one TCP connection, in a thread.

    With `held`, the second half waits for `second_half`, and the last quarter for `last_quarter`, so that what happens in
    between happens in the middle however fast the machine is.
    """

    def __init__(self, far, address, held=False):
        self.second_half, self.last_quarter = threading.Event(), threading.Event()
        if not held:
            self.second_half.set()
            self.last_quarter.set()
        self.sent, self.got, self.received, self.error = hashlib.sha256(), hashlib.sha256(), 0, None
        self.sock = far.namespace.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect((address, ECHO_PORT))
        self.began = time.monotonic()
        self.threads = [threading.Thread(target=self._guard, args=(work,), daemon=True) for work in (self._send, self._receive)]
        for thread in self.threads:
            thread.start()

    def _guard(self, work):
        try:
            work()
        except OSError as error:
            self.error = error

    def _send(self):
        pieces = TRANSFER_BYTES // 40_000
        gates = {pieces // 2: self.second_half, pieces * 3 // 4: self.last_quarter}
        for number in range(pieces):
            if gate := gates.get(number):
                gate.wait(PATIENCE_S)
            data = hashlib.shake_128(number.to_bytes(4, "big")).digest(40_000)
            self.sent.update(data)
            self.sock.sendall(data)
        self.sock.shutdown(socket.SHUT_WR)

    def _receive(self):
        while data := self.sock.recv(1 << 16):
            self.got.update(data)
            self.received += len(data)

    def finish(self):
        """All of it has come back as it went; returns the seconds it took."""
        for thread in self.threads:
            thread.join(2 * PATIENCE_S)
            check(not thread.is_alive(), f"the transfer hangs after {self.received} bytes")
        self.sock.close()
        check(self.error is None, f"the transfer broke off after {self.received} bytes: {self.error}")
        check(self.received == TRANSFER_BYTES, f"{self.received} of {TRANSFER_BYTES} bytes came back")
        check(self.got.digest() == self.sent.digest(), "what came back is not what was sent")
        return time.monotonic() - self.began


class Probe:
    """Datagrams to the guest and back at an interval: the longest time without an answer is the outage."""

    def __init__(self, far, guest):
        self.sock = far.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.settimeout(PROBE_INTERVAL_S)
        self.sock.connect((guest.v4, ECHO_PORT))
        self.answers, self.stopping = [], threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        number = 0
        while not self.stopping.is_set():
            number += 1
            began = time.monotonic()
            try:
                self.sock.send(number.to_bytes(4, "big") * 50)
                self.sock.recv(1 << 16)
                self.answers.append(time.monotonic())
            except OSError:
                pass
            time.sleep(max(0.0, began + PROBE_INTERVAL_S - time.monotonic()))

    def outage(self):
        """Waits for an answer, stops, and returns the longest silence in seconds."""
        count = len(self.answers)
        wait_until(lambda: len(self.answers) > count + 5, "the guest does not answer any more", PATIENCE_S)
        self.stopping.set()
        self.thread.join()
        self.sock.close()
        return max(late - early for early, late in zip(self.answers, self.answers[1:]))


def counter(mib, protocol, name):
    """A counter of /proc/net/snmp."""
    titles, values = [line.split()[1:] for line in mib.splitlines() if line.startswith(f"{protocol}:")]
    return int(dict(zip(titles, values))[name])


def checksum_errors(far, guest):
    """Packets with a wrong checksum that either side has received."""
    here = far.namespace.run("cat", "/proc/net/snmp").stdout
    there = ask(far, guest, "mib")
    return {
        f"{who} {protocol}": counter(mib, protocol, "InCsumErrors")
        for who, mib in (("tap tenant", here), ("guest", there))
        for protocol in ("Tcp", "Udp")
    }


def check_offloads(far, guest):
    """The guest was given what Forebay does, and uses it; what Forebay does not do it was not given."""
    lines = dict(line.strip().split(": ", 1) for line in ask(far, guest, "offloads").splitlines() if ": " in line)
    check(lines["tx-checksum-ip-generic"] == "on", f"the guest finishes its checksums itself: {lines}")
    for feature in ("tx-tcp-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp6-segmentation"):
        check(lines[feature].startswith("off [fixed]"), f"the guest was offered {feature}, which nobody does: {lines[feature]}")


def work(guest, far, hosts):
    """Everything that the guest goes through."""
    host = hosts[0]
    step("the guest starts")
    began = time.monotonic()
    guest.boot()

    def answers():
        if guest.process.poll() is not None:
            raise Failure(f"the guest ended before it was ready:\n{guest.said()[-3000:]}")
        return "agent: ready" in guest.said()

    wait_until(answers, lambda: f"the guest is not ready:\n{guest.said()[-3000:]}", BOOT_TIMEOUT_S, 0.2)
    print(f"    ready after {time.monotonic() - began:.1f} s", flush=True)
    check_offloads(far, guest)
    wait_until(lambda: 'port "vm1": its guest has 2 queue pairs' in host.log_text(), "the log does not tell of the guest's queues")

    step("TCP to the guest and back")
    for address in (guest.v4, guest.v6):
        seconds = Transfer(far, address).finish()
        print(f"    {TRANSFER_BYTES / 1e6:.0f} MB each way to {address}: {seconds:.1f} s", flush=True)

    step("one queue pair in place of two")
    reply = ask(far, guest, "channels", "1")
    check(reply == "done", f"ethtool -L: {reply}")
    wait_until(lambda: 'port "vm1": its guest has 1 queue pairs' in host.log_text(), "the log does not tell of the guest's queues")
    Transfer(far, guest.v4).finish()
    ask(far, guest, "channels", "2")

    for way in ("SIGTERM", "SIGKILL"):
        step(f"{way} to Forebay in the middle of a transfer")
        probe, transfer = Probe(far, guest), Transfer(far, guest.v4, held=True)
        wait_until(lambda: transfer.received == TRANSFER_BYTES // 2, "the first half does not come back", PATIENCE_S)
        wait_until(lambda: probe.answers, "nothing answers", PATIENCE_S)
        transfer.second_half.set()
        began = time.monotonic()
        if way == "SIGTERM":
            host.stop()
        else:
            host.kill()
        transfer.last_quarter.set()
        host.start()
        restart = time.monotonic() - began
        outage = probe.outage()
        transfer.finish()
        print(f"    {outage:.2f} s without an answer, {restart:.2f} s of them until Forebay was ready again", flush=True)

    step("the guest takes its driver off the card, and puts it back")
    begin = os.path.getsize(host.log)
    check(ask(far, guest, "rebind") == "done", "the driver cannot be taken off")
    for text in ("down", "up"):
        wait_until(lambda text=text: f'port "vm1": link is {text}' in host.log_text(begin), f"the log does not say {text}")
    Transfer(far, guest.v6).finish()
    errors = checksum_errors(far, guest)
    check(not any(errors.values()), f"wrong checksums: {errors}")

    step("the guest ends")
    ask(far, guest, "quit")
    wait_until(lambda: not host.ports()["vm1"]["up"], "the port stays up without a guest", PATIENCE_S)
    before = host.stats()
    far.namespace.run("ping", "-c", "3", "-i", "0.1", "-W", "1", guest.v4, check_status=False)
    host.expect_drops(before, UPLINK, "port_down", exactly=3)


def run(lab):
    """A guest on host A, a tap tenant on host B."""
    if reason := obstacle():
        raise Skip(reason)
    guest, far = Guest(lab, "vm1", 1), Tenant(lab, "vm2", 2)
    spaces = lab.namespace("a"), lab.namespace("b")
    lab.veth(spaces[0], UPLINK_INTERFACE, spaces[1], UPLINK_INTERFACE, 1600)
    hosts = []
    for number, (namespace, tenant) in enumerate(((spaces[0], guest), (spaces[1], far)), start=1):
        namespace.up(UPLINK_INTERFACE, ipv6=False)
        host = Host(lab, namespace, f"host-{number}", [uplink_port(number), tenant.port()], core=number - 1)
        host.tenants = [tenant]
        hosts.append(host.start())
    join(hosts, [(guest, far)])
    try:
        work(guest, far, hosts)
    finally:
        guest.end()
        print("\n".join(f"    guest: {line}" for line in guest.said().splitlines()[-5:]), flush=True)
