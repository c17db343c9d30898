"""`milepost runs stream` and `send`: the streams of a run on the command line."""

import base64
import json
import sys

from click.exceptions import Exit

from milepost.cli.console import note, say
from milepost.cli.given import payload_of
from milepost.cli.grammar import EXIT_INTERRUPTED
from milepost.cli.tables import print_table
from milepost.cli.text import first_line, json_text, visible
from milepost.client import calls
from milepost.client.client import Client
from milepost.client.run import Run
from milepost.client.streams import reader

DEFAULT_KEY = "default"


def read_stream(run_id: str, key: str | None, *, start: int, follow: bool) -> None:
    """Print the values of a stream: text as it is, everything else as one line of JSON each."""
    client = Client()
    run = client.runs.retrieve(run_id)
    known = {stream.key: stream for stream in run.streams}
    if key is None:
        if len(known) != 1 and not (follow and not known):
            _list_streams(run)
            return
        key = next(iter(known), DEFAULT_KEY)
    written = known[key].chunk_count if key in known else 0
    if not follow and start >= written:
        note(f"stream {key!r} has {written:,} values so far; add -f to wait for more")
        return
    reading = reader(client.connection, run_id, key, start, None, False)
    is_inside_line = False
    try:
        for value in reading:
            if isinstance(value, str):
                sys.stdout.write(visible(value))
                is_inside_line = not value.endswith("\n")
            else:
                text = base64.b64encode(value).decode() if isinstance(value, bytes) else json_text(value)
                sys.stdout.write(("\n" if is_inside_line else "") + text + "\n")
                is_inside_line = False
            sys.stdout.flush()
            if not follow and reading.index + 1 >= written:
                break
    except KeyboardInterrupt:
        raise Exit(EXIT_INTERRUPTED) from None
    finally:
        if is_inside_line:
            sys.stdout.write("\n")
            sys.stdout.flush()
    if reading.error is not None:
        say(f"the source of the stream has failed: {reading.error}", style="red")
        raise Exit(1)


def send_input(run_id: str, key: str, given: str) -> None:
    """Send a value to a run."""
    client = Client()
    client.send(calls.send_input(run_id, key, json.dumps(payload_of(given)).encode()))


def _list_streams(run: Run) -> None:
    if not run.streams:
        say("the run has no streams")
        return
    rows = [("stream", "state", "values", "bytes", "error")]
    for stream in run.streams:
        error = first_line(stream.error or "")
        rows.append((stream.key, stream.state, f"{stream.chunk_count:,}", f"{stream.size_bytes:,}", error))
    print_table(rows)
