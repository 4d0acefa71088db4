"""LoRA adapters: which layers, in which order; off is the base model; merged is injected; taken out is untouched."""

import json
import time
from itertools import pairwise

import pytest
import torch

from configs.errors import UserError
from models.backbones.unet3d import PRESETS
from models.lora import active, add_adapter
from models.merge import attach_lora, merge
from models.outline import skeleton
from models.targets import targets
from models.training import memory
from scripts.authors.weights import build_unet

from conftest import ROOT, UNET, outcome

NARROW = {**UNET, "block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def unet():
    return build_unet(NARROW)


def learned(unet, name, preset="tap", seed=1, **options):
    """An adapter whose up matrices are not zero."""
    generator = torch.Generator().manual_seed(seed)
    adapter = add_adapter(unet, name, preset, 4, generator=generator, **options)
    with torch.no_grad():
        for up in adapter.parameters()[1::2]:
            up.normal_(0, 0.1, generator=generator)
    return adapter


@pytest.mark.parametrize("system", ["train", "motiondirector"])
def test_names_and_their_order_are_those_of_the_reference_files(system):
    listed = json.loads((GOLDEN / f"lora_{system}_targets.json").read_text())
    unet = skeleton(GOLDEN / "tiny_zeroscope")
    preset = {"train": "release"}.get(system, system)
    assert targets(unet, preset) == [layer["name"] for layer in listed["temporal"]]
    assert targets(unet, "appearance") == [layer["name"] for layer in listed["spatial"]]


@pytest.mark.parametrize(
    ("preset", "layers", "parameters"),
    [
        ("tap", 68, 3_325_952),
        ("tap_key", 34, 1_662_976),
        ("release", 68, 3_325_952),
        ("motiondirector", 170, 12_472_320),
        ("appearance", 96, 8_785_920),
    ],
)
def test_presets_have_the_papers_size_on_zeroscope(preset, layers, parameters):
    unet = skeleton()
    shapes = [unet.get_submodule(name).weight.shape for name in targets(unet, preset)]
    assert len(shapes) == layers
    assert sum(32 * (out + width) for out, width in shapes) == parameters


def test_targets_stay_the_same_once_adapters_are_in(unet):
    before = {preset: targets(unet, preset) for preset in PRESETS}
    learned(unet, "motion", "motiondirector")
    learned(unet, "appearance_0", "appearance")
    assert {preset: targets(unet, preset) for preset in PRESETS} == before


def test_an_unknown_preset_is_answered_with_the_nearest(unet):
    with pytest.raises(UserError, match="did you mean tap_key"):
        targets(unet, "tap_keys")


def test_a_model_without_the_layers_is_answered_with_its_nearest_names():
    with pytest.raises(UserError, match=r"no layer .*nearest names are"):
        targets(torch.nn.ModuleDict({"temp_attention": torch.nn.Linear(2, 2)}), "tap")


def test_off_is_the_base_model_and_so_is_a_fresh_adapter_that_acts(unet, inputs):
    base = outcome(unet, inputs)
    fresh = add_adapter(unet, "motion", "motiondirector", 4)
    assert torch.equal(outcome(unet, inputs), base)
    with active([fresh], on=[fresh]):
        assert torch.equal(outcome(unet, inputs), base)


def test_adapters_act_only_when_switched_on_and_all_is_restored_after_an_exception(unet, inputs):
    base = outcome(unet, inputs)
    motion, appearance = adapters = learned(unet, "motion"), learned(unet, "appearance_0", "appearance")
    with pytest.raises(ZeroDivisionError), active(adapters, on=[motion], trainable=[motion]):
        assert not torch.equal(outcome(unet, inputs), base)
        assert all(p.requires_grad for p in motion.parameters()) and not any(
            p.requires_grad for p in appearance.parameters()
        )
        raise ZeroDivisionError
    assert torch.equal(outcome(unet, inputs), base)
    assert not any(p.requires_grad for p in unet.parameters())


def test_gradients_reach_the_trainable_adapter_alone(unet, inputs):
    motion, appearance = adapters = learned(unet, "motion"), learned(unet, "appearance_0", "appearance")
    with active(adapters, on=adapters, trainable=[motion]):
        unet(*inputs).sample.square().mean().backward()
    assert all(p.grad is not None for p in motion.parameters())
    assert all(p.grad is None for p in appearance.parameters())


def test_adapters_on_the_same_layers_are_parallel_not_nested(unet):
    a, b = adapters = [learned(unet, f"appearance_{i}", "appearance", seed=i) for i in range(2)]
    name, layer = next(iter(a.layers.items()))
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), active(adapters, on=adapters):
        both = layer(x)
        apart = layer.base_layer(x)
        for state in (a.state_dict(), b.state_dict()):
            apart = apart + x @ state[f"{name}.lora_A.weight"].T @ state[f"{name}.lora_B.weight"].T
    torch.testing.assert_close(both, apart)


