"""Every call of the HTTP API as a value: what to send, and how to read the answer. No I/O here, so both colours of client share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar, cast
from urllib.parse import quote, urlencode

import msgspec

from milepost.client.request_ids import new_request_id
from milepost.client.run import Run, WholeRun, run_from_wire
from milepost.client.schedule import Schedule, schedule_from_wire
from milepost.client.transport import Headers
from milepost.errors import (
    ConfigurationError,
    InvalidRequestError,
    MetadataTypeError,
    MilepostError,
    NotFoundError,
    UnreadableAnswerError,
    UsageError,
)
from milepost.model.filters import parse_filter
from milepost.model.jsontext import find_fault
from milepost.model.jsonvalue import describe, to_json
from milepost.model.names import check_name
from milepost.model.operations import Operation
from milepost.model.run import QueuedReason
from milepost.protocol import endpoints
from milepost.protocol import metadata as wire
from milepost.protocol.dashboard import SignInLink
from milepost.protocol.endpoints import Endpoint
from milepost.protocol.feed import Watched, WatchRequest
from milepost.protocol.metadata import MetadataRequest, MetadataResponse, Refused
from milepost.protocol.problems import from_problem
from milepost.protocol.queues import OverrideRequest, PauseRequest, QueueObject, QueuePage, ResetRequest
from milepost.protocol.runs import Replayed, RunLog, RunObject, RunResult, RunTree, TagsRequest
from milepost.protocol.schedules import CreateScheduleRequest, ScheduleObject, UpdateScheduleRequest
from milepost.protocol.streams import KEY_CHARACTERS_MAX
from milepost.protocol.tasks import TaskPage, WorkerPage
from milepost.protocol.tokens import TOKEN_HEADER
from milepost.protocol.triggering import (
    BatchCreateRequest,
    BatchLine,
    BatchObject,
    BatchRequest,
    BatchResults,
    ReplayRequest,
    RescheduleRequest,
    ResetKeyRequest,
    TriggerRequest,
)
from milepost.protocol.waitpoints import (
    TimeRequest,
    TokenCompleted,
    TokenCreated,
    TokenObject,
    TokenPage,
    TokenRequest,
    WaitpointState,
)

ResultT = TypeVar("ResultT")

# Beyond this the place of what cannot be read is not looked for.
EXPLAINED_BYTES_MAX = 4 * 1024 * 1024

_encode = msgspec.json.Encoder().encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Call(Generic[ResultT]):
    """One request and the reading of its answer.

    Attributes:
        form: the blocking form as the user writes it, for the error on a running event loop.
        target: path and query.
        body: JSON, or None.
        read: the result out of the body and the headers of a 2xx answer.
        request_id: kept over all retries, so that the server answers a repeat with the first result; only on what writes.
        absent_on: the status that means "there is none" and gives None.
        waits: the answer may take its time, because the server waits for something.
        task_id: of which task it triggers a single run. Such calls of several threads may travel together.
    """

    form: str
    method: str
    target: str
    body: bytes | None
    read: Callable[[bytes, Headers], ResultT]
    request_id: str | None = None
    absent_on: int | None = None
    waits: bool = False
    task_id: str | None = None

    def answer(self, status: int, content: bytes, headers: Headers) -> ResultT:
        """The result that an answer carries. Raises the error that a refusal stands for; UnavailableError is worth a repeat."""
        if 200 <= status < 300:
            return self.read(content, headers)
        error = from_problem(status, content)
        if status == self.absent_on and type(error) is NotFoundError:
            # The thing itself would have an error of its own: `RunNotFoundError`.
            return cast("ResultT", None)
        raise error


@dataclass(frozen=True, slots=True)
class Feed:
    """One event stream to be opened: with a POST when it has a body, which is JSON."""

    form: str
    target: str
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Triggered:
    """A run that was triggered, and the token that lets others watch it, when the server gave one."""

    id: str
    token: str | None
    queued_reason: QueuedReason | None = None
    is_cached: bool = False
    similar_task: str | None = None


@dataclass(frozen=True, slots=True)
class TriggeredBatch:
    """A batch that was triggered: the ids of its runs, in the order of the items, and why nobody can take them, by task.

    Attributes:
        cached: the places in `run_ids` of runs that were there before.
        is_cached: the batch was there before, by its idempotency key, with all its items.
    """

    id: str
    run_ids: list[str]
    token: str | None
    queued_reasons: dict[str, QueuedReason] = field(default_factory=dict[str, QueuedReason])
    cached: set[int] = field(default_factory=set[int])
    is_cached: bool = False


@dataclass(frozen=True, slots=True)
class MetadataDocument:
    """A document as the server has it."""

    value: dict[str, Any]
    version: int
    refused: list[Refused] = field(default_factory=list[Refused])


@dataclass(frozen=True, slots=True)
class MetadataVersion:
    """One change of a document, as the history has it.

    Attributes:
        version: the version that the document reached by it.
        at: when it was committed, aware UTC.
        operations: what was applied, in order.
        writer_run_id: the run that wrote it; None for a writer from outside.
        attempt: which attempt of that run; None for a writer from outside.
    """

    version: int
    at: datetime
    operations: list[Operation]
    writer_run_id: str | None
    attempt: int | None


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Some changes of a document, oldest first.

    Attributes:
        versions: the changes.
        earliest_version: the earliest version that is kept; older ones were pruned.
        next: the version after which the following page begins (`after=`), None at the end.
    """

    versions: list[MetadataVersion]
    earliest_version: int
    next: int | None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of runs, newest first. `next` is the cursor of the following page, None at the end."""

    runs: list[Run]
    next: str | None


def health() -> Call[dict[str, Any]]:
    """What the server says about itself."""
    return _call("health", endpoints.HEALTH, lambda answer, _: answer)


def create_sign_in_link() -> Call[SignInLink]:
    """A link that signs a browser in to the dashboard."""
    return _call("dashboard", endpoints.CREATE_SIGN_IN_LINK, lambda answer, _: answer)


def trigger(task_id: str, request: TriggerRequest) -> Call[Triggered]:
    """Trigger one run. Raises InvalidRequestError for an id that is no name."""
    check_name(task_id, "the id of a task", field="task")
    return _call(
        "trigger", endpoints.TRIGGER,
        lambda answer, headers: Triggered(
            answer.id,
            headers.get(TOKEN_HEADER),
            answer.queued_reason,
            answer.is_cached,
            answer.similar_task,
        ),
        body=request, triggers=task_id, task=task_id,
    )  # fmt: skip


def trigger_batch(request: BatchRequest) -> Call[TriggeredBatch]:
    """Trigger up to 1,000 runs."""
    return _call(
        "batch_trigger", endpoints.TRIGGER_BATCH,
        lambda answer, headers: TriggeredBatch(
            answer.id, answer.runs, headers.get(TOKEN_HEADER), answer.queued_reasons, set(answer.cached),
            answer.is_cached,
        ),
        body=request,
    )  # fmt: skip


def create_batch(request: BatchCreateRequest) -> Call[TriggeredBatch]:
    """Announce a batch of which it is not known yet how many items it has."""
    return _call(
        "batch_trigger", endpoints.CREATE_BATCH,
        lambda answer, headers: TriggeredBatch(
            answer.id, [], headers.get(TOKEN_HEADER), is_cached=answer.is_cached
        ),
        body=request,
    )  # fmt: skip


def retrieve_batch(batch_id: str) -> Call[BatchObject]:
    """A batch, with the ids of its runs."""
    return _call("batch_trigger", endpoints.RETRIEVE_BATCH, lambda answer, _: answer, batch=batch_id)


def reset_idempotency_key(task_id: str | None, key: str) -> Call[bool | None]:
    """Let a key of a task stand for nothing, or that of a batch; None when it does so already."""
    return _call(
        "reset_idempotency_key", endpoints.RESET_KEY, lambda _answer, _headers: True,
        body=ResetKeyRequest(task_id), absent_on=404, key=key,
    )  # fmt: skip


def add_batch_items(
    batch_id: str, lines: Sequence[BatchLine], *, run_count: int | None
) -> Call[TriggeredBatch]:
    """Send items of an announced batch; what was triggered of it. A repeat changes nothing.

    Args:
        run_count: how many items the batch has in all, once that is known.
    """
    return _call(
        "batch_trigger", endpoints.ADD_BATCH_ITEMS,
        lambda answer, _: TriggeredBatch(
            answer.id, answer.runs, None, answer.queued_reasons, set(answer.cached)
        ),
        text=b"\n".join(map(_encode, lines)), query={} if run_count is None else {"runCount": run_count}, batch=batch_id,
    )  # fmt: skip


def retrieve_run(run_id: str) -> Call[Run]:
    """One run as it is now."""
    return _call("runs.retrieve", endpoints.RETRIEVE_RUN, lambda answer, _: run_from_wire(answer), run=run_id)


def cancel_run(run_id: str) -> Call[None]:
    """Ask a run and its children to end."""
    return _call("runs.cancel", endpoints.CANCEL_RUN, lambda _, __: None, run=run_id)


def replay_run(run_id: str, request: ReplayRequest, *, request_id: str | None = None) -> Call[Replayed]:
    """Trigger the same again."""
    return _call(
        "runs.replay", endpoints.REPLAY_RUN, lambda answer, _: answer,
        body=request, request_id=request_id, run=run_id,
    )  # fmt: skip


def reschedule_run(run_id: str, request: RescheduleRequest) -> Call[Run]:
    """Delay a run to another time."""
    return _call(
        "runs.reschedule", endpoints.RESCHEDULE_RUN, lambda answer, _: run_from_wire(answer), body=request, run=run_id,
    )  # fmt: skip


def add_tags(run_id: str, tags: Sequence[str]) -> Call[list[str]]:
    """Add tags to a run; all that it has now."""
    return _call(
        "runs.add_tags", endpoints.ADD_TAGS, lambda answer, _: answer.tags, body=TagsRequest(list(tags)), run=run_id
    )  # fmt: skip


def delete_run(run_id: str) -> Call[int]:
    """Delete a finished run with all runs below it; how many runs that were."""
    return _call("runs.delete", endpoints.DELETE_RUN, lambda answer, _: answer.deleted, run=run_id)


def list_runs(filters: Mapping[str, Any], *, page_size: int, after: str | None) -> Call[Page]:
    """One page of runs; `filters` as `run_filters` gives them."""
    query = {**filters, "page[size]": page_size}
    if after is not None:
        query["page[after]"] = after
    return _call(
        "runs.list", endpoints.LIST_RUNS,
        lambda answer, _: Page([run_from_wire(row) for row in answer.data], answer.pagination.next),
        query=query,
    )  # fmt: skip


def run_filters(
    *,
    status: str | Sequence[str] | None = None,
    task: str | Sequence[str] | None = None,
    tag: str | Sequence[str] | None = None,
    batch: str | None = None,
    schedule: str | None = None,
    queue: str | Sequence[str] | None = None,
    parent: str | None = None,
    root: str | None = None,
    top_level: bool | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The query of a list of runs.

    Raises: ValueError for a time without a time zone; InvalidRequestError for a name that cannot be looked for; what `parse_filter`
        raises, and MetadataTypeError, for a filter of documents.
    """
    given = {
        "filter[status]": _joined("status", status),
        "filter[taskIdentifier]": _joined("task", task),
        "filter[tag]": _joined("tag", tag),
        "filter[batch]": batch,
        "filter[schedule]": schedule,
        "filter[queue]": _joined("queue", queue),
        "filter[parent]": parent,
        "filter[root]": root,
        "filter[topLevel]": _truth(top_level),
        "filter[createdAt][from]": _milliseconds("created_after", created_after),
        "filter[createdAt][to]": _milliseconds("created_before", created_before),
        "filter[metadata]": _metadata_filter(metadata),
    }
    return {name: value for name, value in given.items() if value is not None}


