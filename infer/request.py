"""What a sampling request comes down to: which checkpoints, which model, which settings, which reference clip."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.checks import written
from configs.errors import UserError, shown
from configs.paths import locate
from data.cache import CachedClip, primary, read_folder
from infer.choices import STRENGTH
from infer.settings import UNCHOSEN, Settings, resolve
from models.customization import Customization, customize
from models.files.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from models.files.fit import check_fit
from models.outline import skeleton

PARTS_OF_A_CHECKPOINT = ("lora", "spatial", "temporal")


@dataclass
class Source:
    """A checkpoint that gives motion or appearance, and how strongly.

    `clip` is the number of the reference clip whose appearance is meant.
    """

    folder: Path
    part: str  # "motion" | "appearance"
    strength: float
    clip: int
    checkpoint: Checkpoint

    def record(self) -> dict:
        """What the sidecar of a video keeps of it."""
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


@dataclass
class Request:
    """A request, complete but for the loaded model. `reference` is None where there is no inversion to start from."""

    sources: list[Source]
    model: str
    settings: Settings
    reference: CachedClip | None

    def customize(self, network, latent_size: tuple[int, int, int]) -> Customization:
        """The adapters of all sources on the plain network, until the patch is removed."""
        motions = [(s.checkpoint, s.strength) for s in self.sources if s.part == "motion"]
        appearances = [(s.checkpoint, s.clip, s.strength) for s in self.sources if s.part == "appearance"]
        settings = self.settings
        return customize(network, motions, appearances, settings.highway(), settings.embedding_sampling, latent_size)

    def report(self, device: torch.device) -> None:
        """Print on stderr what will be used, grouped by origin, and every override."""
        lines = [f"model: {self.model}"]
        trained_on = _trained_on(self.sources) or self.model
        if locate(trained_on).resolve() != Path(self.model).resolve():
            lines.append(f"override: model is {self.model} (flag), the checkpoint has {shown(trained_on)}")
        for source in self.sources:
            lines.append(
                f"{source.part}: {source.checkpoint.path} ({source.checkpoint.shape}), strength {source.strength:g}"
            )
            if assumed := source.checkpoint.info.get("assumed"):
                lines.append(f"note: {assumed}; --temporal_preset says otherwise")
        lines += self.settings.lines()
        if device.type == "cpu" and self.settings.precision != "no":
            lines.append(f"note: a CPU computes in fp32, so precision {self.settings.precision} does nothing here")
        print(*lines, sep="\n", file=sys.stderr)


def read_request(args: argparse.Namespace, sources: list[Source] | None = None) -> Request:
    """What the flags `args` (infer/options.py) ask for. Raises UserError for anything that cannot work.

    `sources` are those of an earlier request with the same checkpoints, which are then not read again.
    """
    sources = find_sources(args) if sources is None else sources
    model = model_path(args, sources)
    first = sources[0].checkpoint if sources else None
    settings = resolve(
        args,
        first.config or {} if first else {},
        Path(model),
        published=first is not None and first.config is None and first.preset == "release",
        has_motion=not sources or has_motion(sources),
    )
    clips = reference_clips(sources)
    clip = choose_reference(clips, args.clip)
    missing = no_inversion(clip)
    settle_noise_prior(settings, missing, has_motion(sources), len(clips))
    return Request(sources, model, settings, None if missing else clip)


def find_sources(args: argparse.Namespace) -> list[Source]:
    """The checkpoints that the flags name, loaded and checked against the model they will act on."""
    folder = args.temporal_path_folder or args.checkpoint_folder
    strength = args.lora_scale if args.temporal_path_scale is None else args.temporal_path_scale
    wanted = (
        [(folder, "motion", strength, args.checkpoint_index, args.lora_rank, args.temporal_preset)] if folder else []
    )
    wanted += [(other, "motion", _number(text), None, None, None) for other, text in args.motion]
    if args.spatial_path_folder:
        share = 1.0 if args.spatial_path_scale is None else args.spatial_path_scale
        wanted.append((args.spatial_path_folder, "appearance", share, None, None, None))
    sources, network = [], skeleton(str(locate(args.model))) if args.model else None
    for name, part, strength, index, rank, preset in wanted:
        path, moves = _checkpoint_folder(name), part == "motion"
        checkpoint = load_checkpoint(path, index, preset=preset, rank=rank, network=network, motion_needed=moves)
        clip = 0 if moves else _appearance_clip(args, name, path, checkpoint)
        sources.append(Source(path, part, strength, clip, checkpoint))
        if network is None and checkpoint.config:
            network = skeleton(model_path(args, sources))
            check_fit(checkpoint, network)
    return sources


def _appearance_clip(args: argparse.Namespace, name: str, path: Path, checkpoint: Checkpoint) -> int:
    """Number of the appearance adapter to take: as asked for, else the primary clip's; a single one belongs to all."""
    held = len(checkpoint.appearance)
    if not held:
        raise UserError(
            f"--spatial_path_folder: {name} holds no appearance adapter; use a run of method=lora, or of "
            "embeddings.loss=hybrid"
        )
    if held == 1 and not args.spatial_path_clip:
        return 0
    asked = args.clip if args.spatial_path_clip is None else args.spatial_path_clip
    clips = [] if asked is not None else cached_clips(path, checkpoint)
    clip = asked if asked is not None else primary(clips) if clips else 0
    if not 0 <= clip < held:
        raise UserError(
            f"--spatial_path_folder: {name} holds the appearance of clips 0 to {held - 1}, number {clip} was asked "
            "for; choose one with --spatial_path_clip"
        )
    return clip


