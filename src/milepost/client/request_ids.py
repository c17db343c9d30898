"""Ids by which the server knows a repeat of a request.

An id that comes twice is a request that is lost. Each has three parts: what is random for this process; the time, because a process
may be set going twice from one picture of its memory; and a number that counts in it. It is not all random: asking the system for that
makes threads take turns, and ids that follow one another lie together in the server's table.
"""

from __future__ import annotations

import os
import time
from itertools import count


class _Process:
    """The ids of one process."""

    def __init__(self) -> None:
        self.process_id = os.getpid()
        self.prefix = os.urandom(12).hex()
        self.numbers = count(1)


_process = _Process()


def new_request_id() -> str:
    """An id that no other request has: 43 to 58 ASCII characters."""
    global _process
    process = _process
    if process.process_id != os.getpid():
        process = _process = _Process()
    return f"{process.prefix}-{time.time_ns():x}-{next(process.numbers):x}"
