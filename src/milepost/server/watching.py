"""What a page watches on one connection: each thing is checked by itself, with its own token, and told by its own feed."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from urllib.parse import urlencode

from starlette.requests import Request

from milepost.errors import BadRequestError, InvalidRequestError, RequestError, TooLargeError
from milepost.feed.chunks import watch_stream
from milepost.feed.hub import Hub
from milepost.feed.many import watch_many
from milepost.feed.matching import watch_matching
from milepost.feed.run_streams import watch_run_streams
from milepost.feed.streams import watch_family, watch_list, watch_run
from milepost.protocol import endpoints
from milepost.protocol.feed import WATCHES_MAX, Watched, WatchRequest
from milepost.protocol.streams import STREAMS_MAX
from milepost.reading.reader import Reader
from milepost.server import requests
from milepost.server.access import admit
from milepost.server.auth import Authenticator, Caller, caller_of
from milepost.server.streaming import check_key
from milepost.store.runs import RunFilter
from milepost.store.streams import OUTPUT

_INDEX_MAX = 10**18


class Watching:
    """The feed for many things at once.

    Args:
        clock: microseconds since 1970.
    """

    def __init__(
        self, hub: Hub, reader: Reader, authenticator: Authenticator, clock: Callable[[], int]
    ) -> None:
        self._hub = hub
        self._reader = reader
        self._authenticator = authenticator
        self._clock = clock

    async def watch(self, request: Request) -> AsyncGenerator[bytes]:
        """Everything that the request names, live."""
        body: WatchRequest = requests.decode(await requests.read_body(request), WatchRequest)
        if len(body.watches) > WATCHES_MAX:
            raise TooLargeError(
                f"the request watches {len(body.watches):,} things, the limit is {WATCHES_MAX:,}: watch a tag instead",
                field="watches",
                limit=WATCHES_MAX,
            )
        caller = caller_of(request)
        feeds = [
            self._feed(watched, f"watches[{number}]", caller, body.tokens)
            for number, watched in enumerate(body.watches)
        ]
        async with aclosing(watch_many(feeds)) as frames:
            async for frame in frames:
                yield frame

    async def _feed(
        self, watched: Watched, place: str, caller: Caller, tokens: Sequence[str]
    ) -> AsyncGenerator[bytes]:
        """The events of one thing. What is wrong with it is raised before the first."""
        if watched.token is not None:
            if not 0 <= watched.token < len(tokens):
                raise BadRequestError(
                    f"{place}.token is the place of a token in `tokens`, which has {len(tokens):,}",
                    field=f"{place}.token",
                )
            caller = self._authenticator.bearer(tokens[watched.token])
        async with aclosing(await self._admitted(watched, place, caller)) as frames:
            async for frame in frames:
                yield frame

    async def _admitted(self, watched: Watched, place: str, caller: Caller) -> AsyncGenerator[bytes]:
        run_id, key, tag = watched.run, watched.stream, watched.tag
        of_the_run = [watched.children, key, watched.streams]
        if (
            [run_id, tag, watched.list].count(None) != 2
            or of_the_run.count(None) < (3 if run_id is None else 2)
            or (watched.only_streams and watched.streams is None)
        ):
            raise BadRequestError(
                f"{place} names a run, a run and its children, a run and a stream of it, a run and its streams, a tag, or a list",
                field=place,
            )
        if watched.list is not None:
            return await self._list(watched.list, place, caller)
        if tag is not None:
            await admit(caller, endpoints.MATCHING_RUNS_FEED, {}, self._reader)
            created_from = None
            if watched.period is not None:
                seconds = requests.period_seconds(watched.period, f"{place}.period")
                created_from = max(0, self._clock() - seconds * 1_000_000)
            filter = RunFilter(tags=(tag,), created_from=created_from, shown=caller.view.runs)
            return watch_matching(self._hub, self._reader, filter, caller.view.in_feeds())
        assert run_id is not None, "it was looked at above"
        if key is None:
            await admit(caller, endpoints.RUN_FEED, {"run": run_id}, self._reader)
            view = caller.view.in_feeds()
            if watched.children is not None:
                requests.check_page_size(watched.children, f"{place}.children")
                return watch_family(self._hub, self._reader, run_id, size=watched.children, view=view)
            if watched.streams is None:
                return watch_run(self._hub, self._reader, run_id, view=view)
            _check_starts(watched.streams, f"{place}.streams")
            await admit(caller, endpoints.LIST_STREAMS, {"run": run_id}, self._reader)
            return watch_run_streams(
                self._hub,
                self._reader,
                run_id,
                watched.streams,
                only=watched.only_streams,
                view=view,
            )
        check_key(key)
        start = watched.start or 0
        _check_index(start, f"{place}.start")
        await admit(caller, endpoints.READ_STREAM, {"run": run_id, "key": key}, self._reader)
        name = OUTPUT + key
        return watch_stream(self._hub, self._reader, run_id, name, start=None if watched.latest else start)

    async def _list(self, parameters: Mapping[str, str], place: str, caller: Caller) -> AsyncGenerator[bytes]:
        """The first page of a list, asked for with the query parameters that the list's own feed takes."""
        await admit(caller, endpoints.RUNS_FEED, {}, self._reader)
        query = Request({"type": "http", "query_string": urlencode(parameters).encode(), "headers": []})
        view = caller.view.in_feeds()
        try:
            requests.check_query(query, endpoints.RUNS_FEED)
            filter, size = requests.run_filter(query, self._clock(), view), requests.page_size(query)
        except RequestError as error:
            error.field = f"{place}.list.{error.field}"
            raise
        return watch_list(self._hub, self._reader, filter, size=size, view=view)


def _check_starts(starts: Mapping[str, int], place: str) -> None:
    if len(starts) > STREAMS_MAX:
        raise TooLargeError(
            f"{place} names {len(starts):,} streams, and a run has at most {STREAMS_MAX:,}",
            field=place,
            limit=STREAMS_MAX,
        )
    for key, start in starts.items():
        check_key(key)
        _check_index(start, f"{place}.{key}")


def _check_index(start: int, place: str) -> None:
    if not 0 <= start <= _INDEX_MAX:
        raise InvalidRequestError(f"{place} is the index of a chunk, 0 or more, not {start}", field=place)
