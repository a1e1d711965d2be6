"""Tables are aligned, and CSV files are read back as they were written and replaced whole."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from deqopt.tables import aligned, write_csv


def test_first_columns_are_aligned_to_the_left_and_the_others_to_the_right() -> None:
    rows = [["", "PSNR", "", ""], ["ours", "20.5", "+- 0.25", ""], ["much longer", "7", "", "note"]]
    assert aligned(rows).splitlines() == [
        "             PSNR",
        "ours         20.5  +- 0.25",
        "much longer     7           note",
    ]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = [["a,b", 1.5, ""], ['say "é"', 0.1 + 0.2, None]]
    path = tmp_path / "new" / "table.csv"
    write_csv(["name", "value", "empty"], rows, path)
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["name", "value", "empty"],
            ["a,b", "1.5", ""],
            ['say "é"', "0.30000000000000004", ""],
        ]
    assert list(path.parent.iterdir()) == [path]


def test_a_table_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    def broken() -> Iterator[list[str]]:
        yield ["first"]
        raise OSError("No space left on device")

    path = tmp_path / "table.csv"
    write_csv(["name"], [["old"]], path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        write_csv(["name"], broken(), path)
    assert path.read_bytes() == before
