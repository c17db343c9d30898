"""What the runs of an executor wait for: runs and batches that have not ended. Bookkeeping without I/O.

Ends are announced by the inbox. An announcement may come before anyone waits for it, so the latest are remembered; and it may be
lost with a broken connection, so whoever has waited for long is asked after at the server, less and less often.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter")

REMEMBERED_MAX = 20_000
CHECK_SECONDS_MIN = 5.0
CHECK_SECONDS_MAX = 60.0


@dataclass(eq=False)
class _Target(Generic[Waiter]):
    """A run or batch that somebody waits for. Times are those of the event loop's clock."""

    check_at: float
    check_seconds: float = CHECK_SECONDS_MIN
    waiters: list[tuple[Waiter, Future[None]]] = field(default_factory=list[tuple[Waiter, Future[None]]])


class Waits(Generic[Waiter]):
    """Who waits for what."""

    def __init__(self) -> None:
        self._targets: dict[str, _Target[Waiter]] = {}
        # In order of arrival, so that the oldest is forgotten first.
        self._ended: dict[str, None] = {}

    def add(
        self, target_id: str, waiter: Waiter, future: Future[None], *, now: float, check_now: bool
    ) -> bool:
        """Someone waits from now on; True when the target is known to have ended already and nothing was added.

        Args:
            check_now: the announcement may have been missed: ask the server soon.
        """
        if target_id in self._ended:
            return True
        target = self._targets.get(target_id)
        if target is None:
            target = self._targets[target_id] = _Target(now if check_now else now + CHECK_SECONDS_MIN)
        target.waiters.append((waiter, future))
        return False

    def ended(self, target_id: str) -> list[tuple[Waiter, Future[None]]]:
        """The target has ended: those who waited for it. That is remembered for who comes, also a second time."""
        self._ended[target_id] = None
        if len(self._ended) > REMEMBERED_MAX:
            del self._ended[next(iter(self._ended))]
        target = self._targets.pop(target_id, None)
        return [] if target is None else target.waiters

    def cancel(self, target_id: str, future: Future[None]) -> bool:
        """This waiter has given up; False when it was not waiting any more."""
        target = self._targets.get(target_id)
        if target is None:
            return False
        left = [pair for pair in target.waiters if pair[1] is not future]
        gave_up = len(left) < len(target.waiters)
        target.waiters = left
        if not left:
            del self._targets[target_id]
        return gave_up

    def forget(self, waiter: Waiter) -> list[Future[None]]:
        """All that this waiter still waits for; it waits no more."""
        futures: list[Future[None]] = []
        for target_id, target in list(self._targets.items()):
            futures += [future for other, future in target.waiters if other is waiter]
            target.waiters = [pair for pair in target.waiters if pair[0] is not waiter]
            if not target.waiters:
                del self._targets[target_id]
        return futures

    def check_all(self) -> None:
        """Announcements may have been missed: every target is to be asked after now."""
        for target in self._targets.values():
            target.check_at = 0.0

    def to_check(self, now: float) -> list[str]:
        """The targets to ask the server about now; the next time is set, later and later."""
        due: list[str] = []
        for target_id, target in self._targets.items():
            if target.check_at <= now:
                due.append(target_id)
                target.check_at = now + target.check_seconds
                target.check_seconds = min(target.check_seconds * 2, CHECK_SECONDS_MAX)
        return due

    def next_check_at(self) -> float | None:
        """When somebody is to be asked after next; None when nobody waits."""
        return min((target.check_at for target in self._targets.values()), default=None)
