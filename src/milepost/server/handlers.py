"""What each endpoint does: from a checked request to a command or a reading, and back to a message. No decisions here."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from starlette.requests import Request

from milepost.engine import commands
from milepost.engine.commands import TriggerItem
from milepost.engine.committer import Committer
from milepost.errors import (
    BadRequestError,
    InvalidRequestError,
    MetadataTypeError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
    UnsupportedMediaTypeError,
)
from milepost.feed import matching, streams
from milepost.feed.hub import Hub
from milepost.model import jsonvalue
from milepost.model.run import QueuedReason
from milepost.model.scopes import parse_scope
from milepost.model.shown_keys import shown_document
from milepost.protocol import endpoints
from milepost.protocol.dashboard import SignInLink
from milepost.protocol.endpoints import REQUEST_ID_HEADER, Endpoint
from milepost.protocol.metadata import OPERATIONS_MAX, MetadataRequest, MetadataResponse
from milepost.protocol.tokens import (
    ENVIRONMENT_ID,
    LIFE_SECONDS,
    CommonClaims,
    PublicTokenRequest,
    PublicTokenResponse,
    expiry_of,
)
from milepost.protocol.triggering import (
    BatchCreateRequest,
    BatchCreateResponse,
    BatchItemsResponse,
    BatchLine,
    BatchRequest,
    BatchResponse,
    TriggerRequest,
    TriggerResponse,
)
from milepost.protocol.work import (
    LOG_LINES_MAX,
    ClaimRequest,
    ClaimResponse,
    LogRequest,
    LogResponse,
    RegisterRequest,
    RegisterResponse,
    ReportRequest,
    ReportResponse,
)
from milepost.reading.reader import Reader
from milepost.server import access, doors, requests
from milepost.server.auth import CODE_SECONDS, Authenticator, Caller, caller_of
from milepost.server.health import Health
from milepost.server.openapi import describe
from milepost.server.realtime import Realtime
from milepost.server.settings import ServerSettings
from milepost.server.streaming import Streaming
from milepost.server.watching import Watching

CLAIM_WAIT_SECONDS_MAX = 30.0
REQUEST_ID_CHARACTERS_MAX = 200
SERVER_LIFE_SECONDS_MAX = 30 * 24 * 3600
# Changes are small; `reading/history.py` ends a page early where they are not.
HISTORY_PAGE_SIZE_MAX = 1000
_Result = TypeVar("_Result")

Handler = Callable[[Request], Awaitable[Any]]
StreamHandler = Callable[[Request], AsyncIterator[bytes]]


class WithToken(NamedTuple):
    """An answer with a token in its header."""

    message: Any
    token: str


class Handlers:
    """The endpoints by name; `handlers[name]` answers with a message, `streams[name]` with an iterator of events."""

    def __init__(
        self,
        settings: ServerSettings,
        committer: Committer,
        reader: Reader,
        hub: Hub,
        authenticator: Authenticator,
        clock: Callable[[], int],
        version: str,
        *,
        queued_reason: Callable[[str], QueuedReason | None],
    ) -> None:
        self._settings = settings
        self._committer = committer
        self._reader = reader
        self._hub = hub
        self._authenticator = authenticator
        self._health = Health(reader.check_place, lambda: committer.submit(commands.ProbeWriting()))
        self._clock = clock
        self._version = version
        self._queued_reason = queued_reason
        streaming = Streaming(self._submit, reader, hub)
        self.handlers: dict[str, Handler] = {
            endpoints.HEALTH.name: self.health,
            endpoints.OPENAPI.name: self.openapi,
            endpoints.CREATE_SIGN_IN_LINK.name: self.create_sign_in_link,
            endpoints.TOKEN_CLAIMS.name: self.token_claims,
            endpoints.CREATE_PUBLIC_TOKEN.name: self.create_public_token,
            endpoints.TRIGGER.name: self.trigger,
            endpoints.TRIGGER_BATCH.name: self.trigger_batch,
            endpoints.CREATE_BATCH.name: self.create_batch,
            endpoints.ADD_BATCH_ITEMS.name: self.add_batch_items,
            endpoints.RETRIEVE_BATCH.name: self._reading(endpoints.RETRIEVE_BATCH, "batch", reader.batch),
            endpoints.BATCH_RESULTS.name: self.batch_results,
            endpoints.RETRIEVE_RUN.name: self.retrieve_run,
            endpoints.LIST_RUNS.name: self.list_runs,
            endpoints.RUN_RESULT.name: self.run_result,
            endpoints.RUN_LOG.name: self.run_log,
            endpoints.GET_METADATA.name: self.get_metadata,
            endpoints.METADATA_HISTORY.name: self.metadata_history,
            endpoints.PUT_METADATA.name: self.put_metadata,
            endpoints.REGISTER_WORKER.name: self.register_worker,
            endpoints.CLAIM_RUNS.name: self.claim_runs,
            endpoints.REPORT.name: self.report,
            endpoints.REPORT_LOG.name: self.report_log,
            endpoints.REPORT_CHUNKS.name: streaming.report_chunks,
            endpoints.LIST_STREAMS.name: streaming.list_streams,
            endpoints.SEND_INPUT.name: streaming.send_input,
            endpoints.CREATE_STREAM.name: streaming.create_stream,
            endpoints.APPEND_CHUNK.name: streaming.append_chunk,
            endpoints.WRITE_STREAM.name: streaming.write_stream,
            endpoints.STREAM_POSITION.name: streaming.stream_position,
            endpoints.REALTIME_RUN.name: Realtime(hub, reader).run,
        }
        self.streams: dict[str, StreamHandler] = {
            endpoints.RUN_FEED.name: self.watch_run,
            endpoints.READ_STREAM.name: streaming.read_stream,
            endpoints.READ_INPUT.name: streaming.read_input,
            endpoints.BATCH_FEED.name: lambda request: streams.watch_batch(
                hub, reader, request.path_params["batch"]
            ),
            endpoints.RUNS_FEED.name: self.watch_list,
            endpoints.MATCHING_RUNS_FEED.name: self.watch_matching,
            endpoints.WATCH_FEED.name: Watching(hub, reader, authenticator, clock).watch,
            endpoints.INBOX.name: lambda request: streams.watch_inbox(
                hub, reader, request.path_params["worker"]
            ),
        }

    async def health(self, request: Request) -> Any:
        """Up (what is sent can be stored), which version, and the limit that clients check documents against (M86)."""
        await self._health.check()
        return {"status": "ok", "version": self._version, "metadataSizeMax": self._settings.metadata_size_max}

    async def openapi(self, request: Request) -> Any:
        """The API's description."""
        return describe(self._version)

    async def create_sign_in_link(self, request: Request) -> Any:
        """A link that signs a browser in."""
        return SignInLink(sign_in_path(self._authenticator), CODE_SECONDS)

    async def token_claims(self, request: Request) -> Any:
        """What clients put into the tokens that they sign."""
        return CommonClaims(ENVIRONMENT_ID, True)

    async def create_public_token(self, request: Request) -> Any:
        """A token for whoever cannot sign it."""
        body: PublicTokenRequest = await _body(request, PublicTokenRequest)
        now = self._clock() // 1_000_000
        try:
            expires_at = expiry_of(
                LIFE_SECONDS if body.expiration_time is None else body.expiration_time, now
            )
        except ValueError as error:
            raise InvalidRequestError(f"expirationTime: {error}", field="expirationTime") from None
        if expires_at - now > SERVER_LIFE_SECONDS_MAX:
            raise InvalidRequestError(
                "expirationTime: a token that the server signs lives for at most 30 days",
                field="expirationTime",
                limit=SERVER_LIFE_SECONDS_MAX,
            )
        for index, scope in enumerate(body.scopes):
            if parse_scope(scope) is None:
                raise InvalidRequestError(
                    f"scopes[{index}]: {scope!r:.100} is no scope; write action:resource or action:resource:id",
                    field=f"scopes[{index}]",
                )
        token = self._authenticator.sign_token(
            body.scopes,
            expires_at=expires_at,
            one_time=body.one_time_use or None,
            metadata_keys=body.metadata_keys,
            realtime=body.realtime,
        )
        return PublicTokenResponse(token)

    async def trigger(self, request: Request) -> Any:
        """One run."""
        body: TriggerRequest = await _body(request, TriggerRequest)
        item = TriggerItem(request.path_params["task"], body.payload, body.options)
        caller = caller_of(request)
        access.check_no_parent(
            caller, [item.options.parent_run_id], [item.options.resume_parent_on_completion]
        )
        attempt = access.attempt_of(caller, request)
        await doors.check_payloads([item], place="")
        triggered = await self._submit(
            commands.Trigger(item, _request_id(request), access.one_time_token(caller), attempt)
        )
        run_id = triggered.run_ids[0]
        return WithToken(
            TriggerResponse(run_id, triggered.cached, self._queued_reason(item.task)),
            self._handed_out([f"read:runs:{run_id}", f"write:inputStreams:{run_id}"], caller),
        )

    def _handed_out(self, scopes: Sequence[str], caller: Caller) -> str:
        """A token for what was made. It shows no more of documents than the caller's own."""
        keys = caller.view.keys
        return self._authenticator.sign_token(scopes, metadata_keys=None if keys is None else sorted(keys))

    def _with_batch_token(self, message: Any, batch_id: str, caller: Caller) -> WithToken:
        scopes = [f"read:batch:{batch_id}"]
        if caller.token is not None:
            # Its own token may work once: the items come with this one.
            scopes.append(f"write:batch:{batch_id}")
        return WithToken(message, self._handed_out(scopes, caller))

    async def trigger_batch(self, request: Request) -> Any:
        """A whole batch."""
        body: BatchRequest = await _body(request, BatchRequest)
        items = [TriggerItem(item.task, item.payload, item.options) for item in body.items]
        caller = caller_of(request)
        access.check_batch_tasks(caller, (item.task for item in items))
        _check_parents(caller, body, items)
        attempt = access.attempt_of(caller, request)
        await doors.check_payloads(items, place="items[{}].")
        triggered = await self._submit(
            commands.TriggerBatch(
                items,
                body.parent_run_id,
                body.resume_parent_on_completion,
                _request_id(request),
                access.one_time_token(caller),
                attempt,
            )
        )
        answer = BatchResponse(
            triggered.batch_id, len(triggered.run_ids), triggered.run_ids, self._queued_reasons(items)
        )
        return self._with_batch_token(answer, triggered.batch_id, caller)

    def _queued_reasons(self, items: Sequence[TriggerItem]) -> dict[str, QueuedReason]:
        tasks = dict.fromkeys(item.task for item in items)
        return {task: reason for task in tasks if (reason := self._queued_reason(task)) is not None}

    async def create_batch(self, request: Request) -> Any:
        """First phase of a batch."""
        body: BatchCreateRequest = await _body(request, BatchCreateRequest)
        caller = caller_of(request)
        access.check_batch_tasks(caller, body.task_identifiers)
        _check_parents(caller, body, ())
        attempt = access.attempt_of(caller, request)
        batch_id = await self._submit(
            commands.CreateBatch(
                body.run_count,
                body.parent_run_id,
                body.resume_parent_on_completion,
                _request_id(request),
                access.one_time_token(caller),
                attempt,
            )
        )
        # Never "cached": then the clients would not send the items.
        answer = BatchCreateResponse(id=batch_id, run_count=body.run_count, is_cached=False)
        return self._with_batch_token(answer, batch_id, caller)

    async def add_batch_items(self, request: Request) -> Any:
        """Second phase of a batch."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/x-ndjson", "application/json", ""):
            raise UnsupportedMediaTypeError(
                f"items come as application/x-ndjson, not as {kind!r}", field="content-type"
            )
        texts = [line for line in (await requests.read_body(request)).split(b"\n") if line.strip()]
        lines: list[BatchLine] = [
            requests.decode(line, BatchLine, place=f"items[{number}]") for number, line in enumerate(texts)
        ]
        items = [TriggerItem(line.task, line.payload, line.options) for line in lines]
        batch_id, caller = request.path_params["batch"], caller_of(request)
        one_time: commands.OneTimeToken | None = None
        if caller.token is not None and not access.may_fill(caller.token, batch_id):
            access.check_batch_tasks(caller, (item.task for item in items))
            one_time = access.one_time_token(caller)
        access.check_no_parent(
            caller,
            (item.options.parent_run_id for item in items),
            (item.options.resume_parent_on_completion for item in items),
        )
        attempt = access.attempt_of(caller, request)
        await doors.check_payloads(items, place="items[{}].")
        run_count = None
        if "runCount" in request.query_params:
            run_count = requests.whole_number(request, "runCount", default=0)
        added = await self._submit(commands.AddBatchItems(batch_id, lines, run_count, one_time, attempt))
        return BatchItemsResponse(
            id=batch_id,
            items_accepted=added.accepted,
            items_deduplicated=added.deduplicated,
            sealed=added.accepted_count == added.run_count,
            enqueued_count=added.accepted_count,
            expected_count=added.run_count,
            runs=added.run_ids,
            queued_reasons=self._queued_reasons(items),
        )

    async def batch_results(self, request: Request) -> Any:
        """The results of a batch, page by page."""
        after = requests.whole_number(request, "page[after]", default=-1)
        return await asyncio.to_thread(self._reader.batch_results, request.path_params["batch"], after=after)

    async def list_runs(self, request: Request) -> Any:
        """One page of runs."""
        view = caller_of(request).view
        filter, size = requests.run_filter(request, self._clock(), view), requests.page_size(request)
        after, before = request.query_params.get("page[after]"), request.query_params.get("page[before]")
        return await asyncio.to_thread(
            self._reader.page, filter, size=size, after=after, before=before, keys=view.keys
        )

    async def retrieve_run(self, request: Request) -> Any:
        """One run."""
        return await asyncio.to_thread(self._reader.run, request.path_params["run"], caller_of(request).view)

    def watch_run(self, request: Request) -> AsyncIterator[bytes]:
        """One run, live, with its children where they are asked for."""
        run_id, view = request.path_params["run"], caller_of(request).view.in_feeds()
        if "children" not in request.query_params:
            return streams.watch_run(self._hub, self._reader, run_id, view=view)
        size = requests.page_size(request, "children")
        return streams.watch_family(self._hub, self._reader, run_id, size=size, view=view)

    async def watch_list(self, request: Request) -> AsyncGenerator[bytes]:
        """The first page of a list, live."""
        view = caller_of(request).view.in_feeds()
        filter, size = requests.run_filter(request, self._clock(), view), requests.page_size(request)
        rows = streams.watch_list(self._hub, self._reader, filter, size=size, keys=view.keys)
        async with aclosing(rows) as frames:
            async for frame in frames:
                yield frame

    async def watch_matching(self, request: Request) -> AsyncGenerator[bytes]:
        """All runs that match, live."""
        view = caller_of(request).view.in_feeds()
        filter = requests.run_filter(request, self._clock(), view)
        runs = matching.watch_matching(self._hub, self._reader, filter, view.keys)
        async with aclosing(runs) as frames:
            async for frame in frames:
                yield frame

    async def run_result(self, request: Request) -> Any:
        """The result of a finished run."""
        run_id = request.path_params["run"]
        result = await asyncio.to_thread(self._reader.result, run_id)
        if result is None:
            raise NotFoundError(f"run {run_id!r} has not finished yet, so it has no result")
        return result

    async def run_log(self, request: Request) -> Any:
        """Lines of the run's log."""
        after = requests.whole_number(request, "page[after]", default=0)
        return await asyncio.to_thread(self._reader.log, request.path_params["run"], after=after)

    async def get_metadata(self, request: Request) -> Any:
        """The run's document, as it is or as it was."""
        run_id, history = request.path_params["run"], self._reader.history
        keys = caller_of(request).view.keys
        if "version" in request.query_params and "at" in request.query_params:
            raise BadRequestError("give either `version` or `at`, not both", field="at")
        if "version" in request.query_params:
            version = requests.whole_number(request, "version", default=0)
            if version < 0:
                raise BadRequestError(f"version is 0 or more, not {version}", field="version")
            value, version = await asyncio.to_thread(history.at_version, run_id, version, keys)
        elif "at" in request.query_params:
            at = requests.whole_number(request, "at", default=0)
            value, version = await asyncio.to_thread(history.at_time, run_id, at, keys)
        else:
            value, version = await asyncio.to_thread(self._reader.metadata, run_id, keys)
        return MetadataResponse(metadata=msgspec.Raw(value), version=version)

    async def metadata_history(self, request: Request) -> Any:
        """What was changed in the run's document."""
        size = requests.page_size(request, most=HISTORY_PAGE_SIZE_MAX)
        after = requests.whole_number(request, "page[after]", default=0)
        return await asyncio.to_thread(
            self._reader.history.page,
            request.path_params["run"],
            size=size,
            after=after,
            view=caller_of(request).view,
        )

    async def put_metadata(self, request: Request) -> Any:
        """Operations, or a whole document."""
        body: MetadataRequest = await _body(request, MetadataRequest)
        lists = (
            ("self", body.operations),
            ("parent", body.parent_operations),
            ("root", body.root_operations),
        )
        targets = [(relation, operations) for relation, operations in lists if operations is not None]
        _check_operation_count(sum(len(operations) for _, operations in targets))
        document = None if body.operations is not None else body.metadata
        if document is not None and not isinstance(document, dict):
            raise MetadataTypeError(
                f"metadata must be a JSON object, not {jsonvalue.describe(document)}", key="metadata"
            )
        if document is None and not targets:
            raise BadRequestError("send `operations` (a list) or `metadata` (an object)", field="operations")
        whole = cast("dict[str, Any] | None", document)
        run_id, caller = request.path_params["run"], caller_of(request)
        attempt = access.attempt_of(caller, request)
        access.check_written(caller, body, run_id)
        updated = await self._submit(
            commands.UpdateMetadata(
                run_id,
                targets,
                whole,
                body.if_version,
                _request_id(request),
                attempt,
            )
        )
        value, refused = updated.value, updated.refused
        if caller.token is not None:
            # Whoever may write to a document need not be shown it.
            view = caller.token.view
            is_shown = await access.shows(view.runs, run_id, self._reader)
            value = shown_document(value, view.keys) if is_shown else b"{}"
            if not is_shown or view.keys is not None:
                refused = [access.without_other_keys(one) for one in refused]
        return MetadataResponse(metadata=msgspec.Raw(value), version=updated.version, refused=refused or None)

    async def register_worker(self, request: Request) -> Any:
        """A worker presents itself."""
        body: RegisterRequest = await _body(request, RegisterRequest)
        doors.check_registration(body)
        await self._submit(
            commands.RegisterWorker(
                body.id, body.name, body.tasks, body.holding, body.attempts, body.sequence, body.claims
            )
        )
        return RegisterResponse(
            lease_seconds=self._settings.lease_seconds,
            heartbeat_seconds=self._settings.lease_seconds / 3,
            metadata_size_max=self._settings.metadata_size_max,
            log_bytes_max=self._settings.log_bytes_max,
        )

    async def claim_runs(self, request: Request) -> Any:
        """Runs for a worker, as soon as there are some."""
        body: ClaimRequest = await _body(request, ClaimRequest)
        wait_seconds = min(max(body.wait_seconds, 0.0), CLAIM_WAIT_SECONDS_MAX)
        worker_id = request.path_params["worker"]
        claim = asyncio.ensure_future(
            self._submit(commands.Claim(worker_id, body.sequence, body.slots, wait_seconds))
        )
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({claim, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not claim.done():
                # A worker that is not there any more must not be given runs, which would then wait for its lease to end.
                await self._submit(commands.WithdrawClaim(worker_id, body.sequence))
            return ClaimResponse(await claim)
        finally:
            gone.cancel()

    async def report(self, request: Request) -> Any:
        """What happened in a worker's runs."""
        body: ReportRequest = await _body(request, ReportRequest)
        for run in body.runs:
            _check_operation_count(sum(len(target.operations) for target in run.changes), run.id)
        runs = await doors.check_reports(body.runs)
        return ReportResponse(
            await self._submit(commands.Report(request.path_params["worker"], runs, body.leaving, body.death))
        )

    async def report_log(self, request: Request) -> Any:
        """What a worker's runs have logged."""
        body: LogRequest = await _body(request, LogRequest)
        count = sum(len(part.lines) for part in body.runs)
        if count > LOG_LINES_MAX:
            raise TooLargeError(
                f"the request holds {count:,} lines, the limit is {LOG_LINES_MAX:,}: send them in several parts, in their order",
                field="lines",
                limit=LOG_LINES_MAX,
            )
        doors.check_log(body.runs)
        await self._submit(commands.AppendLog(request.path_params["worker"], body.runs))
        return LogResponse()

    async def _submit(self, command: commands.Command) -> Any:
        try:
            return await self._committer.submit(command)
        except UnavailableError as error:
            self._health.refused(error)
            raise

    def _reading(self, endpoint: Endpoint, parameter: str, read: Callable[[str], _Result]) -> Handler:
        async def handler(request: Request) -> _Result:
            return await asyncio.to_thread(read, request.path_params[parameter])

        return handler


def sign_in_path(authenticator: Authenticator) -> str:
    """The path of a link that signs a browser in, once and soon."""
    return f"/sign-in?code={authenticator.new_code()}"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_operation_count(count: int, run_id: str | None = None) -> None:
    """Raise TooLargeError for more operations than one command may hold."""
    if count > OPERATIONS_MAX:
        whose = "the request" if run_id is None else f"the report of run {run_id!r}"
        raise TooLargeError(
            f"{whose} holds {count:,} operations, the limit is {OPERATIONS_MAX:,}: send them in several parts, in their order",
            field="operations",
            limit=OPERATIONS_MAX,
        )


async def _body(request: Request, kind: Any) -> Any:
    return requests.decode(await requests.read_body(request), kind)


def _check_parents(
    caller: Caller, body: BatchRequest | BatchCreateRequest, items: Sequence[TriggerItem]
) -> None:
    access.check_no_parent(
        caller,
        [body.parent_run_id, *(item.options.parent_run_id for item in items)],
        [
            body.resume_parent_on_completion,
            *(item.options.resume_parent_on_completion for item in items),
        ],
    )


def _request_id(request: Request) -> str | None:
    request_id = request.headers.get(REQUEST_ID_HEADER)
    if request_id is None:
        return None
    if not request_id:
        raise BadRequestError(
            f"{REQUEST_ID_HEADER} is empty: leave it out, or send an id", field=REQUEST_ID_HEADER
        )
    if len(request_id) > REQUEST_ID_CHARACTERS_MAX:
        raise BadRequestError(
            f"{REQUEST_ID_HEADER} has more than {REQUEST_ID_CHARACTERS_MAX} characters",
            field=REQUEST_ID_HEADER,
            limit=REQUEST_ID_CHARACTERS_MAX,
        )
    # The same id on another path is another request (protocol, section 1.4), and so is that of another token: nobody is answered what
    # somebody else was.
    token = caller_of(request).token
    whose = "" if token is None else f" {token.id}"
    return f"{request.method} {request.scope['path']} {request_id}{whose}"
