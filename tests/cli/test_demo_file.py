"""The demo's file: always the same people, and clear words for files that cannot be used."""

import csv
import hashlib
from pathlib import Path

import pytest

from milepost.cli.demo_file import PEOPLE, DemoFileError, check_file, write_people


def test_the_people_are_always_the_same_and_some_are_broken(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    write_people(one)
    write_people(other)
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()
    assert check_file(one) == PEOPLE
    with one.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows}) == PEOPLE
    assert any(not row["name"] for row in rows)
    assert any("@" not in row["email"] for row in rows)
    assert any(not row["age"].isdecimal() for row in rows)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"id,name,email,age\n", "no rows"),
        (b"id,name,email,age\n\n\n", "no rows"),
        (b"id,name,age\n1,a,2\n", "no column email"),
        (b"just some text\nand more\n", "not a CSV file with a header"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "not a CSV file"),
        (b'id,name,email,age\n1,"a,b,c\n', "not a CSV file"),
    ],
)
def test_files_that_cannot_be_used_are_told_apart(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "people.csv"
    file.write_bytes(content)
    with pytest.raises(DemoFileError, match=words):
        check_file(file)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DemoFileError, match="there is no such file"):
        check_file(tmp_path / "nothing.csv")
    with pytest.raises(DemoFileError, match="is a folder"):
        check_file(tmp_path)


def test_a_byte_order_mark_and_other_columns_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_bytes("\ufeffid,name,email,age,city\n1,a,b@c.de,3,Ulm\n".encode())
    assert check_file(file) == 1