def list_tasks(page: int, *, page_size: int) -> Call[TaskPage]:
    """One page of tasks, counted from 1."""
    query = {"page": page, "perPage": page_size}
    return _call("tasks.list", endpoints.LIST_TASKS, lambda answer, _: answer, query=query)


def list_workers(page: int, *, page_size: int) -> Call[WorkerPage]:
    """One page of workers, counted from 1."""
    query = {"page": page, "perPage": page_size}
    return _call("workers.list", endpoints.LIST_WORKERS, lambda answer, _: answer, query=query)


def list_queues(page: int, *, page_size: int) -> Call[QueuePage]:
    """One page of queues, counted from 1."""
    return _call(
        "queues.list",
        endpoints.LIST_QUEUES,
        lambda answer, _: answer,
        query={"page": page, "perPage": page_size},
    )


def retrieve_queue(name: str) -> Call[QueueObject]:
    """A queue, with its concurrency keys."""
    return _call("queues.retrieve", endpoints.RETRIEVE_QUEUE, lambda answer, _: answer, queue=name)


def pause_queue(name: str, action: Literal["pause", "resume"]) -> Call[QueueObject]:
    """Pause a queue, or resume it."""
    return _call(
        f"queues.{action}",
        endpoints.PAUSE_QUEUE,
        lambda answer, _: answer,
        body=PauseRequest(action),
        queue=name,
    )


