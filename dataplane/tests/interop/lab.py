"""Network namespaces for the interop scenarios, and everything that has to go away afterwards.

A Lab owns its namespaces, its child processes and one temporary directory; close() removes them, whatever happened.
Names carry the process id, so that scenarios can run side by side and one's cleaning never touches another's things.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """The scenario found something that is not as promised; the text says what."""


class Skip(Exception):
    """This machine cannot run the scenario; the text says why."""


def check(condition, text):
    """Fails the scenario with `text` unless `condition` holds."""
    if not condition:
        raise Failure(text)


def wait_until(condition, text, timeout_s=5.0, interval_s=0.05):
    """Polls `condition` until it returns something true, and returns that; fails with `text` after `timeout_s`.

    `text` may be a function, called at the end, so that it can show the last state.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise Failure(f"{text() if callable(text) else text} (waited {timeout_s:g} s)")
        time.sleep(interval_s)


def step(text):
    """Tells the reader of the log what comes next."""
    print(f"  - {text}", flush=True)


def run(*command, check_status=True, timeout_s=30, stdin=None, environment=None):
    """Runs a command to its end and returns it with its output as text."""
    words = [str(word) for word in command]
    variables = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False, env=variables)
    except subprocess.TimeoutExpired as late:
        raise Failure(f"{' '.join(words)}: no end after {timeout_s} s") from late
    if check_status and done.returncode != 0:
        raise Failure(f"{' '.join(words)}: status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done


class Namespace:
    """One network namespace: a tenant's machine, a host, or a plain kernel peer."""

    def __init__(self, lab, name):
        self.lab = lab
        self.name = f"{lab.tag}-{name}"
        run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")
        # Addresses are usable at once, and the kernel sends no router solicitations: less noise in the counters.
        for scope in ("all", "default"):
            for key in ("accept_dad", "accept_ra", "router_solicitations"):
                self.sysctl(f"net/ipv6/conf/{scope}/{key}", 0)

    @contextlib.contextmanager
    def entered(self):
        """The calling thread is inside the namespace; what it opens there stays there."""
        with open("/proc/thread-self/ns/net") as home, open(f"/var/run/netns/{self.name}") as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def run(self, *command, **keywords):
        """Runs a command inside the namespace to its end."""
        return run("ip", "netns", "exec", self.name, *command, **keywords)

    def spawn(self, *command, **keywords):
        """Starts a command inside the namespace; the lab ends it if nobody else does."""
        return self.lab.spawn("ip", "netns", "exec", self.name, *command, **keywords)

    def sysctl(self, key, value):
        """Sets /proc/sys/KEY inside the namespace."""
        with self.entered(), open(f"/proc/sys/{key}", "w", encoding="ascii") as file:
            file.write(str(value))

    def socket(self, family, kind, protocol=0):
        """A socket of this namespace."""
        with self.entered():
            return socket.socket(family, kind, protocol)

    def ip(self, *words):
        """ip -n NAMESPACE WORDS..."""
        return run("ip", "-n", self.name, *words)

    def mac(self, interface):
        """The MAC address of an interface, as text."""
        with self.entered(), contextlib.closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as raw:
            raw.bind((interface, 0))
            return raw.getsockname()[4].hex(":")

    def up(self, interface, addresses=(), mac=None, mtu=None, ipv6=True, link_local=True):
        """Brings an interface up with these addresses (ADDRESS/PREFIX)."""
        self.sysctl(f"net/ipv6/conf/{interface}/disable_ipv6", 0 if ipv6 else 1)
        if not link_local:
            self.ip("link", "set", interface, "addrgenmode", "none")
        if mac:
            self.ip("link", "set", interface, "address", mac)
        if mtu:
            self.ip("link", "set", interface, "mtu", mtu)
        self.ip("link", "set", interface, "up")
        for address in addresses:
            extra = ["nodad"] if ":" in address else []
            self.ip("address", "replace", address, "dev", interface, *extra)

    def plain_frames(self, interface):
        """The kernel hands over finished frames: every checksum filled in, nothing left to segment or coalesce."""
        # Some devices refuse to change one or the other; what counts is checked by the traffic itself.
        self.run("ethtool", "-K", interface, "tx", "off", "rx", "off", check_status=False)
        self.run("ethtool", "-K", interface, "tso", "off", "gso", "off", "gro", "off", check_status=False)


def _setns(descriptor):
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


class Lab:
    """The namespaces, processes and files of one run of one scenario."""

    def __init__(self, forebay):
        self.forebay = os.path.abspath(forebay)
        self.tag = f"fbi{os.getpid()}"
        self.directory = tempfile.mkdtemp(prefix="forebay-interop-")
        self.namespaces = []
        self.processes = []
        self.hosts = []

    def namespace(self, name):
        """A new namespace."""
        namespace = Namespace(self, name)
        self.namespaces.append(namespace)
        return namespace

    def veth(self, left, left_name, right, right_name, mtu=1500):
        """A cable: LEFT_NAME in namespace `left`, RIGHT_NAME in namespace `right`; both stay down."""
        left.ip("link", "add", left_name, "mtu", mtu, "type", "veth", "peer", "name", right_name, "mtu", mtu, "netns", right.name)
        for namespace, name in ((left, left_name), (right, right_name)):
            namespace.plain_frames(name)

    def spawn(self, *command, **keywords):
        """Starts a command that the lab ends if nobody else does."""
        process = subprocess.Popen([str(word) for word in command], **keywords)
        self.processes.append(process)
        return process

    def close(self):
        """Ends the processes, removes the namespaces and the files."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        for namespace in self.namespaces:
            run("ip", "netns", "delete", namespace.name, check_status=False)
        shutil.rmtree(self.directory, ignore_errors=True)
