"""What the official clients accept: required fields, optional ones that are absent and never null (protocol, 1.3 and 5)."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

Check = Callable[[Any], bool]


def text(value: Any) -> bool:
    return isinstance(value, str)


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def boolean(value: Any) -> bool:
    return isinstance(value, bool)


def date(value: Any) -> bool:
    return text(value) and datetime.fromisoformat(value).tzinfo is not None


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(text, value))


def mapping(value: Any) -> bool:
    return isinstance(value, dict)


def anything(value: Any) -> bool:
    return True


def run_error(value: Any) -> bool:
    return has(value, {"message": text}, {"name": text, "stackTrace": text})


STATUSES = {
    "PENDING_VERSION", "DELAYED", "QUEUED", "EXECUTING", "WAITING", "COMPLETED", "CANCELED", "FAILED", "CRASHED", "SYSTEM_FAILURE",
    "EXPIRED", "TIMED_OUT",
}  # fmt: skip
FAILURES = ("FAILED", "CRASHED", "SYSTEM_FAILURE", "EXPIRED", "TIMED_OUT")
COMMON: dict[str, Check] = {
    "id": text,
    "taskIdentifier": text,
    "status": STATUSES.__contains__,
    **dict.fromkeys(
        [
            "isQueued",
            "isExecuting",
            "isWaiting",
            "isCompleted",
            "isSuccess",
            "isFailed",
            "isCancelled",
            "isTest",
        ],
        boolean,
    ),
    "createdAt": date,
    "updatedAt": date,
    "tags": texts,
    **dict.fromkeys(["costInCents", "baseCostInCents", "durationMs"], number),
    "metadata": mapping,
    "metadataVersion": number,
    "rootId": text,
    "queue": text,
    "attemptCount": number,
    "depth": number,
    "triggerFunction": lambda value: value in TRIGGER_FUNCTIONS,
    "env": lambda value: has(value, {"id": text, "name": text}, {}),
}
OPTIONAL: dict[str, Check] = {
    "startedAt": date,
    "finishedAt": date,
    **dict.fromkeys(["delayedUntil", "expiredAt", "cancelAskedAt"], date),
    **dict.fromkeys(["ttl", "concurrencyKey", "idempotencyKey", "replayOf"], text),
    **dict.fromkeys(["priority", "maxDurationSeconds"], number),
    "error": run_error,
    "batchId": text,
    "parentId": text,
    "queueWait": lambda value: isinstance(value, dict) and "reason" in value,
}
TRIGGER_FUNCTIONS = {"trigger", "triggerAndWait", "batchTrigger", "batchTriggerAndWait"}


def has(value: Any, required: dict[str, Check], optional: dict[str, Check]) -> bool:
    """True when all required fields are there, none is unknown, and each passes its check; null passes none but `anything`."""
    assert isinstance(value, dict), value
    assert required.keys() <= value.keys(), required.keys() - value.keys()
    for name, found in value.items():
        check = required.get(name) or optional.get(name)
        assert check is not None, f"unknown field {name}"
        assert check(found), f"{name}: {found!r}"
    return True


def is_summary(value: Any) -> bool:
    """An item of a list."""
    return has(value, COMMON, OPTIONAL) and _is_consistent(value)


def is_relative(value: Any) -> bool:
    """A relative of a run: as in a list, and possibly without its document."""
    documents: dict[str, Check] = {name: COMMON[name] for name in ("metadata", "metadataVersion")}
    required = {name: check for name, check in COMMON.items() if name not in documents}
    return has(value, required, {**OPTIONAL, **documents}) and _is_consistent(value)


def is_run(value: Any) -> bool:
    """A whole run (protocol, 5.1)."""
    required = {
        **COMMON,
        "relatedRuns": _are_relatives,
        "childCounts": mapping,
        "attempts": lambda attempts: all(attempt["number"] >= 1 for attempt in attempts),
    }
    has(value, required, {**OPTIONAL, "payload": anything, "output": anything})
    assert value["isSuccess"] or "output" not in value
    return _is_consistent(value)


def is_result(value: Any) -> bool:
    """The result of a run (protocol, 5.7)."""
    required: dict[str, Check] = {"ok": boolean, "id": text, "taskIdentifier": text}
    return has(value, required, {"output": text, "outputType": text, "error": run_error})


def is_batch(value: Any) -> bool:
    """A batch (protocol, 4)."""
    required: dict[str, Check] = {
        "id": text,
        "status": {"PENDING", "PROCESSING", "COMPLETED"}.__contains__,
        "createdAt": date,
        "updatedAt": date,
        "runCount": number,
        "finishedCount": number,
        "runs": texts,
        "processing": lambda value: has(value, {"errors": texts}, {}),
    }
    return has(value, required, {})


def is_problem(value: Any) -> bool:
    """The body of a refusal."""
    return has(value, {"error": text, "code": text}, {"field": text, "limit": number, "details": mapping})


def _are_relatives(value: Any) -> bool:
    def are_children(runs: Any) -> bool:
        return isinstance(runs, list) and all(
            is_relative(run) and "metadata" not in run for run in cast("list[Any]", runs)
        )

    return has(value, {}, {"children": are_children, "root": is_relative, "parent": is_relative})


def _is_consistent(run: dict[str, Any]) -> bool:
    """The booleans say what the status says (protocol, 5.2)."""
    status = run["status"]
    said = {
        "isQueued": status in ("PENDING_VERSION", "DELAYED", "QUEUED"),
        "isExecuting": status == "EXECUTING",
        "isWaiting": status == "WAITING",
        "isCompleted": status in (*FAILURES, "COMPLETED", "CANCELED"),
        "isSuccess": status == "COMPLETED",
        "isFailed": status in FAILURES,
        "isCancelled": status == "CANCELED",
    }
    assert {name: run[name] for name in said} == said
    assert ("finishedAt" in run) == run["isCompleted"]
    assert ("startedAt" in run) == (run["attemptCount"] > 0)
    return True
