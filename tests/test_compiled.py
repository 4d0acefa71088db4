"""torch.compile under every patch: equal numbers, few graphs, no breaks, no recompilation, and no trace once off.

Graphs are counted with a backend that runs them as they are; one test compiles a layer for real.
"""

from collections import Counter
from unittest.mock import Mock

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch.multiprocessing.reductions import StorageWeakRef

import train
from configs import schema
from configs.errors import UserError
from infer import generate, options
from infer.sampler import classifier_free_guidance
from models import compiled, methods
from models.activation_checkpointing import checkpoint_activations
from models.backbone import predictor
from models.backbones import leaves, unet3d
from models.compiled import compile_layers
from models.highway import attach_highway
from models.hooks import Patch, bypass_single_frames
from models.merge import attach_lora
from models.training import objective
from scripts.authors.weights import build_unet, fill

from keys import ONE_LEVEL

CPU = torch.device("cpu")
LATENTS, TEXT = (torch.randn(*s, generator=torch.Generator().manual_seed(0)) for s in ((1, 4, 3, 8, 8), (1, 5, 32)))


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    counters.clear()


def prepared(highway, checkpointing, backend=None):
    """(U-Net, its method, the patch that compiles it) in training mode, adapters away from zero."""
    unet = fill(build_unet(ONE_LEVEL), 0).requires_grad_(False)
    bypass_single_frames(unet)
    values = {"train_data": {"single_video_path": "random"}, "lora_rank": 4}
    cfg = schema.from_dict({**values, "appearance_highway": {"use": highway}})
    method = methods.attach(unet, cfg, clips=1, latent_size=(3, 8, 8))
    for number, parameter in enumerate([*method.motion_parameters, *method.appearance_parameters]):
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    patch = compile_layers(unet, "blocks", CPU, training=True, backend=backend) if backend else None
    if checkpointing:
        checkpoint_activations(unet)
    return unet.train(), method, patch


def gradients(unet, method, numbers):
    """All adapters' gradients after steps `numbers`; every third step leaves the appearance out."""
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parameters = [*method.motion_parameters, *method.appearance_parameters]
    for parameter in parameters:
        parameter.grad = None
    for number in numbers:
        torch.manual_seed(number)  # the masks
        draw = objective.draw_step(0, number, LATENTS)._replace(spatial=number % 3 != 2)
        train.training_step(predictor(unet), scheduler, method, LATENTS, TEXT, draw)
    return torch.cat([p.grad.flatten() for p in parameters])


def small_wan(layers):
    """(transformer, its method) in training mode, adapters away from zero."""
    torch.manual_seed(0)
    network = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
        rope_max_seq_len=64,
    ).requires_grad_(False)
    values = {"train_data": {"single_video_path": "random"}, "lora_rank": 4, "lora_unet_dropout": 0.0}
    cfg = schema.from_dict({**values, "appearance_highway": {"use": "off"}})
    method = methods.attach(network, cfg, clips=1, latent_size=(3, 8, 8))
    for parameter in learned(method):
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return network.train(), method


def learned(method):
    return [*method.motion_parameters, *method.appearance_parameters]


