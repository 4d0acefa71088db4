"""Rows of another section of RESULTS.md, beside an artefact: what another model does on the same motions.

They are quoted as they stand there, with what their cells hold, the date and the commit: the other artefact is not made
again, and may have been measured in another way.
"""

import html
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from scripts.artefacts.artefact import EACH_MOTION, Beside
from scripts.artefacts.results_file import read_sections

TABLE = re.compile(rf"^(?P<cells>[^\n]+):\n\n(?P<table>\| {EACH_MOTION} \|.*?)(?=\n\n|\Z)", re.DOTALL | re.MULTILINE)
MADE = re.compile(r"^\d{4}-\d\d-\d\d, commit \w+", re.MULTILINE)


@dataclass(frozen=True)
class Quotation:
    """A sentence on where the rows are from and what their cells hold, and the rows, the header first."""

    source: str
    rows: list[list[str]]


def quote(results: Path, wanted: Beside | None, motions: Collection[str]) -> Quotation | None:
    """The `wanted` rows of a section's table by motion, for those of `motions` that it has.

    None where nothing is wanted, or the file `results` has no such section, row or motion.
    """
    section = read_sections(results).get((wanted.artefact, wanted.model), "") if wanted else ""
    found, made = TABLE.search(section), MADE.search(section)
    if not (found and made):
        return None
    header, _, *lines = ([_plain(cell) for cell in _split(line)] for line in found["table"].splitlines())
    columns = [0, *(index for index, name in enumerate(header) if name in motions)]
    rows = [[line[index] for index in columns] for line in lines if line[0] in wanted.rows]
    if not rows or len(columns) == 1:
        return None
    source = (
        f"Beside it {wanted.what}, on the same motions, as the section {wanted.artefact} {wanted.model} of "
        f"{results.name} has it ({made[0]}). {_plain(found['cells'])}:"
    )
    return Quotation(source, [[header[index] for index in columns], *rows])


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _plain(text: str) -> str:
    """The words before `markdown` escaped them."""
    return html.unescape(re.sub(r"\\([\\`*|\]])", r"\1", text))
