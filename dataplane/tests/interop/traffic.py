"""Traffic between the kernels of two namespaces: ping, a TCP transfer with a checksum, paced UDP datagrams."""

import hashlib
import os
import re
import socket
import threading
import time

from lab import Failure, check, run

TCP_PORT = 5001
UDP_PORT = 5002
TRANSFER_TIMEOUT_S = 90
CHUNK_BYTES = 1 << 16
# Of linux/socket.h; the module does not name it.
SO_RCVBUFFORCE = 33


def ping(namespace, target, count=5, interval_s=0.1, wait_s=3, extra=()):
    """Sends exactly `count` echo requests, and returns how many answers came, with ping's own output."""
    # Not -w: with a deadline, ping goes on sending until it has `count` answers, and hides a loss.
    command = ("ping", "-n", "-c", count, "-i", interval_s, "-W", wait_s, *extra, target)
    done = namespace.run(*command, check_status=False, timeout_s=count * interval_s + wait_s + 10)
    found = re.search(r"(\d+) packets transmitted, (\d+) received", done.stdout)
    # Before it sends, ping may refuse: its own output says why.
    return (int(found[2]) if found else 0), done.stdout + done.stderr


def expect_ping(namespace, target, count=5, **keywords):
    """Every echo request is answered."""
    received, output = ping(namespace, target, count, **keywords)
    check(received == count, f"ping {target} from {namespace.name}: {received} answers to {count} requests:\n{output}")


def expect_no_ping(namespace, target, count=3, **keywords):
    """No echo request is answered."""
    received, output = ping(namespace, target, count, wait_s=1, **keywords)
    check(received == 0, f"ping {target} from {namespace.name}: {received} answers, none was expected:\n{output}")


def _family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def tcp_transfer(source, destination, address, size_bytes):
    """Sends `size_bytes` of noise over TCP to `address` in `destination`; what arrives is what was sent.

    Returns bits per second, for the log: nothing timed decides.
    """
    listener = destination.socket(_family(address), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, TCP_PORT))
    listener.listen(1)
    listener.settimeout(TRANSFER_TIMEOUT_S)
    got = {}

    def receive():
        try:
            connection, _ = listener.accept()
            connection.settimeout(TRANSFER_TIMEOUT_S)
            digest, total = hashlib.sha256(), 0
            with connection:
                while data := connection.recv(CHUNK_BYTES):
                    digest.update(data)
                    total += len(data)
                connection.sendall(digest.digest())
            got["bytes"] = total
        except OSError as error:
            got["error"] = error

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    block = os.urandom(1 << 20)
    digest, left, began = hashlib.sha256(), size_bytes, time.monotonic()
    try:
        with source.socket(_family(address), socket.SOCK_STREAM) as sender:
            sender.settimeout(TRANSFER_TIMEOUT_S)
            sender.connect((address, TCP_PORT))
            while left:
                data = block[:left]
                sender.sendall(data)
                digest.update(data)
                left -= len(data)
            sender.shutdown(socket.SHUT_WR)
            answer = b""
            while len(answer) < digest.digest_size and (data := sender.recv(digest.digest_size)):
                answer += data
    except OSError as error:
        raise Failure(f"TCP from {source.name} to {address}: {error}, {left} of {size_bytes} bytes left; receiver: {got}") from error
    finally:
        listener.close()
    seconds = time.monotonic() - began
    thread.join(5)
    check(answer == digest.digest(), f"TCP from {source.name} to {address}: the checksums differ; receiver: {got}")
    return size_bytes * 8 / seconds


