"""A task to try the deployment with; put your own beside it."""

import time

from milepost import metadata, task


@task
def count(steps: int) -> int:
    """Count slowly, and say how far it is."""
    for step in range(steps):
        metadata.set("step", step + 1)
        time.sleep(1)
    return steps
