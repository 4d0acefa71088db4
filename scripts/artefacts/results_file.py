"""RESULTS.md: one section for each measured thing, between marker comments, written by commands and never by hand.

Sections stand in the paper's order, others last; measuring a thing again replaces its section and nothing else. The
list of claims on top is gathered from the sections. Text that is not this project's own (names of folders, clips and
models) is escaped, since Markdown may hold HTML.
"""

import html
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from configs.errors import UserError
from configs.files import atomic_path
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.verdict import RULINGS

SECTION = re.compile(r"<!-- begin (\S+) (\S+)(?: (\d+))? -->\n.*?<!-- end \1 \2 -->\n", re.DOTALL)
VERDICT = re.compile(r"^- \*\*(?P<ruling>.+?)\*\* \((?P<whose>.*?); (?P<group>.*?)\): (?P<claim>.*?)\. ", re.MULTILINE)
TEMPLATES = Path(__file__).parent / "templates"
OPENING, TRIED = (TEMPLATES / f"results_{name}.md" for name in ("opening", "tried"))


class Change(NamedTuple):
    """Of rules or recipes: what was otherwise before it, in the sections of all artefacts or of those in `only`."""

    before: str
    only: tuple[str, ...] = ()


CHANGES = (  # in order; an artefact's section notes how many there were when it was made
    Change(
        "claims were decided by yes/no measures over videos, and not by graded ones over reference clips with Holm's "
        "correction; videos took 20 sampling steps, now 6, and trainings 300 steps at 2.5e-3, now 200 at 2e-3"
    ),
    Change(
        "leakage was ruled on where neither variant leaks, and a lost object cost less in colour, edge and leakage; "
        "trainings drew two timesteps a step, now four; some videos took 10 sampling steps"
    ),
    Change("UniPC took back most of what guidance had moved", ("dit", "dit_sweep")),
    Change(
        "reference clips counted as independent, where now the motions are blocks; a claim that was nearly sure to be "
        "refuted was confirmed too easily; an object that has no named colour, or is lost in a frame, did not move"
    ),
    Change(
        "success counted motions that nothing learns, the target did not ask for equal quality, and some variants were "
        "not made",
        ("speed", "time_to_motion"),
    ),
)
OLDER = "Some sections are older than today's rules or recipes; their figures stand, their rulings are provisional:\n\n"
Key = tuple[str, str]  # what was measured, on what


def markdown(text: str) -> str:
    """`text` as plain words of a Markdown paragraph or table cell: HTML and the signs of Markdown are escaped."""
    words = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*|]|\](?=[(\[:])", r"\\\g<0>", words)  # a bracket only where it would close a link's text


def markdown_code(text: str) -> str:
    """`text` as a code span, in more backticks than it holds in a row."""
    words = " ".join(text.split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    return f"{ticks}{words}{ticks}" if ticks == "`" else f"{ticks} {words} {ticks}"


def markdown_table(rows: list[list[str]]) -> str:
    """A table of cells, the header first; every cell is escaped."""
    lines = [f"| {' | '.join(map(markdown, row))} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def read_sections(path: Path) -> dict[Key, str]:
    """Sections of `path` by key, markers included; empty when there is no such file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return {(found[1], found[2]): found[0] for found in SECTION.finditer(text)}


def check_results(path: Path) -> None:
    """Raise UserError where `path` holds anything but results, which writing a section would lose: before the work."""
    if not path.exists():
        return
    if path.is_dir():
        raise UserError(f"--results: {path} is a folder; name a file such as {path / 'RESULTS.md'}")
    text = path.read_text(errors="replace", encoding="utf-8")
    if text.strip() and not SECTION.search(text):
        raise UserError(f"--results: {path} is no file of results, and would be written anew; name another file")


def put_section(path: Path, key: Key, title: str, body: str) -> None:
    """Replace or add one section of `path`. Raises UserError as `check_results`."""
    check_results(path)
    key = tuple(re.sub(r"[^\w.-]+", "_", word) for word in key)  # a marker is a comment, which no name may end
    made = f" {len(CHANGES)}" if key[0] in ARTEFACTS else ""
    text = f"<!-- begin {key[0]} {key[1]}{made} -->\n## {markdown(title)}\n\n{body}<!-- end {key[0]} {key[1]} -->\n"
    write_sections(path, read_sections(path) | {key: text})


def write_sections(path: Path, sections: dict[Key, str]) -> None:
    """Write `path` anew: the opening, the claims of all sections, the sections in order, and what was tried once."""
    order = sorted(sections, key=_place)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        parts = [
            OPENING.read_text(encoding="utf-8"),
            _older(sections, order),
            _claims(sections, order),
            *(sections[k] for k in order),
            TRIED.read_text(encoding="utf-8"),
        ]
        temporary.write_text("\n".join(part for part in parts if part), encoding="utf-8")


def _place(key: Key) -> tuple:
    """Artefacts first, by model and then in the paper's order; what else was measured follows by its name."""
    name, subject = key
    return (0, subject, list(ARTEFACTS).index(name)) if name in ARTEFACTS else (1, name, subject)


def _older(sections: dict[Key, str], order: list[Key]) -> str:
    """Which sections were made before rules or recipes changed, and what was otherwise then; empty where none was."""
    made = {key: int(SECTION.match(sections[key])[3] or 0) for key in order if key[0] in ARTEFACTS}
    lines = []
    for number, change in enumerate(CHANGES):
        keys = [key for key in made if made[key] <= number and key[0] in (change.only or (key[0],))]
        if keys:
            lines.append(f"- {', '.join(dict.fromkeys(map(_title, keys)))}: {change.before}.\n")
    return OLDER + "".join(lines) if lines else ""


def _title(key: Key) -> str:
    return ARTEFACTS[key[0]].title.split(":")[0]


def _claims(sections: dict[Key, str], order: list[Key]) -> str:
    """The list of all claims by ruling; smoke runs do not count."""
    found = [
        (verdict, key)
        for key in order
        if key[0] in ARTEFACTS and "SMOKE RUN" not in sections[key]
        for verdict in VERDICT.finditer(sections[key])
    ]
    lists = []
    for ruling in RULINGS:
        lines = [
            f"- {_title(key)} ({key[1]}): {verdict['claim']} ({verdict['group']})"
            for verdict, key in found
            if verdict["ruling"] == ruling
        ]
        if lines:
            lists.append(f"**{ruling.capitalize()}:**\n\n" + "\n".join(lines) + "\n")
    return "## Claims\n\n" + "\n".join([_share_decided(found), *lists]) if lists else ""


def _share_decided(found: list[tuple[re.Match, Key]]) -> str:
    """How many of the paper's claims are decided, of those that could be."""
    count = Counter(verdict["ruling"] for verdict, _ in found if verdict["whose"] == "paper")
    decided, testable = count["confirmed"] + count["refuted"], sum(count[ruling] for ruling in RULINGS[:3])
    left = count["not testable"] + count["not measured"]
    return (
        f"Of the paper's {testable} comparisons that could be tested, {decided} are decided "
        f"({100 * decided / max(1, testable):.0f} %); {left} could not be tested or measured.\n"
    )
