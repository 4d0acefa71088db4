"""Motion Inversion's embeddings: identities, a slow explicit reference, gradients, other sizes, bad input."""

import math

import pytest
import torch
from diffusers import UNet3DConditionModel

from configs.errors import UserError
from models.activation_checkpointing import checkpoint_activations
from models.blocks import temporal_blocks
from models.embeddings import attach_embeddings, mix
from models.hooks import bypass_single_frames, wrap_forward

DEEPEST_UP = "up_blocks.1.temp_attentions.0.transformer_blocks.0"


def build() -> UNet3DConditionModel:
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=16,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    )
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unet():
    return build()


def inputs(batch=1, frames=4, height=8, width=12):
    draw = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 4, frames, height, width, generator=draw),
        torch.tensor(500),
        torch.randn(batch, 5, 16, generator=draw),
    )


@torch.no_grad()
def randomize(embeddings, scale=1.0):
    draw = torch.Generator().manual_seed(2)
    for parameter in embeddings.parameters():
        parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
    return embeddings


@torch.no_grad()
def run(unet, *args):
    return unet(*args).sample


def test_zero_embeddings_and_removed_embeddings_are_the_base_model_to_the_bit(unet):
    base = run(unet, *inputs(batch=2))
    embeddings = attach_embeddings(unet, height=8, width=12)
    assert torch.equal(run(unet, *inputs(batch=2)), base)
    randomize(embeddings)
    assert not torch.equal(run(unet, *inputs(batch=2)), base)
    embeddings.remove()
    assert torch.equal(run(unet, *inputs(batch=2)), base)


def test_strength_zero_is_the_base_model_and_the_dial_acts(unet):
    base = run(unet, *inputs())
    with randomize(attach_embeddings(unet, height=8, width=12)) as embeddings:
        full = run(unet, *inputs())
        with embeddings.at(strength=0.0):
            assert torch.equal(run(unet, *inputs()), base)
        with embeddings.at(strength=0.5):
            half = run(unet, *inputs())
        assert (half - base).norm() < (full - base).norm()
        assert embeddings.strength == 1.0
        randomize(embeddings, scale=0.5)
        assert torch.equal(run(unet, *inputs()), half)


def test_embedding_attention_equals_the_explicit_formula(unet):
    """One attention, written as sums over batch, pixels, heads and frames."""
    block = unet.get_submodule(DEEPEST_UP)
    attn, seen = block.attn2, {}
    with randomize(attach_embeddings(unet, height=8, width=12)) as embeddings:

        def spy(forward, x, *args, **kwargs):
            seen["x"], seen["y"] = x, forward(x, *args, **kwargs)
            return seen["y"]

        undo = wrap_forward(attn, spy)
        run(unet, *inputs(batch=2))
        undo()
        state = embeddings.state_dict()
    x, y = seen["x"], seen["y"]
    h, w, f, c, heads = 2, 3, 4, 64, attn.heads
    d = c // heads
    assert x.shape == (2 * h * w, f, c)
    query_key, value = state[f"{DEEPEST_UP}.query_key"], state[f"{DEEPEST_UP}.attn2.value"]
    for b in range(2):
        for i in range(h):
            for j in range(w):
                row = x[(b * h + i) * w + j]
                q = attn.to_q(row + query_key[0, :f])
                k = attn.to_k(row + query_key[0, :f])
                v = attn.to_v(row + value[i * w + j, :f])
                out = torch.zeros(f, c)
                for n in range(heads):
                    part = slice(n * d, (n + 1) * d)
                    weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(d), dim=-1)
                    out[:, part] = weights @ v[:, part]
                torch.testing.assert_close(y[(b * h + i) * w + j], attn.to_out[0](out), rtol=0, atol=1e-5)


def test_gradients_reach_every_embedding_and_nothing_else(unet):
    with attach_embeddings(unet, height=8, width=12) as embeddings:
        unet(*inputs()).sample.square().mean().backward()
        assert all(p.grad[:, :4].abs().sum() > 0 for p in embeddings.parameters())
        assert all(p.grad[:, 4:].abs().sum() == 0 for p in embeddings.parameters()), "frames 4..31 were not used"
    assert all(p.grad is None for p in unet.parameters())


