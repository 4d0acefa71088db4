"""Which trainings and videos some artefacts need together, each planned once, and where they will be.

A run's folder is named by its motion and a digest of all that shapes it (model, configuration, words, clips); a folder
of videos also by its sampling flags and the model's own settings for them. Asking again finds what is there, and asking
for something else never mixes with it.
"""

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from configs.errors import UserError
from configs.schema import load
from infer.settings import read_native
from models.backbones import kind_of_model, settled
from scripts.artefacts.artefact import PROMPTS, SMOKE_PROMPTS, Artefact, Variant
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.chain import Chain, infer_words, train_words
from scripts.artefacts.prices import SMOKE_STEPS
from scripts.artefacts.samples import SEEDS, Samples
from scripts.artefacts.testbed import MotionTask, Testbed
from scripts.artefacts.variants import CHECKPOINT

SMOKE = (
    f"max_train_steps={SMOKE_STEPS}",
    "lr_warmup_steps=0",
    "checkpointing_steps=1",
    "timesteps_per_step=1",
    "inversion_steps=2",
    "validation_data.num_inference_steps=2",
)
NEXT_REPETITION = 1000  # how far the seeds of two trainings on one clip are apart
# keys that do not shape a training: paths, whose contents are counted instead, and what the program keeps for itself
UNCOUNTED = ("pretrained_model_path", "output_dir", "cache_dir", "resume_from_checkpoint", "fallback", "chosen", "base")


@dataclass(frozen=True)
class Cell:
    """One cell of an artefact: the videos of one variant trained on one motion."""

    variant: Variant
    task: MotionTask
    run: str  # the motion, which of its clips, and which of their trainings
    chain: Chain
    samples: Samples


