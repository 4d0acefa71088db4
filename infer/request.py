"""What a sampling request comes down to: which checkpoints, which model, and one value for every choice.

A value is taken from the first that has it: the flag, the checkpoint's own configuration, the model folder's
sampling.json (a model's native size and guidance), the release's default. `Settings` remembers which it was.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.errors import UserError
from configs.schema import locate
from data.cache import CachedClip, primary, read_folder
from infer.options import RELEASE, RELEASE_FREEU
from models.backbone import skeleton
from models.files.checkpoint import Checkpoint, check_fit, list_checkpoints, load_checkpoint

CONFIG_KEYS = {  # choice -> where a checkpoint's configuration keeps it
    "width": "validation_data.width",
    "height": "validation_data.height",
    "num_frames": "validation_data.num_frames",
    "num_steps": "validation_data.num_inference_steps",
    "guidance_scale": "validation_data.guidance_scale",
    "guidance_rescale": "validation_data.guidance_rescale",
    "noise_prior": "validation_data.noise_prior",
    "negative_prompt": "validation_data.negative_prompt",
    "fps": "train_data.fps",
    "pli_threshold": "pli_threshold",
    "noise_strategy": "initial_noise.strategy",
    "noise_cutoff": "initial_noise.cutoff",
    "embedding_sampling": "embeddings.sampling",
    "precision": "mixed_precision",
}
PARTS_OF_A_CHECKPOINT = ("lora", "spatial", "temporal")


@dataclass
class Source:
    """A checkpoint that gives motion or looks, and how strongly. `clip` is the reference clip whose looks are meant."""

    folder: Path
    part: str  # "motion" | "appearance"
    strength: float
    clip: int
    checkpoint: Checkpoint

    def record(self) -> dict:
        c = self.checkpoint
        return {
            "folder": str(self.folder),
            "index": c.index,
            "part": self.part,
            "strength": self.strength,
            "clip": self.clip,
            "kind": c.kind,
            "preset": c.preset,
            "rank": c.rank,
        }


class Settings:
    """Choices by name (`settings.width` or `settings["width"]`) with the origin of each."""

    def __init__(self):
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.overridden: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __getattr__(self, name: str) -> Any:
        if name in ("values", "origins", "overridden") or name not in self.values:
            raise AttributeError(name)
        return self.values[name]

    def choose(self, name: str, *candidates: tuple[str, Any]) -> None:
        """Keep the first (origin, value) whose value is not None, and what the checkpoint would have said."""
        present = [(origin, value) for origin, value in candidates if value is not None] or [("default", None)]
        self.origins[name], self.values[name] = present[0]
        trained = dict(present).get("checkpoint")
        if self.origins[name] == "flag" and trained is not None and trained != self.values[name]:
            self.overridden[name] = trained

    def report(self, model: str, sources: list[Source]) -> None:
        """Say on stderr what will be used, grouped by origin, and every override."""
        print(f"model: {model}", file=sys.stderr)
        trained_on = next((s.checkpoint.config["pretrained_model_path"] for s in sources if s.checkpoint.config), model)
        if locate(trained_on).resolve() != Path(model).resolve():
            print(f"override: model is {model} (flag), the checkpoint has {trained_on}", file=sys.stderr)
        for source in sources:
            shape = source.checkpoint.preset or source.checkpoint.kind
            print(f"{source.part}: {source.checkpoint.path} ({shape}), strength {source.strength:g}", file=sys.stderr)
            if assumed := source.checkpoint.info.get("assumed"):
                print(f"note: {assumed}; --temporal_preset says otherwise", file=sys.stderr)
        for origin in dict.fromkeys(self.origins.values()):
            named = [f"{name} {value}" for name, value in self.values.items() if self.origins[name] == origin]
            print(f"from the {origin}: {', '.join(named)}", file=sys.stderr)
        for name, trained in self.overridden.items():
            print(f"override: {name} is {self.values[name]} (flag), the checkpoint has {trained}", file=sys.stderr)


def find_sources(args: argparse.Namespace) -> list[Source]:
    """The checkpoints that the flags name, loaded and checked against the model they will act on."""
    folder = args.temporal_path_folder or args.checkpoint_folder
    strength = args.lora_scale if args.temporal_path_scale is None else args.temporal_path_scale
    wanted = (
        [(folder, "motion", strength, args.checkpoint_index, args.lora_rank, args.temporal_preset)] if folder else []
    )
    wanted += [(other, "motion", _number(text), None, None, None) for other, text in args.motion]
    if args.spatial_path_folder:
        wanted.append((args.spatial_path_folder, "appearance", args.spatial_path_scale, None, None, None))
    sources, unet = [], skeleton(str(locate(args.model))) if args.model else None
    for name, part, strength, index, rank, preset in wanted:
        path = _checkpoint_folder(name)
        moves = part == "motion"
        checkpoint = load_checkpoint(path, index, preset=preset, rank=rank, unet=unet, motion_needed=moves)
        clip = (
            (args.clip or 0) if len(checkpoint.appearance) > 1 else 0
        )  # the only looks there are belong to every clip
        if not moves and clip >= len(checkpoint.appearance):
            held = len(checkpoint.appearance)
            raise UserError(
                f"--spatial_path_folder: {name} "
                + (
                    f"holds the looks of clips 0 to {held - 1}, number {clip} was asked for; choose one with --clip"
                    if held
                    else "holds no appearance adapter; use a run of method=lora, or of embeddings.loss=hybrid"
                )
            )
        sources.append(Source(path, part, strength, clip, checkpoint))
        if unet is None and checkpoint.config:
            unet = skeleton(model_path(args, sources))
            check_fit(checkpoint, unet)
    return sources


def model_path(args: argparse.Namespace, sources: list[Source]) -> str:
    """The model folder: the flag's, else the one that the first checkpoint was trained on."""
    trained_on = next((s.checkpoint.config["pretrained_model_path"] for s in sources if s.checkpoint.config), None)
    if not (args.model or trained_on):
        raise UserError(
            "--model: not given, and no checkpoint tells which model it belongs to; point it at a ZeroScope "
            "folder, or use models/pocketscope"
        )
    return str(locate(args.model or trained_on))


