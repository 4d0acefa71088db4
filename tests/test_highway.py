"""The appearance highway: a no-op where it should be, another model where not, gone without a trace when removed."""

import pytest
import torch

from configs.errors import UserError
from models.activation_checkpointing import checkpoint_activations
from models.highway import attach_highway
from models.hooks import bypass_single_frames
from models.outline import skeleton
from scripts.authors.weights import build_unet

from conftest import UNET, outcome


@pytest.fixture(scope="module")
def unet():
    return build_unet(UNET)


@pytest.mark.parametrize("scope", ["all", "release"])
def test_moving_skips_changes_nothing_when_temporal_transformers_add_nothing(inputs, scope):
    unet = build_unet(UNET)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "temp_attentions" in name and "proj_out" in name:
                parameter.zero_()
    base = outcome(unet, inputs)
    with attach_highway(unet, scope, beta=1.0):
        assert torch.equal(outcome(unet, inputs), base)


@pytest.mark.parametrize("scope", ["all", "release", "plain"])
def test_each_scope_changes_the_model_and_its_removal_restores_it(unet, inputs, scope):
    base = outcome(unet, inputs)
    with pytest.raises(ZeroDivisionError), attach_highway(unet, scope):
        assert (outcome(unet, inputs) - base).abs().max() > 1e-3
        raise ZeroDivisionError
    assert torch.equal(outcome(unet, inputs), base)


def test_the_scope_all_equals_the_slow_obvious_version(unet, inputs):
    captured, handles = {}, []
    for block in unet.down_blocks[:3]:
        for j, attention in enumerate(block.attentions):
            handles.append(
                attention.register_forward_hook(
                    lambda module, args, output, key=(block, j): captured.update({key: output[0]})
                )
            )

        def swap(block, args, output):
            hidden, skips = output
            return hidden, (captured[block, 0] * 1.3, captured[block, 1] * 1.3, *skips[2:])

        handles.append(block.register_forward_hook(swap))
    expected = outcome(unet, inputs)
    for handle in handles:
        handle.remove()
    with attach_highway(unet, "all", beta=1.3) as highway:
        torch.testing.assert_close(outcome(unet, inputs), expected, rtol=0, atol=1e-6)
    assert [skip.source for skip in highway.skips if skip.moved] == [
        f"down_blocks.{d}.attentions.{j}" for d in (2, 1, 0) for j in (1, 0)
    ]
    assert str(highway) == "highway: 6 of 12 skips start before the temporal transformer, 6 scaled by 1.3"


def test_plain_has_the_factors_of_all_and_moves_nothing(unet, inputs):
    with attach_highway(unet, "all") as moved:
        pass
    with attach_highway(unet, "plain") as plain:
        pass
    assert [skip.factor for skip in plain.skips] == [skip.factor for skip in moved.skips]
    assert not any(skip.moved for skip in plain.skips)
    base = outcome(unet, inputs)
    with attach_highway(unet, "plain", beta=1.0):
        assert torch.equal(outcome(unet, inputs), base)


def test_one_frame_passes_have_no_highway(unet, inputs):
    one = (inputs[0][:, :, :1], *inputs[1:])
    for bypass in (False, True):
        patch = bypass_single_frames(unet) if bypass else None
        base = outcome(unet, one)
        for scope in ("all", "plain"):
            with attach_highway(unet, scope, beta=1.5):
                assert torch.equal(outcome(unet, one), base)
        if patch:
            patch.remove()


@pytest.mark.parametrize("checkpoint_first", [True, False])
def test_checkpointing_gives_the_same_output_and_gradients(unet, inputs, checkpoint_first):
    weight = unet.conv_in.weight.requires_grad_()

    def gradient():
        weight.grad = None
        unet(*inputs).sample.square().mean().backward()
        return weight.grad

    with attach_highway(unet):
        expected = gradient()
    attach = [checkpoint_activations, attach_highway] if checkpoint_first else [attach_highway, checkpoint_activations]
    patches = [patch(unet) for patch in attach]
    assert torch.equal(gradient(), expected)
    for patch in patches:
        patch.remove()
    weight.requires_grad_(False)


def test_compiled_it_is_one_graph_with_the_same_output(unet):
    draw = torch.Generator().manual_seed(0)
    x, time = torch.randn(2, 32, 4, 4, generator=draw), torch.randn(2, 128, generator=draw)
    text = torch.randn(2, 5, 32, generator=draw)
    with torch.no_grad(), attach_highway(unet, "all"):
        block = unet.down_blocks[0]
        hidden, skips = block(x, time, encoder_hidden_states=text, num_frames=2)
        compiled = torch.compile(block, backend="eager", fullgraph=True)
        again, other = compiled(x, time, encoder_hidden_states=text, num_frames=2)
    for ours, theirs in zip((hidden, *skips), (again, *other), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


def test_half_precision_stays_half(inputs):
    unet = build_unet({**UNET, "layers_per_block": 1}).to(torch.bfloat16)
    half = [x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs]
    for options in ({"scope": "all"}, {"scope": "release", "scales": (1.1, 0.9, 1.2, 1.3)}):
        with attach_highway(unet, **options):
            sample = outcome(unet, half)
        assert sample.dtype == torch.bfloat16 and torch.isfinite(sample).all()


def test_release_scales_are_read_from_the_models_own_two_widest_widths():
    with attach_highway(skeleton(), "release", scales=(1.1, 0.9, 1.2, 1.3)) as highway:
        scaled = {
            (s.up, s.layer): (s.hidden_channels, s.factor, s.hidden_factor) for s in highway.skips if s.factor != 1
        }
    assert scaled == {
        **{(1, j): (1280, 1.1, 1.2) for j in range(3)},
        (2, 0): (1280, 1.1, 1.2),
        (2, 1): (640, 0.9, 1.3),
        (2, 2): (640, 0.9, 1.3),
        (3, 0): (640, 0.9, 1.3),
    }
    assert [s.source for s in highway.skips if s.moved] == ["down_blocks.2.attentions.1", "down_blocks.2.attentions.0"]


def test_any_number_of_layers_has_a_wiring():
    with attach_highway(skeleton_with(layers_per_block=1), "all") as highway:
        assert [(s.source, s.moved) for s in highway.skips][2:4] == [
            ("down_blocks.2.attentions.0", True),
            ("down_blocks.1.downsamplers.0", False),
        ]


def skeleton_with(**changes):
    with torch.device("meta"):
        return type(skeleton()).from_config({**UNET, **changes})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "everywhere"}, "choose one of all, release, plain"),
        ({"scope": "all", "scales": (1, 1, 1, 1)}, "use scope release"),
        ({"scope": "release", "scales": (1, 1)}, "four numbers"),
    ],
)
def test_what_can_not_be_attached_says_why(unet, options, message):
    with pytest.raises(UserError, match=message):
        attach_highway(unet, **options)


def test_a_model_without_temporal_transformers_is_refused():
    unet = skeleton_with(down_block_types=["DownBlock3D"] * 4, up_block_types=["UpBlock3D"] * 4)
    with pytest.raises(UserError, match="no temporal transformer"):
        attach_highway(unet)