def test_switching_costs_less_than_a_millisecond(unet):
    adapters = [learned(build_unet(UNET), "motion")]
    best = float("inf")
    for _ in range(50):
        start = time.perf_counter()
        with active(adapters, on=adapters, trainable=adapters):
            pass
        best = min(best, time.perf_counter() - start)
    assert best < 1e-3


def test_release_dropout_acts_after_up_and_peft_dropout_before_down(unet):
    element_wise = {}
    for placement in ("release", "peft"):
        adapter = learned(unet, placement, dropout=0.5, placement=placement)
        layer = next(iter(adapter.layers.values()))
        x = torch.randn(1, 400, layer.in_features, generator=torch.Generator().manual_seed(3))
        with torch.no_grad(), active([adapter], on=[adapter]):
            whole = layer(x) - layer.base_layer(x)
            layer.train()
            dropped = layer(x) - layer.base_layer(x)
            layer.eval()
        adapter.remove()
        zero, double = (dropped.abs() < 1e-5), (dropped - 2 * whole).abs() < 1e-5
        element_wise[placement] = (zero | double).float().mean().item()
        assert not torch.equal(dropped, whole)
    assert element_wise["release"] == 1 and element_wise["peft"] < 0.1


def test_rank_is_clipped_to_the_layer_and_the_scale_is_not(unet):
    adapter = add_adapter(unet, "motion", "motiondirector", 50, alpha=25)
    ranks = {layer.lora_A["motion"].weight.shape[0] for layer in adapter.layers.values()}
    assert ranks == {32, 50}
    assert {layer.scaling["motion"] for layer in adapter.layers.values()} == {0.5} and adapter.scale == 0.5


