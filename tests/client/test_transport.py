"""Sending calls in both colours: what is repeated and how, what is refused, what an absent server looks like."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from client.scripted import Answer, Asked, Drop, ScriptedServer, request_ids, triggered, wire_run
from milepost import (
    Client,
    ConfigurationError,
    MetadataTooLargeError,
    NotFoundError,
    PayloadValidationError,
    RunNotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from milepost.client import retries
from milepost.client.async_transport import AsyncTransport
from milepost.client.retries import Patience
from milepost.client.transport import SyncTransport
from milepost.errors import CommitUnknownError

TRIGGERED = Answer(200, {"id": "run_1", "isCached": False}, {"x-trigger-jwt": "token"})

Trigger = Callable[..., Any]


@pytest.fixture(params=["blocking", "async"])
def trigger(request: pytest.FixtureRequest, client: Client) -> Trigger:
    """Triggers a run in one of the two colours."""
    if request.param == "blocking":
        return client.trigger
    return lambda *args, **kwargs: asyncio.run(client.atrigger(*args, **kwargs))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PAUSE_SECONDS_MIN", 0.001)


def script(server: ScriptedServer, *answers: Answer | type[Drop]) -> None:
    """Give these answers one after the other, and the last one from then on."""
    left = list(answers)

    def answer(asked: Asked) -> Answer:
        next_one = left.pop(0) if len(left) > 1 else left[0]
        if not isinstance(next_one, Answer):
            raise next_one
        return next_one

    server.answer = answer


def test_a_trigger_says_what_it_should(server: ScriptedServer, trigger: Trigger) -> None:
    script(server, TRIGGERED)
    handle = trigger("a/task", {"n": 1}, metadata={"a": 1}, tags="one", max_attempts=2, queue="q")
    assert (handle.id, handle.task_id, handle.public_access_token) == ("run_1", "a/task", "token")
    [asked] = server.asked
    assert (asked.method, asked.path) == ("POST", "/api/v1/tasks/a%2Ftask/trigger")
    assert asked.headers["authorization"] == "Bearer key"
    assert asked.headers["content-type"] == "application/json"
    assert asked.body == {
        "payload": '{"n":1}',
        "options": {
            "payloadType": "application/json",
            "metadata": {"a": 1},
            "tags": ["one"],
            "maxAttempts": 2,
            "queue": {"name": "q"},
        },
    }


def test_no_payload_is_not_null(server: ScriptedServer, trigger: Trigger) -> None:
    script(server, TRIGGERED)
    trigger("t")
    trigger("t", None)
    assert [asked.body for asked in server.asked] == [
        {"options": {}},
        {"payload": "null", "options": {"payloadType": "application/json"}},
    ]


@pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504])
def test_passing_refusals_are_repeated_under_the_same_request_id(
    server: ScriptedServer, trigger: Trigger, status: int
) -> None:
    script(server, Answer(status, {"error": "busy", "code": "unavailable"}), Drop, TRIGGERED)
    assert trigger("t").id == "run_1"
    ids = [asked.headers["x-trigger-request-idempotency-key"] for asked in server.asked]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    trigger("t")
    assert server.asked[-1].headers["x-trigger-request-idempotency-key"] != ids[0]


def test_what_may_be_stored_or_not_is_asked_for_again_under_the_same_request_id(
    server: ScriptedServer, trigger: Trigger
) -> None:
    error = CommitUnknownError("nobody knows")
    script(server, Answer(error.status, {"error": str(error), "code": error.code}), TRIGGERED)
    assert trigger("t").id == "run_1"
    assert len({asked.headers["x-trigger-request-idempotency-key"] for asked in server.asked}) == 1
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(404, {"error": "no run", "code": "run_not_found"}), RunNotFoundError),
        (Answer(401, {"error": "who?", "code": "unauthorized"}), UnauthorizedError),
        (
            Answer(422, {"error": "email", "code": "invalid_payload", "field": "email"}),
            PayloadValidationError,
        ),
        (
            Answer(413, {"error": "big", "code": "metadata_too_large", "details": {"size": 9, "limit": 5}}),
            MetadataTooLargeError,
        ),
        (Answer(200, b"<html>hello</html>"), ConfigurationError),
        (Answer(200, {"nothing": 1}), ConfigurationError),
    ],
)
def test_refusals_are_raised_as_the_error_they_stand_for_and_not_repeated(
    server: ScriptedServer, trigger: Trigger, answer: Answer, kind: type[Exception]
) -> None:
    script(server, answer)
    with pytest.raises(kind) as caught:
        trigger("t")
    assert len(server.asked) == 1
    if isinstance(caught.value, PayloadValidationError):
        assert caught.value.field == "email"


def test_a_server_that_stays_busy_is_given_up(server: ScriptedServer, trigger: Trigger) -> None:
    script(server, Answer(503, {"error": "stopping", "code": "unavailable"}))
    with pytest.raises(UnavailableError, match="stopping"):
        trigger("t")
    assert len(server.asked) == retries.ATTEMPTS_MAX


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def retrieve(client: Client, colour: str) -> None:
    if colour == "blocking":
        client.runs.retrieve("run_1")
    else:
        asyncio.run(client.runs.aretrieve("run_1"))


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_an_absent_server_is_named_with_the_cure(colour: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    client = Client(api_url=url, secret_key="key")
    began = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        retrieve(client, colour)
    assert time.monotonic() - began < 5
    for part in (url, "milepost dev", "MILEPOST_API_URL", "refused"):
        assert part in str(caught.value)


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_a_name_that_does_not_exist_is_an_absent_server_too(colour: str) -> None:
    client = Client(api_url="http://nowhere.invalid", secret_key="key")
    with pytest.raises(UnavailableError, match=r"nowhere\.invalid cannot be reached \(its name"):
        retrieve(client, colour)


@pytest.mark.parametrize("url", ["localhost:3030", "", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="MILEPOST_API_URL"):
        Client(api_url=url, secret_key="key")


def test_an_address_may_have_a_path_and_a_slash(server: ScriptedServer) -> None:
    script(server, TRIGGERED)
    client = Client(api_url=server.url + "/below/", secret_key="key")
    client.trigger("t")
    asyncio.run(client.atrigger("t"))
    assert {asked.path for asked in server.asked} == {"/below/api/v1/tasks/t/trigger"}


def test_one_client_in_many_threads(server: ScriptedServer, client: Client) -> None:
    script(server, Answer(200, wire_run()))

    def work() -> None:
        for _ in range(20):
            client.runs.retrieve("run_1")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 160


def test_one_client_on_several_loops_leaves_nothing_open(server: ScriptedServer, client: Client) -> None:
    """Warnings are errors here, so a session or transport that nobody closed would fail this test."""
    server.answer = triggered

    async def main() -> None:
        await asyncio.gather(*(client.atrigger("t") for _ in range(5)))

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert sum(len(request_ids(asked)) for asked in server.asked) == 15


def _trigger_in_child(client: Client, answers: Any) -> None:
    answers.put((os.getpid(), client.trigger("t").id))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(server: ScriptedServer, client: Client) -> None:
    script(server, TRIGGERED)
    client.trigger("t")
    forking = multiprocessing.get_context("fork")
    answers = forking.Queue()
    children = [forking.Process(target=_trigger_in_child, args=(client, answers)) for _ in range(3)]
    for child in children:
        child.start()
    assert {answers.get(timeout=30)[1] for _ in children} == {"run_1"}
    for child in children:
        child.join()
    assert client.trigger("t").id == "run_1"


def test_an_answer_that_breaks_off_within_its_head_is_asked_for_again() -> None:
    """At whatever byte. Nothing of it is taken for the answer of another kind of server."""
    body = b'{"id":"run_1","ok":true}   '
    whole = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 27\r\n\r\n" + body
    for length in range(0, len(whole), 3):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            def serve(length: int = length, listener: socket.socket = listener) -> None:
                for part in (whole[:length], whole):
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65_536)
                        connection.sendall(part)

            serving = threading.Thread(target=serve, daemon=True)
            serving.start()
            transport = SyncTransport(f"http://127.0.0.1:{port}", "key")
            with pytest.raises(UnavailableError):
                transport.exchange("GET", "/", None, {}, Patience(None))
            assert transport.exchange("GET", "/", None, {}, Patience(None)).content == body
            serving.join()


@pytest.mark.parametrize("colour", ["blocking", "async"])
def test_a_refused_stream_that_breaks_off_is_opened_again(colour: str) -> None:
    """At whatever byte of the refusal: what it says is not known then."""
    body = b'{"type":"t","title":"t","status":404,"detail":"none","code":"run_not_found"}'
    head = b"HTTP/1.1 404 Not Found\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n\r\n"
    whole = head % len(body) + body
    for length in (*range(0, len(whole), 7), len(whole)):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"

            def serve(length: int = length, listener: socket.socket = listener) -> None:
                # The library tries some requests once more by itself.
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = listener.accept()
                        with connection:
                            connection.recv(65_536)
                            connection.sendall(whole[:length])

            serving = threading.Thread(target=serve, daemon=True)
            serving.start()
            expected = NotFoundError if length == len(whole) else UnavailableError
            with pytest.raises(expected):
                _open_stream(url, colour)
            listener.shutdown(socket.SHUT_RDWR)
            serving.join()


def _open_stream(url: str, colour: str) -> None:
    if colour == "blocking":
        with SyncTransport(url, "key").open("/", None, {}, Patience(None)):
            return

    async def open_it() -> None:
        transport = AsyncTransport(url, "key")
        try:
            async with transport.open("/", None, {}, Patience(None)):
                return
        finally:
            await transport.close()

    asyncio.run(open_it())
