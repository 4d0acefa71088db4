"""One HTML page for an artefact: verdict, plot, table, and the videos side by side, all inside the file.

It opens from disk and asks the network for nothing: videos and plot are embedded as base64. The markup is in
templates/page.html, where jinja2 escapes every text.
"""

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs.files import atomic_path
from infer.measure.evaluation import ALL_DEFINITIONS
from infer.measure.statistics import FORMULAS
from scripts.artefacts.artefact import REPORTED
from scripts.artefacts.equal_motion import FORMULA
from scripts.artefacts.result import Result

ROWS = 18  # rows of videos on the page at most, divided among the references
WIDTHS = {True: 128, False: 224}  # CSS pixels of a video at least, of the toy world and of real clips
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(result: Result, folder: Path) -> Path:
    """Write page.html into `folder`, with `folder`/plot.svg where there is one."""
    plot = folder / "plot.svg"
    html = TEMPLATES.get_template("page.html").render(
        result=result,
        reported=REPORTED,
        formulas=FORMULAS,
        equal_motion=FORMULA,
        headings={name: ALL_DEFINITIONS[name].heading for name in (*result.metrics, *result.details)},
        width=WIDTHS[result.testbed.world],
        plot=embedded(plot) if plot.exists() else None,
        references=_references(result),
    )
    path = folder / "page.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _references(result: Result) -> list[dict]:
    """For each reference clip: its name, its video, how many prompts there are, and rows of (prompt, videos)."""
    first_training = {
        (row["reference"], row["prompt"], row["variant"]): row["path"] for row in reversed(result.rows)
    }  # of several trainings of a variant the first is shown
    names = list(dict.fromkeys(row["reference"] for row in result.rows))
    most = max(1, min(6, ROWS // max(1, len(names))))
    references = []
    for name in names:
        prompts = list(dict.fromkeys(row["prompt"] for row in result.rows if row["reference"] == name))
        rows = [
            (prompt, [_video(first_training.get((name, prompt, variant.name))) for variant in result.variants])
            for prompt in prompts[:most]
        ]
        references.append({"name": name, "clip": _video(result.clips.get(name)), "prompts": len(prompts), "rows": rows})
    return references


def _video(path: Path | None) -> dict | None:
    """What the page needs of a video: its data and whether it is a still format; None where it is missing."""
    return {"data": embedded(path), "image": path.suffix != ".mp4"} if path is not None and path.exists() else None


def embedded(path: Path) -> str:
    """The file as a data: URL."""
    kind = {".mp4": "video/mp4", ".gif": "image/gif", ".svg": "image/svg+xml"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
