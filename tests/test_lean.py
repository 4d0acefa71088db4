"""The lean U-Net computes what the stock one does, with every patch beside it, and comes off again."""

from collections import Counter

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import train
from configs import schema
from infer import generate, options
from models import compiled, lora, methods
from models.activation_checkpointing import checkpoint_activations
from models.backbone import predictor
from models.hooks import bypass_single_frames
from models.lean import PARTS, attach_lean
from models.merge import attach_lora
from models.training import objective
from scripts.authors.weights import build_unet
from train import training_step

from conftest import UNET as ZEROSCOPE_LIKE
from conftest import outcome

UNET = {  # images of 4x4, 2x2 and 1x1, so that every part finds what it is for
    **ZEROSCOPE_LIKE,
    "block_out_channels": [32, 32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 4,  # with a group for each channel, an image of one pixel would be normalised by its rounding
    "down_block_types": ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
}
LATENTS = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1)).expand(2, 4, 3, 4, 4)
TEXT = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2)).expand(2, 5, 32)
TOLERANCE = 1e-5  # of a gradient's norm; another dropout mask measures above 1e-2


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        return function(*args, **kwargs or {})


class Trained:
    """A method on a U-Net whose adapters have moved, and the gradients of a training step."""

    def __init__(self, **keys):
        cfg = schema.from_dict({"train_data": {"single_video_path": "none"}, "lora_rank": 8, **keys})
        self.unet = build_unet(UNET).requires_grad_(False).train()
        bypass_single_frames(self.unet)
        self.method = methods.attach(self.unet, cfg, clips=1, latent_size=tuple(LATENTS.shape[2:]))
        self.parameters = [*self.method.motion_parameters, *self.method.appearance_parameters]
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)

    def gradients(self, seed=0):
        for parameter in self.parameters:
            parameter.grad = None
        draw = objective.draw_step(0, 1, LATENTS)._replace(spatial=True)
        torch.manual_seed(seed)
        training_step(predictor(self.unet), DDIMScheduler(), self.method, LATENTS, TEXT, draw)
        return [parameter.grad for parameter in self.parameters]


def difference(mine, theirs):
    """Norm of the difference of two lists of gradients over the second's; both must lack the same ones."""
    assert [a is None for a in mine] == [b is None for b in theirs]
    pairs = [(a, b) for a, b in zip(mine, theirs) if a is not None]
    error, size = (sum(x.square().sum() for x in side) for side in ([a - b for a, b in pairs], [b for _, b in pairs]))
    assert size > 0
    return (error / size).sqrt().item()


@pytest.fixture(scope="module")
def tap():
    return Trained(lora_unet_dropout=0.0)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_works_another_way_and_gives_the_same_gradients(part, tap):
    with Operations() as stock:
        plain = tap.gradients()
    with attach_lean(tap.unet, [part]), Operations() as lean:
        assert difference(tap.gradients(), plain) < TOLERANCE
    assert lean.counts != stock.counts


def test_dropout_draws_the_masks_of_the_stock_layers(tap):
    plain = tap.gradients(seed=0)
    assert difference(tap.gradients(seed=1), plain) > 1e-2
    with attach_lean(tap.unet):
        assert difference(tap.gradients(seed=0), plain) < TOLERANCE


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "keys",
    [
        {"temporal_preset": "motiondirector", "appearance_highway.use": "training"},
        {"method": "motion_inversion", "embeddings.loss": "hybrid"},
        {"lora_unet_dropout": 0.5, "lora_dropout_placement": "release"},
        {"lora_unet_dropout": 0.5, "lora_dropout_placement": "release", "lora_alpha": 20},
        {"lora_unet_dropout": 0.5, "lora_dropout_placement": "peft"},
    ],
    ids=["motiondirector", "motion inversion", "dropout after up", "dropout and alpha", "dropout before down"],
)
def test_every_method_keeps_its_gradients(keys, checkpointing):
    trained = Trained(**{"lora_unet_dropout": 0.0, **keys})
    plain = trained.gradients()
    if checkpointing:
        checkpoint_activations(trained.unet)
    with attach_lean(trained.unet):
        assert difference(trained.gradients(), plain) < TOLERANCE


