"""What a transformer has in place of the highway: the value highway, motion in some blocks, and phased integration."""

import json

import pytest
import torch
from diffusers import WanTransformer3DModel

import train
from configs.errors import UserError
from configs.schema import from_dict
from infer import options
from infer.generate import generate
from models import methods
from models.backbone import Backbone
from models.files.checkpoint import load_checkpoint
from models.highway import attach_highway
from models.lora import add_adapter
from models.merge import adapted, attach_lora, without_loras
from models.outline import skeleton
from models.targets import targets

from conftest import config_of


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


OFF = {"appearance_highway": {"use": "off"}}
GIVEN = normal(1, 4, 2, 4, 4), torch.tensor([500.0]), normal(1, 5, 64)


@pytest.fixture(scope="module")
def network(tiny_wan):
    return Backbone.load(tiny_wan).network


def lora(network, preset, block_range=None):
    adapter = add_adapter(network, "motion", preset, 4, block_range=block_range)
    state = {name: normal(*tensor.shape, seed=i) for i, (name, tensor) in enumerate(adapter.state_dict().items())}
    adapter.remove()
    return state


@torch.no_grad()
def outcome(network):
    return network(*GIVEN).sample


@pytest.mark.parametrize("beside", [False, True])
def test_without_loras_is_the_plain_model_to_the_bit(network, beside):
    plain = outcome(network)
    with attach_lora(network, lora(network, "motiondirector"), 1.0, beside=beside):
        acting = outcome(network)
        with without_loras(network):
            assert torch.equal(outcome(network), plain)
        assert torch.equal(outcome(network), acting) and not torch.equal(acting, plain)
    assert not adapted(network) and torch.equal(outcome(network), plain)


@pytest.mark.parametrize("beside", [False, True])
def test_the_value_highway_takes_the_values_of_the_plain_model(network, beside):
    """An adapter of Values alone then does nothing; one of Query and Key does, and from other Values than without."""
    plain = outcome(network)
    with attach_highway(network, "value"):
        assert torch.equal(outcome(network), plain), "without an adapter it is the identity"
    with attach_lora(network, lora(network, "value"), 1.0, beside=beside):
        assert not torch.equal(outcome(network), plain)
        with attach_highway(network, "value"):
            assert torch.equal(outcome(network), plain)
    with attach_lora(network, lora(network, "tap"), 1.0, beside=beside):
        alone = outcome(network)
        seen = []
        hook = network.blocks[1].attn1.to_v.register_forward_hook(lambda _, __, value: seen.append(value))
        with attach_highway(network, "value"):
            assert not torch.allclose(outcome(network), plain) and not torch.allclose(outcome(network), alone)
        hook.remove()
        with without_loras(network):
            expected = []
            hook = network.blocks[1].attn1.to_v.register_forward_hook(lambda _, __, value: expected.append(value))
            outcome(network)
            hook.remove()
        assert torch.equal(seen[1], expected[0])
        assert torch.equal(outcome(network), alone), "removed, nothing of it is left"
    assert torch.equal(outcome(network), plain)


def test_a_block_that_no_adapter_touches_keeps_its_values(network):
    with attach_lora(network, lora(network, "tap", [0, 0.5]), 1.0), attach_highway(network, "value"):
        seen = []
        hook = network.blocks[1].attn1.to_v.register_forward_hook(lambda _, __, value: seen.append(value))
        outcome(network)
        hook.remove()
        assert not torch.equal(seen[0], seen[1])


