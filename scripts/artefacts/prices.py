"""What a training and a video cost: from the runs that are there, else from scripts/artefacts/measured.yaml."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from configs.errors import UserError
from configs.plain import read_yaml
from scripts.artefacts.samples import sidecars

STORED = Path(__file__).parent / "measured.yaml"
SMOKE_STEPS = 2  # of a smoke run's training: no other is as short


@dataclass(frozen=True)
class Prices:
    """Seconds of a process's start, a training, a video (times `guided` with motion guidance) and its measuring.

    They are seconds of `unit`: of one CPU core for PocketScope and of one card for a larger model. `source` says where
    they are from.
    """

    start: float
    training: float
    video: float
    guided: float
    measuring: float
    unit: str
    source: str

    def sampling(self, count: int, flags: Iterable[str] = ()) -> float:
        """Seconds to sample `count` videos with these flags of infer/infer.py."""
        return count * self.video * (self.guided if "--guide" in flags else 1.0)

    def of_videos(self, count: int, flags: Iterable[str] = ()) -> float:
        """Seconds to sample and measure them."""
        return self.sampling(count, flags) + count * self.measuring


def stored_prices(world: bool) -> Prices:
    """Those of the table, for a model of the toy world or for a large one."""
    return Prices(**read_yaml(STORED)["pocket" if world else "zeroscope"], source="the stored table")


def measured_prices(world: bool, folder: Path, model: str, lengths: Collection[int]) -> Prices:
    """The stored ones, with training and video from what was made in `folder` with the model called `model`.

    Trainings count that have one of these numbers of steps and reached it; whatever a smoke run made and damaged files
    do not. What a larger model took is counted by the clock, and was of whichever card was there.
    """
    from models.training.journal import read_log  # slow, and stored prices need nothing of it

    prices, counted = stored_prices(world), "cpu_seconds" if world else "seconds"
    trained, sampled = [], []
    for log in folder.glob("runs/*/train_*/log.jsonl"):
        try:
            config, records = read_yaml(log.with_name("config.yaml")), read_log(log)
        except (UserError, OSError, UnicodeDecodeError):
            continue
        steps = _steps(config)
        other = steps not in lengths or steps == SMOKE_STEPS or _name(config.get("pretrained_model_path")) != model
        if not other and records and records[-1]["step"] == steps:
            trained.append(sum(record.get(counted, record["seconds"]) for record in records))
    for made in folder.glob("samples/*"):
        for notes, *_ in sidecars(made):
            other = _steps(notes.get("config")) == SMOKE_STEPS or _name(notes.get("model")) != model
            if notes.get(counted) and "guide" not in notes.get("settings", {}) and not other:
                sampled.append(notes[counted])
    sources = [f"{len(trained)} trainings"] * bool(trained) + [f"{len(sampled)} videos"] * bool(sampled)
    return replace(
        prices,
        training=mean(trained) if trained else prices.training,
        video=mean(sampled) if sampled else prices.video,
        unit=prices.unit if world or not sources else "a card",
        source=f"{' and '.join(sources)} made before" if sources else prices.source,
    )


def stored_spread(one_training: bool) -> dict[str, float]:
    """Role -> standard deviation over reference clips of the difference between two samplings of one training, or
    between two trainings on one clip, which is larger."""
    return read_yaml(STORED)["spread"]["one training" if one_training else "two trainings"]


def _name(model: object) -> str | None:
    """The last part of a noted path, which a folder keeps where it is moved as a whole; None where nothing is noted."""
    return Path(model).name if isinstance(model, str) else None


def _steps(config: object) -> int | None:
    """How many steps a stored configuration trains; None where it does not say."""
    return config.get("max_train_steps") if isinstance(config, dict) else None
