"""The run folders of train.py: which there are, how far each is, and what it shows."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from configs.errors import UserError
from configs.plain import read_yaml
from configs.schema import from_dict
from scripts.studio.places import Places

LOG = "log.jsonl"
MOST_RUNS = 200  # in the list, the newest
RECENT = 30  # steps whose median time says how long the next will take


@dataclass(frozen=True)
class Progress:
    """Steps done and wanted, the seconds that one takes (None before one was timed), and when the last one ended."""

    done: int
    wanted: int
    seconds: float | None
    when: float = 0.0

    @property
    def share(self) -> float:
        return min(1.0, self.done / max(1, self.wanted))


@dataclass(frozen=True)
class Preview:
    """A preview's step, prompt and video."""

    step: int
    prompt: str
    video: Path


@dataclass(frozen=True)
class Run:
    """A run folder, `outputs/train/.../train_TIME`."""

    path: Path
    root: Path

    @property
    def name(self) -> str:
        """The folder's path below outputs/train, which names the run on the page."""
        return str(self.path.relative_to(self.root))

    def config(self):
        """The run's configuration. Raises UserError where it is missing or damaged."""
        return from_dict(read_yaml(self.path / "config.yaml"))

    def checkpoints(self) -> list[int]:
        """The steps at which it has saved, ascending."""
        from models.files.checkpoint import list_checkpoints

        return list(list_checkpoints(self.path))

    def records(self) -> list[dict]:
        """A record a step, as logged; [] before the first."""
        from models.training.journal import read_log

        log = self.path / LOG
        return read_log(log) if log.is_file() else []

    def progress(self) -> Progress:
        records, wanted = self.records(), self.config().max_train_steps
        done = records[-1]["step"] if records else 0
        times = [record["seconds"] for record in records[-RECENT:]]
        when = (self.path / LOG).stat().st_mtime if records else 0.0
        return Progress(done, wanted, median(times) if times else None, when)

    def losses(self) -> dict[str, list[tuple[int, float]]]:
        """Each loss as (step, running mean over a twentieth of the run), as the run's own plot shows it."""
        import numpy as np

        found, records = {}, self.records()
        for name in ("loss_temporal", "loss_debiased", "loss_spatial"):
            points = [(record["step"], record[name]) for record in records if name in record]
            if not points:
                continue
            window = max(1, len(points) // 20)
            means = np.convolve([value for _, value in points], np.ones(window) / window, mode="valid")
            found[name.removeprefix("loss_")] = [(step, float(m)) for (step, _), m in zip(points[window - 1 :], means)]
        return found

    def previews(self) -> list[Preview]:
        """The preview videos by step, then in the order of the prompts."""
        from infer.video import safe_name

        prompts = {safe_name(prompt): prompt for prompt in self.config().validation_data.prompt}
        order = list(prompts)
        found = [
            Preview(int(folder.name[5:]), prompts[video.stem], video)
            for folder in self.path.glob("previews/step-*")
            if folder.name[5:].isdecimal()
            for video in folder.glob("*.mp4")
            if video.stem in prompts
        ]
        return sorted(found, key=lambda preview: (preview.step, order.index(preview.video.stem)))


def find_runs(places: Places) -> list[Run]:
    """The run folders with a configuration in outputs/train and in its folders, the newest first."""
    found = [path.parent for below in ("", "*/") for path in places.train.glob(f"{below}train_*/config.yaml")]
    found.sort(key=lambda path: path.name, reverse=True)
    return [Run(path, places.train) for path in found[:MOST_RUNS]]


def find_run(places: Places, name: str) -> Run:
    """The run that the page calls `name`. Raises UserError for anything that is not in the list."""
    for run in find_runs(places):
        if run.name == name:
            return run
    raise UserError("run: it is no longer there; choose another one")
