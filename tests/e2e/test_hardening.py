"""The commands as an operator runs them: private files, addresses that work, links that are in no log, settings that are named."""

import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import urllib3
from real_processes import Command, House, wait_until, write_tasks

from milepost import Client

KEY = "0123456789abcdef0123456789abcdef"
TASKS = """
@task
def work() -> str:
    metadata.set("a", 1)
    return "done"
"""


def serve(command: Callable[..., Command], folder: Path, **env: str) -> tuple[Command, str]:
    """`milepost server` on a free port, and its address."""
    server = command("server", "--port", "0", folder=folder, env={"MILEPOST_SECRET_KEY": KEY, **env})
    server.says("serves at http://")
    found = re.search(r"serves at (http://\S+)", server.errors)
    assert found is not None
    wait_until(lambda: "milepost dashboard" in server.errors, what="the line about the dashboard")
    return server, found[1]


def test_a_log_of_the_server_lets_nobody_in(command: Callable[..., Command], tmp_path: Path) -> None:
    """Its standard error is kept by systemd, by docker, by a file that others read."""
    server, url = serve(command, tmp_path)
    assert "code=" not in server.errors
    assert KEY not in server.errors
    asked = command("dashboard", folder=tmp_path, env={"MILEPOST_API_URL": url, "MILEPOST_SECRET_KEY": KEY})
    link = asked.line().strip()
    assert asked.ended() == 0
    assert link.startswith(f"{url}/sign-in?code=")
    assert "once, within 15 minutes" in asked.errors
    opened = urllib3.request("GET", link, redirect=False)
    assert (opened.status, opened.headers["location"]) == (303, "/")
    assert urllib3.request("GET", link, redirect=False).status == 401
    stranger = command(
        "dashboard", folder=tmp_path, env={"MILEPOST_API_URL": url, "MILEPOST_SECRET_KEY": "wrong"}
    )
    assert stranger.ended() == 1
    assert "the secret key is wrong" in stranger.errors
    assert server.end() == 0


def test_the_lines_of_a_development_server_in_a_file_let_nobody_in(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    write_tasks(tmp_path / "jobs.py", TASKS)
    dev = command("dev", "jobs.py", "--port", "0", "--processes", "1", folder=tmp_path)
    dev.says("Trigger a run:")
    key = json.loads((tmp_path / ".milepost" / "dev.json").read_text())["secret_key"]
    assert "code=" not in dev.errors
    assert key not in dev.errors
    asked = command("dashboard", folder=tmp_path)
    assert urllib3.request("GET", asked.line().strip(), redirect=False).status == 303
    assert dev.end() == 0


def test_data_is_for_its_owner_only(house: Callable[..., House], tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        dev = house(TASKS, "--processes", "1")
    finally:
        os.umask(before)
    assert dev.run("work").output == "done"
    folder = tmp_path / ".milepost"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert {name for name, mode in modes.items() if mode & 0o077} <= {".gitignore"}
    assert {"milepost.db", "milepost.db-wal", "milepost.db-shm", "dev.json", "lock"} <= modes.keys()
    assert dev.end() == 0


def test_a_data_folder_that_is_removed_is_said_and_nothing_is_acknowledged(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    server, url = serve(command, tmp_path)
    health = f"{url}/api/v1/health"
    assert urllib3.request("GET", health).status == 200
    shutil.rmtree(tmp_path / ".milepost")
    assert urllib3.request("GET", health).status == 503
    server.says("was removed, replaced or moved while the server runs")
    assert "Traceback" not in server.errors
    assert server.end() == 0


def test_an_unknown_setting_is_named_by_every_command(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    write_tasks(tmp_path / "jobs.py", TASKS)
    misspelt = {"MILEPOST_LEASE_SECOND": "5", "MILEPOST_SECRET_KEY": KEY}
    line = "MILEPOST_LEASE_SECOND is not a setting of this version, and changes nothing; did you mean MILEPOST_LEASE_SECONDS?"
    server, url = serve(command, tmp_path, **misspelt)
    assert line in server.errors
    worker = command("worker", "jobs.py", folder=tmp_path, env={**misspelt, "MILEPOST_API_URL": url})
    worker.says("ready to run work")
    assert worker.errors.count(line) == 1
    assert worker.end() == 0
    assert server.end() == 0
    dev = command("dev", "jobs.py", "--port", "0", "--processes", "1", folder=tmp_path, env=misspelt)
    dev.says("Trigger a run:")
    assert dev.errors.count(line) == 1
    assert dev.end() == 0


def test_a_setting_that_is_known_is_used(command: Callable[..., Command], tmp_path: Path) -> None:
    """`--data` has a default, and the setting must win over it."""
    server, _ = serve(command, tmp_path, MILEPOST_DATA_FOLDER="elsewhere")
    assert "not a setting" not in server.errors
    assert (tmp_path / "elsewhere" / "milepost.db").is_file()
    assert not (tmp_path / ".milepost").exists()
    assert server.end() == 0


def test_an_address_for_every_network_is_printed_as_one_that_works(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    server = command(
        "server", "--host", "0.0.0.0", "--port", "0", folder=tmp_path, env={"MILEPOST_SECRET_KEY": KEY}
    )
    server.says("milepost dashboard")
    addresses = re.findall(r"http://[^\s]+", server.errors)
    assert addresses
    for address in addresses:
        assert "0.0.0.0" not in address
        assert urllib3.request("GET", f"{address}/api/v1/health").status == 200
    assert server.end() == 0


def test_two_development_servers_of_one_machine_do_not_sign_each_other_out(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    """Browsers keep cookies by host, whatever the port."""
    jar: dict[str, str] = {}
    urls: list[str] = []
    servers: list[Command] = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        write_tasks(folder / "jobs.py", TASKS)
        dev = command("dev", "jobs.py", "--port", "0", "--processes", "1", "--json", folder=folder)
        ready = json.loads(dev.line())
        cookie = (
            urllib3.request("GET", ready["dashboard"], redirect=False).headers["set-cookie"].partition(";")[0]
        )
        cookie_name, _, value = cookie.partition("=")
        jar[cookie_name] = value
        urls.append(ready["url"])
        servers.append(dev)
    headers = {"cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}
    for url in urls:
        assert urllib3.request("GET", f"{url}/api/v1/runs", headers=headers).status == 200
    for dev in servers:
        assert dev.end() == 0


def test_a_short_key_is_said(command: Callable[..., Command], tmp_path: Path) -> None:
    server, _ = serve(command, tmp_path, MILEPOST_SECRET_KEY="short")
    assert "MILEPOST_SECRET_KEY has only 5 characters" in server.errors
    assert server.end() == 0


def test_lists_as_json_leave_out_what_was_not_loaded(
    house: Callable[..., House], command: Callable[..., Command], tmp_path: Path
) -> None:
    dev = house(TASKS, "--processes", "1")
    run = dev.run("work")
    listed = command("runs", "list", "--json")
    row = json.loads(listed.line())
    assert listed.ended() == 0
    assert row["id"] == run.id
    assert row["depth"] == 0
    assert row.keys().isdisjoint({"payload", "output", "child_counts"})
    got = command("runs", "get", run.id, "--json")
    whole = json.loads(got.line())
    assert got.ended() == 0
    assert (whole["output"], whole["payload"], whole["child_counts"]) == ("done", None, {})
    assert Client(dev.url, dev.secret_key).runs.retrieve(run.id).output == "done"
    assert dev.end() == 0
