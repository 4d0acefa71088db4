"""What only a CUDA device, or the real ZeroScope weights, can show. Each test skips itself with a reason.

Where a CPU can run the same lines they also run there, so that the tests themselves are tested on every machine: what
must agree to rounding on CUDA is then equal to the bit.
"""

import gc
import json
import os
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel
from torch._dynamo.utils import counters
from transformers import CLIPTextConfig, CLIPTextModel

import train
from configs.schema import to_yaml
from infer import options
from infer.generate import generate
from infer.guidance import GuidanceSettings, MotionGuidance
from infer.sampler import classifier_free_guidance, sample
from infer.video import read_frames
from models import methods
from models.activation_checkpointing import checkpoint_activations
from models.backbone import Backbone, predictor
from models.backbones.unet3d import PRESETS, ZEROSCOPE
from models.compiled import compile_layers
from models.files.checkpoint import load_checkpoint
from models.hooks import bypass_single_frames
from models.placement import parameter_bytes
from models.training import objective
from models.training.memory import PeakBytes
from scripts.authors.weights import build_unet, fill
from scripts.benchmark import steps
from scripts.benchmark.clock import peak_bytes
from scripts.pocket.architecture import build_tokenizer

from conftest import ROOT
from keys import ONE_LEVEL

WEIGHTS = ROOT / "models/zeroscope_v2_576w"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"no ZeroScope weights in {WEIGHTS.relative_to(ROOT)}")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])
SIZE = (4, 8, 8)


def records(folder):
    return list(map(json.loads, (folder / "log.jsonl").read_text().splitlines()))


def weights(folder, step):
    found = load_checkpoint(folder, step)
    states = (found.motion, *found.appearance)
    return torch.cat([t.flatten() for state in states for t in state.values()])


def gradients(pipeline, cfg, device, *, checkpointing, dropout):
    """Of one training step, both passes; adapters away from zero, the same numbers whatever the device."""
    backbone = Backbone.load(pipeline, torch.float32, device)
    method = methods.attach(backbone.network, cfg, clips=1, latent_size=SIZE)
    generator = torch.Generator().manual_seed(0)
    parameters = [*method.motion_parameters, *method.appearance_parameters]
    for p in parameters:
        p.data += 0.05 * torch.randn(p.shape, generator=generator).to(device)
    if checkpointing:
        checkpoint_activations(backbone.network)
    backbone.network.train(dropout)
    latents = torch.randn(1, 4, *SIZE, generator=generator).to(device)
    text = torch.randn(1, 6, 32, generator=generator).to(device)
    draw = objective.draw_step(0, 1, latents, spatial_probability=1.0)
    torch.manual_seed(3)  # of the dropout masks
    train.training_step(backbone.predict, backbone.scheduler, method, latents, text, draw)
    return torch.cat([p.grad.flatten().cpu() for p in parameters])


