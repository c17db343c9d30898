"""Three servers on one PostgreSQL database: who signs in and out at one, what each tells of itself, and settings that differ."""

import asyncio
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3

from milepost.engine.jobs import JobName
from milepost.errors import UnavailableError
from milepost.server import metrics
from milepost.server.app import Server
from milepost.server.auth import CODE_SECONDS, SESSION_SECONDS
from milepost.server.settings import load_settings
from milepost.store.database import Store
from support import postgres
from support.served import KEY, HttpWorker, Served, offer


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    database = postgres.server()
    name = database.create_migrated_database()
    started = [Served(tmp_path_factory.mktemp("served"), database_url=database.url(name)) for _ in range(3)]
    yield started
    for served in started:
        served.stop()
    database.drop_database(name)


def open_link(served: Served, path: str) -> urllib3.BaseHTTPResponse:
    return served.pool.request("GET", served.url + path, redirect=False)


def cookie_of(answer: urllib3.BaseHTTPResponse) -> dict[str, str]:
    return {"cookie": answer.headers["set-cookie"].partition(";")[0]}


def session_at(served: Served) -> dict[str, str]:
    return cookie_of(open_link(served, served.post("/api/v1/sign-in-links", None)["path"]))


def statuses(servers: Sequence[Served], session: dict[str, str]) -> list[int]:
    """What each answers to a browser with this session: a page, and the API."""
    pages = [
        served.pool.request("GET", served.url + "/", headers=session, redirect=False).status
        for served in servers
    ]
    return pages + [
        served.call("GET", "/api/v1/runs", key=None, headers=session).status for served in servers
    ]


def test_a_link_of_one_server_works_at_another_and_once(servers: list[Served]) -> None:
    first, second, third = servers
    path = first.post("/api/v1/sign-in-links", None)["path"]
    session = cookie_of(open_link(second, path))
    for served in servers:
        assert open_link(served, path).status == 401
    assert statuses(servers, session) == [200] * 6
    # The one that is printed at the start, too.
    assert open_link(third, first.server.sign_in_path()).status == 303


def test_a_link_that_all_servers_get_at_once_opens_one_session(servers: list[Served]) -> None:
    for number in range(10):
        path = servers[number % 3].post("/api/v1/sign-in-links", None)["path"]
        with ThreadPoolExecutor(6) as pool:
            answers = pool.map(lambda served, path=path: open_link(served, path).status, servers * 2)
            assert sorted(answers) == [303, 401, 401, 401, 401, 401]


def test_a_session_that_was_signed_out_at_one_server_is_refused_by_all(servers: list[Served]) -> None:
    other = session_at(servers[0])
    for number in range(5):
        session = session_at(servers[number % 3])
        assert statuses(servers, session) == [200] * 6
        answer = servers[0].pool.request(
            "POST", servers[0].url + "/sign-out", headers=session, redirect=False
        )
        assert answer.status == 303
        # At once: no waiting, no second try.
        assert statuses(servers, session) == [303] * 3 + [401] * 3
    assert statuses(servers, other) == [200] * 6


def test_feeds_of_a_session_end_everywhere_when_it_is_signed_out(servers: list[Served]) -> None:
    first, second, third = servers
    worker = HttpWorker(first)
    run_id = first.trigger()
    session, other = session_at(first), session_at(second)
    path = f"/api/v1/runs/{run_id}/feed"
    feeds = [
        served.pool.request("GET", served.url + path, headers=headers, preload_content=False, timeout=20)
        for served, headers in ((second, session), (third, session), (third, other))
    ]
    readers = [feed.stream(65536) for feed in feeds]
    for reader in readers:
        assert b"event: snapshot" in next(reader)
    began = time.monotonic()
    first.pool.request("POST", first.url + "/sign-out", headers=session, redirect=False)
    for reader in readers[:2]:
        for more in reader:
            assert b"event:" not in more
    assert time.monotonic() - began < 1
    # The feed of another session goes on.
    worker.finish(worker.take(run_id))
    told = b""
    for more in readers[2]:
        told += more
    assert b"event: end" in told
    for feed in feeds:
        feed.close()


