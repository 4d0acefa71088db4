"""The numbers of a training step: gradient norms, what is not finite, fp16's loss scale, rates after a resume."""

import json
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

import train
from configs.errors import UserError
from models.files.checkpoint import list_checkpoints, load_checkpoint
from models.files.training_state import TRAINING_STATE, load_training_state
from models.training.optimizer import MOST_SKIPPED, DualPathOptimizer, NotFinite
from models.training.optimizer_kinds import make_optimizer, state_of

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


@pytest.mark.parametrize(
    ("device", "precision", "fused"),
    [("cpu", "no", True), ("cuda", "fp16", True), ("mps", "bf16", True), ("mps", "fp16", False), ("meta", "no", False)],
)
def test_adamw_is_one_kernel_where_that_minds_the_loss_scale(device, precision, fused, monkeypatch):
    given = {}
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **options: given.update(options))
    cfg = SimpleNamespace(optimizer="adamw", use_8bit_adam=False, mixed_precision=precision)
    make_optimizer(cfg, [], torch.device(device), {})
    assert given == ({"fused": True} if fused else {})


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
    with pytest.raises(UserError, match="gradient of the motion path overflowed fp16 in every step"):
        train.run(tiny_config(**SCALED, max_train_steps=2))


def test_a_resumed_run_that_has_learned_before_may_end_on_a_skipped_step(tiny_config, overflowing):
    """Only a path that never moved has learned nothing; the last checkpoint is made."""
    folder = train.run(tiny_config(**SCALED, max_train_steps=1))
    overflowing(2)
    train.run(tiny_config(**SCALED, max_train_steps=2, resume_from_checkpoint=str(folder)))
    assert (folder / "checkpoint-2").is_dir()


