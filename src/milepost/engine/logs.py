"""Deciding on the logs of runs: what is stored of them, at most once and within its bytes.

Log lines come in requests of their own and may come late: what an attempt has said before it ended, or was lost, is worth reading
whatever became of it. Each writer (a worker, or the server itself with what it refuses) has the same room in the log of an attempt.
"""

from collections.abc import Iterable

from milepost.engine.commands import AppendLog
from milepost.engine.state import EngineState
from milepost.engine.transaction import Transaction
from milepost.protocol.runs import LogLine
from milepost.protocol.work import AttemptLines, log_line_size
from milepost.store.records import LogMark, LogRow
from milepost.store.runs import RunRow

LOGGER = "milepost.log"
# Refusals quote what users wrote.
OWN_LINE_CHARACTERS_MAX = 2000


def append(command: AppendLog, transaction: Transaction, state: EngineState) -> None:
    """Store what the attempts of a worker have logged."""
    for part in command.runs:
        row = transaction.run(part.id)
        if row is not None and _may_write(part, row, command.worker_id):
            mark = transaction.log_mark(part.id, part.attempt, command.worker_id)
            if part.sequence > mark.sequence:
                mark.sequence = part.sequence
                _write(part.lines, mark, transaction, state)


def tell(
    run_id: str,
    attempt: int,
    level: str,
    messages: Iterable[str],
    transaction: Transaction,
    state: EngineState,
) -> None:
    """The server itself has something to say in the log of an attempt."""
    lines = [
        LogLine(at=transaction.now, level=level, message=_shortened(message), logger="milepost.metadata")
        for message in messages
    ]
    _write(lines, transaction.log_mark(run_id, attempt, ""), transaction, state)


def _write(lines: Iterable[LogLine], mark: LogMark, transaction: Transaction, state: EngineState) -> None:
    """Add lines to the log of an attempt, as far as its bytes go. Once a line was left out, so is everything after it."""
    count = size = 0
    for line in lines:
        line_size = log_line_size(line)
        if count or mark.lines_left_out or mark.size_bytes + line_size > state.settings.log_bytes_max:
            count += 1
            size += line_size
            continue
        mark.size_bytes += line_size
        transaction.logs.append(
            LogRow(mark.run_id, mark.attempt, line.at, line.level, line.logger, line.message)
        )
    notice = None
    if count:
        mark.lines_left_out += count
        mark.bytes_left_out += size
        message = (
            f"{mark.lines_left_out:,} lines of the log ({mark.bytes_left_out:,} bytes) were left out here: the server keeps "
            f"{state.settings.log_bytes_max:,} bytes of the log of an attempt (MILEPOST_LOG_BYTES_MAX)"
        )
        notice = LogRow(mark.run_id, mark.attempt, transaction.now, "warning", LOGGER, message)
    transaction.save_log_mark(mark, notice)


def _shortened(message: str) -> str:
    if len(message) <= OWN_LINE_CHARACTERS_MAX:
        return message
    return (
        f"{message[:OWN_LINE_CHARACTERS_MAX]}... ({len(message) - OWN_LINE_CHARACTERS_MAX:,} more characters)"
    )


def _may_write(part: AttemptLines, row: RunRow, worker_id: str) -> bool:
    """False for an attempt that has not begun, and for one whose number another worker has now."""
    if not 1 <= part.attempt <= row.attempt:
        return False
    return part.attempt < row.attempt or row.worker_id in (None, worker_id)
