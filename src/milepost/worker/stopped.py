"""Whether a process executes at all: one that was stopped by a signal, or is over, does not."""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

# Stopped by a signal, stopped by a debugger, over and not yet collected, over.
_STOPPED = frozenset("TtZX")


async def is_stopped(process_id: int) -> bool:
    """True for a process that is stopped or gone, also where that cannot be found out."""
    state = _state_on_linux(process_id) if sys.platform == "linux" else await _state(process_id)
    return not state or state[0] in _STOPPED


def _state_on_linux(process_id: int) -> str:
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The name of the program stands in parentheses and may hold anything.
    return text.rpartition(")")[2].strip()


async def _state(process_id: int) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            "ps", "-o", "state=", "-p", str(process_id), stdout=PIPE, stderr=DEVNULL
        )
    except OSError:
        return ""
    output, _ = await process.communicate()
    return output.decode(errors="replace").strip()