def test_a_poll_of_a_session_that_is_signed_out_meanwhile_tells_nothing(servers: list[Served]) -> None:
    first, second, _ = servers
    HttpWorker(first)
    run_id = first.trigger()
    session = session_at(first)
    path = f"/realtime/v1/runs/{run_id}"
    known = second.call("GET", path, key=None, headers=session, query={"offset": "-1"})
    answers: list[int] = []

    def poll() -> None:
        query = {"offset": known.headers["electric-offset"], "handle": run_id, "live": "true"}
        answers.append(second.call("GET", path, key=None, headers=session, query=query).status)

    polling = threading.Thread(target=poll)
    polling.start()
    until = time.monotonic() + 20
    while run_id not in second.server.hub.runs and time.monotonic() < until:
        time.sleep(0.01)
    first.pool.request("POST", first.url + "/sign-out", headers=session, redirect=False)
    first.put_metadata(run_id, {"type": "set", "key": "secret", "value": 1})
    polling.join(20)
    assert answers == [401]


def test_what_has_expired_is_forgotten(servers: list[Served]) -> None:
    first, second, _ = servers
    store = first.server._store
    session = session_at(first)
    first.pool.request("POST", first.url + "/sign-out", headers=session, redirect=False)

    def kept() -> int:
        with store.read() as connection:
            return connection.exec_driver_sql("SELECT count(*) FROM used_tokens").scalar_one()

    assert kept() >= 2
    ahead = SESSION_SECONDS + CODE_SECONDS + 2 * 24 * 3600
    for served in servers:
        served.clock.ahead_seconds = ahead
    try:
        until = time.monotonic() + 20
        while kept() and time.monotonic() < until:
            asyncio.run_coroutine_threadsafe(
                second.server.upkeep.do(JobName.USED_TOKENS), second.loop
            ).result(20)
        assert kept() == 0
        # It has expired besides, so it is refused without a row.
        assert statuses(servers, session) == [303] * 3 + [401] * 3
    finally:
        for served in servers:
            served.clock.ahead_seconds = 0


def test_a_database_that_is_away_lets_nobody_in_and_says_so(servers: list[Served]) -> None:
    """Whether a session was signed out cannot be known then; it is not guessed."""
    served = servers[2]
    session = session_at(served)
    read = served.server.reader.is_used

    def unavailable(token_id: str) -> bool:
        raise UnavailableError("the database cannot be read now; try again")

    served.server._sessions._is_used = unavailable
    try:
        answer = served.call("GET", "/api/v1/runs", key=None, headers=session)
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
        page = served.call("GET", "/", key=None, headers=session)
        assert (page.status, page.json["code"]) == (503, "unavailable")
        assert served.call("GET", "/api/v1/runs", key=KEY).status == 200
    finally:
        served.server._sessions._is_used = read
    assert statuses([served], session) == [200, 200]


# --- what each tells of itself -----------------------------------------------------------------------------


