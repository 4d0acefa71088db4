"""The benchmark: its JSON, its counted memory and operations, and that its baselines have the same objective."""

import json
import time
from dataclasses import replace

import pytest
import torch
from diffusers import UNet3DConditionModel
from diffusers.models.attention_processor import Attention
from torch.utils.flop_counter import FlopCounterMode

from configs import schema
from models import lora
from models.backbones.unet3d import ZEROSCOPE
from models.hooks import wrap_forward
from models.placement import parameter_bytes
from models.training import memory
from scripts import bench
from scripts.artefacts.results_file import read_sections
from scripts.benchmark import clock, results, steps, timings
from scripts.benchmark.targets import judged

from conftest import TINY

FOUR = replace(TINY, recipe={"timesteps_per_step": 4, "lora_unet_dropout": 0.0})
CPU = torch.device("cpu")


def gradients_of_both(baseline, monkeypatch):
    """The motion adapter's gradients after one step of (the baseline, ours) from equal weights."""
    torch.manual_seed(0)
    theirs = baseline(TINY, "cpu")
    ours = steps.Step(TINY, "cpu", torch.float32)
    ours.unet.load_state_dict(theirs.unet.state_dict())
    ours.latents, ours.text = theirs.latents, theirs.text_encoder(theirs.tokens)[0]
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", lambda self, set_to_none=True: None)
    for step in (theirs, ours):
        step.unet.eval()  # no dropout
        step.train(1)
    kept = [[parameter.grad for parameter in step.method.motion_parameters] for step in (theirs, ours)]
    assert max(gradient.abs().max() for gradient in kept[1]) > 0
    return kept


def test_the_plain_step_gives_the_motion_adapter_the_same_gradients(monkeypatch):
    for theirs, mine in zip(*gradients_of_both(steps.PlainStep, monkeypatch), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("step", "torchs"), [(steps.PlainStep, True), (steps.StockStep, False)])
def test_the_baselines_that_are_others_code_drop_by_torchs_kernel(step, torchs, monkeypatch):
    """Else a quicker mask of ours would make what it is compared with quicker too."""
    ours, theirs = [], []
    monkeypatch.setattr(lora, "drop", lambda x, probability: ours.append(probability) or x)
    monkeypatch.setattr(steps, "_torch_dropout", lambda p, up, given, product: theirs.append(p) or product)
    step(TINY, "cpu").gradients(1)
    assert (set(theirs), set(ours)) == (({0.1}, set()) if torchs else (set(), {0.1}))


def test_the_stock_step_runs_other_layers_and_gives_the_same_gradients(monkeypatch):
    torch.manual_seed(0)
    stock, ours = steps.StockStep(FOUR, "cpu"), steps.Step(FOUR, "cpu", torch.float32)
    assert any("forward" in vars(module) for module in ours.unet.modules() if isinstance(module, Attention))
    assert not any("forward" in vars(module) for module in stock.unet.modules() if isinstance(module, Attention))
    ours.unet.load_state_dict(stock.unet.state_dict())
    ours.latents, ours.text = stock.latents, stock.text
    for step in (stock, ours):
        torch.manual_seed(1)  # dropout
        step.gradients(1)
    for theirs, mine in zip(stock.method.motion_parameters, ours.method.motion_parameters, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-7)


def test_a_step_of_several_timesteps_takes_as_many_times_the_operations():
    one, four = (
        memory.count_flop_by_dtype(lambda a=a: steps.Step(a, "meta", torch.float32).gradients(0))["float32"]
        for a in (TINY, FOUR)
    )
    assert one * 3.5 < four < one * 4.5


def test_the_releases_step_gives_them_but_for_the_rounding_of_autocast(monkeypatch):
    theirs, mine = (
        torch.cat([g.flatten() for g in side]) for side in gradients_of_both(steps.ReleaseStep, monkeypatch)
    )
    error = (mine - theirs).norm() / mine.norm()
    assert 1e-5 < error < 0.1  # half precision was really used, and nothing else differs


def test_a_step_trains_and_a_sampling_step_leaves_the_model_as_it_was():
    step = steps.Step(TINY, "cpu", torch.float32)
    before = [parameter.clone() for parameter in step.method.motion_parameters]
    step.train(1)
    step.train(2)
    assert any(not torch.equal(a, b) for a, b in zip(before, step.method.motion_parameters, strict=True))
    weights = {name: tensor.clone() for name, tensor in step.unet.state_dict().items()}
    with step.method.sampling():
        step.sample()
    assert all(torch.equal(weights[name], tensor) for name, tensor in step.unet.state_dict().items())


