"""Sampled videos as the page shows them: fresh pairs beside their reference clip, and the newest of all runs."""

from collections.abc import Sequence

from configs.errors import UserError
from configs.plain import read_json
from scripts.studio import markup
from scripts.studio.places import Places
from scripts.studio.runs import Run
from scripts.studio.sampling import Pair, reference_of_run

MOST_SHOWN = 24  # videos of the gallery


def pair(made: Pair, reference: str | None, places: Places) -> str:
    """Reference clip, base model and customized model in step, with the measures and a link to save each."""
    figures = [markup.video(reference, "reference clip")] if reference else []
    for name, path, scores in (
        ("base model", made.base, made.base_scores),
        ("customized", made.customized, made.customized_scores),
    ):
        figures.append(markup.video(places.show(path), name, markup.scores(scores), path.name))
    return markup.in_step(figures, made.prompt)


def reference(run: Run, places: Places) -> str | None:
    """The address of the clip that a run learned from, as it saw it; None where that clip is no longer there."""
    found = reference_of_run(run)
    if found is None:
        return None
    return places.film(found.frames[0], run.config().train_data.fps or 8)


def newest(places: Places) -> str:
    """The newest sampled videos with their prompts."""
    notes = sorted(places.infer.glob("**/[!.]*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    figures: list[str] = []
    for path in notes[:MOST_SHOWN]:
        try:
            told = read_json(path)
            video = path.parent / str(told["video"])
            if video.parent == path.parent and video.is_file():
                caption = f"{told['prompt']} ({_kind(path.parent.name)}, seed {told['seed']})"
                figures.append(markup.video(places.show(video), caption))
        except (UserError, KeyError, TypeError):  # no sidecar, or one of another program
            continue
    return gallery(figures)


def gallery(figures: Sequence[str]) -> str:
    return f'<div class="gallery">{"".join(figures)}</div>' if figures else markup.note("Nothing was sampled yet.")


def _kind(folder: str) -> str:
    return {"base": "base model"}.get(folder, folder)
