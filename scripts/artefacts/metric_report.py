"""The study of motion metrics as files: tables, sentences, a plot, a page, and its section of RESULTS.md."""

import csv
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from configs.files import atomic_path
from scripts.artefacts.metric_findings import advice, statements, title_of
from scripts.artefacts.metric_study import CLASSICAL, EXACT, METRICS, PIXELS, collect
from scripts.artefacts.metric_worth import Key, Worth, decision, grouped, keys_of, true_decision, worth
from scripts.artefacts.plots import save_figure
from scripts.artefacts.relations import RELATIONS
from scripts.artefacts.results_file import markdown, put_section

NAME = "metrics"
TITLE = "Motion metrics against the truth (toy world)"
EXPLAINED = (
    "Each pair is a reference clip and a partner of known relation (scripts/artefacts/relations.py); 16 frames, a "
    "grain on object and ground so that a tracker can follow them. Path error is the distance to the reference's path "
    "in the scene, in pixels of 64, each path around its own mean; timing error is how much more or less way has been "
    "gone, as a share of the reference's. **Rank** columns are Spearman's correlation of a score with minus that "
    "error over the partners of one reference (1: the metric puts them in the true order). **Ordered wrongly** is the "
    "share of a reference's pairs of partners, with path errors more than 1 pixel apart, that the metric puts in the "
    "other order (0.5 is guessing; a tie counts half). Brackets are 95 % intervals over motions."
)


def make(
    folder: Path,
    results: Path,
    *,
    smoke: bool,
    clip: str | None,
    device: str,
    provenance: str,
    say: Callable[[str], None],
) -> Path:
    """The whole study: measure what is missing in `folder`/rows, write the files, and this section of `results`."""
    rows = collect(folder / "rows", smoke, clip, device, say)
    text = body(rows, smoke, provenance)
    page = write(rows, folder, text)
    put_section(results, (NAME, "world"), TITLE, text)
    return page


def body(rows: list[dict], smoke: bool, provenance: str) -> str:
    """What table.md and the section of RESULTS.md say."""
    by_key = {key: worth(rows, key) for key in keys_of(rows)}
    count = len(grouped(rows))
    lines = [
        f"{'SMOKE RUN, the numbers mean nothing. ' if smoke else ''}{len(rows)} pairs: {count} references, "
        f"{len(RELATIONS)} relations; {len(by_key)} metrics with their tracks.",
        EXPLAINED,
        f"**Which metric should a paper use?** {advice(rows)}",
        "\n".join(f"- **{s.ruling}**: {s.text[:1].upper()}{s.text[1:]}; {s.words}." for s in (statements(rows))),
        main_table(by_key),
        "Mean score of each relation:\n\n" + _means_table(by_key),
        decisions(by_key),
        "What each formula keeps and leaves out:\n\n"
        + "\n".join(f"- {metric.title}: {metric.sees}." for metric in METRICS.values()),
    ]
    problems = list(dict.fromkeys(problem for row in rows for problem in row["problems"]))
    if problems:
        lines.append("Not measured:\n\n" + "\n".join(f"- {markdown(problem)}" for problem in problems))
    lines.append(provenance)
    return "\n\n".join(lines) + "\n"


