"""Stopping a training early: at the first checkpoint that follows the reference clip hardly better than the one before.

So would a person who watches previews, and it asks for no truth but the clip itself: at every checkpoint videos of the
clip's own caption are sampled, and their path error is held against that of the last one. A finished training stands
for the one that would have been stopped, with the learning rate that its schedule had reached by then.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean

from infer.options import prompt_words
from scripts.artefacts.samples import clear_damaged, sidecars

LEAST = 0.1  # share of the path error that the next checkpoint must take off, for the training to go on
SEEDS = 2  # of noise: previews of a checkpoint


def stop_at(errors: Iterable[tuple[int, float]]) -> int:
    """The step at which a training ends, of (step, path error) in order: the first whose error is not LEAST below the
    step's before it, else the last. What comes after it is not asked for."""
    before, last = float("inf"), 0
    for step, error in errors:
        last = step
        if error > (1 - LEAST) * before:
            break
        before = error
    return last


def watched_step(run: Path, clip: Path, previews: Path, sample: Callable[[list[str]], None]) -> int:
    """The checkpoint of `run`, learned from `clip` (its caption beside it), at which `stop_at` ends.

    `sample` makes videos from words for infer/infer.py, here into `previews`/STEP; what is there is not made again.
    """
    from infer.measure.world_scores import ReferenceClips, world_scores
    from infer.video import read_frames
    from models.files.checkpoint import list_checkpoints

    caption = clip.with_suffix(".txt").read_text(encoding="utf-8").strip()
    reference = ReferenceClips((read_frames(clip),), (caption,))

    def errors() -> Iterator[tuple[int, float]]:
        for step in list_checkpoints(run):
            folder = previews / str(step)
            if len(list(sidecars(folder))) < SEEDS:
                clear_damaged(folder)
                place = ["--checkpoint_folder", str(run), "--checkpoint_index", str(step), "--output_dir", str(folder)]
                sample([*place, "--seed", "0", "--repeat_num", str(SEEDS), *prompt_words([caption])])
            videos = [read_frames(path) for path in sorted(folder.glob("*.mp4"))]
            yield step, mean(world_scores(frames, caption, reference)["rmse"] for frames in videos)

    return stop_at(errors())


def previews_of(samples: Path) -> Path:
    """Where the previews lie by which the checkpoint of the videos in `samples` was chosen."""
    return samples.with_name(f"{samples.name}-previews")


def watching_seconds(samples: Path) -> float:
    """CPU seconds of those previews; 0 where the checkpoint was not chosen by any."""
    notes = [found for folder in previews_of(samples).glob("*") for found, *_ in sidecars(folder)]
    return sum(found.get("cpu_seconds", found["seconds"]) for found in notes)
