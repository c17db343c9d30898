"""Where the server listens, what it is called there, and its data folder."""

import json
import logging
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from milepost.cli.hosting import bind, network_url_of, owned_folder, url_of, write_development_file
from milepost.errors import ConfigurationError
from milepost.server.settings import load_settings


def reach(url: str, listener: socket.socket) -> bool:
    """Whether a connection to this address arrives at the socket."""
    listener.settimeout(5)
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as connection:
        accepted, _ = listener.accept()
        with accepted:
            return accepted.getpeername()[1] == connection.getsockname()[1]


has_ipv6 = socket.has_dualstack_ipv6()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "0.0.0.0", "localhost"]
    + [
        pytest.param(host, marks=pytest.mark.skipif(not has_ipv6, reason="no IPv6 here"))
        for host in ("::", "::1")
    ],
)
def test_the_address_that_is_printed_works(host: str) -> None:
    with bind(host, 0) as listener:
        url = url_of(listener)
        assert reach(url, listener)
        assert "0.0.0.0" not in url
        assert "//[::]" not in url
        network = network_url_of(listener)
        if network is not None:
            assert reach(network, listener)
        assert (network is None) or host in ("0.0.0.0", "::")


@pytest.mark.skipif(not has_ipv6, reason="no IPv6 here")
def test_an_address_of_ipv6_is_bracketed_and_every_network_is_both() -> None:
    with bind("::1", 0) as listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"
    with bind("::", 0) as listener:
        assert reach(f"http://127.0.0.1:{listener.getsockname()[1]}", listener)
        assert reach(f"http://[::1]:{listener.getsockname()[1]}", listener)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """The usual one, which lets everyone read new files."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folder_and_files_are_for_their_owner_only(open_umask: None, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with owned_folder(folder):
        write_development_file(folder, url="http://x", secret_key="k")
        assert mode(folder) == 0o700
        modes = {path.name: mode(path) for path in folder.iterdir() if path.name != ".gitignore"}
        assert modes == {"lock": 0o600, "dev.json": 0o600}
    assert json.loads((folder / "dev.json").read_text())["secret_key"] == "k"


def test_a_folder_of_an_older_version_is_tightened_and_a_line_says_so(
    open_umask: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("milepost.db", "milepost.db-wal", "lock", "dev.json"):
        (folder / name).touch()
    assert mode(folder) == 0o755
    with caplog.at_level(logging.WARNING, "milepost.store"), owned_folder(folder):
        assert mode(folder) == 0o700
        assert {mode(path) for path in folder.iterdir()} == {0o600}
    [line] = caplog.messages
    assert str(folder) in line
    assert "milepost.db-wal" in line
    caplog.clear()
    with caplog.at_level(logging.WARNING, "milepost.store"), owned_folder(folder):
        assert caplog.messages == []


def test_a_folder_that_others_live_in_is_left_as_it_is(
    open_umask: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`--data ~` must not lock a home; what Milepost puts there is private all the same."""
    (tmp_path / "letter.txt").touch()
    tmp_path.chmod(0o755)
    with caplog.at_level(logging.WARNING, "milepost.store"), owned_folder(tmp_path):
        assert mode(tmp_path) == 0o755
        assert mode(tmp_path / "letter.txt") == 0o644
        assert mode(tmp_path / "lock") == 0o600
    assert "left as it is" in caplog.text


def test_a_link_in_the_folder_is_not_followed(open_umask: None, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch()
    folder = tmp_path / "data"
    folder.mkdir(0o700)
    (folder / "dev.json").symlink_to(outside)
    with owned_folder(folder):
        assert mode(outside) == 0o644


@pytest.mark.parametrize("key", ["two words", "line\n", "schlüssel", "\ttab"])
def test_a_key_that_no_header_can_carry_stops_the_start_and_is_not_told(key: str) -> None:
    with pytest.raises(ConfigurationError, match="MILEPOST_SECRET_KEY") as refusal:
        load_settings(secret_key=key)
    assert key not in str(refusal.value)