def main_table(by_key: dict[Key, Worth]) -> str:
    """How well every metric follows the truth, a row for each with its tracks."""
    lines = [
        "| metric | tracks | rank with path error ↑ | rank with timing error ↑ | ordered wrongly ↓ | ... without the "
        "camera pan ↓ | not measured |",
        "|---" * 7 + "|",
    ]
    for key, found in by_key.items():
        cells = (found.rank_path, found.rank_timing, found.wrong, found.wrong_without_pan, found.unmeasured)
        lines.append(f"| {title_of(key)} | {key[1]} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _means_table(by_key: dict[Key, Worth]) -> str:
    lines = [f"| metric | tracks | {' | '.join(RELATIONS)} |", "|---" * (len(RELATIONS) + 2) + "|"]
    for key, found in by_key.items():
        cells = (f"{found.relations[name].value:.2f}" if name in found.relations else "–" for name in RELATIONS)
        lines.append(f"| {title_of(key)} | {key[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def decisions(by_key: dict[Key, Worth]) -> str:
    """What each metric decides about each relation, how many of these cells are decided, and how many truly so."""
    found = {key: {name: decision(share) for name, share in w.missed.items()} for key, w in by_key.items()}
    cells = [(name, cell) for row in found.values() for name, cell in row.items() if cell != "undecided"]
    whole = sum(set(row) == set(RELATIONS) and "undecided" not in row.values() for row in found.values())
    lines = [
        f"| metric | tracks | {' | '.join(RELATIONS)} |",
        "|---" * (len(RELATIONS) + 2) + "|",
        f"| the truth | – | {' | '.join(map(true_decision, RELATIONS))} |",
    ]
    for key, row in found.items():
        shares = by_key[key].missed
        words = (f"{row[name]} {shares[name].value:.2f}" if name in row else "–" for name in RELATIONS)
        lines.append(f"| {title_of(key)} | {key[1]} | {' | '.join(words)} |")
    return (
        "Is the reference's own path rewarded? A number is the share of references in which the partner scores at or "
        "above the same path in another appearance; in the column of the same path itself, in which any partner with "
        "another motion does. **Rewarded**: the whole 95 % interval of that share is below one half; **blind**: above "
        f"it; undecided: neither. **{len(cells)} of {len(found) * len(RELATIONS)} cells ({len(found)} metrics with "
        f"their tracks, {len(RELATIONS)} relations) are decided**, and all {len(RELATIONS)} of a metric for {whole} of "
        f"{len(found)}; {sum(cell == true_decision(name) for name, cell in cells)} are decided as the truth does, for "
        "which only place tells the shifted path from the same. Each cell has its own interval, without a correction "
        "for their number.\n\n" + "\n".join(lines)
    )


def plot(rows: list[dict], folder: Path) -> list[Path]:
    """plot.png and plot.svg: how each metric rates each relation, and how many pairs it orders wrongly."""
    by_key = {key: worth(rows, key) for key in keys_of(rows)}
    names, keys = list(RELATIONS), list(by_key)
    figure = Figure(figsize=(13, 1.6 + 0.34 * len(keys)), layout="constrained")
    heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=(1.6, 1))
    score = np.array(
        [[found.relations[n].value if n in found.relations else np.nan for n in names] for found in by_key.values()]
    )
    still, same = score[:, names.index("still")], score[:, names.index("same path")]
    relative = (score - still[:, None]) / np.maximum(same - still, 1e-9)[:, None]
    image = heat.imshow(relative, vmin=-0.5, vmax=1.5, cmap="RdBu", aspect="auto")
    for i, j in np.ndindex(*relative.shape):
        if np.isfinite(relative[i, j]):
            heat.text(j, i, f"{np.clip(relative[i, j], -9.9, 9.9):.1f}", ha="center", va="center", fontsize=7)
    heat.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    heat.set_yticks(range(len(keys)), [f"{title_of(key)}, {key[1]}" for key in keys], fontsize=7)
    heat.set_title("score, where still = 0 and the same path = 1", fontsize=9)
    figure.colorbar(image, ax=heat, shrink=0.6)
    for row, (key, found) in enumerate(by_key.items()):
        colour = {EXACT: "C0", CLASSICAL: "C1", PIXELS: "C2"}[key[1]]
        error = np.abs([[found.wrong.value - found.wrong.low], [found.wrong.high - found.wrong.value]])
        bars.barh(row, found.wrong.value, xerr=np.nan_to_num(error), color=colour, capsize=2)
    bars.axvline(0.5, color="grey", linestyle="--", linewidth=1)
    bars.set_title("share of pairs ordered wrongly (0.5: guessing)", fontsize=9)
    figure.suptitle(TITLE, fontsize=11)
    return save_figure(figure, folder)


def write(rows: list[dict], folder: Path, text: str) -> Path:
    """table.md, pairs.csv, the plot and page.html in `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(f"# {TITLE}\n\n{text}")
    columns = list(dict.fromkeys(key for row in rows for key in row["scores"]))
    facts = ("motion", "reference", "relation", "path_error", "timing_error")
    with atomic_path(folder / "pairs.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*facts, *columns])
        writer.writeheader()
        writer.writerows({**{name: row[name] for name in facts}, **row["scores"]} for row in rows)
    svg = plot(rows, folder)[1].read_text(encoding="utf-8")
    with atomic_path(folder / "page.html") as temporary:
        temporary.write_text(
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{TITLE}</title><style>body {{ font: 15px/1.45 "
            "system-ui, sans-serif; margin: 2rem auto; max-width: 1300px }} td, th { padding: .2rem .6rem; text-align: "
            f"left }} pre {{ white-space: pre-wrap }}</style><h1>{TITLE}</h1>{svg[svg.index('<svg') :]}{_html(text)}",
            encoding="utf-8",
        )
    return folder / "page.html"


def _html(text: str) -> str:
    """The few kinds of Markdown that `body` uses: paragraphs, lists and tables."""
    parts = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("| "):
            cells = [
                [escape(cell.strip()) for cell in line.strip("|").split("|")] for line in lines if "|---" not in line
            ]
            parts.append(
                "<table>"
                + "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in cells)
                + "</table>"
            )
        elif lines[0].startswith("- "):
            parts.append("<ul>" + "".join(f"<li>{escape(line[2:])}</li>" for line in lines) + "</ul>")
        else:
            parts.append(f"<p>{escape(block)}</p>")
    return "".join(parts).replace("**", "")
