"""Masks that cost little on a CPU: how many values fall away, what is left of the others, and of the gradient."""

import pytest
import torch
import torch.nn.functional as F

from models.dropout import LEVELS, drop


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 0.99])
def test_so_many_fall_away_and_the_mean_stays(probability, dtype):
    torch.manual_seed(0)
    dropped = drop(torch.ones(7, 30_001, dtype=dtype), probability)  # not a multiple of four
    kept = dropped[dropped != 0]
    assert 1 - len(kept) / dropped.numel() == pytest.approx(probability, abs=0.005)
    assert kept.unique().tolist() == pytest.approx(
        [1 / (1 - probability)], rel=1e-3 if dtype != torch.bfloat16 else 1e-2
    )


def test_probabilities_are_exact_to_the_levels_and_the_scale_belongs_to_them():
    torch.manual_seed(0)
    (scale,) = drop(torch.ones(1000), 1 / LEVELS / 3).unique().tolist()  # rounds to none
    assert scale == 1
    (kept,) = (x for x in drop(torch.ones(10_000), 0.3).unique().tolist() if x)
    assert kept == pytest.approx(LEVELS / (LEVELS - round(0.3 * LEVELS)), rel=1e-6)


def test_neighbouring_values_fall_away_apart():
    """Four values share a draw, and not its bits."""
    torch.manual_seed(0)
    gone = (drop(torch.ones(100_000), 0.5) == 0).view(-1, 4).float()
    assert (torch.corrcoef(gone.T) - torch.eye(4)).abs().max() < 0.02
    assert gone.mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.01)


def test_the_gradient_passes_where_the_value_did_and_a_seed_repeats_both():
    x = torch.randn(64, 33, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.manual_seed(3)
    once = drop(x * 1, 0.1)
    once.sum().backward()
    assert torch.equal(x.grad != 0, once != 0) and x.grad[once != 0].unique().numel() == 1
    torch.testing.assert_close(once, x.detach() * x.grad)
    torch.manual_seed(3)
    assert torch.equal(drop(x.detach().clone(), 0.1), once)


def test_another_device_keeps_torchs_kernel(monkeypatch):
    monkeypatch.setattr(F, "dropout", lambda x, probability: (x.device.type, probability))
    assert drop(torch.ones(2, device="meta"), 0.1) == ("meta", 0.1)
