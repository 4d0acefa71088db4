"""One HTML page for an artefact: verdict, plot, table, and the videos side by side, all inside the file.

It opens from disk and asks the network for nothing: videos and plot are embedded as base64.
"""

import base64
from html import escape
from pathlib import Path

from configs.files import atomic_path
from infer.measure.evaluation import ALL_DEFINITIONS
from infer.measure.statistics import FORMULAS
from scripts.artefacts.catalogue import REPORTED
from scripts.artefacts.result import Result

ROWS = 18  # rows of videos on the page at most, divided among the references
WIDTH = 128  # CSS pixels of a video on the page at least
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1300px; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd;
text-align: left; vertical-align: top } .number { text-align: right; white-space: nowrap; font-variant-numeric:
tabular-nums } .smoke { background: #b00; color: #fff; padding: .5rem 1rem; font-weight: bold } .scroll { overflow-x:
auto } video, td img { width: var(--width); image-rendering: pixelated; display: block } img.plot { max-width: 100% }
.holds { color: #070 } .does { color: #b00 } .undecided, .not { color: #666 } code { background: #f3f3f3 }
.bar { position: sticky; top: 0; background: #fff; padding: .4rem 0 } caption { text-align: left; font-weight: bold }
"""
SCRIPT = """
const videos = [...document.querySelectorAll('video')];
const each = f => videos.forEach(f);
document.getElementById('restart').onclick = () => each(v => { v.currentTime = 0; v.play(); });
document.getElementById('pause').onclick = () => each(v => v.paused ? v.play() : v.pause());
document.getElementById('speed').onchange = e => each(v => v.playbackRate = Number(e.target.value));
"""


def write_page(result: Result, folder: Path) -> Path:
    """Write page.html into `folder`, with `folder`/plot.svg where there is one."""
    plot = folder / "plot.svg"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f"<title>{escape(result.title)}</title><style>{STYLE}</style></head><body style='--width: {_width(result)}px'>",
        f"<h1>{escape(result.title)}</h1>",
        "<p class=smoke>Smoke run: tiny numbers that show the road. They mean nothing.</p>" if result.smoke else "",
        f"<p>Shows {escape(result.artefact.shows)}.</p><h2>Verdict</h2><p><b>{escape(result.conclusion)}</b></p>",
        _verdicts(result),
        f"<p>Paper, {REPORTED}: {escape(result.artefact.reported)}.</p>" if result.artefact.reported else "",
        f"<h2>Numbers</h2><img class=plot alt='plot of the table below' src='{_embed(plot)}'>" if plot.exists() else "",
        result.states.html()
        if result.states is not None
        else "".join(_table(result, group) for group in result.groups),
        "" if result.states is not None else _by_motion(result),
        _missing(result),
        _videos(result),
        "<h2>How it was made</h2>",
        f"<p>{escape(result.provenance)}</p>",
        f"<p><code>{escape(result.command)}</code></p>",
        _definitions(result),
        f"<p>{escape(FORMULAS)}</p>",
        f"<script>{SCRIPT}</script></body></html>",
    ]
    path = folder / "page.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return path


def _verdicts(result: Result) -> str:
    items = [
        f"<li><b class={v.ruling.split()[0]}>{v.ruling}</b> ({escape(v.claim.whose)}; {escape(v.group)}): "
        f"{escape(v.claim.text)}.<br><small>{escape(v.words)}</small></li>"
        for v in result.verdicts
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _table(result: Result, group: str) -> str:
    titles = [ALL_DEFINITIONS[m].title + (" ↑" if ALL_DEFINITIONS[m].better == "up" else " ↓") for m in result.metrics]
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = []
    for variant, reported, estimates, n in result.table(group):
        cells = "".join(f"<td class=number>{estimates[m] if m in estimates else '–'}</td>" for m in result.metrics)
        lines.append(
            f"<tr><td>{escape(variant)}</td><td>{escape(reported) or '–'}</td>{cells}<td class=number>{n}</td></tr>"
        )
    return (
        f"<div class=scroll><table><caption>{escape(group)}</caption><tr><th>variant</th><th>paper, "
        f"{REPORTED}</th>{head}"
        f"<th>n</th></tr>{''.join(lines)}</table></div>"
    )


def _by_motion(result: Result) -> str:
    cells, header, rows = result.by_motion()
    if not rows:
        return ""
    line = lambda tag, texts: f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in texts)}</tr>"
    return (
        f"<div class=scroll><table><caption>{escape(cells)}</caption>{line('th', header)}"
        f"{''.join(line('td', row) for row in rows)}</table></div>"
    )


def _videos(result: Result) -> str:
    names = [variant.name for variant in result.variants]
    by_place = {
        (r["reference"], r["prompt"], r["variant"]): r["path"] for r in reversed(result.rows)
    }  # the first training
    tables = []
    references = list(dict.fromkeys(row["reference"] for row in result.rows))
    most = max(1, min(6, ROWS // max(1, len(references))))
    for reference in references:
        prompts = list(dict.fromkeys(row["prompt"] for row in result.rows if row["reference"] == reference))
        clip = _cell(result.clips.get(reference))
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        lines = []
        for number, prompt in enumerate(prompts[:most]):
            cells = "".join(f"<td>{_cell(by_place.get((reference, prompt, name)))}</td>" for name in names)
            first = f"<td rowspan={min(most, len(prompts))}>{clip}</td>" if number == 0 else ""
            lines.append(f"<tr>{first}<td>{escape(prompt)}</td>{cells}</tr>")
        rest = f" ({most} of {len(prompts)} prompts; the others are in videos/)" if len(prompts) > most else ""
        tables.append(
            f"<div class=scroll><table><caption>{escape(reference)}{rest}</caption><tr><th>reference clip</th>"
            f"<th>prompt</th>{head}</tr>{''.join(lines)}</table></div>"
        )
    controls = (
        "<p class=bar><button id=restart>restart together</button> <button id=pause>pause or play</button> speed "
        "<select id=speed><option>0.25<option>0.5<option selected>1<option>2</select></p>"
    )
    return f"<h2>Videos</h2>{controls}{''.join(tables)}"


def _cell(path: Path | None) -> str:
    if path is None or not path.exists():
        return "missing"
    if path.suffix == ".mp4":
        return f"<video src='{_embed(path)}' autoplay loop muted playsinline></video>"
    return f"<img alt='video' src='{_embed(path)}'>"


def _embed(path: Path) -> str:
    kind = {".mp4": "video/mp4", ".gif": "image/gif", ".svg": "image/svg+xml"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _missing(result: Result) -> str:
    items = "".join(f"<li>{escape(problem)}</li>" for problem in result.problems)
    return f"<h2>Missing</h2><ul>{items}</ul>" if items else ""


def _definitions(result: Result) -> str:
    rows = "".join(
        f"<tr><td>{escape(t)}</td><td>{escape(m)}</td><td>{escape(f)}</td><td>{escape(s)}</td></tr>"
        for t, m, f, s in result.definitions()
    )
    return f"<table><tr><th>metric</th><th>model</th><th>formula</th><th>source</th></tr>{rows}</table>" if rows else ""


def _width(result: Result) -> int:
    return WIDTH if result.testbed.world else 224