def override_queue(name: str, limit: int) -> Call[QueueObject]:
    """Set another limit of a queue."""
    return _call(
        "queues.override_concurrency_limit", endpoints.OVERRIDE_QUEUE, lambda answer, _: answer,
        body=OverrideRequest(limit), queue=name,
    )  # fmt: skip


def reset_queue(name: str) -> Call[QueueObject]:
    """Go by the limit that tasks say."""
    return _call(
        "queues.reset_concurrency_limit", endpoints.RESET_QUEUE, lambda answer, _: answer,
        body=ResetRequest(), queue=name,
    )  # fmt: skip


def run_result(run_id: str, *, wait_seconds: int = 0) -> Call[RunResult | None]:
    """The result of a run; None while it has none, and has none for so many seconds, up to 60."""
    query = {"wait": wait_seconds} if wait_seconds else {}
    return _call(
        "runs.wait", endpoints.RUN_RESULT, lambda answer, _: answer,
        query=query, run=run_id, absent_on=404, waits=wait_seconds > 0,
    )  # fmt: skip


def batch_results(batch_id: str, after: int | None = None) -> Call[BatchResults]:
    """A page of the results of the runs of a batch that have ended, in the order of the items.

    Args:
        after: the `next` of the page before.
    """
    return _call(
        "batch_trigger_and_wait", endpoints.BATCH_RESULTS, lambda answer, _: answer,
        query={} if after is None else {"page[after]": after}, batch=batch_id,
    )  # fmt: skip


