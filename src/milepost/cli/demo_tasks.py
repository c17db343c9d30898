"""The tasks of `milepost demo`: a file of people, one run for each row.

It reads like the tasks of any program: nothing here knows that it is a demo.
"""

import csv
import re
from pathlib import Path
from typing import TypedDict

from pydantic import BaseModel

from milepost import AbortTaskRun, metadata, task

EMAIL = re.compile(r"[^@\s]+@[^@\s.]+\.[^@\s]+")


class Row(BaseModel):
    """One row as it stands in the file; nothing is checked yet."""

    id: str
    name: str
    email: str
    age: str


class Totals(TypedDict):
    """What came out of an upload."""

    rows: int
    ok: int
    failed: int


@task(id="handle-row")
async def handle_row(row: Row) -> str:
    """Check one row, and count it in the metadata of the upload that it belongs to."""
    problem = problem_of(row)
    if problem is None:
        metadata.parent.increment("processed")
        return row.email
    metadata.parent.increment("processed").increment("failed").append("broken_rows", row.id)
    # A broken row stays broken: it is not worth another attempt.
    raise AbortTaskRun(f"row {row.id}: {problem}")


@task(id="handle-upload")
async def handle_upload(path: str) -> Totals:
    """Read a file of people and have every row handled by a run of its own."""
    metadata.set("status", "reading")
    rows = read_rows(path)
    metadata.update(
        {"status": "processing", "total": len(rows), "processed": 0, "failed": 0, "broken_rows": []}
    )
    ok = sum(result.ok for result in await handle_row.abatch_trigger_and_wait(rows))
    metadata.set("status", "complete")
    return {"rows": len(rows), "ok": ok, "failed": len(rows) - ok}


def read_rows(path: str) -> list[Row]:
    """The rows of a CSV file with the columns id, name, email and age; missing cells are empty."""
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        return [
            Row(id=row["id"] or "", name=row["name"] or "", email=row["email"] or "", age=row["age"] or "")
            for row in csv.DictReader(file)
        ]


def problem_of(row: Row) -> str | None:
    """What is wrong with a row, or None."""
    if not row.name.strip():
        return "the name is missing"
    if not EMAIL.fullmatch(row.email):
        return f"{row.email!r} is no e-mail address"
    if not row.age.isdecimal():
        return f"the age {row.age!r} is not a number"
    return None
