"""What the page shows of one training or run: a sentence on its state, losses, previews, and what can be pressed."""

from dataclasses import dataclass

from scripts.studio import markup
from scripts.studio.places import Places
from scripts.studio.runs import Progress, Run
from scripts.studio.trainings import FAILED, OPEN, PREPARING, STOPPED, STOPPING, TRAINING, WAITING, Training


@dataclass(frozen=True)
class View:
    """`key` names the run or training; the rest is HTML, or says which buttons act."""

    key: str
    status: str
    curve: str = ""
    previews: str = ""
    can_stop: bool = False
    can_go_on: bool = False
    checkpoints: tuple[int, ...] = ()


def view(key: str, training: Training | None, run: Run | None, place: int, places: Places) -> View:
    """Everything about a run, which may have no training of this page, or a training, which may have no run yet."""
    opened = training is not None and training.state in OPEN
    if run is None:
        can_go_on = training is not None and training.state in (STOPPED, FAILED)
        return View(key, status(training, None, place), can_stop=opened, can_go_on=can_go_on)
    progress, checkpoints = run.progress(), tuple(run.checkpoints())
    return View(
        key,
        status(training, run, place),
        markup.curve(run.losses(), progress.wanted),
        previews(run, places),
        can_stop=opened and training.state != STOPPING,
        can_go_on=not opened and bool(checkpoints) and checkpoints[-1] < progress.wanted,
        checkpoints=checkpoints,
    )


def status(training: Training | None, run: Run | None, place: int) -> str:
    """One sentence and a bar. `place` is the training's in the queue."""
    progress, checkpoints = (run.progress(), run.checkpoints()) if run else (None, [])
    state = training.state if training else ""
    kept = f"checkpoint-{checkpoints[-1]} is kept" if checkpoints else "no checkpoint was made"
    if state == WAITING:
        why = training.sentence or f"place {place} in the queue; it begins when the one before it ends"
        return markup.bar(progress, f"Waiting: {why}.")
    if state == PREPARING:
        return markup.bar(progress, "Preparing: loading the model, reading the clip, drawing the base model's videos.")
    if state == FAILED:
        return markup.bar(progress, f"It ended early: {training.sentence} ({kept}).", "bad")
    if progress is None:
        return markup.bar(None, "Stopping." if state == STOPPING else "Stopped before the first step.")
    steps = f"step {progress.done} of {progress.wanted}"
    if state == STOPPING:
        return markup.bar(progress, f"Stopping after {steps}: a checkpoint is being saved.")
    if state == TRAINING:
        return markup.bar(progress, f"Training: {steps}{rest(training, run, progress)}.")
    if progress.done >= progress.wanted:
        return markup.bar(progress, f"Done: {progress.wanted} steps. Sample with it below.", "good")
    return markup.bar(
        progress, f"Stopped after {steps}; {kept}{', and Go on continues from it' if checkpoints else ''}."
    )


def rest(training: Training, run: Run, progress: Progress) -> str:
    """What is still to come: seconds, and whether previews are being drawn now."""
    each = training.pace(progress.done, progress.when) or progress.seconds if progress.done else None
    left = progress.wanted - progress.done
    if not left:
        return "; drawing the last videos"
    drawing = progress.done and progress.done % run.config().validation_steps == 0
    return (f", about {markup.duration(left * each)} left" if each else "") + ("; drawing previews" if drawing else "")


def previews(run: Run, places: Places) -> str:
    """The preview videos so far, one row a prompt; step 0 is the base model."""
    rows: dict[str, list[str]] = {}
    for preview in run.previews():
        caption = f"step {preview.step}" if preview.step else "step 0: base model"
        rows.setdefault(preview.prompt, []).append(markup.video(places.show(preview.video), caption))
    return "".join(markup.in_step(figures, prompt) for prompt, figures in rows.items())
