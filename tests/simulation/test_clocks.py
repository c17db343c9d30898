"""A server that starts again with another wall clock loses no run, hastens none and starts none twice."""

from simulation.running import empty_store, simulate
from simulation.simulation import Plan

SEEDS = 100


def with_another_clock(plan: Plan) -> None:
    """An hour or forty days ahead, an hour or a year back."""
    plan.troubles += ["restart_with_another_clock"] * 2


def test_a_server_may_start_with_another_clock() -> None:
    with empty_store() as store:
        for seed in range(SEEDS):
            simulate(seed, store, adjust=with_another_clock)
