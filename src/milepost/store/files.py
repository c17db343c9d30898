"""The data folder and its files: for the eyes of their owner only.

Payloads, outputs and the key of a development server are in there. What is made here is made private (0700, 0600); what is there
already is tightened where it is ours, and a line says so; what is not ours is left as it is, and a line says that too.
"""

import logging
import os
import stat
from pathlib import Path

from milepost.errors import ConfigurationError

logger = logging.getLogger("milepost.store")

DATABASE = "milepost.db"
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# Files that only Milepost makes. A folder with one of them is a data folder, and not a home that somebody else lives in too.
_OURS = (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "lock", "dev.json")


def prepare_folder(folder: Path) -> None:
    """Make the data folder, or make sure that the one that is there is private.

    Raises: ConfigurationError when it cannot be made.
    """
    try:
        folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        names = {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {folder} cannot be written: {error.strerror}; choose another one with --data"
        ) from error
    is_data_folder = not names or not names.isdisjoint(_OURS)
    tightened = _tighten(folder, _FOLDER_MODE) if is_data_folder else _warn(folder)
    files = [folder / name for name in _OURS if name in names and (folder / name).is_file()]
    tightened += [path for file in files for path in _tighten(file, _FILE_MODE)]
    if tightened:
        logger.warning(
            "other users of this machine could read %s; from now on only its owner can",
            ", ".join(map(str, tightened)),
        )


def create_private(path: Path) -> None:
    """Make an empty file that only its owner may read, where there is none. What SQLite puts beside it has the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE))


def identity(path: str) -> tuple[int, int] | None:
    """Which file is at a path; another one that takes its place has another identity. None when nothing is there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - asked at each transaction, and a Path takes twice as long
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _tighten(path: Path, mode: int) -> list[Path]:
    """The path, if others could read it and now cannot any more."""
    try:
        found = path.lstat()
        if not found.st_mode & _OTHERS or stat.S_ISLNK(found.st_mode):
            return []
        if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            return _warn(path)
        path.chmod(mode)
    except OSError as error:
        logger.warning("other users of this machine can read %s, and that cannot be changed: %s", path, error)
        return []
    return [path]


def _warn(path: Path) -> list[Path]:
    try:
        readable = path.stat().st_mode & _OTHERS
    except OSError:
        return []
    if readable:
        logger.warning(
            "other users of this machine can see into %s, and it is left as it is because it is not Milepost's own; "
            "a folder that only holds Milepost's data is kept private",
            path,
        )
    return []
