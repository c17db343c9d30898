"""`milepost queues ...`: queues on the command line."""

import msgspec

from milepost.cli.console import fail, print_json, print_line, say
from milepost.cli.tables import print_table
from milepost.client.client import Client
from milepost.protocol.queues import QueueObject


def list_queues(*, as_json: bool) -> None:
    """Print every queue."""
    rows: list[tuple[str, ...]] = [("queue", "state", "queued", "running", "waiting", "limit", "rate")]
    for queue in Client().queues.list():
        if as_json:
            print_json(msgspec.to_builtins(queue))
        else:
            rows.append(_row(queue))
    if as_json:
        return
    if len(rows) == 1:
        say("no queues")
        return
    print_table(rows)


def show_queue(name: str, *, as_json: bool) -> None:
    """Print one queue, with its concurrency keys."""
    _show(Client().queues.retrieve(name), as_json=as_json)


def pause(name: str, *, as_json: bool) -> None:
    """Pause a queue."""
    _show(Client().queues.pause(name), as_json=as_json)


def resume(name: str, *, as_json: bool) -> None:
    """Resume a queue."""
    _show(Client().queues.resume(name), as_json=as_json)


def set_limit(name: str, limit: int | None, *, reset: bool, as_json: bool) -> None:
    """Set another limit, or go by what tasks say."""
    if reset is (limit is not None):
        fail("give either a number or --reset")
    queues = Client().queues
    queue = (
        queues.reset_concurrency_limit(name)
        if limit is None
        else queues.override_concurrency_limit(name, limit)
    )
    _show(queue, as_json=as_json)


def _row(queue: QueueObject) -> tuple[str, ...]:
    more = "+" if queue.queued_is_more else ""
    limit = "-" if queue.concurrency_limit is None else f"{queue.concurrency_limit:,}"
    if queue.concurrency.override is not None:
        base = "no limit" if queue.concurrency.base is None else f"{queue.concurrency.base:,}"
        limit += f" (set; tasks say {base})"
    return (
        queue.name,
        "paused" if queue.paused else "open",
        f"{queue.queued:,}{more}",
        f"{queue.running:,}",
        f"{queue.waiting_to_go_on:,}",
        limit,
        "-" if queue.rate is None else queue.rate.limit,
    )


def _show(queue: QueueObject, *, as_json: bool) -> None:
    if as_json:
        print_json(msgspec.to_builtins(queue))
        return
    print_table([("queue", "state", "queued", "running", "waiting", "limit", "rate"), _row(queue)])
    if queue.keys:
        print_line("")
        rows = [("key", "queued", "running", "waiting")]
        for key in queue.keys:
            more = "+" if key.queued_is_more else ""
            rows.append((key.key, f"{key.queued:,}{more}", f"{key.running:,}", f"{key.waiting_to_go_on:,}"))
        print_table(rows)
