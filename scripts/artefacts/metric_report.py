"""The study of motion metrics as files: tables, sentences, a plot, a page, and its section of RESULTS.md."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from configs.files import atomic_path
from infer.measure.tables import write_table
from scripts.artefacts.metric_findings import advice, statements, title_of
from scripts.artefacts.metric_study import CLASSICAL, EXACT, METRICS, PIXELS, collect
from scripts.artefacts.metric_worth import Key, Worth, decision, grouped, keys_of, true_decision, worth
from scripts.artefacts.page import TEMPLATES, embedded
from scripts.artefacts.plots import save_figure
from scripts.artefacts.relations import RELATIONS
from scripts.artefacts.results_file import markdown, markdown_table, put_section

NAME = "metrics"
TITLE = "Motion metrics against the truth (toy world)"
EXPLAINED = (
    "Each pair is a reference clip and a partner of known relation (scripts/artefacts/relations.py); 16 frames, a "
    "grain on object and ground so that a tracker can follow them. Path error is the distance to the reference's path "
    "in the scene, in pixels of 64, each path around its own mean; progress error is how much more or less way has "
    "been gone, as a share of the reference's. **Rank** columns are Spearman's correlation of a score with minus that "
    "error over the partners of one reference (1: the metric puts them in the true order). **Ordered wrongly** is the "
    "share of a reference's pairs of partners, with path errors more than 1 pixel apart, that the metric puts in the "
    "other order (0.5 is guessing; a tie counts half). Brackets are 95 % intervals over motions."
)


@dataclass(frozen=True)
class Part:
    """A paragraph of the report, with the list or the table that belongs to it.

    `text` is this project's own, with words in **bold**; an item is (what it begins with, in bold, or ""; its plain
    text); a table is rows of plain text, the header first.
    """

    text: str = ""
    items: tuple[tuple[str, str], ...] = ()
    table: tuple[list[str], ...] = ()

    def __str__(self) -> str:
        """As Markdown."""
        items = "\n".join(f"- {f'**{lead}**: ' if lead else ''}{markdown(words)}" for lead, words in self.items)
        return "\n\n".join(filter(None, (self.text, items, markdown_table(self.table) if self.table else "")))


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
    parts = body(rows, smoke, provenance)
    page = write(rows, folder, parts)
    put_section(results, (NAME, "world"), TITLE, said(parts))
    return page


def said(parts: list[Part]) -> str:
    """What table.md and the section of RESULTS.md say."""
    return "\n\n".join(map(str, parts)) + "\n"


def body(rows: list[dict], smoke: bool, provenance: str) -> list[Part]:
    """The whole report. `provenance` is Markdown."""
    by_key = {key: worth(rows, key) for key in keys_of(rows)}
    count = len(grouped(rows))
    found = tuple((s.ruling, f"{s.text[:1].upper()}{s.text[1:]}; {s.words}.") for s in statements(rows))
    problems = dict.fromkeys(problem for row in rows for problem in row["problems"])
    return [
        Part(
            f"{'SMOKE RUN, the numbers mean nothing. ' if smoke else ''}{len(rows)} pairs: {count} references, "
            f"{len(RELATIONS)} relations; {len(by_key)} metrics with their tracks."
        ),
        Part(EXPLAINED),
        *map(Part, f"**Which metric should a paper use?** {advice(rows)}".split("\n\n")),
        Part(items=found),
        Part(table=main_table(by_key)),
        Part("Mean score of each relation:", table=_means_table(by_key)),
        decisions(by_key),
        Part(
            "What each formula keeps and leaves out:",
            tuple(("", f"{metric.title}: {metric.sees}.") for metric in METRICS.values()),
        ),
        *([Part("Not measured:", tuple(("", problem) for problem in problems))] if problems else []),
        Part(provenance),
    ]


def main_table(by_key: dict[Key, Worth]) -> tuple[list[str], ...]:
    """How well every metric follows the truth, a row for each with its tracks."""
    rows = [["metric", "tracks", "rank with path error ↑", "rank with progress error ↑", "ordered wrongly ↓"]]
    rows[0] += ["... without the camera pan ↓", "not measured"]
    for key, found in by_key.items():
        cells = (found.rank_path, found.rank_progress, found.wrong, found.wrong_without_pan, found.unmeasured)
        rows.append([title_of(key), key[1], *map(str, cells)])
    return tuple(rows)


def _means_table(by_key: dict[Key, Worth]) -> tuple[list[str], ...]:
    rows = [["metric", "tracks", *RELATIONS]]
    for key, found in by_key.items():
        cells = (f"{found.relations[name].value:.2f}" if name in found.relations else "–" for name in RELATIONS)
        rows.append([title_of(key), key[1], *cells])
    return tuple(rows)


def decisions(by_key: dict[Key, Worth]) -> Part:
    """What each metric decides about each relation, how many of these cells are decided, and how many truly so."""
    found = {key: {name: decision(share) for name, share in w.missed.items()} for key, w in by_key.items()}
    cells = [(name, cell) for row in found.values() for name, cell in row.items() if cell != "undecided"]
    whole = sum(set(row) == set(RELATIONS) and "undecided" not in row.values() for row in found.values())
    rows = [["metric", "tracks", *RELATIONS], ["the truth", "–", *map(true_decision, RELATIONS)]]
    for key, row in found.items():
        shares = by_key[key].missed
        words = (f"{row[name]} {shares[name].value:.2f}" if name in row else "–" for name in RELATIONS)
        rows.append([title_of(key), key[1], *words])
    return Part(
        "Is the reference's own path rewarded? A number is the share of references in which the partner scores at or "
        "above the same path in another appearance; in the column of the same path itself, in which any partner with "
        "another motion does. **Rewarded**: the whole 95 % interval of that share is below one half; **blind**: above "
        f"it; undecided: neither. **{len(cells)} of {len(found) * len(RELATIONS)} cells ({len(found)} metrics with "
        f"their tracks, {len(RELATIONS)} relations) are decided**, and all {len(RELATIONS)} of a metric for {whole} of "
        f"{len(found)}; {sum(cell == true_decision(name) for name, cell in cells)} are decided as the truth does, for "
        "which only place tells the shifted path from the same. Each cell has its own interval, without a correction "
        "for their number.",
        table=tuple(rows),
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


def write(rows: list[dict], folder: Path, parts: list[Part]) -> Path:
    """table.md, pairs.csv, the plot and page.html in `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(f"# {TITLE}\n\n{said(parts)}", encoding="utf-8")
    facts = ("motion", "reference", "relation", "path_error", "progress_error")
    write_table(folder / "pairs.csv", [{**{name: row[name] for name in facts}, **row["scores"]} for row in rows])
    html = TEMPLATES.get_template("metrics.html").render(title=TITLE, parts=parts, plot=embedded(plot(rows, folder)[1]))
    with atomic_path(folder / "page.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    return folder / "page.html"
