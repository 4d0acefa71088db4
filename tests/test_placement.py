"""Where the frozen model waits: on the device, in 8 bits, or on the host. Same training, fewer bytes."""

import pytest
import torch
from diffusers import DDIMScheduler, UNet3DConditionModel
from torch import nn

import train
from configs import schema
from configs.errors import UserError
from infer import generate, options
from infer.sampler import classifier_free_guidance
from models import methods
from models.activation_checkpointing import checkpoint_activations
from models.backbone import Backbone, predictor
from models.backbones.unet3d import ZEROSCOPE
from models.files.checkpoint import load_checkpoint
from models.hooks import bypass_single_frames
from models.lean import attach_lean
from models.merge import attach_lora, is_merged
from models.placement import is_plain, parameter_bytes, place
from models.quantized import EightBits
from models.training import objective
from scripts.authors.weights import build_unet, fill
from scripts.benchmark import steps

from keys import UNET

SIZE = (3, 8, 8)
CPU = torch.device("cpu")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def placed(memory):
    unet = fill(build_unet(UNET), 0).requires_grad_(False)
    resident = place(unet, CPU, memory)
    bypass_single_frames(unet)
    return unet, resident


def stream_of(unet):
    return unet.down_blocks[0].resnets[0].conv1.parametrizations.weight[0].stream


def training(unet, checkpointing=True, steps=3):
    """The gradients of each of `steps` steps, dropout included; step 2 leaves the appearance out."""
    cfg = schema.from_dict({"train_data": {"single_video_path": "random"}, "lora_rank": 4})
    method = methods.attach(unet, cfg, clips=1, latent_size=SIZE)
    parameters = [*method.motion_parameters, *method.appearance_parameters]
    for number, parameter in enumerate(parameters):
        parameter.data += 0.02 * random(*parameter.shape, seed=number)
    if checkpointing:
        checkpoint_activations(unet)
    unet.train()
    latents, text, found = random(1, 4, *SIZE), random(1, 5, unet.config.cross_attention_dim, seed=1), []
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    for number in range(steps):
        torch.manual_seed(number)
        draw = objective.draw_step(0, number, latents)._replace(spatial=number != 2)
        train.training_step(predictor(unet), scheduler, method, latents, text, draw)
        found.append(torch.cat([p.grad.flatten() for p in parameters]))
    unet.eval()
    with method.sampling(), torch.no_grad():
        found.append(classifier_free_guidance(predictor(unet), text, text, scale=3.0)(latents, torch.tensor(500)))
    return found


@pytest.fixture(scope="module")
def default():
    return training(placed("default")[0])


def error(found, reference):
    return ((found - reference).norm() / reference.norm()).item()


def test_weights_streamed_from_the_host_give_the_same_gradients_to_the_bit(default):
    unet, _ = placed("smallest")
    *gradients, prediction = training(unet)
    assert all(torch.equal(a, b) for a, b in zip(gradients, default))
    torch.testing.assert_close(prediction, default[-1], rtol=1e-4, atol=1e-5)  # LoRA beside the layers, not merged


def test_streaming_keeps_two_layers_and_brings_each_once_a_pass():
    unet, resident = placed("smallest")
    stream = stream_of(unet)
    largest = max(unit.flat.nbytes for unit in stream.units)
    host = sum(unit.flat.nbytes for unit in stream.units)
    assert stream.bytes == 2 * largest == sum(buffer.nbytes for buffer in stream.buffers)
    assert resident == parameter_bytes(unet) - host + stream.bytes
    for _ in range(2):  # the first pass learns the order, the second reads ahead and ends where it began
        before = stream.copies
        with torch.no_grad():
            unet(random(1, 4, *SIZE), torch.tensor(5), random(1, 5, 32, seed=1))
        assert len(stream.units) - 1 <= stream.copies - before <= len(stream.units) + 1


