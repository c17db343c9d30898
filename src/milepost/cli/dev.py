"""`milepost dev`: server, dashboard and executors in one command, for development."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from milepost.cli.console import is_drawn, note, print_line, say, says_json
from milepost.cli.hosting import (
    DEV_FILE,
    HostedServer,
    bind,
    development_key,
    hosted,
    owned_folder,
    url_of,
    write_development_file,
)
from milepost.cli.settings import name_unknown_settings
from milepost.cli.stopping import StopSignals
from milepost.cli.working import Announcer, supervise
from milepost.server.auth import CODE_SECONDS
from milepost.server.settings import load_settings
from milepost.worker.control import Order
from milepost.worker.supervisor import Supervisor, WorkerOptions

STDERR = 2


@dataclass(frozen=True, kw_only=True)
class DevOptions:
    """The options of the command; `--help` explains them."""

    sources: Sequence[str]
    host: str
    port: int
    data: Path
    processes: int
    concurrency: int
    isolated: int | None
    grace_seconds: float
    reload: bool
    json: bool


async def dev(options: DevOptions) -> None:
    """Run everything until a signal asks for the end.

    Raises: ConfigurationError, WorkerFailed.
    """
    name_unknown_settings()
    with StopSignals() as signals, bind(options.host, options.port) as listener, owned_folder(options.data):
        settings = load_settings(data_folder=options.data)
        key = settings.secret_key or development_key(options.data)
        settings = settings.model_copy(update={"secret_key": key})
        url = url_of(listener)
        async with hosted(settings, listener) as server:
            write_development_file(options.data, url=url, secret_key=key)

            def ready(tasks: Sequence[str]) -> None:
                if options.json:
                    print_line(
                        json.dumps({"url": url, "secret_key": key, "dashboard": server.sign_in_link()})
                    )
                else:
                    _greet(server, key, tasks, options)

            worker = WorkerOptions(
                sources=options.sources,
                api_url=url,
                secret_key=key,
                processes=options.processes,
                concurrency=options.concurrency,
                isolated=options.isolated,
                grace_seconds=options.grace_seconds,
                reload=options.reload,
                # Standard output is for the one line that programs read.
                output=STDERR if options.json else None,
            )
            # The server ends with the executors, so a run that waits for another one waits in vain.
            await supervise(
                Supervisor(worker, Announcer(ready)), signals, ended=[server.ended], order=Order.STOP
            )


def _greet(server: HostedServer, key: str, tasks: Sequence[str], options: DevOptions) -> None:
    if says_json():
        note("ready", event="dev.ready", url=server.url, tasks=list(tasks), data=str(options.data))
        return
    processes = "1 process" if options.processes == 1 else f"each of {options.processes} processes"
    folder = options.data.resolve()
    # What opens the server is for the eyes of whoever sits here, and not for a file that collects what programs say.
    if is_drawn(sys.stderr):
        dashboard = [
            f"  Dashboard  {server.sign_in_link()}",
            f"             (signs this browser in, once, within {CODE_SECONDS // 60} minutes; "
            "`milepost dashboard` prints another link)",
        ]
    else:
        dashboard = [f"  Dashboard  {server.url} (`milepost dashboard` prints a link that signs in)"]
    network = [f"  Network    {server.network_url}"] if server.network_url else []
    lines = [
        *dashboard,
        f"  API        {server.url}",
        *network,
        f"  Tasks      {', '.join(tasks)}",
        f"  Runs       up to {options.concurrency} at once in {processes}; their data is in {options.data}",
        "",
    ]
    if folder.name == ".milepost":
        lines += [f"Code that runs in {folder.parent} or below finds the server by itself. From elsewhere:"]
    else:
        lines += ["Code finds the server by these two:"]
    lines += [
        "",
        f"  export MILEPOST_API_URL={server.url}",
        f"  export MILEPOST_SECRET_KEY={key}"
        if is_drawn(sys.stderr)
        else f"  export MILEPOST_SECRET_KEY=...   (it is in {options.data / DEV_FILE})",
        "",
        f"Trigger a run:  milepost trigger {tasks[0]} 'PAYLOAD AS JSON' --watch",
        "",
    ]
    say(f"\nMilepost {version('milepost')} is ready. Ctrl-C ends it.\n", style="bold")
    say("\n".join(lines))