def test_recomputing_activations_is_counted_as_less_memory():
    wide = steps.Architecture(TINY.unet, frames=4, side=32, text_layers=1, vae=TINY.vae, checkpointing=False)
    full = steps.count_bytes(wide, checkpointing=False)
    assert full > 2 * steps.count_bytes(wide, checkpointing=True)


def test_zeroscope_fits_eight_gigabytes():
    assert 2.8e9 < steps.count_bytes(steps.MODELS["zeroscope"]) <= 8e9  # 2.8 GB is the frozen model alone


def test_operations_are_counted_by_precision_and_add_up_to_torchs_count():
    step = steps.Step(TINY, "meta", torch.bfloat16)
    counted = memory.count_flop_by_dtype(lambda: step.gradients(0))
    with memory.PeakBytes(), FlopCounterMode(display=False) as reference:  # attention as the same kernel
        step.gradients(0)
    assert sum(counted.values()) == reference.get_total_flops()
    a, b = torch.zeros(2, 3), torch.zeros(3, 5, dtype=torch.bfloat16)
    both = memory.count_flop_by_dtype(lambda: (a @ torch.zeros(3, 5), torch.zeros(4, 3, dtype=torch.bfloat16) @ b))
    assert both == {"float32": 2 * 2 * 3 * 5, "bfloat16": 2 * 4 * 3 * 5}


@pytest.mark.parametrize("method", ["lora", "motion_inversion"])
def test_the_frozen_model_counts_the_same_whatever_learns(method, monkeypatch):
    seen = []
    monkeypatch.setattr(memory, "training_bytes", lambda model, *_: seen.append(model) or memory.TrainingBytes(0, 0, 0))
    cfg = schema.from_dict({"train_data": {"single_video_path": "random"}, "method": method})
    steps.count_bytes(TINY, cfg=cfg)
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config({**ZEROSCOPE, **TINY.unet}).to(torch.bfloat16)
    assert seen == [parameter_bytes(unet)]


KEYS = {
    "model", "device", "dtype", "threads", "compile", "train_step_s", "train_step_cpu_s", "compile_s",
    "train_host_s", "train_device_s", "train_step_fp16_s", "sample_s", "sample_cpu_s",
    "sample_host_s", "sample_device_s", "inversion_step_s",
    "text_encoder_s", "vae_encode_s", "vae_decode_s", "video_s", "video_steps", "peak_bytes", "baseline",
    "baseline_ratio", "sample_ratio", "customized_ratio", "train_flop", "train_flop_by_dtype", "sample_flop",
    "matmul_flop_s", "train_share", "sample_share", "targets", "memory", "checkpointing",
}  # fmt: skip
NOT_HERE = {"train_device_s", "sample_device_s", "train_step_fp16_s", "compile_s"}  # only on a GPU, or compiled


