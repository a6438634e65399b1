"""One `forebay run` under test: its config file, its life, and the command line that talks to it."""

import json
import os
import signal
import subprocess
import time

from lab import Failure, check, run, wait_until

READY = "forebay: ready"
# DPDK without hugepages touches all of its memory on start, on a machine that may be compiling at the same time.
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 10
REST_TIMEOUT_S = 3


def toml(value):
    """A TOML value of a text, number, boolean or list (for which JSON's notation is TOML's too)."""
    return json.dumps(value)


class Host:
    """A Forebay host: a daemon in its namespace, that can be stopped, killed and started again."""

    def __init__(self, lab, namespace, name, ports, core=0, idle="last-packet", workers=None, hugepages="off"):
        self.lab = lab
        self.namespace = namespace
        self.name = name
        self.process = None
        self.tenants = []
        directory = os.path.join(lab.directory, name)
        os.makedirs(directory)
        self.config = os.path.join(directory, "host.toml")
        self.socket = os.path.join(directory, "forebay.sock")
        self.log = os.path.join(directory, "log")
        core = core % (os.cpu_count() or 1)
        sections = [
            ("[host]", {"name": name, "state": os.path.join(directory, "state")}),
            ("[control]", {"socket": self.socket}),
            ("[dpdk]", {"hugepages": hugepages, "memory_mib": 128}),
            ("[workers]", {"cores": str(core), "idle": idle, **(workers or {})}),
        ] + [("[[port]]", port) for port in ports]
        with open(self.config, "w", encoding="utf-8") as file:
            for header, pairs in sections:
                file.write(header + "\n")
                file.writelines(f"{key} = {toml(value)}\n" for key, value in pairs.items())
                file.write("\n")
        with open(self.log, "wb"):
            pass
        lab.hosts.append(self)

    # ---- life

    def start(self):
        """Starts the daemon, waits until every port passes traffic, and connects the tenants' taps."""
        begin = os.path.getsize(self.log)
        with open(self.log, "ab") as log:
            self.process = self.namespace.spawn(
                self.lab.forebay, "run", "--config", self.config, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

        def ready():
            text = self.log_text(begin)
            if READY in text:
                return True
            if self.process.poll() is not None:
                raise Failure(f"{self.name}: the daemon ended with {self.process.returncode} before it was ready:\n{text[-3000:]}")
            return False

        wait_until(ready, lambda: f"{self.name}: not ready:\n{self.log_text(begin)[-3000:]}", START_TIMEOUT_S)
        for tenant in self.tenants:
            tenant.connect(self)
        return self

    def running(self):
        """The daemon is alive."""
        return self.process is not None and self.process.poll() is None

    def stop(self):
        """SIGTERM; the daemon drains and exits with 0 in bounded time."""
        self.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name}: still running {STOP_TIMEOUT_S} s after SIGTERM:\n{self.log_text()[-2000:]}") from None
        check(status == 0, f"{self.name}: exit status {status} after SIGTERM, not 0:\n{self.log_text()[-2000:]}")
        return time.monotonic() - began

    def kill(self):
        """SIGKILL, at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def log_text(self, begin=0):
        """What the daemon wrote, from byte `begin` of its log."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            file.seek(begin)
            return file.read()

    # ---- the command line

    def cli(self, *words, stdin=None, check_status=True, timeout_s=30):
        """forebay WORDS, to this daemon."""
        return run(
            self.lab.forebay, *words, stdin=stdin, check_status=check_status, timeout_s=timeout_s, environment={"FOREBAY_SOCKET": self.socket}
        )

    def json(self, *words, stdin=None):
        """The JSON that a command prints: one value, or a list where it prints one object a line."""
        text = self.cli(*words, "--json", stdin=stdin).stdout
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return [json.loads(line) for line in text.splitlines() if line.strip()]

    def load(self, rules):
        """Loads rules in one transaction."""
        return self.cli("rule", "load", "-", stdin=rule_lines(rules))

    def delete(self, *ids):
        """Deletes rules by id."""
        return self.cli("rule", "delete", *ids)

    def rules(self):
        """Id to rule, each with `packets` and `bytes`."""
        return {rule["id"]: rule for rule in (_flat(entry, "rule") for entry in self._listed("rule", "rules"))}

    def rule_packets(self, rule_id):
        """The packets that a rule has decided so far."""
        return int(self.rules()[rule_id]["packets"])

    def ports(self):
        """Name to port."""
        return {port["name"]: port for port in (_flat(entry, "spec") for entry in self._listed("port", "ports"))}

    def port_mac(self, name):
        """The MAC that a port uses, configured or its device's own."""
        return self.ports()[name]["mac_in_use"].lower()

    def _listed(self, noun, key):
        """What `NOUN list` prints: a list, an object with one, or a line for each, of which there may be one."""
        listed = self.json(noun, "list")
        if isinstance(listed, dict):
            listed = listed.get(key, [listed])
        return listed

    def stats(self):
        """Every counter of now."""
        return Stats(self.json("stats"))

    def at_rest(self):
        """Every counter, once nothing is in flight. Fails where the conservation equation does not hold then."""
        last, workers = None, []

        def quiet():
            nonlocal last, workers
            last = self.stats()
            shown = self.json("pipeline", "show", "--interval-ms", "0")["workers"]
            equations = [(worker["name"], worker["conservation"]) for worker in shown]
            workers = [pair for pair in equations if not pair[1]["holds"] or pair[1]["in_flight_packets"] != 0]
            return not last.unbalanced() and not workers

        wait_until(quiet, lambda: f"{self.name}: conservation: {last.unbalanced()} {workers}", REST_TIMEOUT_S)
        return last

    # ---- expectations

    def expect_drops(self, before, port, reasons, exactly=None, at_least=1, timeout_s=3):
        """Since `before` (Stats), `port` dropped `exactly` or `at_least` so many packets, summed over these reasons."""
        reasons = [reasons] if isinstance(reasons, str) else list(reasons)
        wanted = exactly if exactly is not None else at_least

        def dropped():
            now = self.stats()
            return sum(now.drop(port, reason) - before.drop(port, reason) for reason in reasons)

        wait_until(
            lambda: dropped() >= wanted,
            lambda: f"{self.name}: port {port} counts {dropped()} more drops as {'/'.join(reasons)}, not {wanted}; "
            f"all that changed: {self.stats().changes(before, port)}",
            timeout_s,
        )
        if exactly is not None:
            count = dropped()
            check(count == exactly, f"{self.name}: port {port} counts {count} drops as {'/'.join(reasons)}, not {exactly}")


