"""How much memory processes take over a session, and whether that is flat."""

import contextlib
from collections import defaultdict
from dataclasses import dataclass

import psutil
from verdict import Verdict

# What the second half may add: caches that fill up to their limits, and what an allocator keeps.
GROWTH_SHARE = 0.25
GROWTH_MEGABYTES = 30.0
# How much of the way a sample may be off its mark.
WINDOW = 0.1
# A process that is younger half-way has not loaded everything yet.
EARLIER_SAMPLES_MIN = 5


@dataclass(frozen=True)
class Sample:
    """How far the session was, from 0 to 1, and what the process held in memory of its own then."""

    progress: float
    megabytes: float


class Memory:
    """Takes samples and judges them: half-way against the end, for each process that was there at both times."""

    def __init__(self) -> None:
        self._samples: defaultdict[tuple[str, int], list[Sample]] = defaultdict(list)

    def sample(self, role: str, processes: list[psutil.Process], progress: float) -> None:
        """Note what these processes hold now."""
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                held = process.memory_info()
                # Without pages of files: SQLite looks at its file as if it were memory, and the kernel may take that back.
                own = held.rss - getattr(held, "shared", 0)
                self._samples[role, process.pid].append(Sample(progress, own / 1_000_000))

    def judge(self, verdict: Verdict) -> list[str]:
        """Say how each role has grown; what has grown too much is wrong. Lines to be printed."""
        lines: list[str] = []
        for (role, process_id), samples in sorted(self._samples.items()):
            half = [one.megabytes for one in samples if 0.5 - WINDOW <= one.progress <= 0.5 + WINDOW]
            end = [one.megabytes for one in samples if one.progress >= 1 - WINDOW]
            earlier = [one for one in samples if one.progress < 0.5 - WINDOW]
            if not half or not end or len(earlier) < EARLIER_SAMPLES_MIN:
                continue
            before, after = max(half), max(end)
            lines.append(f"{role} {process_id}: {before:.0f} MB half-way, {after:.0f} MB at the end")
            if after > before * (1 + GROWTH_SHARE) + GROWTH_MEGABYTES:
                verdict.add("memory", lines[-1])
        return lines
