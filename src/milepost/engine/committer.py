"""The committer: one thread, one queue, group commit without timers.

It takes everything that waits, hands it to the engine as one group, and answers after the commit. While it commits, the next group
gathers; there is no artificial delay, and no answer before its commit.

A small command that is alone is carried out in the thread of its event loop, to which the engine is lent meanwhile: two changes of
threads take longer than all that is decided for it. Where the disk is slow the loop is not held up, and everything goes to the thread.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from milepost.engine.announcements import Announcement
from milepost.engine.commands import Command, Report, Trigger
from milepost.engine.engine import Answer, Engine, Request
from milepost.engine.measures import CommitterMeasures
from milepost.errors import UnavailableError

logger = logging.getLogger("milepost.engine")

GROUP_MAX = 1000
# The engine is lent only while the last group took no longer: the event loop answers nobody meanwhile.
LENT_SECONDS_MAX = 0.002
LENT_RUNS_MAX = 16
LENT_CHARACTERS_MAX = 16 * 1024


class Committer:
    """Carries commands from event loops to the engine's thread and results back.

    Args:
        steady: the engine's steady clock, microseconds.
        announce: called in the committer's thread after each commit that changed something, before its commands are answered, so
            that whoever was answered finds the feed informed.
    """

    def __init__(
        self, engine: Engine, steady: Callable[[], int], announce: Callable[[Announcement], None]
    ) -> None:
        self._engine = engine
        self._steady = steady
        self._announce = announce
        # Commands that were ever submitted, by which one sees whether others have work for it.
        self.submitted = 0
        self.measures = CommitterMeasures()
        self._waiting: deque[Request] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        # Others may have committed something; and the newest of all commits that was told of, this server's own among them.
        self._has_news = False
        self._newest_told = 0
        # True while the thread has nothing to do.
        self._rests = False
        # Until when it rests, on the steady clock; None: until it is woken.
        self._wakes_at: int | None = None
        # True while an event loop has the engine, and while the thread waits until it is back.
        self._is_lent = self._is_awaited = False
        self._last_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="milepost-committer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def submit(self, command: Command) -> Any:
        """The command's result, once it is committed; raises what refused it. Safe from any event loop.

        Giving up waiting does not take the command back.
        """
        began = perf_counter()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._wake:
            self._put([Request(command, _Answer(loop, future))])
            if self._may_lend(command):
                loop.call_soon(self._carry_out_here)
            else:
                self._wake.notify()
        result = await future
        if type(command) is Report:
            self.measures.report_seconds.observe(perf_counter() - began)
        if isinstance(result, BaseException):
            raise result
        return result

    async def submit_all(self, commands: Sequence[Command]) -> list[Any]:
        """What each of several commands comes to, its result or what refused it, once all are decided. They have nothing to do with
        each other, but most likely share a commit. As `submit` otherwise."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in commands]
        with self._wake:
            self._put(
                [
                    Request(command, _Answer(loop, future))
                    for command, future in zip(commands, futures, strict=True)
                ]
            )
            self._wake.notify()
        return [await future for future in futures]

    def _put(self, requests: Sequence[Request]) -> None:
        if self._stopping:
            raise UnavailableError("the server is about to stop: nothing is stored any more; try again")
        self.submitted += len(requests)
        self._waiting.extend(requests)

    def _may_lend(self, command: Command) -> bool:
        """Whether the engine may be lent to an event loop for this command, which is in line."""
        return (
            self._rests
            and len(self._waiting) == 1
            and self._last_seconds <= LENT_SECONDS_MAX
            and self._engine.is_alone
            and _is_small(command)
        )

    def _carry_out_here(self) -> None:
        """Carry out the one command that waits in this thread, an event loop's."""
        with self._wake:
            if not self._rests or self._is_lent or len(self._waiting) != 1:
                # Others have come meanwhile, and the committer's thread takes them all.
                return
            group = self._take_group(1)
            self._is_lent = True
        try:
            self._carry_out(group)
        finally:
            with self._wake:
                self._is_lent = False
                if self._has_to_wake():
                    self._rests = False
                    self._wake.notify()

    def _has_to_wake(self) -> bool:
        """Whether the thread has something to do before it wakes by itself, now that the engine is back."""
        wake_at = self._engine.wake_at()
        return (
            self._is_awaited
            or bool(self._waiting)
            or self._stopping
            or self._is_behind()
            or self._engine.has_claims_to_release
            or (wake_at is not None and (self._wakes_at is None or wake_at < self._wakes_at))
        )

    def look(self, number: int | None = None) -> None:
        """Other servers may have committed something: hear of it soon. Any thread may call it, as often as it likes.

        Args:
            number: of the newest commit, where it was told along: nothing is done for one that is known, as this server's own are.
        """
        with self._wake:
            if number is None:
                self._has_news = True
            else:
                self._newest_told = max(self._newest_told, number)
            if self._is_behind():
                self._wake.notify()

    def _is_behind(self) -> bool:
        """Whether there may be commits that the engine has not heard of. While it works on a group, its own may seem to be one."""
        return self._has_news or self._newest_told > (self._engine.heard_number or 0)

    @property
    def is_at_rest(self) -> bool:
        """True when all that was submitted is carried out and on its way to whoever has asked, and nothing is due. Thread-safe."""
        with self._wake:
            return self._rests and not (self._waiting or self._is_lent or self._is_behind() or self._stopping)

    @property
    def next_due_at(self) -> int | None:
        """When something happens by itself: a run is due, or its time to live is over. None when nothing will. Thread-safe."""
        return self._engine.state.next_due_at

    @property
    def next_schedule_at(self) -> int | None:
        """When the next schedule fires; None when none will. Thread-safe."""
        return self._engine.state.next_schedule_at

    @property
    def parked_count(self) -> int:
        """How many claims wait for work. Thread-safe."""
        return len(self._engine.state.parked)

    def release_claims(self) -> None:
        """Answer parked claims, and park no more: the server is about to stop."""
        with self._wake:
            self._engine.state.accepts_parking = False
            self._wake.notify()

    def stop(self) -> None:
        """Carry out what waits, answer parked claims, end the thread. Returns when it has ended; may be called twice."""
        with self._wake:
            self._stopping = True
            self._engine.state.accepts_parking = False
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            group, has_news, stopping = self._gather()
            # A group hears of what is new by itself.
            if not has_news or group or stopping or self._catch_up():
                self._carry_out(group)
            if stopping:
                return

    def _catch_up(self) -> bool:
        """Hear of what others have committed; whether a group has to look at it too."""
        try:
            answers, announcements = self._engine.catch_up()
        except Exception as error:
            # The next group, or the next look, tries again; a thread that ended would answer nobody any more.
            if isinstance(error, UnavailableError):
                logger.debug("what other servers commit cannot be heard of now: %s", error)
            else:
                logger.exception("what other servers commit could not be heard of, and is tried again")
            return False
        self._tell(announcements)
        _deliver(answers)
        return self._engine.has_offers

    def _carry_out(self, group: Sequence[Request]) -> None:
        began = perf_counter()
        answers, announcements = self._engine.execute(group)
        if not self._engine.state.accepts_parking:
            released, told = self._engine.release_parked()
            answers, announcements = [*answers, *released], [*announcements, *told]
        self._last_seconds = perf_counter() - began
        self.measures.commit_seconds.observe(self._last_seconds)
        self.measures.commit_sizes.observe(len(group))
        self._tell(announcements)
        _deliver(answers)

    def _tell(self, announcements: Sequence[Announcement]) -> None:
        for announcement in announcements:
            if not announcement.is_empty:
                self._announce(announcement)

    def _gather(self) -> tuple[list[Request], bool, bool]:
        """The next group, whether others have committed something, and whether this is the end."""
        with self._wake:
            is_due = False
            while self._is_lent or not (self._waiting or self._stopping or self._is_behind() or is_due):
                if self._is_lent:
                    self._is_awaited = True
                    self._wake.wait()
                    self._is_awaited = False
                    continue
                if self._engine.has_claims_to_release:
                    break
                wake_at = self._engine.wake_at()
                seconds = None if wake_at is None else (wake_at - self._steady()) / 1_000_000
                is_due = seconds is not None and seconds <= 0
                if not is_due:
                    self._rests, self._wakes_at = True, wake_at
                    self._wake.wait(seconds)
                    self._rests = False
            group = self._take_group(GROUP_MAX)
            has_news, self._has_news, self._newest_told = self._is_behind() and not is_due, False, 0
            return group, has_news, self._stopping and not self._waiting

    def _take_group(self, size_max: int) -> list[Request]:
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), size_max))]


