"""Who may run user code now: the slots of one executor, as plain bookkeeping without threads or I/O.

A run holds a slot from its start to its end, except while it waits for something outside. A run that comes back from a wait goes
before runs that were claimed but have not started: it is further on, and others may be waiting for it.

A run that is apart (it is suspected of having killed a process) runs user code alone: it gets a slot when no other is held, and none
is given away meanwhile, until it is let join the others. It goes before all others, or there would always be somebody.
"""

from collections import deque
from typing import Generic, TypeVar

Claimed = TypeVar("Claimed")
Resumed = TypeVar("Resumed")


class Slots(Generic[Claimed, Resumed]):
    """Slots of one executor. `held` never exceeds `concurrency`, except through `seize`.

    Args:
        concurrency: how many runs may run user code at once, at least 1.
    """

    def __init__(self, concurrency: int) -> None:
        assert concurrency >= 1, concurrency
        self.concurrency = concurrency
        self.held = 0
        self._resumed: deque[Resumed] = deque()
        self._claimed: deque[Claimed] = deque()
        # The same for runs that are apart, and how many of them hold a slot: more than one only through `seize`.
        self._resumed_apart: deque[Resumed] = deque()
        self._claimed_apart: deque[Claimed] = deque()
        self._held_apart = 0

    @property
    def _is_kept_free(self) -> bool:
        """True when no other slot is given away: a run is alone, or wants to be."""
        return bool(self._held_apart or self._claimed_apart or self._resumed_apart)

    def room(self, ahead: int) -> int:
        """How many more runs to claim, with `ahead` runs to stand in line beyond the slots.

        Where all slots are taken it is 0 until half of the line is used up, so that claims are few and large.
        """
        if self._is_kept_free:
            return 0
        in_line = len(self._resumed) + len(self._claimed)
        room = self.concurrency + ahead - self.held - in_line
        if self.held + in_line >= self.concurrency and room * 2 < ahead:
            return 0
        return max(0, room)

    def enter(self, claimed: Claimed, *, apart: bool = False) -> None:
        """Put a claimed run in line."""
        (self._claimed_apart if apart else self._claimed).append(claimed)

    def enter_again(self, resumed: Resumed, *, apart: bool = False) -> None:
        """Put a run whose wait has ended in line, before every claimed one."""
        (self._resumed_apart if apart else self._resumed).append(resumed)

    def leave(self, *, apart: bool = False) -> None:
        """Give a slot back: a run has ended or waits from now on."""
        assert self.held > 0, "a slot was given back twice"
        self.held -= 1
        self._held_apart -= apart

    def let_join(self) -> None:
        """A run that holds its slot apart holds it like any other from now on."""
        assert self._held_apart > 0, "none is apart"
        self._held_apart -= 1

    def seize(self, *, apart: bool = False) -> None:
        """Take a slot even if none is free: the user's code runs on already (its wait was cancelled) and cannot be held up."""
        self.held += 1
        self._held_apart += apart

    def take_resumed(self) -> Resumed | None:
        """The next run that comes back from a wait, with a slot; None if there is none or no slot is free."""
        if self._resumed_apart:
            if self.held:
                return None
            self.seize(apart=True)
            return self._resumed_apart.popleft()
        if self._resumed and self.held < self.concurrency and not self._is_kept_free:
            self.held += 1
            return self._resumed.popleft()
        return None

    @property
    def first_in_line(self) -> Claimed | None:
        """The claimed run that will start next, of those that need not be alone; None when none waits for a slot."""
        return self._claimed[0] if self._claimed else None

    @property
    def has_claimed(self) -> bool:
        """True when a claimed run waits for a slot."""
        return bool(self._claimed or self._claimed_apart)

    @property
    def is_unused(self) -> bool:
        """True when no slot is held and nobody stands in line."""
        return not (self.held or self._resumed or self._claimed or self._resumed_apart or self._claimed_apart)

    @property
    def has_free(self) -> bool:
        """True when a claimed run could start at once."""
        return (
            self.held + len(self._resumed) + len(self._claimed) < self.concurrency and not self._is_kept_free
        )

    def withdraw(self) -> list[Claimed]:
        """Take every claimed run out of the line; none of them starts."""
        withdrawn = [*self._claimed_apart, *self._claimed]
        self._claimed_apart.clear()
        self._claimed.clear()
        return withdrawn

    def take_claimed(self) -> list[Claimed]:
        """The claimed runs that may start now, each with a slot. Runs that come back from a wait must have been taken first."""
        if self._claimed_apart and not self.held and not self._resumed_apart:
            self.seize(apart=True)
            return [self._claimed_apart.popleft()]
        count = min(self.concurrency - self.held, len(self._claimed))
        if count <= 0 or self._resumed or self._is_kept_free:
            return []
        self.held += count
        return [self._claimed.popleft() for _ in range(count)]
