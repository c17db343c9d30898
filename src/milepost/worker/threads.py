"""The threads in which `def` tasks run: as many as are needed at once, and no more switching than needed.

A thread that has ended its run takes the next one by itself. Whenever runs are left in line, exactly one further thread is on its
way to them. So short runs are worked off by one thread without a switch between them, while a run that blocks never keeps the
others waiting.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable

Work = Callable[[], None]


class ThreadPool:
    """Runs callables in threads that are reused; a thread is made only when none is idle.

    Args:
        threads_min: this many are made now and stay, so that work goes on even when the system gives no more threads.
        threads_max: no more threads than this; further work stands in line.
        idle_seconds: a thread with nothing to do for this long ends.
    Raises: RuntimeError when the system does not give `threads_min` threads.
    """

    def __init__(
        self,
        *,
        threads_min: int = 0,
        threads_max: int = 10_000,
        idle_seconds: float = 60.0,
        name: str = "milepost-run",
    ) -> None:
        self._threads_min = threads_min
        self._threads_max = threads_max
        self._idle_seconds = idle_seconds
        self._name = name
        self._lock = threading.Lock()
        self._line: deque[Work] = deque()
        # Idle threads, the most recently busy one last: its memory is warm, and the others may age and end.
        self._idle: list[threading.Lock] = []
        self._on_the_way = False
        self._thread_count = 0
        self._started = 0
        for _ in range(threads_min):
            self._start_thread()

    def submit(self, work: Iterable[Work]) -> None:
        """Put callables in line, in order. Thread-safe, returns at once. A callable must not raise."""
        with self._lock:
            self._line.extend(work)
            self._send_one()

    def _send_one(self) -> None:
        """Send one thread to the line, unless one is on its way. The lock is held."""
        if self._on_the_way or not self._line:
            return
        if self._idle:
            self._on_the_way = True
            self._idle.pop().release()
        elif self._thread_count < self._threads_max:
            try:
                self._start_thread()
            except RuntimeError:
                # The system gives no more threads. Those that there are will come to the line by themselves.
                if self._thread_count == 0:
                    raise
            else:
                self._on_the_way = True

    def _start_thread(self) -> None:
        self._started += 1
        # A daemon: a run that never ends must not keep the process from ending.
        threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        self._thread_count += 1

    def _work(self) -> None:
        bell = threading.Lock()
        bell.acquire()
        arriving = True
        is_idle = False
        try:
            while True:
                with self._lock:
                    if arriving:
                        self._on_the_way = arriving = False
                    work = self._line.popleft() if self._line else None
                    if work is None:
                        is_idle = True
                        self._idle.append(bell)
                    else:
                        self._send_one()
                if work is not None:
                    work()
                    # The last run's objects must not live on while this thread is idle.
                    del work
                    continue
                if not bell.acquire(timeout=self._idle_seconds):
                    with self._lock:
                        if bell in self._idle and self._thread_count > self._threads_min:
                            return
                    # It stays, or was called in the same moment.
                    bell.acquire()
                is_idle = False
                arriving = True
        except BaseException:
            # User code has sent an error into this thread (`PyThreadState_SetAsyncExc`, as some timeouts do), and it came when the run
            # had ended. Nobody wants it any more, and the others need the line to go on.
            pass
        finally:
            with self._lock:
                if bell in self._idle:
                    self._idle.remove(bell)
                elif is_idle or arriving:
                    self._on_the_way = False
                self._thread_count -= 1
                self._send_one()
