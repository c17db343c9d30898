"""The log of a run, and of a whole tree of runs."""

from collections.abc import Iterator

import msgspec
from sqlalchemy import Connection

from milepost.protocol.runs import RunLog, ToldLogLine
from milepost.store import records
from milepost.store.records import LogRow

LOG_PAGE = 500
"""Lines on a page at most."""

STEP_LINES = 1000
"""Lines that are read at once."""

LOOKED_AT_LINES_MAX = 20_000
LOOKED_AT_CHARACTERS_MAX = 4_000_000
"""What one page looks at; behind that it ends, also where the filters have let nothing through."""


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines are told; everything given must match. `text` is found whatever the case of letters is."""

    attempt: int | None = None
    levels: frozenset[str] | None = None
    text: str = ""

    def matches(self, row: LogRow) -> bool:
        """Whether the filter lets a line through."""
        if self.attempt is not None and row.attempt != self.attempt:
            return False
        if self.levels is not None and row.level not in self.levels:
            return False
        if not self.text:
            return True
        text = self.text.casefold()
        return text in row.message.casefold() or text in row.logger.casefold()


EVERY_LINE = LogFilter()


def page(connection: Connection, run_id: str, *, after: int, filter: LogFilter, tree: bool) -> RunLog:
    """Lines above the cursor, of the run or of it and all runs below it; what is read for it is bounded."""
    lines = _lines(connection, run_id, after, tree)
    told: list[ToldLogLine] = []
    cursor, characters = after, 0
    for count, (number, row) in enumerate(lines, 1):
        cursor = number
        characters += len(row.message)
        if filter.matches(row):
            told.append(
                ToldLogLine(
                    at=row.at,
                    level=row.level,
                    message=row.message,
                    attempt=row.attempt,
                    logger=row.logger,
                    run_id=row.run_id if tree else None,
                )
            )
        is_full = len(told) == LOG_PAGE
        if is_full or count == LOOKED_AT_LINES_MAX or characters > LOOKED_AT_CHARACTERS_MAX:
            return RunLog(data=told, cursor=cursor, next=None if next(lines, None) is None else cursor)
    return RunLog(data=told, cursor=cursor)


def _lines(connection: Connection, run_id: str, after: int, tree: bool) -> Iterator[tuple[int, LogRow]]:
    load = records.load_tree_logs if tree else records.load_logs
    while True:
        rows = load(connection, run_id, after=after, limit=STEP_LINES)
        yield from rows
        if len(rows) < STEP_LINES:
            return
        after = rows[-1][0]
