"""A request that was answered, and comes once more when something newer was said, as one does that lay in a server that was frozen:
it changes nothing, because its id is known."""

from collections.abc import Callable
from typing import Any

import pytest

from milepost.protocol.endpoints import REQUEST_ID_HEADER
from support.served import HttpWorker, Served

SCHEDULE = {"task": "work", "cron": "0 5 * * *", "timezone": "UTC"}


def queue(served: Served) -> Any:
    found = served.get("/api/v1/queues/task%2Fwork?type=id")
    return found["paused"], found.get("concurrency", {}).get("override")


def schedule_of(served: Served, path: str) -> Any:
    found = served.get(path)
    return found["active"], found.get("externalId")


def cases(served: Served) -> dict[str, tuple[tuple[str, str, Any], tuple[str, str, Any], Callable[[], Any]]]:
    place = "/api/v1/queues/task%2Fwork"
    run = f"/api/v1/runs/{served.trigger('work', delay='1h')}"
    made, other = (f"/api/v1/schedules/{served.post('/api/v1/schedules', SCHEDULE)['id']}" for _ in range(2))
    return {
        "pause": (
            ("POST", f"{place}/pause", {"action": "pause"}),
            ("POST", f"{place}/pause", {"action": "resume"}),
            lambda: queue(served),
        ),
        "override": (
            ("POST", f"{place}/concurrency/override", {"concurrencyLimit": 7}),
            ("POST", f"{place}/concurrency/reset", {}),
            lambda: queue(served),
        ),
        "reschedule": (
            ("POST", f"{run}/reschedule", {"delay": "2h"}),
            ("POST", f"{run}/reschedule", {"delay": "3h"}),
            lambda: served.get(run.replace("/v1/", "/v3/"))["delayedUntil"],
        ),
        "activate": (
            ("POST", f"{made}/deactivate", {}),
            ("POST", f"{made}/activate", {}),
            lambda: schedule_of(served, made),
        ),
        "update": (
            ("PUT", other, {**SCHEDULE, "externalId": "old"}),
            ("PUT", other, {**SCHEDULE, "externalId": "new"}),
            lambda: schedule_of(served, other),
        ),
    }


@pytest.mark.parametrize("name", ["pause", "override", "reschedule", "activate", "update"])
def test_what_was_said_later_holds(served: Served, worker: HttpWorker, name: str) -> None:
    (method, path, body), later, now = cases(served)[name]
    first = served.call(method, path, body, headers={REQUEST_ID_HEADER: f"{name}-1"})
    assert first.status == 200, first
    before = now()
    assert served.call(*later, headers={REQUEST_ID_HEADER: f"{name}-2"}).status == 200
    assert now() != before
    newest = now()
    again = served.call(method, path, body, headers={REQUEST_ID_HEADER: f"{name}-1"})
    assert again.status == 200, again
    assert now() == newest


def test_a_key_that_was_used_again_is_not_reset_by_an_old_request(served: Served, worker: HttpWorker) -> None:
    path, headers = "/api/v1/idempotencyKeys/k/reset", {REQUEST_ID_HEADER: "reset"}
    earlier = served.trigger("work", idempotencyKey="k")
    assert served.call("POST", path, {"taskIdentifier": "work"}, headers=headers).status == 200
    newer = served.trigger("work", idempotencyKey="k")
    assert newer != earlier
    assert served.call("POST", path, {"taskIdentifier": "work"}, headers=headers).status == 200
    assert served.trigger("work", idempotencyKey="k") == newer
