"""Standard output and standard error of an executor: user code may print, whatever has become of who reads it.

A terminal that is closed, or a pipe whose reader has seen enough (`milepost worker tasks.py | head`), is no error of a run.
"""

import io
import os
import select
import sys
from typing import cast


def keep_output_going() -> None:
    """From now on `print` shows each line as it comes, and raises nothing when nobody can read it."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        encoding = before.encoding if isinstance(before, io.TextIOWrapper) else "utf-8"
        stream = io.TextIOWrapper(
            io.BufferedWriter(cast("io.RawIOBase", _Output(descriptor))),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class _Output(io.RawIOBase):
    """A descriptor that takes everything."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.name = f"<fd {descriptor}>"
        self.mode = "wb"

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether somebody watches."""
        return os.isatty(self._descriptor)

    def write(self, data: "bytes | bytearray | memoryview", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write all of it; what nobody can read is forgotten."""
        left = memoryview(data)
        size = len(left)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                # Whoever shares it with this process has made it so.
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                self._forget()
                break
            except OSError:
                break
        return size

    def _forget(self) -> None:
        """Nobody reads any more: programs that user code starts need not find that out, by a signal that kills them."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._descriptor)
        os.close(nothing)
