#!/usr/bin/env python3
"""What runs inside a virtual machine for the scenario vhost_guest: its addresses, echoes, and a few words on request.

    guest_agent.py MAC IPV4/PREFIX IPV6/PREFIX

TCP and UDP port 7 send back what they receive. TCP port 9 takes one line and answers with text: `offloads`, `channels N`
(queue pairs), `rebind` (takes the driver off the card and puts it back: the card is reset), `mib` (the kernel's counters),
`quit`.
"""

import os
import socket
import socketserver
import subprocess
import sys
import threading
import time

NIC = "nic0"
PCI = "/sys/bus/pci/devices/0000:01:00.0"
DRIVER = "/sys/bus/virtio/drivers/virtio_net"
ECHO_PORT, WORD_PORT = 7, 9


def run(*words):
    """What a command prints; what it says of its failure, too."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def set_up(mac, *addresses):
    """The card's address as its port expects it, and the tenant's own."""
    run("ip", "link", "set", NIC, "down")
    run("ip", "link", "set", NIC, "address", mac)
    run("ip", "link", "set", NIC, "up")
    for address in addresses:
        run("ip", "address", "replace", address, "dev", NIC, *(["nodad"] if ":" in address else []))


def rebind():
    """Takes the driver off the card and puts it back."""
    device = next(name for name in os.listdir(PCI) if name.startswith("virtio"))
    for action in ("unbind", "bind"):
        # As long as a machine without a driver may be: whoever looks now and then shall see it.
        time.sleep(0.3)
        with open(f"{DRIVER}/{action}", "w", encoding="ascii") as file:
            file.write(device)
    name = os.listdir(f"{PCI}/{device}/net")[0]
    run("ip", "link", "set", name, "down")
    run("ip", "link", "set", name, "name", NIC)
    set_up(*sys.argv[1:])
    return "done"


def answer(word):
    """What a line of the scenario's asks for."""
    if word[0] == "offloads":
        return run("ethtool", "-k", NIC)
    if word[0] == "channels":
        return run("ethtool", "-L", NIC, "combined", word[1]) or "done"
    if word[0] == "rebind":
        return rebind()
    if word[0] == "mib":
        with open("/proc/net/snmp", encoding="ascii") as file:
            return file.read()
    return "what?"


class Echo(socketserver.BaseRequestHandler):
    """Sends everything back."""

    def handle(self):
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class Words(socketserver.StreamRequestHandler):
    """One line, one answer."""

    def handle(self):
        word = self.rfile.readline().decode().split()
        if word == ["quit"]:
            finished.set()
            return
        self.wfile.write(answer(word).encode())


class Server(socketserver.ThreadingTCPServer):
    """IPv6 and IPv4 alike."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


def echo_datagrams():
    """Sends every datagram back."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", ECHO_PORT))
        while True:
            data, sender = sock.recvfrom(1 << 16)
            try:
                sock.sendto(data, sender)
            except OSError:
                # The card is being reset.
                pass


finished = threading.Event()
set_up(*sys.argv[1:])
for work in (Server(("::", ECHO_PORT), Echo).serve_forever, Server(("::", WORD_PORT), Words).serve_forever, echo_datagrams):
    threading.Thread(target=work, daemon=True).start()
print("agent: ready", flush=True)
finished.wait()
