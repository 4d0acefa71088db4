"""What the benchmark compares: training and sampling steps in turn, their peak, their threads, and the targets."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from models import merge
from models.training import memory
from scripts.benchmark import clock, steps, targets, timings

from conftest import TINY

CPU = torch.device("cpu")


@pytest.mark.parametrize(("ratio", "verdict"), [(1.66, "missed"), (1.67, "reached")])
def test_a_target_of_training_is_said_to_be_reached_or_missed(ratio, verdict):
    numbers = {"model": "pocket", "baseline": "stock", "baseline_ratio": ratio, "device": "cpu"}
    (sentence,) = targets.judged(numbers | {"customized_ratio": 1.3})
    assert sentence == f"a training step in 0.60 of stock's time, target 0.6: {verdict}"
    assert targets.judged(numbers | {"baseline": "plain"}) == [], "which has no target for this model"


@pytest.mark.parametrize(("ratio", "verdict"), [(1.02, "missed"), (1.01, "reached")])
def test_lora_and_highway_have_a_target_on_a_gpu(ratio, verdict):
    numbers = {"model": "zeroscope", "baseline": None, "device": "NVIDIA H100", "customized_ratio": ratio}
    assert targets.judged(numbers) == [
        f"LoRA and highway sample in {ratio:.3f} of the plain model's time, target 1.01: {verdict}"
    ]


@pytest.fixture
def tiny(monkeypatch):
    """`timings.measure` of the smallest model against diffusers' own layers; threads are put back."""
    threads = torch.get_num_threads()
    monkeypatch.setitem(steps.MODELS, "pocket", TINY)
    monkeypatch.setattr(timings, "count_flop", lambda *_: ({"float32": 1}, {"float32": 1}))  # which takes seconds
    cfg = steps.settings(gradient_checkpointing=False)
    yield lambda: timings.measure("pocket", CPU, repeats=1, against="stock", cfg=cfg, video_steps=1)
    torch.set_num_threads(threads)


