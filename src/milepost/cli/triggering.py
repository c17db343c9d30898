"""`milepost trigger`."""

from collections.abc import Sequence

from milepost.cli.console import print_line, say
from milepost.cli.given import object_from_json, payload_of
from milepost.cli.text import why_queued
from milepost.client.client import Client
from milepost.client.requests import NO_PAYLOAD
from milepost.model.run import QueuedReason


def trigger(
    task_id: str, payload: str | None, *, metadata: str | None, tags: Sequence[str], watch: bool
) -> None:
    """Trigger a run; its id goes to standard output."""
    value = NO_PAYLOAD if payload is None else payload_of(payload)
    document = None if metadata is None else object_from_json(metadata)
    client = Client()
    handle = client.trigger(task_id, value, metadata=document, tags=list(tags))
    print_line(handle.id)
    # That nobody has ever offered the task, the client has warned of.
    if handle.queued_reason is QueuedReason.NO_WORKER_ONLINE and not watch:
        say(why_queued(task_id, handle.queued_reason))
    if watch:
        from milepost.cli.watching import follow

        follow(client, handle.id, as_json=False)
