"""What a configuration may hold: kinds and limits of single values, and keys that contradict each other."""

import difflib
import math
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs.checks import no_interval
from configs.errors import shown
from configs.fields import KEYS
from configs.key import type_words

SOURCE_KEYS = {"single_video": "single_video_path", "folder": "path", "json": "json_path", "image": "image_dir"}
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")  # as SPDX and the hub write them
SIDES = ("down", "mid", "up")
LEAST_MULTIPLE = 0.1  # of the rate that Prodigy finds; less is a rate that was meant for AdamW
MOST_LETTERS_OF_A_NAME, MOST_LETTERS_OF_A_PROMPT = 4096, 100_000  # paths are names, captions are prompts


def unfit(entry: Any, value: Any) -> str | None:
    """Why `value` cannot be a value of the key `entry`, before any conversion, or None when nothing speaks against it.

    A file is data: nothing in it is looked up elsewhere, so `${...}` is text in a prompt and an error anywhere else.
    """
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, list | dict):
            inside = "the list holds " if item is not value else ""
            quotes = "; put text with `: ` in it in quotes" if isinstance(item, dict) else ""
            return f"{inside}{shown(item)} in place of a single value; it takes {type_words(entry)}{quotes}"
        if isinstance(item, bool) and not ("bool" in type_words(entry) or " | " in type_words(entry)):
            return (
                f"{shown(item)} in place of {type_words(entry)}; put a word that YAML reads as true or false in quotes"
            )
        if isinstance(item, str) and (reason := _unfit_text(item, "text" in entry.metadata)):
            return f"{shown(item)} {reason}"
    return None


def _unfit_text(text: str, prompt: bool) -> str | None:
    if "${" in text and not prompt:
        return "holds ${...}, and nothing is looked up in a configuration; write the value itself"
    if "\0" in text:
        return "holds a NUL character, which no path and no text may; remove it"
    if len(text) > (most := MOST_LETTERS_OF_A_PROMPT if prompt else MOST_LETTERS_OF_A_NAME):
        return f"has {len(text)} characters; at most {most} are read"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not UTF-8 text; write it in UTF-8"
    if not prompt and not text.isprintable():
        return "holds a character that acts on a terminal and is no part of a name; remove it"
    return None


def beyond(path: str, value: Any, limits: dict[str, Any]) -> list[str]:
    """What is wrong with a key's value by the limits in its field's metadata, a sentence for each part of it."""
    if value is None or isinstance(value, str):
        return []
    if hasattr(value, "__len__"):
        return [sentence for part in value for sentence in beyond(path, part, limits)]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{path}: {value} is not a finite number; give one"]
    wrong = [
        f"{text} {limits[name]}"
        for name, text, holds in (
            ("low", "at least", lambda edge: value >= edge),
            ("high", "at most", lambda edge: value <= edge),
            ("above", "more than", lambda edge: value > edge),
            ("multiple", "a multiple of", lambda edge: value % edge == 0),
        )
        if name in limits and not holds(limits[name])
    ]
    return [f"{path}: {shown(value)} must be {' and '.join(wrong)}"] if wrong else []


