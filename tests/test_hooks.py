import gc
import weakref

import pytest
import torch
from diffusers.models import modeling_utils
from torch.utils.checkpoint import checkpoint

from models import activation_checkpointing, hooks
from models.activation_checkpointing import checkpoint_activations
from models.backbones import leaves
from models.embeddings import attach_embeddings
from models.highway import attach_highway
from models.hooks import bypass_single_frames, know_dtype, training_mode, wrap_forward
from models.lora import active, add_adapter
from models.merge import merge
from models.value_highway import attach_value_highway
from scripts.authors.weights import build_unet

from conftest import UNET


@pytest.fixture(scope="module")
def unet():
    return build_unet(UNET)


def inputs(frames):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(1, 4, frames, 8, 8, generator=generator),
        torch.tensor([500]),
        torch.randn(1, 5, 32, generator=generator),
    )


@torch.no_grad()
def test_one_frame_bypass_equals_a_model_whose_temporal_layers_are_the_identity(unet):
    plain = unet(*inputs(1)).sample
    with bypass_single_frames(unet):
        bypassed = unet(*inputs(1)).sample
    silenced = build_unet(UNET)
    for name, parameter in silenced.named_parameters():
        if ".conv4.3." in name or ("temp_attentions" in name or "transformer_in" in name) and ".proj_out." in name:
            parameter.zero_()
    assert torch.equal(bypassed, silenced(*inputs(1)).sample)
    assert not torch.allclose(bypassed, plain)
    assert torch.equal(unet(*inputs(1)).sample, plain), "removed, the model is as before"


@torch.no_grad()
def test_one_frame_bypass_leaves_clips_alone(unet):
    plain = unet(*inputs(3)).sample
    with bypass_single_frames(unet):
        assert torch.equal(unet(*inputs(3)).sample, plain)


@pytest.mark.parametrize("frames", [1, 3])
def test_checkpointing_gives_the_same_gradients_and_dropout(unet, frames):
    def gradients():
        torch.manual_seed(1)
        for parameter in unet.parameters():
            parameter.grad = None
        unet(*inputs(frames)).sample.square().sum().backward()
        return [None if p.grad is None else p.grad.clone() for p in unet.parameters()]

    unet.requires_grad_(True).train()
    try:
        with bypass_single_frames(unet):
            plain = gradients()
            with checkpoint_activations(unet):
                recomputed = gradients()
    finally:
        unet.requires_grad_(False).eval()
    assert all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in zip(plain, recomputed))


class OnMps(torch.Tensor):
    """A tensor in the CPU's memory that claims to be on MPS."""

    @property
    def device(self):
        return torch.device("mps")


def test_recomputed_layers_replay_the_masks_of_mps_and_leave_its_random_state_alone(monkeypatch):
    """A generator of its own stands for that of MPS, of which torch's checkpoint keeps nothing."""
    generator, masks = torch.Generator().manual_seed(0), []
    monkeypatch.setattr(torch.mps, "get_rng_state", generator.get_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", generator.set_state)

    class Layer(hooks.TemporalConvLayer):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, x):
            masks.append(torch.rand(x.shape, generator=generator) > 0.1)
            return (x.as_subclass(torch.Tensor) * masks[-1]).square().as_subclass(OnMps)

    layers = torch.nn.Sequential(Layer(), Layer())
    x = torch.randn(100, generator=torch.Generator().manual_seed(1)).as_subclass(OnMps).requires_grad_()
    with checkpoint_activations(layers):
        y = layers(x)
        after = generator.get_state()
        y.sum().backward()
    first, second, *again = masks
    assert len(again) == 2 and torch.equal(again[0], second) and torch.equal(again[1], first)
    assert torch.equal(generator.get_state(), after), "the next step draws what it would draw anyway"


def test_checkpointing_keeps_less_alive(unet):
    def saved_bytes():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            _ = unet(sample.requires_grad_(), time, text).sample
        return sum(sizes)

    sample, time, text = inputs(3)
    plain = saved_bytes()
    with checkpoint_activations(unet):
        assert saved_bytes() < plain / 3


