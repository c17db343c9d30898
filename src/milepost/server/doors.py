"""What is kept as it came, or told again later, is looked at here before it goes any further.

Whatever is accepted has to be readable by every reader. Shapes are checked where a body is decoded, metadata where it is applied;
here is the rest: texts that hold JSON, names, times.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from milepost.engine.commands import TriggerItem
from milepost.errors import InvalidRequestError, MetadataValueError, TooLargeError
from milepost.model.jsontext import JSONTextError, read_text
from milepost.model.jsonvalue import check_json
from milepost.model.names import check_name
from milepost.model.rates import parse_rate
from milepost.model.run import AttemptEnd, Outcome, RunError
from milepost.protocol.metadata import OPERATIONS_MAX
from milepost.protocol.runs import LogLine
from milepost.protocol.triggering import JSON_TYPE, PAYLOAD_BYTES_MAX, SUPER_JSON_TYPE
from milepost.protocol.work import AttemptLines, RegisterRequest, RunReport

# The last microsecond of the year 9999, up to which every reader has a calendar.
AT_MAX = 253_402_300_799_999_999
# What a column of the database can hold.
COUNT_MAX = 2**63 - 1
RETRY_SECONDS_MAX = 365 * 24 * 3600.0
# Above this many characters a text is read in a thread, so that the others do not wait for it.
QUICK_CHARACTERS = 64 * 1024
_Result = TypeVar("_Result")


async def check_payloads(items: Sequence[TriggerItem], *, place: str) -> None:
    """Make sure that every payload that is JSON can be read by everyone.

    Args:
        place: where an item is in the request; `{}` stands for its number.
    Raises: InvalidRequestError, naming the item and the place inside its payload.
    """

    def check() -> None:
        for index, item in enumerate(items):
            if item.payload is None or len(item.payload) > PAYLOAD_BYTES_MAX:
                continue
            if (item.options.payload_type or JSON_TYPE) in (JSON_TYPE, SUPER_JSON_TYPE):
                field = f"{place.format(index)}payload"
                try:
                    read_text(item.payload, place=field)
                except JSONTextError as error:
                    raise InvalidRequestError(str(error), field=field) from None

    await _in_time(check, sum(len(item.payload or "") for item in items))


async def check_reports(reports: Sequence[RunReport]) -> list[RunReport]:
    """The reports of a worker with what can be kept of them.

    An output that not everyone can read ends the attempt with an error that says so: the run has ended, and must not be lost.

    Raises: InvalidRequestError for a number that counts nothing.
    """
    _check_numbers(reports)

    def check() -> list[RunReport]:
        return list(map(_checked, reports))

    outputs = [report.outcome.output or "" for report in reports if report.outcome is not None]
    if not outputs:
        return list(reports)
    return await _in_time(check, sum(map(len, outputs)))


def check_log(parts: Sequence[AttemptLines]) -> None:
    """Make sure that parts of logs are counted, and that their lines have a time. Raises InvalidRequestError."""
    _check_numbers(parts)
    for index, part in enumerate(parts):
        check_lines(part.lines, f"runs[{index}].lines")


def _check_numbers(reports: Sequence[RunReport | AttemptLines]) -> None:
    for index, report in enumerate(reports):
        for name, number in (("attempt", report.attempt), ("sequence", report.sequence)):
            if not -1 <= number <= COUNT_MAX:
                raise InvalidRequestError(
                    f"runs[{index}].{name} counts from 1, up to {COUNT_MAX}, and is {number:,}",
                    field=f"runs[{index}].{name}",
                    limit=COUNT_MAX,
                )


def _checked(report: RunReport) -> RunReport:
    outcome = report.outcome
    if outcome is None or outcome.output is None or outcome.error is not None:
        return report
    try:
        read_text(outcome.output, place="output")
    except JSONTextError as error:
        message = f"the worker reported an output that cannot be stored: {error}"
        failed = Outcome(error=RunError(name="OutputError", message=message), end=AttemptEnd.BROKEN)
        return msgspec.structs.replace(report, outcome=failed)
    return report


def check_lines(lines: Sequence[LogLine], place: str) -> None:
    """Make sure that every line of a log has a time that is one. Raises InvalidRequestError.

    Args:
        place: where the lines are in the request.
    """
    for number, line in enumerate(lines):
        if not 0 <= line.at <= AT_MAX:
            raise InvalidRequestError(
                f"{place}[{number}].at is a time in microseconds since 1970, up to the year 9999, not {line.at}",
                field=f"{place}[{number}].at",
            )


def check_registration(body: RegisterRequest) -> None:
    """Make sure that a worker and its tasks have names, and rules that can be followed. Raises InvalidRequestError."""
    check_name(body.id, "the id of a worker", field="id")
    check_name(body.name, "the name of a worker", field="name")
    for index, task in enumerate(body.tasks):
        place = f"tasks[{index}]"
        check_name(task.id, "the id of a task", field=f"{place}.id")
        check_name(task.queue, "the name of a queue", field=f"{place}.queue")
        if task.queue_concurrency is not None and not 1 <= task.queue_concurrency < 2**31:
            raise InvalidRequestError(
                f"{place}.queueConcurrency is at least 1, and less than 2^31, not {task.queue_concurrency}",
                field=f"{place}.queueConcurrency",
                limit=2**31 - 1,
            )
        if task.queue_rate is not None:
            parse_rate(task.queue_rate, field=f"{place}.queueRate")
        if task.retry.max_delay_seconds > RETRY_SECONDS_MAX:
            raise InvalidRequestError(
                f"{place}.retry.maxDelaySeconds is at most a year ({RETRY_SECONDS_MAX:,.0f} s)",
                field=f"{place}.retry.maxDelaySeconds",
                limit=int(RETRY_SECONDS_MAX),
            )
        for name, schema in (
            ("payloadSchema", task.payload_schema),
            ("metadataSchema", task.metadata_schema),
        ):
            try:
                check_json(schema, place=f"{place}.{name}")
            except MetadataValueError as error:
                raise InvalidRequestError(error.message, field=f"{place}.{name}") from None


async def _in_time(check: Callable[[], _Result], characters: int) -> _Result:
    return check() if characters <= QUICK_CHARACTERS else await asyncio.to_thread(check)


def check_operation_count(count: int, run_id: str | None = None) -> None:
    """Raise TooLargeError for more operations than one command may hold."""
    if count > OPERATIONS_MAX:
        whose = "the request" if run_id is None else f"the report of run {run_id!r}"
        raise TooLargeError(
            f"{whose} holds {count:,} operations, the limit is {OPERATIONS_MAX:,}: send them in several parts, in their order",
            field="operations",
            limit=OPERATIONS_MAX,
        )
