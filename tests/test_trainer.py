"""The pretraining loop: stopped and resumed it ends in the very same weights; what it writes is whole."""

import math
import signal
from argparse import Namespace

import pytest
import torch
from torch import nn

from configs.errors import UserError
from scripts.pocket.phases import Phases
from scripts.pocket.trainer import Phase, Trainer, averaged, save_tensors, step_generator

FIRST, SECOND = Phase(6, 4, lr=1e-2, ema=0.9, warmup=2), Phase(9, 4, lr=1e-2, ema=0.9, warmup=2, decay_to=0.5)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))


@pytest.fixture(autouse=True)
def signals_as_before():
    kept = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in kept.items():
        signal.signal(name, handler)


def train(folder, stop_at=None, seen=None) -> tuple[bool, nn.Module]:
    """Two phases on one model; `stop_at` (phase, step) raises SIGTERM there."""
    folder.mkdir(exist_ok=True)
    trainer, net = Trainer(folder, seed=5, save_every=100), model()

    def run(name, phase):
        def loss(rng):
            x = torch.randn(phase.batch, 3, generator=rng)
            return (net(x) - x.sum(1, keepdim=True)).square().mean()

        def before(step):
            if seen is not None:
                seen.append((name, step))
            if stop_at == (name, step):
                signal.raise_signal(signal.SIGTERM)

        return trainer.run(name, phase, net, loss, before)

    return run("first", FIRST) and run("second", SECOND), net


@pytest.mark.parametrize("stop_at", [("first", 0), ("first", 5), ("second", 3)])
def test_a_run_in_pieces_ends_in_the_weights_of_a_run_in_one(tmp_path, stop_at):
    _, whole = train(tmp_path / "whole")
    complete, _ = train(tmp_path / "pieces", stop_at)
    assert not complete and (tmp_path / "pieces" / "state.safetensors").exists()
    seen = []
    complete, pieces = train(tmp_path / "pieces", seen=seen)
    assert complete and seen[0] == (stop_at[0], stop_at[1] + 1) if stop_at != ("first", 5) else complete
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), pieces.state_dict().values()))
    assert sorted(path.name for path in (tmp_path / "pieces").iterdir()) == ["first.safetensors", "second.safetensors"]


def test_a_finished_phase_is_only_loaded(tmp_path):
    train(tmp_path)
    seen = []
    assert train(tmp_path, seen=seen)[0] and not seen


def test_the_report_sees_averaged_weights_and_leaves_the_trained_ones(tmp_path):
    net, reported = model(), []
    trainer = Trainer(tmp_path, 0, 100)
    loss = lambda rng: net(torch.randn(4, 3, generator=rng)).square().mean()
    during = []
    trainer.run(
        "a",
        FIRST,
        net,
        loss,
        before=lambda step: during.append(net[0].weight.detach().clone()),
        report=lambda step: reported.append(net[0].weight.detach().clone()),
        every=2,
    )
    assert len(reported) == 3 and not torch.equal(reported[0], during[2])
    assert torch.equal(reported[-1], net[0].weight)  # the phase's result is the average


def test_the_rate_warms_up_holds_and_decays():
    phase = Phase(100, 1, lr=2.0, ema=0.9, warmup=10, decay_from=0.5, decay_to=0.25)
    assert phase.rate(0) == pytest.approx(0.2) and phase.rate(30) == 2.0
    assert phase.rate(100) == pytest.approx(0.5) and phase.rate(75) == pytest.approx(1.25)


def test_a_broken_loss_stops_the_run_in_one_sentence(tmp_path):
    net = model()
    with pytest.raises(UserError, match="a: the loss is nan at step 0"):
        Trainer(tmp_path, 0, 100).run("a", FIRST, net, lambda rng: net(torch.zeros(1, 3)).sum() * math.nan)


def test_a_state_of_another_phase_is_refused(tmp_path):
    save_tensors({"model/x": torch.zeros(1)}, tmp_path / "state.safetensors", {"phase": "b", "step": "3"})
    net = model()
    with pytest.raises(UserError, match="is at phase b, expected a"):
        Trainer(tmp_path, 0, 100).run("a", FIRST, net, lambda rng: net(torch.zeros(1, 3)).sum())


def test_what_other_settings_made_is_refused(tmp_path):
    train(tmp_path)
    net = model()
    for seed, phase in ((6, FIRST), (5, Phase(7, 4, lr=0.1, ema=0.9))):
        with pytest.raises(UserError, match="made with other settings"):
            Trainer(tmp_path, seed, 100).run("first", phase, net, lambda rng: net(torch.zeros(1, 3)).sum())
    with pytest.raises(UserError, match="made with other settings"):
        Trainer(tmp_path, 5, 100, torch.bfloat16).run("first", FIRST, net, lambda rng: net(torch.zeros(1, 3)).sum())
    with pytest.raises(UserError, match="made with other settings"):
        train(tmp_path / "other", ("first", 2))
        Trainer(tmp_path / "other", 6, 100).run("first", FIRST, net, lambda rng: net(torch.zeros(1, 3)).sum())


def test_killed_after_writing_a_result_it_goes_on(tmp_path):
    _, whole = train(tmp_path / "whole")
    train(tmp_path / "pieces", ("first", 5))  # its last step: result not written yet
    state = (tmp_path / "pieces" / "state.safetensors").read_bytes()
    train(tmp_path / "pieces", ("second", 0))
    (tmp_path / "pieces" / "state.safetensors").write_bytes(state)  # as if killed before the state was removed
    complete, again = train(tmp_path / "pieces")
    assert complete
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))


def test_a_signal_between_phases_ends_at_once(tmp_path):
    Trainer(tmp_path, 0, 100)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_steps_draw_different_numbers_and_the_same_again():
    draw = lambda *key: torch.randn(4, generator=step_generator(*key))
    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 4)):
        assert not torch.equal(draw(1, 2, 3), draw(*other))


def test_the_average_is_exponential_with_a_decay_that_warms_up():
    net = nn.Linear(1, 1, bias=False)
    mean = averaged(net, most=0.6)
    mean.n_averaged.fill_(1)
    by_hand = net.weight.item()
    for step in range(40):
        with torch.no_grad():
            net.weight.fill_(step)
        mean.update_parameters(net)
        decay = min(0.6, (step + 1) / (step + 10))
        by_hand = decay * by_hand + (1 - decay) * step
    assert mean.module.weight.item() == pytest.approx(by_hand, rel=1e-5)


def test_a_phase_of_another_batch_is_another_phase(tmp_path):
    """`--batch` multiplies it, and what is resumed must not go on with another."""
    args = Namespace(out=tmp_path, seed=0, smoke=False, batch=4, dtype=torch.float32)
    run = Phases(args, {"first": FIRST}, clips=1, frames=1, save_every=1)
    assert run.phases["first"].batch == 4 * FIRST.batch
