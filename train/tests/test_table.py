"""Tables: the same cells in a document and, folded, in a terminal."""

import re

import pytest

from train.terminal.table import markdown, terminal

ROWS = [
    {"run": "runs/study-shakespeare/dynamic_mhc/lr0.003/seed0", "loss": 2.19341, "tokens": 512_000, "seconds": None},
    {"run": "runs/plain", "loss": 2.25, "tokens": 1_024_000, "seconds": 12.5, "what": "one stream, " * 9},
]


def test_document_has_a_line_a_row():
    assert markdown(ROWS[1:]).splitlines()[2].startswith("| runs/plain | 2.25 | 1,024,000 |    12.5 | one stream")
    title, rule, *lines = markdown(ROWS).splitlines()
    assert [cell.strip() for cell in title.strip("|").split("|")] == ["run", "loss", "tokens", "seconds", "what"]
    assert rule.count("-:") == 3
    assert len(lines) == 2
    assert len({len(line) for line in (title, rule, *lines)}) == 1
    assert "|         | " in lines[0]


@pytest.mark.parametrize("width", [40, 80, 120, 1000])
def test_terminal_holds_every_cell_within_its_width(width):
    folded = terminal(ROWS, width)
    assert max(map(len, folded.splitlines())) <= width
    joined = re.sub(r"[|\s]", "", folded)
    for cell in ("2.193", "512,000", "1,024,000", "12.5", "seconds"):
        assert cell in joined
    assert joined.count("onestream,") == 9
    for table in folded.split("\n\n"):
        assert table.startswith("| run")
        assert "runs/plain" in table


def test_terminal_of_a_small_table_is_the_document():
    assert terminal(ROWS[:1], 200) == markdown(ROWS[:1])


def test_names_of_half_the_width_are_not_broken():
    name = "blocks.mixer.branch.out_proj"
    assert f"| {name} |" in terminal([{"module": name, "parameters": "kernel (2, 64, 64), " * 4}], 80)


def test_width_is_that_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert terminal(ROWS) == terminal(ROWS, 60)