def difference(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture
def exact_fp32():
    """Convolutions on CUDA use TF32 unless they are told not to, and train.run lets matrix products use it."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, allowed in zip(switches, before):
        switch.allow_tf32 = allowed


SOME_PRESETS = [preset for preset in PRESETS if preset != "appearance"]
# every preset on CUDA; on a CPU one is enough to run the lines
CASES = [("cpu", "tap"), *(pytest.param("cuda", preset, marks=CUDA.marks) for preset in SOME_PRESETS)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("device", "preset"), CASES)
def test_gradients_are_those_of_the_cpu(tiny_pipeline, tiny_config, exact_fp32, device, preset, checkpointing):
    cfg = tiny_config(temporal_preset=preset)
    expected = gradients(tiny_pipeline, cfg, "cpu", checkpointing=False, dropout=False)
    found = gradients(tiny_pipeline, cfg, device, checkpointing=checkpointing, dropout=False)
    assert expected.norm() > 0
    assert difference(found, expected) <= (0 if device == "cpu" else 1e-3)


@pytest.mark.parametrize(("device", "preset"), CASES)
def test_recomputed_layers_replay_their_dropout(tiny_pipeline, tiny_config, exact_fp32, device, preset):
    """Other masks in the recomputation make an error of about a fifth."""
    cfg = tiny_config(temporal_preset=preset, lora_unet_dropout=0.1)
    kept, recomputed, without = (
        gradients(tiny_pipeline, cfg, device, checkpointing=checkpointing, dropout=dropout)
        for checkpointing, dropout in ((False, True), (True, True), (True, False))
    )
    assert difference(recomputed, kept) <= (0 if device == "cpu" else 1e-3)
    assert difference(without, kept) > 0.05, "the masks matter"


MOVES = [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")]
RESUMED = """
import sys, yaml
from configs.runtime import slow_imports
with slow_imports():
    import torch, train
    from configs.schema import from_dict
torch.use_deterministic_algorithms(sys.argv[1] == "deterministic", warn_only=True)
print(train.run(from_dict(yaml.safe_load(open(sys.argv[2])))))
"""


@pytest.mark.parametrize(
    ("device", "mode"),
    [("cpu", "deterministic"), *(pytest.param("cuda", mode, marks=CUDA.marks) for mode in ("deterministic", "plain"))],
)
def test_four_steps_are_two_and_two_more(tiny_config, tmp_path, device, mode):
    """To the bit on a CPU, and on CUDA with deterministic algorithms; without them to the rounding of atomic sums."""

    def run(name, **settings):
        path = tmp_path / f"{name}.yaml"
        config = tiny_config(
            device=device,
            max_train_steps=4,
            checkpointing_steps=2,
            gradient_checkpointing=True,
            validation_data={"sample_preview": False},
            output_dir=str(tmp_path / name),
            **settings,
        )
        path.write_text(to_yaml(config))
        environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        done = subprocess.run(
            [sys.executable, "-c", RESUMED, mode, str(path)],
            cwd=ROOT,
            env=environment,
            text=True,
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return type(tmp_path)(done.stdout.strip().splitlines()[-1])

    whole = run("whole")
    resumed = run("resumed", resume_from_checkpoint=str(whole / "checkpoint-2"))
    a, b = weights(whole, 4), weights(resumed, 4)
    if device == "cpu" or mode == "deterministic":
        assert torch.equal(a, b)
    else:  # AdamW's first steps are almost signs, which rounding can turn where a gradient is nearly zero
        assert (a - b).abs().mean() < 1e-5


@pytest.mark.parametrize(("first", "then"), [("cpu", "cpu"), *(pytest.param(*d, marks=CUDA.marks) for d in MOVES)])
def test_a_run_may_change_its_device(tiny_config, first, then):
    """AdamW keeps its step counters where its kernel wants them: on the GPU for the fused one."""
    settings = dict(mixed_precision="no", checkpointing_steps=2, validation_data={"sample_preview": False})
    folder = train.run(tiny_config(**settings, device=first, max_train_steps=2))
    words = dict(device=then, max_train_steps=4, resume_from_checkpoint=str(folder))
    resumed = train.run(tiny_config(**settings, **words))
    moved = weights(resumed, 4) - weights(folder, 2)
    assert moved.isfinite().all() and moved.any()
    assert then != "cuda" or torch.backends.cuda.matmul.allow_tf32


@pytest.mark.gpu
@needs_gpu
def test_fp16_skips_and_its_scale_survive_a_resume(tiny_config, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kwargs: scaler(*args, **kwargs, init_scale=2.0**26))
    settings = dict(
        device="cuda",
        mixed_precision="fp16",
        max_train_steps=24,
        checkpointing_steps=2,
        validation_data={"sample_preview": False},
    )
    whole = train.run(tiny_config(**settings))
    logged = records(whole)
    assert logged[0]["fp16_skipped"] and logged[0]["fp16_scale"] == 2.0**25, "a scale too large is halved"
    assert not logged[-1]["fp16_skipped"]
    for before, after in zip(logged, logged[1:]):
        assert after["fp16_scale"] == before["fp16_scale"] * (0.5 if after["fp16_skipped"] else 1)
    resumed = train.run(tiny_config(**settings, resume_from_checkpoint=str(whole / "checkpoint-2")))
    assert [r["fp16_scale"] for r in records(resumed)] == [r["fp16_scale"] for r in logged]


def random_pipeline(folder, unet, text_layers, vae_channels, dtype):
    """A pipeline of random weights on disk, in today's format."""
    tokenizer = build_tokenizer(["a", "car", "is", "running"])
    torch.manual_seed(0)
    unet = UNet3DConditionModel.from_config(unet)
    width = unet.config.cross_attention_dim
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=text_layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=vae_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=min(32, vae_channels[0]),
    )
    parts = (vae, CLIPTextModel(text), tokenizer, unet)
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    TextToVideoSDPipeline(*parts, schedule).to(dtype).save_pretrained(folder)
    return folder