def scraped(served: Served) -> dict[str, float]:
    """The samples of a scrape, by their names with labels."""
    text = served.call("GET", "/metrics").body.decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_gauges_of_the_database_are_the_same_at_each_server_and_the_rest_is_its_own(
    servers: list[Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(metrics, "READING_SHARE", 0)
    first = servers[0]
    HttpWorker(first, "worker_metrics", offer("counted"))
    before = [scraped(served) for served in servers]
    for _ in range(7):
        first.trigger("counted")
    triggered = (
        'milepost_http_requests_total{method="POST",route="/api/v1/tasks/{task}/trigger",status="200"}'
    )
    after = [scraped(served) for served in servers]
    assert after[0][triggered] - before[0].get(triggered, 0) == 7
    for told, told_before in zip(after[1:], before[1:], strict=True):
        assert told.get(triggered, 0) == told_before.get(triggered, 0)
    heard = "milepost_announcement_delay_seconds_count"
    until = time.monotonic() + 20
    while time.monotonic() < until:
        after = [scraped(served) for served in servers]
        if all(told["milepost_announcements_behind"] == 0 for told in after):
            break
    for told in after:
        assert told['milepost_queue_due_runs{queue="task/counted"}'] == 7
        assert told['milepost_queue_oldest_due_age_seconds{queue="task/counted"}'] >= 0
        assert told["milepost_announcements_behind"] == 0
        assert told["milepost_notifications_active"] == 1
        assert told["milepost_database_up"] == 1
    for told, told_before in zip(after[1:], before[1:], strict=True):
        assert told[heard] - told_before[heard] >= 7
        # On one machine, with one clock.
        delay = "milepost_announcement_delay_seconds_sum"
        assert told[delay] - told_before[delay] < 20


# --- settings that differ ----------------------------------------------------------------------------------


@pytest.fixture
def database() -> Iterator[str]:
    server = postgres.server()
    name = server.create_migrated_database()
    yield server.url(name)
    server.drop_database(name)


def differences(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [
        message for message in caplog.messages if "at this server" in message or "of this server" in message
    ]
    caplog.clear()
    return found


def test_a_server_with_other_settings_says_which_and_whose(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start(key: str = KEY, **settings: Any) -> None:
        server = Server(
            load_settings(data_folder=tmp_path, database_url=database, secret_key=key, **settings)
        )
        server._store.close()

    caplog.set_level(logging.WARNING)
    start()
    start()
    assert differences(caplog) == []
    start(metadata_size_max=500_000, lease_seconds=20)
    said = differences(caplog)
    assert len(said) == 2
    [size] = [line for line in said if line.startswith("TASK_RUN_METADATA_MAXIMUM_SIZE ")]
    for words in ("500000", "262144", platform.node(), str(os.getpid()), "postgresql://postgres@"):
        assert words in size
    assert postgres.QUOTED_PASSWORD not in size
    # The next one that has the same says nothing: that is how a setting is changed, server after server.
    start(metadata_size_max=500_000, lease_seconds=20)
    assert differences(caplog) == []
    start(key="tr_dev_another_key", metadata_size_max=500_000, lease_seconds=20)
    [line] = differences(caplog)
    assert "MILEPOST_SECRET_KEY" in line
    assert "tr_dev" not in line
    start(metadata_size_max=500_000, lease_seconds=20)
    assert len(differences(caplog)) == 1
    store = Store(database)
    with store.read() as connection:
        kept = connection.exec_driver_sql("SELECT value FROM server_settings").scalars().all()
    store.close()
    assert all("tr_dev" not in value for value in kept)


def test_servers_with_other_limits_of_documents_lose_nothing(database: str, tmp_path: Path) -> None:
    """What one has stored is read, changed and made smaller at another that would not have taken it."""
    large = Served(tmp_path / "large", database_url=database, metadata_size_max=600_000)
    small = Served(tmp_path / "small", database_url=database)
    try:
        HttpWorker(large)
        run_id = large.trigger()
        large.put_metadata(run_id, {"type": "set", "key": "text", "value": "x" * 400_000})
        assert len(small.get(f"/api/v1/runs/{run_id}/metadata")["metadata"]["text"]) == 400_000
        grown = small.call(
            "PUT",
            f"/api/v1/runs/{run_id}/metadata",
            {"operations": [{"type": "set", "key": "a", "value": 1}]},
        )
        assert grown.status < 500
        smaller = small.call(
            "PUT", f"/api/v1/runs/{run_id}/metadata", {"operations": [{"type": "delete", "key": "text"}]}
        )
        assert smaller.status == 200
        assert "text" not in large.get(f"/api/v1/runs/{run_id}/metadata")["metadata"]
        small.put_metadata(run_id, {"type": "set", "key": "b", "value": 2})
        assert large.get(f"/api/v1/runs/{run_id}/metadata")["metadata"]["b"] == 2
    finally:
        small.stop()
        large.stop()
