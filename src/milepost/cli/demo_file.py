"""The file that the demo works on: 10,000 people made up by rule, or a file of the user's own."""

import csv
import random
from pathlib import Path

from milepost.errors import MilepostError

PEOPLE = 10_000
# Broken row ids are listed in the run's metadata, which has a size limit; so the file has one too.
ROWS_MAX = 100_000
COLUMNS = ("id", "name", "email", "age")

FIRST = (
    "Ada",
    "Alan",
    "Barbara",
    "Charles",
    "Donald",
    "Edsger",
    "Frances",
    "Grace",
    "Hedy",
    "Jean",
    "Karen",
    "Ken",
)
LAST = (
    "Allen",
    "Bartik",
    "Dijkstra",
    "Hamilton",
    "Hopper",
    "Knuth",
    "Liskov",
    "Lovelace",
    "Shannon",
    "Turing",
)


class DemoFileError(MilepostError):
    """The user's file cannot be used; the message says why and what would do."""


def write_people(path: Path) -> None:
    """Write the demo's people: always the same ones, about three in a hundred with something wrong."""
    chance = random.Random(10_000)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number in range(1, PEOPLE + 1):
            first, last = chance.choice(FIRST), chance.choice(LAST)
            name, email, age = (
                f"{first} {last}",
                f"{first}.{last}.{number}@example.com".lower(),
                str(chance.randint(18, 99)),
            )
            match chance.randrange(100):
                case 0:
                    email = email.replace("@", " at ")
                case 1:
                    name = ""
                case 2:
                    age = "unknown"
                case _:
                    pass
            writer.writerow((number, name, email, age))


def check_file(path: Path) -> int:
    """See that the file can be worked on; the number of its rows. Raises DemoFileError."""
    if path.is_dir():
        raise DemoFileError(f"{path} is a folder; give a CSV file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header is None:
                raise DemoFileError(
                    f"{path} is empty; the first line must name the columns {', '.join(COLUMNS)}"
                )
            missing = [column for column in COLUMNS if column not in header]
            if len(missing) == len(COLUMNS) and len(header) == 1:
                raise DemoFileError(
                    f"{path} is not a CSV file with a header; its first line must name the columns {', '.join(COLUMNS)}"
                )
            if missing:
                raise DemoFileError(
                    f"{path} has no column {' and no column '.join(missing)}; it needs {', '.join(COLUMNS)}"
                )
            count = sum(1 for row in reader if row)
    except FileNotFoundError:
        raise DemoFileError(f"{path}: there is no such file") from None
    except UnicodeDecodeError:
        raise DemoFileError(f"{path} is not a CSV file in UTF-8") from None
    except csv.Error as error:
        raise DemoFileError(f"{path} is not a CSV file: {error}") from None
    except OSError as error:
        raise DemoFileError(f"{path} cannot be read: {error.strerror}") from None
    if count == 0:
        raise DemoFileError(f"{path} has a header but no rows")
    if count > ROWS_MAX:
        raise DemoFileError(f"{path} has {count:,} rows; the demo takes up to {ROWS_MAX:,}")
    return count
