"""RESULTS.md: one section for each measured thing, between marker comments, written by commands and never by hand."""

import re
from pathlib import Path

from configs.files import atomic_path

SECTION = re.compile(r"<!-- begin (\S+) (\S+) -->\n.*?<!-- end \1 \2 -->\n", re.DOTALL)

Key = tuple[str, str]  # what was measured, on what


def read_sections(path: Path) -> dict[Key, str]:
    """Sections of `path` by key, markers included; empty when there is no such file."""
    return {(found[1], found[2]): found[0] for found in SECTION.finditer(path.read_text())} if path.exists() else {}


def section(key: Key, title: str, body: str) -> str:
    return f"<!-- begin {key[0]} {key[1]} -->\n## {title}\n\n{body}<!-- end {key[0]} {key[1]} -->\n"


def write_sections(path: Path, preamble: list[str], sections: list[str]) -> None:
    """Write `path` anew: `preamble` paragraphs, then the sections in the order given."""
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(part for part in (*preamble, *sections) if part))