def test_the_last_line_is_one_json_document_of_documented_keys(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(steps.MODELS, "pocket", TINY)
    argv = ["--model", "pocket", "--repeats", "1", "--baseline", "--device", "cpu", "--video-steps", "2"]
    bench.main([*argv, "--results", str(tmp_path / "R.md")])
    timed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert timed.keys() == KEYS and timed["baseline"] == "plain"
    assert all(key in bench.__doc__ or key in ("model", "device", "dtype", "baseline") for key in KEYS)
    assert {key for key, value in timed.items() if value is None} == NOT_HERE
    seconds = {key: value for key, value in timed.items() if key.endswith("_s") and isinstance(value, float)}
    assert len(seconds) == 11 and min(seconds.values()) > 0
    assert timed["sample_share"] == pytest.approx(
        timed["sample_flop"] / timed["matmul_flop_s"]["float32"] / timed["sample_cpu_s"]
    )
    assert min(timed[key] for key in ("train_share", "baseline_ratio", "sample_ratio", "customized_ratio")) > 0
    assert 0 < timed["sample_host_s"] <= timed["sample_s"]
    assert timed["train_host_s"] <= timed["train_step_s"] and timed["video_s"] > timed["vae_decode_s"]
    ((_, device),) = read_sections(tmp_path / "R.md")
    assert (
        device.startswith("cpu")
        and "| pocket | off | default | no | plain | float32 |" in (tmp_path / "R.md").read_text()
    )
    assert (timed["memory"], timed["checkpointing"]) == ("default", False)


@pytest.mark.parametrize("memory", ["small", "smallest"])
def test_a_mode_of_memory_is_timed_where_that_is_asked_for(memory, monkeypatch, capsys):
    placed, place = [], steps.place
    monkeypatch.setattr(steps, "place", lambda *given: placed.append(given[1:]) or place(*given))
    monkeypatch.setitem(steps.MODELS, "pocket", TINY)
    words = ["--model", "pocket", "--memory", memory, "--timed", "--repeats", "1", "--video-steps", "2"]
    bench.main([*words, "--device", "cpu", "--threads", "1"])
    timed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (torch.device("cpu"), memory) in placed and timed["train_step_s"] > 0
    assert (timed["memory"], timed["checkpointing"], timed["threads"]) == (memory, True, 1)


def test_memory_alone_is_counted_without_timing(monkeypatch, capsys):
    monkeypatch.setitem(steps.MODELS, "pocket", TINY)
    bench.main(["--model", "pocket", "--memory"])
    counted = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counted["train_step_s"] is None and counted["peak_bytes"] == steps.count_bytes(TINY)


TIMED = {"device": "cpu", "peak_bytes": 1, "baseline_ratio": 1.0}


@pytest.mark.parametrize(
    ("words", "name"), [(["--against", "release"], "release"), (["--against", "stock"], "stock"), ([], None)]
)
def test_the_baseline_is_the_one_that_was_asked_for(words, name, monkeypatch, capsys):
    monkeypatch.setattr(timings, "measure", lambda *_, against, **__: TIMED | {"baseline": against})
    bench.main(["--device", "cpu", *words])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["baseline"] == name


@pytest.mark.parametrize("memory", ["small", "smallest"])
def test_memory_is_counted_for_the_place_where_the_model_waits(memory, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(steps, "count_bytes", lambda *_, cfg, **__: asked.append(cfg.memory) or 7)
    bench.main(["--model", "pocket", "--memory", memory])
    assert asked == [memory] and json.loads(capsys.readouterr().out.splitlines()[-1])["peak_bytes"] == 7


def test_compiling_is_timed_apart_from_the_steps_and_alternates_with_a_step_that_is_not_compiled(monkeypatch):
    """A pause in the first pass of each step takes the compiler's place."""
    asked = []

    def slow_at_first(unet, mode, device, *, training, learned):
        asked.append(mode)
        waits = iter([1.5] if mode == "blocks" else [])
        wrap_forward(unet, lambda forward, *args, **kwargs: (time.sleep(next(waits, 0)), forward(*args, **kwargs))[1])

    monkeypatch.setattr(steps, "compile_layers", slow_at_first)
    monkeypatch.setattr(timings, "_sampling", lambda *_: {"sample_s": 1.0, "sample_cpu_s": 1.0})
    monkeypatch.setitem(steps.MODELS, "pocket", TINY)
    cfg = steps.settings(compile="blocks", gradient_checkpointing=False)
    found = timings.measure("pocket", CPU, repeats=1, against="stock", cfg=cfg, video_steps=1)
    assert found["compile_s"] > 0.5 and found["train_step_s"] > 0 and found["baseline"] == "stock"
    assert asked == ["blocks", "blocks", "off", "off"]


def test_a_devices_rows_are_kept_beside_each_other_and_replaced_by_newer_ones(tmp_path):
    path = tmp_path / "RESULTS.md"
    for model, compiled, device, seconds in (
        ("mid", "off", "H100", 0.5),
        ("mid", "blocks", "H100", 0.3),
        ("pocket", "off", "H100", 0.1),
        ("mid", "off", "A10", 2),
        ("mid", "off", "H100", 0.4),
    ):
        numbers = {"model": model, "compile": compiled, "device": device, "train_step_s": seconds, "memory": "default"}
        numbers |= {
            "train_flop_by_dtype": {"bfloat16": 3e12, "float32": 1.25e9},
            "targets": ["a: reached", "b: missed"],
        }
        results.keep_timings(path, numbers, "bench `x`")
    sections = read_sections(path)
    assert list(sections) == [("bench", "A10"), ("bench", "H100")]
    rows = [line for line in sections["bench", "H100"].splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[:8] for row in rows[1:]] == [
        ["| mid", "blocks", "default", "–", "–", "–", "–", "300.0 ms"],
        ["| mid", "off", "default", "–", "–", "–", "–", "400.0 ms"],
        ["| pocket", "off", "default", "–", "–", "–", "–", "100.0 ms"],
    ]
    assert all(" | a: reached; b: missed | " in row for row in rows[1:])
    assert all(row.endswith(" | 3e+12 in bfloat16, 1.25e+09 in float32 |") for row in rows[1:])


@pytest.mark.parametrize(
    "change", [{"memory": "small"}, {"checkpointing": True}, {"baseline": "stock"}, {"threads": 1}]
)
def test_another_mode_or_baseline_is_another_row(change, tmp_path):
    numbers = {"model": "mid", "compile": "off", "memory": "default", "checkpointing": False, "baseline": "plain"}
    numbers |= {"device": "H100", "threads": 2, "train_step_s": 1.0, "targets": []}
    for given in (numbers, numbers | change, numbers | {"train_step_s": 2.0}):
        results.keep_timings(tmp_path / "R.md", given, "bench")
    rows = (tmp_path / "R.md").read_text().count("| mid | off |")
    assert rows == 2 and "2000.0 ms" in (tmp_path / "R.md").read_text()


def test_rows_of_an_older_table_keep_their_cells_under_their_headings(tmp_path):
    path, numbers = tmp_path / "R.md", {"model": "mid", "compile": "off", "device": "H100", "train_step_s": 1.0}
    results.keep_timings(path, numbers | {"targets": ["a | b"]}, "bench")
    content = path.read_text().replace("| memory | recomputes |", "|").replace("| off | – | – |", "| off |")
    path.write_text(content.replace("|---|---|", "|", 1))
    results.keep_timings(path, numbers | {"model": "pocket", "targets": []}, "bench")
    (mid,) = (line for line in path.read_text().splitlines() if line.startswith("| mid |"))
    cells = mid.split(" | ")
    assert cells[1:6] == ["off", "–", "–", "–", "–"] and cells[7] == "1000.0 ms" and r"a \| b" in mid


ON_CARD = {
    "baseline_ratio": 3.0,
    "sample_ratio": 1.5,
    "train_share": 0.4,
    "sample_share": 0.5,
    "customized_ratio": 1.01,
}


@pytest.mark.parametrize("key", [None, *ON_CARD])
def test_every_target_of_a_card_is_judged_by_its_own_number(key):
    """At its edge each is reached; a little worse in one, that one alone is missed."""
    worse = {} if key is None else {key: ON_CARD[key] * (1.02 if key == "customized_ratio" else 0.98)}
    numbers = {"model": "mid", "device": "NVIDIA H200", "baseline": "release", **ON_CARD, **worse}
    found = dict(zip(ON_CARD, judged(numbers), strict=True))
    assert {name for name, sentence in found.items() if sentence.endswith("missed")} == {key} - {None}
    assert "3.00 times as fast as the release's, target at least 3" in judged(numbers | ON_CARD)[0]


@pytest.mark.parametrize("memory", ["small", "smallest"])
def test_a_mode_that_gives_time_for_memory_has_no_target_of_speed(memory):
    numbers = {"model": "mid", "device": "NVIDIA H200", "baseline": "release", "memory": memory, **ON_CARD}
    assert judged(numbers) == [] and len(judged(numbers | {"memory": "default"})) == len(ON_CARD)


def test_what_was_not_measured_is_not_judged():
    numbers = {"model": "mid", "device": "cpu, AVX512, 2 cores", "baseline": "plain", **ON_CARD}
    assert judged(numbers) == ["a training step in 0.33 of plain's time, target 0.5: reached"]
    numbers |= {"device": "NVIDIA H200", "baseline": None, "baseline_ratio": None, "sample_ratio": None}
    assert [sentence.split(" at ")[0] for sentence in judged(numbers)][:2] == ["a training step", "a sampling step"]
    assert len(judged(numbers)) == 3


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_a_timing_starts_and_ends_with_an_idle_device(name, monkeypatch):
    events, device = [], torch.device(name)
    monkeypatch.setattr(torch.cuda, "synchronize", events.append)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: events.append(torch.device("mps")))
    clock.timed(lambda: events.append("work"), device)
    assert events == [device, "work", device]


@pytest.mark.parametrize(
    "words",
    [
        ["--repeats", "0"],
        ["--video-steps", "0"],
        ["--memory", "--results", "R.md"],
        ["--memory", "--compile", "blocks"],
        ["--memory", "--against", "stock"],
        ["--memory", "--repeats", "5"],
        ["--memory", "--threads", "2"],
        ["--timed", "--baseline"],
        ["--threads", "0"],
    ],
)
def test_a_request_that_measures_nothing_is_refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(words)
    assert stopped.value.code == 2
    assert words[-2] in capsys.readouterr().err