def run_log(run_id: str, filters: Mapping[str, Any], *, after: int) -> Call[RunLog]:
    """A page of a run's log; `filters` as the query has them."""
    query = {**filters, "page[after]": after}
    return _call("runs.logs", endpoints.RUN_LOG, lambda answer, _: answer, query=query, run=run_id)


def run_tree(run_id: str, *, size: int) -> Call[RunTree]:
    """A run and the runs below it, `size` of all at most."""
    return _call(
        "runs.tree", endpoints.RUN_TREE, lambda answer, _: answer, query={"page[size]": size}, run=run_id
    )


def get_metadata(run_id: str) -> Call[MetadataDocument]:
    """The document of a run."""
    return _call("metadata.get", endpoints.GET_METADATA, _read_document, run=run_id)


def put_metadata(run_id: str, request: MetadataRequest, request_id: str) -> Call[MetadataDocument]:
    """Apply operations to a run's document; a repeat with the same request id changes nothing."""
    return _call(
        "send", endpoints.PUT_METADATA, _read_document, body=request, request_id=request_id, run=run_id
    )


def metadata_history(run_id: str, *, page_size: int, after: int) -> Call[HistoryPage]:
    """Changes of a run's document above a version."""
    return _call(
        "runs.metadata_history", endpoints.METADATA_HISTORY, _read_history,
        query={"page[size]": page_size, "page[after]": after}, run=run_id,
    )  # fmt: skip


