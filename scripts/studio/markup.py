"""Pieces of HTML for the page. Every text goes through `escape`; addresses come from `Places` alone."""

from collections.abc import Sequence
from html import escape

from scripts.studio.runs import Progress

LOSSES = {"temporal": "motion", "debiased": "motion without appearance", "spatial": "appearance"}
MARKS = {True: "yes", False: "no"}


def note(text: str, kind: str = "plain") -> str:
    """A line of its own: kind is "plain", "good", "warning" or "bad"."""
    return f'<p class="note {kind}">{escape(text)}</p>' if text else ""


def video(address: str, caption: str = "", facts: str = "", download: str = "") -> str:
    """A playing video with its caption, and under it `facts`, which is HTML already."""
    save = f'<a class="save" href="{escape(address)}" download="{escape(download)}">save</a>' if download else ""
    return (
        f'<figure><video src="{escape(address)}" autoplay loop muted playsinline title="click to pause"></video>'
        f"<figcaption>{escape(caption)} {save}</figcaption>{facts}</figure>"
    )


def in_step(figures: Sequence[str], title: str = "") -> str:
    """Figures beside each other whose videos play together."""
    heading = f"<h4>{escape(title)}</h4>" if title else ""
    return f'<section class="row">{heading}<div class="in-step">{"".join(figures)}</div></section>'


def clip(playing: str, strip: str, lines: Sequence[str]) -> str:
    """What training will see: the cut playing, its frames, and the plan; warnings begin with "warning:"."""
    told = [note(line, "warning" if line.startswith("warning:") else "plain") for line in lines]
    frames = f'<img src="{escape(strip)}" alt="the frames that training sees">{"".join(told)}'
    return (
        f'<div class="clip"><div class="in-step">{video(playing, "what training sees")}</div>'
        f'<div class="frames">{frames}</div></div>'
    )


def curve(losses: dict[str, list[tuple[int, float]]], steps: int) -> str:
    """Losses as (step, value) lines over all `steps`, with a legend; empty before two steps."""
    values = [value for points in losses.values() for _, value in points]
    if not values or max(map(len, losses.values())) < 2:
        return ""
    low, high = min(0.0, *values), max(values) or 1.0
    left, top, width, height = 44, 8, 900, 180

    def place(step: float, value: float) -> str:
        return f"{left + width * step / max(1, steps):.1f},{top + height * (high - value) / (high - low or 1):.1f}"

    lines = "".join(
        f'<polyline class="{name}" points="{" ".join(place(*point) for point in points)}"/>'
        for name, points in losses.items()
    )
    ticks = [(low + (high - low) * part / 4, part) for part in range(5)]
    grid = "".join(
        f'<path d="M{left} {(y := top + height * (4 - part) / 4):.1f}h{width}"/>'
        f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2g}</text>'
        for value, part in ticks
    )
    below = f'y="{top + height + 18}" text-anchor="middle"'
    marks = "".join(f'<text x="{left + width * part / 4:.0f}" {below}>{steps * part // 4}</text>' for part in range(5))
    legend = "".join(f'<span class="{name}">{LOSSES.get(name, name)}</span>' for name in losses)
    return (
        f'<figure class="curve"><svg viewBox="0 0 960 {top + height + 24}" role="img" aria-label="loss">'
        f"{grid}{marks}{lines}</svg><figcaption>Loss by step, as a running mean: {legend}</figcaption></figure>"
    )


def bar(progress: Progress | None, text: str, kind: str = "plain") -> str:
    """A progress bar with a sentence over it."""
    share = 0 if progress is None else progress.share
    return (
        f"{note(text, kind)}"
        f'<div class="bar" role="progressbar" aria-valuenow="{100 * share:.0f}"><i style="width:{100 * share:.1f}%">'
        "</i></div>"
    )


def scores(values: dict) -> str:
    """The toy world's measures of one video, in words."""
    if not values:
        return ""
    rows = []
    if "correlation" in values:
        rows.append(("motion learned", MARKS[bool(values["motion_success"])], values["motion_success"]))
        rows.append(("path correlation", f"{values['correlation']:.2f}", None))
    rows.append(("appearance as asked", MARKS[bool(values["appearance_accuracy"])], values["appearance_accuracy"]))
    if "leakage" in values:
        rows.append(("leaks the clip", MARKS[bool(values["leakage"])], not values["leakage"]))
    cells = "".join(
        f'<tr><td>{name}</td><td class="{_class(good)}">{escape(value)}</td></tr>' for name, value, good in rows
    )
    return f'<table class="scores">{cells}</table>'


def _class(good: bool | None) -> str:
    return "" if good is None else "good" if good else "bad"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    seconds = max(0, round(seconds))
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