ARCHITECTURES = {
    "cpu": (
        dict(block_out_channels=(32, 32, 64, 64), layers_per_block=1, cross_attention_dim=64, attention_head_dim=16),
        1,
        (8, 8, 16, 16),
    ),
    "cuda": (ZEROSCOPE, 23, (128, 256, 512, 512)),
}


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_training_of_zeroscope_stays_under_eight_gigabytes(tiny_config, tmp_path, device):
    """The whole of train.run at the default size and precision, encoding and inversion included, by the card's count.

    A CPU trains a small model with the same lines; its number is what the process holds.
    """
    unet, text_layers, vae = ARCHITECTURES[device]
    model = random_pipeline(tmp_path / "model", unet, text_layers, vae, torch.float16 if device == "cuda" else None)
    frames, side = (16, 384) if device == "cuda" else (4, 64)
    noise = np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8)
    iio.imwrite(tmp_path / "clip.mp4", noise, fps=8, macro_block_size=2)
    config = tiny_config(
        pretrained_model_path=str(model),
        device=device,
        mixed_precision="fp16",
        gradient_checkpointing=True,
        lora_rank=32,
        train_data={
            "single_video_path": str(tmp_path / "clip.mp4"),
            "single_video_prompt": "noise",
            "width": side,
            "height": side,
            "n_sample_frames": frames,
            "fps": 0,
            "use_bucketing": False,
        },
        validation_data={"sample_preview": False},
    )
    folder = train.run(config)
    peaks = [record["memory_gb"] for record in records(folder)]
    assert len(peaks) == 2 and min(peaks) > 0.1 and max(peaks) < 8
    assert not device == "cuda" or min(peaks) > 2.8, "the frozen model alone"


@pytest.mark.parametrize("memory", ["small", "smallest"])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_step_with_the_model_out_of_the_way_stays_near_its_counted_peak(device, memory):
    """On a CPU only the lines run: it has no allocator that counts."""
    architecture = steps.MODELS["zeroscope" if device == "cuda" else "pocket"]
    cfg, held = steps.settings(memory=memory), 0
    if device == "cuda":
        gc.collect()
        held = torch.cuda.memory_allocated(device)
    step = steps.Step(architecture, device, torch.bfloat16, checkpointing=True, cfg=cfg)
    step.train(0)
    peak = peak_bytes(lambda: step.train(1), torch.device(device))
    counted = steps.count_bytes(architecture, cfg=cfg)
    assert counted > 0 and (peak is None) == (device == "cpu")
    workspaces = 0.4e9  # of cuBLAS and cuDNN, which nothing counts
    assert peak is None or peak - held < 1.05 * counted + workspaces


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_text_encoder_that_visits_layer_by_layer_never_lies_on_the_card_as_a_whole(
    tiny_pipeline, exact_fp32, device, monkeypatch
):
    whole = Backbone.load(tiny_pipeline, torch.float32, "cpu").encode_text(["a car"])
    monkeypatch.setattr("models.backbone._free_bytes", lambda _: 0)
    backbone = Backbone.load(tiny_pipeline, torch.float32, device)
    backbone.encode_text(["a car"])  # what a first call sets up does not count
    held = torch.cuda.memory_allocated(device) if device == "cuda" else 0
    peak = peak_bytes(lambda: backbone.encode_text(["a car"]), torch.device(device))
    assert difference(backbone.encode_text(["a car"]).cpu(), whole) < (1e-5 if device == "cuda" else 1e-12)
    assert (peak is None) == (device == "cpu")
    assert peak is None or peak - held < parameter_bytes(backbone.text_encoder)


