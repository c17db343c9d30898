"""The task behind the page: a report that takes a while, and says what it finds as it goes."""

import time

from milepost import metadata, streams, task

MONTHS = ["January", "February", "March", "April", "May", "June"]


@task(id="django-report")
def make_report(customer: str) -> str:
    """Make a report; the bar shows the months, the stream what was found in each."""
    metadata.set("status", f"making the report of {customer}")
    for number, month in enumerate(metadata.track(MONTHS), start=1):
        for word in f"{month}: {number * 7} orders of {customer}.\n".split(" "):
            streams.append("findings", word if word.endswith("\n") else f"{word} ")
            time.sleep(0.05)
    metadata.set("status", "the report is ready")
    return f"report of {customer}"
