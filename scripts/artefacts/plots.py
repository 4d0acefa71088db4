"""An artefact's picture as PNG and SVG: estimates with intervals, a sweep, leakage over motion, quality over cost,
hidden states, frames."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from configs.files import atomic_path
from infer.measure.evaluation import ALL_DEFINITIONS, summarize
from infer.video import read_frames
from scripts.artefacts.artefact import COSTS, EQUAL_MOTION
from scripts.artefacts.claims import LEARNED
from scripts.artefacts.equal_motion import curves
from scripts.artefacts.result import QUALITIES, Result
from scripts.artefacts.tradeoff import front
from scripts.artefacts.variants import UNTOUCHED

MOST_COLUMNS = 5  # panels beside each other that can still be read on a page
GRID_ROWS, GRID_FRAMES = 3, 4  # prompts for each reference and frames for each video in a picture


def write_plots(result: Result, folder: Path) -> list[Path]:
    """Write plot.png and plot.svg into `folder` and return their paths; none when there is nothing to show."""
    form = result.artefact.form
    if result.states is not None:
        figure = result.states.figure()
    elif form == "grid" and result.rows:
        figure = _grid(result)
    elif result.metrics:
        forms = dict.fromkeys(COSTS, _costs) | {"sweep": _sweep, EQUAL_MOTION: _over_motion}
        figure = forms.get(form, _rows)(result)
    else:
        for path in _paths(folder):
            path.unlink(missing_ok=True)  # of another time, when there was something to show
        return []
    figure.suptitle(result.title, fontsize=11)
    return save_figure(figure, folder)


def _paths(folder: Path) -> list[Path]:
    return [folder / "plot.png", folder / "plot.svg"]


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Write plot.png and plot.svg into `folder`, each complete or not at all, and return their paths."""
    for path in (paths := _paths(folder)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=130)
    return paths


