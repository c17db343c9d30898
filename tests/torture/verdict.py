"""What was found wrong, by kind."""

import itertools
from collections import Counter

KINDS = ("lost", "doubled", "reordered", "backwards", "unfinished", "broken")
# The same of runs and their attempts.
RUN_KINDS = (
    "lost runs",
    "doubled runs",
    "wrong output",
    "executed twice",
    "charged without cause",
    "orphan",
    "stuck",
    "beyond the limit",
    "leaked slot",
    "miscounted",
)
# The same of the chunks of streams.
STREAM_KINDS = ("chunks lost", "chunks doubled", "chunks reordered", "gaps")
# What only the stress looks at.
STRESS_KINDS = (
    "wrong status",
    "not cancelled",
    "key twice",
    "child twice",
    "too early",
    "left behind",
    "memory",
)
# Of each kind.
EXAMPLES_MAX = 6


class Verdict:
    """Counts what is wrong and keeps the first examples.

    Kinds: `lost` (acknowledged and not there), `doubled` (there twice, or never sent), `reordered` (one writer's operations out of
    order), `backwards` (a reader saw an older state than before, or did not end on the final document), `unfinished` (did not
    come to its end in time), `broken` (a process ended by itself, or its log has a traceback).

    Kinds of runs: `lost runs` (acknowledged and not there), `doubled runs` (there and never acknowledged), `wrong output` (not what
    its last execution has returned), `executed twice` (one attempt), `charged without cause` (nothing was raised, killed or stopped),
    `orphan` (triggered by an attempt that was over), `stuck` (has not ended), `beyond the limit` (too many of a queue executed at
    once), `leaked slot` (a worker or a queue has less room than it should), `miscounted` (there are more or fewer runs of a status
    than are counted).

    Kinds of the stress: `wrong status` (a run may not end like this), `not cancelled` (a run that was to end went on, or a child of
    one), `key twice` (an idempotency key gave two runs), `child twice` (a parent that was tried again did a child again), `too
    early` (a delay, a time to live or a wait was cut short), `left behind` (a row that nobody needs any more), `memory` (it grew).

    Kinds of streams: `chunks lost`, `chunks doubled` and `chunks reordered`, stored or read; `gaps` (in the indexes of a stream).
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []
        self._examples_by_kind: Counter[str] = Counter()
        self._seen: set[str] = set()

    @property
    def is_good(self) -> bool:
        """True when nothing is wrong."""
        return not self.counts.total()

    def add(self, kind: str, what: str, count: int = 1) -> None:
        """Something is wrong, `count` times over. The same words count once: a fault may show in many states of a document."""
        assert kind in KINDS + RUN_KINDS + STREAM_KINDS + STRESS_KINDS, kind
        assert count > 0, what
        if what in self._seen:
            return
        self._seen.add(what)
        self.counts[kind] += count
        self._examples_by_kind[kind] += 1
        if self._examples_by_kind[kind] <= EXAMPLES_MAX:
            self.examples.append(f"{kind}: {what}" + (f" ({count} times)" if count > 1 else ""))

    def compare(self, what: str, value: object, *, acknowledged: int, attempted: int) -> None:
        """A sum has to lie between what was acknowledged and what was attempted."""
        number = value if isinstance(value, int) else 0
        if number < acknowledged:
            self.add("lost", f"{what} is {number}, acknowledged were {acknowledged}", acknowledged - number)
        if number > attempted:
            self.add("doubled", f"{what} is {number}, attempted were {attempted}", number - attempted)

    def check_order(self, what: str, numbers: list[int]) -> None:
        """Numbers of one writer must grow."""
        for earlier, later in itertools.pairwise(numbers):
            if later == earlier:
                self.add("doubled", f"{what}: {later} stands twice in a row")
            elif later < earlier:
                self.add("reordered", f"{what}: {later} comes after {earlier}")

    def check_sequence(self, what: str, numbers: list[int], *, acknowledged: int, attempted: int) -> None:
        """Everything that one writer appended in all: 0, 1, 2 and so on, each once."""
        times = Counter(numbers)
        for number, count in times.items():
            if count > 1:
                self.add("doubled", f"{what}: {number}", count - 1)
            if not 0 <= number < attempted:
                self.add("doubled", f"{what}: {number} was never sent")
        missing = [number for number in range(acknowledged) if number not in times]
        if missing:
            self.add("lost", f"{what}: {missing[:5]} and so on", len(missing))