def metadata_at(run_id: str, *, version: int | None, at: datetime | None) -> Call[MetadataDocument]:
    """The document of a run as it was. Raises TypeError unless exactly one is given, ValueError for a time without a time zone."""
    if (version is None) == (at is None):
        raise TypeError("metadata_at takes either version= or at=, one of the two")
    query = {"version": version} if at is None else {"at": _microseconds("at", at)}
    return _call("runs.metadata_at", endpoints.GET_METADATA, _read_document, query=query, run=run_id)


def create_schedule(request: CreateScheduleRequest) -> Call[Schedule]:
    """Make a schedule."""
    check_name(request.task, "the id of a task", field="task")
    return _call("schedules.create", endpoints.CREATE_SCHEDULE, _read_schedule, body=request)


def update_schedule(schedule_id: str, request: UpdateScheduleRequest) -> Call[Schedule]:
    """Change a schedule."""
    return _call(
        "schedules.update", endpoints.UPDATE_SCHEDULE, _read_schedule, body=request, schedule=schedule_id
    )


def retrieve_schedule(schedule_id: str, upcoming: int) -> Call[Schedule]:
    """One schedule with so many of its next times."""
    return _call(
        "schedules.retrieve", endpoints.RETRIEVE_SCHEDULE, _read_schedule, query={"upcoming": upcoming}, schedule=schedule_id
    )  # fmt: skip


def set_schedule_active(schedule_id: str, is_active: bool) -> Call[Schedule]:
    """Pause a schedule, or let it go on."""
    endpoint = endpoints.ACTIVATE_SCHEDULE if is_active else endpoints.DEACTIVATE_SCHEDULE
    form = "schedules.activate" if is_active else "schedules.deactivate"
    return _call(form, endpoint, _read_schedule, schedule=schedule_id)


def delete_schedule(schedule_id: str) -> Call[None]:
    """Forget a schedule."""
    return _call("schedules.delete", endpoints.DELETE_SCHEDULE, lambda _, __: None, schedule=schedule_id)


def list_schedules(task: str | None, page: int, page_size: int) -> Call[tuple[list[Schedule], int]]:
    """A page of schedules, and how many pages there are."""
    query: dict[str, Any] = {"page": page, "perPage": page_size}
    if task is not None:
        query["task"] = task
    return _call(
        "schedules.list", endpoints.LIST_SCHEDULES,
        lambda answer, _: ([schedule_from_wire(row) for row in answer.data], answer.pagination.total_pages),
        query=query,
    )  # fmt: skip


def read_stream(run_id: str, key: str, *, start: int | None) -> Feed:
    """Read a stream from an index on; without one, what is written from now on."""
    query = {"start": "latest" if start is None else start}
    return Feed("streams.read", _target(endpoints.READ_STREAM, query, {"run": run_id, "key": key}))


def read_input(run_id: str, key: str, *, start: int | None) -> Feed:
    """Read what was sent to a run, from an index on; without one, what it has not taken yet."""
    query = {"start": "unread" if start is None else start}
    return Feed("streams.input", _target(endpoints.READ_INPUT, query, {"run": run_id, "key": key}))


def send_input(run_id: str, key: str, value: bytes) -> Call[None]:
    """Send something to a run; `value` is JSON."""
    check_name(key, "the key of a stream", field="key", characters_max=KEY_CHARACTERS_MAX)
    return _call(
        "streams.input",
        endpoints.SEND_INPUT,
        lambda _, __: None,
        text=b'{"data":%b}' % value,
        run=run_id,
        key=key,
    )


def watch_run(run_id: str) -> Feed:
    """The feed of one run."""
    return Feed("runs.subscribe", _target(endpoints.RUN_FEED, {}, {"run": run_id}))


def watch_run_log(run_id: str) -> Feed:
    """The feed of one run that also says that its log has grown."""
    return Feed("runs.logs", _target(endpoints.RUN_FEED, {"children": 1}, {"run": run_id}))


