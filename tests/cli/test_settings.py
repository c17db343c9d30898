"""A setting that nobody reads is named at start."""

import re
from pathlib import Path

import pytest

import milepost
from milepost.cli.settings import known_settings, unknown_settings


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MILEPOST_LEASE_SECOND", "MILEPOST_LEASE_SECONDS"),
        ("MILEPOST_SECRETKEY", "MILEPOST_SECRET_KEY"),
        ("MILEPOST_APIURL", "MILEPOST_API_URL"),
        ("MILEPOST_METADATA_FLUSH_INTERVAL", "MILEPOST_METADATA_FLUSH_INTERVAL_MS"),
        ("MILEPOST_TASK_RUN_METADATA_MAXIMUM_SIZE", "TASK_RUN_METADATA_MAXIMUM_SIZE"),
        ("TASK_RUN_METADATA_MAX_SIZE", "TASK_RUN_METADATA_MAXIMUM_SIZE"),
        ("MILEPOST_XYZZY", None),
    ],
)
def test_what_may_have_been_meant_is_said(name: str, meant: str | None) -> None:
    [line] = unknown_settings({name: "1", "PATH": "/bin", "MILEPOST_SECRET_KEY": "k"})
    assert line.startswith(f"{name} is not a setting")
    assert (f"did you mean {meant}?" in line) == (meant is not None)
    # What a setting holds may be a secret.
    assert "1" not in line


def test_known_settings_are_not_named() -> None:
    assert unknown_settings(dict.fromkeys(known_settings(), "1")) == []
    assert unknown_settings({"PATH": "/bin", "milepost_x": "1"}) == []


def test_every_setting_that_the_code_names_is_known() -> None:
    """Whoever reads a new variable from the environment adds it, or it would be called unknown."""
    folder = Path(milepost.__file__).parent
    named = {
        name
        for path in folder.rglob("*")
        if path.suffix in (".py", ".html")
        for name in re.findall(
            r"\b(?:MILEPOST|TASK_RUN)_[A-Z][A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8")
        )
    }
    assert named - known_settings() == set()
    assert len(named) > 5