def test_masters_are_fp32_on_a_half_precision_model_and_initialised_as_the_release(unet):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    unet.to(torch.bfloat16)
    adapters = [add_adapter(unet, name, "release", 8, generator=torch.Generator().manual_seed(7)) for name in "ab"]
    first, second = (adapter.parameters() for adapter in adapters)
    assert {p.dtype for p in first} == {torch.float32}
    assert all(torch.equal(p, q) for p, q in zip(first, second))
    assert abs(torch.cat([p.flatten() for p in first[::2]]).std() - 1 / 8) < 5e-3
    assert not any(p.any() for p in first[1::2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_state_goes_round_and_a_wrong_one_changes_nothing(unet):
    adapter, other = learned(unet, "motion", seed=1), learned(unet, "other", seed=2)
    other.load_state_dict(adapter.state_dict())
    assert all(torch.equal(p, q) for p, q in zip(adapter.parameters(), other.parameters()))
    state = {key: torch.zeros_like(value) for key, value in adapter.state_dict().items()}
    *_, last = state
    for wrong in (
        {**state, last: torch.zeros(1, 1)},
        {**state, "more.lora_A.weight": torch.zeros(1)},
        {key: value for key, value in state.items() if key != last},
    ):
        with pytest.raises(UserError):
            other.load_state_dict(wrong)
    assert all(torch.equal(p, q) for p, q in zip(adapter.parameters(), other.parameters()))


@pytest.mark.parametrize("preset", ["tap", "release", "motiondirector", "appearance"])
def test_merged_equals_injected_and_removing_restores_the_tensors(unet, inputs, preset):
    tensors = [p.data for p in unet.parameters()]
    base = outcome(unet, inputs)
    adapter = learned(unet, "motion", preset, alpha=2.0)
    with active([adapter], on=[adapter]):
        injected = outcome(unet, inputs)
    with merge(unet, adapter.state_dict(), 1.0, adapter.scale):  # into the base of layers that carry peft adapters
        torch.testing.assert_close(outcome(unet, inputs), injected, rtol=0, atol=2e-5)
    adapter.remove()
    with merge(unet, adapter.state_dict(), 1.0, adapter.scale):
        torch.testing.assert_close(outcome(unet, inputs), injected, rtol=0, atol=2e-5)
    assert torch.equal(outcome(unet, inputs), base)
    assert all(p.data_ptr() == t.data_ptr() and torch.equal(p, t) for p, t in zip(unet.parameters(), tensors))


def test_scale_zero_merges_nothing_at_all(unet):
    before = unet.state_dict()
    adapter = learned(unet, "motion")
    adapter.remove()
    with merge(unet, adapter.state_dict(), 0.0):
        assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merges_add_up_and_come_off_in_any_order(unet, dtype):
    adapters = [learned(unet, f"a{i}", "tap", seed=i) for i in range(3)]
    states = [adapter.state_dict() for adapter in adapters]
    for adapter in adapters:
        adapter.remove()
    unet.to(dtype)
    name = targets(unet, "tap")[0]
    weight = unet.get_submodule(name).weight
    original = weight.detach().clone()
    patches = [merge(unet, state, 0.5) for state in states]
    patches[0].remove()
    expected = original.float()
    for state in states[1:]:
        expected = expected + 0.5 * state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
    torch.testing.assert_close(weight.detach(), expected.to(dtype))
    for patch in (patches[2], patches[1]):
        patch.remove()
    assert torch.equal(weight, original)


def test_removed_adapters_leave_the_model_as_it_was(unet):
    names = [name for name, _ in unet.named_modules()]
    adapters = [learned(unet, "motion"), learned(unet, "other"), learned(unet, "appearance_0", "appearance")]
    for adapter in adapters:
        adapter.remove()
    assert [name for name, _ in unet.named_modules()] == names
    assert not hasattr(unet, "peft_config")


def test_merging_what_does_not_fit_is_refused_and_changes_nothing(unet):
    adapter = learned(unet, "motion")
    adapter.remove()
    before = unet.state_dict()
    state = adapter.state_dict()
    first, second = next(pairwise(state))
    for wrong, message in (
        (
            ({"nowhere.to_q.lora_A.weight": state[first], "nowhere.to_q.lora_B.weight": state[second]}),
            "no linear layer",
        ),
        ({first: torch.zeros(4, 7), second: state[second]}, "made for a weight"),
        ({first: state[first]}, "no up matrix"),
        ({second: state[second]}, "no partner"),
    ):
        with pytest.raises(UserError, match=message):
            merge(unet, {**dict(list(state.items())[2:]), **wrong})
    assert all(torch.equal(v, before[k]) for k, v in unet.state_dict().items())


def test_products_run_in_the_models_precision_and_gradients_stay_fp32():
    flop, gradients = {}, {}
    for dtype in (torch.bfloat16, torch.float32):
        unet = torch.nn.Module.to(skeleton(GOLDEN / "tiny_zeroscope"), dtype).requires_grad_(False)
        adapters = [add_adapter(unet, "motion", "tap", 4), add_adapter(unet, "other", "appearance", 4)]
        width = unet.config.cross_attention_dim
        latents, text = (torch.empty(shape, device="meta", dtype=dtype) for shape in ((1, 4, 3, 8, 8), (1, 5, width)))

        def step(unet=unet, adapters=adapters, latents=latents, text=text):
            with active(adapters, on=adapters, trainable=adapters):
                time = torch.empty(1, dtype=torch.long, device="meta")
                unet(latents, time, text).sample.float().square().mean().backward()

        flop[dtype] = memory.count_flop_by_dtype(step)
        gradients[dtype] = {p.grad.dtype for adapter in adapters for p in adapter.parameters()}
    assert flop[torch.float32].keys() == {"float32"} and flop[torch.bfloat16].keys() == {"bfloat16"}
    assert flop[torch.float32]["float32"] == flop[torch.bfloat16]["bfloat16"]
    assert gradients[torch.bfloat16] == {torch.float32}


def test_a_layers_gradients_in_half_precision_keep_the_digits_of_that_precision(unet):
    adapter = learned(unet, "motion")
    name, layer = next(iter(adapter.layers.items()))
    x, g = torch.randn(2, 256, layer.in_features, generator=torch.Generator().manual_seed(3)).bfloat16()

    def gradients(dtype):
        layer.base_layer.to(dtype)
        for p in adapter.parameters():
            p.grad = None
        with adapter.training():
            layer(x.to(dtype)).backward(g.to(dtype))
        return [adapter.matrices[f"{name}.lora_{side}.weight"].weight.grad for side in "AB"]

    rounded, exact = gradients(torch.bfloat16), gradients(torch.float32)
    for a, b in zip(rounded, exact):
        assert a.dtype == torch.float32 and 0 < (a - b).norm() / b.norm() < 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_samples_what_was_learned_to_the_bit(unet, inputs, dtype):
    """A merged weight is rounded to the base's digits, which a small motion does not survive."""
    adapter = learned(unet.to(dtype), "motion", alpha=0.2)
    sample, time, text = (x.to(dtype) if x.is_floating_point() else x for x in inputs)
    plain = outcome(unet, (sample, time, text))
    with active([adapter], on=[adapter]):
        trained = outcome(unet, (sample, time, text))
    adapter.remove()
    with attach_lora(unet, adapter.state_dict(), 1.0, adapter.scale):
        assert torch.equal(outcome(unet, (sample, time, text)), trained) and not torch.equal(trained, plain)
    assert torch.equal(outcome(unet, (sample, time, text)), plain)

    name, layer = targets(unet, "tap")[0], unet.get_submodule(targets(unet, "tap")[0])
    x = torch.randn(64, layer.in_features, generator=torch.Generator().manual_seed(5))
    state = adapter.state_dict()
    delta = adapter.scale * x @ state[f"{name}.lora_A.weight"].T @ state[f"{name}.lora_B.weight"].T

    def lost(patch):  # share of the learned change that the layer's weights do not carry; products in fp64
        with patch:
            return ((layer.weight.double() - before) @ x.T.double() - delta.T).norm() / delta.norm()

    before = layer.weight.detach().double().clone()
    assert lost(merge(unet, state, 1.0, adapter.scale)) > 2 * torch.finfo(dtype).eps


def test_fp32_samples_with_merged_weights_and_no_extra_products(unet):
    adapter = learned(unet, "motion")
    adapter.remove()
    name = targets(unet, "tap")[0]
    linear = unet.get_submodule(name)
    before = linear.weight.detach().clone()
    with attach_lora(unet, adapter.state_dict(), 0.5, 2.0):
        assert "forward" not in linear.__dict__ and not torch.equal(linear.weight, before)
        scaled = linear.weight.detach().clone()
    with merge(unet, adapter.state_dict(), 1.0):
        assert torch.equal(linear.weight, scaled), "strength times scale"
    assert torch.equal(linear.weight, before)