@pytest.mark.parametrize(("steps", "unmoved"), [(0, {"motion"}), (3, set())])
def test_a_checkpoint_whose_steps_were_all_skipped_has_moved_nothing(steps, unmoved, tiny_config):
    """CUDA's AdamW counts no skipped step, and has moments all the same."""
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = DualPathOptimizer(tiny_config(), [p], [], motion_lr=0.1, half=True, device=torch.device("cpu"))
    state = optimizer.state_dict()
    moments = {"step": torch.tensor(float(steps)), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    state["optimizers"][0]["state"] = {0: moments}
    optimizer.load_state_dict(state)
    assert optimizer.unmoved & {"motion"} == unmoved


def test_a_path_counts_its_own_skipped_steps(tiny_config, overflowing):
    """fp16's scale is halved for both paths, and each path moves or stays by its own gradient."""
    overflowing(1, 2)
    with pytest.raises(UserError, match="of the motion path overflowed") as raised:
        train.run(tiny_config(**SCALED | {"spatial_path_probability": 1.0}, max_train_steps=2))
    assert "no weight" not in str(raised.value), "the appearance adapter has moved"
    overflowing(1)
    train.run(tiny_config(**SCALED | {"spatial_path_probability": 1.0}, max_train_steps=2))


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


needs_prodigy = pytest.mark.skipif(
    find_spec("prodigyopt") is None, reason="prodigyopt is not installed (requirements-dev.txt)"
)
PRODIGY = dict(optimizer="prodigy", learning_rate=1.0)


def prodigy(tiny_config, motion, appearance=(), *, half=False, ratio=1.0, second_factors=(), **settings):
    cfg = tiny_config(**PRODIGY, lora_plus_ratio=ratio, adam_weight_decay=0.0, **settings)
    given = dict(motion_lr=cfg.learning_rate, second_factors=second_factors, half=half, device=torch.device("cpu"))
    return DualPathOptimizer(cfg, list(motion), list(appearance), **given)


@needs_prodigy
def test_prodigy_finds_a_rate_of_its_own_for_each_path_and_the_log_has_it(tiny_config):
    """On |x - 1| from 0 the rate grows from its millionth to the order of the way that is left, and x arrives."""
    near, far = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = prodigy(tiny_config, [near], [far], max_train_steps=1000)
    rates = []
    for _ in range(300):
        near.grad, far.grad = torch.sign(near.detach() - 0.01), torch.sign(far.detach() - 1)
        rates.append(optimizer.learning_rate)
        optimizer.step()
    groups = [one.param_groups[0] for one in optimizer.optimizers]
    assert rates[0] == 1e-6 and rates[-1] == groups[0]["d"] and 0.0001 < groups[0]["d"] < 0.02
    assert abs(near.item() - 0.01) < 0.01 and abs(far.item() - 1) < 0.2 and groups[1]["d"] > 10 * groups[0]["d"]


@needs_prodigy
def test_what_prodigy_has_found_is_kept_in_a_checkpoint(tiny_config, tmp_path):
    def work(steps, p, optimizer):
        for _ in range(steps):
            p.grad = torch.sign(p.detach() - 1)
            optimizer.step()
        return p.item(), optimizer.learning_rate

    def new():
        p = torch.nn.Parameter(torch.zeros(1))
        return p, prodigy(tiny_config, [p], max_train_steps=200, lr_scheduler="cosine")

    whole, (p, first) = work(120, *new()), new()
    work(60, p, first)
    torch.save({"step": 60, "optimizer": first.state_dict()}, tmp_path / TRAINING_STATE)
    q, second = new()
    q.data.copy_(p.data)
    second.load_state_dict(load_training_state(tmp_path, second.groups(), "prodigy")["optimizer"])
    assert first.learning_rate > 1e-4 and work(60, q, second) == whole


@needs_prodigy
def test_prodigys_rate_in_the_log_is_what_it_found_times_the_schedule(tiny_config):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = prodigy(tiny_config, [p], lr_scheduler="linear", max_train_steps=4)
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.optimizers[0].param_groups[0]["d"] = 0.5
    assert optimizer.learning_rate == pytest.approx(0.5 * 0.75)


@needs_prodigy
def test_a_prodigy_training_goes_on_to_the_bit_and_only_with_prodigy(tiny_config):
    quick = dict(spatial_path_probability=1.0, validation_data={"sample_preview": False}, checkpointing_steps=1)
    words = dict(quick, **PRODIGY, lora_plus_ratio=3.0, lr_warmup_steps=2, lr_scheduler="cosine", max_train_steps=6)
    whole = train.run(tiny_config(**words))
    resumed = train.run(tiny_config(**words, resume_from_checkpoint=str(whole / "checkpoint-3")))
    one, other = load_checkpoint(whole, 6), load_checkpoint(resumed, 6)
    for a, b in ((one.motion, other.motion), (one.appearance[0], other.appearance[0])):
        assert all(torch.equal(a[name], b[name]) for name in a)
    learned = ("loss_temporal", "lr", "grad_norm_motion")
    assert [[r[k] for k in learned] for r in records(whole)] == [[r[k] for k in learned] for r in records(resumed)]
    states = [load_training_state(run / "checkpoint-6")["optimizer"]["optimizers"] for run in (whole, resumed)]
    found = [
        [{k: g[k] for k in ("d", "d_max", "d_numerator", "k")} for s in of for g in s["param_groups"]] for of in states
    ]
    assert found[0] == found[1] and len(found[0]) == 4
    with pytest.raises(UserError, match="^optimizer: this run's is adamw and prodigy wrote .*optimizer=prodigy$"):
        train.run(tiny_config(**quick, lora_plus_ratio=3.0, resume_from_checkpoint=str(whole / "checkpoint-3")))


@needs_prodigy
def test_lora_plus_moves_the_second_factors_further_under_prodigy_too(tiny_config):
    """Prodigy refuses two rates; equal gradients show that B moves `ratio` times as far as A, in every step."""
    motion = pair()
    optimizer = prodigy(tiny_config, motion, ratio=8.0, second_factors=[motion[1]], max_train_steps=10)
    for a, b in steps_of(optimizer, motion, (1.0, 0.5, 0.25, 0.25)):
        assert a.abs().min() > 0 and torch.allclose(b.flatten(), 8 * a.flatten(), rtol=0.1)


@needs_prodigy
def test_prodigy_skips_a_step_whose_gradient_overflowed_fp16(tiny_config):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = prodigy(tiny_config, [p], half=True)
    p.grad = torch.full((2,), float("inf"))
    assert optimizer.step().skipped and torch.equal(p, torch.ones(2)) and not optimizer.optimizers[0].state
    p.grad = torch.full((2,), optimizer.scaler.get_scale())
    assert optimizer.step().norms["motion"] == pytest.approx(2**0.5) and (p < 1).all()


@needs_prodigy
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: s["param_groups"][0].update(d="x"), "d is .*'x'.*"),
        (lambda s: s["param_groups"][0].update(d=0.0), "d is 0.0"),
        (lambda s: s["param_groups"][0].pop("k"), "has no k"),
        (lambda s: s["state"][0].pop("p0"), "has no p0"),
        (lambda s: s["state"][0].update(s=torch.zeros(1)), r"has the shape \[1\]"),
        (lambda s: s["state"][0].update(p0=torch.zeros(1)), r"has the shape \[1\]"),
    ],
)
def test_a_damaged_state_of_prodigy_is_refused(tiny_config, tmp_path, spoil, sentence):
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = prodigy(tiny_config, [p])
    p.grad = torch.ones(2, 2)
    optimizer.step()
    state = optimizer.state_dict()
    torch.save({"step": 1, "optimizer": state}, tmp_path / TRAINING_STATE)
    load_training_state(tmp_path, optimizer.groups(), "prodigy")
    spoil(state["optimizers"][0])
    torch.save({"step": 1, "optimizer": state}, tmp_path / TRAINING_STATE)
    with pytest.raises(UserError, match=sentence):
        load_training_state(tmp_path, optimizer.groups(), "prodigy")


