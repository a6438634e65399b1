#!/usr/bin/env python3
"""Counts the instructions that a packet takes and compares them with the budget: one line for each case.

    python3 dataplane/benches/guard.py            status 1 where a case is over its budget
    python3 dataplane/benches/guard.py --update   makes the budget what is counted

The counting is benches/guard.rs, under Valgrind; the budget is benches/budget.txt. Needs what scripts/setup --test
installs. Everything that cargo and Valgrind say goes to stderr.
"""

import json
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
BUDGET = HERE / "budget.txt"
SETTINGS = ("packets", "room_percent")
# Below its budget by more, a case could get worse by as much before anybody noticed.
SLACK_PERCENT = 3
# What gungraun ends with when a limit is exceeded.
OVER_LIMIT = 3
LINE = re.compile(r"^(\w+) ([\d.]+)$", re.MULTILINE)


def count(packets):
    """Instructions per packet by case, in the order in which they ran, and how the run ended."""
    command = ["cargo", "bench", "--locked", "-p", "forebay-dataplane", "--bench", "guard"]
    command += ["--", "--output-format=json"]
    run = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=False)
    counts = {}
    for line in run.stdout.splitlines():
        if line.startswith("{"):
            summary = json.loads(line)
            counts[summary["function_name"]] = instructions(summary) / packets
        else:
            print(line, file=sys.stderr)
    return counts, run.returncode


def instructions(summary):
    """The instructions of one case, from gungraun's summary of it."""
    return summary["profiles"][0]["data"]["total"]["metrics"]["Ir"]["values"]["new"]


def show(case, counted, budget, room_percent):
    """Prints a case's line; true where it is within its budget."""
    change = 100 * (counted / budget - 1) if budget else float("inf")
    if change > room_percent:
        remark = "OVER BUDGET"
    elif change < -SLACK_PERCENT:
        remark = "ok; lower the budget: python3 dataplane/benches/guard.py --update"
    else:
        remark = "ok"
    print(f"guard: {case:<10} {counted:7.1f} instructions a packet, budget {budget:7.1f} ({change:+.1f} %): {remark}")
    return change <= room_percent


def replaced(line, counts):
    """The budget's line as --update writes it."""
    return f"{line[1]} {counts[line[1]]:.1f}" if line[1] in counts else line[0]


def main():
    update = sys.argv[1:] == ["--update"]
    if sys.argv[1:] and not update:
        sys.exit(__doc__)
    text = BUDGET.read_text()
    figures = {name: float(figure) for name, figure in LINE.findall(text)}
    cases = [name for name in figures if name not in SETTINGS]
    counts, status = count(figures["packets"])
    if status not in (0, OVER_LIMIT):
        sys.exit(f"guard: the count itself failed with status {status} (missing tools: scripts/setup --test)")
    if sorted(cases) != sorted(counts):
        sys.exit(f"guard: {BUDGET.name} has {sorted(cases)}, but {sorted(counts)} were counted (make them the same)")
    if update:
        BUDGET.write_text(LINE.sub(lambda line: replaced(line, counts), text))
        for case in cases:
            print(f"guard: {case:<10} {counts[case]:7.1f} instructions a packet, the budget was {figures[case]:7.1f}")
        return
    within = [show(case, counts[case], figures[case], figures["room_percent"]) for case in cases]
    if not all(within) or status != 0:
        sys.exit("guard: over budget (where that is worth it, the commit updates the budget and says why)")


if __name__ == "__main__":
    main()
