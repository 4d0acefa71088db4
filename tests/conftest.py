"""A whole text-to-video pipeline of random weights, small enough for every test to run on a CPU in seconds."""

import gc
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve each other on CI machines
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network for anything, and none waits for it
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import hypothesis
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    TextToVideoSDPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, T5Tokenizer

from configs.schema import from_dict
from scripts.authors.weights import build_unet, fill
from scripts.benchmark import steps
from scripts.pocket import wan_parts
from scripts.pocket.architecture import build_tokenizer

hypothesis.settings.register_profile("busy machines too", deadline=None)
hypothesis.settings.load_profile("busy machines too")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


def pytest_collection_finish():
    """What is imported by now stays; looking for garbage among it took 8 % of the CPU time of tests/test_infer.py."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_accelerator(request, monkeypatch):
    """A test that is not marked `gpu` runs on the CPU, and so do the commands that it starts, whatever there is."""
    if request.node.get_closest_marker("gpu"):
        return
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


UNET = {  # ZeroScope's layout with two layers a block, at a hundredth of its width
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64, 96, 96],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"],
    "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3,
    "cross_attention_dim": 32,
    "attention_head_dim": 16,
}


# of scripts/bench.py, the smallest with ZeroScope's kinds of blocks
TINY = steps.Architecture(
    dict(
        block_out_channels=(16, 16, 32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        norm_num_groups=4,
    ),
    frames=3, side=8, text_layers=1, vae=(4, 8, 8, 8), checkpointing=False,
)  # fmt: skip

SCHEDULE = {  # ZeroScope's noise levels
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

WAN = {  # Wan's layout with two layers, at a hundredth of its width
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 64,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
WAN_LATENTS = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 2.0, 1.0, 1.5]}

PUBLISHED = {  # transformer/config.json and vae/config.json of Wan2.1-T2V-1.3B-Diffusers, key for key
    "transformer": {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": "0.33.0.dev0",
        "added_kv_proj_dim": None,
        "attention_head_dim": 128,
        "cross_attn_norm": True,
        "eps": 1e-06,
        "ffn_dim": 8960,
        "freq_dim": 256,
        "image_dim": None,
        "in_channels": 16,
        "num_attention_heads": 12,
        "num_layers": 30,
        "out_channels": 16,
        "patch_size": [1, 2, 2],
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": 4096,
    },
    "vae": {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": "0.33.0.dev0",
        "attn_scales": [],
        "base_dim": 96,
        "dim_mult": [1, 2, 4, 4],
        "dropout": 0.0,
        "latents_mean": [0.0] * 16,  # not its values, which no test reads
        "latents_std": [1.0] * 16,
        "num_res_blocks": 2,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    },
}


@pytest.fixture(scope="session")
def inputs():
    """Sample [1 4 3 8 8], timestep and text [1 5 32] for a U-Net of `UNET`'s text width."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, 4, 3, 8, 8, generator=generator),
        torch.tensor(521),
        torch.randn(1, 5, 32, generator=generator),
    )


def text_encoder(tokenizer, **sizes) -> CLIPTextModel:
    """CLIP's with random weights, 32 wide; `sizes` are the other ones of CLIPTextConfig."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sizes,
        )
    )


@torch.no_grad()
def outcome(unet, inputs):
    return unet(*inputs).sample


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory) -> Path:
    """A pipeline folder in ZeroScope's layout: random, deterministic weights; epsilon prediction."""
    tokenizer = build_tokenizer(["a", "car", "horse", "is", "running", "on", "the", "road"])
    torch.manual_seed(0)
    text = text_encoder(tokenizer, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    vae = fill(
        AutoencoderKL(
            block_out_channels=(16, 16, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=8,
            sample_size=64,
        ),
        1,
    )
    scheduler = DDIMScheduler(**SCHEDULE)
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    TextToVideoSDPipeline(vae, text, tokenizer, build_unet(UNET), scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory) -> Path:
    """A pipeline folder of exactly Wan's layout and classes: random weights, four frames to a latent, 4 channels."""
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *(f"▁{word}" for word in ("a", "car", "horse", "is", "running")),
        *"abcdeg",
    ]
    tokenizer = T5Tokenizer(
        [(piece, -float(rank)) for rank, piece in enumerate(pieces)], extra_ids=0, model_max_length=24
    )
    torch.manual_seed(0)
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": wan_parts.untrained_text_encoder(tokenizer),
        "vae": AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **WAN_LATENTS),
        "transformer": WanTransformer3DModel(**WAN),
        "scheduler": wan_parts.build_scheduler(),
    }
    folder = tmp_path_factory.mktemp("tiny") / "wan"
    WanPipeline(**parts).save_pretrained(folder)
    index = folder / "model_index.json"  # transformers had two classes when Wan was published
    index.write_text(index.read_text().replace('"T5Tokenizer"', '"T5TokenizerFast"'))
    for part, published in PUBLISHED.items():  # today's diffusers writes more keys than the published folder has
        file = folder / part / "config.json"
        written = json.loads(file.read_text())
        file.write_text(json.dumps({key: written[key] for key in published}))
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIP in transformers' layout with random weights: 32-pixel images, a vocabulary of letters."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *[letter + "</w>" for letter in letters]]
    config = CLIPConfig(
        text_config=dict(
            small, vocab_size=len(words), max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1
        ),
        vision_config=dict(small, image_size=32, patch_size=8),
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return str(folder)


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory) -> Path:
    """An mp4 of ten 64x64 frames: a bright bar that moves right over a gradient."""
    frames = np.tile(np.linspace(0, 120, 64, dtype=np.uint8)[:, None, None], (10, 1, 64, 3))
    for i, frame in enumerate(frames):
        frame[:, 5 * i : 5 * i + 12] = (250, 200, 40)
    path = tmp_path_factory.mktemp("clip") / "bar.mp4"
    iio.imwrite(path, frames, plugin="FFMPEG", fps=8, quality=8, macro_block_size=2)
    return path


def config_of(model: Path, clip: Path, folder: Path, overrides: dict):
    values = {
        "pretrained_model_path": str(model),
        "output_dir": str(folder / "train"),
        "cache_dir": str(folder / "cache"),
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "lora_rank": 4,
        "max_train_steps": 2,
        "inversion_steps": 3,
        "device": "cpu",
        "train_data": {
            "width": 64,
            "height": 64,
            "n_sample_frames": 4,
            "single_video_path": str(clip),
            "single_video_prompt": "a car is running",
        },
        "validation_data": {
            "prompt": ["a horse is running"],
            "num_inference_steps": 2,
            "sample_at_first": False,
            "side_by_side": False,
        },
    }
    for key, value in overrides.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return from_dict(values)


@pytest.fixture
def tiny_config(tiny_pipeline, clip_file, tmp_path):
    """A function of overrides giving a checked configuration that trains two steps in about a second."""
    return lambda **overrides: config_of(tiny_pipeline, clip_file, tmp_path, overrides)


@pytest.fixture(scope="session")
def trained(tiny_pipeline, clip_file, tmp_path_factory):
    """A function of overrides giving the run folder of such a training, made once a session."""
    runs = {}

    def make(**overrides) -> Path:
        import train

        key = repr(overrides)
        if key not in runs:
            config = config_of(tiny_pipeline, clip_file, tmp_path_factory.mktemp("run"), overrides)
            runs[key] = train.run(config)
        return runs[key]

    return make
