"""An event loop without sockets, threads and waiting: when nothing is ready, its clock jumps to the next timer.

All processes of the simulation run on it. What a process does carries the process in its context, so that one can be stopped as by
SIGSTOP while the others go on.
"""

import asyncio
from asyncio import Handle, TimerHandle
from collections.abc import Callable
from contextvars import Context, ContextVar
from heapq import heapify, heappush
from typing import Any

process_of_code: ContextVar[object] = ContextVar("simulated_process")

# So many steps at one moment mean that something spins.
STEPS_AT_A_MOMENT_MAX = 20_000
# A timer comes up to a nanosecond early, and who then asks for the rest of its time again would never see it pass.
STEPS_OF_A_NANOSECOND = 5_000


class Stuck(AssertionError):
    """Everything waits for something that will never come, or for too long."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Time is what this loop says it is, and passes only when all that could be done at a moment has been done.

    Args:
        read_seconds: how long what is handed to a thread takes, drawn anew each time. There are no threads: it is done here.

    Attributes:
        ends_at: when the clock would pass this time, `Stuck` is raised.
    """

    def __init__(self, read_seconds: Callable[[], float]) -> None:
        super().__init__()
        self._now = 1000.0
        self._steps = 0
        self._read_seconds = read_seconds
        self.ends_at = float("inf")
        # What the processes that are stopped would do next.
        self._stopped: dict[object, list[Handle]] = {}
        # What the base class asks for events.
        self._selector = self
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._now

    def stop_process(self, process: object) -> None:
        """SIGSTOP: nothing of this process goes on, and its timers ring when it is continued. The clock goes on."""
        if process in self._stopped:
            return
        stopped: list[Handle] = [handle for handle in self._scheduled if _is_of(handle, process)]
        self._stopped[process] = stopped
        for place, handle in enumerate(self._ready):
            if _is_of(handle, process):
                stopped.append(handle)
                # The loop has counted what it will run now.
                self._ready[place] = Handle(_do_nothing, (), self)
        self._scheduled = [handle for handle in self._scheduled if not _is_of(handle, process)]
        heapify(self._scheduled)

    def continue_process(self, process: object) -> None:
        """SIGCONT."""
        for handle in self._stopped.pop(process, ()):
            if isinstance(handle, TimerHandle):
                heappush(self._scheduled, handle)
            else:
                self._ready.append(handle)

    def is_stopped(self, process: object) -> bool:
        """True between SIGSTOP and SIGCONT."""
        return process in self._stopped

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> Handle:
        handle: Handle = super()._call_soon(callback, args, context)  # type: ignore[misc]
        if self._stopped:
            process = handle._context.get(process_of_code, None)  # type: ignore[attr-defined]
            if process in self._stopped:
                self._stopped[process].append(self._ready.pop())
        return handle

    def select(self, timeout: float | None) -> list[Any]:
        """Called by the base class once it has nothing more to do before `timeout` is over."""
        if timeout is None:
            raise Stuck("everything waits for something that will never come")
        if timeout > 0:
            self._steps = 0
            self._now = max(self._now, self._scheduled[0].when())
            if self._now > self.ends_at:
                raise Stuck(f"not done after {self._now - 1000:.0f} s")
        self._steps += 1
        if self._steps % STEPS_OF_A_NANOSECOND == 0:
            self._now += 1e-9
        if self._steps > STEPS_AT_A_MOMENT_MAX:
            raise Stuck(f"spinning at {self._now - 1000:.6f} s")
        return []

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """`asyncio.to_thread` comes here: the work is done a little later, and its result arrives later still."""
        future = self.create_future()

        def work() -> None:
            try:
                result, error = func(*args), None
            except Exception as raised:
                result, error = None, raised
            self.call_later(self._read_seconds(), settle, result, error)

        def settle(result: Any, error: Exception | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        self.call_later(self._read_seconds(), work)
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """Nobody is asleep who would have to be woken."""


def _do_nothing() -> None:
    pass


def _is_of(handle: Handle, process: object) -> bool:
    return handle._context.get(process_of_code, None) is process  # type: ignore[attr-defined]
