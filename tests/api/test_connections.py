"""What a client may send before anybody knows who it is: over real sockets, byte by byte where it matters."""

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import psutil
import pytest

from milepost.cli import connection as limits
from milepost.cli.connection import HEAD_BYTES_MAX
from milepost.server import requests
from support.served import KEY, HttpWorker, Served

SHORT_SECONDS = 0.3


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def status_of(received: bytes) -> int:
    return int(received.split(b" ")[1])


def problem_of(received: bytes) -> dict[str, object]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    assert b"x-content-type-options: nosniff" in head.lower()
    return msgspec.json.decode(body, type=dict[str, object])


def push(connection: socket.socket, data: bytes, times: int = 1) -> None:
    """Send as long as the server listens."""
    try:
        for _ in range(times):
            connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        pass


@pytest.mark.parametrize(
    "head",
    [
        b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * HEAD_BYTES_MAX,
        b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\n" + b"x-a: b\r\n" * (HEAD_BYTES_MAX // 7),
        b"GET /?" + b"a" * HEAD_BYTES_MAX + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /api/v1/health HTTP/1.1\r\n" + b"n" * HEAD_BYTES_MAX,
        b"G" * HEAD_BYTES_MAX,
        b"\r\n" * HEAD_BYTES_MAX,
    ],
    ids=["one header", "many headers", "address", "name of a header", "method", "blank lines"],
)
def test_a_head_beyond_the_limit_is_refused_and_the_connection_closed(served: Served, head: bytes) -> None:
    with connected(served) as connection:
        push(connection, head)
        push(connection, b"a" * 1000)
        received = everything(connection)
    if received:
        assert status_of(received) in (400, 431)
        problem = problem_of(received)
        if status_of(received) == 431:
            assert problem["limit"] == HEAD_BYTES_MAX
    assert served.get("/api/v1/health")["status"] == "ok"


def test_a_head_within_the_limit_is_served(served: Served, worker: HttpWorker) -> None:
    answer = served.call("GET", "/api/v1/health", headers={"x-a": "a" * (HEAD_BYTES_MAX - 2000)})
    assert answer.status == 200
    # The largest filter of documents, percent-encoded.
    text = '{"a":"' + "ü" * 8000 + '"}'
    assert served.call("GET", "/api/v1/runs", query={"filter[metadata]": text}).status == 200


