"""`make torture`, for a few seconds: what it needs is there, and it ends by itself with nothing wrong."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

TORTURE = Path(__file__).parents[1] / "torture"
SMALL = ["--writers", "6", "--runs", "2", "--workers", "2", "--wave-size", "30", "--pause", "0.7"]


@pytest.mark.timeout(180)
def test_a_few_seconds_of_torture() -> None:
    ended = subprocess.run(
        [sys.executable, str(TORTURE), "--seconds", "3", "--seed", "3", *SMALL],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "lost 0  doubled 0  reordered 0  backwards 0" in ended.stdout
    assert "wrong output 0  executed twice 0  charged without cause 0  orphan 0  stuck 0" in ended.stdout
    assert "chunks lost 0  chunks doubled 0  chunks reordered 0  gaps 0" in ended.stdout
    assert "server killed" in ended.stdout
    left = [
        child for child in psutil.Process().children(recursive=True) if "milepost" in str(child.cmdline())
    ]
    assert not left
