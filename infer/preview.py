"""Previews in the middle of a training: the validation prompts, through the sampling that inference uses."""

import sys
from pathlib import Path

from configs.errors import UserError
from data.cache import CachedClip, primary
from infer.generate import sample_videos
from infer.pictures import contact_sheet, strip
from infer.settings import of_training
from infer.video import safe_name, write_video
from models.backbone import Backbone
from models.methods import Method


def preview(cfg, backbone: Backbone, method: Method, clips: list[CachedClip], folder: Path) -> Path | None:
    """Sample `cfg.validation_data` with the weights as they are; writes the videos and a sheet, whose path it returns.

    Highway, phased integration and solver are those that `infer/infer.py` would use; the noise prior is the release's
    0.5 unless it was chosen, and 0 with several reference clips or without an inversion. A preview that overflows is
    left out with a note, because it must not end a training. The U-Net is left in training mode.
    """
    wanted, settings, number = cfg.validation_data, of_training(cfg), primary(clips)
    inversion = clips[number].inversion
    if inversion is None or inversion.shape[2] == 1:
        settings.replace("noise_prior", 0.0, "absence of an inversion")
    elif len(clips) > 1 and wanted.noise_prior is None:
        settings.replace("noise_prior", 0.0, "number of reference clips")
    *texts, negative = backbone.encode_text([*wanted.prompt, settings.negative_prompt]).split(1)
    rows = []
    backbone.network.eval()
    try:
        for prompt, text in zip(wanted.prompt, texts, strict=True):
            customization = method.sampling(wanted.spatial_scale, number)
            try:
                (frames,) = sample_videos(
                    backbone, customization, settings, text, negative, seeds=[cfg.seed], inversion=inversion
                )
            except UserError as error:
                print(f"note: no preview of {prompt!r}: {error}", file=sys.stderr)
                continue
            rows.append((prompt, strip(frames)))
            write_video(folder / f"{safe_name(prompt)}.mp4", frames, fps=settings.fps)
    finally:
        backbone.network.train()
    return contact_sheet(folder / "sheet.png", rows) if rows else None
