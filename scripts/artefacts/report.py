"""The files of an artefact beside its page: a Markdown table, CSV of every video and of the table, and the videos."""

import re
import shutil
from pathlib import Path

from configs.files import atomic_path
from infer.measure.evaluation import ALL_DEFINITIONS
from infer.measure.statistics import FORMULAS
from infer.measure.tables import write_table
from scripts.artefacts.artefact import REPORTED
from scripts.artefacts.equal_motion import FORMULA
from scripts.artefacts.result import Result
from scripts.artefacts.results_file import markdown, markdown_code, markdown_table


def write_files(result: Result, folder: Path) -> None:
    """Write table.md, table.csv, videos.csv and videos/ into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(f"# {markdown(result.title)}\n\n{body(result)}\n{_methods(result)}", encoding="utf-8")
    table = [
        {
            "group": group,
            "variant": variant,
            "reported": reported,
            "n": n,
            **{
                f"{metric}{suffix}": getattr(found, part)
                for metric, found in estimates.items()
                if metric in (*result.metrics, *result.details)
                for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
            "smoke": result.smoke,
        }
        for group in result.groups
        for variant, reported, estimates, n in result.table(group)
    ]
    write_table(folder / "table.csv", table)
    videos = folder / "videos"
    rows = []
    for row in result.rows:
        path = videos / f"{_slug(row['variant'])}__{_slug(row['run'])}__{row['path'].name}"
        bring(row["path"], path)
        rows.append(
            {**{key: value for key, value in row.items() if key != "path"}, "file": path.name, "smoke": result.smoke}
        )
    write_table(folder / "videos.csv", rows)


def bring(source: Path, path: Path) -> None:
    """Copy a video to `path`, unless this very one is there: another recipe's has the same name."""
    if not path.exists() or _stamp(path) != _stamp(source):
        with atomic_path(path) as temporary:
            shutil.copy2(source, temporary)


def _stamp(path: Path) -> tuple[int, int]:
    """(size, time of writing in ns), which a copy shares with its source."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def body(result: Result) -> str:
    """The Markdown text about a result that table.md and its section of RESULTS.md share."""
    parts = [f"Shows {result.artefact.shows}.", f"**{result.conclusion}**", "\n".join(_verdict_lines(result))]
    if result.artefact.reported:
        parts.append(f"Paper, {REPORTED}: {result.artefact.reported}.")
    if result.states is not None:
        parts.append(result.states.markdown())
    else:
        parts += [_table(result, group, result.metrics, result.reports) for group in result.groups] + [
            _by_motion(result)
        ]
        if result.quoted:
            parts += [markdown(result.quoted.source), markdown_table(result.quoted.rows)]
        if result.details:
            parts += [
                "What they are made of:",
                *(_table(result, group, result.details, False) for group in result.groups),
            ]
    if curves := result.at_equal_motion():
        parts += [markdown(FORMULA), markdown_table(curves)]
    if result.costs:
        parts += [
            "\n".join(f"- {markdown(sentence)}" for sentence in result.tradeoff),
            markdown_table(result.cost_rows),
        ]
    if result.problems:
        parts.append("Missing:\n\n" + "\n".join(f"- {markdown(problem)}" for problem in result.problems))
    parts.append(f"{markdown(result.provenance)} Command: {markdown_code(result.command)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict_lines(result: Result) -> list[str]:
    mark = "smoke, " if result.smoke else ""
    return [
        f"- **{v.ruling}** ({mark}{v.claim.whose}; {markdown(v.group)}): {v.claim.text}. "
        f"{v.words[:1].upper()}{v.words[1:]}."
        for v in result.verdicts
    ]


def _table(result: Result, group: str, metrics: list[str], with_paper: bool) -> str:
    """A group's estimates; with a column of what the paper reports for the rows, or without."""
    if not metrics:
        return f"{markdown(group)}: nothing could be measured."
    rows = [[group, *[REPORTED] * with_paper, *(ALL_DEFINITIONS[m].heading for m in metrics), "n"]]
    for variant, reported, estimates, n in result.table(group):
        cells = [str(estimates[m]) if m in estimates else "–" for m in metrics]
        rows.append([variant, *[reported or "–"] * with_paper, *cells, str(n)])
    return markdown_table(rows)


def _by_motion(result: Result) -> str:
    cells, header, rows = result.by_motion()
    return f"{cells[:1].upper()}{cells[1:]}:\n\n{markdown_table([header, *rows])}" if rows else ""


def _methods(result: Result) -> str:
    rows = "\n".join(
        f"- **{markdown(title)}** ({markdown(model)}): {markdown(formula)}. Source: {markdown(source)}."
        for title, model, formula, source in result.definitions()
    )
    return f"\n## How it was measured\n\n{rows}\n\n{FORMULAS}\n"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