def _rows(result: Result) -> Figure:
    names = [variant.name for variant in result.variants]
    rows = -(-len(result.metrics) // MOST_COLUMNS)
    columns = -(-len(result.metrics) // rows)
    size = (2.2 + 2.4 * columns, 0.8 + rows * (0.5 + 0.4 * len(names)))
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for spare in panels[len(result.metrics) :]:
        spare.axis("off")
    for axes, metric in zip(panels, result.metrics):
        for number, group in enumerate(result.groups):
            for row, (_, _, estimates, _) in enumerate(result.table(group)):
                if metric in estimates:
                    _point(
                        axes,
                        estimates[metric],
                        row + 0.16 * number,
                        f"C{number}",
                        group if row == 0 else None,
                        flat=True,
                    )
        axes.set_yticks(range(len(names)), names)
        axes.set_title(ALL_DEFINITIONS[metric].heading, fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()
    if len(result.groups) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _sweep(result: Result) -> Figure:
    curves: dict[str, list[tuple[float, str]]] = {}
    for variant in result.variants:
        if variant.place:
            curves.setdefault(variant.place.curve, []).append((variant.place.at, variant.name))
    figure = Figure(figsize=(1 + 2.8 * len(result.metrics), 3.2), layout="constrained")
    group = result.groups[0]
    estimates = {name: found for name, _, found, _ in result.table(group)}
    level = next(variant.name for variant in result.variants if not variant.place)  # what the sweep is compared with
    for axes, metric in zip(figure.subplots(1, len(result.metrics), squeeze=False)[0], result.metrics):
        if metric in estimates[level]:
            axes.axhline(estimates[level][metric].value, color="grey", linestyle="--", label=level)
        for number, (name, points) in enumerate(curves.items()):
            there = [
                (beta, estimates[variant][metric]) for beta, variant in sorted(points) if metric in estimates[variant]
            ]
            axes.plot([beta for beta, _ in there], [e.value for _, e in there], color=f"C{number}", label=name)
            for beta, found in there:
                _point(axes, found, beta, f"C{number}", None, flat=False)
        axes.set(xlabel="beta")
        axes.set_title(ALL_DEFINITIONS[metric].heading, fontsize=9)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _costs(result: Result) -> Figure:
    """Success, appearance and leakage of every variant over the CPU seconds it takes, with their intervals; ringed:
    scripts/artefacts/tradeoff.py's front."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    points = result.points
    shortcuts = [point for point in points if point.curve]
    estimates = {point.name: summarize(result.of(point.name)) for point in shortcuts}
    for name, found in estimates.items():  # success is over the kinds of motions that are learned at all
        found |= {QUALITIES[0]: summarize(result.of_kinds(name, result.learned))[QUALITIES[0]]}
    names = dict.fromkeys(point.curve for point in shortcuts)
    curves = {name: colormaps["tab20"](number) for number, name in enumerate(names)}
    qualities = dict(zip(("success", "appearance", "match", "leakage"), QUALITIES))
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (quality, metric) in zip(panels.flat, qualities.items()):
        for level in (point for point in points if not point.curve):
            axes.axhline(getattr(level, quality), color="grey", linestyle="--", label=level.name)
        for curve, colour in curves.items():
            line = sorted((p for p in shortcuts if p.curve == curve), key=lambda point: point.cost)
            axes.plot([p.cost for p in line], [getattr(p, quality) for p in line], color=colour, label=curve)
            for point in line:
                _point(axes, estimates[point.name][metric], point.cost, colour, None, flat=False)
        axes.set(ylim=(-0.03, 1.05))
        kinds = f" ({' and '.join(result.learned)})" if quality == "success" and result.learned != result.groups else ""
        axes.set_title(ALL_DEFINITIONS[metric].heading + kinds, fontsize=9)
        axes.grid(alpha=0.3)
    for axes in panels[1]:  # a label of the whole figure would lie on the legend
        axes.set_xlabel(f"CPU seconds of {result.artefact.form}", fontsize=9)
    best = front(shortcuts)
    axes = figure.axes[0]
    axes.plot([p.cost for p in best], [p.success for p in best], "o", color="black", fillstyle="none", markersize=11)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _over_motion(result: Result) -> Figure:
    """Leakage and appearance over motion: a curve for each preset and rate, its points the lengths of the training.

    A preset is named "LAYERS, SETTING": there is a column of panels for each setting, a colour for each choice of
    layers, a style for each rate. Values are means over all clips; the grey line is the motion that is compared at.
    """
    found = {variant.name: summarize(result.of(variant.name)) for variant in result.artefact.variants}
    drawn = curves(result.artefact.variants)
    layers, settings = zip(*(curve.preset.split(", ", 1) for curve in drawn))
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(layers))}
    styles = dict(zip(dict.fromkeys(curve.rate for curve in drawn), ("-", "--", ":", "-.")))
    columns = list(dict.fromkeys(settings))
    metrics = [result.testbed.roles[role].metric for role in ("leakage", "appearance")]
    figure = Figure(figsize=(4.5 * len(columns), 7), layout="constrained")
    panels = figure.subplots(len(metrics), len(columns), sharex=True, sharey="row", squeeze=False)
    for curve, layer, setting in zip(drawn, layers, settings):
        for line, metric in zip(panels, metrics):
            at = [found[name] for name in (UNTOUCHED.name, *(name for _, name in curve.points))]
            there = [estimates for estimates in at if {LEARNED.metric, metric} <= estimates.keys()]
            line[columns.index(setting)].plot(
                [estimates[LEARNED.metric].value for estimates in there],
                [estimates[metric].value for estimates in there],
                styles[curve.rate],
                marker="o",
                markersize=4,
                color=colours[layer],
                label=f"{layer}, rate {curve.rate}",
            )
    for line, metric in zip(panels, metrics):
        line[0].set_ylabel(ALL_DEFINITIONS[metric].heading)
        for axes in line:
            axes.axvline(LEARNED.value, color="grey", linestyle="--", linewidth=0.8)
            axes.grid(alpha=0.3)
    for top, bottom, setting in zip(panels[0], panels[-1], columns):
        top.set_title(setting, fontsize=10)
        bottom.set_xlabel(ALL_DEFINITIONS[LEARNED.metric].heading)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    return figure


def _grid(result: Result) -> Figure:
    """One row for each motion's first clip and prompt, one column for each variant; frames from left to right."""
    names = [variant.name for variant in result.variants]
    wanted = []
    for reference in {row["motion"]: row["reference"] for row in reversed(result.rows)}.values():
        prompts = dict.fromkeys(row["prompt"] for row in result.rows if row["reference"] == reference)
        wanted += [(reference, prompt) for prompt in list(prompts)[:GRID_ROWS]]
    figure = Figure(figsize=(2.6 * len(names), 0.4 + 0.95 * len(wanted)), layout="constrained")
    grid = figure.subplots(len(wanted), len(names), squeeze=False)
    for line, (reference, prompt) in zip(grid, wanted):
        for axes, name in zip(line, names):
            found = [r for r in result.of(name) if (r["reference"], r["prompt"]) == (reference, prompt)]
            if found:
                axes.imshow(_strip(found[0]["path"]))
            axes.set_xticks([])
            axes.set_yticks([])
        line[len(names) // 2].set_title(f"{reference}: {prompt}", fontsize=7)
    for axes, name in zip(grid[-1], names):
        axes.set_xlabel(name, fontsize=8)
    return figure


def _strip(path: Path) -> np.ndarray:
    frames = read_frames(path)
    picked = frames[np.linspace(0, len(frames) - 1, GRID_FRAMES).round().astype(int)]
    return np.concatenate(list(picked.permute(0, 2, 3, 1).numpy()), axis=1)


def _point(axes, found, position: float, colour: str, label: str | None, flat: bool) -> None:
    error = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]] if found.n > 1 else None
    if flat:
        axes.errorbar(found.value, position, xerr=error, fmt="o", color=colour, markersize=4, capsize=2, label=label)
    else:
        axes.errorbar(position, found.value, yerr=error, fmt="o", color=colour, markersize=4, capsize=2)