def outcomes(device, mode, backend, numbers):
    """(losses and gradients, graphs compiled so far) of each step `numbers`; every third leaves the appearance out."""
    torch._dynamo.reset()
    counters.clear()
    unet = fill(build_unet(ONE_LEVEL), 0).requires_grad_(False)
    bypass_single_frames(unet)
    for layer in unet.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    unet.to(device)
    cfg = steps.settings(lora_rank=4, lora_unet_dropout=0.0)
    method = methods.attach(unet, cfg, clips=1, latent_size=SIZE)
    generator = torch.Generator().manual_seed(0)
    learned = [*method.motion_parameters, *method.appearance_parameters]
    for p in learned:
        p.data += 0.02 * torch.randn(p.shape, generator=generator).to(device)
    compile_layers(unet.train(), mode, torch.device(device), training=True, learned=learned, backend=backend)
    latents, text = (torch.randn(*s, generator=generator).to(device) for s in ((1, 4, *SIZE), (1, 6, 32)))
    scheduler, found = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"), []
    for number in numbers:
        draw = objective.draw_step(0, number, latents)._replace(spatial=number % 3 != 2)
        values = train.training_step(predictor(unet), scheduler, method, latents, text, draw)
        grads = torch.cat([p.grad.flatten() for p in learned if p.grad is not None])  # as an optimizer reads them
        graphs = counters["stats"]["unique_graphs"]
        found.append((torch.stack(list(values.values())).cpu(), grads.cpu(), graphs))
        for p in learned:
            p.grad = None
    return [found for *found, _ in found], [graphs for *_, graphs in found]


COMPILED = [
    ("cpu", "blocks", "eager"),  # the graphs without the compiler, which takes minutes on a CPU
    *(pytest.param("cuda", mode, "inductor", marks=CUDA.marks) for mode in ("blocks", "step")),
]


@pytest.mark.parametrize(("device", "mode", "backend"), COMPILED)
def test_compiled_layers_learn_the_same_and_alternating_passes_compile_no_more(exact_fp32, device, mode, backend):
    numbers = range(1, 7)
    expected, none = outcomes(device, "off", backend, numbers)
    found, graphs = outcomes(device, mode, backend, numbers)
    for (losses, grads), (plain, exact) in zip(found, expected, strict=True):
        torch.testing.assert_close(losses, plain, rtol=1e-3, atol=1e-4)
        assert exact.norm() > 0 and difference(grads, exact) <= 1e-3
    assert none[-1] == 0 < graphs[2] == graphs[-1]


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
@pytest.mark.parametrize("mode", ["blocks", "step"])
@pytest.mark.parametrize("device", [CUDA])
def test_compiled_layers_sample_the_same_video(tiny_pipeline, exact_fp32, device, mode, solver):
    """Graphs that are replayed write into memory of their own, and a solver of order 2 keeps earlier predictions."""
    torch._dynamo.reset()
    backbone, generator = Backbone.load(tiny_pipeline, torch.float32, device), torch.Generator().manual_seed(0)
    noise, text, negative = (
        torch.randn(*s, generator=generator).to(device) for s in ((1, 4, *SIZE), (1, 6, 32), (1, 6, 32))
    )

    def sampled():
        denoise = classifier_free_guidance(backbone.predict, text, negative, scale=4.0)
        return sample(denoise, backbone.scheduler, noise, steps=5, solver=solver)

    expected = sampled()
    with compile_layers(backbone.network, mode, torch.device(device), training=False):
        assert difference(sampled(), expected) <= 1e-3
        assert difference(sampled(), expected) <= 1e-3  # replayed
    assert difference(sampled(), expected) == 0


@pytest.mark.parametrize("solver", ["unipc", "dpm"])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_solver_of_second_order_samples_what_it_samples_on_the_cpu(tiny_pipeline, exact_fp32, device, solver):
    def sampled(device, solver):
        backbone, generator = Backbone.load(tiny_pipeline, torch.float32, device), torch.Generator().manual_seed(0)
        noise, text, negative = (
            torch.randn(*s, generator=generator).to(device) for s in ((1, 4, *SIZE), (1, 6, 32), (1, 6, 32))
        )
        denoise = classifier_free_guidance(backbone.predict, text, negative, scale=4.0)
        return sample(denoise, backbone.scheduler, noise, steps=5, solver=solver).cpu()

    expected = sampled("cpu", solver)
    assert difference(sampled(device, solver), expected) <= (0 if device == "cpu" else 1e-3)
    assert difference(sampled(device, "ddim"), expected) > 1e-2, "the solver matters"


