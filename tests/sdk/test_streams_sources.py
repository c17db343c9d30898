"""Sources as they are in real programs, each with the real package: HTTP clients, model clients, files, programs."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import httpx
import openai
import pytest
import requests

from milepost import metadata, streams
from sdk.test_streams import Here
from support.streaming_server import BINARY, TEXT, WORDS, streaming_server

MESSAGES: Any = [{"role": "user", "content": "hello"}]
LINES = "import sys\nfor n in range(5): print('Zeile', n, 'é🚲', flush=True)\n"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with streaming_server() as url:
        yield url


@pytest.fixture
def here() -> Iterator[Here]:
    here = Here()
    yield here
    here.link.stop()


def as_bytes(values: list[Any]) -> bytes:
    return b"".join(
        value.encode() if isinstance(value, str) else base64.b64decode(value["$bytes"]) for value in values
    )


def plain(models: list[Any]) -> list[Any]:
    """Models as readers get them."""
    return [json.loads(json.dumps(model.model_dump(by_alias=True, warnings=False))) for model in models]


def check(here: Here, function: Any, key: str = "s") -> list[Any]:
    """Run it; the local values, after a look at how the stream has ended."""
    local = here.run(function)
    assert here.ends(key) == [None], local
    return local


# --- files and programs ------------------------------------------------------------------------------------


def test_a_file(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")

    def body() -> list[str]:
        with path.open(encoding="utf-8") as file:
            local = list(metadata.stream("s", file))
            assert not file.closed, "the file is the user's"
        return local

    local = check(here, body)
    assert here.values("s") == local == TEXT.splitlines(keepends=True)


def test_a_binary_file(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(BINARY)

    def body() -> list[bytes]:
        with path.open("rb") as file:
            return list(metadata.stream("s", iter(lambda: file.read(100), b"")))

    local = check(here, body)
    assert b"".join(local) == as_bytes(here.values("s")) == BINARY


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("reads", [True, False])
def test_the_output_of_a_program(here: Here, text: bool, reads: bool) -> None:
    def body() -> list[Any]:
        with subprocess.Popen(
            [sys.executable, "-X", "utf8", "-c", LINES],
            stdout=subprocess.PIPE,
            encoding="utf-8" if text else None,
        ) as process:
            assert process.stdout is not None
            captured = metadata.stream("s", process.stdout)
            local = list(captured) if reads else []
            assert process.wait(20) == 0
            if not reads:
                local = list(captured)
        return local

    local = check(here, body)
    expected = [f"Zeile {number} é🚲\n" for number in range(5)]
    assert here.values("s") == expected
    assert local == (expected if text else [line.encode() for line in expected])


@pytest.mark.parametrize("reads", [True, False])
def test_the_output_of_a_program_on_a_loop(here: Here, reads: bool) -> None:
    async def body() -> list[bytes]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-X", "utf8", "-c", LINES, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        captured = metadata.stream("s", process.stdout)
        local = [line async for line in captured] if reads else []
        assert await process.wait() == 0
        return local

    local = check(here, body)
    expected = [f"Zeile {number} é🚲\n" for number in range(5)]
    assert here.values("s") == expected
    assert local == ([line.encode() for line in expected] if reads else [])


# --- HTTP clients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "lines", "bytes", "raw"])
def test_httpx(here: Here, url: str, form: str) -> None:
    def body() -> list[Any]:
        with httpx.Client(trust_env=False) as client, client.stream("GET", f"{url}/text") as response:
            return list(metadata.stream("s", getattr(response, f"iter_{form}")()))

    local = check(here, body)
    if form in ("bytes", "raw"):
        assert b"".join(local).decode() == "".join(here.values("s")) == TEXT
    else:
        assert local == here.values("s")
        assert "".join(local) == (TEXT if form == "text" else TEXT.replace("\n", ""))


@pytest.mark.parametrize("form", ["text", "lines", "bytes", "raw"])
def test_httpx_on_a_loop(here: Here, url: str, form: str) -> None:
    async def body() -> list[Any]:
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            client.stream("GET", f"{url}/text") as response,
        ):
            return [value async for value in metadata.stream("s", getattr(response, f"aiter_{form}")())]

    local = check(here, body)
    if form in ("bytes", "raw"):
        assert b"".join(local).decode() == "".join(here.values("s")) == TEXT
    else:
        assert local == here.values("s")
        assert "".join(local) == (TEXT if form == "text" else TEXT.replace("\n", ""))


def test_an_httpx_response_itself_is_refused_with_the_cure(here: Here, url: str) -> None:
    def body() -> None:
        with httpx.Client(trust_env=False) as client, client.stream("GET", f"{url}/text") as response:
            metadata.stream("s", response)  # type: ignore[call-overload]

    assert "iter_text()" in here.run(body)[1]


@pytest.mark.parametrize("form", ["iter_content", "iter_lines", "itself"])
def test_requests(here: Here, url: str, form: str) -> None:
    def body() -> list[bytes]:
        with requests.Session() as session:
            session.trust_env = False
            with session.get(f"{url}/text", stream=True) as response:
                source: Any = response
                if form == "iter_content":
                    source = response.iter_content(5)
                elif form == "iter_lines":
                    source = response.iter_lines()
                return list(metadata.stream("s", source))

    local = check(here, body)
    expected = TEXT.replace("\n", "") if form == "iter_lines" else TEXT
    assert b"".join(local).decode() == "".join(here.values("s")) == expected


def test_requests_with_bytes_that_are_no_text(here: Here, url: str) -> None:
    def body() -> list[bytes]:
        with requests.Session() as session:
            session.trust_env = False
            with session.get(f"{url}/binary", stream=True) as response:
                return list(metadata.stream("s", response.iter_content(64)))

    local = check(here, body)
    assert b"".join(local) == as_bytes(here.values("s")) == BINARY


@pytest.mark.parametrize("form", ["lines", "chunked", "any"])
def test_aiohttp(here: Here, url: str, form: str) -> None:
    async def body() -> list[bytes]:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/text") as response:
            source: Any = response.content
            if form == "chunked":
                source = response.content.iter_chunked(5)
            elif form == "any":
                source = response.content.iter_any()
            return [value async for value in metadata.stream("s", source)]

    local = check(here, body)
    assert b"".join(local).decode() == "".join(here.values("s")) == TEXT


# --- model clients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [True, False])
def test_openai(here: Here, url: str, reads: bool) -> None:
    def body() -> list[Any]:
        with openai.OpenAI(api_key="none", base_url=f"{url}/v1") as client:
            stream = client.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
            with metadata.stream("s", stream) as captured:  # type: ignore[attr-defined]
                assert captured.response.status_code == 200
                if reads:
                    return list(captured)
            del captured
            wait_for(here, len(WORDS) + 1)
            return []

    local = check(here, body)
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in here.values("s")]
    assert texts[: len(WORDS)] == WORDS
    if reads:
        assert all(type(chunk).__name__ == "ChatCompletionChunk" for chunk in local)
        assert here.values("s") == plain(local)


def test_openai_on_a_loop(here: Here, url: str) -> None:
    async def body() -> list[Any]:
        async with openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1") as client:
            stream = await client.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
            return [chunk async for chunk in metadata.stream("s", stream)]

    local = check(here, body)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in local) == "".join(WORDS)
    assert here.values("s") == plain(local)


def test_anthropic(here: Here, url: str) -> None:
    def body() -> list[Any]:
        with anthropic.Anthropic(api_key="none", base_url=url) as client:
            with client.messages.stream(model="fake", max_tokens=5, messages=MESSAGES) as stream:
                captured = metadata.stream("s", stream)
                local = list(captured)
                assert captured.get_final_text() == "".join(WORDS)  # type: ignore[attr-defined]
            with client.messages.stream(model="fake", max_tokens=5, messages=MESSAGES) as stream:
                assert list(streams.pipe("text", stream.text_stream)) == WORDS
            return local

    local = check(here, body)
    assert local[0].type == "message_start"
    assert here.values("s") == plain(local)
    assert here.values("text") == WORDS


def test_anthropic_on_a_loop(here: Here, url: str) -> None:
    async def body() -> list[Any]:
        async with anthropic.AsyncAnthropic(api_key="none", base_url=url) as client:
            async with client.messages.stream(model="fake", max_tokens=5, messages=MESSAGES) as stream:
                captured = metadata.stream("s", stream)
                local = [event async for event in captured]
                assert await captured.get_final_text() == "".join(WORDS)  # type: ignore[attr-defined]
            async with client.messages.stream(model="fake", max_tokens=5, messages=MESSAGES) as stream:
                text = [piece async for piece in streams.pipe("text", stream.text_stream)]
                assert text == WORDS
            return local

    local = check(here, body)
    assert here.values("s") == plain(local)
    assert here.values("text") == WORDS


def test_anthropic_that_was_not_entered_is_refused_with_the_cure(here: Here, url: str) -> None:
    def body() -> None:
        with anthropic.Anthropic(api_key="none", base_url=url) as client:
            stream = client.messages.stream(model="fake", max_tokens=5, messages=MESSAGES)
            metadata.stream("s", stream)  # type: ignore[call-overload]

    assert "enter it first" in here.run(body)[1]


def wait_for(here: Here, count: int) -> None:
    from sdk.test_streams import wait_until

    wait_until(lambda: len(here.values("s")) == count)
