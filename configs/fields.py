"""Every configuration key: its name, type, default, limits, one line of help, and what of a training it shapes.

Commands take their defaults from here. Names and defaults are those of the authors' release (train.py and its configs)
wherever the release has the key. The limits in a key's metadata are checked when a configuration is loaded; the upper
ones are far above what any card can hold and only stop slips of the keyboard. Sizes are in pixels, learning rates are
AdamW's.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from configs.key import EVERY, MOST_STEPS, key, section
from configs.sections import AppearanceHighway, Embeddings, InitialNoise, TrainData, ValidationData


@dataclass
class Config:
    pretrained_model_path: str = key(
        "./models/zeroscope_v2_576w/", "model folder of ZeroScope, ModelScope or Wan, or a hub id", "steps"
    )
    base: str | None = key(
        None,
        "in a file only: a YAML file, found beside this one or in the repository, whose keys this file changes",
        "nothing",
    )
    fallback: str | None = key(
        None,
        "in a file only: a YAML file merged over this one when the model folder that it names does not exist",
        "nothing",
    )
    dataset_types: list[str] = key(
        ["single_video"], "what to train on: single_video, folder, json, image; several allowed", "clips"
    )
    train_data: TrainData = section(TrainData, "where the clips come from, and how they are cut")
    validation_data: ValidationData = section(
        ValidationData, "preview videos in the middle of a training, and what sampling takes from the checkpoint"
    )

    method: Literal["lora", "motion_inversion"] = key("lora", "how motion is learned", "training")
    temporal_preset: Literal[
        "tap",
        "tap_key",
        "release",
        "motiondirector",
        "query",
        "value",
        "out",
        "ff",
        "qk_out",
        "value_out_ff",
        "tap_temporal",
        "tap_pure",
        "effivmt",
    ] = key(
        "tap",
        "which layers of the temporal transformers the motion LoRA adapts, of a diffusion transformer those of its "
        "self-attention; tap_temporal, tap_pure and effivmt take its temporal heads only",
        "training",
    )
    block_range: list[float] | None = key(
        None,
        "[FIRST, LAST]: motion adapters only between these shares of a transformer's depth, such as [0, 0.5]",
        "training",
        low=0,
        high=1,
    )
    include_patterns: list[str] | None = key(
        None,
        "regular expressions: further linear layers of the temporal transformers whose whole name matches one",
        "training",
    )
    exclude_patterns: list[str] | None = key(
        None,
        "regular expressions: layers of the preset that are not adapted; include_patterns win over these",
        "training",
    )
    lora_rank: int = key(32, "rank of the LoRAs (clipped to the layer's width)", "training", low=1, high=65536)
    lora_alpha: float | None = key(
        None, "LoRA scale is alpha / rank; default alpha = rank", "training", above=0, high=10**6
    )
    lora_unet_dropout: float = key(0.1, "LoRA dropout", "steps", low=0, high=0.99)
    lora_dropout_placement: Literal["release", "peft"] = key(
        "release", "release: after the up projection; peft: before the down projection", "steps"
    )
    frozen_dropout: bool = key(
        True,
        "the frozen model's own dropout, in the temporal convolutions, acts in training as in the release",
        "steps",
    )
    single_spatial_lora: bool = key(False, "one appearance adapter for all clips instead of one each", "steps")
    train_temporal_lora: bool = key(True, "learn the motion; off learns only appearance adapters", "steps")
    appearance_highway: AppearanceHighway = section(
        AppearanceHighway, "the paper's appearance highway: moved and scaled skip connections"
    )
    pli_threshold: int | None = key(
        None, "phased LoRA integration: at and below this timestep the plain model predicts", "nothing", low=0, high=999
    )
    spatial_path_probability: float = key(
        0.8, "share of steps that also run the appearance pass", "steps", low=0, high=1
    )
    debias_beta: float = key(1.0, "beta of the appearance-debiased temporal loss", "steps", low=0, high=1000)
    embeddings: Embeddings = section(Embeddings, "Motion Inversion's embeddings, for method: motion_inversion")
    initial_noise: InitialNoise = section(InitialNoise, "how the reference clip's inversion enters the initial noise")
    inversion_steps: int = key(50, "DDIM steps of the reference clip's inversion", "nothing", low=1, high=MOST_STEPS)

    # linear, cosine and polynomial end there: where it is raised for a run, models/training/resume.py says what changes
    max_train_steps: int = key(1000, "optimizer steps", "nothing", **EVERY)
    learning_rate: float = key(5e-4, "learning rate of the LoRAs", "steps", above=0)
    optimizer: Literal["adamw", "prodigy"] = key(
        "adamw",
        "adamw, or prodigy (needs prodigyopt), which finds the rate itself: learning_rate multiplies it, set it to 1",
        "steps",
    )
    lora_plus_ratio: float = key(
        1.0, "LoRA+: learning rate of each LoRA's second factor B, as a multiple of A's", "steps", low=1, high=1000
    )
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine", "polynomial"] = key(
        "constant", "learning-rate schedule", "steps"
    )
    lr_warmup_steps: int = key(
        0,
        "steps over which the learning rate rises from 0, with every lr_scheduler but constant",
        "steps",
        low=0,
        high=10**9,
    )
    gradient_accumulation_steps: int = key(
        1, "clips whose gradients make one optimizer step", "steps", low=1, high=10**5
    )
    timesteps_per_step: int = key(
        1, "timesteps drawn for a clip in one pass (a batch of noised copies)", "steps", low=1, high=1000
    )
    min_timestep: int = key(0, "lowest timestep trained on", "steps", low=0, high=999)
    max_timestep: int = key(999, "highest timestep trained on", "steps", low=0, high=999)
    adam_beta1: float = key(0.9, "AdamW beta 1", "steps", low=0, high=0.9999)
    adam_beta2: float = key(0.999, "AdamW beta 2", "steps", low=0, high=0.99999)
    adam_epsilon: float = key(1e-8, "AdamW epsilon", "steps", above=0, high=1)
    adam_weight_decay: float = key(1e-2, "AdamW weight decay", "steps", low=0, high=1000)
    max_grad_norm: float | None = key(
        None, "clip the gradient norm of each path to this; default no clipping", "steps", above=0, high=10**6
    )
    use_8bit_adam: bool = key(False, "AdamW with 8-bit state (needs bitsandbytes and CUDA)", "steps")
    seed: int = key(0, "every random draw of a run derives from it and the step", "training", low=0, high=2**63 - 1)

    mixed_precision: Literal["no", "fp16", "bf16"] = key(
        "fp16", "precision of the frozen model; adapters stay in fp32 (on a CPU everything does)", "steps"
    )
    gradient_checkpointing: bool = key(
        True, "recompute activations in the backward pass: less memory, more time", "nothing"
    )
    memory: Literal["default", "small", "smallest"] = key(
        "default",
        "where the frozen model waits: on the device (default), there in 8 bits (small), or on the host, from where it "
        "visits the device layer by layer (smallest)",
        "steps",
    )
    compile: Literal["off", "blocks", "step"] = key(
        "off",
        "torch.compile for the network's layers: blocks; step also replays them as CUDA graphs; the first step takes "
        "minutes then",
        "steps",
    )
    device: str = key("auto", "auto (CUDA, else MPS, else CPU) or a device name such as cuda:1", "steps")
    threads: int | None = key(
        None,
        "CPU threads; default OMP_NUM_THREADS, else 1 for a small model, else one a core; with 2 or more, or the "
        "default on as many cores, a small model trains in two processes of 1 thread where that gives the same result",
        "steps",
        low=1,
        high=1024,
    )

    output_dir: str = key("./outputs/train", "a run writes into output_dir/train_<timestamp>", "nothing")
    cache_dir: str = key(
        "./outputs/cache", "latents, text embeddings and inversions, keyed by content, shared by runs", "nothing"
    )
    cached_latent_dir: str | None = key(
        None, "read these cached clips (ours, or the release's cached_*.pt) in place of train_data", "clips"
    )
    checkpointing_steps: int = key(200, "save checkpoint-N every so many steps", "nothing", **EVERY)
    checkpoints_total_limit: int | None = key(None, "keep at most so many checkpoints", "nothing", **EVERY)
    resume_from_checkpoint: str | None = key(
        None, "the run to continue: latest, a run folder or a checkpoint-N folder of one", "nothing"
    )
    license: str | None = key(
        None,
        "license of what is trained, for header and model card, as the hub names it: apache-2.0, cc-by-nc-4.0",
        "nothing",
    )
    validation_steps: int = key(1000, "make previews every so many steps", "nothing", **EVERY)
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = key(
        "none",
        "where losses, norms, rates and previews go besides log.jsonl and the loss plot; wandb works offline",
        "nothing",
    )

    # the keys that a file or the command line set; the program writes it, and nobody sets it
    chosen: list[str] = field(default_factory=list)


def _flatten(schema: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> dataclass field; without the sections themselves and what has no help, which nobody sets."""
    found = {}
    for entry in fields(schema):
        if not entry.metadata:
            continue
        nested = entry.type if is_dataclass(entry.type) else None
        found |= _flatten(nested, f"{prefix}{entry.name}.") if nested else {prefix + entry.name: entry}
    return found


KEYS = _flatten(Config)
SECTIONS = {entry.name: entry.metadata["help"] for entry in fields(Config) if is_dataclass(entry.type)}
CHOSEN = "chosen"
