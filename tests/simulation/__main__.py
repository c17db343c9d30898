"""Replay a seed, or look for one that fails."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable

import pytest

from simulation.database import Database
from simulation.planted import PLANTS, SEEDS_MAX, find
from simulation.planted_servers import SERVERS_PLANTS
from simulation.running import empty_database, simulate
from simulation.simulation import Failed, Plan, Simulation


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--trace", action="store_true", help="print what happens")
    parser.add_argument(
        "--seeds",
        default="0:1000",
        metavar="FROM:TO",
        help="run these, as long as none fails; FROM:+COUNT is another way to say it",
    )
    parser.add_argument(
        "--planted",
        action="store_true",
        help="put each planted mistake into the code, and say which seed finds it",
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="of these, those whose names have this text"
    )
    parser.add_argument(
        "--servers", type=int, metavar="N", help="with so many servers, whatever the seed says; 1 to 3"
    )
    parser.add_argument("--go-on", action="store_true", help="do not stop at a seed that fails")
    options = parser.parse_args()
    if options.seed is not None:
        return _replay(options.seed, options.trace, _adjusted(options.servers))
    if options.planted:
        return _find_planted(options.only)
    first, last = _range(options.seeds)
    began_at, failed = time.monotonic(), 0
    with empty_database() as database:
        for seed in range(first, last):
            try:
                simulate(seed, database, adjust=_adjusted(options.servers))
            except Failed as error:
                print(error, flush=True)
                failed += 1
                if not options.go_on:
                    return 1
    seconds = time.monotonic() - began_at
    print(f"{last - first} seeds in {seconds:.1f} s, {failed} failed")
    return 1 if failed else 0


def _find_planted(text: str) -> int:
    """Each mistake alone, from seed 0 on."""
    missed = 0
    plants = [planted for planted in (*PLANTS, *SERVERS_PLANTS) if text in planted.name]
    with empty_database() as database:
        # A seed that fails anyway finds nothing.
        seeds = [seed for seed in range(SEEDS_MAX) if not _fails(seed, database)]
        if len(seeds) < SEEDS_MAX:
            print(f"{SEEDS_MAX - len(seeds)} seeds fail without any of these mistakes and do not count")
        for planted in plants:
            began_at = time.monotonic()
            with pytest.MonkeyPatch.context() as patch:
                planted.plant(patch)
                found = find(planted, database, seeds)
            seconds = time.monotonic() - began_at
            if found is None:
                missed += 1
                print(f"{planted.name}: NOT FOUND by {SEEDS_MAX} seeds ({seconds:.1f} s)", flush=True)
            else:
                seed, failed = found
                says = str(failed).splitlines()[0]
                print(f"{planted.name}: seed {seed} ({seconds:.1f} s)\n    {says:.200}", flush=True)
    print(f"{len(plants) - missed} of {len(plants)} planted mistakes were found")
    return 1 if missed else 0


def _fails(seed: int, database: Database) -> bool:
    try:
        simulate(seed, database)
    except Failed:
        return True
    return False


def _range(text: str) -> tuple[int, int]:
    first, last = text.split(":")
    return int(first), int(first) + int(last) if last.startswith("+") else int(last)


def _adjusted(servers: int | None) -> Callable[[Plan], None]:
    def adjust(plan: Plan) -> None:
        plan.servers = servers or plan.servers

    return adjust


def _replay(seed: int, traces: bool, adjust: Callable[[Plan], None]) -> int:
    with empty_database() as database:
        simulation = Simulation(seed, database, traces=traces, adjust=adjust)
        try:
            simulation.run()
        except Failed as error:
            print("\n".join(simulation.lines()))
            traceback.print_exception(error.__cause__)
            print(error)
            return 1
        print("\n".join(simulation.lines()))
        if traces:
            print(f"course of things: {simulation.fingerprint}")
        print(f"seed {seed} is fine: {simulation.loop.time() - 1000:.0f} s of the simulation")
        return 0


sys.exit(main())