def watch_run_streams(run_id: str, starts: Mapping[str, int], *, only: bool) -> Feed:
    """The feed of one run and its streams, each from an index on; `only`: of no others."""
    watched = Watched(run=run_id, streams=dict(starts), only_streams=only)
    return Feed("runs.subscribe", _target(endpoints.WATCH_FEED, {}, {}), _encode(WatchRequest([watched])))


def watch_batch(batch_id: str) -> Feed:
    """The feed of one batch."""
    return Feed("batch_trigger_and_wait", _target(endpoints.BATCH_FEED, {}, {"batch": batch_id}))


def watch_matching_runs(filters: Mapping[str, Any]) -> Feed:
    """The feed of all runs that match; `filters` as `run_filters` gives them."""
    return Feed("runs.subscribe_where", _target(endpoints.MATCHING_RUNS_FEED, filters, {}))


def create_token(request: TokenRequest) -> Call[tuple[TokenCreated, str | None]]:
    """Make a token; it, and the public token that lets others complete it."""
    return _call(
        "wait.create_token", endpoints.CREATE_TOKEN, lambda answer, headers: (answer, headers.get(TOKEN_HEADER)), body=request
    )  # fmt: skip


def retrieve_token(token_id: str) -> Call[TokenObject]:
    """A token as it is now."""
    return _call(
        "wait.retrieve_token", endpoints.RETRIEVE_TOKEN, lambda answer, _: answer, waitpoint=token_id
    )


def complete_token(token_id: str, data: bytes) -> Call[TokenCompleted]:
    """Complete a token; `data` is JSON."""
    return _call(
        "wait.complete_token", endpoints.COMPLETE_TOKEN, lambda answer, _: answer, text=b'{"data":%b}' % data, waitpoint=token_id
    )  # fmt: skip


def await_waitpoint(waitpoint_id: str) -> Call[TokenObject]:
    """The calling run waits for a token; the token as it is now."""
    return _call(
        "wait.for_token", endpoints.AWAIT_WAITPOINT, lambda answer, _: answer, waitpoint=waitpoint_id
    )


def wait_for_time(request: TimeRequest) -> Call[WaitpointState]:
    """The calling run waits for a time; what ends then."""
    return _call("wait.for_", endpoints.WAIT_FOR_TIME, lambda answer, _: answer, body=request)


def list_tokens(filters: Mapping[str, Any], *, page_size: int, after: str | None) -> Call[TokenPage]:
    """One page of tokens; `filters` as `token_filters` gives them."""
    query = {**filters, "page[size]": page_size}
    if after is not None:
        query["page[after]"] = after
    return _call("wait.list_tokens", endpoints.LIST_TOKENS, lambda answer, _: answer, query=query)


