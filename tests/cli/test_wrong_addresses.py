"""A worker that can reach no server by what its settings say says so once, and starts no executor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("api_url", "secret_key", "said"),
    [
        (
            "nonsense",
            "key",
            "error: the API address 'nonsense' is no http:// or https:// address (MILEPOST_API_URL)",
        ),
        ("ftp://localhost", "key", "error: the API address 'ftp://localhost' is no http://"),
        (
            "http://localhost:1",
            "schlüssel",
            "error: the secret key has line breaks or characters beyond ASCII",
        ),
    ],
)
def test_a_wrong_address_or_key_is_told_once(
    tmp_path: Path, api_url: str, secret_key: str, said: str
) -> None:
    (tmp_path / "jobs.py").write_text("from milepost import task\n\n@task\ndef work(): ...\n")
    done = subprocess.run(
        [sys.executable, "-c", "from milepost.cli.main import main; main()", "worker", "jobs.py"],
        cwd=tmp_path,
        env={**os.environ, "MILEPOST_API_URL": api_url, "MILEPOST_SECRET_KEY": secret_key},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1
