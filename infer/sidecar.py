"""A finished video and, beside it, the JSON that is enough to make it again."""

import argparse
import json
from pathlib import Path

import diffusers
import torch

from configs.files import alone_in, atomic_path
from configs.signals import held
from infer.request import Request
from infer.video import safe_name, write_video
from models.backbone import Backbone

SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "frames": ""}


def shared_record(args: argparse.Namespace, request: Request, backbone: Backbone) -> dict:
    """The part of the sidecar that all videos of one command share."""
    reference, sources = request.reference, request.sources
    return {
        "model": backbone.path,
        "model_fingerprint": backbone.fingerprint(),
        "settings": request.settings.values,
        "origins": request.settings.origins,
        "sources": [source.record() for source in sources],
        "reference": reference and {"prompt": reference.prompt, "name": reference.name},
        "file": {"format": args.format, "quality": args.quality},
        "attention": "xformers" if args.xformers else "sdpa",
        "config": sources[0].checkpoint.config if sources else None,
        "device": str(backbone.device),
        "precision": str(backbone.dtype).removeprefix("torch."),
        "memory": backbone.memory,
        "compile": args.compile,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }


def write(folder: Path, prompt: str, seed: int, frames: torch.Tensor, record: dict, cost: dict) -> Path:
    """Write uint8 `frames` [f c h w] and their sidecar into `folder`; returns the video's path.

    Both appear complete or not at all. A video of other settings under the same name is kept, and so is a file that
    has no sidecar: the new one gets a number. `record` is a `shared_record`, `cost` what the video took to make, which
    says nothing about the video.
    """
    suffix = SUFFIXES[record["file"]["format"]]
    stem, number = f"{safe_name(prompt)}_seed{seed}", 1
    sidecar = {"prompt": prompt, "seed": seed, **record}
    with alone_in(folder):  # another process may sample the same prompt and seed with other settings
        while True:
            name = f"{stem}{f'_{number}' if number > 1 else ''}"
            path, notes = folder / f"{name}{suffix}", folder / f"{name}.json"
            if _same(notes, sidecar) if notes.exists() else not path.exists():
                break
            number += 1
        with held(), atomic_path(notes) as unfinished:  # its name comes after the video's, with no signal in between
            unfinished.write_text(json.dumps({"video": path.name, **sidecar, **cost}, indent=2), encoding="utf-8")
            write_video(path, frames, fps=record["settings"]["fps"], quality=record["file"]["quality"])
    return path


def _same(notes: Path, sidecar: dict) -> bool:
    try:
        written = json.loads(notes.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(written, dict) and {key: written.get(key) for key in sidecar} == json.loads(json.dumps(sidecar))
