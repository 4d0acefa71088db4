"""What may change where a training goes on from a checkpoint, key by key."""

from typing import get_args

import pytest
import torch
from omegaconf import OmegaConf

import train
from configs.fields import KEYS
from configs.key import Shapes, key
from configs.schema import from_dict
from models.training.resume import other_differences, shaping_differences

MUST_STAY = {
    "method", "temporal_preset", "include_patterns", "exclude_patterns", "block_range", "lora_rank", "lora_alpha",
    "seed", "embeddings.blocks", "embeddings.widths", "embeddings.max_frames", "embeddings.loss",
}  # fmt: skip
OF_SAMPLING = {
    "pli_threshold", "embeddings.sampling", "initial_noise.strategy", "initial_noise.cutoff", "inversion_steps",
    "validation_data.guidance_scale", "validation_data.solver",
}  # fmt: skip


def shaping(what):
    return {name for name, entry in KEYS.items() if entry.metadata["shapes"] == what}


def test_every_key_says_what_it_shapes():
    for name, entry in KEYS.items():
        assert entry.metadata.get("shapes") in get_args(Shapes), f"{name}: shapes must be one of {get_args(Shapes)}"
    with pytest.raises(TypeError, match="shapes"):
        key(1, "a key that was forgotten", low=0)


def test_what_is_learned_stays_and_what_only_sampling_reads_may_change():
    assert shaping("training") == MUST_STAY
    assert shaping("nothing") >= OF_SAMPLING
    assert shaping("clips") == {"dataset_types", "cached_latent_dir"} | {n for n in KEYS if n.startswith("train_data.")}
    assert {"learning_rate", "lora_unet_dropout", "pretrained_model_path", "device"} <= shaping("steps")


@pytest.mark.parametrize("name", KEYS)
def test_a_changed_key_is_refused_told_or_passed_over_by_what_it_shapes(name):
    method = "motion_inversion" if name.startswith("embeddings.") else "lora"
    cfg = from_dict({"train_data": {"single_video_path": "a.mp4"}, "method": method})
    trained = OmegaConf.to_container(cfg)
    section, _, last = name.rpartition(".")
    (trained[section] if section else trained)[last] = "before"
    now = OmegaConf.select(cfg, name)
    shapes = KEYS[name].metadata["shapes"]
    assert shaping_differences(cfg, trained) == (f"{name} before (asked for: {now})" if shapes == "training" else "")
    assert other_differences(cfg, trained) == (f"{name} before → {now}" if shapes == "steps" else "")


def test_a_caption_is_compared_as_it_is_written():
    """Nothing in a stored text is looked up, or even read as a reference that could be."""
    cfg = from_dict({"train_data": {"single_video_path": "a.mp4", "single_video_prompt": "a ${ sign"}})
    trained = {"seed": "${oc.env:HOME}", "train_data": {"single_video_prompt": "a ${ sign"}}
    assert shaping_differences(cfg, trained).startswith("method None (asked for: lora), ")
    assert "seed ${oc.env:HOME} (asked for: " in shaping_differences(cfg, trained)


def test_a_checkpoint_without_a_configuration_differs_in_nothing():
    cfg = from_dict({"train_data": {"single_video_path": "a.mp4"}})
    assert shaping_differences(cfg, {}) == other_differences(cfg, {}) == ""


def test_another_number_of_processes_is_told_and_keys_of_another_method_are_not_asked_for(tiny_config, capsys):
    """Each process draws noise and timesteps of its own, so the steps to come are others."""
    folder = train.run(tiny_config(max_train_steps=1))
    path = folder / "checkpoint-1" / "training_state.pt"
    state = torch.load(path, weights_only=True)
    assert state["processes"] == 1
    torch.save(state | {"processes": 4}, path)
    train.run(tiny_config(max_train_steps=2, resume_from_checkpoint=str(folder), embeddings={"max_frames": 7}))
    assert "changed since the checkpoint: processes 4 → 1\n" in capsys.readouterr().err
