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
        threads_max: no more threads than this; further work stands in line.
        idle_seconds: a thread with nothing to do for this long ends.
    """

    def __init__(
        self, *, threads_max: int = 10_000, idle_seconds: float = 60.0, name: str = "milepost-run"
    ) -> None:
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
            self._started += 1
            # A daemon: a run that never ends must not keep the process from ending.
            thread = threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The system gives no more threads. Those that there are will come to the line by themselves.
                if self._thread_count == 0:
                    raise
            else:
                self._on_the_way = True
                self._thread_count += 1

    def _work(self) -> None:
        bell = threading.Lock()
        bell.acquire()
        arriving = True
        while True:
            with self._lock:
                if arriving:
                    self._on_the_way = False
                work = self._line.popleft() if self._line else None
                if work is None:
                    self._idle.append(bell)
                else:
                    self._send_one()
            if work is not None:
                arriving = False
                work()
                # The last run's objects must not live on while this thread is idle.
                del work
            elif bell.acquire(timeout=self._idle_seconds):
                arriving = True
            else:
                with self._lock:
                    if bell in self._idle:
                        self._idle.remove(bell)
                        self._thread_count -= 1
                        return
                # It was called in the same moment: the bell has been rung.
                bell.acquire()
                arriving = True