def test_the_number_of_threads_is_the_one_that_the_commands_would_choose(tiny, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    assert tiny()["threads"] == torch.get_num_threads() == 1


def test_the_peak_is_measured_before_a_baseline_lies_beside_the_model(tiny, monkeypatch):
    events, stock = [], steps.StockStep
    monkeypatch.setattr(timings, "peak_bytes", lambda work, device: (events.append("peak"), work(), 7)[-1])
    monkeypatch.setitem(steps.BASELINES, "stock", lambda *a, **k: (events.append("baseline"), stock(*a, **k))[1])
    assert tiny()["peak_bytes"] == 7 and events == ["peak", "baseline"]


@pytest.mark.parametrize("recompute", [True, False])
def test_the_stock_step_recomputes_activations_where_ours_does(recompute, monkeypatch):
    seen = []
    monkeypatch.setattr(steps, "checkpoint_activations", seen.append)
    monkeypatch.setitem(steps.MODELS, "pocket", replace(TINY, checkpointing=not recompute))
    monkeypatch.setattr(timings, "use_threads", lambda *_: 1)
    monkeypatch.setattr(timings, "count_flop", lambda *_: ({}, {}))
    monkeypatch.setattr(timings, "matmul_rate", lambda *_: 1.0)
    found = {"sample_s": 1.0, "sample_cpu_s": 1.0}
    models = []
    monkeypatch.setattr(timings, "_sampling", lambda ours, baseline, *_: models.extend([ours, baseline]) or found)
    cfg = steps.settings(gradient_checkpointing=recompute)
    timings.measure("pocket", CPU, repeats=1, against="stock", cfg=cfg, video_steps=1)
    assert seen == [step.unet for step in models if recompute]


def test_the_stock_step_waits_where_ours_does_and_fp32_products_are_those_of_training(monkeypatch):
    placed, asked = [], []
    monkeypatch.setattr(timings, "allow_tf32", asked.append)
    monkeypatch.setitem(steps.MODELS, "pocket", TINY)
    monkeypatch.setattr(steps, "place", lambda network, device, memory: placed.append(memory) or 0)
    monkeypatch.setattr(timings, "use_threads", lambda *_: 1)
    monkeypatch.setattr(timings, "count_flop", lambda *_: ({}, {}))
    monkeypatch.setattr(timings, "_sampling", lambda *_: {"sample_s": 1.0, "sample_cpu_s": 1.0})
    cfg = steps.settings(memory="small", gradient_checkpointing=True)
    timings.measure("pocket", CPU, repeats=1, against="stock", cfg=cfg, video_steps=1)
    assert placed == ["small", "small"] and asked == [CPU]


def test_cuda_counts_its_peak_from_the_beginning_of_the_work(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: events.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: len(events))
    assert clock.peak_bytes(lambda: events.append("work"), torch.device("cuda")) == 2 and events == ["reset", "work"]
    assert clock.peak_bytes(lambda: events.append("work"), CPU) is None and len(events) == 2


def test_the_devices_seconds_are_those_of_kernels_and_not_of_copies(monkeypatch):
    events = [("gemm", 2e6), ("Memcpy HtoD (Pinned -> Device)", 5e6), ("Memset (Device)", 1e6), ("softmax", 1e6)]

    class Profile:
        def __init__(self, activities):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def key_averages(self):
            return [SimpleNamespace(key=key, self_device_time_total=time) for key, time in events]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(clock, "timed", lambda *_: None)
    assert clock.device_seconds(lambda: None, torch.device("cuda")) == 3.0


def test_the_model_is_made_in_its_own_precision():
    before = torch.get_default_dtype()
    made = steps._unet(TINY, torch.device("meta"), torch.bfloat16)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == before


def test_a_sampling_step_is_compared_with_the_plain_models_and_with_the_baselines(monkeypatch):
    """Seconds are made up: two with LoRA and highway, one with neither, six for diffusers' own layers."""
    ours, stock = steps.Step(TINY, "cpu", torch.float32), steps.StockStep(TINY, "cpu")

    def sample(self):
        lora, highway = merge.adapted(self.unet), any("forward" in vars(block) for block in self.unet.down_blocks)
        assert bool(lora) == highway
        return 6.0 if self is stock else 2.0 if highway else 1.0

    monkeypatch.setattr(steps.Step, "sample", sample)
    monkeypatch.setattr(clock, "timed", lambda work, device: clock.Timing(*[work()] * 3))
    monkeypatch.setattr(timings, "device_seconds", lambda work, device: work() / 2)
    found = timings._sampling_steps(ours, stock, CPU, repeats=1)
    of_ours = {"sample_s": 2.0, "sample_cpu_s": 2.0, "sample_host_s": 2.0, "sample_device_s": 1.0}
    assert found == of_ours | {"customized_ratio": 2.0, "sample_ratio": 3.0}


def test_the_plain_baseline_samples_with_its_lora_beside_the_layers_and_without_highway():
    step = steps.PlainStep(TINY, "cpu")
    step.unet.eval()
    for parameter in step.method.motion_parameters:
        parameter.data.normal_()
    with torch.no_grad():
        plain = step.sample()
        with step.sampling():
            assert not merge.adapted(step.unet) and not any("forward" in vars(b) for b in step.unet.down_blocks)
            assert not torch.equal(step.sample(), plain), "the motion acts"
        assert torch.equal(step.sample(), plain)


def test_a_sampling_step_is_counted_as_its_two_forwards():
    _, sampling = steps.count_flop(TINY, torch.float32)
    step = steps.Step(TINY, "meta", torch.float32)
    text, timestep = step.text, torch.tensor(0)
    with torch.no_grad(), step.sampling():
        one = memory.count_flop_by_dtype(lambda: step.predict(step.latents, timestep, text))
    assert sampling["float32"] == pytest.approx(2 * one["float32"], rel=0.01)
