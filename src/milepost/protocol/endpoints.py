"""The table of endpoints: the server routes by it, the client calls by it, the OpenAPI document is printed from it."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

from milepost.protocol import (
    dashboard,
    feed,
    metadata,
    queues,
    runs,
    schedules,
    streams,
    tasks,
    tokens,
    triggering,
    waitpoints,
    work,
)
from milepost.protocol.triggering import NotSupported


class ScopeRule(Enum):
    """Which scopes of a public token open an endpoint (`milepost.model.scopes`). The server looks before the endpoint is reached; what
    depends on the body, the endpoint looks at."""

    NONE = "no token, whatever its scopes"
    READ_RUN = "read on runs:{run}, on its task, on any of its tags or on its batch"
    READ_RUNS = "read on runs, tasks, tags or batch; only the runs that these show are there"
    READ_WATCHED = "read on runs, tasks, tags or batch; each thing that is watched is looked at by itself, with its own token"
    READ_BATCH = "read on batch:{batch}, or on all runs"
    TRIGGER = "trigger on tasks:{task}"
    BATCH_TRIGGER = "batchTrigger on each task of the batch"
    ADD_BATCH_ITEMS = "write on batch:{batch}, or batchTrigger on the task of each item"
    WRITE_METADATA = "write on metadata:{run}, or on metadata:{run}:<key> for each key that is written"
    WRITE_RUN = "write on runs:{run}, or on its task"
    SEND_INPUT = "write on inputStreams:{run}"
    READ_WAITPOINT = "read or write on waitpoints:{waitpoint}"
    WRITE_WAITPOINT = "write on waitpoints:{waitpoint}"


@dataclass(frozen=True)
class Access:
    """Who may call an endpoint, beside whoever has the secret key: that opens everything.

    Attributes:
        scopes: which scopes of a public token open it.
        anyone: no credentials are needed.
        session: a browser that has signed in to the dashboard may call it.
        from_own_page: and only where the browser says that a page of this server sends the request. Where something is only read, it
            is enough that it says nothing else.
    """

    scopes: ScopeRule
    anyone: bool = False
    session: bool = False
    from_own_page: bool = False


OPEN = Access(ScopeRule.NONE, anyone=True, session=True)
KEY_ONLY = Access(ScopeRule.NONE)
READERS = Access(ScopeRule.NONE, session=True)
RUN_READERS = Access(ScopeRule.READ_RUN, session=True)
RUNS_READERS = Access(ScopeRule.READ_RUNS, session=True)
WATCHERS = Access(ScopeRule.READ_WATCHED, session=True)
BATCH_READERS = Access(ScopeRule.READ_BATCH, session=True)
# What a person does on the pages: it changes something, so no other page may make a browser do it.
PAGE_WRITERS = Access(ScopeRule.NONE, session=True, from_own_page=True)
TRIGGERERS = Access(ScopeRule.TRIGGER, session=True, from_own_page=True)
BATCH_TRIGGERERS = Access(ScopeRule.BATCH_TRIGGER)
BATCH_FILLERS = Access(ScopeRule.ADD_BATCH_ITEMS)
METADATA_WRITERS = Access(ScopeRule.WRITE_METADATA)
RUN_WRITERS = Access(ScopeRule.WRITE_RUN, session=True, from_own_page=True)
INPUT_SENDERS = Access(ScopeRule.SEND_INPUT)
WAITPOINT_READERS = Access(ScopeRule.READ_WAITPOINT, session=True)
WAITPOINT_WRITERS = Access(ScopeRule.WRITE_WAITPOINT)


@dataclass(frozen=True)
class Parameter:
    """A query parameter. `kind` is a JSON schema type."""

    name: str
    summary: str
    kind: str = "string"


@dataclass(frozen=True)
class Endpoint:
    """One call of the HTTP API.

    `access` has no default: whoever adds an endpoint says who may call it. `problems` are the status codes that it may answer with
    beside those that follow from the rest (see `statuses_of_refusals`). `stream` marks server-sent events, whose `response` is the
    shape of one frame, and which come with `stream_headers`. `lines` marks a body of one JSON object per line. The parameters `{key}`
    and `{queue}` of a path may have slashes. With `open_query`, parameters that are not known are passed over.
    """

    name: str
    method: str
    path: str
    summary: str
    access: Access
    request: Any = None
    response: Any = None
    status: int = 200
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[int, ...] = ()
    stream: bool = False
    stream_headers: tuple[tuple[str, str], ...] = ()
    lines: bool = False
    open_query: bool = False
    tag: str = field(default="runs")

    def __post_init__(self) -> None:
        # Left out, the next argument would stand in its place.
        if not isinstance(cast("object", self.access), Access):
            raise TypeError(f"endpoint {self.name!r} does not say who may call it")

    @property
    def statuses_of_refusals(self) -> tuple[int, ...]:
        """Every status code of a problem that it may answer with."""
        found = {400, 422, 503, *self.problems}
        if not self.access.anyone:
            found |= {401}
        if not self.access.session or self.access.from_own_page or self.access.scopes is not ScopeRule.NONE:
            found |= {403}
        if self.request is not None:
            found |= {408, 413, 415}
        return tuple(sorted(found))


RUN_FILTERS = (
    Parameter("filter[status]", "statuses, joined with commas"),
    Parameter("filter[taskIdentifier]", "task ids, joined with commas"),
    Parameter("filter[tag]", "tags, joined with commas; runs with any of them"),
    Parameter("filter[batch]", "a batch id"),
    Parameter("filter[schedule]", "the id of the schedule that has triggered them"),
    Parameter(
        "filter[queue]",
        "names of queues, joined with commas; task/<id> is the queue of a task that names none",
    ),
    Parameter("filter[parent]", "the id of the parent run"),
    Parameter("filter[root]", "the id of the root run"),
    Parameter("filter[topLevel]", "true: runs without a parent; false: runs that have one", "boolean"),
    Parameter("filter[createdAt][from]", "milliseconds since 1970", "integer"),
    Parameter("filter[createdAt][to]", "milliseconds since 1970", "integer"),
    Parameter("filter[createdAt][period]", "a span such as 1d or 30m"),
    Parameter(
        "filter[metadata]",
        "conditions on the document, a JSON object of keys and expected values: "
        '{"user.id": "user_1234", "$.progress": {"$gte": 50}}; operators: $eq $gt $gte $lt $lte $exists $contains',
    ),
)
FILTERS_NOT_SUPPORTED: NotSupported = {
    "filter[bulkAction]": (),
    "filter[env]": (),
    "filter[isTest]": ("false",),
    "filter[machine]": (),
    "filter[region]": (),
    "filter[version]": (),
}
"""Filters of the protocol that this version does not carry out, each with the values that ask for nothing (no run is a test run)."""

PAGE_SIZE = Parameter("page[size]", "runs on a page, 1 to 100, default 25", "integer")

HEALTH = Endpoint(
    "health", "GET", "/api/v1/health", "Is the server up?", OPEN, response=dict[str, Any], tag="server"
)
READY = Endpoint(
    "ready", "GET", "/api/v1/ready",
    "May requests be sent here? 503 while the database does not answer, has another schema, or takes nothing, and once the server is "
    "about to end; `details.reason` is `draining`, `database`, `schema` or `committer`",
    OPEN, response=dict[str, Any], tag="server",
)  # fmt: skip
METRICS = Endpoint(
    "metrics", "GET", "/metrics",
    "What the server does, for Prometheus; with MILEPOST_METRICS=open without credentials", READERS,
    response=str, open_query=True, tag="server",
)  # fmt: skip
OPENAPI = Endpoint(
    "openapi", "GET", "/api/openapi.json", "This description", READERS, response=dict[str, Any], tag="server"
)

TRIGGER = Endpoint(
    "trigger", "POST", "/api/v1/tasks/{task}/trigger", "Trigger one run", TRIGGERERS,
    triggering.TriggerRequest, triggering.TriggerResponse, problems=(400, 404, 409, 422), tag="triggering",
)  # fmt: skip
TRIGGER_SEVERAL = Endpoint(
    "trigger_several", "POST", "/api/v1/triggers", "Trigger several runs, each of them for itself",
    KEY_ONLY, triggering.TriggersRequest, triggering.TriggersResponse, problems=(400, 422), tag="triggering",
)  # fmt: skip
TRIGGER_BATCH = Endpoint(
    "trigger_batch", "POST", "/api/v2/tasks/batch", "Trigger up to 1,000 runs at once", BATCH_TRIGGERERS,
    triggering.BatchRequest, triggering.BatchResponse, status=202, problems=(400, 404, 409, 422), tag="triggering",
)  # fmt: skip
CREATE_BATCH = Endpoint(
    "create_batch", "POST", "/api/v3/batches", "Announce a batch whose items follow", BATCH_TRIGGERERS,
    triggering.BatchCreateRequest, triggering.BatchCreateResponse, status=202, problems=(400, 404, 409, 422), tag="triggering",
)  # fmt: skip
ADD_BATCH_ITEMS = Endpoint(
    "add_batch_items", "POST", "/api/v3/batches/{batch}/items", "Send the items of an announced batch, one JSON object per line",
    BATCH_FILLERS,
    triggering.BatchLine, triggering.BatchItemsResponse, lines=True, problems=(400, 404, 409, 415, 422), tag="triggering",
    parameters=(Parameter("runCount", "how many items the batch has in all, where that was not said before", "integer"),),
)  # fmt: skip
RESET_KEY = Endpoint(
    "reset_idempotency_key", "POST", "/api/v1/idempotencyKeys/{key}/reset",
    "Let an idempotency key of a task stand for nothing; of a batch, where no task is named", KEY_ONLY,
    triggering.ResetKeyRequest, triggering.ResetKeyResponse, problems=(400, 404, 409, 422), tag="triggering",
)  # fmt: skip
RETRIEVE_BATCH = Endpoint(
    "retrieve_batch",
    "GET",
    "/api/v2/batches/{batch}",
    "A batch",
    BATCH_READERS,
    response=triggering.BatchObject,
    problems=(404,),
    tag="triggering",
)
BATCH_RESULTS = Endpoint(
    "batch_results", "GET", "/api/v1/batches/{batch}/results", "The results of the runs of a batch that have ended", BATCH_READERS,
    response=triggering.BatchResults, problems=(400, 404), tag="triggering",
    parameters=(Parameter("page[after]", "only the results behind this index", "integer"),),
)  # fmt: skip
BATCH_FEED = Endpoint(
    "batch_feed", "GET", "/api/v1/batches/{batch}/feed", "Watch a batch until all its runs have ended", BATCH_READERS,
    response=feed.BatchFrame, problems=(404,), stream=True, tag="feed",
)  # fmt: skip

RETRIEVE_RUN = Endpoint(
    "retrieve_run",
    "GET",
    "/api/v3/runs/{run}",
    "A run",
    RUN_READERS,
    response=runs.RunObject,
    problems=(404,),
)
LIST_RUNS = Endpoint(
    "list_runs", "GET", "/api/v1/runs", "Runs, newest first", RUNS_READERS, response=runs.RunPage,
    parameters=(
        PAGE_SIZE,
        Parameter("page[after]", "a cursor: the page after it"),
        Parameter("page[before]", "a cursor: the page before it; wins over page[after]"),
        *RUN_FILTERS,
    ),
    problems=(400, 422),
)  # fmt: skip
CANCEL_RUN = Endpoint(
    "cancel_run", "POST", "/api/v2/runs/{run}/cancel",
    "Cancel a run and its children. One that a worker holds is asked to end: `cancelAskedAt`; one that has ended stays as it is",
    RUN_WRITERS, response=runs.RunId, problems=(400, 404, 409),
)  # fmt: skip
REPLAY_RUN = Endpoint(
    "replay_run", "POST", "/api/v1/runs/{run}/replay", "Trigger the same again: payload and metadata of the trigger, tags and queue",
    PAGE_WRITERS, triggering.ReplayRequest, runs.Replayed, problems=(400, 404, 409, 422),
)  # fmt: skip
RESCHEDULE_RUN = Endpoint(
    "reschedule_run", "POST", "/api/v1/runs/{run}/reschedule", "Delay a run to another time; 409 unless it is DELAYED", PAGE_WRITERS,
    triggering.RescheduleRequest, runs.RunObject, problems=(400, 404, 409, 422),
)  # fmt: skip
ADD_TAGS = Endpoint(
    "add_tags", "POST", "/api/v1/runs/{run}/tags", "Add tags to a run", KEY_ONLY, runs.TagsRequest, runs.TagsAnswer,
    problems=(400, 404, 409, 422),
)  # fmt: skip
DELETE_RUN = Endpoint(
    "delete_run", "DELETE", "/api/v1/runs/{run}", "Delete a finished run, and all runs below it, with everything that belongs to them",
    KEY_ONLY, response=runs.RunDeleted, problems=(404, 409),
)  # fmt: skip
RUN_RESULT = Endpoint(
    "run_result", "GET", "/api/v1/runs/{run}/result", "The result of a finished run; 404 while it has none", RUN_READERS,
    response=runs.RunResult, problems=(400, 404),
    parameters=(
        Parameter("wait", "answer when the run has finished, or after so many seconds: up to 60, 0 without it", "integer"),
    ),
)  # fmt: skip
RUN_LOG = Endpoint(
    "run_log", "GET", "/api/v1/runs/{run}/logs", "What the run has logged and printed, oldest first", READERS, response=runs.RunLog,
    parameters=(
        Parameter("page[after]", "the cursor of the page before", "integer"),
        Parameter("attempt", "only the lines of the attempt with this number", "integer"),
        Parameter("level", "only lines of this level and of more severe ones: debug, info, warning or error"),
        Parameter("search", "only lines with this text in message or logger; upper and lower case are alike"),
        Parameter("tree", "true: the lines of the run and of all runs below it, each with its runId", "boolean"),
    ),
    problems=(400, 404),
)  # fmt: skip
RUN_TREE = Endpoint(
    "run_tree", "GET", "/api/v1/runs/{run}/tree", "A run and the runs below it, with when each attempt began and ended", READERS,
    response=runs.RunTree, parameters=(Parameter("page[size]", "how many runs at most, 1 to 1,000, default 1,000", "integer"),),
    problems=(400, 404),
)  # fmt: skip
RUN_FEED = Endpoint(
    "run_feed", "GET", "/api/v1/runs/{run}/feed", "Watch a run until it has finished: a snapshot, then deltas", RUN_READERS,
    response=feed.RunFrame,
    parameters=(
        Parameter(
            "children",
            "follow so many of its children too, 1 to 100, and until they have finished: those first that failed or are at work. The "
            "events `children-snapshot` and `children-rows` are those of /api/v1/feed/runs; `log` says that the run's log has grown",
            "integer",
        ),
    ),
    problems=(400, 404), stream=True, tag="feed",
)  # fmt: skip
_POLLED = (
    Parameter("offset", "what the last answer said in its header electric-offset; -1 at first"),
    Parameter("handle", "what the last answer said in its header electric-handle"),
    Parameter("live", "`true`: answer when something is another than at the offset, within 20 seconds"),
    Parameter("skipColumns", "columns that are left out, with commas between them"),
)
REALTIME_RUN = Endpoint(
    "realtime_run", "GET", "/realtime/v1/runs/{run}", "A run for the official JavaScript clients: its row, when it has changed",
    RUN_READERS, response=list[dict[str, Any]],
    parameters=_POLLED, problems=(404,), open_query=True, tag="feed",
)  # fmt: skip
REALTIME_RUNS = Endpoint(
    "realtime_runs", "GET", "/realtime/v1/runs",
    "Runs with tags for the official JavaScript clients: the rows that have changed, of the 1,000 newest runs at most",
    RUNS_READERS, response=list[dict[str, Any]],
    parameters=(
        Parameter("tags", "tags, joined with commas; runs with all of them"),
        Parameter("createdAt", "a span such as 1d or 30m: only runs that are not older; 24h if it is not given"),
        *_POLLED,
    ),
    open_query=True, tag="feed",
)  # fmt: skip
REALTIME_BATCH = Endpoint(
    "realtime_batch", "GET", "/realtime/v1/batches/{batch}",
    "The runs of a batch for the official JavaScript clients: the rows that have changed", BATCH_READERS,
    response=list[dict[str, Any]], parameters=_POLLED, problems=(404,), open_query=True, tag="feed",
)  # fmt: skip
RUNS_FEED = Endpoint(
    "runs_feed", "GET", "/api/v1/feed/runs", "Watch the first page of a list of runs", RUNS_READERS, response=feed.RunListFrame,
    parameters=(PAGE_SIZE, *RUN_FILTERS), problems=(400, 422), stream=True, tag="feed",
)  # fmt: skip
MATCHING_RUNS_FEED = Endpoint(
    "matching_runs_feed", "GET", "/api/v1/feed/matching-runs",
    "Watch all runs that match: each as it is now, `present`, then each newer state", RUNS_READERS,
    response=feed.MatchingRunFrame, parameters=RUN_FILTERS, problems=(400, 422), stream=True, tag="feed",
)  # fmt: skip
WATCH_FEED = Endpoint(
    "watch_feed", "POST", "/api/v1/feed/watch",
    "Watch many runs, streams, tags and lists on one connection, because a browser has only six", WATCHERS,
    feed.WatchRequest, feed.RunFrame, problems=(400, 413, 422), stream=True, tag="feed",
)  # fmt: skip

GET_METADATA = Endpoint(
    "get_metadata", "GET", "/api/v1/runs/{run}/metadata", "The document of a run, as it is or as it was", RUN_READERS,
    response=metadata.MetadataResponse,
    parameters=(
        Parameter("version", "the document as it was at this version", "integer"),
        Parameter("at", "the document as it was at this time, microseconds since 1970", "integer"),
    ),
    problems=(400, 404, 410), tag="metadata",
)  # fmt: skip
METADATA_HISTORY = Endpoint(
    "metadata_history", "GET", "/api/v1/runs/{run}/metadata/history", "What was changed in the document of a run, oldest first",
    RUN_READERS,
    response=metadata.MetadataHistory,
    parameters=(
        Parameter("page[size]", "changes on a page, 1 to 1,000, default 25; large changes make a page end earlier", "integer"),
        Parameter("page[after]", "a version: the changes after it", "integer"),
    ),
    problems=(400, 404), tag="metadata",
)  # fmt: skip
PUT_METADATA = Endpoint(
    "put_metadata", "PUT", "/api/v1/runs/{run}/metadata", "Apply operations to the documents of a run, its parent and its root",
    METADATA_WRITERS,
    metadata.MetadataRequest, metadata.MetadataResponse, problems=(400, 403, 404, 409, 422), tag="metadata",
)  # fmt: skip

REGISTER_WORKER = Endpoint(
    "register_worker", "POST", "/api/v1/workers", "A worker presents itself and its tasks", KEY_ONLY,
    work.RegisterRequest, work.RegisterResponse, problems=(400, 422), tag="workers",
)  # fmt: skip
CLAIM_RUNS = Endpoint(
    "claim_runs", "POST", "/api/v1/workers/{worker}/claim", "Take queued runs; waits until there is one", KEY_ONLY,
    work.ClaimRequest, work.ClaimResponse, problems=(400, 404), tag="workers",
)  # fmt: skip
REPORT = Endpoint(
    "report", "POST", "/api/v1/workers/{worker}/report", "What happened in the runs of a worker", KEY_ONLY,
    work.ReportRequest, work.ReportResponse, problems=(400, 404), tag="workers",
)  # fmt: skip
REPORT_LOG = Endpoint(
    "report_log", "POST", "/api/v1/workers/{worker}/log", "What the runs of a worker have logged", KEY_ONLY,
    work.LogRequest, work.LogResponse, problems=(400, 404), tag="workers",
)  # fmt: skip
INBOX = Endpoint(
    "inbox", "GET", "/api/v1/workers/{worker}/inbox", "What the runs of a worker should know", KEY_ONLY,
    response=work.InboxFrame, problems=(404,), stream=True, tag="workers",
)  # fmt: skip

REPORT_CHUNKS = Endpoint(
    "report_chunks", "POST", "/api/v1/workers/{worker}/chunks", "What the runs of a worker add to streams", KEY_ONLY,
    streams.ChunksRequest, streams.ChunksResponse, problems=(400, 404, 413, 422), tag="workers",
)  # fmt: skip

_START = (
    Parameter(
        "start",
        "the index of the first chunk, or `latest` for what is written from now on; the header last-event-id, which names the chunk "
        "before it, wins",
    ),
)
_INPUT_START = (
    Parameter(
        "start",
        "the index of the first value, `unread` for the first one that the run has not taken, or `latest`; the header last-event-id, "
        "which names the one before it, wins",
    ),
)
_EVENTS = (("x-stream-version", "v2"),)
LIST_STREAMS = Endpoint(
    "list_streams", "GET", "/api/v1/runs/{run}/streams", "The streams of a run", RUN_READERS, response=streams.StreamList,
    problems=(404,), tag="streams",
)  # fmt: skip
READ_INPUT = Endpoint(
    "read_input", "GET", "/realtime/v1/streams/{run}/input/{key}",
    "Read what was sent to a run: `batch` events until the run has finished", KEY_ONLY,
    response=streams.StreamBatch, parameters=_INPUT_START, problems=(400, 404), stream=True, stream_headers=_EVENTS, tag="streams",
)  # fmt: skip
SEND_INPUT = Endpoint(
    "send_input", "POST", "/realtime/v1/streams/{run}/input/{key}", "Send something to a run", INPUT_SENDERS,
    streams.InputRequest, streams.InputResponse, problems=(400, 404, 409, 413, 422), tag="streams",
)  # fmt: skip
STREAM_POSITION = Endpoint(
    "stream_position", "HEAD", "/realtime/v1/streams/{run}/{target}/{key}",
    "How far a writer has come: the header x-last-chunk-index", KEY_ONLY, problems=(400, 404), tag="streams",
)  # fmt: skip
READ_STREAM = Endpoint(
    "read_stream", "GET", "/realtime/v1/streams/{run}/{key}",
    "Read a stream: `batch` events, and `end` when it has ended", RUN_READERS,
    response=streams.StreamBatch, parameters=_START, problems=(400, 404), stream=True, stream_headers=_EVENTS, tag="streams",
)  # fmt: skip
CREATE_STREAM = Endpoint(
    "create_stream", "PUT", "/realtime/v1/streams/{run}/{target}/{key}", "Make a stream known before its first chunk", KEY_ONLY,
    response=streams.StreamCreated, status=202, problems=(400, 404, 409, 422), tag="streams",
)  # fmt: skip
APPEND_CHUNK = Endpoint(
    "append_chunk", "POST", "/realtime/v1/streams/{run}/{target}/{key}/append", "Add one chunk of text, as it is", KEY_ONLY,
    response=streams.InputResponse, problems=(400, 404, 409, 413, 422), tag="streams",
)  # fmt: skip
WRITE_STREAM = Endpoint(
    "write_stream", "POST", "/realtime/v1/streams/{run}/{target}/{key}",
    "Add chunks, one JSON value per line, while they come", KEY_ONLY,
    response=streams.InputResponse, problems=(400, 404, 409, 413, 422), tag="streams",
)  # fmt: skip

_UPCOMING = (Parameter("upcoming", "how many of the next times are told, 0 to 100, default 5", "integer"),)
LIST_SCHEDULES = Endpoint(
    "list_schedules", "GET", "/api/v1/schedules", "Schedules, newest first", READERS, response=schedules.SchedulePage,
    parameters=(
        Parameter("page", "the number of the page, from 1", "integer"),
        Parameter("perPage", "schedules on a page, 1 to 100, default 50", "integer"),
        Parameter("task", "only schedules of this task"),
    ),
    problems=(400,), tag="schedules",
)  # fmt: skip
CREATE_SCHEDULE = Endpoint(
    "create_schedule", "POST", "/api/v1/schedules", "Make a schedule, or change the one that has its deduplication key", KEY_ONLY,
    schedules.CreateScheduleRequest, schedules.ScheduleObject, problems=(400, 409, 422), tag="schedules",
)  # fmt: skip
RETRIEVE_SCHEDULE = Endpoint(
    "retrieve_schedule", "GET", "/api/v1/schedules/{schedule}", "A schedule", READERS,
    response=schedules.ScheduleObject, parameters=_UPCOMING, problems=(400, 404), tag="schedules",
)  # fmt: skip
UPDATE_SCHEDULE = Endpoint(
    "update_schedule", "PUT", "/api/v1/schedules/{schedule}", "Change a schedule; what is left out stays", KEY_ONLY,
    schedules.UpdateScheduleRequest, schedules.ScheduleObject, problems=(400, 404, 409, 422), tag="schedules",
)  # fmt: skip
DELETE_SCHEDULE = Endpoint(
    "delete_schedule", "DELETE", "/api/v1/schedules/{schedule}", "Forget a schedule; its runs go on", KEY_ONLY,
    response=schedules.ScheduleDeleted, problems=(404, 409), tag="schedules",
)  # fmt: skip
ACTIVATE_SCHEDULE = Endpoint(
    "activate_schedule", "POST", "/api/v1/schedules/{schedule}/activate", "Let a paused schedule go on from its next time",
    PAGE_WRITERS,
    response=schedules.ScheduleObject, problems=(404, 409), tag="schedules",
)  # fmt: skip
DEACTIVATE_SCHEDULE = Endpoint(
    "deactivate_schedule", "POST", "/api/v1/schedules/{schedule}/deactivate", "Pause a schedule", PAGE_WRITERS,
    response=schedules.ScheduleObject, problems=(404, 409), tag="schedules",
)  # fmt: skip
LIST_TIMEZONES = Endpoint(
    "list_timezones", "GET", "/api/v1/timezones", "The time zones that a schedule can have", READERS,
    response=schedules.Timezones, tag="schedules",
)  # fmt: skip
_QUEUE_TYPE = Parameter(
    "type", "`task`: the queue is named by the id of its task; `id`, `name` or `custom`: by its name"
)
LIST_QUEUES = Endpoint(
    "list_queues", "GET", "/api/v1/queues", "Queues, in the order of their names, without their concurrency keys", READERS,
    response=queues.QueuePage,
    parameters=(
        Parameter("page", "which page, from 1", "integer"),
        Parameter("perPage", "queues on a page, 1 to 100, default 25", "integer"),
    ),
    problems=(400,), tag="queues",
)  # fmt: skip
RETRIEVE_QUEUE = Endpoint(
    "retrieve_queue", "GET", "/api/v1/queues/{queue}", "A queue, with its concurrency keys", READERS,
    response=queues.QueueObject, parameters=(_QUEUE_TYPE,), problems=(400, 404), tag="queues",
)  # fmt: skip
PAUSE_QUEUE = Endpoint(
    "pause_queue", "POST", "/api/v1/queues/{queue}/pause",
    "Pause a queue, so that none of its queued runs begins, or resume it; what has begun goes on", PAGE_WRITERS,
    queues.PauseRequest, queues.QueueObject, problems=(400, 404, 422), tag="queues",
)  # fmt: skip
OVERRIDE_QUEUE = Endpoint(
    "override_queue", "POST", "/api/v1/queues/{queue}/concurrency/override",
    "Set another limit of a queue than its tasks say, until it is reset; what executes is not ended", PAGE_WRITERS,
    queues.OverrideRequest, queues.QueueObject, problems=(400, 404, 422), tag="queues",
)  # fmt: skip
RESET_QUEUE = Endpoint(
    "reset_queue", "POST", "/api/v1/queues/{queue}/concurrency/reset", "Go by the limit that tasks say again", PAGE_WRITERS,
    queues.ResetRequest, queues.QueueObject, problems=(400, 404, 422), tag="queues",
)  # fmt: skip

_NUMBERED = (
    Parameter("page", "which page, from 1", "integer"),
    Parameter("perPage", "how many on a page, 1 to 100, default 25", "integer"),
)
LIST_TASKS = Endpoint(
    "list_tasks", "GET", "/api/v1/tasks", "The tasks that workers have offered, in the order of their ids", READERS,
    response=tasks.TaskPage, parameters=_NUMBERED, problems=(400,), tag="tasks",
)  # fmt: skip
RETRIEVE_TASK = Endpoint(
    "retrieve_task", "GET", "/api/v1/tasks/{task}", "A task, with its schemas, and how many runs it has in each status", READERS,
    response=tasks.TaskObject, problems=(404,), tag="tasks",
)  # fmt: skip
LIST_WORKERS = Endpoint(
    "list_workers", "GET", "/api/v1/workers", "The workers that are online, the newest first", READERS,
    response=tasks.WorkerPage, parameters=_NUMBERED, problems=(400,), tag="tasks",
)  # fmt: skip

CREATE_SIGN_IN_LINK = Endpoint(
    "create_sign_in_link", "POST", "/api/v1/sign-in-links", "A link that signs a browser in to the dashboard, once and soon", KEY_ONLY,
    response=dashboard.SignInLink, tag="server",
)  # fmt: skip

TOKEN_CLAIMS = Endpoint(
    "token_claims", "POST", "/api/v1/auth/jwt/claims", "What a client that signs public tokens itself puts into each", KEY_ONLY,
    response=tokens.CommonClaims, tag="server",
)  # fmt: skip
CREATE_PUBLIC_TOKEN = Endpoint(
    "create_public_token", "POST", "/api/v1/auth/public-tokens", "A public token, signed by the server", KEY_ONLY,
    tokens.PublicTokenRequest, tokens.PublicTokenResponse, problems=(400, 422), tag="server",
)  # fmt: skip

CREATE_TOKEN = Endpoint(
    "create_token", "POST", "/api/v1/waitpoints/tokens", "Make a token that runs wait for until somebody completes it", KEY_ONLY,
    waitpoints.TokenRequest, waitpoints.TokenCreated, problems=(400, 404, 409, 422), tag="waitpoints",
)  # fmt: skip
LIST_TOKENS = Endpoint(
    "list_tokens", "GET", "/api/v1/waitpoints/tokens", "Tokens, newest first", READERS, response=waitpoints.TokenPage,
    parameters=(
        PAGE_SIZE,
        Parameter("page[after]", "a cursor: the page after it"),
        Parameter("page[before]", "a cursor: the page before it; wins over page[after]"),
        Parameter("filter[status]", "WAITING, COMPLETED and TIMED_OUT, joined with commas"),
        Parameter("filter[tags]", "tags, joined with commas; tokens with any of them"),
        Parameter("filter[idempotencyKey]", "the key that a token was made with"),
        Parameter("filter[createdAt][from]", "milliseconds since 1970", "integer"),
        Parameter("filter[createdAt][to]", "milliseconds since 1970", "integer"),
        Parameter("filter[createdAt][period]", "a span such as 1d or 30m"),
    ),
    problems=(400, 422), tag="waitpoints",
)  # fmt: skip
RETRIEVE_TOKEN = Endpoint(
    "retrieve_token", "GET", "/api/v1/waitpoints/tokens/{waitpoint}", "A token", WAITPOINT_READERS,
    response=waitpoints.TokenObject, problems=(404,), tag="waitpoints",
)  # fmt: skip
COMPLETE_TOKEN = Endpoint(
    "complete_token", "POST", "/api/v1/waitpoints/tokens/{waitpoint}/complete",
    "Complete a token. Only the first of all that would end it does; the others are told so", WAITPOINT_WRITERS,
    waitpoints.CompleteTokenRequest, waitpoints.TokenCompleted, problems=(400, 404, 409, 422), tag="waitpoints",
)  # fmt: skip
CALL_BACK = Endpoint(
    "call_back", "POST", "/api/v1/waitpoints/tokens/{waitpoint}/callback/{secret}",
    "Complete a token by its callback address, with the body as the output: any JSON, else `{}`", OPEN,
    response=waitpoints.TokenCompleted, problems=(400, 401, 404, 408, 413, 415, 422), open_query=True, tag="waitpoints",
)  # fmt: skip
AWAIT_WAITPOINT = Endpoint(
    "await_waitpoint", "POST", "/api/v1/waitpoints/{waitpoint}/wait",
    "The attempt of a run that sends this waits for a waitpoint: its worker's inbox tells of the end", KEY_ONLY,
    response=waitpoints.TokenObject, problems=(400, 404, 409), tag="waitpoints",
)  # fmt: skip
WAIT_FOR_TIME = Endpoint(
    "wait_for_time", "POST", "/api/v1/waitpoints/times", "The attempt of a run that sends this waits for a time", KEY_ONLY,
    waitpoints.TimeRequest, waitpoints.WaitpointState, problems=(400, 404, 409, 422), tag="waitpoints",
)  # fmt: skip

ENDPOINTS: tuple[Endpoint, ...] = (
    HEALTH, READY, METRICS, OPENAPI, CREATE_SIGN_IN_LINK, TOKEN_CLAIMS, CREATE_PUBLIC_TOKEN,
    TRIGGER, TRIGGER_SEVERAL, TRIGGER_BATCH, CREATE_BATCH, ADD_BATCH_ITEMS, RESET_KEY, RETRIEVE_BATCH, BATCH_RESULTS, BATCH_FEED,
    RETRIEVE_RUN, CANCEL_RUN, REPLAY_RUN, RESCHEDULE_RUN, ADD_TAGS, DELETE_RUN,
    LIST_RUNS, RUN_RESULT, RUN_LOG, RUN_TREE, RUN_FEED, REALTIME_RUN, REALTIME_RUNS, REALTIME_BATCH,
    RUNS_FEED, MATCHING_RUNS_FEED, WATCH_FEED,
    LIST_QUEUES, RETRIEVE_QUEUE, PAUSE_QUEUE, OVERRIDE_QUEUE, RESET_QUEUE,
    GET_METADATA, METADATA_HISTORY, PUT_METADATA,
    LIST_SCHEDULES, CREATE_SCHEDULE, RETRIEVE_SCHEDULE, UPDATE_SCHEDULE, DELETE_SCHEDULE, ACTIVATE_SCHEDULE, DEACTIVATE_SCHEDULE,
    LIST_TIMEZONES,
    CREATE_TOKEN, LIST_TOKENS, RETRIEVE_TOKEN, COMPLETE_TOKEN, CALL_BACK, AWAIT_WAITPOINT, WAIT_FOR_TIME,
    LIST_TASKS, RETRIEVE_TASK, LIST_WORKERS,
    REGISTER_WORKER, CLAIM_RUNS, REPORT, REPORT_LOG, REPORT_CHUNKS, INBOX,
    # The first that fits is taken: a key may have slashes.
    LIST_STREAMS, READ_INPUT, SEND_INPUT, STREAM_POSITION, READ_STREAM, CREATE_STREAM, APPEND_CHUNK, WRITE_STREAM,
)  # fmt: skip

REQUEST_ID_HEADER = "x-trigger-request-idempotency-key"

ATTEMPT_HEADER = "x-milepost-attempt"
"""Says which attempt of which run makes a request, as `run_id:attempt`; what its child processes and programs send has it too.

A request that changes something is refused with `attempt_over` once that attempt is over; those that read do not look at it.
"""
