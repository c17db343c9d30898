"""The server inside this process: its socket, its data folder, its key, its start and its end."""

import asyncio
import contextlib
import errno
import fcntl
import gc
import json
import os
import secrets
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from milepost.cli.connection import Connection
from milepost.cli.stopping import first_of
from milepost.errors import ConfigurationError
from milepost.server.app import Server
from milepost.server.settings import ServerSettings
from milepost.store import files

# What still runs after this is cut off: streams have been ended and runs been drained before.
SHUTDOWN_SECONDS_MAX = 5
# Longer than clients keep an idle connection, so that they never write into one that is just being closed.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
DEV_FILE = "dev.json"
_EVERY_NETWORK = ("0.0.0.0", "::")
# Kept free for documents (RFC 5737). Asking the way there sends nothing, and tells under which address others see this machine.
_SOMEWHERE = ("192.0.2.1", 9)


@dataclass(frozen=True)
class HostedServer:
    """A server that runs in this process."""

    url: str
    # How other machines reach it; None where only this one can.
    network_url: str | None
    server: Server
    ended: asyncio.Task[None]

    async def drain(self, seconds: float, hurried: asyncio.Event) -> None:
        """Say from now on that the server is not ready, and go on serving for so long, or until somebody hurries."""
        self.server.begin_drain()
        if seconds > 0:
            await first_of(asyncio.sleep(seconds), hurried.wait(), self.ended)

    def sign_in_link(self) -> str:
        """A link that opens the dashboard signed in; it works once, and soon no more."""
        return self.url + self.server.sign_in_path()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises ConfigurationError, which says what is in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # "::" is every network, those of IPv4 too.
    is_both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_both)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is in use: choose another one with --port (0 picks a free one)"
        elif error.errno in (errno.EACCES, errno.EPERM):
            message = f"port {port} on {host} may not be used by this user: choose one above 1023 with --port"
        else:
            message = f"cannot listen on {host}, port {port}: {error.strerror or error}"
        raise ConfigurationError(message) from error


def url_of(listener: socket.socket) -> str:
    """The address under which this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    if host in _EVERY_NETWORK:
        only_6 = listener.family == socket.AF_INET6 and listener.getsockopt(
            socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
        )
        host = "::1" if only_6 else "127.0.0.1"
    return _url(host, port)


def network_url_of(listener: socket.socket) -> str | None:
    """The address under which other machines reach a socket that listens on every network; None for any other socket."""
    host, port = listener.getsockname()[:2]
    if host not in _EVERY_NETWORK:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(_SOMEWHERE)
        except OSError:
            # Connected to no network.
            return None
        return _url(asking.getsockname()[0], port)


def _url(host: str, port: int) -> str:
    # The part behind % is an interface of this machine (RFC 6874).
    return f"http://[{host.replace('%', '%25')}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def owned_folder(folder: Path) -> Generator[None]:
    """Make the data folder if it is missing, and be its only user. Raises ConfigurationError."""
    files.prepare_folder(folder)
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {folder} cannot be written: {error.strerror}; choose another one with --data"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"another Milepost server uses the data folder {folder}: end it, or choose another folder with --data"
            ) from None
        yield
    finally:
        os.close(descriptor)


def development_key(folder: Path) -> str:
    """The development key of this folder: the one of its last start, or a new one."""
    try:
        known = json.loads((folder / DEV_FILE).read_text())["secret_key"]
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    if isinstance(known, str) and known.startswith("tr_dev_"):
        return known
    return "tr_dev_" + secrets.token_urlsafe(24)


def write_development_file(folder: Path, *, url: str, secret_key: str) -> None:
    """Leave address and key where code that runs below this folder finds them; only the user may read the file."""
    path = folder / DEV_FILE
    try:
        descriptor = os.open(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"url": url, "secret_key": secret_key}, file)
            file.write("\n")
        path.with_suffix(".new").replace(path)
        # A folder inside a repository must not carry the key or the database into it.
        with contextlib.suppress(FileExistsError), (folder / ".gitignore").open("x") as ignore:
            ignore.write("*\n")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error


@asynccontextmanager
async def hosted(
    settings: ServerSettings,
    listener: socket.socket,
    hurried: asyncio.Event | None = None,
    *,
    owns_process: bool = True,
) -> AsyncGenerator[HostedServer]:
    """Serve on this socket while the block runs; at its end streams are ended and what is under way is finished.

    Args:
        hurried: set when what is under way need not be waited for.
        owns_process: whether the process is there for the server, so that what holds for all of it may be set.

    Raises: ConfigurationError when the database cannot be used.
    """
    server = Server(settings)
    config = uvicorn.Config(
        server.app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS_MAX,
    )
    runner = _Uvicorn(config)
    ended = asyncio.create_task(runner.serve(sockets=[listener]))
    try:
        await first_of(runner.has_started.wait(), ended)
        if ended.done():
            raise ConfigurationError("the server did not start; the lines above say why")
        if owns_process:
            _relieve_collector()
        yield HostedServer(url_of(listener), network_url_of(listener), server, ended)
    finally:
        server.begin_drain()
        runner.should_exit = True
        while not ended.done():
            if hurried is not None and hurried.is_set():
                runner.force_exit = True
            # Again and again: workers and watchers come back at once for as long as there is a socket.
            server.stop_streams()
            await asyncio.wait({ended}, timeout=0.05)


def _relieve_collector() -> None:
    """Let the garbage collector look less often, and never at what was loaded at the start.

    Each request makes many objects that live for a moment and hold no cycles; looking through them took a fifth of the server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Also tell when it is done."""
        await super().startup(sockets)
        self.has_started.set()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the command's own business."""
        yield