@pytest.mark.parametrize("device", ["meta", CUDA])
def test_guidance_needs_hardly_more_memory_than_plain_sampling(device):
    """A guided step against a plain one on ZeroScope's layers and 16 frames of 384 x 384, by the card's own count.

    Without one the same lines run on tensors without data, and those that are alive at once are counted.
    """
    with torch.device(device):
        network = UNet3DConditionModel.from_config(ZEROSCOPE).to(torch.float16).eval().requires_grad_(False)
        z = torch.randn(1, 4, 16, 48, 48)
        text, empty = torch.randn(2, 1, 77, ZEROSCOPE["cross_attention_dim"], dtype=torch.float16).unbind(0)
    plain = classifier_free_guidance(predictor(network), text, empty, scale=9.0)
    settings = GuidanceSettings(steps=1, updates=2)
    guided = MotionGuidance(
        z, plain, classifier_free_guidance(predictor(network), empty), DDIMScheduler(), settings, [0]
    )

    @torch.no_grad()
    def peak(step) -> int:
        work = lambda: step(z, torch.tensor(901))
        if device == "cuda":
            held = torch.cuda.memory_allocated()
            return peak_bytes(work, torch.device(device)) - held
        with PeakBytes() as watch:
            work()
        return watch.peak

    plain(z, torch.tensor(901))  # what a first call sets up does not count
    assert 0 < peak(plain) <= peak(guided.steer) < 1.1 * peak(plain)


LEARNING = [("cpu", "no"), *(pytest.param("cuda", precision, marks=CUDA.marks) for precision in ("no", "bf16", "fp16"))]


@pytest.mark.parametrize(("device", "precision"), LEARNING)
def test_training_learns_and_its_motion_changes_the_video(tiny_config, tmp_path, device, precision):
    folder = train.run(
        tiny_config(
            device=device,
            mixed_precision=precision,
            gradient_checkpointing=True,
            max_train_steps=3,
            validation_data={"sample_preview": False},
        )
    )
    learned = load_checkpoint(folder).motion
    assert all(t.any() and t.isfinite().all() for t in learned.values()), "every matrix has moved from zero"
    words = ["-cf", str(folder), "-p", "a horse", "-r", "1", "-np", "0", "-d", device]
    strong, plain = (
        read_frames(next(iter(generate(options.parse([*words, "--lora_scale", w, "-o", str(tmp_path / w)])))))
        for w in ("40", "0")
    )
    assert strong.shape == plain.shape == (4, 3, 64, 64) and not torch.equal(strong, plain)


@pytest.mark.gpu
@needs_gpu
def test_a_seed_gives_nearly_the_same_video_on_cuda_and_cpu(tiny_config, tmp_path):
    folder = train.run(tiny_config())
    words = ["-cf", str(folder), "-p", "a horse", "-r", "1", "--precision", "no", "--quality", "10"]
    videos = [
        read_frames(path).numpy().astype(np.int32)
        for device in ("cpu", "cuda")
        for path in generate(options.parse([*words, "-d", device, "-o", str(tmp_path / device)]))
    ]
    assert np.abs(videos[0] - videos[1]).mean() < 1


@pytest.mark.gpu
@pytest.mark.weights
@needs_gpu
@needs_weights
def test_zeroscope_learns_and_samples(tmp_path):
    from configs.schema import load

    words = ["max_train_steps=2", "inversion_steps=5", "validation_data.sample_preview=false"]
    cfg, _ = load(
        ["--config", str(ROOT / "configs/car.yaml"), f"output_dir={tmp_path}", "device=cuda", *words], description=""
    )
    folder = train.run(cfg)
    (video,) = generate(
        options.parse(["-cf", str(folder), "-p", "a horse runs", "-r", "1", "-s", "3", "-o", str(tmp_path)])
    )
    assert read_frames(video).shape == (16, 3, 384, 384)