def test_tables_that_8_bit_moments_share_are_read_back_from_a_checkpoint(tmp_path):
    """As bitsandbytes holds them; a tensor that stands in a pickle many times is refused (configs/archives.py)."""
    parameters, table = [torch.nn.Parameter(torch.ones(2)) for _ in range(50)], torch.linspace(-1, 1, 256)
    optimizer = torch.optim.AdamW(parameters)
    for p in parameters:
        optimizer.state[p] = {"step": 1, "state1": p.detach() + 0, "state2": p.detach() + 0, "qmap1": table}
    parts = {"optimizers": [state_of(optimizer)], "schedules": [{"last_epoch": 1, "_step_count": 2}], "scaler": {}}
    torch.save({"step": 1, "optimizer": parts}, tmp_path / TRAINING_STATE)
    (read,) = load_training_state(tmp_path, [[parameters]], "adamw", True)["optimizer"]["optimizers"]
    assert all(torch.equal(moments["qmap1"], table) for moments in read["state"].values())


@pytest.mark.parametrize(
    ("package", "keys", "sentence"),
    [
        (
            "prodigyopt",
            {"optimizer": "prodigy", "learning_rate": 1.0},
            "^optimizer: prodigy needs the package prodigyopt; `pip install prodigyopt`",
        ),
        ("bitsandbytes", {"use_8bit_adam": True}, "^use_8bit_adam: bitsandbytes is not installed; `pip install bits"),
    ],
)
def test_a_missing_package_is_one_sentence_before_anything_is_loaded(package, keys, sentence, tiny_config, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.optim", None)
    with pytest.raises(UserError, match=sentence):
        train.run(tiny_config(**keys, pretrained_model_path="nowhere"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (dict(learning_rate=5e-4), "learning_rate: 0.0005 would multiply the rate that .*set learning_rate to 1"),
        (
            dict(method="motion_inversion", appearance_highway={"use": "off"}),
            "embeddings.learning_rate: 0.02 would multiply .*set embeddings.learning_rate to 1",
        ),
        (dict(learning_rate=1.0, use_8bit_adam=True), "use_8bit_adam: is a kind of AdamW, and optimizer is prodigy"),
        (dict(learning_rate=1.0, adam_beta1=0.0), "adam_beta1: 0 keeps no mean"),
    ],
)
def test_what_makes_no_sense_with_prodigy_is_refused(tiny_config, words, sentence):
    with pytest.raises(UserError, match=f"^{sentence}"):
        tiny_config(optimizer="prodigy", **words)
    tiny_config(optimizer="prodigy", learning_rate=0.1)
