"""The black box of an executor: which runs' code has begun in it, in memory that outlives the process.

The executor writes and its supervisor reads. When the executor has died without a word, this tells the server which attempts had
begun, and which of them executed code in that moment. It also shows when the server has last answered the executor, so that the
supervisor can keep the lease of one whose user code lets no other thread run.

It is a file without a name that both have mapped: user code may close descriptors and fork as it likes. It grows with the runs that
are under way at once, 64 bytes for each; what does not fit is not noted.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from milepost.protocol.work import BegunRun

RUNS_MAX = 65_536
_HEADER_BYTES = 64
_RECORD_BYTES = 64
_SIZE = _HEADER_BYTES + RUNS_MAX * _RECORD_BYTES
# The lease in seconds, when the server has last answered, and how many records were ever in use at once.
_TIMES = struct.Struct("@dd")
_USED = struct.Struct("@I")
_USED_OFFSET = _TIMES.size
# When the process is to be killed, on the clock of leases; 0 for never.
_END = struct.Struct("@d")
_END_OFFSET = 24
# Behind the byte that says what the record is.
_RECORD = struct.Struct("=Q55s")
_ID_BYTES_MAX = 55
_FREE, _EXECUTING, _WAITING = 0, 1, 2

NOT_NOTED = 0
"""What `begin` returns where nothing was noted."""


class BlackBox:
    """One executor's black box. `begin`, `wait`, `go_on`, `end` and `answered` are the executor's, on one thread; the rest is the
    supervisor's.

    Args:
        memory: where it is kept; memory of this process when left out, which nobody else reads.
    """

    def __init__(self, memory: mmap.mmap | None = None) -> None:
        self._memory = memory if memory is not None else mmap.mmap(-1, _SIZE)
        self._free: list[int] = []
        self._used = 0

    # --- the supervisor's -----------------------------------------------------------------------------------

    @classmethod
    def make(cls) -> tuple[Self, int]:
        """A new one, and the descriptor by which an executor opens it. The caller closes the descriptor.

        Raises: OSError.
        """
        descriptor = _file_without_name()
        try:
            os.ftruncate(descriptor, _SIZE)
            return cls(mmap.mmap(descriptor, _SIZE)), descriptor
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def lease_seconds(self) -> float:
        """How long the executor may be silent; 0 when it has not registered."""
        return _TIMES.unpack_from(self._memory)[0]

    @property
    def answered_at(self) -> float:
        """When the latest of the executor's requests that were answered was sent, on the clock of leases."""
        return _TIMES.unpack_from(self._memory)[1]

    @property
    def end_at(self) -> float:
        """When an executor that has one run at a time is to be killed if that has not ended, on the clock of leases; 0 for never."""
        return _END.unpack_from(self._memory, _END_OFFSET)[0]

    def begun(self) -> list[BegunRun]:
        """The attempts whose code has begun and whose end the server has not been told."""
        # Only here: a supervisor whose executors are well needs nothing of the protocol.
        from milepost.protocol.work import BegunRun

        runs: list[BegunRun] = []
        [used] = _USED.unpack_from(self._memory, _USED_OFFSET)
        for index in range(min(used, RUNS_MAX)):
            offset = _HEADER_BYTES + index * _RECORD_BYTES
            state = self._memory[offset]
            if state != _FREE:
                attempt, run_id = _RECORD.unpack_from(self._memory, offset + 1)
                text = run_id.rstrip(b"\0").decode("utf-8", "replace")
                runs.append(BegunRun(id=text, attempt=attempt, waiting=state == _WAITING))
        return runs

    def close(self) -> None:
        """Let go of the memory; nothing else may be called any more."""
        self._memory.close()

    # --- the executor's -------------------------------------------------------------------------------------

    @classmethod
    def open(cls, descriptor: int) -> Self:
        """The one that the supervisor has made. Closes the descriptor. Raises: OSError."""
        try:
            return cls(mmap.mmap(descriptor, _SIZE))
        finally:
            os.close(descriptor)

    def begin(self, run_id: str, attempt: int) -> int:
        """The code of an attempt begins now; what the other methods call its record."""
        name = run_id.encode()
        if len(name) > _ID_BYTES_MAX:
            return NOT_NOTED
        memory = self._memory
        if self._free:
            offset = self._free.pop()
        elif self._used < RUNS_MAX:
            offset = _HEADER_BYTES + self._used * _RECORD_BYTES
            self._used += 1
            _USED.pack_into(memory, _USED_OFFSET, self._used)
        else:
            return NOT_NOTED
        # The state comes last: the process may end in between.
        _RECORD.pack_into(memory, offset + 1, attempt, name)
        memory[offset] = _EXECUTING
        return offset

    def wait(self, record: int) -> None:
        """The attempt executes nothing from now on: it waits, or its code has ended."""
        if record:
            self._memory[record] = _WAITING

    def go_on(self, record: int) -> None:
        """The attempt executes code again."""
        if record:
            self._memory[record] = _EXECUTING

    def end(self, record: int) -> None:
        """Nothing of the attempt is left here."""
        if record:
            self._memory[record] = _FREE
            self._free.append(record)

    def answered(self, lease_seconds: float, answered_at: float) -> None:
        """The server has answered a request that was sent then."""
        _TIMES.pack_into(self._memory, 0, lease_seconds, answered_at)

    def end_by(self, end_at: float) -> None:
        """The process is to be killed then, unless it says otherwise before; 0 for never."""
        _END.pack_into(self._memory, _END_OFFSET, end_at)

    def after_fork(self) -> None:
        """This is a forked child, which has nothing to say here: what it writes goes nowhere."""
        self._memory = mmap.mmap(-1, _SIZE)


def _file_without_name() -> int:
    if sys.platform == "linux":
        return os.memfd_create("milepost-black-box")
    import tempfile

    descriptor, path = tempfile.mkstemp(prefix="milepost-black-box-")
    Path(path).unlink()
    return descriptor
