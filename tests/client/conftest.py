from collections.abc import Iterator

import pytest

from client.scripted import ScriptedServer, scripted
from milepost import Client


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A server that answers as the test says."""
    with scripted() as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Client:
    """A client of that server."""
    return Client(api_url=server.url, secret_key="key")