def test_a_header_of_a_hundred_megabytes_costs_no_memory(served: Served) -> None:
    """The parser keeps a header until it is complete."""
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(3):
        with connected(served) as connection:
            push(connection, b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\nx-a: ")
            push(connection, b"a" * 1_000_000, times=120)
            everything(connection)
    assert process.memory_info().rss - before < 20_000_000
    assert served.get("/api/v1/health")["status"] == "ok"


@pytest.mark.parametrize(
    "rest",
    [b"0\r\nx-a: ", b"0\r\n", b"5;x="],
    ids=["a trailer that does not end", "trailers without end", "a chunk's extension without end"],
)
def test_what_surrounds_a_body_is_limited_too(served: Served, rest: bytes) -> None:
    with connected(served) as connection:
        head = b"POST /api/v1/tasks/work/trigger HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
        push(connection, head + f"authorization: Bearer {KEY}\r\n\r\n".encode() + rest)
        filler = b"x-a: b\r\n" if rest == b"0\r\n" else b"a"
        push(connection, filler * 10_000, times=100)
        received = everything(connection)
    assert not received or status_of(received) in (400, 431)
    assert served.get("/api/v1/health")["status"] == "ok"


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_SECONDS", SHORT_SECONDS)
    monkeypatch.setattr(limits, "REST_SECONDS", SHORT_SECONDS)
    monkeypatch.setattr(requests, "BODY_SECONDS", SHORT_SECONDS)


SLOW = {
    "nothing": b"",
    "half a line": b"GET /api",
    "half a head": b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\n",
    "a blank line": b"\r\n",
    "the next request": b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\n\r\nGET /",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_a_head_that_does_not_come_is_not_waited_for(served: Served, hurry: None, sent: bytes) -> None:
    with connected(served) as connection:
        began = time.monotonic()
        connection.sendall(sent)
        if sent.endswith(b"GET /"):
            # It came with the request before, so the pause between two requests is what ends it; another byte begins the head's time.
            time.sleep(0.05)
            connection.sendall(b"a")
        received = everything(connection)
        assert SHORT_SECONDS * 0.8 < time.monotonic() - began < 10
    assert received == b"" or received.startswith(b"HTTP/1.1 200")


def test_who_sends_a_byte_now_and_then_is_not_waited_for_either(served: Served, hurry: None) -> None:
    with connected(served) as connection:
        began = time.monotonic()
        connection.sendall(b"GET /api/v1/health HTTP/1.1\r\nx-a: ")
        connection.settimeout(0.05)
        while time.monotonic() - began < 10:
            push(connection, b"a")
            try:
                if connection.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
        assert time.monotonic() - began < 10


def test_a_thousand_half_requests_give_their_descriptors_back(served: Served, hurry: None) -> None:
    process = psutil.Process()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(1000, soft // 2 - 200)
    before = process.num_fds()
    sockets = [socket.create_connection(("127.0.0.1", served.port), timeout=20) for _ in range(count)]
    for each in sockets:
        each.sendall(b"POST /sign-in HTTP/1.1\r\n")
    for each in sockets:
        assert everything(each) == b""
    # Ours are still open, the server's are not.
    until = time.monotonic() + 20
    while process.num_fds() > before + count + 20 and time.monotonic() < until:
        time.sleep(0.05)
    assert process.num_fds() <= before + count + 20
    for each in sockets:
        each.close()


def test_a_body_that_does_not_come_is_a_request_timeout(
    served: Served, worker: HttpWorker, hurry: None
) -> None:
    with connected(served) as connection:
        head = f"POST /api/v1/tasks/work/trigger HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 100\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        received = everything(connection)
    assert status_of(received) == 408
    assert problem_of(received)["code"] == "request_timeout"


def test_the_rest_of_a_refused_body_is_not_waited_for(served: Served, hurry: None) -> None:
    """Without a key the answer comes before the body, and the connection does not stay for it."""
    with connected(served) as connection:
        connection.sendall(
            b"POST /api/v1/tasks/work/trigger HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
        )
        received = everything(connection)
    assert status_of(received) == 401


def test_a_connection_goes_on_after_a_refused_body_that_came_as_a_whole(served: Served) -> None:
    with connected(served) as connection:
        for _ in range(3):
            connection.sendall(
                b"POST /api/v1/tasks/work/trigger HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
            )
            received = connection.recv(65536)
            assert status_of(received) == 401
            connection.sendall(b"{}")
        connection.sendall(b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert status_of(everything(connection)) == 200


def test_requests_in_one_piece_are_answered_in_their_order(served: Served) -> None:
    one = b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with connected(served) as connection:
        connection.sendall(one * 20 + last)
        received = everything(connection)
    assert received.count(b"HTTP/1.1 200 OK") == 21


ODD: dict[str, bytes] = {
    "two lengths": b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a length and chunks": b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks with another coding": b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunked twice": b"transfer-encoding: chunked, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "not chunked at the end": b"transfer-encoding: chunked, identity\r\n\r\n{}",
    "a space before the colon": b"content-length : 2\r\n\r\n{}",
    "a folded header": b"x-a: b\r\n c\r\ncontent-length: 2\r\n\r\n{}",
    "a bare line feed": b"x-a: b\ncontent-length: 2\r\n\r\n{}",
    "a NUL": b"x-a: \x00\r\ncontent-length: 2\r\n\r\n{}",
    "a chunk size with a sign": b"transfer-encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    "a chunk size beyond": b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}",
    "a chunk that is longer than it says": b"transfer-encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("rest", ODD.values(), ids=ODD)
def test_a_request_that_two_servers_could_read_differently_smuggles_nothing(
    served: Served, worker: HttpWorker, rest: bytes
) -> None:
    """A request hidden in another one's body would be answered with the rights of the connection of a proxy."""
    hidden = f"GET /api/v1/runs?smuggled HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()
    with connected(served) as connection:
        head = f"POST /api/v1/tasks/work/trigger HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        connection.sendall(head.encode() + rest + hidden)
        connection.shutdown(socket.SHUT_WR)
        received = everything(connection)
    assert received.count(b"HTTP/1.1 ") <= 1
    assert b"HTTP/1.1 5" not in received


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/9.9",
        b"GET /",
        b"\x16\x03\x01\x02",
        b"PRI * HTTP/2.0",
        b"GET http://[ HTTP/1.1",
        b"GET \xff HTTP/1.1",
        b"GET * HTTP/1.1",
        b"CONNECT x:1 HTTP/1.1",
    ],
    ids=repr,
)
def test_what_is_no_request_of_this_protocol_is_refused(served: Served, line: bytes) -> None:
    with connected(served) as connection:
        connection.sendall(line + b"\r\nhost: x\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        received = everything(connection)
    assert not received or 300 <= status_of(received) < 500
    assert served.get("/api/v1/health")["status"] == "ok"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "[", "[::1", "x:notaport", "", "a b", "\xff", "//evil", "x/y?z#w", "x" * 10_000],
    ids=repr,
)
def test_the_host_that_a_request_names_decides_nothing(served: Served, host: str) -> None:
    for path in (
        "/",
        "/sign-in",
        "/nothing",
        "/api/v1/health",
        "/api/v1/runs/",
        "/sign-in/",
        "/static/none.js",
        "/static",
    ):
        with connected(served) as connection:
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nhost: ".encode()
                + host.encode("latin-1")
                + b"\r\nconnection: close\r\n\r\n"
            )
            received = everything(connection)
        assert 200 <= status_of(received) < 500, (path, received)
        head = received.partition(b"\r\n\r\n")[0].lower()
        assert b"evil" not in head
        location = [line for line in head.split(b"\r\n") if line.startswith(b"location: ")]
        assert all(line.startswith(b"location: /sign-in") for line in location), location
