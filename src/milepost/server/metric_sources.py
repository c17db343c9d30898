"""What is measured of a server, and where the numbers are.

`METRICS_HELP` is the table of all metrics; that of the documentation is held to it by a test.
"""

import msgspec

from milepost.engine.committer import Committer
from milepost.engine.engine import Engine
from milepost.feed.hub import Hub
from milepost.server.readiness import Readiness
from milepost.server.traffic import Traffic
from milepost.store.database import Store
from milepost.store.kind import Ear
from milepost.upkeep.upkeep import Upkeep

METRICS_HELP: dict[str, str] = {
    "milepost_build_info": "1, with the version of Milepost and the kind of the database.",
    "milepost_ready": "1 while the server is ready, as of the last time that somebody asked for readiness; 0 otherwise.",
    "milepost_draining": "1 once the server has been told to end.",
    "milepost_database_up": "1 when the database could be read for this answer.",
    "milepost_runs": "Runs by status. Of the database: the same at each server.",
    "milepost_queue_due_runs": (
        "Due runs of a queue that nobody has claimed, up to milepost_queue_due_runs_limit for each task in it. Of the database: "
        "the same at each server."
    ),
    "milepost_queue_due_runs_limit": "Up to how many due runs are counted of one task in one queue.",
    "milepost_queue_oldest_due_age_seconds": (
        "For how long the oldest due run of a queue has been due; no sample for a queue without one. Of the database: the same at "
        "each server."
    ),
    "milepost_queues_left_out": "Queues that are not told because there are too many.",
    "milepost_claim_wait_seconds": "From when a run was due to when this server gave it to a worker.",
    "milepost_commit_seconds": "How long a group of commands took to commit.",
    "milepost_commit_commands": "Commands of a group.",
    "milepost_report_seconds": (
        "From when a worker's report arrived to when it was committed and answered. What it carries was called up to one flush "
        "interval and one report before."
    ),
    "milepost_parked_claims": "Claims of workers that wait at this server for work.",
    "milepost_feed_lag_seconds": (
        "From a commit, or from when another server's was heard of, to when it was handed to a subscriber's connection. Lists and "
        "matching runs, which are told a few times a second at most, are not measured."
    ),
    "milepost_announcement_delay_seconds": "From a commit of another server to when this one heard of it.",
    "milepost_announcements_behind": "Commits of other servers that this one has not heard of yet.",
    "milepost_notifications_active": "1 while PostgreSQL's notifications arrive; 0 while the server looks every 50 ms instead.",
    "milepost_subscribers": "Open event streams by route.",
    "milepost_http_requests_total": "Answers by route and status; an empty route is everything beside the API.",
    "milepost_http_request_seconds": "How long requests took; event streams are not timed, claims wait for work.",
    "milepost_database_connections": "Connections for reading, by whether they are used at this moment.",
    "milepost_upkeep_rounds_total": "Rounds of a job of the upkeep that this server has done.",
    "milepost_upkeep_seconds_total": "How long they took together.",
    "milepost_upkeep_done_total": "How much was done in them: runs, documents, rows.",
    "milepost_upkeep_last_done_timestamp_seconds": "When this server last finished a round, since 1970; no sample before the first.",
}
"""Each metric and what it says. Standard `process_` metrics come besides."""


class Sources(msgspec.Struct, frozen=True):
    """Where the numbers are."""

    version: str
    store: Store
    engine: Engine
    committer: Committer
    hub: Hub
    upkeep: Upkeep
    traffic: Traffic
    readiness: Readiness
    listener: Ear | None
