"""The table of a run's life in the documentation is the one in the code. Printed by `python -m docs.test_lifecycle` in `tests`."""

from pathlib import Path

from milepost.model.lifecycle import LIFECYCLE, Move
from milepost.model.run import RunStatus

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"
BEGIN, END = "<!-- table: lifecycle -->\n", "<!-- end: lifecycle -->"


def table() -> str:
    """The moves as rows, the statuses that are not final as columns. A final one takes no move."""
    statuses = [status for status in RunStatus if not status.is_final]
    lines = ["| move | " + " | ".join(statuses) + " |", "| --- |" + " --- |" * len(statuses)]
    for move in Move:
        answers = [LIFECYCLE[status][move] for status in statuses]
        cells = [f"**{answer}**" if isinstance(answer, RunStatus) else answer for answer in answers]
        lines.append(f"| {move} | " + " | ".join(cells) + " |")
    over = {answer for status in RunStatus if status.is_final for answer in LIFECYCLE[status].values()}
    lines += ["", f"In any other status every move is refused: {' '.join(sorted(map(str, over)))}."]
    return "\n".join(lines) + "\n"


def test_the_page_has_the_table_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == table()


def test_the_page_tells_of_every_status() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for status in RunStatus:
        assert f"| {status} |" in text


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    start = page.index(BEGIN) + len(BEGIN)
    PAGE.write_text(page[:start] + table() + page[page.index(END) :], encoding="utf-8")
