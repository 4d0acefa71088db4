"""What a choice of sampling may be: one table for flags, lines of a prompt file and a model's sampling.json.

A choice that a configuration knows has the limits of that key (configs/fields.py), so that what a training accepts for
its previews is what sampling accepts. Imports nothing slow.
"""

from typing import Any, get_args

from configs.checks import Check, listed, of_type, real, single, text, whole
from configs.fields import KEYS
from configs.key import MOST_STEPS

CONFIG_KEYS = {  # choice -> where a checkpoint's configuration keeps it
    "width": "validation_data.width",
    "height": "validation_data.height",
    "num_frames": "validation_data.num_frames",
    "num_steps": "validation_data.num_inference_steps",
    "solver": "validation_data.solver",
    "guidance_scale": "validation_data.guidance_scale",
    "guidance_rescale": "validation_data.guidance_rescale",
    "guidance_interval": "validation_data.guidance_interval",
    "noise_prior": "validation_data.noise_prior",
    "negative_prompt": "validation_data.negative_prompt",
    "fps": "train_data.fps",
    "pli_threshold": "pli_threshold",
    "noise_strategy": "initial_noise.strategy",
    "noise_cutoff": "initial_noise.cutoff",
    "embedding_sampling": "embeddings.sampling",
    "precision": "mixed_precision",
}
# what the release's infer.py assumes where nobody chose; a training's sizes and noise prior follow its clips
RELEASE = {name: KEYS[key].default for name, key in CONFIG_KEYS.items()}
RELEASE |= {"width": 384, "height": 384, "num_frames": 16, "noise_prior": 0.2}
RELEASE_FREEU = [1.1, 1.0, 1.0, 1.0]
# motion guidance (infer/guidance.py) unless flags or the model's sampling.json say otherwise: FlowMotion's values
GUIDANCE = {"updates": 3, "rate": 0.003, "weights": (20.0, 5.0), "across": 0.1, "target": "predicted"}
FLAG_KEYS = CONFIG_KEYS | {  # flag -> key of the same meaning; these are of one command, or are resolved by themselves
    "highway": "appearance_highway.scope",
    "beta": "appearance_highway.beta",
    "lora_rank": "lora_rank",
    "seed": "seed",
    "memory": "memory",
    "compile": "compile",
    "threads": "threads",
}
LEAST = {"fps": 1}  # where the key's own least value means something else: 0 stands for every frame of a clip
STRENGTH = real(-100, 100)  # of an adapter
TARGETS = ("predicted", "clean_latent")
GUIDE_WEIGHT = real(0, 1e6)
GUIDE_CHECKS = {  # motion guidance has no key: a flag, or a model's own, which acts where --guide asks for it
    "guide_steps": whole(1, MOST_STEPS),
    "guide_updates": whole(1, 100),
    "guide_rate": real(0, 10),
    "guide_weights": listed(GUIDE_WEIGHT, 2, 2),
    "guide_across": real(0, 1),
    "guide_target": text(choices=TARGETS),
}


def check_of(flag: str) -> Check:
    """What one value of a flag must be, by the key that it stands for."""
    entry = KEYS[FLAG_KEYS[flag]]
    limits: dict[str, Any] = {**entry.metadata}
    if flag in LEAST:
        limits["low"] = LEAST[flag]
    return of_type(single(entry.type), limits)


def words_of(flag: str) -> tuple[str, ...]:
    """The words that a flag may be, those of the key that it stands for."""
    return get_args(single(KEYS[FLAG_KEYS[flag]].type))
