"""What other programs read of an adapter: Stability's model spec (`modelspec.*`) and kohya's `ss_*` keys.

Both stand in the safetensors header beside our own keys and repeat what those say; nothing here reads them back. The
same training writes the same bytes: the date is SOURCE_DATE_EPOCH's where that is set, else that of the run's start,
which its folder is named by and which a resumed run keeps. https://github.com/Stability-AI/ModelSpec
"""

import hashlib
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from configs.errors import UserError

VERSION = "1.0.1"
PREFIXES = ("modelspec.", "ss_")
SPEC, HASH, THUMBNAIL = "modelspec.sai_model_spec", "modelspec.hash_sha256", "modelspec.thumbnail"
LARGEST_THUMBNAIL = 32 << 10  # letters of a header; the spec asks for "very small"
FAMILIES = {"320/640/1280/1280": "text-to-video-ms-1.7b"}  # widths of the U-Net: ModelScope's, which ZeroScope kept
START = re.compile(r"train_(\d{4}-\d\d-\d\d)T(\d\d)-(\d\d)-(\d\d)")


def model_spec(
    cfg: Any,
    info: Mapping[str, Any],
    run: Path,
    step: int,
    *,
    caption: str,
    thumbnail: str | None = None,
    clips: int = 1,
    size: tuple[int, int] | None = None,
) -> dict[str, str]:
    """The header's texts for the adapter of configuration `cfg` after `step` steps of the run in the folder `run`.

    `info` is what our own header says of the method, `caption` the reference clip's (of several `clips` that of the
    representative one), `thumbnail` a small picture as a data URL, `size` the width and height that the clip was cut
    to, where they are known. What has no value is left out.
    """
    data, model = cfg.train_data, Path(cfg.pretrained_model_path).name
    width, height = size or (data.width, data.height)
    shape = info.get("preset") or "motion embeddings"
    date, name = date_of(run), run_name(cfg)
    learned_from = "a clip that shows" if clips == 1 else f"{clips} clips, such as one that shows"
    spec = {
        "sai_model_spec": VERSION,
        "architecture": f"{_family(info)}/{'lora' if 'preset' in info else 'motion-embeddings'}",
        "implementation": "diffusers",
        "title": f"{name} ({shape})",
        "description": f'A motion for {model}, learned from {learned_from} "{caption}".',
        "date": date and date.isoformat().replace("+00:00", "Z"),
        "license": cfg.license,
        "resolution": f"{width}x{height}",
        "trigger_phrase": caption,
        "usage_hint": "Say what the new video shows; the motion needs no words.",
        "timestep_range": f"{cfg.min_timestep},{cfg.max_timestep}",
        "thumbnail": thumbnail,
    }
    kohya = {
        "output_name": name,
        "sd_model_name": model,
        "base_model_version": _family(info),
        "network_module": "peft.tuners.lora" if "preset" in info else "motion_inversion",
        "network_dim": info.get("rank"),
        "network_alpha": info.get("alpha"),
        "network_dropout": cfg.lora_unet_dropout if "preset" in info else None,
        "training_started_at": date and date.timestamp(),
        "steps": step,
        "max_train_steps": cfg.max_train_steps,
        "learning_rate": cfg.learning_rate if "preset" in info else cfg.embeddings.learning_rate,
        "lr_scheduler": cfg.lr_scheduler,
        "lr_warmup_steps": cfg.lr_warmup_steps,
        "optimizer": "AdamW8bit" if cfg.use_8bit_adam else {"adamw": "AdamW", "prodigy": "Prodigy"}[cfg.optimizer],
        "gradient_accumulation_steps": cfg.gradient_accumulation_steps,
        "max_grad_norm": cfg.max_grad_norm,
        "mixed_precision": cfg.mixed_precision,
        "resolution": f"({width}, {height})",
        "num_frames": data.n_sample_frames,
        "seed": cfg.seed,
    }
    texts = {f"modelspec.{key}": value for key, value in spec.items()}
    texts |= {f"ss_{key}": value for key, value in kohya.items()}
    return {key: str(value) for key, value in texts.items() if value is not None}


def with_hash(header: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """`header` with the SHA-256 of the file's tensors, where it follows the spec; `tensors` lie on the CPU.

    safetensors writes tensors of one type in the order of their names, and the hash is over the file's bytes after its
    header. Where types are mixed there is no hash.
    """
    header = {key: value for key, value in header.items() if key != HASH}
    if SPEC not in header or len({tensor.dtype for tensor in tensors.values()}) != 1:
        return header
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())  # an alpha has no dimension
    return header | {HASH: f"0x{digest.hexdigest()}"}


def without_spec(header: Mapping[str, str]) -> dict[str, str]:
    """`header` without what is written here: an appearance adapter is no model of its own."""
    return {key: value for key, value in header.items() if not key.startswith(PREFIXES)}


def run_name(cfg: Any) -> str:
    """A run's name for people: the last folder of output_dir."""
    return Path(cfg.output_dir).name or "motion"


def date_of(run: Path) -> datetime | None:
    """When the run began, by the clock of the machine, or what SOURCE_DATE_EPOCH says, in UTC; None without either.

    Raises UserError for a SOURCE_DATE_EPOCH that is no time.
    """
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        try:
            return datetime.fromtimestamp(int(epoch), UTC)
        except (ValueError, OverflowError, OSError):
            raise UserError("SOURCE_DATE_EPOCH: is no count of seconds since 1970; correct or unset it") from None
    found = START.match(run.name)
    try:
        return datetime.fromisoformat(f"{found[1]}T{found[2]}:{found[3]}:{found[4]}") if found else None
    except ValueError:
        return None


def _family(info: Mapping[str, Any]) -> str:
    """The architecture by name: adapters of one family fit each other's models."""
    architecture = str(info.get("architecture", ""))
    if heads := re.search(r"(\d+) heads of (\d+)", architecture):
        return f"wan-{int(heads[1]) * int(heads[2])}"
    widths = re.search(r"channels ([\d/]+)", architecture)
    return FAMILIES.get(widths[1], f"unet3d-{widths[1].replace('/', '-')}") if widths else "unet3d"
