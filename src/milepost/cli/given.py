"""What people give to a command as text: a time, a payload, an object."""

import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from milepost.cli.console import fail

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def time_of(option: str, text: str) -> datetime:
    """A time that a person gave: how long ago (`90s`, `10m`, `2h`, `3d`), or a date and time, local without a time zone."""
    ago = re.fullmatch(r"(\d{1,9})\s*([smhdw])", text.strip())
    try:
        if ago is not None:
            return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * UNIT_SECONDS[ago[2]])
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        fail(
            f"{option} {text!r} is no time; write for example 2h, 3d, 2026-01-31T14:05 (local) or 2026-01-31T14:05Z"
        )


def payload_of(given: str) -> Any:
    """The payload that an argument means: JSON, a file with JSON in it (`@people.json`), or standard input (`-`)."""
    if given == "-":
        return _from_json(
            _read("standard input", sys.stdin.buffer.read), "standard input", "it holds one JSON value"
        )
    if given.startswith("@"):
        path = Path(given[1:]).expanduser()
        return _from_json(_read(str(path), path.read_bytes), str(path), "the file holds one JSON value")
    return _from_json(given, "the payload", f"text needs quotes: '{json.dumps(given, ensure_ascii=False)}'")


def _read(name: str, read: Callable[[], bytes]) -> str:
    try:
        return read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fail(f"{name} is not UTF-8 ({error.reason} at byte {error.start:,}), and JSON is")
    except OSError as error:
        fail(f"{name} cannot be read: {error.strerror}")


def object_from_json(text: str) -> dict[str, Any]:
    """The JSON object that `--metadata` means."""
    example = '\'{"user": "u1"}\''
    value = _from_json(text, "--metadata", f"it is an object such as {example}")
    if not isinstance(value, dict):
        fail(f"--metadata is not a JSON object; write for example {example}")
    return cast("dict[str, Any]", value)


def _from_json(text: str, name: str, advice: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        fail(f"{name} is not JSON ({error}); {advice}")