def token_filters(
    *,
    status: str | Sequence[str] | None = None,
    tag: str | Sequence[str] | None = None,
    idempotency_key: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> dict[str, Any]:
    """The query of a list of tokens. Raises as `run_filters`."""
    given = {
        "filter[status]": _joined("status", status),
        "filter[tags]": _joined("tag", tag),
        "filter[idempotencyKey]": idempotency_key,
        "filter[createdAt][from]": _milliseconds("created_after", created_after),
        "filter[createdAt][to]": _milliseconds("created_before", created_before),
    }
    return {name: value for name, value in given.items() if value is not None}


def _call(
    form: str,
    endpoint: Endpoint,
    read: Callable[[Any, Headers], ResultT],
    *,
    body: Any = None,
    text: bytes | None = None,
    query: Mapping[str, Any] | None = None,
    request_id: str | None = None,
    absent_on: int | None = None,
    waits: bool = False,
    triggers: str | None = None,
    **path: str,
) -> Call[ResultT]:
    decoder = _decoder(endpoint.name)

    def read_answer(content: bytes, headers: Headers) -> ResultT:
        try:
            return read(decoder.decode(content), headers)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise unreadable(content, f"{endpoint.method} {endpoint.path}", error) from None

    return Call(
        form=form,
        method=endpoint.method,
        target=_target(endpoint, query or {}, path),
        body=text if body is None else _encode(body),
        read=read_answer,
        request_id=request_id or (None if endpoint.method == "GET" else new_request_id()),
        absent_on=absent_on,
        waits=waits,
        task_id=triggers,
    )


def unreadable(content: bytes | None, what: str, error: Exception) -> MilepostError:
    """The error for an answer that cannot be read: another program's, or one with a value that is beyond this reader.

    Args:
        content: the answer; None for a part of one that has been understood as a whole.
        what: what was asked.
    """
    fault = str(error) if content is None else _fault_in(content)
    if fault is None and not isinstance(error, RecursionError):
        return ConfigurationError(
            f"what answered {what} is no Milepost server, or one of another version ({error}); check MILEPOST_API_URL"
        )
    return UnreadableAnswerError(
        f"the server answered {what}, and the answer cannot be read here: {fault or 'it is nested too deeply'}. "
        "An older version of the server may have taken this value; this one refuses it"
    )


def _fault_in(content: bytes) -> str | None:
    return find_fault(content, place="") if len(content) <= EXPLAINED_BYTES_MAX else None


@lru_cache(maxsize=64)
def _decoder(name: str) -> msgspec.json.Decoder[Any]:
    endpoint = next(endpoint for endpoint in endpoints.ENDPOINTS if endpoint.name == name)
    return msgspec.json.Decoder(WholeRun if endpoint.response is RunObject else endpoint.response)


def _target(endpoint: Endpoint, query: Mapping[str, Any], path: Mapping[str, str]) -> str:
    target = endpoint.path.format(**{name: _segment(name, value) for name, value in path.items()})
    return f"{target}?{urlencode(query)}" if query else target


def _segment(name: str, value: object) -> str:
    """A part of an address. Raises UsageError for what cannot be one."""
    if not isinstance(value, str):
        raise UsageError(f"the {name} that a call names is text, not {type(value).__name__}: {value!r:.100}")
    try:
        return quote(value, safe="")
    except UnicodeEncodeError:
        raise UsageError(
            f"the {name} that a call names has a UTF-8 form, and {value!r:.100} has none: it holds a lone surrogate"
        ) from None


def _read_document(answer: MetadataResponse, _: Headers) -> MetadataDocument:
    return MetadataDocument(msgspec.json.decode(answer.metadata), answer.version, answer.refused or [])


def _read_schedule(answer: ScheduleObject, _: Headers) -> Schedule:
    return schedule_from_wire(answer)


def _read_history(answer: wire.MetadataHistory, _: Headers) -> HistoryPage:
    versions = [
        MetadataVersion(
            version=change.version,
            at=_EPOCH + timedelta(microseconds=change.at),
            operations=change.operations,
            writer_run_id=change.writer.run if change.writer else None,
            attempt=change.writer.attempt if change.writer else None,
        )
        for change in answer.data
    ]
    return HistoryPage(versions, answer.earliest_version, answer.next)


def _joined(name: str, value: str | Sequence[str] | None) -> str | None:
    if value is None:
        return None
    values = [value] if isinstance(value, str) else list(value)
    if not values or not all(values):
        raise InvalidRequestError(
            f"the filter {name}= is empty: leave it out, or say what to look for", field=name
        )
    for text in values:
        if "," in text:
            raise InvalidRequestError(
                f"the filter {name}= cannot look for {text!r:.100}: names travel joined with commas, and this one has a comma",
                field=name,
            )
    return ",".join(values)


def _metadata_filter(filter: Mapping[str, Any] | None) -> str | None:
    if not filter:
        return None
    given = to_json(filter, place="metadata")
    if not isinstance(given, dict):
        raise MetadataTypeError(
            f"a metadata filter is a mapping of keys to expected values, not {describe(given)}"
        )
    parse_filter(given)
    return _encode(given).decode()


def _truth(value: bool | None) -> str | None:
    return None if value is None else str(value).lower()


def _milliseconds(name: str, value: datetime | None) -> int | None:
    return None if value is None else _microseconds(name, value) // 1000


def _microseconds(name: str, value: datetime) -> int:
    if value.tzinfo is None:
        raise ValueError(f"{name} needs a time zone, for instance datetime.now(UTC)")
    return (value - _EPOCH) // timedelta(microseconds=1)
