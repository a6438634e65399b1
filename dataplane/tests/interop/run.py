#!/usr/bin/env python3
"""Runs one interop scenario against a forebay binary: real daemons, namespaces, kernel peers, scapy as the oracle.

    python3 dataplane/tests/interop/run.py SCENARIO --forebay PATH_TO_BINARY [--keep]
    python3 dataplane/tests/interop/run.py --list

Exit status: 0 passed, 1 failed, 2 wrong words, 77 this machine cannot run it (the reason is also appended to the file
that FOREBAY_TEST_SKIPS names). --keep leaves namespaces and daemons behind on failure, until Enter or a signal.
"""

import argparse
import importlib
import importlib.util
import os
import shutil
import signal
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
VENV_PYTHON = os.path.join(HERE, "..", "..", "..", "target", "venv", "bin", "python")
SKIPPED = 77
# No scenario takes longer than two minutes; a hang must not hold up the rest.
SCENARIO_TIMEOUT_S = 300


def scenarios():
    """The names of the scenarios: one file each."""
    folder = os.path.join(HERE, "scenarios")
    return sorted(name[:-3] for name in os.listdir(folder) if name.endswith(".py") and not name.startswith("_"))


def use_venv():
    """Goes on in the venv that scripts/setup --test makes, where this Python has no scapy."""
    if importlib.util.find_spec("scapy") is None and os.path.exists(VENV_PYTHON) and "FOREBAY_IN_VENV" not in os.environ:
        os.environ["FOREBAY_IN_VENV"] = "1"
        os.execv(VENV_PYTHON, [VENV_PYTHON, os.path.abspath(__file__), *sys.argv[1:]])


def obstacle():
    """Why this machine cannot run scenarios, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.path.exists("/dev/net/tun"):
        return "no /dev/net/tun (remedy: modprobe tun)"
    for tool in ("ip", "ping", "ethtool"):
        if shutil.which(tool) is None:
            return f"no {tool} (remedy: scripts/setup)"
    if importlib.util.find_spec("scapy") is None:
        return "no scapy (remedy: scripts/setup --test)"
    return None


def finish(lab):
    """What must hold after every scenario: every packet accounted for, no panic, a clean and timely end."""
    from lab import check

    for host in lab.hosts:
        if host.running():
            host.at_rest()
            host.stop()
        check("panicked" not in host.log_text(), f"{host.name}: a panic in the log:\n{host.log_text()[-3000:]}")


def interrupted(number, _frame):
    """Ends by an exception, so that the lab is taken down."""
    raise KeyboardInterrupt(f"signal {number}")


def main():
    """Runs the scenario that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", choices=scenarios())
    parser.add_argument("--forebay", help="the binary under test")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--list", action="store_true")
    words = parser.parse_args()
    if words.list:
        print("\n".join(scenarios()))
        return 0
    if not words.scenario or not words.forebay:
        parser.error("a scenario and --forebay are needed")
    if not os.access(words.forebay, os.X_OK):
        parser.error(f"--forebay {words.forebay}: not an executable file")

    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    use_venv()
    sys.path.insert(0, HERE)
    from lab import Failure, Lab, Skip

    def skip(reason):
        print(f"{words.scenario}: skipped: {reason}")
        if path := os.environ.get("FOREBAY_TEST_SKIPS"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"interop {words.scenario}: {reason}\n")
        return SKIPPED

    if reason := obstacle():
        return skip(reason)
    # ALRM: nobody waits for a hung scenario. TERM: the caller's own limit.
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, interrupted)
    signal.alarm(SCENARIO_TIMEOUT_S)
    began = time.monotonic()
    lab = Lab(words.forebay)
    status = 1
    try:
        importlib.import_module(f"scenarios.{words.scenario}").run(lab)
        finish(lab)
        print(f"{words.scenario}: passed in {time.monotonic() - began:.1f} s")
        status = 0
    except Skip as reason:
        status = skip(reason)
    except Failure as failure:
        print(f"{words.scenario}: FAILED: {failure}")
    except (Exception, KeyboardInterrupt):  # pylint: disable=broad-exception-caught
        print(f"{words.scenario}: FAILED: the scenario broke off:\n{traceback.format_exc()}")
    finally:
        signal.alarm(0)
        try:
            if status == 1:
                show_logs(lab)
            if status == 1 and words.keep:
                keep(lab)
        finally:
            lab.close()
    return status


def show_logs(lab):
    """The last words of every daemon."""
    for host in lab.hosts:
        print(f"--- end of the log of {host.name} ({'running' if host.running() else 'not running'})")
        print(host.log_text()[-4000:])


def keep(lab):
    """Waits, with everything as the failure left it."""
    print(f"kept: namespaces {lab.tag}-*, files in {lab.directory}")
    for host in lab.hosts:
        print(f"  {lab.forebay} --socket {host.socket} stats")
    try:
        input("Enter removes it all: ")
    except (EOFError, KeyboardInterrupt):
        pass


if __name__ == "__main__":
    sys.exit(main())
