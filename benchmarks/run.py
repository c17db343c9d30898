"""What `make bench` runs: every benchmark, one after the other, as one report.

    python benchmarks/run.py [--quick] [--only throughput,feed] [--markdown | --readme]

Each benchmark also runs alone. It takes about five minutes; `--quick` shows in less than one that everything works, and its
numbers mean nothing. `--readme` puts the numbers into the tables of README.md.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import harness

BENCHMARKS = {
    "metadata": "metadata_cost.py",
    "engine": "engine_cost.py",
    "log_bytes": "log_bytes.py",
    "search": "search.py",
    "throughput": "throughput.py",
    "feed": "feed.py",
    "streams": "streams.py",
    "postgres": "postgres_cost.py",
    "memory": "memory.py",
    "startup": "startup.py",
}
# Each limits itself below this.
SECONDS_MAX = 170.0
# With more than this going on beside, or withheld by the hypervisor of a virtual machine, the numbers are not worth keeping.
FOREIGN_CORES_MAX = 0.3

README = harness.HERE / "README.md"


def main() -> int:
    """Run them; 1 if one has failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    harness.add_options(parser)
    parser.add_argument("--only", default="", help=f"some of {','.join(BENCHMARKS)}")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    harness.end_cleanly_on_sigterm()
    markdown: bool = given.markdown or given.readme
    started = time.monotonic()
    machine = harness.machine()
    print(f"Milepost, {machine}", flush=True)
    failed: list[str] = []
    tables: list[str] = []
    stolen_at_start = stolen_seconds()
    for name in names:
        options = ["--quick"] * given.quick + ["--markdown"] * markdown
        code, output, foreign, stolen = run(name, options, capture=given.readme)
        tables.append(output)
        if code != 0:
            failed.append(name)
        if foreign > FOREIGN_CORES_MAX:
            print(
                f"  !! {name}: others used {foreign:.1f} cores meanwhile; measure again on a quiet machine",
                flush=True,
            )
        if stolen > FOREIGN_CORES_MAX:
            print(f"  !! {name}: the hypervisor withheld {stolen:.1f} cores meanwhile", flush=True)
    stolen = (stolen_seconds() - stolen_at_start) / (time.monotonic() - started)
    if stolen > 0.05:
        machine += f", a virtual machine that was withheld {stolen:.1f} cores on average"
    if given.readme and not failed:
        README.write_text(with_numbers(README.read_text(), "\n".join(tables), machine))
        print(f"{README.name} has the numbers now")
    print(f"\n{time.monotonic() - started:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run(name: str, options: list[str], *, capture: bool) -> tuple[int, str, float, float]:
    """Run one benchmark: its exit code, what it printed (if captured), how many cores others used meanwhile, and how many the
    hypervisor withheld."""
    began, busy, own, stolen = time.monotonic(), busy_seconds(), own_seconds(), stolen_seconds()
    command = [sys.executable, str(harness.HERE / BENCHMARKS[name]), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE if capture else None, text=True) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS_MAX)
        except subprocess.TimeoutExpired:
            output = ""
            print(f"  !! {name} did not come to its end", flush=True)
        finally:
            if process.poll() is None:
                # It takes what it has started along.
                process.terminate()
                process.wait(2 * harness.END_SECONDS_MAX)
    seconds = time.monotonic() - began
    foreign = ((busy_seconds() - busy) - (own_seconds() - own)) / seconds
    return process.returncode, output or "", foreign, (stolen_seconds() - stolen) / seconds


def busy_seconds() -> float:
    """Processor time that the whole machine has spent on work so far."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def stolen_seconds() -> float:
    """Processor time that this machine wanted and its hypervisor gave to others; 0 where there is none."""
    return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def with_numbers(text: str, tables: str, machine: str) -> str:
    """The README with these tables in the places of the same names, and the machine that they are from."""
    numbers = dict(re.findall(r"<!-- numbers: (\w+) -->\n(.*?)\n<!-- end -->", tables, re.DOTALL))
    if numbers.keys() >= set(re.findall(r"<!-- numbers: (\w+) -->", text)) - {"machine"}:
        # Of a part of the tables it would be said wrongly where the others are from.
        numbers["machine"] = f"{machine}."

    def fill(place: re.Match[str]) -> str:
        name = place[1]
        return place[0] if name not in numbers else f"<!-- numbers: {name} -->\n{numbers[name]}\n<!-- end -->"

    # A place may be empty, and must not reach to the end of the next one.
    return re.sub(r"<!-- numbers: (\w+) -->\n(?:.*?\n)??<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
