"""The threads in which `def` tasks run: as many as are needed at once, and no more switching than needed.

A thread that has ended its run takes the next one by itself. Whenever runs are left in line, exactly one further thread is on its
way to them. So short runs are worked off by one thread without a switch between them, while a run that blocks never keeps the
others waiting.

Nobody waits here for somebody else. A finalizer of the user's may run in the middle of what is done here, in any thread, and wait
for the server, while the link's thread, which talks to the server, wants to hand in the next runs. So whoever finds that somebody is
just sending a thread goes away, and that one looks once more afterwards. The sender is whoever has put a ticket into an empty dict:
a lock could not be given back when an exception comes between taking it and knowing that.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable

Work = Callable[[], None]
_SENDING = "sending"


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
        self._sending: dict[str, object] = {}
        self._line: deque[Work] = deque()
        # Idle threads, the most recently busy one last: its memory is warm, and the others may age and end.
        self._idle: list[threading.Lock] = []
        self._on_the_way = False
        # One bell for each thread.
        self._bells: set[threading.Lock] = set()
        self._started = 0
        for _ in range(threads_min):
            self._start_thread()

    def submit(self, work: Iterable[Work]) -> None:
        """Put callables in line, in order. Thread-safe, returns at once. A callable must not raise."""
        self._line.extend(work)
        self._summon()

    def _summon(self) -> None:
        """See to it that a thread is on its way to the line, if there is one."""
        sending = self._sending
        ticket = object()
        while self._line and not self._on_the_way:
            try:
                if sending.setdefault(_SENDING, ticket) is not ticket:
                    return
                is_sent = self._send_one()
            finally:
                if _SENDING in sending and sending[_SENDING] is ticket:
                    del sending[_SENDING]
            if not is_sent and not self._idle:
                # All are busy, and the first one to be free comes by itself.
                return

    def _send_one(self) -> bool:
        """Send one thread, unless one is on its way; False when there is none to send. One call at a time."""
        if self._on_the_way or not self._line:
            return True
        try:
            idle = self._idle.pop()
        except IndexError:
            if len(self._bells) >= self._threads_max:
                return False
            self._on_the_way = True
            try:
                self._start_thread()
            except RuntimeError:
                # The system gives no more threads. Those that there are will come to the line by themselves.
                self._on_the_way = False
                if not self._bells:
                    raise
                return False
            return True
        self._on_the_way = True
        idle.release()
        return True

    def _start_thread(self) -> None:
        self._started += 1
        bell = threading.Lock()
        bell.acquire()
        self._bells.add(bell)
        # A daemon: a run that never ends must not keep the process from ending.
        thread = threading.Thread(
            target=self._work, args=(bell,), name=f"{self._name}-{self._started}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self._bells.discard(bell)
            raise

    def _work(self, bell: threading.Lock) -> None:
        # Somebody has sent this thread to the line, or will do so by ringing its bell.
        is_sent = True
        try:
            while True:
                if is_sent:
                    is_sent = self._on_the_way = False
                work = self._next()
                if work is not None:
                    self._summon()
                    work()
                    # The last run's objects must not live on while this thread is idle.
                    del work
                    continue
                is_sent = True
                self._idle.append(bell)
                # What was put in line before that, by someone who found no idle thread.
                self._summon()
                while not bell.acquire(timeout=self._idle_seconds):
                    if self._leaves(bell):
                        return
        except BaseException:
            # User code has sent an error into this thread (`PyThreadState_SetAsyncExc`, as some timeouts do), and it came when the run
            # had ended. Nobody wants it any more, and the others need the line to go on.
            pass
        finally:
            while not self._has_left(bell, is_sent=is_sent):
                pass

    def _has_left(self, bell: threading.Lock, *, is_sent: bool) -> bool:
        """See to it that the others do not count on a thread that ends; False when another error came meanwhile. Safe to repeat."""
        try:
            try:
                self._idle.remove(bell)
                is_called = False
            except ValueError:
                is_called = is_sent
            # In this order: whoever sees that none is on its way may start another one.
            self._bells.discard(bell)
            if is_called:
                self._on_the_way = False
            self._summon()
        except BaseException:
            return False
        return True

    def _next(self) -> Work | None:
        try:
            return self._line.popleft()
        except IndexError:
            return None

    def _leaves(self, bell: threading.Lock) -> bool:
        """Whether an idle thread may end: one at a time, so that enough of them stay."""
        sending = self._sending
        ticket = object()
        try:
            if sending.setdefault(_SENDING, ticket) is not ticket or len(self._bells) <= self._threads_min:
                return False
            try:
                self._idle.remove(bell)
            except ValueError:
                # It is called in this moment.
                return False
            self._bells.discard(bell)
            return True
        finally:
            if _SENDING in sending and sending[_SENDING] is ticket:
                del sending[_SENDING]
            # Whoever wanted to send one meanwhile has gone away.
            self._summon()
