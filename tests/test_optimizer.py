"""The numbers of a training step: gradient norms, what is not finite, fp16's loss scale, rates after a resume."""

import json
from types import SimpleNamespace

import pytest
import torch

import train
from configs.errors import UserError
from models.files.checkpoint import list_checkpoints, load_checkpoint
from models.training.optimizer import MOST_SKIPPED, DualPathOptimizer, NotFinite

from conftest import ROOT


def weights(folder, step):
    return load_checkpoint(folder, step).motion


def records(folder):
    return list(map(json.loads, (folder / "log.jsonl").read_text().splitlines()))


def test_the_log_tells_the_gradient_norm_of_each_path_and_the_memory(tiny_config):
    quick = dict(spatial_path_probability=1.0, validation_data={"sample_preview": False})
    first, second = records(train.run(tiny_config(**quick)))
    for record in (first, second):
        assert record["grad_norm_motion"] > 0 and record["grad_norm_appearance"] > 0 and record["memory_gb"] > 0.05
        assert "fp16_scale" not in record and record["cpu_seconds"] > 0
    (clipped, _) = records(train.run(tiny_config(**quick, max_grad_norm=1e-9)))
    assert clipped["grad_norm_motion"] == first["grad_norm_motion"], "before clipping"
    (without, _) = records(train.run(tiny_config(**{**quick, "spatial_path_probability": 0.0})))
    assert "grad_norm_appearance" not in without


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(tiny_config, monkeypatch):
    """A finite loss says nothing of its gradient: one infinite number there would make every weight nan."""
    step, methods_seen = train.training_step, []

    def overflowing(predict, scheduler, method, *args, **kwargs):
        losses = step(predict, scheduler, method, *args, **kwargs)
        methods_seen.append(method)
        if len(methods_seen) == 2:
            method.motion_parameters[0].grad[0, 0] = float("inf")
        return losses

    monkeypatch.setattr(train, "training_step", overflowing)
    with pytest.raises(UserError, match="the motion path's gradient is inf at step 2, timestep .*no weight was moved"):
        train.run(tiny_config(checkpointing_steps=1, spatial_path_probability=1.0))
    method = methods_seen[0]
    (folder,) = type(ROOT)(tiny_config().output_dir).iterdir()
    assert list(list_checkpoints(folder)) == [1]
    kept, (motion, (appearance,)) = load_checkpoint(folder, 1), method.state()
    assert all(torch.equal(kept.motion[name], motion[name]) for name in motion)
    assert all(torch.equal(kept.appearance[0][name], appearance[name]) for name in appearance), "the other path, too"


@pytest.fixture
def overflowing(monkeypatch):
    """fp16's loss scale on a CPU, whose frozen model is fp32, and motion gradients that overflow in given steps."""
    step = train.training_step

    def overflow(*steps, scale=2.0**16):
        made = []

        def make(*args, half, **kwargs):
            made.append(DualPathOptimizer(*args, half=True, **kwargs))
            made[0].scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
            made[0].scaler.scale(torch.zeros(1))
            return made[0]

        def run(predict, scheduler, method, *args, **kwargs):
            losses = step(predict, scheduler, method, *args, **kwargs)
            if made[0].schedules[0].last_epoch + 1 in steps:
                method.motion_parameters[0].grad[0, 0] = float("inf")
            return losses

        monkeypatch.setattr(train, "DualPathOptimizer", make)
        monkeypatch.setattr(train, "training_step", run)

    return overflow


SCALED = dict(checkpointing_steps=1, spatial_path_probability=0.0, validation_data={"sample_preview": False})


def test_a_skipped_step_of_fp16_is_logged_and_moves_nothing(tiny_config, overflowing):
    overflowing(2)
    folder = train.run(tiny_config(**SCALED, max_train_steps=3))
    logged = records(folder)
    assert [record["fp16_skipped"] for record in logged] == [False, True, False]
    assert [record["fp16_scale"] for record in logged] == [2.0**16, 2.0**15, 2.0**15]
    assert [record["grad_norm_motion"] is None for record in logged] == [False, True, False]
    first, second, third = (weights(folder, step) for step in (1, 2, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(third[name], second[name]) for name in first)


def test_a_run_whose_every_step_is_skipped_stops_with_a_sentence(tiny_config, overflowing):
    overflowing(1, 2)
    with pytest.raises(UserError, match="gradient overflowed fp16 in every step.*at step 2"):
        train.run(tiny_config(**SCALED, max_train_steps=2))


def test_twenty_skipped_steps_in_a_row_are_an_error(tiny_config):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = DualPathOptimizer(tiny_config(), [p], [], motion_lr=0.1, half=True, device=torch.device("cpu"))
    for _ in range(MOST_SKIPPED - 1):
        p.grad = torch.full((2,), float("inf"))
        assert optimizer.step().skipped
    p.grad = torch.full((2,), float("inf"))
    with pytest.raises(NotFinite, match="in each of 20 steps, down to a loss scale of 0.125"):
        optimizer.step()
    assert torch.equal(p, torch.ones(2))


def test_fp16s_scale_and_its_growth_survive_a_resume(tiny_config, overflowing):
    overflowing(2)
    whole = train.run(tiny_config(**SCALED, max_train_steps=5))
    overflowing(2, scale=1.0)  # what the checkpoint holds is believed, not this
    words = dict(max_train_steps=5, resume_from_checkpoint=str(whole / "checkpoint-3"))
    resumed = train.run(tiny_config(**SCALED, **words))
    scales = [record["fp16_scale"] for record in records(whole)]
    assert scales == [2.0**16, 2.0**15, 2.0**15, 2.0**15, 2.0**16] == [r["fp16_scale"] for r in records(resumed)]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole, 5).values(), weights(resumed, 5).values()))


