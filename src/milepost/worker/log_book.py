"""The log lines of an executor's runs on their way to the server: bookkeeping without I/O, bounded in bytes.

Any thread adds lines, at any moment: also a finalizer, a signal handler or a logging handler that interrupts another call of the same
thread. So `add` never waits: a line is put in a queue, and whoever gets the lock sorts the queue into the logs, for all who come
meanwhile. Only the link's thread takes lines out.

    add -> queue -> the log's lines that wait -> one request under way -> stored

What is kept of a log is bounded. While lines cannot be sent, the newest ones wait and the oldest give way. Once a log has reached what
the server keeps of an attempt, it is closed: the newest lines wait for the attempt's end, because an end is what people look for.
Where lines are missing, a line says how many.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from milepost.protocol.runs import LogLine
from milepost.sdk.safe_text import carried, line_of

# What may wait of one log, and of all logs together; each log may always keep the least.
WAITING_BYTES_MAX = 1024 * 1024
ALL_WAITING_BYTES_MAX = 32 * 1024 * 1024
WAITING_BYTES_MIN = 4096
# How much of the end of a log is kept that is larger than the server allows.
END_BYTES_MAX = 64 * 1024
# Room for the lines that tell what is missing.
NOTICE_BYTES = 1024
# One request, and what a log may have of it when others wait too.
REQUEST_BYTES_MAX = 1024 * 1024
REQUEST_LINES_MAX = 10_000
SHARE_BYTES_MIN = 32 * 1024
LOGGER_CHARACTERS_MAX = 200
# Lines in the queue. It is worked off at once; this is for a thread that is held up while it has the lock.
QUEUE_LINES_MAX = 10_000
# Until the server has said otherwise.
LOG_BYTES_MAX = 4 * 1024 * 1024

LOGGER = "milepost.log"

_encode = msgspec.json.Encoder().encode
_OWN = f'"logger":"{LOGGER}"'.encode()


class AttemptLog:
    """The log of one attempt, as far as it has not been stored. It belongs to the `LogBook` that has opened it.

    Attributes:
        sequence: the number of the last part that was sent.
        waiting_bytes: of `lines`, as they travel.
        sent_bytes: of all lines that were sent.
        lines_left_out, bytes_left_out: what is missing in front of the first of `lines`, not told yet.
        is_closed: no more lines are sent before the end.
        has_ended: the attempt is over, so what waits may go.
        is_announced: the link knows that something waits.
        is_under_way: a part is being sent.
        returned: lines that were taken, and go with the next part all the same. Only the link's thread touches them.
        lines_refused, bytes_refused: what the server has not taken, not told yet. Only the link's thread touches them.
    """

    run_id: str
    attempt: int
    lines: deque[bytes]
    # As it is for most logs to their end; each has its own from when it changes.
    sequence: int = 0
    waiting_bytes: int = 0
    sent_bytes: int = 0
    lines_left_out: int = 0
    bytes_left_out: int = 0
    is_closed: bool = False
    has_ended: bool = False
    is_announced: bool = False
    is_under_way: bool = False
    returned: deque[bytes] | None = None
    lines_refused: int = 0
    bytes_refused: int = 0

    def __init__(self, run_id: str, attempt: int) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.lines = deque()


@dataclass(eq=False, slots=True)
class Part:
    """Lines of one log that are under way, each encoded."""

    log: AttemptLog
    sequence: int
    lines: list[bytes]

    def encode(self) -> bytes:
        """As the request carries it."""
        head = _encode({"id": self.log.run_id, "attempt": self.log.attempt, "sequence": self.sequence})
        return head[:-1] + b',"lines":[' + b",".join(self.lines) + b"]}"


class LogBook:
    """The logs of all attempts of an executor.

    Args:
        wake: called, on any thread, when there is something to send and there was nothing before.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._bytes_max = LOG_BYTES_MAX
        self._queue: deque[tuple[AttemptLog, bytes]] = deque()
        # Whoever has it sorts the queue and may touch the logs. Nobody ever waits for it.
        self._lock = threading.Lock()
        self._changed: dict[AttemptLog, None] = {}
        # Logs of attempts that are over and have something to send. Only the link's thread touches it.
        self._urgent: dict[AttemptLog, None] = {}
        self._waiting_bytes = 0
        self._under_way: list[Part] = []
        self._wants_wake = False
        # Less than `REQUEST_BYTES_MAX` once the server, or what stands before it, did not take a request.
        self._request_bytes_max = REQUEST_BYTES_MAX

    def limit(self, bytes_max: int) -> None:
        """The server keeps so many bytes of the log of an attempt."""
        self._bytes_max = bytes_max

    def open(self, run_id: str, attempt: int) -> AttemptLog:
        """A log for an attempt that begins."""
        return AttemptLog(run_id, attempt)

    # --- any thread ----------------------------------------------------------------------------------------

    def add(self, log: AttemptLog, level: str, message: str, logger: str) -> None:
        """Add a line. Never waits and never raises."""
        if len(self._queue) >= QUEUE_LINES_MAX:
            log.lines_left_out += 1
            log.bytes_left_out += len(message)
            return
        self._queue.append((log, _line(level, message, logger)))
        # Who comes while another one sorts leaves its line to that one, which looks again after it has given the lock back.
        while self._queue and self._lock.acquire(blocking=False):
            try:
                self._sort()
            finally:
                self._lock.release()
        if self._wants_wake:
            self._wants_wake = False
            self._wake()

    def _sort(self) -> None:
        """Give the lines in the queue to their logs."""
        while self._queue:
            log, line = self._queue.popleft()
            log.lines.append(line)
            log.waiting_bytes += len(line)
            self._waiting_bytes += len(line)
            self._make_room(log)
            if not log.is_announced:
                log.is_announced = True
                self._changed[log] = None
                self._wants_wake = True

    def _make_room(self, log: AttemptLog) -> None:
        """Let the oldest lines of a log give way, until what waits is within its bounds."""
        most = self._waiting_max(log)
        while log.lines and (
            log.waiting_bytes > most
            or (self._waiting_bytes > ALL_WAITING_BYTES_MAX and log.waiting_bytes > WAITING_BYTES_MIN)
        ):
            size = len(log.lines.popleft())
            log.waiting_bytes -= size
            self._waiting_bytes -= size
            log.lines_left_out += 1
            log.bytes_left_out += size

    def _waiting_max(self, log: AttemptLog) -> int:
        if log.is_closed:
            return self._end_bytes
        return min(WAITING_BYTES_MAX, max(0, self._bytes_max - NOTICE_BYTES - log.sent_bytes))

    @property
    def _end_bytes(self) -> int:
        """What is kept back of the room of a log for its end."""
        return min(END_BYTES_MAX, self._bytes_max // 4)

    # --- the link's thread -----------------------------------------------------------------------------------

    def end(self, log: AttemptLog) -> None:
        """The attempt is over: what waits of its log may go, and nothing will follow that anybody waits for."""
        log.has_ended = True
        if not self.is_clear(log):
            self._changed[log] = self._urgent[log] = None

    def is_clear(self, log: AttemptLog) -> bool:
        """True when nothing of this log waits or is under way. False also while nobody can tell."""
        if self._queue and not self._sorted():
            return False
        return not (log.is_under_way or log.lines or log.lines_left_out or log.returned or log.lines_refused)

    @property
    def has_urgent(self) -> bool:
        """True when the log of an attempt that is over waits."""
        return bool(self._urgent)

    @property
    def is_empty(self) -> bool:
        """True when nothing is under way and nothing can be sent now."""
        return not (self._changed or self._under_way or self._queue)

    def take(self) -> list[Part] | None:
        """What is to be sent next; given out again until it is `acknowledged`. None: ask again a moment later."""
        if self._under_way:
            return self._under_way
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._sort()
            share = max(SHARE_BYTES_MIN, self._request_bytes_max // max(1, len(self._changed)))
            room_bytes, room_lines = self._request_bytes_max, REQUEST_LINES_MAX
            for log in list(self._changed):
                if room_bytes <= 0 or room_lines <= 0:
                    break
                # The next request begins with those that have not had their turn.
                del self._changed[log]
                lines = self._take_lines(log, min(share, room_bytes), room_lines)
                if lines:
                    log.sequence += 1
                    log.is_under_way = True
                    self._under_way.append(Part(log, log.sequence, lines))
                    room_bytes -= sum(map(len, lines))
                    room_lines -= len(lines)
                if self._can_send(log):
                    self._changed[log] = None
                else:
                    self._urgent.pop(log, None)
                    log.is_announced = log.is_closed and not log.has_ended
        finally:
            self._lock.release()
        return self._under_way

    def _can_send(self, log: AttemptLog) -> bool:
        if log.returned or log.lines_refused:
            return True
        return bool(log.lines or log.lines_left_out) and (log.has_ended or not log.is_closed)

    def _take_lines(self, log: AttemptLog, bytes_max: int, lines_max: int) -> list[bytes]:
        """The next lines of a log: at least one when something may leave."""
        lines: list[bytes] = []
        size = 0
        if log.lines_refused:
            lines.append(self._tell_what_was_refused(log))
        while log.returned and len(lines) < lines_max and size < bytes_max:
            # They have been counted when they were taken first.
            lines.append(log.returned.popleft())
            size += len(lines[-1])
        if log.returned or (log.is_closed and not log.has_ended):
            return lines
        head_bytes = self._bytes_max - self._end_bytes - NOTICE_BYTES
        while len(lines) < lines_max:
            if log.lines_left_out:
                line = self._tell_what_is_missing(log)
            elif not log.lines:
                break
            else:
                line = log.lines[0]
                if lines and size + len(line) > bytes_max:
                    break
                if not log.has_ended and log.sent_bytes + len(line) > head_bytes:
                    log.is_closed = True
                    lines.append(self._tell_that_it_is_closed(log))
                    self._make_room(log)
                    break
                log.lines.popleft()
                log.waiting_bytes -= len(line)
                self._waiting_bytes -= len(line)
            lines.append(line)
            log.sent_bytes += len(line)
            size += len(line)
        return lines

    def _tell_what_is_missing(self, log: AttemptLog) -> bytes:
        count, size = log.lines_left_out, log.bytes_left_out
        log.lines_left_out = log.bytes_left_out = 0
        why = (
            f"the log of an attempt may have {self._bytes_max:,} bytes (MILEPOST_LOG_BYTES_MAX of the server)"
            if log.is_closed or self._bytes_max < WAITING_BYTES_MAX
            else "they could not be sent as fast as they came"
        )
        return _line("warning", f"{count:,} lines ({size:,} bytes) were left out here: {why}", LOGGER)

    def _tell_what_was_refused(self, log: AttemptLog) -> bytes:
        count, size = log.lines_refused, log.bytes_refused
        log.lines_refused = log.bytes_refused = 0
        message = f"{count:,} lines ({size:,} bytes) were left out here: the server does not take them"
        return _line("warning", message, LOGGER)

    def _tell_that_it_is_closed(self, log: AttemptLog) -> bytes:
        message = (
            f"this log has as many bytes as an attempt may log ({self._bytes_max:,}, MILEPOST_LOG_BYTES_MAX of the server); "
            f"of what follows only the last {self._end_bytes:,} bytes are kept, to be seen when the attempt has ended"
        )
        return _line("warning", message, LOGGER)

    def acknowledged(self, part: Part) -> None:
        """This part is stored, or nothing of it ever will be."""
        self._under_way.remove(part)
        part.log.is_under_way = False

    def divide(self, part: Part) -> bool:
        """Leave the first half of the lines in a part under way that the server does not take; the others go with the next parts.

        Returns: False when it had a single line, which is given up.
        """
        log = part.log
        middle = len(part.lines) // 2
        if middle:
            size = sum(map(len, part.lines))
            self._request_bytes_max = max(SHARE_BYTES_MIN, min(self._request_bytes_max, size // 2))
            log.returned = deque([*part.lines[middle:], *(log.returned or ())])
            del part.lines[middle:]
        else:
            [line] = part.lines
            if _OWN not in line:
                log.lines_refused += 1
                log.bytes_refused += len(line)
            self.acknowledged(part)
        if self._can_send(log):
            self._changed[log] = None
        return bool(middle)

    def _sorted(self) -> bool:
        """Sort the queue now; False when another thread is at it."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._sort()
        finally:
            self._lock.release()
        return True


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def body_of(parts: Sequence[Part]) -> bytes:
    """The request that carries these parts."""
    return b'{"runs":[' + b",".join(part.encode() for part in parts) + b"]}"


def _line(level: str, message: str, logger: str) -> bytes:
    """A line as it travels. Any text can be one: what JSON cannot carry is written with backslashes."""
    line = LogLine(
        at=now(), level=level, message=line_of(message), logger=carried(logger)[:LOGGER_CHARACTERS_MAX]
    )
    return _encode(line)