def udp_datagrams(source, destination, address, count=300, size_bytes=1400, gap_s=0.002):
    """Sends paced datagrams to `address` in `destination`; each arrives once, with its own bytes."""
    with destination.socket(_family(address), socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.bind((address, UDP_PORT))
        receiver.settimeout(1.0)
        noise = os.urandom(size_bytes)
        sent = [index.to_bytes(4, "big") + noise[4:] for index in range(count)]
        with source.socket(_family(address), socket.SOCK_DGRAM) as sender:
            for datagram in sent:
                sender.sendto(datagram, (address, UDP_PORT))
                time.sleep(gap_s)
        got = []
        try:
            while len(got) < count:
                got.append(receiver.recv(CHUNK_BYTES))
        except TimeoutError:
            pass
    missing = sorted(int.from_bytes(datagram[:4], "big") for datagram in set(sent) - set(got))
    check(not missing, f"UDP from {source.name} to {address}: {len(missing)} of {count} lost or damaged: {missing[:20]}")


class NumberedFlows:
    """Flows of numbered datagrams between two tenants, for as long as the caller does something with the hosts between.

    `expect_all` then holds that each arrived, once and in the order of its flow. The pace leaves room in the queues of the
    devices for what comes while a worker changes.
    """

    def __init__(self, source, destination, address, flows=4, gap_s=0.004):
        self.name = f"{source.name} to {address}"
        self.gap_s = gap_s
        self.receiver = destination.socket(_family(address), socket.SOCK_DGRAM)
        self.receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        self.receiver.bind((address, UDP_PORT))
        self.receiver.settimeout(1.0)
        self.senders = [source.socket(_family(address), socket.SOCK_DGRAM) for _ in range(flows)]
        for sender in self.senders:
            sender.connect((address, UDP_PORT))
        self.sent = 0
        self.got = {}
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self._receive, self._send)]
        for thread in self.threads:
            thread.start()

    def _send(self):
        """Each turn, one datagram of every flow with the turn's number."""
        while not self.stop.is_set():
            for sender in self.senders:
                sender.send(self.sent.to_bytes(8, "big"))
            self.sent += 1
            time.sleep(self.gap_s)

    def _receive(self):
        """Notes the numbers by the port that they came from, until none has come for a second after the end."""
        while True:
            try:
                datagram, (_, port, *_) = self.receiver.recvfrom(64)
            except TimeoutError:
                if self.stop.is_set():
                    return
                continue
            self.got.setdefault(port, []).append(int.from_bytes(datagram, "big"))

    def expect_all(self):
        """Ends the flows; every datagram arrived, and none overtook another of its flow. Returns how many there were."""
        self.stop.set()
        for thread in self.threads:
            thread.join(10)
        wanted, arrived = self.sent * len(self.senders), sum(len(numbers) for numbers in self.got.values())
        missing = sorted(set(range(self.sent)) - set.intersection(*map(set, self.got.values())) if self.got else [])
        gaps = f"from {missing[0]} to {missing[-1]} of {self.sent}" if missing else ""
        check(arrived == wanted, f"numbered flows, {self.name}: {arrived} of {wanted} datagrams arrived; {len(missing)} missing {gaps}")
        for port, numbers in self.got.items():
            late = next((index for index in range(1, len(numbers)) if numbers[index] <= numbers[index - 1]), None)
            check(late is None, f"numbered flows, {self.name}: of port {port}, {numbers[(late or 1) - 1:(late or 1) + 1]} out of order")
        for one in [self.receiver, *self.senders]:
            one.close()
        return wanted


def expect_full_exchange(left, right, tcp_bytes=50_000_000):
    """Ping, TCP and large UDP datagrams in both directions and both inner families, between two tenants."""
    rates = []
    for near, far in ((left, right), (right, left)):
        for address in (far.v4, far.v6):
            expect_ping(near.namespace, address)
            udp_datagrams(near.namespace, far.namespace, address)
    for near, far, address in ((left, right, right.v4), (right, left, left.v6)):
        rates.append(tcp_transfer(near.namespace, far.namespace, address, tcp_bytes))
    print(f"    TCP {rates[0] / 1e9:.2f} Gbit/s IPv4, {rates[1] / 1e9:.2f} Gbit/s IPv6 back", flush=True)


def cached_mtu(namespace, address):
    """The path MTU that the kernel has learnt towards an address, or None."""
    found = re.search(r"\bmtu (\d+)", run("ip", "-n", namespace.name, "route", "get", address).stdout)
    return int(found[1]) if found else None
