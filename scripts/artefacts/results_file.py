"""RESULTS.md: one section for each measured thing, between marker comments, written by commands and never by hand.

Sections stand in the paper's order, others last; measuring a thing again replaces its section and nothing else. The
list of claims on top is gathered from the sections. Text that is not this project's own (names of folders, clips and
models) is escaped, since Markdown may hold HTML.
"""

import html
import re
from collections import Counter
from pathlib import Path

from configs.files import atomic_path
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.verdict import RULINGS

SECTION = re.compile(r"<!-- begin (\S+) (\S+) -->\n.*?<!-- end \1 \2 -->\n", re.DOTALL)
VERDICT = re.compile(r"^- \*\*(?P<ruling>.+?)\*\* \((?P<whose>.*?); (?P<group>.*?)\): (?P<claim>.*?)\. ", re.MULTILINE)
HEADER = """# Results

Written by `scripts/reproduce.py`, `scripts/parity.py` and `scripts/bench.py`, never by hand; negative results stay. A
claim is **confirmed** when the difference is decidedly on its side, **refuted** when it decidedly is not, or is short
of the smallest difference that counts, and **not decided** otherwise; then it says how many reference clips would
decide it. It is **not testable** where there is no room for it: nothing can move worse than what does not move, and
where neither of two variants leaks their leakage is not compared. The reference clip is the unit, with its trainings
and their videos inside; graded measures decide, and Holm's correction keeps the chance of any wrong ruling in a table
at 5 %. "Reported [S]" is a secondary reading of the paper's tables, not checked against the PDF; it was measured on
ZeroScope with real clips, so only its direction can be compared with the small embedded model. Brackets are 95 %
intervals; `table.md` beside every page (`outputs/reproduce/ARTEFACT/`) has the formula of each metric.

Some sections are older than today's rules or recipes:

- **Table 3** and **Figure 6** were decided by yes/no measures, with intervals over videos and no correction. Their
  videos took 20 sampling steps, today's take 6; their trainings took 300 steps at 2.5e-3, today's take 200 at 2e-3.
- **Speed** and **Time to motion** rule on leakage where neither variant leaks, and a lost object costs less in colour,
  edge and leakage. Trainings of Speed drew two timesteps a step, today's draw four. The videos of Speed's untouched
  model, and all of Time to motion's, took 10 sampling steps.
- In **Transformer**, the rows with guidance were sampled when UniPC took back most of what guidance had moved.

On PocketScope all methods share one configuration (`configs/reproduce/pocket.yaml`). It was chosen with TAP on the five
re-timings, with a clip of each and these prompts, and its timesteps a step with three clips of there and back; the four
new paths took no part in the choice. MotionDirector also has a row at half the learning rate. The setting of motion
guidance (`models/pocketscope/sampling.json`) was chosen on the orbit, with the first eight of its prompts.
"""

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
    return {(found[1], found[2]): found[0] for found in SECTION.finditer(path.read_text())} if path.exists() else {}


def put_section(path: Path, key: Key, title: str, body: str) -> None:
    """Replace or add one section of `path`."""
    key = tuple(re.sub(r"[^\w.-]+", "_", word) for word in key)  # a marker is a comment, which no name may end
    text = f"<!-- begin {key[0]} {key[1]} -->\n## {markdown(title)}\n\n{body}<!-- end {key[0]} {key[1]} -->\n"
    write_sections(path, read_sections(path) | {key: text})


def write_sections(path: Path, sections: dict[Key, str]) -> None:
    """Write `path` anew: the header, the claims of all sections, and the sections in order."""
    order = sorted(sections, key=_place)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        parts = [HEADER, _claims(sections, order), *(sections[k] for k in order)]
        temporary.write_text("\n".join(part for part in parts if part))


def _place(key: Key) -> tuple:
    """Artefacts first, by model and then in the paper's order; what else was measured follows by its name."""
    name, subject = key
    return (0, subject, list(ARTEFACTS).index(name)) if name in ARTEFACTS else (1, name, subject)


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
            f"- {ARTEFACTS[name].title.split(':')[0]} ({model}): {verdict['claim']} ({verdict['group']})"
            for verdict, (name, model) in found
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
