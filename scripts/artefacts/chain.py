"""A chain: one training and everything sampled from it, the unit that runs on one device and survives being stopped.

    python scripts/artefacts/chain.py CHAIN.json

scripts/reproduce.py writes the file and starts the command. A finished training is not repeated, an interrupted one
continues from its last checkpoint, and only missing videos are sampled. The functions of train.py and infer/infer.py
do all the work, with arguments that those commands take.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs.errors import UserError, command
from configs.files import atomic_path
from configs.runtime import slow_imports
from infer.options import prompt_words
from scripts.artefacts.plateau import previews_of, watched_step
from scripts.artefacts.provenance import note_commit
from scripts.artefacts.samples import TOGETHER, Samples, clear_damaged

MODEL = "pretrained_model_path="  # in every training's words; the folder may have moved since a run was made


@dataclass(frozen=True)
class Chain:
    """`train` are the words for train.py, `run` is its output_dir, `steps` how many it trains."""

    name: str
    train: list[str]
    run: str
    steps: int
    samples: list[Samples]

    def add(self, samples: Samples) -> None:
        """Sample these as well; of the same videos asked for twice the longer list of prompts counts."""
        for index, there in enumerate(self.samples):
            if there.folder == samples.folder:
                self.samples[index] = max(there, samples, key=lambda one: len(one.prompts))
                return
        self.samples.append(samples)

    @property
    def run_folder(self) -> Path | None:
        """The run's folder; None until the training is finished."""
        return next((path.parent for path in Path(self.run).glob(f"train_*/checkpoint-{self.steps}")), None)

    @property
    def is_done(self) -> bool:
        return self.run_folder is not None and not any(any(s.missing()) for s in self.samples)

    def write(self, path: Path) -> Path:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> "Chain":
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"samples": [Samples(**s) for s in values["samples"]]})


def train_words(chain: Chain) -> list[str]:
    """The words after train.py that make or resume this chain's training."""
    return [*chain.train, f"output_dir={chain.run}", "resume_from_checkpoint=latest"]


def model_words(chain: Chain) -> list[str]:
    """The words that name the model where it lies now."""
    return ["--model", next(word.removeprefix(MODEL) for word in chain.train if word.startswith(MODEL))]


def infer_words(chain: Chain, samples: Samples, seed: int, prompts: list[str], chosen: Sequence[str] = ()) -> list[str]:
    """The words after infer/infer.py that make these videos; `chosen` are flags that stand in no plan."""
    return [
        *model_words(chain),
        "--checkpoint_folder",
        str(chain.run_folder or chain.run),
        "--output_dir",
        samples.folder,
        "--batch-size",
        str(TOGETHER),
        "--seed",
        str(seed),
        *samples.flags,
        *chosen,
        *prompt_words(prompts),
    ]


def work(chain: Chain) -> None:
    """Do what is left of the chain in this process. Raises UserError as training and sampling do.

    Videos that are refused do not keep the others from being sampled; what was wrong is raised at the end.
    """
    with slow_imports():
        from configs.schema import load
        from infer import options
        from infer.generate import generate, load_backbone
        from train import run

    if chain.run_folder is None:
        note_commit(Path(chain.run))
        run(load(train_words(chain), description="")[0])
    backbone = None  # one model serves all samples of a chain: every variant customizes it and leaves it as it was

    def sample(words: list[str]) -> None:
        nonlocal backbone
        request = options.parse(words)
        backbone = backbone or load_backbone(request)
        for _ in generate(request, backbone):
            pass

    problems: list[str] = []
    for samples in chain.samples:
        folder, missing, chosen = Path(samples.folder), list(samples.missing()), []
        clear_damaged(folder)
        try:
            if samples.watched and missing:
                watch = lambda words: sample([*model_words(chain), *words])
                step = watched_step(chain.run_folder, Path(samples.watched), previews_of(folder), watch)
                chosen = ["--checkpoint_index", str(step)]
            for seed, prompts in missing:
                note_commit(folder)
                sample(infer_words(chain, samples, seed, prompts, chosen))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))


@command
def main() -> None:
    work(Chain.read(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
