"""A table of measured videos as a CSV file: one row a video, a column for every fact that any of them has."""

import csv
from pathlib import Path

from configs.files import atomic_path


def write_table(path: Path, rows: list[dict]) -> None:
    """Write `rows` with a header, complete or not at all; a fact that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
