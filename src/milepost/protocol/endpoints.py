"""The table of endpoints: the server routes by it, the client calls by it, the OpenAPI document is printed from it."""

from dataclasses import dataclass, field
from typing import Any

from milepost.protocol import feed, metadata, runs, triggering, work


@dataclass(frozen=True)
class Parameter:
    """A query parameter. `kind` is a JSON schema type."""

    name: str
    summary: str
    kind: str = "string"


@dataclass(frozen=True)
class Endpoint:
    """One call of the HTTP API.

    `problems` are the status codes that it may answer with beside the ones that every endpoint has (401, 413, 503). `stream` marks
    server-sent events, whose `response` is the shape of one frame. `lines` marks a body of one JSON object per line.
    """

    name: str
    method: str
    path: str
    summary: str
    request: Any = None
    response: Any = None
    status: int = 200
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[int, ...] = ()
    stream: bool = False
    lines: bool = False
    public: bool = False
    tag: str = field(default="runs")


RUN_FILTERS = (
    Parameter("filter[status]", "statuses, joined with commas"),
    Parameter("filter[taskIdentifier]", "task ids, joined with commas"),
    Parameter("filter[tag]", "tags, joined with commas; runs with any of them"),
    Parameter("filter[batch]", "a batch id"),
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
PAGE_SIZE = Parameter("page[size]", "runs on a page, 1 to 100, default 25", "integer")

HEALTH = Endpoint(
    "health", "GET", "/api/v1/health", "Is the server up?", response=dict[str, Any], public=True, tag="server"
)
OPENAPI = Endpoint(
    "openapi", "GET", "/api/openapi.json", "This description", response=dict[str, Any], tag="server"
)

TRIGGER = Endpoint(
    "trigger", "POST", "/api/v1/tasks/{task}/trigger", "Trigger one run",
    triggering.TriggerRequest, triggering.TriggerResponse, problems=(400, 404, 422), tag="triggering",
)  # fmt: skip
TRIGGER_BATCH = Endpoint(
    "trigger_batch", "POST", "/api/v2/tasks/batch", "Trigger up to 1,000 runs at once",
    triggering.BatchRequest, triggering.BatchResponse, status=202, problems=(400, 404, 422), tag="triggering",
)  # fmt: skip
CREATE_BATCH = Endpoint(
    "create_batch", "POST", "/api/v3/batches", "Announce a batch whose items follow",
    triggering.BatchCreateRequest, triggering.BatchCreateResponse, status=202, problems=(400, 404, 422), tag="triggering",
)  # fmt: skip
ADD_BATCH_ITEMS = Endpoint(
    "add_batch_items", "POST", "/api/v3/batches/{batch}/items", "Send the items of an announced batch, one JSON object per line",
    triggering.BatchLine, triggering.BatchItemsResponse, lines=True, problems=(400, 404, 415, 422), tag="triggering",
    parameters=(Parameter("runCount", "how many items the batch has in all, where that was not said before", "integer"),),
)  # fmt: skip
RETRIEVE_BATCH = Endpoint(
    "retrieve_batch",
    "GET",
    "/api/v2/batches/{batch}",
    "A batch",
    response=triggering.BatchObject,
    problems=(404,),
    tag="triggering",
)
BATCH_RESULTS = Endpoint(
    "batch_results", "GET", "/api/v1/batches/{batch}/results", "The results of the runs of a batch that have ended",
    response=triggering.BatchResults, problems=(400, 404), tag="triggering",
    parameters=(Parameter("page[after]", "only the results behind this index", "integer"),),
)  # fmt: skip
BATCH_FEED = Endpoint(
    "batch_feed", "GET", "/api/v1/batches/{batch}/feed", "Watch a batch until all its runs have ended",
    response=feed.BatchFrame, problems=(404,), stream=True, tag="feed",
)  # fmt: skip

RETRIEVE_RUN = Endpoint(
    "retrieve_run", "GET", "/api/v3/runs/{run}", "A run", response=runs.RunObject, problems=(404,)
)
LIST_RUNS = Endpoint(
    "list_runs", "GET", "/api/v1/runs", "Runs, newest first", response=runs.RunPage,
    parameters=(
        PAGE_SIZE,
        Parameter("page[after]", "a cursor: the page after it"),
        Parameter("page[before]", "a cursor: the page before it; wins over page[after]"),
        *RUN_FILTERS,
    ),
    problems=(400, 422),
)  # fmt: skip
RUN_RESULT = Endpoint(
    "run_result", "GET", "/api/v1/runs/{run}/result", "The result of a finished run; 404 while it has none",
    response=runs.RunResult, problems=(404,),
)  # fmt: skip
RUN_LOG = Endpoint(
    "run_log", "GET", "/api/v1/runs/{run}/logs", "What the run has logged", response=runs.RunLog,
    parameters=(Parameter("page[after]", "the cursor of the page before", "integer"),), problems=(400, 404),
)  # fmt: skip
RUN_FEED = Endpoint(
    "run_feed", "GET", "/api/v1/runs/{run}/feed", "Watch a run until it has finished: a snapshot, then deltas",
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
RUNS_FEED = Endpoint(
    "runs_feed", "GET", "/api/v1/feed/runs", "Watch the first page of a list of runs", response=feed.RunListFrame,
    parameters=(PAGE_SIZE, *RUN_FILTERS), problems=(400, 422), stream=True, tag="feed",
)  # fmt: skip
MATCHING_RUNS_FEED = Endpoint(
    "matching_runs_feed", "GET", "/api/v1/feed/matching-runs",
    "Watch all runs that match: each as it is now, `present`, then each newer state",
    response=feed.MatchingRunFrame, parameters=RUN_FILTERS, problems=(400, 422), stream=True, tag="feed",
)  # fmt: skip

GET_METADATA = Endpoint(
    "get_metadata", "GET", "/api/v1/runs/{run}/metadata", "The document of a run, as it is or as it was",
    response=metadata.MetadataResponse,
    parameters=(
        Parameter("version", "the document as it was at this version", "integer"),
        Parameter("at", "the document as it was at this time, microseconds since 1970", "integer"),
    ),
    problems=(400, 404, 410), tag="metadata",
)  # fmt: skip
METADATA_HISTORY = Endpoint(
    "metadata_history", "GET", "/api/v1/runs/{run}/metadata/history", "What was changed in the document of a run, oldest first",
    response=metadata.MetadataHistory,
    parameters=(
        Parameter("page[size]", "changes on a page, 1 to 1,000, default 25; large changes make a page end earlier", "integer"),
        Parameter("page[after]", "a version: the changes after it", "integer"),
    ),
    problems=(400, 404), tag="metadata",
)  # fmt: skip
PUT_METADATA = Endpoint(
    "put_metadata", "PUT", "/api/v1/runs/{run}/metadata", "Apply operations to the documents of a run, its parent and its root",
    metadata.MetadataRequest, metadata.MetadataResponse, problems=(400, 404, 409, 422), tag="metadata",
)  # fmt: skip

REGISTER_WORKER = Endpoint(
    "register_worker", "POST", "/api/v1/workers", "A worker presents itself and its tasks",
    work.RegisterRequest, work.RegisterResponse, problems=(400, 422), tag="workers",
)  # fmt: skip
CLAIM_RUNS = Endpoint(
    "claim_runs", "POST", "/api/v1/workers/{worker}/claim", "Take queued runs; waits until there is one",
    work.ClaimRequest, work.ClaimResponse, problems=(400, 404), tag="workers",
)  # fmt: skip
REPORT = Endpoint(
    "report", "POST", "/api/v1/workers/{worker}/report", "What happened in the runs of a worker",
    work.ReportRequest, work.ReportResponse, problems=(400, 404), tag="workers",
)  # fmt: skip
INBOX = Endpoint(
    "inbox", "GET", "/api/v1/workers/{worker}/inbox", "What the runs of a worker should know",
    response=work.InboxFrame, problems=(404,), stream=True, tag="workers",
)  # fmt: skip

ENDPOINTS: tuple[Endpoint, ...] = (
    HEALTH, OPENAPI,
    TRIGGER, TRIGGER_BATCH, CREATE_BATCH, ADD_BATCH_ITEMS, RETRIEVE_BATCH, BATCH_RESULTS, BATCH_FEED,
    RETRIEVE_RUN, LIST_RUNS, RUN_RESULT, RUN_LOG, RUN_FEED, RUNS_FEED, MATCHING_RUNS_FEED,
    GET_METADATA, METADATA_HISTORY, PUT_METADATA,
    REGISTER_WORKER, CLAIM_RUNS, REPORT, INBOX,
)  # fmt: skip

REQUEST_ID_HEADER = "x-trigger-request-idempotency-key"