def steps_of_wan(network, method, numbers):
    """All adapters' gradients after steps `numbers`; every third step leaves the appearance out."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for number in numbers:
        draw = objective.draw_step(0, number, LATENTS, scheduler=scheduler)._replace(spatial=number % 3 != 2)
        train.training_step(predictor(network), scheduler, method, LATENTS, TEXT, draw)
    return [p.grad for p in learned(method)]


def test_training_is_the_same_in_at_most_three_graphs_a_kind(monkeypatch):
    """Both adapters, bypass, highway, recomputed activations and dropout; alternating passes compile no more."""
    graphs, region = Counter(), compiled._region

    def counted(forward, most, backend, options):
        number = len(graphs)  # of the kind
        graphs[number] = 0

        def count(graph, inputs):
            graphs[number] += 1
            return graph.forward

        return region(forward, most, count, options)

    monkeypatch.setattr(compiled, "_region", counted)
    unet, method, _ = prepared("training", True, backend=lambda graph, inputs: graph.forward)
    plain = gradients(*prepared("training", True)[:2], range(3))
    torch.testing.assert_close(gradients(unet, method, range(3)), plain, rtol=1e-5, atol=1e-7)
    first = dict(graphs)
    assert max(first.values()) == 3 and sum(first.values()) > 15
    gradients(unet, method, range(3, 6))
    assert dict(graphs) == first, "alternating passes compiled again"
    assert not counters["graph_break"] and not counters["recompile_limit"]


def test_the_blocks_of_a_transformer_share_six_graphs_however_many_there_are():
    """Each of the three states twice: in the first block nothing before the adapters gets a gradient."""
    graphs, (network, method) = [], small_wan(layers=3)
    expected = [gradient.clone() for gradient in steps_of_wan(network, method, range(3))]
    for parameter in learned(method):
        parameter.grad = None
    backend = lambda graph, inputs: graphs.append(0) or graph.forward
    compile_layers(network, "blocks", CPU, training=True, backend=backend)
    for one, other in zip(steps_of_wan(network, method, range(3)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert len(graphs) == 6
    steps_of_wan(network, method, range(3, 6))
    assert len(graphs) == 6 and not counters["graph_break"] and not counters["recompile_limit"]


def test_sampling_in_the_middle_of_a_training_runs_as_it_was_and_taking_the_patch_off_leaves_nothing():
    graphs = []
    unet, method, patch = prepared("sampling", False, backend=lambda graph, inputs: graphs.append(0) or graph.forward)
    unet.eval()
    with method.sampling(), torch.no_grad():
        classifier_free_guidance(predictor(unet), TEXT, TEXT, scale=3.0)(LATENTS, torch.tensor(500))
    assert not graphs, "training=True compiles in training mode alone"
    patch.remove()
    gradients(unet.train(), method, [0])
    assert not graphs


@pytest.mark.parametrize("mode", ["blocks", "step"])
def test_sampling_compiles_once_with_adapters_beside_the_layers(mode, monkeypatch):
    """Half precision runs a LoRA beside the weights, where fp32 merges it into them. Of `step` the graphs run as they
    are, on the CPU, and each forward of the whole U-Net begins a new step for what would be recorded."""
    begun, device = [], torch.device("cuda" if mode == "step" else "cpu")
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(0))
    graphs, unet = [], fill(build_unet(ONE_LEVEL), 0).requires_grad_(False)
    bypass_single_frames(unet)
    cfg = schema.from_dict({"train_data": {"single_video_path": "random"}, "lora_rank": 4})
    method = methods.attach(unet, cfg, clips=1, latent_size=(3, 8, 8))
    for number, parameter in enumerate(method.motion_parameters):
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    state = method.motion.state_dict()
    for adapter in (method.motion, *method.appearance):
        adapter.remove()
    torch.nn.Module.to(unet, torch.bfloat16).eval()
    denoise = classifier_free_guidance(predictor(unet), TEXT, TEXT, scale=3.0)
    with attach_lora(unet, state), torch.no_grad():
        plain = denoise(LATENTS, torch.tensor(500))
        with compile_layers(unet, mode, device, training=False, backend=lambda g, i: graphs.append(0) or g.forward):
            torch.testing.assert_close(denoise(LATENTS, torch.tensor(500)), plain, rtol=1e-4, atol=1e-5)
            first = len(graphs)
            denoise(LATENTS, torch.tensor(300))
        assert len(begun) == (2 if mode == "step" else 0)
        torch.testing.assert_close(denoise(LATENTS, torch.tensor(500)), plain, rtol=0, atol=0)  # taken off again
    assert first == len(graphs) > 5 and not counters["graph_break"]
    assert len(begun) == (2 if mode == "step" else 0)
    kinds = {(unet3d.level(name), compiled._kind(layer)) for name, layer in leaves(unet)}
    assert first <= len(kinds)


def test_gradients_do_not_lie_in_memory_that_the_next_forward_frees(monkeypatch):
    """As CUDA graphs would have it, on the CPU: a compiled backward's results are gone when the next step is marked."""
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    results = []  # weakly, since autograd only takes a gradient over that nobody else holds

    def backward(graph, inputs):
        def run(*args):
            found = graph(*args)
            results.extend(StorageWeakRef(x.untyped_storage()) for x in found if torch.is_tensor(x))
            return found

        return make_boxed_func(run)

    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=backward)
    network, method = small_wan(layers=1)
    expected = [gradient.clone() for gradient in steps_of_wan(network, method, [0])]
    for parameter in learned(method):
        parameter.grad = None
    options = dict(training=True, learned=learned(method), backend=backend)
    patch = compile_layers(network, "step", torch.device("cuda"), **options)
    assert not any(p.requires_grad for p in learned(method)), "frozen outside of the passes, as before"
    found = steps_of_wan(network, method, [0])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    alive = {result.cdata for result in results if not result.expired()}
    assert results and not any(gradient.untyped_storage()._cdata in alive for gradient in found)
    patch.remove()
    assert not any(p._backward_hooks for p in learned(method))


