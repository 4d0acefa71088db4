"""The graded measures on clips whose answer is known: drawn by the world itself, and changed by a known amount."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.detectors import take_apart
from data.graded import another_scene, appearance, leakage, timing
from data.world import (
    BACKGROUNDS,
    COLOURS,
    RETIMINGS,
    Scene,
    parse_prompt,
    reference_clip,
    render,
    sample_scene,
    trajectory_of,
)
from infer.measure.world_scores import ReferenceClips, world_scores

PROMPT = "a green ring moves right over a white background"
WANTED = parse_prompt(PROMPT)
CLIP = render(Scene("ring", "green", "white", "right", seed=4))
REFERENCE = reference_clip("there_and_back")  # a red square over sand with a window


def changed(frames, change):
    return change(frames.float()).round().clamp(0, 255).byte()


def noisy(frames, spread):
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    return changed(frames, lambda image: image + spread * noise)


def test_rendered_clips_are_at_the_floor_of_every_appearance_measure():
    clips = [render(sample_scene(seed, decorated=0.0)) for seed in range(1000, 1020)]
    found = [appearance(clip.frames, parse_prompt(clip.prompt)) for clip in clips]
    worst = {name: max(scores[name] for scores in found) for name in found[0]}
    assert min(scores["shape_overlap"] for scores in found) > 0.98
    assert worst["background_noise"] == worst["flicker"] == 0
    assert worst["edge_error"] < 3 and worst["background_error"] < 8 and worst["colour_error"] < 12  # the world's tints


def test_another_shape_colour_and_ground_are_measured_as_far_as_they_are():
    wanted = parse_prompt("a blue square moves right over a sky background")
    found = appearance(CLIP.frames, wanted)
    distance = lambda one, other: np.linalg.norm(np.subtract(one, other))
    assert found["colour_error"] == pytest.approx(distance(CLIP.colour, COLOURS["blue"]), abs=0.5)
    assert found["background_error"] == pytest.approx(distance(CLIP.background, BACKGROUNDS["sky"]), abs=0.5)
    assert found["shape_overlap"] < 0.8 < appearance(CLIP.frames, WANTED)["shape_overlap"]


@pytest.mark.parametrize("spread", [4.0, 8.0])
def test_noise_of_known_strength_is_read_back(spread):
    scene = replace(CLIP.scene, background="grey")  # far from 0 and 255, where noise would be cut off
    found = appearance(noisy(render(scene).frames, spread), parse_prompt(scene.caption))
    assert found["background_noise"] == pytest.approx(spread * 3**0.5, rel=0.05)  # three independent channels
    assert found["flicker"] == pytest.approx(spread * 2 / np.pi**0.5, rel=0.05)  # mean |difference of two normals|
    assert (
        found["edge_error"] > appearance(render(scene).frames, parse_prompt(scene.caption))["edge_error"] + spread / 2
    )


def test_a_blurred_edge_is_an_edge_error_and_no_noise():
    blurred = changed(
        CLIP.frames, lambda image: torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    )
    before, after = appearance(CLIP.frames, WANTED), appearance(blurred, WANTED)
    assert after["edge_error"] > 2 * before["edge_error"] and after["background_noise"] < 1


def test_a_lost_object_is_the_worst_and_not_missing():
    empty = torch.full_like(CLIP.frames, 250)
    found, step = appearance(empty, WANTED), np.subtract(COLOURS["green"], 250)
    assert found["shape_overlap"] == 0 and all(map(np.isfinite, found.values()))
    assert found["colour_error"] == pytest.approx(np.linalg.norm([255 - 20, 130 - 0, 255 - 40]))  # of green
    assert found["edge_error"] == pytest.approx(np.sqrt(np.mean(step**2.0)))
    assert leakage(empty, WANTED, REFERENCE.frames)["colour_pull"] == 1
    assert (
        leakage(empty, parse_prompt("a red ring moves right over a mint background"), REFERENCE.frames)["colour_pull"]
        is None
    )  # red is the reference's own: there is no way to measure, lost or not
    assert timing(np.full((8, 2), np.nan), CLIP.trajectory.numpy()) == {
        "motion_quality": -100.0,
        "timing_error": 1.0,
        "speed_error": 1.0,
    }


def test_an_object_lost_in_half_of_the_frames_is_half_of_the_way_to_the_worst():
    """It must not count as missing there: what is seen of it is green as wanted, and says nothing of the rest."""
    lost = CLIP.frames.clone()
    lost[4:] = torch.tensor(CLIP.background).round().byte()[:, None, None]
    whole, half, empty = (appearance(clip, WANTED) for clip in (CLIP.frames, lost, lost[[4] * 8]))
    for name in ("shape_overlap", "colour_error"):
        assert half[name] == pytest.approx((whole[name] + empty[name]) / 2, abs=2)
    assert half["edge_error"] ** 2 == pytest.approx((whole["edge_error"] ** 2 + empty["edge_error"] ** 2) / 2, rel=0.05)
    pulls = [leakage(clip, WANTED, REFERENCE.frames)["colour_pull"] for clip in (CLIP.frames, lost)]
    assert pulls == [pytest.approx(0, abs=0.05), pytest.approx(0.5, abs=0.05)]


@pytest.mark.parametrize("pattern", [None, "striped"])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_plain_clip_without_an_object_gives_numbers_and_no_nan(level, pattern):
    """Black as well, where brightness is nothing to divide by; and one frame, which has no neighbour to agree with."""
    clip = render(Scene("square", "red", "sand", "right", seed=3, pattern=pattern))
    reference = ReferenceClips((clip.frames,), (clip.prompt,))
    for frames in (8, 1):
        found = world_scores(torch.full((frames, 3, 64, 64), level, dtype=torch.uint8), PROMPT, reference)
        assert {name: value for name, value in found.items() if not np.isfinite(value)} == {}
        assert {"appearance_pull", "edge_error", "correlation"} <= found.keys()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_tint_towards_the_reference_is_its_share_of_the_way(share):
    window = REFERENCE.frames.float()
    plain = render(Scene("square", "green", "white", "there_and_back", seed=REFERENCE.scene.seed)).frames.float()
    mixed = (plain + share * (window - plain)).round().byte()
    found = leakage(mixed, parse_prompt("a green square moves right over a white background"), REFERENCE.frames)
    assert found["colour_pull"] == pytest.approx(share, abs=0.05)
    assert found["ground_pull"] == pytest.approx(share, abs=0.05)
    assert found["window_pull"] == pytest.approx(share, abs=0.1)
    assert found["pattern_pull"] is None and found["appearance_pull"] == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("pattern", ["striped", "dotted", "checkered"])
def test_a_pattern_leaks_by_its_strength_whatever_its_phase(pattern):
    reference = render(Scene("square", "red", "sand", "right", seed=3, pattern=pattern)).frames
    for seed, other, share in ((3, pattern, 1.0), (8, pattern, 1.0), (8, None, 0.0)):
        clip = render(Scene("ring", "green", "white", "right", seed=seed, pattern=other)).frames
        assert leakage(clip, WANTED, reference)["pattern_pull"] == pytest.approx(share, abs=0.15)


def test_nothing_is_measured_where_prompt_and_reference_agree():
    wanted = parse_prompt("a red ring moves right over a striped sand background with a window")
    assert set(leakage(REFERENCE.frames, wanted, REFERENCE.frames).values()) == {None}


@pytest.mark.parametrize("motion", RETIMINGS)
def test_every_retiming_is_told_from_the_motion_that_its_words_name(motion):
    path = lambda name, seed: trajectory_of(Scene("circle", "red", "mint", name, seed=seed))[0]
    same, plain = timing(path(motion, 1), path(motion, 2)), timing(path("right", 1), path(motion, 2))
    assert same["timing_error"] < 0.01 and same["speed_error"] < 0.01
    assert plain["timing_error"] > 0.08


def test_place_and_size_of_a_motion_do_not_count_for_its_timing():
    path = CLIP.trajectory.numpy()
    assert timing(path * 0.5 + 7, path)["timing_error"] == pytest.approx(0, abs=1e-6)


def test_half_of_the_travel_at_other_moments_is_half_a_speed_error():
    even, hurried, late = (
        np.cumsum([[0, 0], *([step, 0] for step in steps)], axis=0)
        for steps in ((4, 4, 4, 4), (8, 8, 0, 0), (0, 0, 8, 8))
    )
    assert timing(hurried, even)["speed_error"] == pytest.approx(0.5)
    assert timing(even, hurried * [0.5, 1])["speed_error"] == pytest.approx(0.5)  # whatever the size of the motion
    assert timing(late, hurried)["speed_error"] == pytest.approx(1)


def test_a_still_object_has_no_profile_of_speed():
    still, moving = np.zeros((8, 2)), CLIP.trajectory.numpy()
    assert timing(still, moving)["speed_error"] == 1.0 and timing(still, still)["speed_error"] == 0.0


def test_appearance_matches_its_own_prompt_and_on_average_not_at_all_another_scenes():
    own = appearance(CLIP.frames, WANTED)
    by_hand = [1 - own["shape_overlap"], own["colour_error"], own["background_error"]]
    assert own["appearance_match"] == pytest.approx(1 - np.mean(np.divide(by_hand, another_scene())))
    others = [
        appearance(CLIP.frames, {"shape": shape, "colour": colour, "background": ground})["appearance_match"]
        for shape, colour, ground in zip(("circle", "square", "triangle") * 2, COLOURS, BACKGROUNDS)
        if colour != "green" and ground != "white"
    ]
    assert own["appearance_match"] > 0.95 and np.mean(others) == pytest.approx(0, abs=0.2)


def test_motion_quality_is_the_cosine_of_displacements_where_the_reference_moves():
    path = CLIP.trajectory.numpy()
    late = trajectory_of(Scene("circle", "red", "mint", "late_start"))[0]
    across = np.stack([path[:, 1], path[:, 0]], 1)
    found = [timing(one, other)["motion_quality"] for one, other in ((path, path), (late, late), (-path, path))]
    assert found == pytest.approx([100, 100, -100]) and timing(across, path)["motion_quality"] == pytest.approx(
        0, abs=1
    )
    assert timing(path * 0, path)["motion_quality"] == 0 and timing(path * 0, path * 0)["motion_quality"] == 100


def test_a_clip_taken_apart_once_gives_the_same_measures():
    layers, other = take_apart(CLIP.frames), take_apart(REFERENCE.frames)
    assert appearance(layers, WANTED) == appearance(CLIP.frames, WANTED)
    assert leakage(layers, WANTED, other) == leakage(CLIP.frames, WANTED, REFERENCE.frames)
