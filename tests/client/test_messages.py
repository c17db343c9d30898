"""Requests are what was meant, answers are read the same however they come in pieces, and a part of one is not taken for a whole."""

import socket
from http.client import HTTPException
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
from httptools import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from milepost.client.client import Client
from milepost.client.messages import (
    Answer,
    header_lines,
    host_of,
    length_line,
    read_answer,
    request_line,
)
from milepost.errors import ConfigurationError

ANSWERS = {
    "with its length": (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nX-Kind: a\r\n\r\n0123456", 200, b"0123456", True),
    "in chunks": (
        b"HTTP/1.1 202 Accepted\r\nX-Kind: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n012\r\n4\r\n3456\r\n0\r\n\r\n",
        202,
        b"0123456",
        True,
    ),
    "after another that says to go on": (
        b"HTTP/1.1 100 Continue\r\nX-Kind: b\r\n\r\nHTTP/1.1 200 OK\r\nx-kind: a\r\ncontent-length: 1\r\n\r\n0",
        200,
        b"0",
        True,
    ),
    "without a body": (b"HTTP/1.1 204 No Content\r\nX-Kind: a\r\n\r\n", 204, b"", True),
    "the last one": (
        b"HTTP/1.1 503 Away\r\nConnection: close\r\nX-KIND: a\r\nContent-Length: 1\r\n\r\n0", 503, b"0", False
    ),
    "to the end of the connection": (b"HTTP/1.0 200 OK\r\nX-Kind: a\r\n\r\n0123456", 200, b"0123456", False),
}  # fmt: skip


def read(pieces: list[bytes]) -> tuple[Answer, bytes]:
    """What is read from a connection on which these pieces come, and then its end."""

    class Pieces:
        def recv(self, size: int) -> bytes:
            return pieces.pop(0) if pieces else b""

    return read_answer(Pieces())  # type: ignore[arg-type]


def cut(text: bytes, places: list[int]) -> list[bytes]:
    """The text in pieces."""
    ends = sorted({place % len(text) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(ends)]


@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 1000), max_size=8))
def test_an_answer_is_the_same_in_any_pieces(name: str, places: list[int]) -> None:
    text, status, content, stays_open = ANSWERS[name]
    answer, body = read(cut(text, places))
    assert (answer.status, body, answer.will_close) == (status, content, not stays_open)
    assert answer.headers.get("X-Kind") == answer.headers.get("x-kind") == "a"
    assert answer.headers.get("X-Other") is None


@given(st.sampled_from(sorted(ANSWERS)), st.integers(0, 1000), st.lists(st.integers(0, 1000), max_size=3))
def test_a_part_of_an_answer_is_none(name: str, end: int, places: list[int]) -> None:
    text, _, content, _ = ANSWERS[name]
    part = text[: end % len(text)]
    if name == "to the end of the connection" and part.endswith(content[: len(part) - text.index(content)]):
        # Where the body ends nobody has said.
        part = part[: text.index(content) - 1]
    with pytest.raises(HTTPException if part else ConnectionError):
        read(cut(part, places) if part else [])


@pytest.mark.parametrize(
    "text",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 two hundred\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"<html>"],
)
def test_what_is_no_answer_is_said(text: bytes) -> None:
    with pytest.raises(HTTPException, match="no HTTP answer"):
        read([text])


@pytest.mark.parametrize(
    "behind",
    [
        b" rubbish",
        b"HTTP/1.1 408 Request Timeout\r\nx-kind: b\r\ncontent-length: 3\r\n\r\nbad",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_what_stands_behind_an_answer_is_no_part_of_it_and_ends_the_connection(behind: bytes) -> None:
    for name in ("with its length", "in chunks", "without a body"):
        text, status, content, _ = ANSWERS[name]
        answer, body = read([text + behind])
        assert (answer.status, body, answer.headers.get("x-kind")) == (status, content, "a"), name
        assert answer.will_close, name


def test_a_connection_that_breaks_says_so() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        with pytest.raises(ConnectionError):
            read_answer(ours)


# --- requests ----------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
    st.dictionaries(
        st.text("abc-", min_size=1), st.text(st.characters(min_codepoint=33, max_codepoint=126)), max_size=4
    ),
    st.none() | st.binary(max_size=30),
)
def test_a_server_reads_what_was_meant(
    method: str, path: str, headers: dict[str, str], body: bytes | None
) -> None:
    class Server:
        def __init__(self) -> None:
            self.url, self.body, self.is_whole = b"", b"", False
            self.headers: dict[str, str] = {}

        def on_url(self, url: bytes) -> None:
            self.url += url

        def on_header(self, name: bytes, value: bytes) -> None:
            self.headers[name.decode()] = value.decode()

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            self.is_whole = True

    server = Server()
    parser = HttpRequestParser(server)
    head = request_line(method, "/" + path) + header_lines(headers) + length_line(method, body)
    parser.feed_data(head + (body or b""))
    assert server.is_whole
    assert (parser.get_method().decode(), server.url.decode(), server.body) == (
        method,
        "/" + path,
        body or b"",
    )
    assert server.headers.items() >= headers.items()


@pytest.mark.parametrize("text", ["a b", "a\r\nx: y", "a\tb", "ä", ""])
def test_a_target_that_is_not_quoted_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be asked for"):
        request_line("GET", text)


@pytest.mark.parametrize("text", ["a\r\nx: y", "a\n", "ä", "\0"])
def test_a_header_cannot_bring_another_one(text: str) -> None:
    with pytest.raises(ValueError, match="the header a"):
        header_lines({"a": text})


def test_the_server_is_named_without_who_asks() -> None:
    for address, host in (
        ("http://me:secret@example.org:3030/x", "example.org:3030"),
        ("http://[::1]:3030", "[::1]:3030"),
        ("https://bücher.example", "xn--bcher-kva.example"),
    ):
        assert host_of(urlsplit(address)) == host


@pytest.mark.parametrize(
    "address", ["http://localhost/a b", "http://localhost/ä", "http://" + "ä" * 70 + ".org"]
)
def test_an_address_that_cannot_be_asked_is_a_mistake_of_the_settings(address: str) -> None:
    with pytest.raises(ConfigurationError, match="MILEPOST_API_URL"):
        Client(address, "key")
