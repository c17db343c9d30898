"""Import a CSV file: one run for the file, a child run for each row, and one document that shows how far it is.

    milepost dev examples/csv_import.py        # in one terminal
    python examples/csv_import.py people.csv   # in another

The rows write to the metadata of their parent, so whoever watches the upload sees every row without asking the rows.
"""

import csv
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from milepost import AbortTaskRun, Context, Queue, Retry, metadata, task


class Row(BaseModel):
    """One line of the file."""

    id: int
    email: str


class Progress(BaseModel):
    """What the metadata of an upload looks like. Writes to these fields are checked; other keys stay free."""

    status: Literal["reading", "processing", "complete"] = "reading"
    total: int = 0
    processed: int = 0
    invalid: list[int] = []
    finished_at: datetime | None = None


@task(retry=Retry(max_attempts=5), queue=Queue("rows", concurrency=20))
async def handle_row(row: Row, ctx: Context) -> Row:
    """Check one row and count it in the document of the upload."""
    if "@" not in row.email:
        ctx.logger.warning("row %d has no e-mail address: %r", row.id, row.email)
        metadata.parent.append("invalid", row.id)
        raise AbortTaskRun(f"row {row.id}: {row.email!r} is no e-mail address")
    metadata.parent.increment("processed", once=f"row {row.id}")
    return row


@task(id="handle-upload", metadata=Progress)
async def handle_upload(path: str) -> dict[str, int]:
    """Read the file and have its rows handled."""
    metadata.set("status", "reading")
    rows = read_rows(Path(path))
    metadata.set("status", "processing").set("total", len(rows))
    results = await handle_row.abatch_trigger_and_wait(rows)
    metadata.set("status", "complete").set("finished_at", datetime.now(UTC))
    return {"ok": sum(result.ok for result in results)}


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file with the columns `id` and `email`."""
    with path.open(newline="") as file:
        return [Row.model_validate(line) for line in csv.DictReader(file)]


def main() -> None:
    """Trigger an upload and show it until it has finished."""
    path = Path(sys.argv[1]).resolve()
    handle = handle_upload.trigger(str(path), metadata={"user": {"id": "user_1234"}}, tags=["user:1234"])
    for run in handle.subscribe():
        progress = run.metadata_as(Progress)
        print(
            f"{run.status:10} {progress.status:10} {progress.processed} of {progress.total}, {len(progress.invalid)} invalid"
        )
    print(handle.result().unwrap())


if __name__ == "__main__":
    main()