def test_the_value_highway_keeps_nothing_in_memory_that_the_next_forward_frees(monkeypatch):
    """As CUDA graphs would have it, on the CPU: what compiled blocks returned is overwritten at the next mark."""
    results = []

    def free():
        for result in results:
            result.fill_(torch.nan)
        results.clear()

    def kept(graph, inputs):
        def run(*args):
            found = graph(*args)
            results.extend(x for x in found if torch.is_tensor(x))
            return found

        return make_boxed_func(run)

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", free)
    network, method = small_wan(layers=2)
    state = method.motion.state_dict()
    for adapter in (method.motion, *method.appearance):
        adapter.remove()
    network.eval()
    forward = lambda: network(LATENTS, torch.tensor([500.0]), TEXT).sample
    with torch.no_grad(), attach_lora(network, state, beside=True):
        alone = forward()
        with attach_highway(network, "value"):
            expected = forward()
        options = dict(training=False, backend=aot_autograd(fw_compiler=kept))
        with compile_layers(network, "step", torch.device("cuda"), **options), attach_highway(network, "value"):
            torch.testing.assert_close(forward(), expected, rtol=1e-4, atol=1e-5)
    assert (expected - alone).abs().max() > 1e-3


def test_a_real_compiler_gives_the_same_numbers_and_the_same_masks(monkeypatch):
    """A temporal convolution with its dropout, compiled to machine code."""
    monkeypatch.setattr(compiled, "_check_compiler", lambda device: None)  # it would compile one more
    outcomes = []
    for mode in ("off", "blocks"):
        unet = fill(build_unet(ONE_LEVEL), 0).requires_grad_(False).train()
        layer = unet.down_blocks[0].temp_convs[0]
        compile_layers(unet, mode, CPU, training=True)
        x = torch.randn(3, 32, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
        torch.manual_seed(7)
        y = layer(x, num_frames=3)
        y.square().sum().backward()
        outcomes.append((y.detach(), x.grad))
    for plain, fast in zip(*outcomes):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def test_the_key_and_the_flag_reach_the_compiler(tiny_config, trained, tmp_path, monkeypatch, capsys):
    asked = []

    def told(_unet, mode, device, *, training, learned):
        asked.append((mode, str(device), training))
        return Patch()

    run = trained(max_train_steps=1)
    lean = []
    monkeypatch.setattr(compiled, "compile_layers", told)
    monkeypatch.setattr(compiled, "attach_lean", lambda network: lean.append(network) or Patch())
    train.run(tiny_config(compile="blocks", max_train_steps=1, validation_data={"sample_preview": False}))
    assert not lean, "one replaces what the other changes"
    words = ["-cf", str(run), "--prompt", "a car", "-s", "1", "-o", str(tmp_path), "--device", "cpu"]
    list(generate.generate(options.parse([*words, "--compile", "blocks"])))
    assert ("blocks", "cpu", True) in asked and asked[-1] == ("blocks", "cpu", False)
    assert capsys.readouterr().err.count(compiled.WAIT) == 2, "both say why their first step takes so long"


def test_a_missing_compiler_is_one_sentence(monkeypatch):
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.raises(
            UserError, match=r"compile: nothing can be compiled here .*install a C\+\+ compiler"
        ) as told:
            compile_layers(build_unet(ONE_LEVEL), "blocks", CPU, training=True)
    with monkeypatch.context() as broken, pytest.raises(UserError, match=r"compiled here \(RuntimeError\); install"):
        broken.setattr(torch, "compile", Mock(side_effect=RuntimeError()))
        compiled._check_compiler(CPU)
    assert "TORCHDYNAMO" not in str(told.value), "how to debug PyTorch is no help here"


def test_graphs_of_the_device_need_cuda():
    with pytest.raises(UserError, match="step replays CUDA graphs and the device is cpu; use compile=blocks"):
        compile_layers(build_unet(ONE_LEVEL), "step", CPU, training=True)


def test_another_kind_of_model_is_refused():
    with pytest.raises(UserError, match="compile: it is made for the 3-D U-Net and Wan, and this is a Linear"):
        compile_layers(torch.nn.Linear(2, 2), "blocks", CPU, training=True, backend="eager")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"compile": "step", "gradient_checkpointing": True}, "set gradient_checkpointing to false"),
        ({"compile": "blocks", "memory": "small", "gradient_checkpointing": True}, "set one of the two"),
    ],
)
def test_keys_that_contradict_compiling_are_refused(keys, sentence, tiny_config):
    with pytest.raises(UserError, match=sentence):
        tiny_config(**keys)


def test_flags_that_contradict_compiling_are_refused():
    with pytest.raises(UserError, match="--memory is small"):
        options.parse(["--compile", "blocks", "--memory", "small"])


def test_off_imports_no_compiler_and_changes_nothing():
    unet = build_unet(ONE_LEVEL)
    compile_layers(unet, "off", CPU, training=True)
    assert not any("_forward_wrappers" in vars(module) for module in unet.modules())
