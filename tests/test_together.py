"""What acts in sampling, all together: every combination samples, repeats itself, and owes something to each part."""

import itertools

import pytest
import torch

from infer import options
from infer.batch import sample_videos
from infer.generate import load_backbone
from infer.request import read_request

PARTS = {  # flags that switch a part (off, on)
    "integration": ([], ["--pli_threshold", "400"]),
    "highway": (["--highway", "off"], ["--highway", "all", "--beta", "1.3"]),
    "noise prior": (["--noise_prior", "0"], ["--noise_prior", "0.5"]),
}


@pytest.fixture(scope="module")
def sampled(trained):
    """A function of a solver, a switch for each part and more flags; a video of three steps is made twice."""
    always = ["-cf", str(trained()), "-p", "a horse", "-s", "3", "-g", "3", "--device", "cpu", "--lora_scale", "20"]
    backbone = load_backbone(options.parse(always))
    text, negative = backbone.encode_text(["a horse", ""]).split(1)
    size = backbone.latent_size(4, 64, 64)

    def video(solver, switches, *more):
        words = [*more] + [word for flags, on in zip(PARTS.values(), switches) for word in flags[on]]
        request = read_request(options.parse([*always, "--solver", solver, *words]))
        clip = request.reference and request.reference.inversion
        for _ in range(2):
            customization = request.customize(backbone.network, size)
            yield from sample_videos(
                backbone, customization, request.settings, text, negative, seeds=[1], inversion=clip
            )

    return video


@pytest.mark.parametrize("solver", ["ddim", "unipc", "dpm"])
def test_every_combination_samples_and_repeats_itself_and_each_part_changes_it(sampled, solver):
    found = {}
    for switches in itertools.product((False, True), repeat=len(PARTS)):
        found[switches], again = sampled(solver, switches)
        assert torch.equal(found[switches], again), switches
    for switches, frames in found.items():
        for number, part in enumerate(PARTS):
            if switches[number]:
                without = (*switches[:number], False, *switches[number + 1 :])
                assert not torch.equal(found[without], frames), f"{part} in {switches}"


@pytest.mark.parametrize("strategy", ["frequency", "blend_frequency", "fft"])
@pytest.mark.parametrize("solver", ["unipc", "dpm"])
def test_the_other_initial_noises_go_with_all_parts_and_each_part_still_changes_them(sampled, solver, strategy):
    everything = (True,) * len(PARTS)
    both = list(sampled(solver, everything, "--noise_strategy", strategy))
    assert torch.equal(*both)
    assert not torch.equal(both[0], next(sampled(solver, everything)))  # the blend
    for number, part in enumerate(PARTS):
        without = (*everything[:number], False, *everything[number + 1 :])
        assert not torch.equal(both[0], next(sampled(solver, without, "--noise_strategy", strategy))), part


def test_each_solver_makes_another_video_with_all_parts_on(sampled):
    everything = [next(sampled(solver, (True,) * len(PARTS))) for solver in ("ddim", "unipc", "dpm")]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(everything, 2))
