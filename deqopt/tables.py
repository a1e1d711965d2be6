"""Tables: aligned text for the screen, and CSV files."""

from __future__ import annotations

import csv
import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A line for each row, its cells under each other: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])] for first, *rest in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def folded(names: Sequence[str], columns: Sequence[Sequence[str]], width: int = 80, name_width: int = 30) -> str:
    """A table with no line longer than ``width``: columns that do not fit follow below, beside the names again.

    Names longer than ``name_width`` and headings longer than 16 are broken over lines; nothing is left out.

    Args:
        names: the first column, to the left; its first entry is its heading.
        columns: the others, to the right, each with its heading first.
        width: larger than ``name_width`` by the widest cell and 2 at least.
        name_width: of the first column, at most.
    """
    first = [textwrap.wrap(name, name_width) or [""] for name in names]
    left = _width(first)
    blocks: list[list[list[list[str]]]] = [[first]]
    used = left
    for heading, *cells in columns:
        widest = max(16, *map(len, cells)) if cells else 16
        column = [textwrap.wrap(heading, min(widest, width - left - 2)) or [""], *([cell] for cell in cells)]
        if len(blocks[-1]) > 1 and used + 2 + _width(column) > width:
            blocks.append([first])
            used = left
        blocks[-1].append(column)
        used += 2 + _width(column)
    return "\n".join(aligned(_lines(block)) for block in blocks)


def _width(column: Sequence[Sequence[str]]) -> int:
    return max(len(line) for cell in column for line in cell)


def _lines(columns: Sequence[Sequence[Sequence[str]]]) -> list[list[str]]:
    """Rows of one line each, of cells of several: those of headings end, those of other rows begin on the same."""
    lines = []
    for position, row in enumerate(zip(*columns, strict=True)):
        height = max(map(len, row))
        above = [height - len(cell) if position == 0 else 0 for cell in row]
        for k in range(height):
            at = [k - skipped for skipped in above]
            lines.append([cell[i] if 0 <= i < len(cell) else "" for cell, i in zip(row, at, strict=True)])
    return lines


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[object]], path: Path) -> None:
    """Write a CSV file in UTF-8; an existing one is replaced only by a complete one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    # Names of files may contain bytes that are not valid UTF-8; these bytes are written unchanged.
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)
    os.replace(partial, path)