def test_a_block_range_leaves_the_other_blocks_alone(network, tiny_wan):
    first, last = targets(network, "tap", [0, 0.5]), targets(network, "tap", [0.5, 1])
    assert all(name.startswith("blocks.0.") for name in first) and all(name.startswith("blocks.1.") for name in last)
    cfg = from_dict({"train_data": {"single_video_path": "clip.mp4"}, "block_range": [0, 0.5], **OFF})
    method = methods.attach(skeleton(tiny_wan), cfg, clips=1, latent_size=(2, 4, 4))
    assert list(method.motion.layers) == first and method.info()["block_range"] == "0.0 0.5"
    assert first + last == targets(network, "tap") == targets(network, "tap", [0, 1])
    with attach_lora(network, lora(network, "tap", [0.5, 1]), 1.0):
        assert {name.split(".")[1] for name in adapted(network)} == {"1"}


def test_a_run_with_both_is_saved_and_sampled_again(tiny_wan, clip_file, tmp_path, monkeypatch):
    given = {
        "block_range": [0.0, 1.0],
        "appearance_highway": {"use": "sampling", "scope": "value"},
        "train_data": {"n_sample_frames": 5},
        "learning_rate": 0.1,
    }
    run = train.run(config_of(tiny_wan, clip_file, tmp_path, given))
    checkpoint = load_checkpoint(run, network=skeleton(tiny_wan))
    assert len(checkpoint.motion) == 8 and checkpoint.info["block_range"] == "0.0 1.0"
    videos, seen = {}, []
    inner = WanTransformer3DModel.forward
    monkeypatch.setattr(WanTransformer3DModel, "forward", lambda *a, **k: (seen.append(1), inner(*a, **k))[1])
    between = ["--solver", "euler", "--num-steps", "8", "--pli_threshold", "693"]  # a step is taken at 693.8
    phased = {"pli": ["--pli_threshold", "900"], "pli of a flow": between}
    for name, words in {"value": [], "off": ["--highway", "off"], **phased}.items():
        folder = tmp_path / name
        words = [
            "-cf",
            str(run),
            "-p",
            "a horse",
            "-s",
            "2",
            "-o",
            str(folder),
            "--seed",
            "1",
            "--quality",
            "10",
            *words,
        ]
        seen.clear()
        (video,) = generate(options.parse(words))
        videos[name] = video.read_bytes()
        counted = json.loads(video.with_suffix(".json").read_text())["forwards"]
        assert counted == 2 * len(seen), "the guided halves are one batch"
    assert len(set(videos.values())) == 4


def test_bad_requests_are_one_sentence(tiny_wan, tiny_pipeline, tiny_config):
    clip = {"pretrained_model_path": str(tiny_wan), "train_data": {"single_video_path": "clip.mp4"}}
    for shares in ([0.5], [0.5, 0.5], [0.9, 0.1]):
        with pytest.raises(UserError, match="block_range: .* is not two shares, the lower one first"):
            from_dict(clip | {"block_range": shares})
    with pytest.raises(UserError, match="scope: value belongs to diffusion transformers; a U-Net has all"):
        attach_highway(skeleton(tiny_pipeline), "value")
    cfg = from_dict(clip | {"appearance_highway": {"use": "training", "scope": "value"}})
    with pytest.raises(UserError, match="the scope value acts in sampling only"):
        methods.attach(skeleton(tiny_wan), cfg, clips=1, latent_size=(2, 4, 4))
    with pytest.raises(UserError, match="block_range: belongs to diffusion transformers"):
        methods.attach(skeleton(tiny_pipeline), tiny_config(block_range=[0, 0.5]), clips=1, latent_size=(4, 8, 8))


def test_weights_that_no_lora_was_merged_into_are_not_read(network, monkeypatch):
    """They may wait on the host or in 8 bits, where reading one makes it."""
    read = []

    class Waiting(torch.nn.Linear):
        @property
        def weight(self):
            read.append(self)
            return self._parameters["weight"]

    with attach_lora(network, lora(network, "tap"), 1.0, beside=True):
        for name in adapted(network):
            network.get_submodule(name).__class__ = Waiting
        with without_loras(network):
            assert all(network.get_submodule(name)._loras_off for name in adapted(network))
        assert not read
        for name in adapted(network):
            network.get_submodule(name).__class__ = torch.nn.Linear
