"""From a run, prompts and dials to two rows of videos: the base model and the customized one from one seed.

Both are requests to `infer/infer.py`, made in this process with a model that stays loaded. A dial becomes a flag only
where it differs from what the checkpoint says, so the commands that are shown stay as short as people write them.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.paths import locate
from infer import options
from infer.choices import RELEASE
from infer.settings import read_native
from scripts.studio.places import Places, script, short
from scripts.studio.runs import Run

FLAGS = {  # dial -> flag of infer/infer.py, in the order in which commands give them
    "noise_prior": "--noise_prior",
    "pli_threshold": "--pli_threshold",
    "highway": "--highway",
    "beta": "--beta",
    "solver": "--solver",
    "num_steps": "--num-steps",
    "guidance_scale": "--guidance-scale",
}
OF_THE_MODEL = ("solver", "num_steps", "guidance_scale")  # dials that act on the base model as well
WITHOUT_HIGHWAY = "off"


def dials_of_model(model: str) -> dict[str, Any]:
    """Solver, steps and guidance scale of a model folder itself, which the page shows until a run is chosen."""
    own = RELEASE | read_native(locate(model))
    return {name: own[name] for name in OF_THE_MODEL}


@dataclass(frozen=True)
class Wish:
    """What is to be sampled. `dials` holds values by the names of `FLAGS`; `mixed` and `appearance` other runs."""

    run: Run
    prompts: tuple[str, ...]
    seed: int = 1
    checkpoint: int | None = None
    strength: float = 1.0
    dials: dict[str, Any] = field(default_factory=dict)
    mixed: tuple[Run, float] | None = None
    appearance: tuple[Run, float] | None = None

    def base_words(self, places: Places, own: dict[str, Any]) -> list[str]:
        """The command for the base model; `own` are the checkpoint's own dials."""
        return [*self._words(places, "base"), "--lora_scale", "0", *self._flags(own, OF_THE_MODEL)]

    def customized_words(self, places: Places, own: dict[str, Any]) -> list[str]:
        """The command for the customized model."""
        words = self._words(places, "customized")
        if self.strength != 1:
            words += ["--lora_scale", f"{self.strength:g}"]
        words += self._flags(own, tuple(FLAGS))
        if self.mixed:
            words += ["--motion", short(self.mixed[0].path), f"{self.mixed[1]:g}"]
        if self.appearance:
            words += ["--spatial_path_folder", short(self.appearance[0].path)]
            words += ["--spatial_path_scale", f"{self.appearance[1]:g}"] if self.appearance[1] != 1 else []
        return words

    def _words(self, places: Places, kind: str) -> list[str]:
        checkpoint = [] if self.checkpoint is None else ["--checkpoint_index", str(self.checkpoint)]
        return [
            script("infer/infer.py"),
            *("--checkpoint_folder", short(self.run.path), *checkpoint),
            *options.prompt_words(self.prompts),
            *("--seed", str(self.seed)),
            *("--output_dir", short(places.infer / self.run.name / kind)),
        ]

    def _flags(self, own: dict[str, Any], names: tuple[str, ...]) -> list[str]:
        chosen = {name: value for name, value in self.dials.items() if value is not None and name in names}
        if chosen.get("highway", own.get("highway")) == WITHOUT_HIGHWAY:
            chosen.pop("beta", None)
        differing = {name: value for name, value in chosen.items() if value != own.get(name)}
        return [
            word
            for name, flag in FLAGS.items()
            if name in differing
            for word in (flag, f"{differing[name]:g}" if isinstance(differing[name], float) else str(differing[name]))
        ]


@dataclass(frozen=True)
class Pair:
    """One prompt's two videos, with their measures on the toy world ({} for other worlds)."""

    prompt: str
    base: Path
    customized: Path
    base_scores: dict[str, Any]
    customized_scores: dict[str, Any]


class Sampler:
    """Holds the loaded model between requests. One request is served at a time."""

    def __init__(self, places: Places):
        self.places = places
        self._backbone = None
        self._serving = threading.Lock()
        self._bases: dict[tuple[str, ...], list[Path]] = {}

    def own_dials(self, run: Run, checkpoint: int | None = None) -> dict[str, Any]:
        """What the checkpoint would be sampled with: its values by the names of `FLAGS`."""
        settings = _request(Wish(run, ("a",), checkpoint=checkpoint).customized_words(self.places, {})).settings
        return {name: settings[name] for name in FLAGS}

    def sample(self, wish: Wish) -> Iterator[Pair]:
        """The pairs of a wish, prompt by prompt: all base videos are made first, and kept for the next time."""
        own = self.own_dials(wish.run, wish.checkpoint)
        with self._serving:
            base = tuple(wish.base_words(self.places, own))
            if not all(path.is_file() for path in self._bases.get(base, [Path()])):
                self._bases[base] = list(self._videos(list(base)))
            customized = self._videos(wish.customized_words(self.places, own))
            for prompt, plain, video in zip(wish.prompts, self._bases[base], customized, strict=True):
                scores = self.measure(wish.run, prompt, plain), self.measure(wish.run, prompt, video)
                yield Pair(prompt, plain, video, *scores)

    def _videos(self, words: list[str]) -> Iterator[Path]:
        from infer.generate import generate, load_backbone

        args = options.parse(words[1:])
        if self._backbone is None or not _same_model(self._backbone, args):
            self._backbone = None  # two large models would not fit beside each other
            self._backbone = load_backbone(args)
        yield from generate(args, self._backbone)

    def measure(self, run: Run, prompt: str, video: Path) -> dict[str, Any]:
        """The toy world's exact measures of a video; {} where prompt or reference clip are of another world."""
        from infer.measure.world_scores import is_of_world, world_scores
        from infer.video import read_frames

        reference = reference_of_run(run)
        frames = read_frames(video)
        if reference is None or not is_of_world(frames, prompt, reference):
            return {}
        return world_scores(frames, prompt, reference)


def reference_of_run(run: Run):
    """The clips that a run learned from, as measuring wants them; None where they are no longer there."""
    from configs.plain import read_yaml
    from infer.measure.evaluation import reference_of

    try:
        return reference_of(read_yaml(run.path / "config.yaml"))
    except UserError:
        return None


def _request(words: list[str]):
    from infer.request import read_request

    return read_request(options.parse(words[1:]))


def _same_model(backbone, args) -> bool:
    """Whether `generate` takes the loaded model for these flags: it refuses one that differs in any of the four."""
    from infer.request import read_request
    from models.backbone import choose_device, choose_dtype

    request, device = read_request(args), choose_device(args.device)
    asked = Path(request.model).resolve(), choose_dtype(request.settings.precision, device), device, args.memory
    return asked == (Path(backbone.path).resolve(), backbone.dtype, backbone.device, backbone.memory)