def moving(sources: list[Source]) -> bool:
    """Whether any motion acts. At strength 0 none does, and what goes with a motion (highway, prior) stays away too."""
    return any(source.part == "motion" and source.strength for source in sources)


def resolve(args: argparse.Namespace, sources: list[Source], model: str) -> Settings:
    """One value for every choice. `args` wins over the checkpoint, the checkpoint over the model and the defaults."""
    checkpoint = sources[0].checkpoint if sources else None
    config = OmegaConf.create(checkpoint.config) if checkpoint and checkpoint.config else OmegaConf.create({})
    native = _native(Path(model))
    settings = Settings()
    for name in CONFIG_KEYS:
        settings.choose(
            name,
            ("flag", getattr(args, name)),
            ("checkpoint", OmegaConf.select(config, CONFIG_KEYS[name])),
            ("model", native.get(name)),
            ("release's default", RELEASE.get(name)),
        )
    settings.values["fps"] = settings.fps or RELEASE["fps"]  # a config may say 0: every frame
    if settings.pli_threshold is None:
        settings.values["pli_threshold"] = -1  # below every timestep: the adapted model predicts to the end
    _choose_highway(args, sources, config, settings)
    return settings


def _choose_highway(args, sources: list[Source], config, settings: Settings) -> None:
    """Scope and beta. The release's own files bring the release's highway, MotionDirector's and the base model none."""
    checkpoint = sources[0].checkpoint if sources else None
    still = bool(sources) and not moving(sources)
    trained = OmegaConf.select(config, "appearance_highway")
    published = checkpoint is not None and checkpoint.config is None and checkpoint.preset == "release"
    scope = None if trained is None else "off" if trained.use == "off" else trained.scope
    settings.choose(
        "highway",
        ("flag", args.highway or ("release" if args.freeu else None)),
        ("absence of motion", "off" if still else None),
        ("checkpoint", scope),
        ("release's default", "release" if published else "off"),
    )
    settings.choose(
        "beta",
        ("flag", args.beta),
        ("checkpoint", None if trained is None else trained.beta),
        ("release's default", RELEASE_FREEU[0]),
    )
    settings.choose(
        "freeu", ("flag", args.freeu), ("release's default", RELEASE_FREEU if published and not args.beta else None)
    )
    if settings.freeu and settings.highway != "release":
        if settings.origins["freeu"] == "flag":
            raise UserError(
                f"--freeu: its four scales belong to the release's highway, --highway is {settings.highway}; use --beta"
            )
        settings.values["freeu"] = None


def reference_clip(args: argparse.Namespace, sources: list[Source], settings: Settings) -> CachedClip | None:
    """The reference clip whose inversion starts the sampling, or None when the noise prior is 0.

    Without a flag the prior falls to 0 where there is no inversion, where no motion acts, and, for the authors' files,
    with several reference clips.
    """
    motion = next((source for source in sources if source.part == "motion"), None)
    places = [motion.folder / "cached_latents", motion.checkpoint.path.parent / "cached_latents"] if motion else []
    clips = next((read_folder(place) for place in places if place.is_dir()), [])
    number = args.clip if args.clip is not None else primary(clips) if clips else 0
    if clips and not 0 <= number < len(clips):
        raise UserError(f"--clip: {number} does not exist, the run has reference clips 0 to {len(clips) - 1}")
    inversion = clips[number].inversion if clips else None
    missing = (
        "no cached_latents lie beside the checkpoint"
        if not clips
        else "its cache holds no inversion"
        if inversion is None
        else "that clip is an image"
        if inversion.shape[2] == 1
        else None
    )
    origin = settings.origins["noise_prior"]
    if settings.noise_prior and origin == "flag":
        if missing:
            raise UserError(
                f"--noise_prior: {settings.noise_prior:g} of the reference's inversion was asked for, but "
                f"{missing}; use 0"
            )
    elif settings.noise_prior:
        several = len(clips) > 1 and origin == "release's default"
        reason = (
            "absence of an inversion"
            if missing
            else "absence of motion"
            if not moving(sources)
            else "number of reference clips"
            if several
            else None
        )
        if reason:
            settings.values["noise_prior"], settings.origins["noise_prior"] = 0.0, reason
    return None if missing else clips[number]


def _checkpoint_folder(name: str) -> Path:
    """A run or checkpoint folder for what people point at, also MotionDirector's .../checkpoint-300/temporal/lora."""
    path = locate(name)
    while not (path.is_dir() and list_checkpoints(path)) and (
        path.name in PARTS_OF_A_CHECKPOINT or (path.name.isdecimal() and path.parent.name == "spatial")
    ):
        path = path.parent
    return path


def _native(model: Path) -> dict[str, Any]:
    file = model / "sampling.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not a JSON object of sampling values ({error}); mend or delete it") from None


def _number(text: str) -> float:
    try:
        strength = float(text)
        if not math.isfinite(strength):
            raise ValueError
    except ValueError:
        raise UserError(f"--motion: strength {text!r} is not a number; write --motion FOLDER 0.5") from None
    return strength