def test_the_next_layer_is_on_its_way_while_one_computes():
    unet, _ = placed("smallest")
    stream = stream_of(unet)
    order = [0, 1, 2, 3]
    for _ in range(2):
        for number in order:
            stream.read(number, 0)
    stream.read(0, 0)
    assert sorted(stream._holds) == [0, 1]
    stream.read(1, 0)
    assert sorted(stream._holds) == [1, 2]


def test_a_turn_of_direction_brings_nothing_twice():
    """As at the end of a forward pass: the layer that comes next is the one before, and still in its buffer."""
    stream = stream_of(placed("smallest")[0])
    there_and_back = [0, 1, 2, 3, 2, 1]
    for _ in range(3):
        before = stream.copies
        for number in there_and_back:
            stream.read(number, 0)
    assert stream.copies - before == len(there_and_back) - 2


def test_a_weight_that_has_left_before_its_gradient_is_an_error_and_no_wrong_number():
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        training(placed("smallest")[0], checkpointing=False, steps=1)


def test_eight_bits_keep_a_weight_to_half_a_step_of_its_channel():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = (random(6, 40) * torch.logspace(-4, 1, 6)[:, None]).to(dtype)
        weight[3] = 0
        whole, scale = EightBits().right_inverse(weight)
        again = EightBits()(whole, scale)
        assert whole.dtype == torch.int8 and again.dtype == scale.dtype == dtype
        step = weight.float().abs().amax(1, keepdim=True) / 127
        rounding = {torch.float32: 0, torch.bfloat16: 2**-8, torch.float16: 2**-8}[dtype]  # of product and scale
        assert ((again.float() - weight.float()).abs() <= step * 0.51 + rounding * weight.float().abs()).all()
        assert not again[3].any()


def test_eight_bits_change_a_trained_model_by_no_more_than_bf16_does():
    folder = "models/pocketscope"
    latents, found = random(1, 4, 8, 8, 8), {}
    for name, dtype, memory in (
        ("exact", torch.float32, "default"),
        ("small", torch.float32, "small"),
        ("bf16", torch.bfloat16, "default"),
    ):
        backbone = Backbone.load(folder, dtype, CPU, memory)
        text = random(1, 8, backbone.network.config.cross_attention_dim, seed=1)
        with torch.no_grad():
            found[name] = backbone.predict(latents, torch.tensor(400), text)
    assert 1e-4 < error(found["small"], found["exact"]) < 1.5 * error(found["bf16"], found["exact"]) < 0.05


def test_eight_bits_train_near_the_same_gradients(default):
    """The random weights here have no training to make them robust; a trained model's are ten times nearer."""
    found = training(placed("small")[0])
    assert all(1e-4 < error(a, b) < 0.2 for a, b in zip(found, default))
    near, exact = (
        training(Backbone.load("models/pocketscope", device=CPU, memory=memory).network)
        for memory in ("small", "default")
    )
    assert all(1e-4 < error(a, b) < 0.02 for a, b in zip(near, exact))


@pytest.mark.parametrize(("memory", "most"), [("small", 4.5e9), ("smallest", 3e9)])
def test_zeroscope_trains_in_fewer_gigabytes(memory, most):
    needed = steps.count_bytes(steps.MODELS["zeroscope"], cfg=steps.settings(memory=memory))
    assert most * 0.8 < needed <= most


def test_what_is_counted_on_the_device_is_what_lies_there():
    sizes = {}
    for memory in ("default", "small", "smallest"):
        with torch.device("meta"):
            unet = UNet3DConditionModel.from_config(ZEROSCOPE).requires_grad_(False)
        sizes[memory] = place(nn.Module.to(unet, torch.bfloat16), "meta", memory)
    assert sizes["default"] == 2 * 1_411_233_860
    assert 0.51 < sizes["small"] / sizes["default"] < 0.53  # one byte for 96 % of the weights
    assert sizes["smallest"] < 0.12 * sizes["default"]


