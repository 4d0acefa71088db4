"""Keys of older files of this family that are still accepted: each says, on one line, what replaced it.

They come from the authors' release, MotionDirector and the text-to-video finetuning code both grew from. A key that
still means something is moved to today's key. One that asks for what is not done here (use_offset_noise,
train_text_encoder, ...) says so in a note and the file runs, as published files must run unchanged; only a value that
would change what is trained on (extra_train_data) or means nothing (train_batch_size: 0) is an error.
"""

from typing import Any

from configs.errors import shown

REPLACED = {
    "cache_latents": "latents are always cached, by content, in cache_dir",
    "use_unet_lora": "method says what is trained",
    "use_text_lora": "the text encoder is never trained",
    "train_text_encoder": "the text encoder is never trained",
    "trainable_text_modules": "the text encoder is never trained",
    "text_encoder_lora_modules": "the text encoder is never trained",
    "lora_text_dropout": "the text encoder is never trained",
    "text_encoder_gradient_checkpointing": "prompts are encoded once and the text encoder leaves the device",
    "save_pretrained_model": "only adapters are saved; scripts/convert.py writes a merged model folder",
    "save_lora_for_webui": "scripts/convert.py writes other formats",
    "only_lora_for_webui": "scripts/convert.py writes other formats",
    "enable_xformers_memory_efficient_attention": "attention runs through PyTorch's SDPA, which needs no switch",
    "enable_torch_2_attn": "attention runs through PyTorch's SDPA, which needs no switch",
    "trainable_modules": "temporal_preset names the trained layers",
    "unet_lora_modules": "temporal_preset names the trained layers",
    "lora_version": "there is one LoRA format, PEFT's",
    "lora_bias": "the LoRAs have no bias",
    "lora_path": "resume_from_checkpoint continues a run; adapters alone can be sampled, not trained on",
    "resume_step": "the step is read from the checkpoint",
    "scale_lr": "learning_rate is used as written",
    "shuffle": "the order of clips derives from seed",
    "random_hflip_img": "images are not flipped, a cached latent has one orientation",
    "extend_dataset": "every clip is drawn equally often",
    "use_offset_noise": "the method trains on plain Gaussian noise",
    "offset_noise_strength": "the method trains on plain Gaussian noise",
    "rescale_schedule": "the model's own noise schedule is kept",
    "kwargs": "unused",
    "train_data.shuffle_frames": "frames keep their order",
    "train_data.vid_data_key": "json entries are recognised by video_path, video, path or file_name",
    "train_data.preprocessed": "json entries are recognised by video_path, video, path or file_name",
    "train_data.single_video_chunks": "one clip is cut from each video",
    "train_data.max_chunks": "one clip is cut from each video",
    "validation_data.vid_preview": "sample_preview switches the previews",
    "validation_data.freeu": "appearance_highway.beta is the scale of the skips",
}
TRACKERS = ("tensorboard", "wandb", "trackio", "none")
BATCH_SIZE = "train_batch_size"  # multiplies gradient_accumulation_steps, in whichever file either stands


def modernise(path: str, value: Any) -> tuple[dict[str, Any], str | None] | None:
    """What an old key means today.

    `path` is a dotted key with its `value`. Returns None when `path` is not an old key, else the keys to set in its
    place and the line to print (None: nothing to say). Raises ValueError, with what to do, for an impossible value.
    """
    if path in REPLACED:
        return {}, REPLACED[path]
    if path == "extra_train_data":
        if value:
            count = len(value) if isinstance(value, list | dict) else 1
            raise ValueError(f"{count} more sources; name every source in dataset_types and remove the key")
        return {}, None
    if path == "memory" and value == "low":
        return {"memory": "smallest"}, "low is smallest today: it streams the frozen model from the host"
    if (path, value) == ("lr_scheduler", "cosine_with_restarts"):
        return {"lr_scheduler": "cosine"}, "cosine_with_restarts had one cycle, without a restart; that is cosine"
    if path == "eval_train":
        return {"frozen_dropout": value is not True}, "frozen_dropout: false leaves the frozen model's dropout out"
    if path in ("logger", "logger_type"):
        tracker = "none" if value is False else value if value in TRACKERS else "tensorboard"  # YAML reads off as false
        return {"report_to": tracker}, f"report_to names it, and is {tracker}"
    return None


def batch_size(value: Any) -> int:
    """The clips in a batch that train_batch_size asks for. Raises ValueError when `value` is no count."""
    if type(value) is not int or not 1 <= value <= 10**5:
        raise ValueError(
            f"{shown(value)} is not a count of clips; remove the key or give a whole number from 1 to 100000"
        )
    return value
