"""Replay a seed, or look for one that fails."""

import argparse
import sys
import time
import traceback

import pytest

from milepost.store.database import Store
from simulation.planted import PLANTS, SEEDS_MAX, find
from simulation.running import empty_store, simulate
from simulation.simulation import Failed, Simulation


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
    parser.add_argument("--go-on", action="store_true", help="do not stop at a seed that fails")
    options = parser.parse_args()
    if options.seed is not None:
        return _replay(options.seed, options.trace)
    if options.planted:
        return _find_planted()
    first, last = _range(options.seeds)
    began_at, failed = time.monotonic(), 0
    with empty_store() as store:
        for seed in range(first, last):
            try:
                simulate(seed, store)
            except Failed as error:
                print(error, flush=True)
                failed += 1
                if not options.go_on:
                    return 1
    seconds = time.monotonic() - began_at
    print(f"{last - first} seeds in {seconds:.1f} s, {failed} failed")
    return 1 if failed else 0


def _find_planted() -> int:
    """Each mistake alone, from seed 0 on."""
    missed = 0
    with empty_store() as store:
        # A seed that fails anyway finds nothing.
        seeds = [seed for seed in range(SEEDS_MAX) if not _fails(seed, store)]
        if len(seeds) < SEEDS_MAX:
            print(f"{SEEDS_MAX - len(seeds)} seeds fail without any of these mistakes and do not count")
        for planted in PLANTS:
            began_at = time.monotonic()
            with pytest.MonkeyPatch.context() as patch:
                planted.plant(patch)
                found = find(planted, store, seeds)
            seconds = time.monotonic() - began_at
            if found is None:
                missed += 1
                print(f"{planted.name}: NOT FOUND by {SEEDS_MAX} seeds ({seconds:.1f} s)", flush=True)
            else:
                seed, failed = found
                says = str(failed).splitlines()[0]
                print(f"{planted.name}: seed {seed} ({seconds:.1f} s)\n    {says:.200}", flush=True)
    print(f"{len(PLANTS) - missed} of {len(PLANTS)} planted mistakes were found")
    return 1 if missed else 0


def _fails(seed: int, store: Store) -> bool:
    try:
        simulate(seed, store)
    except Failed:
        return True
    return False


def _range(text: str) -> tuple[int, int]:
    first, last = text.split(":")
    return int(first), int(first) + int(last) if last.startswith("+") else int(last)


def _replay(seed: int, traces: bool) -> int:
    with empty_store() as store:
        simulation = Simulation(seed, store, traces=traces)
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