class Plan:
    """The chains that some artefacts need together, and where the videos of each variant will be."""

    def __init__(
        self,
        testbed: Testbed,
        folder: Path,
        words: list[str],
        *,
        smoke: bool = False,
        prompts: int | None = None,
        references: int | None = None,
        appearances: int | None = None,
        trainings: int = 1,
    ):
        """`words` override every training's configuration; `references` is an upper limit of motions.

        `prompts` (for each training) and `appearances` (clips for each motion) replace the artefacts' own numbers;
        `trainings` says how often a clip is learned, from other seeds.
        """
        self.testbed, self.folder, self.words, self.smoke = testbed, folder, words, smoke
        self.prompts = prompts or (SMOKE_PROMPTS if smoke else None)
        self.most, self.appearances = (1, 1) if smoke else (references, appearances)
        self.trainings = 1 if smoke else trainings
        if self.trainings > 1 and any(word.startswith("seed=") for word in words):
            raise UserError("seed: every training on a clip has its own; leave it out, or leave out --trainings")
        self.model_key, self.native = testbed.fingerprint(), read_native(testbed.model)
        self.chains: dict[str, Chain] = {}
        self.cells: dict[str, list[Cell]] = {}
        self.problems: dict[str, list[str]] = {}
        self._loaded: dict[tuple[str, ...], DictConfig] = {}

    def add(self, name: str) -> None:
        """Plan an artefact; what it lacks is added to its problems. Raises UserError for a model of another kind."""
        artefact, self.cells[name], self.problems[name] = ARTEFACTS[name], [], []
        kind = kind_of_model(self.testbed.model)
        if artefact.network not in (None, kind.FOLDER):
            raise UserError(
                f"{name}: is about a {artefact.network}, and {self.testbed.name} is a {kind.NAME}; it needs "
                f"{artefact.needs}"
            )
        if artefact.world and not self.testbed.world:
            self.problems[name].append(f"{artefact.title} needs a model of the toy world: --model pocket, or --world")
            return
        try:
            tasks = self.testbed.tasks(
                artefact.motions, artefact.several, self.most, self.appearances or artefact.appearances
            )
        except UserError as error:
            self.problems[name].append(str(error))
            return
        for repetition in range(self.trainings):
            for task in tasks:
                for variant in artefact.variants:
                    self.cells[name].append(self.cell(variant, task, repetition, self.prompts_of(artefact)))

    def prompts_of(self, artefact: Artefact) -> int:
        """How many prompts every training of an artefact is sampled with."""
        return self.prompts or (artefact.prompts if self.testbed.world else PROMPTS)

    def chains_of(self, name: str) -> list[Chain]:
        """The chains that an artefact needs."""
        return list({cell.chain.name: cell.chain for cell in self.cells[name]}.values())

    def cell(self, variant: Variant, task: MotionTask, repetition: int, prompts: int = PROMPTS) -> Cell:
        """Plan the videos of one variant learned from one task; its chain also serves the other variants.

        Every clip, and every repetition of a clip, has a seed of its own for its training.
        """
        train = [
            "--config",
            str(self.testbed.config),
            f"pretrained_model_path={self.testbed.model}",
            f"cache_dir={self.folder / 'cache'}",
            *task.data,
            *variant.train,
            f"seed={task.appearance + NEXT_REPETITION * repetition}",
            *(SMOKE if self.smoke else ()),
            *self.words,
        ]
        cfg = self._configuration(train)
        name = f"{task.name}-{digest([self.model_key, _settled(cfg), _contents(task)])}"
        chain = self.chains.setdefault(
            name, Chain(name, train, str(self.folder / "runs" / name), cfg.max_train_steps, [])
        )
        # a smoke training makes none of the checkpoints that variants name: each takes the latest
        flags = _without(CHECKPOINT, variant.flags) if self.smoke else variant.flags
        folder = self.folder / "samples" / f"{name}-{digest([flags, variant.watched, self.native])}"
        samples = Samples(
            str(folder),
            list(flags),
            list(task.prompts[:prompts]),
            SEEDS * task.appearance,
            str(task.clip) if variant.watched else "",
        )
        chain.add(samples)
        run = f"{task.reference}, training {repetition + 1}" if repetition else task.reference
        return Cell(variant, task, run, chain, samples)

    def _configuration(self, words: list[str]) -> DictConfig:
        """What these words configure, read once: many variants are sampled from one training."""
        if (key := tuple(words)) not in self._loaded:
            self._loaded[key] = load(words, description="")[0]
        return self._loaded[key]


def _without(flag: str, flags: tuple[str, ...]) -> tuple[str, ...]:
    """The flags without this one and its value."""
    if flag not in flags:
        return flags
    at = flags.index(flag)
    return (*flags[:at], *flags[at + 2 :])


def _settled(cfg: DictConfig) -> dict:
    """The values of a configuration that shape its training, and which of those for its videos somebody chose."""
    values = OmegaConf.to_container(settled(cfg, cfg.pretrained_model_path))
    values["chosen for videos"] = [key for key in cfg.chosen if key.startswith("validation_data.")]
    for name in UNCOUNTED:
        values.pop(name, None)
    values["train_data"] = {
        key: v for key, v in values["train_data"].items() if key not in ("single_video_path", "path")
    }
    return values


def _contents(task: MotionTask) -> list[str]:
    """Digests of the task's clips and of the captions beside them."""
    clip = task.clip
    files = sorted(clip.parent.iterdir()) if task.several else [clip, clip.with_suffix(".txt")]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]


def digest(value: object) -> str:
    """Ten characters that change with a value, which is plain data."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:10]


def commands(chain: Chain) -> str:
    """The commands that would do what is left of a chain."""
    lines = [] if chain.run_folder else [["python", "train.py", *train_words(chain)]]
    for samples in chain.samples:
        chosen = [CHECKPOINT, "WATCHED"] if samples.watched else []  # what scripts/artefacts/plateau.py finds
        lines += [
            ["python", "infer/infer.py", *infer_words(chain, samples, seed, prompts, chosen)]
            for seed, prompts in samples.missing()
        ]
    return "\n".join(shlex.join(line) for line in lines)