def _is_small(command: Command) -> bool:
    """Whether somebody waits for a command, and it most likely takes no longer than a commit. A claim comes before there is work.

    Large metadata may take a few times as long; the next command goes to the thread then.
    """
    if type(command) is Trigger:
        return len(command.item.payload or "") <= LENT_CHARACTERS_MAX
    return type(command) is Report and len(command.runs) <= LENT_RUNS_MAX


class _Answer:
    """Where a result goes: a future of an event loop."""

    __slots__ = ("future", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]") -> None:
        self.loop = loop
        self.future = future

    def __call__(self, result: Any) -> None:
        """Set the result; only in the loop's own thread."""
        if not self.future.done():
            self.future.set_result(result)


def _deliver(answers: list[tuple[Answer, Any]]) -> None:
    """Hand results to their loops, with one wake-up for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Answer, Any]]] = {}
    for answer, result in answers:
        assert isinstance(answer, _Answer)
        by_loop.setdefault(answer.loop, []).append((answer, result))
    for loop, own in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set_results, own)
        except RuntimeError:
            # The loop has closed: whoever asked has gone, and what they asked for is committed all the same.
            logger.debug("%d results had nobody to receive them", len(own))


def _set_results(answers: list[tuple[_Answer, Any]]) -> None:
    for answer, result in answers:
        answer(result)
