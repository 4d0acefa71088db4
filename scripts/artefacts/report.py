"""An artefact's files: a Markdown table, CSV of every video and of the table, and its section of RESULTS.md.

Sections of RESULTS.md stand between marker comments, one for each artefact and model, in the paper's order; making an
artefact again replaces its section and nothing else. The list of claims on top is gathered from the sections.
"""

import csv
import re
import shutil
from pathlib import Path

from configs.files import atomic_path
from infer.measure.evaluation import ALL_DEFINITIONS
from infer.measure.statistics import FORMULAS
from scripts.artefacts.catalogue import ARTEFACTS, REPORTED
from scripts.artefacts.result import Result
from scripts.artefacts.sections import Key, read_sections, section, write_sections

VERDICT = re.compile(r"^- \*\*(.+?)\*\* .*$", re.MULTILINE)
HEADER = """# Results

Written by `scripts/reproduce.py` and `scripts/parity.py`, never by hand; negative results stay. "reported [S]" is a
secondary reading of the paper's tables, not checked against the PDF, and was measured on ZeroScope with real clips:
only its direction can be compared with the small embedded model. Brackets are 95 % intervals; `table.md` beside every
page (`outputs/reproduce/ARTEFACT/`) has the formula of each metric. One training for each variant and reference clip.

On PocketScope all methods share one recipe (`configs/reproduce/pocket.yaml`). It was chosen with TAP on three of the
motions (there and back, late start, back and forth) and these prompts; the other six took no part. MotionDirector also
has a row at half the learning rate.
"""


def write_files(result: Result, folder: Path) -> None:
    """table.md, table.csv, videos.csv and videos/ in `folder`."""
    _write(folder / "table.md", f"# {result.title}\n\n{body(result)}\n{_methods(result)}")
    table = [
        {
            "group": group,
            "variant": variant,
            "reported": reported,
            "n": n,
            **{
                f"{metric}{suffix}": getattr(found, part)
                for metric, found in estimates.items()
                if metric in result.metrics
                for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
            "smoke": result.smoke,
        }
        for group in result.groups
        for variant, reported, estimates, n in result.table(group)
    ]
    _write_csv(folder / "table.csv", table)
    videos = folder / "videos"
    rows = []
    for row in result.rows:
        path = videos / f"{_slug(row['variant'])}__{_slug(row['run'])}__{row['path'].name}"
        videos.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_mtime < row["path"].stat().st_mtime:
            shutil.copy(row["path"], path)
        rows.append(
            {**{key: value for key, value in row.items() if key != "path"}, "file": path.name, "smoke": result.smoke}
        )
    _write_csv(folder / "videos.csv", rows)


def body(result: Result) -> str:
    """What both the Markdown file and RESULTS.md say."""
    parts = [f"Shows {result.artefact.shows}.", f"**{result.conclusion}**", "\n".join(verdict_lines(result))]
    if result.artefact.reported:
        parts.append(f"Paper, {REPORTED}: {result.artefact.reported}.")
    if result.states is not None:
        parts.append(result.states.markdown())
    else:
        parts += [_table(result, group) for group in result.groups] + [_by_motion(result)]
    if result.problems:
        parts.append("Missing:\n" + "\n".join(f"- {problem}" for problem in result.problems))
    parts.append(f"{result.provenance} Command: `{result.command}`")
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict_lines(result: Result) -> list[str]:
    mark = "smoke, " if result.smoke else ""
    return [
        f"- **{v.ruling}** ({mark}{v.claim.whose}; {v.group}): {v.claim.text}. {v.words[:1].upper()}{v.words[1:]}."
        for v in result.verdicts
    ]


def update_results(result: Result, path: Path) -> None:
    """Replace or add this artefact's section in `path`, and gather the claims on top."""
    sections = read_sections(path)
    key = (result.name, result.testbed.name.replace(" ", "_"))
    sections[key] = section(key, result.title, body(result))
    rewrite(path, sections)


def rewrite(path: Path, sections: dict[Key, str]) -> None:
    """`path` with these sections in the paper's order, others last, and the claims gathered on top."""
    order = sorted(sections, key=lambda k: (k[1], list(ARTEFACTS).index(k[0]) if k[0] in ARTEFACTS else 99))
    held = []
    for ruling in ("holds", "does not hold", "undecided", "not measured"):
        lines = [
            f"- {ARTEFACTS[k[0]].title.split(':')[0]} ({k[1]}): {line.split('): ', 1)[1].split('. ')[0]}"
            f" ({line.split('; ', 1)[1].split(')')[0]})"
            for k in order
            if k[0] in ARTEFACTS and "SMOKE RUN" not in sections[k]
            for line in (found[0] for found in VERDICT.finditer(sections[k]) if found[1] == ruling)
        ]
        if lines:
            held.append(f"**{ruling[:1].upper()}{ruling[1:]}:**\n\n" + "\n".join(lines) + "\n")
    summary = "## Which claims held\n\n" + "\n".join(held) if held else ""
    write_sections(path, [HEADER, summary], [sections[k] for k in order])


def _table(result: Result, group: str) -> str:
    if not result.metrics:
        return f"{group}: nothing could be measured."
    titles = [f"{ALL_DEFINITIONS[m].title} {'↑' if ALL_DEFINITIONS[m].better == 'up' else '↓'}" for m in result.metrics]
    lines = [f"| {group} | {REPORTED} | {' | '.join(titles)} | n |", "|---" * (len(titles) + 3) + "|"]
    for variant, reported, estimates, n in result.table(group):
        cells = [str(estimates[m]) if m in estimates else "–" for m in result.metrics]
        lines.append(f"| {variant} | {reported or '–'} | {' | '.join(cells)} | {n} |")
    return "\n".join(lines)


def _by_motion(result: Result) -> str:
    cells, header, rows = result.by_motion()
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return f"{cells[:1].upper()}{cells[1:]}:\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _methods(result: Result) -> str:
    rows = "\n".join(
        f"- **{title}** ({model}): {formula}. Source: {source}."
        for title, model, formula, source in result.definitions()
    )
    return f"\n## How it was measured\n\n{rows}\n\n{FORMULAS}\n"


def _write_csv(path: Path, rows: list[dict]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
