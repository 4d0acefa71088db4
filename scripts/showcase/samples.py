"""Videos of a run: the clip that it learned from, and samples of the base and the customized model from one seed."""

from pathlib import Path

import torch
from omegaconf import DictConfig

from configs.errors import UserError
from configs.schema import load
from data.clips import Clip
from data.sources import load_clips
from infer import options
from infer.generate import generate
from infer.video import read_frames
from models.outline import snap_of


def config_of(run: Path) -> DictConfig:
    """The configuration that a run folder keeps. Raises UserError where there is none."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run}: no config.yaml there; give a run folder of train.py, outputs/train/NAME/train_TIME")
    return load(["--config", str(path)], description="")[0]


def clip_of(cfg: DictConfig) -> Clip:
    """The first reference clip of a configuration, cut as it is for training."""
    return load_clips(cfg, snap_of(cfg.pretrained_model_path))[0]


def sample_run(
    run: Path, prompts: list[str], seed: int, folder: Path, *, strength: float = 1.0, flags: tuple[str, ...] = ()
) -> list[tuple[Path, torch.Tensor]]:
    """(path, frames uint8 [f c h w]) of one video for each prompt, sampled into `folder`.

    `strength` 0 is the base model. `flags` are further ones of infer/infer.py.
    """
    words = ["--checkpoint_folder", str(run), "--output_dir", str(folder), "--seed", str(seed)]
    words += ["--lora_scale", str(strength), *flags, *options.prompt_words(prompts)]
    return [(path, read_frames(path)) for path in generate(options.parse(words))]