@pytest.mark.parametrize("memory", ["small", "smallest"])
def test_a_lora_runs_beside_weights_that_cannot_be_changed(memory):
    unet, _ = placed(memory)
    name = "down_blocks.0.temp_attentions.0.transformer_blocks.0.attn1.to_q"
    layer, x = unet.get_submodule(name), random(2, 32)
    state = {f"{name}.lora_A.weight": random(2, 32, seed=1), f"{name}.lora_B.weight": random(32, 2, seed=2)}
    before = layer(x)
    with attach_lora(unet, state):
        assert not is_merged(unet, state), "as the note of a sampling says"
        delta = x @ state[f"{name}.lora_A.weight"].T @ state[f"{name}.lora_B.weight"].T
        torch.testing.assert_close(layer(x), before + delta, rtol=1e-4, atol=1e-5)
    assert torch.equal(layer(x), before) and not is_plain(layer)
    with attach_lora(plain := placed("default")[0], state):
        assert is_merged(plain, state)


def test_a_whole_training_with_streamed_weights_is_the_same_training(tiny_config, tmp_path, monkeypatch):
    """Backbone, cache, inversion, steps and checkpoint; and sampling through the same key's flag."""
    monkeypatch.setattr(
        train, "attach_quicker", lambda *_, **__: None
    )  # it adds in another order, and leaves such weights
    settings = {"gradient_checkpointing": True, "validation_data": {"sample_preview": False}}
    exact, run = (train.run(tiny_config(memory=memory, **settings)) for memory in ("default", "smallest"))
    for a, b in zip(load_checkpoint(exact).motion.values(), load_checkpoint(run).motion.values(), strict=True):
        assert torch.equal(a, b)
    words = ["-cf", str(run), "--prompt", "a car", "-s", "1", "--seed", "3", "--memory"]
    videos = [
        next(iter(generate.generate(options.parse([*words, memory, "-o", str(tmp_path / memory)]))))
        for memory in ("default", "smallest")
    ]
    assert all(path.is_file() for path in videos)


@pytest.mark.parametrize("memory", ["small", "smallest"])
def test_the_lean_unet_leaves_weights_alone_that_are_made_when_they_are_read(memory):
    """What it keeps of a weight for the backward pass would be another layer's by then."""
    unet, _ = placed(memory)
    before = {name for name, module in unet.named_modules() if "_forward_wrappers" in vars(module)}
    attach_lean(unet)
    assert before == {name for name, module in unet.named_modules() if "_forward_wrappers" in vars(module)}
    assert attach_lean(placed("default")[0])._undo


@pytest.mark.parametrize("memory", ["small", "smallest"])
def test_memory_is_saved_only_where_activations_are_recomputed(memory, tiny_config):
    with pytest.raises(UserError, match="memory: .* set gradient_checkpointing to true"):
        tiny_config(memory=memory, gradient_checkpointing=False)


def test_a_loaded_model_is_used_only_where_it_waits_as_asked(tiny_pipeline):
    backbone = Backbone.load(tiny_pipeline, memory="small")
    args = options.parse(["--model", str(tiny_pipeline), "--prompt", "a car"])
    with pytest.raises(UserError, match="memory small, and the request asks for .* memory default"):
        next(iter(generate.generate(args, backbone)))


def test_a_model_that_waits_on_the_host_is_the_same_model(tiny_pipeline):
    """Its clips need not be encoded again, and its sidecars name it."""
    plain, streamed, small = (Backbone.load(tiny_pipeline, memory=m) for m in ("default", "smallest", "small"))
    assert streamed.fingerprint() == plain.fingerprint() != small.fingerprint()


def test_another_kind_of_model_is_refused():
    with pytest.raises(UserError, match="memory: small is made for the 3-D U-Net and Wan, and this is a Linear"):
        place(nn.Linear(2, 2), CPU, "small")