@pytest.mark.parametrize("frames", [1, 3])
def test_every_checkpointed_call_gets_a_positional_tensor(unet, frames, monkeypatch):
    """torch.utils.checkpoint keeps CUDA's random state only for devices of positional tensors: without one, dropout
    draws other masks in the recomputation there."""
    calls = []

    def spy(forward, *args, **kwargs):
        calls.append(any(isinstance(x, torch.Tensor) for x in args))
        return checkpoint(forward, *args, **kwargs)

    monkeypatch.setattr(activation_checkpointing, "checkpoint", spy)
    layers = len(leaves(unet))
    with checkpoint_activations(unet), attach_highway(unet):
        _ = unet(*inputs(frames)).sample
    assert calls == [True] * layers


def test_patches_come_off_in_any_order():
    module = torch.nn.Identity()
    add = wrap_forward(module, lambda forward, x: forward(x) + 1)
    double = wrap_forward(module, lambda forward, x: forward(x) * 2)
    assert module(3) == 8
    add()
    assert module(3) == 6
    double()
    assert module(3) == 3 and "forward" not in module.__dict__


def test_a_patch_is_removed_when_its_block_raises(unet):
    with pytest.raises(RuntimeError, match="stop"), bypass_single_frames(unet):
        raise RuntimeError("stop")
    assert not any("forward" in module.__dict__ for module in unet.modules())


def test_a_dtype_that_is_known_is_not_looked_for(unet, monkeypatch):
    """The forward still casts to it, and the network is what it was when the patch is gone."""
    stock, plain, looked = type(unet), unet(*inputs(2)).sample, []
    find = modeling_utils.get_parameter_dtype
    monkeypatch.setattr(modeling_utils, "get_parameter_dtype", lambda module: looked.append(1) or find(module))
    with know_dtype(unet):
        assert looked == [1] and unet.dtype == torch.float32
        know_dtype(unet).remove()  # a second one changes nothing
        assert isinstance(unet, stock) and type(unet).__name__ == stock.__name__
        assert torch.equal(unet(*inputs(2)).sample, plain) and looked == [1]
    assert type(unet) is stock
    unet(*inputs(2))
    assert len(looked) > 1
    first, second = know_dtype(unet), know_dtype(unet)
    first.remove()
    second.remove()
    assert type(unet) is stock, "in whatever order they come off"


@pytest.mark.parametrize("removed", [False, True])
def test_a_model_is_freed_with_its_last_name(removed):
    """No cycle module -> forward -> module: whatever was attached, memory comes back without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        unet = build_unet(UNET)
        layers = [weakref.ref(module) for module in unet.modules()]
        patches = [bypass_single_frames(unet), checkpoint_activations(unet), attach_highway(unet)]
        patches.append(attach_embeddings(unet, height=8, width=8))
        adapters = [add_adapter(unet, "motion", "tap", 4), add_adapter(unet, "appearance", "appearance", 4)]
        unet.train()
        with active(adapters, on=adapters, trainable=adapters):
            unet(*inputs(3)).sample.square().mean().backward()
        patches += [merge(unet, adapters[0].state_dict()), attach_value_highway(unet)]
        if removed:
            while patches or adapters:
                (patches or adapters).pop().remove()
        del unet, adapters, patches
        assert sum(reference() is not None for reference in layers) == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("frozen_dropout", [True, False])
def test_frozen_dropout_off_silences_the_frozen_models_own_dropout_alone(unet, frozen_dropout):
    with add_adapter(unet, "motion", "tap", 2, dropout=0.5, placement="peft"):
        assert training_mode(unet, frozen_dropout) is unet
        modes = {name: m.training for name, m in unet.named_modules() if isinstance(m, torch.nn.Dropout)}
        of_loras = {name for name in modes if "lora_dropout" in name}
        assert of_loras and all(modes[name] for name in of_loras)
        assert {modes[name] for name in modes.keys() - of_loras} == {frozen_dropout}
        assert all(m.training for m in unet.modules() if not isinstance(m, torch.nn.Dropout))
    unet.eval()
