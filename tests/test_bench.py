"""The benchmark: its JSON, its counted memory, and that the plain step it compares with is the same objective."""

import json

import pytest
import torch

from scripts import bench

TINY = bench.Architecture(
    dict(
        block_out_channels=(16, 16, 32, 32), layers_per_block=1, cross_attention_dim=16, attention_head_dim=8,
        norm_num_groups=4,
    ),
    frames=3, side=8, text_layers=1, checkpointing=False,
)  # fmt: skip


def test_the_plain_step_gives_the_motion_adapter_the_same_gradients(monkeypatch):
    torch.manual_seed(0)
    plain = bench.PlainStep(TINY, "cpu")
    ours = bench.Step(TINY, "cpu", torch.float32)
    ours.unet.load_state_dict(plain.unet.state_dict())
    ours.latents, ours.text = plain.latents, plain.text_encoder(plain.tokens)[0]
    kept = {}
    for step in (plain, ours):
        step.unet.eval()  # no dropout
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
        monkeypatch.setattr(torch.optim.AdamW, "zero_grad", lambda self, set_to_none=True: None)
        step.train(1)
        kept[step] = [parameter.grad for parameter in step.method.motion_parameters]
    assert max(gradient.abs().max() for gradient in kept[ours]) > 0
    for theirs, mine in zip(kept[plain], kept[ours], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_a_step_trains_and_a_sampling_step_leaves_the_model_as_it_was():
    step = bench.Step(TINY, "cpu", torch.float32)
    before = [parameter.clone() for parameter in step.method.motion_parameters]
    step.train(1)
    step.train(2)
    assert any(not torch.equal(a, b) for a, b in zip(before, step.method.motion_parameters, strict=True))
    weights = {name: tensor.clone() for name, tensor in step.unet.state_dict().items()}
    with step.method.sampling():
        step.sample()
    assert all(torch.equal(weights[name], tensor) for name, tensor in step.unet.state_dict().items())


def test_recomputing_activations_is_counted_as_less_memory():
    wide = bench.Architecture(TINY.unet, frames=4, side=32, text_layers=1, checkpointing=False)
    full = bench.count_bytes(wide, checkpointing=False)
    assert full > 2 * bench.count_bytes(wide, checkpointing=True)


def test_zeroscope_fits_eight_gigabytes():
    assert 2.8e9 < bench.count_bytes(bench.MODELS["zeroscope"]) <= 8e9  # 2.8 GB is the frozen model alone


def test_the_last_line_is_one_json_document(monkeypatch, capsys):
    monkeypatch.setitem(bench.MODELS, "pocket", TINY)
    monkeypatch.setattr(bench, "count_bytes", lambda _, **__: 2)
    bench.main(["--model", "pocket", "--repeats", "1", "--baseline", "--device", "cpu"])
    timed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert min(timed[key] for key in ("train_step_s", "sample_s", "peak_bytes", "baseline_ratio", "train_flop")) > 0
    bench.main(["--model", "pocket", "--memory"])
    counted = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (counted["train_step_s"], counted["peak_bytes"]) == (None, 2)


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_a_timing_waits_for_the_device_that_did_the_work(name, monkeypatch):
    waited, device = [], torch.device(name)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(torch.device("mps")))
    bench.seconds(lambda: None, device)
    assert waited == [device]


def test_a_count_that_measures_nothing_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--repeats", "0"])
    assert stopped.value.code == 2
    assert "--repeats" in capsys.readouterr().err