def model_path(args: argparse.Namespace, sources: list[Source]) -> str:
    """The model folder: the flag's, else the one that the first checkpoint was trained on.

    A name inside a checkpoint is followed only to a folder of this machine: no file decides what is fetched.
    """
    if args.model:
        return str(locate(args.model))
    if not (trained_on := _trained_on(sources)):
        raise UserError(
            "--model: not given, and no checkpoint names the model it belongs to; point it at a ZeroScope folder, or "
            "use models/pocketscope"
        )
    if not locate(trained_on).is_dir():
        raise UserError(
            f"--model: not given, and the checkpoint was trained on {shown(trained_on)}, which is no folder here; give "
            "the folder of that model, or its hub id, with --model"
        )
    return str(locate(trained_on))


def _trained_on(sources: list[Source]) -> str | None:
    """The model named by the first checkpoint that names one."""
    named = ((source.checkpoint.config or {}).get("pretrained_model_path") for source in sources)
    return next((model for model in named if model), None)


def has_motion(sources: list[Source]) -> bool:
    """Whether any motion acts. At strength 0 none does, and what goes with a motion (highway, prior) stays away too."""
    return any(source.part == "motion" and source.strength for source in sources)


def cached_clips(folder: Path, checkpoint: Checkpoint) -> list[CachedClip]:
    """The reference clips whose latents lie in the run `folder` or beside its checkpoint; [] without any."""
    places = (folder / "cached_latents", checkpoint.path.parent / "cached_latents")
    return next((read_folder(place) for place in places if place.is_dir()), [])


def reference_clips(sources: list[Source]) -> list[CachedClip]:
    """The reference clips of the first motion; [] where there is no motion, or nothing is kept of them."""
    motion = next((source for source in sources if source.part == "motion"), None)
    return cached_clips(motion.folder, motion.checkpoint) if motion else []


def choose_reference(clips: list[CachedClip], number: int | None) -> CachedClip | None:
    """The clip that --clip names by its `number`, else the primary one; None without clips.

    Raises UserError for a number that no clip has.
    """
    if not clips:
        return None
    number = primary(clips) if number is None else number
    if not 0 <= number < len(clips):
        raise UserError(
            f"--clip: {number} does not exist, the run has reference clips 0 to {len(clips) - 1} (--spatial_path_clip "
            "chooses an appearance)"
        )
    return clips[number]


def no_inversion(clip: CachedClip | None) -> str | None:
    """Why a sampling cannot start from the inversion of `clip`, a part of a sentence; None where it can."""
    if clip is None:
        return "no cached_latents lie beside the checkpoint"
    if clip.latents.shape[2] == 1:
        return "that clip is an image"
    if clip.inversion is None:
        return "its cache holds no inversion"
    return None


def settle_noise_prior(settings: Settings, missing: str | None, moves: bool, clips: int) -> None:
    """Let the noise prior in `settings` fall to 0 where nothing can or should be taken from an inversion.

    `missing` says why there is none, `moves` whether any motion acts, `clips` is the number of reference clips: several
    have no one layout to start from, which counts unless somebody chose the prior. Raises UserError where a flag asks
    for an inversion that is missing; a flag is followed in every other case.
    """
    prior, origin = settings.noise_prior, settings.origins["noise_prior"]
    if not prior:
        return
    if origin == "flag":
        if missing:
            raise UserError(
                f"--noise_prior: {prior:g} of the reference clip's inversion was asked for, but {missing}; use 0"
            )
    elif missing:
        settings.replace("noise_prior", 0.0, "absence of an inversion")
    elif not moves:
        settings.replace("noise_prior", 0.0, "absence of motion")
    elif clips > 1 and origin in UNCHOSEN:
        settings.replace("noise_prior", 0.0, "number of reference clips")


def _checkpoint_folder(name: str) -> Path:
    """A run or checkpoint folder for what people point at, also MotionDirector's .../checkpoint-300/temporal/lora."""
    path = locate(name)
    while not (path.is_dir() and list_checkpoints(path)) and (
        path.name in PARTS_OF_A_CHECKPOINT or (path.name.isdecimal() and path.parent.name == "spatial")
    ):
        path = path.parent
    return path


def _number(text: str) -> float:
    try:
        return written(STRENGTH)(text)
    except ValueError as error:
        raise UserError(f"--motion: strength {shown(text)} is {error}; write --motion FOLDER 0.5") from None
