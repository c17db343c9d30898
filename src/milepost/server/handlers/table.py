"""The table of handlers: which of them answers which endpoint."""

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request

from milepost.engine.commands import Command, ProbeWriting
from milepost.engine.committer import Committer
from milepost.errors import UnavailableError
from milepost.feed.hub import Hub
from milepost.model.run import QueuedReason
from milepost.protocol import endpoints
from milepost.reading.reader import Reader
from milepost.server.auth import Authenticator
from milepost.server.handlers.answers import Handler, StreamHandler
from milepost.server.handlers.metadata import Metadata
from milepost.server.handlers.queues import Queues
from milepost.server.handlers.runs import Runs
from milepost.server.handlers.schedules import Schedules
from milepost.server.handlers.steering import Steering
from milepost.server.handlers.tasks import Tasks
from milepost.server.handlers.tokens import Tokens
from milepost.server.handlers.triggering import Triggering
from milepost.server.handlers.waitpoints import Waitpoints
from milepost.server.handlers.work import Work
from milepost.server.health import Health
from milepost.server.openapi import describe
from milepost.server.realtime import Realtime
from milepost.server.settings import ServerSettings
from milepost.server.streaming import Streaming
from milepost.server.watching import Watching


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
        similar_task: Callable[[str], str | None],
    ) -> None:
        self._settings = settings
        self._committer = committer
        self._health = Health(reader.check_place, lambda: committer.submit(ProbeWriting()))
        self._version = version
        tokens = Tokens(authenticator, clock)
        triggering = Triggering(
            self._submit, self._submit_all, authenticator, queued_reason, similar_task, reader
        )
        runs = Runs(reader, hub, clock, self._submit)
        steering = Steering(self._submit, reader, clock)
        metadata = Metadata(self._submit, reader)
        schedules = Schedules(self._submit, reader)
        queues = Queues(self._submit, reader)
        tasks = Tasks(reader)
        work = Work(settings, self._submit, reader, hub)
        streaming = Streaming(self._submit, reader, hub)
        waitpoints = Waitpoints(self._submit, reader, authenticator, clock, public_url=settings.public_url)
        realtime = Realtime(hub, reader, clock)
        self.handlers: dict[str, Handler] = {
            endpoints.HEALTH.name: self.health,
            endpoints.OPENAPI.name: self.openapi,
            endpoints.CREATE_SIGN_IN_LINK.name: tokens.create_sign_in_link,
            endpoints.TOKEN_CLAIMS.name: tokens.token_claims,
            endpoints.CREATE_PUBLIC_TOKEN.name: tokens.create_public_token,
            endpoints.TRIGGER.name: triggering.trigger,
            endpoints.TRIGGER_SEVERAL.name: triggering.trigger_several,
            endpoints.TRIGGER_BATCH.name: triggering.trigger_batch,
            endpoints.CREATE_BATCH.name: triggering.create_batch,
            endpoints.ADD_BATCH_ITEMS.name: triggering.add_batch_items,
            endpoints.RESET_KEY.name: triggering.reset_key,
            endpoints.RETRIEVE_BATCH.name: runs.retrieve_batch,
            endpoints.BATCH_RESULTS.name: runs.batch_results,
            endpoints.RETRIEVE_RUN.name: runs.retrieve_run,
            endpoints.LIST_RUNS.name: runs.list_runs,
            endpoints.CANCEL_RUN.name: steering.cancel,
            endpoints.REPLAY_RUN.name: steering.replay,
            endpoints.RESCHEDULE_RUN.name: steering.reschedule,
            endpoints.ADD_TAGS.name: steering.add_tags,
            endpoints.DELETE_RUN.name: runs.delete_run,
            endpoints.RUN_RESULT.name: runs.run_result,
            endpoints.RUN_LOG.name: runs.run_log,
            endpoints.RUN_TREE.name: runs.run_tree,
            endpoints.LIST_TASKS.name: tasks.list_tasks,
            endpoints.RETRIEVE_TASK.name: tasks.retrieve_task,
            endpoints.LIST_WORKERS.name: tasks.list_workers,
            endpoints.LIST_QUEUES.name: queues.list_queues,
            endpoints.RETRIEVE_QUEUE.name: queues.retrieve_queue,
            endpoints.PAUSE_QUEUE.name: queues.pause_queue,
            endpoints.OVERRIDE_QUEUE.name: queues.override_queue,
            endpoints.RESET_QUEUE.name: queues.reset_queue,
            endpoints.GET_METADATA.name: metadata.get_metadata,
            endpoints.METADATA_HISTORY.name: metadata.metadata_history,
            endpoints.PUT_METADATA.name: metadata.put_metadata,
            endpoints.LIST_SCHEDULES.name: schedules.list_schedules,
            endpoints.CREATE_SCHEDULE.name: schedules.create_schedule,
            endpoints.RETRIEVE_SCHEDULE.name: schedules.retrieve_schedule,
            endpoints.UPDATE_SCHEDULE.name: schedules.update_schedule,
            endpoints.DELETE_SCHEDULE.name: schedules.delete_schedule,
            endpoints.ACTIVATE_SCHEDULE.name: schedules.activate_schedule,
            endpoints.DEACTIVATE_SCHEDULE.name: schedules.deactivate_schedule,
            endpoints.LIST_TIMEZONES.name: schedules.list_timezones,
            endpoints.CREATE_TOKEN.name: waitpoints.create_token,
            endpoints.LIST_TOKENS.name: waitpoints.list_tokens,
            endpoints.RETRIEVE_TOKEN.name: waitpoints.retrieve_token,
            endpoints.COMPLETE_TOKEN.name: waitpoints.complete_token,
            endpoints.CALL_BACK.name: waitpoints.call_back,
            endpoints.AWAIT_WAITPOINT.name: waitpoints.await_waitpoint,
            endpoints.WAIT_FOR_TIME.name: waitpoints.wait_for_time,
            endpoints.REGISTER_WORKER.name: work.register_worker,
            endpoints.CLAIM_RUNS.name: work.claim_runs,
            endpoints.REPORT.name: work.report,
            endpoints.REPORT_LOG.name: work.report_log,
            endpoints.REPORT_CHUNKS.name: streaming.report_chunks,
            endpoints.LIST_STREAMS.name: streaming.list_streams,
            endpoints.SEND_INPUT.name: streaming.send_input,
            endpoints.CREATE_STREAM.name: streaming.create_stream,
            endpoints.APPEND_CHUNK.name: streaming.append_chunk,
            endpoints.WRITE_STREAM.name: streaming.write_stream,
            endpoints.STREAM_POSITION.name: streaming.stream_position,
            endpoints.REALTIME_RUN.name: realtime.run,
            endpoints.REALTIME_RUNS.name: realtime.tagged,
            endpoints.REALTIME_BATCH.name: realtime.batch,
        }
        self.streams: dict[str, StreamHandler] = {
            endpoints.RUN_FEED.name: runs.watch_run,
            endpoints.READ_STREAM.name: streaming.read_stream,
            endpoints.READ_INPUT.name: streaming.read_input,
            endpoints.BATCH_FEED.name: runs.watch_batch,
            endpoints.RUNS_FEED.name: runs.watch_list,
            endpoints.MATCHING_RUNS_FEED.name: runs.watch_matching,
            endpoints.WATCH_FEED.name: Watching(hub, reader, authenticator, clock).watch,
            endpoints.INBOX.name: work.watch_inbox,
        }

    async def health(self, request: Request) -> Any:
        """Up (what is sent can be stored), which version, and the limit that clients check documents against (M86)."""
        await self._health.check()
        return {"status": "ok", "version": self._version, "metadataSizeMax": self._settings.metadata_size_max}

    async def openapi(self, request: Request) -> Any:
        """The API's description."""
        return describe(self._version)

    async def _submit(self, command: Command) -> Any:
        try:
            return await self._committer.submit(command)
        except UnavailableError as error:
            self._health.refused(error)
            raise

    async def _submit_all(self, commands: Sequence[Command]) -> list[Any]:
        try:
            results = await self._committer.submit_all(commands)
        except UnavailableError as error:
            self._health.refused(error)
            raise
        for result in results:
            if isinstance(result, UnavailableError):
                self._health.refused(result)
        return results
