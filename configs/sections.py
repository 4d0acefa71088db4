"""The configuration's sections: keys that stand under a name of their own, such as train_data.width."""

from dataclasses import dataclass
from typing import Literal

from configs.key import LEAST_CUTOFF, MOST_FRAMES, MOST_STEPS, SIDE, TEXT, key


@dataclass
class TrainData:
    width: int = key(
        384, "width in pixels that clips are cut to (with use_bucketing: the largest it may be)", "clips", **SIDE
    )
    height: int = key(384, "height in pixels, likewise", "clips", **SIDE)
    use_bucketing: bool = key(
        True, "keep each clip's aspect ratio inside width x height, in steps the model can take; off: stretch", "clips"
    )
    sample_start_idx: int = key(
        1, "first frame taken from a clip's file, counted from 1 (0 is the first frame too)", "clips", low=0, high=10**7
    )
    fps: int = key(
        8,
        "frames a second to sample a video at (as near as its own rate allows); 0 takes every frame",
        "clips",
        low=0,
        high=1000,
    )
    frame_step: int = key(1, "take every n-th of the frames that fps leaves", "clips", low=1, high=10**6)
    n_sample_frames: int = key(16, "frames in a training clip", "clips", low=1, high=MOST_FRAMES)
    single_video_path: str | None = key(None, "single_video: the clip", "clips")
    single_video_prompt: str = key("", "single_video: its caption; default the .txt beside it", "clips", **TEXT)
    path: str | None = key(
        None, "folder: where the clips are (captions: clip.txt, metadata.jsonl or metadata.csv)", "clips"
    )
    fallback_prompt: str = key("", "folder: caption of the clips that have none of their own", "clips", **TEXT)
    json_path: str | None = key(None, "json: a list of clips with their prompts", "clips")
    image_dir: str | None = key(None, "image: one image or a folder of them, for one-frame clips", "clips")
    single_img_prompt: str = key(
        "",
        "image: caption of a single image, and of the images in a folder that have none of their own",
        "clips",
        **TEXT,
    )


@dataclass
class ValidationData:
    prompt: list[str] = key(list, "prompts of the preview videos; without any there are no previews", "nothing", **TEXT)
    negative_prompt: str = key("", "what the previews are steered away from", "nothing", **TEXT)
    sample_preview: bool = key(True, "make preview videos every validation_steps", "nothing")
    sample_at_first: bool = key(
        True,
        "make the base model's videos of the prompts before the first step: does it know this motion already?",
        "nothing",
    )
    side_by_side: bool = key(
        True,
        "end with a video and a picture of reference clip, base model and customized model (with a last preview)",
        "nothing",
    )
    num_frames: int | None = key(
        None, "frames of a preview; default as train_data.n_sample_frames", "nothing", low=1, high=MOST_FRAMES
    )
    width: int | None = key(None, "width of a preview in pixels; default as train_data.width", "nothing", **SIDE)
    height: int | None = key(None, "height of a preview in pixels; default as train_data.height", "nothing", **SIDE)
    num_inference_steps: int = key(30, "sampling steps", "nothing", low=1, high=MOST_STEPS)
    solver: Literal["ddim", "euler", "unipc", "dpm"] = key(
        "ddim",
        "sampling solver: ddim, as in the paper, or one of higher order for fewer steps: unipc, dpm; Wan takes euler, "
        "unipc (its own) and dpm",
        "nothing",
    )
    guidance_scale: float = key(12.0, "classifier-free guidance scale", "nothing", low=0, high=1000)
    guidance_rescale: float = key(
        0.0,
        "0 to 1: rescale the guided prediction to the conditional one's standard deviation (Lin et al. 2023)",
        "nothing",
        low=0,
        high=1,
    )
    guidance_interval: list[float] | None = key(
        None, "[LOW, HIGH]: guide only between these timesteps; default at every one", "nothing", low=0, high=1000
    )
    spatial_scale: float = key(
        0.0, "strength of the appearance adapter in previews (0: off, as in the paper)", "nothing", low=0, high=100
    )
    noise_prior: float | None = key(
        None,
        "share of the reference clip's inversion in the initial noise; default 0.5 in previews, and when sampling 0.2 "
        "for one reference clip and 0 for several",
        "nothing",
        low=0,
        high=1,
    )


@dataclass
class AppearanceHighway:
    use: Literal["sampling", "training", "off"] = key(
        "sampling", "sampling only, training (and sampling), or off; a transformer's default is off", "steps"
    )
    scope: Literal["all", "release", "plain", "value"] = key(
        "all",
        "all: every attention skip; release: the authors' code; plain: the scale without moving skips (Figure 3); "
        "value: a transformer's, Values from the model without its LoRAs",
        "steps",
    )
    beta: float = key(1.1, "scale of the skips", "steps", above=0, high=100)


@dataclass
class Embeddings:
    blocks: list[str] = key(["down", "up"], "sides of the U-Net that get embeddings: down, mid, up", "training")
    widths: list[int] | None = key(
        None, "channel widths of those blocks; default the widest", "training", low=1, high=65536
    )
    max_frames: int = key(
        32,
        "frames that an embedding holds, at least a clip's latent frames; longer videos interpolate between them",
        "training",
        low=1,
        high=MOST_FRAMES,
    )
    loss: Literal["base", "debiased", "hybrid"] = key(
        "base",
        "base: MSE; debiased: plus the debiased temporal loss; hybrid: plus the appearance adapter's pass",
        "training",
    )
    sampling: Literal["none", "difference", "drop_value"] = key(
        "none",
        "value embedding when sampling: as it is, difference (object motion), drop_value (camera motion)",
        "nothing",
    )
    learning_rate: float = key(0.02, "learning rate of the embeddings", "steps", above=0)


@dataclass
class InitialNoise:
    strategy: Literal["blend", "frequency", "blend_frequency", "fft"] = key(
        "blend",
        "how inversion and noise are mixed: by variance, low band from the inversion, both, or FreeInit's filter",
        "nothing",
    )
    cutoff: float = key(
        0.25, "edge of the low band, as a share of the highest frequency", "nothing", low=LEAST_CUTOFF, high=1
    )
