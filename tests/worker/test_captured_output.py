"""Printing in an executor: nothing that becomes of its output is an error of the code that prints."""

import os
import subprocess
import sys
import textwrap

import pytest


def output_of(code: str, *, stdout: int | None = None, stderr: int | None = None) -> tuple[int, str, str]:
    """Run this in a process whose output goes on as in an executor: exit code, standard output, standard error."""
    source = "from milepost.worker.output import keep_output_going\nkeep_output_going()\n" + textwrap.dedent(
        code
    )
    done = subprocess.run(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE if stderr is None else stderr,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout or "", done.stderr or ""


def test_lines_come_at_once_and_whole() -> None:
    code = """
    import os, sys
    print("one", "zw\\udc80ei", "\\N{SNOWMAN}")
    os.write(1, b"two\\n")
    print("x" * 1_000_000)
    print("three", file=sys.stderr)
    sys.stdout.buffer.write(b"bytes\\n")
    print("no end", end="")
    """
    code, out, errors = output_of(code)
    assert code == 0
    assert out.splitlines() == ["one zw\\udc80ei \N{SNOWMAN}", "two", "x" * 1_000_000, "bytes", "no end"]
    assert errors == "three\n"


TALKS = """
import os, subprocess, sys
for number in range(1000):
    print("line", number)
    print("error", number, file=sys.stderr)
print("x" * 1_000_000)
subprocess.run(["sh", "-c", "echo from a program"], check=True)
sys.stdout.flush()
os._exit(7)
"""


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_nobody_reads(name: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert output_of(TALKS, **{name: writing})[0] == 7
    finally:
        os.close(writing)


def test_a_full_disk() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        # The program of the user's fails, as it would anywhere; printing does not.
        assert output_of(TALKS.replace("check=True", "check=False"), stdout=full)[0] == 7
    finally:
        os.close(full)


def test_descriptors_that_user_code_has_closed() -> None:
    assert (
        output_of("import os\nos.close(1)\nos.close(2)\n" + TALKS.replace("check=True", "check=False"))[0]
        == 7
    )


def test_a_reader_that_is_slow_on_a_pipe_that_does_not_wait() -> None:
    code = """
    import os, sys
    os.set_blocking(1, False)
    for _ in range(100):
        print("x" * 10_000)
    """
    code, out, _ = output_of(code)
    assert code == 0
    assert out == ("x" * 10_000 + "\n") * 100