def test_removed_it_leaves_the_model_as_it_was_to_the_bit(inputs):
    unet = build_unet(UNET).eval()
    plain = outcome(unet, inputs)
    with attach_lean(unet):
        torch.testing.assert_close(outcome(unet, inputs), plain, rtol=1e-4, atol=1e-5)
        assert "forward" in vars(unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1)
    assert torch.equal(outcome(unet, inputs), plain)
    assert not any("forward" in vars(module) for module in unet.modules())


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.bfloat16), ("meta", torch.float32)])
def test_half_precision_and_other_devices_stay_as_they_are(device, dtype):
    unet = nn.Module.to(build_unet(UNET), device, dtype)
    attach_lean(unet)
    assert not any("forward" in vars(module) for module in unet.modules())


def test_prompts_that_differ_are_not_taken_for_one(inputs):
    unet, (sample, time, text) = build_unet(UNET).eval(), inputs
    two = sample.expand(2, -1, -1, -1, -1), time, torch.cat([text, text.flip(1)])
    plain = outcome(unet, two)
    with attach_lean(unet):
        torch.testing.assert_close(outcome(unet, two), plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain[0], plain[1])


def test_new_weights_are_seen(inputs, tap):
    unet = build_unet(UNET).eval()
    state = {name: tensor.clone().mul_(1.1) for name, tensor in unet.state_dict().items()}
    with attach_lean(unet):
        outcome(unet, inputs)
        unet.load_state_dict(state)
        lean = outcome(unet, inputs)
        with attach_lora(unet, tap.method.motion.state_dict()):
            merged = outcome(unet, inputs)
    torch.testing.assert_close(lean, outcome(unet, inputs), rtol=1e-4, atol=1e-5)
    with attach_lora(unet, tap.method.motion.state_dict()):
        torch.testing.assert_close(merged, outcome(unet, inputs), rtol=1e-4, atol=1e-5)


def test_hooks_inside_attentions_and_on_adapters_still_see_their_layers(inputs):
    unet, seen = build_unet(UNET).eval(), Counter()
    adapter = lora.add_adapter(unet, "motion", "tap", 8)
    name, layer = next(iter(adapter.layers.items()))
    layer.lora_B["motion"].register_forward_hook(lambda *_: seen.update(["adapter"]))
    layer.register_forward_hook(lambda *_: seen.update(["projection"]))
    with attach_lean(unet), adapter.acting():
        outcome(unet, inputs)
    assert seen == {"adapter": 1, "projection": 1}


def test_an_attention_of_another_kind_runs_as_it_is(inputs):
    unet = build_unet(UNET).eval()
    attention = unet.down_blocks[0].temp_attentions[0].transformer_blocks[0].attn1
    attention.norm_q = nn.LayerNorm(16)
    plain = outcome(unet, inputs)
    with attach_lean(unet):
        torch.testing.assert_close(outcome(unet, inputs), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["off", "blocks"])
def test_what_is_made_quicker_knows_its_dtype(mode):
    """As long as it is quicker, whether its layers are lean or compiled."""
    unet = build_unet(UNET)
    stock = type(unet)
    with compiled.attach_quicker(unet, mode, torch.device("cpu"), training=True):
        assert vars(type(unet))["dtype"] == torch.float32
    assert type(unet) is stock


def test_training_and_sampling_are_lean(tiny_config, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(compiled, "attach_lean", lambda network: seen.append(network) or attach_lean(network))
    run = train.run(tiny_config(max_train_steps=1, validation_data={"sample_preview": False}))
    assert len(seen) == 1
    words = ["--checkpoint_folder", str(run), "--prompt", "a horse", "--num-steps", "1", "-o", str(tmp_path / "videos")]
    assert len(list(generate.generate(options.parse(words)))) == 1
    assert len(seen) == 2
