"""Documents of runs: reading them, their history, writing from outside."""

import asyncio
from typing import Any, cast

import msgspec
from starlette.requests import Request

from milepost.engine import commands
from milepost.errors import BadRequestError, MetadataTypeError
from milepost.model import jsonvalue
from milepost.model.shown_keys import shown_document
from milepost.protocol.metadata import MetadataRequest, MetadataResponse
from milepost.reading.reader import Reader
from milepost.server import access, doors, requests
from milepost.server.auth import caller_of
from milepost.server.handlers.answers import Submit

# Changes are small; `reading/history.py` ends a page early where they are not.
HISTORY_PAGE_SIZE_MAX = 1000


class Metadata:
    """The endpoints about documents."""

    def __init__(self, submit: Submit, reader: Reader) -> None:
        self._submit = submit
        self._reader = reader

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
        body: MetadataRequest = await requests.body(request, MetadataRequest)
        lists = (
            ("self", body.operations),
            ("parent", body.parent_operations),
            ("root", body.root_operations),
        )
        targets = [(relation, operations) for relation, operations in lists if operations is not None]
        doors.check_operation_count(sum(len(operations) for _, operations in targets))
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
                access.request_id(request),
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
