"""`make torture`, for a few seconds: what it needs is there, and it ends by itself with nothing wrong."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

TORTURE = Path(__file__).parents[1] / "torture"
SMALL = [
    "--writers",
    "6",
    "--rest",
    "0.5",
    "--runs",
    "2",
    "--workers",
    "2",
    "--wave-size",
    "30",
    "--pause",
    "0.7",
    "--seed",
    "10",
]
POSTGRES = ["--database", "postgres", "--servers", "2"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        (["--seconds", "3"], ["server killed"]),
        (["--seconds", "3", *POSTGRES], ["server killed", "of the database"]),
        (
            [*POSTGRES, "--server-restarts", "1", "--database-restarts", "2"],
            ["2  server restarted in order", "1  database restarted", "1  database stopped at once"],
        ),
    ],
    ids=["SQLite", "PostgreSQL", "restarts"],
)
def test_a_little_torture(arguments: list[str], faults: list[str]) -> None:
    # Such as the template process of `multiprocessing` that an earlier test has begun.
    before = set(psutil.Process().children(recursive=True))
    ended = subprocess.run(
        [sys.executable, str(TORTURE), *SMALL, *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "lost 0  doubled 0  reordered 0  backwards 0" in ended.stdout
    assert (
        "lost runs 0  doubled runs 0  wrong output 0  executed twice 0  charged without cause 0"
        in ended.stdout
    )
    assert "chunks lost 0  chunks doubled 0  chunks reordered 0  gaps 0" in ended.stdout
    for fault in faults:
        assert fault in ended.stdout
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        if child not in before and "milepost" in str(child.cmdline())
    ]
    assert not left


def test_several_servers_on_sqlite_are_refused() -> None:
    refused = subprocess.run(
        [sys.executable, str(TORTURE), "--servers", "3"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "several servers share a database with DATABASE=postgres only" in refused.stderr