def rule_lines(rules):
    """Rules as the JSON lines of `rule load`."""
    return "".join(json.dumps(rule) + "\n" for rule in rules)


def _flat(entry, key):
    """The entry with the fields of entry[key] beside its own: `rule list` and `port list` may nest what was declared."""
    inner = entry.get(key)
    return {**entry, **inner} if isinstance(inner, dict) else entry


class Stats:
    """What `forebay stats --json` said at one moment."""

    def __init__(self, raw):
        self.raw = raw
        ports = raw["ports"]
        if isinstance(ports, dict):
            ports = [{"name": name, **port} for name, port in ports.items()]
        self.ports = {port["name"]: _flat(port, "counters") for port in ports}

    def counter(self, port, name):
        """A counter of a port."""
        return int(self.ports[port][name])

    def drop(self, port, reason):
        """The packets that a port dropped for this reason."""
        return int(self.ports[port]["drops"].get(reason, 0))

    def unbalanced(self):
        """What keeps the conservation equation from holding with nothing in flight; empty where it does."""
        wrong = []
        entries = [(name, port["conservation"]) for name, port in self.ports.items()]
        for name, equation in entries + [("host", self.raw["conservation"])]:
            if not equation["holds"] or int(equation["in_flight_packets"]) != 0:
                wrong.append(f"{name}: {equation}")
        return "; ".join(wrong)

    def changes(self, before, port):
        """Counter to increase since `before`, of those that changed."""
        now, then = self.ports[port], before.ports[port]
        numbers = {k: int(v) - int(then.get(k, 0)) for k, v in now.items() if isinstance(v, (int, str)) and str(v).isdigit()}
        drops = {f"drops.{k}": int(v) - int(then["drops"].get(k, 0)) for k, v in now["drops"].items()}
        return {k: v for k, v in {**numbers, **drops}.items() if v}