@pytest.mark.parametrize("checkpointing_first", [True, False])
def test_checkpointing_gives_the_same_output_and_gradients(unet, checkpointing_first):
    def step(embeddings):
        out = unet(*inputs()).sample
        out.square().mean().backward()
        return [out, *[p.grad for p in embeddings.parameters()]]

    with randomize(attach_embeddings(unet, height=8, width=12)) as embeddings:
        plain = step(embeddings)
    if checkpointing_first:
        with checkpoint_activations(unet), randomize(attach_embeddings(unet, height=8, width=12)) as embeddings:
            saved = step(embeddings)
    else:
        with randomize(attach_embeddings(unet, height=8, width=12)) as embeddings, checkpoint_activations(unet):
            saved = step(embeddings)
    assert all(torch.equal(a, b) for a, b in zip(plain, saved, strict=True))


def test_compiled_model_agrees_and_follows_the_dial(unet):
    transformer = unet.get_submodule("up_blocks.1.temp_attentions.0")
    hidden = torch.randn(8, 64, 2, 3, generator=torch.Generator().manual_seed(3))
    with randomize(attach_embeddings(unet, height=8, width=12)) as embeddings, torch.no_grad():
        compiled = torch.compile(lambda x: transformer(x, num_frames=4).sample, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(hidden), transformer(hidden, num_frames=4).sample)
        with embeddings.at(strength=0.0):
            torch.testing.assert_close(compiled(hidden), transformer(hidden, num_frames=4).sample)
    torch.compiler.reset()


def test_half_precision_keeps_identity_and_trains_fp32_embeddings():
    unet = build().to(torch.bfloat16)
    arguments = [x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs()]
    base = run(unet, *arguments)
    with attach_embeddings(unet, height=8, width=12) as embeddings:
        assert torch.equal(run(unet, *arguments), base)
        randomize(embeddings)
        out = unet(*arguments).sample
        assert out.dtype == torch.bfloat16 and not torch.equal(out, base)
        out.float().square().mean().backward()
        assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in embeddings.parameters())


def test_one_frame_with_temporal_layers_bypassed_is_untouched(unet):
    with bypass_single_frames(unet):
        base = run(unet, *inputs(frames=1))
        with randomize(attach_embeddings(unet, height=8, width=12)):
            assert torch.equal(run(unet, *inputs(frames=1)), base)


def test_default_blocks_are_the_widest_of_down_and_up_with_the_papers_shapes(unet):
    embeddings = attach_embeddings(unet, height=9, width=12)
    shapes = {name: tuple(p.shape) for name, p in embeddings.state_dict().items()}
    embeddings.remove()
    assert {name.split(".transformer_blocks")[0] for name in shapes} == {
        "down_blocks.2.temp_attentions.0",
        "up_blocks.1.temp_attentions.0",
        "up_blocks.1.temp_attentions.1",
    }
    assert shapes[f"{DEEPEST_UP}.query_key"] == (1, 32, 64)
    assert shapes[f"{DEEPEST_UP}.attn1.value"] == shapes[f"{DEEPEST_UP}.attn2.value"] == (3 * 3, 32, 64)


def test_zeroscope_has_the_five_blocks_of_the_paper():
    with torch.device("meta"):
        unet = UNet3DConditionModel()  # the library's defaults are ModelScope's and ZeroScope's layout
        embeddings = attach_embeddings(unet, height=48, width=48)
    assert [(b.side, b.channels) for b in embeddings.blocks] == [("down", 1280)] * 2 + [("up", 1280)] * 3
    assert embeddings.state_dict()[f"{DEEPEST_UP}.attn1.value"].shape == (144, 32, 1280)
    assert len(temporal_blocks(unet)) == 16
    assert "2 x down 1280, 3 x up 1280; 59.19 M parameters" in str(embeddings)


