"""Initial noises: identities at the ends of the dial, spreads, spectra, and the release's numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from configs.errors import UserError
from infer.noise import STRATEGIES, _square_means, initial_noise, resize_inversion

SHAPE = (1, 4, 8, 16, 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def golden():
    return load_file(Path(__file__).parent / "golden" / "steps_of_inversion.safetensors")


@pytest.fixture(scope="module")
def inversion():
    return torch.randn(SHAPE, generator=generator(1))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prior_zero_is_the_seeded_noise(strategy, inversion):
    plain = torch.randn(SHAPE, generator=generator())
    assert torch.equal(initial_noise(SHAPE, generator(), inversion, 0.0, strategy), plain)
    assert torch.equal(initial_noise(SHAPE, generator(), None, 0.0, strategy), plain)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_seed_is_one_noise_and_another_seed_another(strategy, inversion):
    first, again, other = (initial_noise(SHAPE, generator(s), inversion, 0.5, strategy) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float32 and first.shape == SHAPE


def test_prior_one_is_the_inversion(inversion):
    assert torch.equal(initial_noise(SHAPE, generator(), inversion, 1.0), inversion)


@pytest.mark.parametrize("prior", [0.2, 0.5])
def test_golden_blend_of_the_release(prior, golden):
    # mix_noise and inv50 are the release's; blending is two products and a sum, so the result is equal to the bit
    assert torch.equal(
        STRATEGIES["blend"](golden["inv50"], golden["mix_noise"], prior=prior, cutoff=0.25), golden[f"mix_{prior}"]
    )


def test_golden_noise_of_the_release_where_its_generator_stood(golden):
    # seed 5, tiny golden run, noise prior 0: building the LoRA layers had used 485088 numbers of the stream
    stream = generator(5)
    torch.rand(485088, generator=stream)
    assert torch.equal(initial_noise((1, 4, 8, 8, 8), stream), golden["noise_seed5_after_485088"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_mixtures_stay_near_unit_variance(strategy, inversion):
    # FreeInit's filter overlaps itself where it falls off, and loses a few per cent there
    assert initial_noise(SHAPE, generator(), inversion, 0.5, strategy).std().item() == pytest.approx(1, abs=0.05)


def test_frequency_takes_the_squares_mean_from_the_inversion_and_the_detail_from_the_noise(inversion):
    def means(x):
        return x.unflatten(-1, (4, 4)).unflatten(-3, (4, 4)).mean(dim=(-1, -3), keepdim=True)

    def detail(x):
        return x.unflatten(-1, (4, 4)).unflatten(-3, (4, 4)) - means(x)

    mixed = initial_noise(SHAPE, generator(), inversion, 0.5, "frequency")
    noise = torch.randn(SHAPE, generator=generator())
    torch.testing.assert_close(means(mixed), means(inversion), rtol=0, atol=1e-5)
    torch.testing.assert_close(detail(mixed), detail(noise), rtol=0, atol=1e-5)
    half = initial_noise(SHAPE, generator(), inversion, 0.5, "blend_frequency")
    torch.testing.assert_close(means(half), 0.5**0.5 * (means(inversion) + means(noise)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("height", [5, 34, 45])
def test_means_over_squares_that_do_not_fit_are_a_projection_too(height):
    x = torch.randn(1, 1, 2, height, 50, generator=generator())
    once = _square_means(x, 4)
    torch.testing.assert_close(_square_means(once, 4), once)
    torch.testing.assert_close(once[..., 4:, 48:][..., :1, :1], x[..., 4:8, 48:].mean((-1, -2), keepdim=True))


def test_fft_keeps_the_inversions_mean_and_the_noises_highest_frequency(inversion):
    mixed = initial_noise(SHAPE, generator(), inversion, 0.5, "fft")
    noise = torch.randn(SHAPE, generator=generator())
    spectra = [torch.fft.fftn(x, dim=(-3, -2, -1)) for x in (mixed, inversion, noise)]
    torch.testing.assert_close(spectra[0][..., 0, 0, 0], spectra[1][..., 0, 0, 0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(spectra[0][..., 4, 8, 8], spectra[2][..., 4, 8, 8], rtol=1e-4, atol=1e-3)


def test_cutoff_moves_the_edge_of_the_low_band(inversion):
    for strategy in ("frequency", "fft"):
        narrow, wide = (initial_noise(SHAPE, generator(), inversion, 0.5, strategy, cutoff=c) for c in (0.125, 0.5))
        assert (wide - inversion).norm() < (narrow - inversion).norm()


@pytest.mark.parametrize("size", [(8, 24, 16), (8, 9, 31), (16, 16, 16), (5, 24, 24), (1, 16, 16)])
def test_resizing_restores_each_frames_variance(size, inversion):
    loud = inversion * torch.linspace(1, 2, 8)[None, None, :, None, None]
    resized = resize_inversion(loud, size)
    assert resized.shape[2:] == size
    spread, original = resized.std(dim=(1, 3, 4)).flatten(), loud.std(dim=(1, 3, 4)).flatten()
    assert spread[0].item() == pytest.approx(original[0].item(), rel=1e-3)
    assert spread.max() <= original.max() * 1.001 and spread.min() >= original.min() * 0.999


def test_resizing_to_the_same_size_changes_nothing_and_keeps_first_and_last_frame(inversion):
    assert resize_inversion(inversion, SHAPE[2:]) is inversion
    longer = resize_inversion(inversion, (15, 16, 16))
    torch.testing.assert_close(longer[:, :, [0, -1]], inversion[:, :, [0, -1]], rtol=1e-4, atol=1e-4)


def test_a_constant_inversion_resizes_without_nan():
    assert torch.equal(resize_inversion(torch.ones(1, 4, 2, 4, 4), (3, 6, 6)), torch.ones(1, 4, 3, 6, 6))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (dict(strategy="blur"), "blend, frequency, blend_frequency, fft"),
        (dict(prior=1.2), "outside"),
        (dict(prior=0.2, inversion=None), "noise_prior=0"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, inversion):
    with pytest.raises(UserError, match=sentence):
        initial_noise(SHAPE, generator(), **{"inversion": inversion, **arguments})


@pytest.mark.parametrize("cutoff", [0.0, 1e-4, -0.25, 1.5, float("nan")])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cutoff_that_is_no_share_is_one_sentence(strategy, cutoff, inversion):
    with pytest.raises(UserError, match="initial_noise.cutoff"):
        initial_noise(SHAPE, generator(), inversion, 0.5, strategy, cutoff=cutoff)


@pytest.mark.parametrize("strategy", ["frequency", "fft"])
def test_the_lowest_cutoffs_are_the_whole_frame(strategy, inversion):
    wholes = [initial_noise(SHAPE, generator(), inversion, 0.5, strategy, cutoff=c) for c in (0.001, 0.002)]
    assert torch.isfinite(wholes[0]).all() and torch.allclose(*wholes, atol=1e-5)


def test_squares_are_no_larger_than_the_frame(inversion, monkeypatch):
    """A thousandth would otherwise pad each frame to 1000 x 1000 pixels."""
    sides = []
    monkeypatch.setattr("infer.noise._square_means", lambda x, side: sides.append(side) or x)
    initial_noise(SHAPE, generator(), inversion, 0.5, "frequency", cutoff=0.001)
    assert sides == [16, 16]
