"""From the choices of the first two steps to the words of one `train.py` command."""

import json
from dataclasses import dataclass
from pathlib import Path

from configs.paths import POCKET, ROOT, locate
from configs.plain import read_json
from configs.schema import load
from models.backbones import kind_of_model
from scripts.studio.excerpt import Excerpt
from scripts.studio.places import script, short

RECIPES = {  # (the network's folder, whether the model is a toy): its recipe; else the keys' defaults, ZeroScope's
    ("unet", True): "configs/pocket.yaml",
    ("transformer", True): "configs/pocket_dit.yaml",
    ("transformer", False): "configs/wan.yaml",
}
SMALL = 128  # pixels; a model whose own videos are smaller is a toy and learns by the toy's recipe
METHODS = {  # preset of configs/methods: its title, and when to take it
    "tap": ("TAP, the paper's method", "first; the appearance of the prompt is kept best"),
    "tap_key": ("TAP, Key alone", "the file should be half as large"),
    "release": ("Key and output projection", "as the authors' code; the motion was learned too weakly"),
    "motiondirector": ("MotionDirector, all layers", "the motion is a new path; appearance leaks more"),
    "motion_inversion": ("Motion Inversion, embeddings", "the model's weights must stay untouched"),
}
SPEEDS = {"quick": 1 / 3, "full": 1.0}  # share of the recipe's steps
PREVIEWS = 3  # along the way; the last is made at the end
MOST_PREVIEWED = 2  # prompts; each preview takes as long as a sampling


@dataclass(frozen=True)
class Recipe:
    """Everything that a training is told. `clip` is a file, `prompts` are those of the previews."""

    model: str
    clip: Path
    caption: str
    excerpt: Excerpt
    method: str
    steps: int
    prompts: tuple[str, ...]
    seed: int = 0

    def words(self, output_dir: Path, cache_dir: Path) -> list[str]:
        """The command, from the script on."""
        return [
            script("train.py"),
            *base_words(self.model),
            *("--config", preset(self.model, self.method)),
            f"output_dir={short(output_dir)}",
            f"cache_dir={short(cache_dir)}",
            f"train_data.single_video_path={short(self.clip)}",
            f"train_data.single_video_prompt={_text(self.caption)}",
            *self.excerpt.words(),
            f"validation_data.prompt={json.dumps(list(self.prompts[:MOST_PREVIEWED]), ensure_ascii=False)}",
            f"validation_steps={self.interval}",
            f"checkpointing_steps={self.interval}",
            f"max_train_steps={self.steps}",
            *([f"seed={self.seed}"] if self.seed else []),
        ]

    @property
    def interval(self) -> int:
        """Steps from one preview and checkpoint to the next."""
        return max(1, -(-self.steps // PREVIEWS))


def base_words(model: str) -> list[str]:
    """What comes first for a model: the recipe for its kind and size, and the model where the recipe has another."""
    folder = locate(model)
    embedded = folder.resolve() == POCKET
    recipe = RECIPES.get((kind_of_model(folder).FOLDER, embedded or is_small(model)))
    config = ["--config", recipe] if recipe else []
    return config if embedded else [*config, f"pretrained_model_path={short(folder)}"]


def preset(model: str, method: str) -> str:
    """The file of a method for a model: some methods have one of their own for a transformer."""
    own = f"configs/methods/{kind_of_model(locate(model)).FOLDER}/{method}.yaml"
    return own if (ROOT / own).is_file() else f"configs/methods/{method}.yaml"


def is_small(model: str) -> bool:
    """Whether the model's own sampling.json asks for a toy's size."""
    file = locate(model) / "sampling.json"
    native = read_json(file) if file.is_file() else {}
    width = native.get("width") if isinstance(native, dict) else None
    return isinstance(width, int) and width <= SMALL


def configuration(model: str, clip: Path | None = None, words: tuple[str, ...] | list[str] = ()):
    """The configuration that a training of `model` begins with; `clip` is cut as the further `words` say."""
    chosen = [f"train_data.single_video_path={clip or 'clip.mp4'}", "train_data.single_video_prompt=a clip"]
    return load([*base_words(model), *chosen, *words], description="")[0]


def go_on(run: Path) -> list[str]:
    """The command that continues a run after its last checkpoint, and one whose end was reached does nothing."""
    return [script("train.py"), *("--config", short(run / "config.yaml")), f"resume_from_checkpoint={short(run)}"]


def _text(text: str) -> str:
    """A text as a `key=value` word gives it: quoted only where it would be read as something else."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return json.dumps(text, ensure_ascii=False) if quoted or text == "null" else text
