"""Triggering runs from Python, outside of runs and inside: what a trigger says, and waiting for what it started.

Preparing is pure: payload and options become a request, checked as far as that can be told here. The calls are then one or two lines for
each colour. Inside a run the new runs become its children, and what the run wrote to its metadata is committed before they start, so that
what the children write comes after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar, Unpack, cast

from milepost.client import calls
from milepost.client.default import default_client
from milepost.client.handles import BatchHandle, RunHandle
from milepost.client.results import TaskResult
from milepost.errors import MetadataError, PayloadValidationError, TooLargeError
from milepost.model.jsonvalue import JSONValue, encode, to_json
from milepost.protocol.runs import RunResult
from milepost.protocol.triggering import (
    BATCH_ITEMS_MAX,
    JSON_TYPE,
    BatchItem as WireItem,
    BatchRequest,
    QueueOption,
    TriggerOptions,
    TriggerRequest,
)
from milepost.sdk.queue import Queue
from milepost.sdk.scope import RunScope, live_scope
from milepost.sdk.shape import Misfit, Shape