def test_other_sizes_run_and_a_smooth_embedding_is_resampled_as_an_image(unet):
    with randomize(attach_embeddings(unet, ("mid",), height=8, width=12)) as embeddings:
        assert run(unet, *inputs(height=16, width=8, frames=6)).shape == (1, 4, 6, 16, 8)
    with attach_embeddings(unet, height=32, width=32, frames=4) as embeddings, torch.no_grad():
        name = f"{DEEPEST_UP}.attn1"
        ramp = torch.linspace(0, 1, 8)[:, None] + torch.zeros(8, 8)  # rises downwards, constant across
        embeddings._parameters[f"{name}.value"].copy_(ramp.flatten()[:, None, None].expand(64, 32, 64))
        block = next(block for block in embeddings.blocks if block.name == DEEPEST_UP)
        resampled = embeddings.value(block, "attn1", (4, 2), 4).view(4, 2, 4, 64)
        assert (resampled.diff(dim=0) > 0).all() and (resampled.diff(dim=1) == 0).all()
        assert resampled.mean().item() == pytest.approx(0.5)
    assert embeddings.interpolation(4, 32, 32) is None
    assert embeddings.interpolation(6, 16, 8) == (
        "embeddings interpolated in space from 32x32 to 8x16 latents and in time from 4 to 6 frames"
    )


def test_other_lengths_stretch_the_trained_frames(unet):
    def ramp(**options):
        embeddings = attach_embeddings(unet, height=8, width=12, **options)
        embeddings.remove()
        with torch.no_grad():
            embeddings._parameters[f"{DEEPEST_UP}.query_key"].copy_(torch.arange(32.0)[None, :, None])
        return embeddings

    first = ramp().query_key(DEEPEST_UP, 5)[0, :, 0]
    assert first.tolist() == [0, 1, 2, 3, 4]
    assert ramp(frames=5).query_key(DEEPEST_UP, 9)[0, :, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert ramp().query_key(DEEPEST_UP, 63)[0, :, 0].tolist() == [i / 2 for i in range(63)]


def test_sampling_modes_change_the_value_embedding_only_as_the_paper_says(unet):
    with randomize(attach_embeddings(unet, height=8, width=12)) as embeddings:
        block = next(block for block in embeddings.blocks if block.name == DEEPEST_UP)
        given = block, "attn1", (2, 3), 4
        plain, pattern = embeddings.value(*given), embeddings.query_key(DEEPEST_UP, 4)
        with embeddings.at(sampling="difference"):
            changed = embeddings.value(*given)
            assert torch.equal(changed[:, 0], plain[:, 0])
            assert torch.equal(changed[:, 1:], plain[:, 1:] - plain[:, :-1])
            assert torch.equal(embeddings.query_key(DEEPEST_UP, 4), pattern)
        with embeddings.at(sampling="drop_value"):
            dropped = run(unet, *inputs())
        with torch.no_grad():
            for key, parameter in embeddings._parameters.items():
                if key.endswith("value"):
                    parameter.zero_()
        torch.testing.assert_close(run(unet, *inputs()), dropped, rtol=0, atol=1e-6)


def test_state_goes_out_and_in_and_motions_mix(unet):
    with randomize(attach_embeddings(unet, height=8, width=12)) as embeddings:
        trained, out = embeddings.state_dict(), run(unet, *inputs())
    with attach_embeddings(unet, height=8, width=12) as embeddings:
        embeddings.load_state_dict(trained)
        assert torch.equal(run(unet, *inputs()), out)
    double = mix([trained, trained], [0.5, 1.5])
    assert all(torch.equal(double[name], 2 * trained[name]) for name in trained)


def test_bad_input_is_one_sentence(unet):
    base = run(unet, *inputs())
    with pytest.raises(UserError, match="there are down, mid, up"):
        attach_embeddings(unet, ("middle",), height=8, width=12)
    with pytest.raises(UserError, match="the list is empty"):
        attach_embeddings(unet, (), height=8, width=12)
    with pytest.raises(UserError, match="no temporal transformer of width 1280 in down, up; there are 32, 64"):
        attach_embeddings(unet, widths=(1280,), height=8, width=12)
    with pytest.raises(UserError, match="too few"):
        attach_embeddings(unet, height=8, width=12, max_frames=8, frames=16)
    with attach_embeddings(unet, height=8, width=12) as embeddings, attach_embeddings(unet, height=8, width=8) as other:
        with pytest.raises(UserError, match="attach with the size"):
            embeddings.load_state_dict(other.state_dict())
        with pytest.raises(UserError, match="cannot be mixed"):
            mix([embeddings.state_dict(), other.state_dict()], [1, 1])
        with pytest.raises(UserError, match="blocks and widths of the training"):
            embeddings.load_state_dict({})
        with pytest.raises(UserError, match="there are none, difference, drop_value"), embeddings.at(sampling="off"):
            pass
    assert torch.equal(run(unet, *inputs()), base)