def contradictions(cfg: DictConfig) -> list[str]:
    """Values that are fine alone and not together, a sentence each."""
    wrong, images = [], "image" in cfg.dataset_types
    if not cfg.dataset_types:
        wrong.append(f"dataset_types: empty; name one or more of {', '.join(SOURCE_KEYS)}")
    for kind in cfg.dataset_types:
        if kind not in SOURCE_KEYS:
            close = difflib.get_close_matches(kind[:80], SOURCE_KEYS, 1) or list(SOURCE_KEYS)
            wrong.append(f"dataset_types: {shown(kind)} is unknown{did_you_mean(close)}")
        elif cfg.train_data[SOURCE_KEYS[kind]] is None and cfg.cached_latent_dir is None:
            wrong.append(
                f"train_data.{SOURCE_KEYS[kind]}: not set, and dataset_types asks for {kind}; point it at your data, "
                "or give --config FILE, such as configs/car.yaml"
            )
    if not cfg.embeddings.blocks:
        wrong.append(f"embeddings.blocks: empty; name one or more of {', '.join(SIDES)}")
    for side in cfg.embeddings.blocks:
        if side not in SIDES:
            wrong.append(f"embeddings.blocks: {shown(side)} is unknown; there are {', '.join(SIDES)}")
    if cfg.embeddings.widths is not None and not cfg.embeddings.widths:
        wrong.append("embeddings.widths: empty; name widths such as [320], or null for the widest blocks")
    if cfg.min_timestep > cfg.max_timestep:
        wrong.append(f"min_timestep: {cfg.min_timestep} is above max_timestep {cfg.max_timestep}; swap or widen them")
    if cfg.lr_scheduler == "polynomial" and cfg.lr_warmup_steps == cfg.max_train_steps:
        wrong.append(
            f"lr_warmup_steps: {cfg.lr_warmup_steps} is the whole of max_train_steps, and lr_scheduler polynomial has "
            "no step left to fall in; make it smaller"
        )
    if not (cfg.train_temporal_lora or cfg.spatial_path_probability or images or cfg.cached_latent_dir):
        wrong.append(
            "train_temporal_lora: off, and spatial_path_probability is 0, so nothing would be learned; set one of them"
        )
    if cfg.memory != "default" and not cfg.gradient_checkpointing:
        wrong.append(
            f"memory: {cfg.memory} drops a layer's weights once it is computed, so activations must be recomputed; set "
            "gradient_checkpointing to true"
        )
    if cfg.memory != "default" and cfg.compile != "off":
        wrong.append(
            f"compile: {cfg.compile} needs the frozen model as it is and memory is {cfg.memory}; set one of the two to "
            "its default"
        )
    if cfg.compile == "step" and cfg.gradient_checkpointing:
        wrong.append(
            "compile: step replays CUDA graphs, which cannot be recomputed in the backward pass; set "
            "gradient_checkpointing to false, or compile to blocks"
        )
    if cfg.optimizer == "prodigy":
        wrong += _of_prodigy(cfg)
    if cfg.license is not None and not LICENSE.fullmatch(cfg.license):
        wrong.append(f"license: {shown(cfg.license)} is no license's short name; write for example apache-2.0")
    patterns = [name for name in ("include_patterns", "exclude_patterns") if cfg[name] is not None]
    if patterns and cfg.method != "lora":
        wrong.append(f"{patterns[0]}: chooses layers of a LoRA, and method is {cfg.method}; leave it out")
    path, ends = "validation_data.guidance_interval", cfg.validation_data.guidance_interval
    if ends is not None and (reason := no_interval(ends)) and not beyond(path, ends, KEYS[path].metadata):
        wrong.append(f"{path}: {reason}")
    shares = cfg.block_range
    if shares is not None and (len(shares) != 2 or shares[0] >= shares[1]):
        wrong.append(
            f"block_range: {shown(list(shares))} is not two shares, the lower one first; write for example [0, 0.5]"
        )
    return wrong


def without_effect(cfg: DictConfig) -> list[str]:
    """Keys that do nothing beside the others' values, a sentence each."""
    wrong = []
    if cfg.lr_warmup_steps and cfg.lr_scheduler == "constant":
        wrong.append(
            f"lr_warmup_steps: {cfg.lr_warmup_steps} does nothing under lr_scheduler constant; set lr_scheduler to "
            "constant_with_warmup, or lr_warmup_steps to 0"
        )
    return wrong


def _of_prodigy(cfg: DictConfig) -> list[str]:
    embeds = cfg.method == "motion_inversion"
    used = ["embeddings.learning_rate"] * embeds + ["learning_rate"] * (not embeds or cfg.embeddings.loss == "hybrid")
    rates = {name: OmegaConf.select(cfg, name) for name in used}
    wrong = [
        f"{name}: {rate:g} would multiply the rate that optimizer: prodigy finds by itself; set {name} to 1"
        for name, rate in rates.items()
        if rate < LEAST_MULTIPLE
    ]
    if not cfg.adam_beta1:
        wrong.append("adam_beta1: 0 keeps no mean of the gradients, which optimizer: prodigy needs; leave it at 0.9")
    if cfg.use_8bit_adam:
        wrong.append("use_8bit_adam: is a kind of AdamW, and optimizer is prodigy; leave one of the two out")
    return wrong


def did_you_mean(names: list[str]) -> str:
    """The end of a sentence about a wrong name; empty without a near one."""
    return f"; did you mean {' or '.join(names)}?" if names else ""