def test_a_loss_that_is_not_finite_stops_with_step_and_timestep(tiny_config):
    with pytest.raises(UserError, match=r"loss is nan at step \d+, timestep \[\d+\]; no weight was moved in this step"):
        train.run(tiny_config(learning_rate=1e30, max_train_steps=20, validation_data={"sample_preview": False}))


def test_a_resumed_run_takes_its_rates_from_its_own_configuration(tiny_config):
    method = SimpleNamespace(p=[torch.nn.Parameter(torch.ones(2))])
    made = []
    for rate, precision in ((1.0, False), (1e-3, True)):
        cfg = tiny_config(learning_rate=rate, lr_scheduler="linear", max_train_steps=10, adam_beta1=0.5 + rate / 10)
        made.append(DualPathOptimizer(cfg, method.p, [], motion_lr=rate, half=precision, device=torch.device("cpu")))
    first, second = made
    for _ in range(4):
        method.p[0].grad = torch.ones(2)
        first.step()
    second.load_state_dict(first.state_dict())  # from a run without a loss scale into one with it
    (group,) = second.optimizers[0].param_groups
    assert group["lr"] == pytest.approx(1e-3 * 0.6) == second.learning_rate and group["betas"][0] == pytest.approx(
        0.5001
    )
    assert second.scaler.get_scale() > 1


def steps_of(optimizer, parameters, gradients):
    """What each of the steps with these gradients moves every parameter by."""
    moved = []
    for gradient in gradients:
        before = [p.detach().clone() for p in parameters]
        for p in parameters:
            p.grad = torch.full_like(p, gradient)
        optimizer.step()
        moved.append([p.detach() - old for p, old in zip(parameters, before)])
    return moved


def pair():
    return [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.zeros(3, 2))]


def test_lora_plus_moves_the_second_factors_alone_further_by_its_ratio(tiny_config):
    made, settings = [], dict(adam_weight_decay=0.0, lr_scheduler="linear", max_train_steps=10, max_grad_norm=0.1)
    for ratio in (1.0, 8.0):
        motion, appearance = pair(), pair()
        cfg = tiny_config(lora_plus_ratio=ratio, learning_rate=0.01, **settings)
        optimizer = DualPathOptimizer(
            cfg,
            motion,
            appearance,
            second_factors=[motion[1], appearance[1]],
            motion_lr=0.01,
            half=False,
            device=torch.device("cpu"),
        )
        made.append(steps_of(optimizer, [*motion, *appearance], (1.0, 0.5, -0.25)))
        assert optimizer.learning_rate == pytest.approx(0.01 * 0.7), "the first factors' rate, after three of ten steps"
    for plain, raised in zip(*made):
        for factor, (a, b) in enumerate(zip(plain, raised)):
            assert a.abs().min() > 0 and torch.allclose(b, a * (8 if factor % 2 else 1), rtol=1e-5)


def test_a_training_raises_the_rate_of_every_b_and_goes_on_with_it_to_the_bit(tiny_config):
    quick = dict(spatial_path_probability=1.0, validation_data={"sample_preview": False}, checkpointing_steps=1)
    plain = load_checkpoint(train.run(tiny_config(**quick, max_train_steps=1, adam_weight_decay=0.0)), 1)
    folder = train.run(tiny_config(**quick, lora_plus_ratio=4.0, adam_weight_decay=0.0))
    raised = load_checkpoint(folder, 1)
    for one, other in ((plain.motion, raised.motion), (plain.appearance[0], raised.appearance[0])):
        for name in one:  # B starts at zero, so its first step is all there is of it; A's gradient is then still zero
            factor = 4 if name.endswith("lora_B.weight") else 1
            assert torch.allclose(other[name], factor * one[name], rtol=1e-5), name
    words = dict(quick, lora_plus_ratio=4.0, adam_weight_decay=0.0)
    resumed = train.run(tiny_config(**words, resume_from_checkpoint=str(folder / "checkpoint-1")))
    assert all(torch.equal(a, b) for a, b in zip(weights(folder, 2).values(), weights(resumed, 2).values()))
    with pytest.raises(UserError, match="^lora_plus_ratio: .*resume with the value that it was trained with"):
        train.run(tiny_config(**quick, resume_from_checkpoint=str(folder / "checkpoint-1")))
