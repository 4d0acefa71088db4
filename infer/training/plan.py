"""What comes before a training costs anything: checks of its surroundings, and a plan for each reference clip."""

from pathlib import Path

from omegaconf import DictConfig

from configs.errors import UserError, printable
from configs.files import check_writable
from configs.limits import contradictions
from configs.paths import locate
from data.cache import primary, read_folder
from data.clips import read_image
from data.inspection import inspect_video
from data.sources import plan_clips
from infer.batch import check_sequences, check_sides
from infer.choices import RELEASE
from infer.settings import read_native
from infer.training.preview import check_solver_of_previews
from models import backbones, methods
from models.backbone import choose_device
from models.files.pipeline import check_folder, check_pipeline
from models.outline import latent_size_of, scheduler_of, sides_of, skeleton, snap_of
from models.training import objective
from models.training.optimizer_kinds import check_optimizer
from models.training.trackers import check_tracker

MOST_CLIPS = 16  # of a long list; each takes up to a second


def check(cfg: DictConfig) -> None:
    """Raise UserError, before anything large is loaded, where a folder, a package or the model would end a training.

    `cfg` holds the model's own defaults (backbones.settled), which can contradict what somebody chose.
    """
    if wrong := contradictions(cfg):
        raise UserError(wrong[0])
    for folder in (cfg.output_dir, cfg.cache_dir):
        check_writable(Path(folder))
    check_tracker(cfg.report_to)
    check_optimizer(cfg)
    check_folder(model := cfg.pretrained_model_path)
    if Path(model).is_dir():
        check_pipeline(Path(model))
    objective.check_scheduler(scheduler_of(model), cfg.max_timestep)
    check_solver_of_previews(cfg)
    size = latent_size_of_clips(cfg)
    if choose_device(cfg.device).type == "cuda":
        each, sides = backbones.kind_of_model(model).sequences(*size[1:]), (cfg.train_data.width, cfg.train_data.height)
        advice = "{} or fewer", "smaller clips"
        check_sequences("timesteps_per_step", cfg.timesteps_per_step, each, sides, advice)
    methods.attach(skeleton(model), cfg, clips=1, latent_size=size)  # needs no weights


def plan(cfg) -> list[str]:
    """The lines for the clips of `cfg`, videos and images. Raises UserError for a clip that cannot be used, and for
    sizes that the model cannot take.
    """
    check_sizes(cfg)
    if cfg.cached_latent_dir:
        return [printable(f"plan: the clips cached in {cfg.cached_latent_dir}, whose frames are not looked at again")]
    native, lines = read_native(locate(cfg.pretrained_model_path)), []
    made_for = (native["width"], native["height"]) if {"width", "height"} <= native.keys() else None
    clips = plan_clips(cfg, snap_of(cfg.pretrained_model_path))
    for clip in clips[:MOST_CLIPS]:
        if clip.reader is read_image:
            lines.append(printable(f"plan: {clip.path}: an image, for the appearance alone"))
        else:
            lines += inspect_video(clip.path, clip.cut, playing_rate(cfg, native), made_for).lines()
    if (more := len(clips) - MOST_CLIPS) > 0:
        lines.append(f"plan: and {more} more, which were not looked at")
    if all(clip.reader is read_image for clip in clips):
        lines.append("warning: images alone teach no motion; add a clip, or use the run as a --spatial_path_folder")
    return lines


def check_sizes(cfg) -> None:
    """Raise UserError for a size or a length, of clips or of previews that are made, which the model cannot take."""
    asked = []
    if not cfg.cached_latent_dir:
        asked.append(("train_data", _frames_of_clips(cfg)))
    if cfg.validation_data.sample_preview and cfg.validation_data.prompt:
        asked.append(("validation_data", cfg.validation_data.num_frames))
    factor = sides_of(cfg.pretrained_model_path) if asked else 1
    for section, frames in asked:
        width, height = cfg[section].width, cfg[section].height
        check_sides({f"{section}.width": width, f"{section}.height": height}, factor)
        latent_size_of(cfg.pretrained_model_path, frames, height, width)


def latent_size_of_clips(cfg) -> tuple[int, int, int]:
    """Frames, height and width, in latent pixels, of the clip that the memory of a step is counted for."""
    if cfg.cached_latent_dir:
        clips = read_folder(cfg.cached_latent_dir)
        return tuple(clips[primary(clips)].latents.shape[2:])
    data = cfg.train_data
    return latent_size_of(cfg.pretrained_model_path, _frames_of_clips(cfg), data.height, data.width)


def _frames_of_clips(cfg) -> int:
    return 1 if set(cfg.dataset_types) == {"image"} else cfg.train_data.n_sample_frames


def playing_rate(cfg, native: dict) -> int:
    """Frames a second of what will be sampled: as chosen for the clips, else the model's own rate."""
    chosen = cfg.train_data.fps if "train_data.fps" in cfg.chosen else None
    return chosen or native.get("fps") or cfg.train_data.fps or RELEASE["fps"]
