"""The toy world: its scenes are exact, repeatable and readable from their captions."""

import numpy as np
import pytest
import torch

from configs.errors import UserError
from data.shapes import coverage
from data.world import (
    MOTIONS,
    PATHS,
    RETIMINGS,
    SHAPES,
    Scene,
    parse_prompt,
    reference_clip,
    render,
    sample_scene,
    trajectory_of,
    vocabulary,
)

ALL_MOTIONS = [*MOTIONS, *RETIMINGS, *PATHS]


def scene(**fields) -> Scene:
    return Scene(**{"shape": "circle", "colour": "red", "background": "mint", "motion": "right", "seed": 3} | fields)


def test_a_clip_has_the_stated_layout():
    clip = render(scene(), frames=5, size=48)
    assert clip.frames.shape == (5, 3, 48, 48) and clip.frames.dtype == torch.uint8
    assert clip.trajectory.shape == (5, 2) and clip.size.shape == (5,) and clip.mask.shape == (5, 48, 48)
    assert 0 <= clip.mask.min() and clip.mask.max() == 1


def test_equal_scenes_render_to_equal_bytes_and_other_seeds_do_not():
    assert torch.equal(render(scene()).frames, render(scene()).frames)
    assert not torch.equal(render(scene()).frames, render(scene(seed=4)).frames)
    assert sample_scene(5) == sample_scene(5) != sample_scene(6)


def cut_off(shape: str, **fields) -> tuple[float, float]:
    """The largest share of a scene's object in any frame that lies (above the canvas, beyond its other edges)."""
    centre, size = trajectory_of(scene(shape=shape, **fields))
    assert np.isfinite(centre).all() and (size > 4).all()
    y, x = np.mgrid[-8:72, -8:72] + 0.5
    drawn = coverage(shape, x - centre[:, 0, None, None], y - centre[:, 1, None, None], size[:, None, None])
    whole, above = drawn.sum((1, 2)), drawn[:, :8].sum((1, 2))
    beyond = whole - above - drawn[:, 8:-8, 8:-8].sum((1, 2))
    return float((above / whole).max()), float((beyond / whole).max())


@pytest.mark.parametrize("motion", ALL_MOTIONS)
def test_the_object_stays_on_the_canvas_but_for_the_apex_of_a_triangle(motion):
    for seed in range(12):
        for shape in SHAPES:
            above, beyond = cut_off(shape, motion=motion, seed=seed)
            assert beyond < 1e-6 and above < (1e-3 if shape == "triangle" else 1e-6)


def test_the_apex_of_some_triangles_is_cut_at_the_top():
    """The pretrained model has learned from such clips: what they look like must stay as it is."""
    cut = [seed for seed in range(60) if cut_off("triangle", motion="up", seed=seed)[0] > 1e-6]
    assert cut == [4, 26, 33, 48, 56]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_of_the_mask_is_the_trajectory(shape):
    clip = render(scene(shape=shape, motion="wander"))
    y, x = np.mgrid[0:64, 0:64] + 0.5
    mask = clip.mask.numpy()
    found = np.stack([(mask * x).sum((1, 2)), (mask * y).sum((1, 2))], 1) / mask.sum((1, 2))[:, None]
    np.testing.assert_allclose(found, clip.trajectory.numpy(), atol=0.15)


def test_coverage_is_the_average_of_a_finer_drawing():
    fine, coarse = 8, 24
    y, x = (np.mgrid[0 : coarse * fine, 0 : coarse * fine] + 0.5) / fine - coarse / 2
    inside = (np.hypot(x, y) < 8).astype(float)
    exact = inside.reshape(coarse, fine, coarse, fine).mean((1, 3))
    y, x = np.mgrid[0:coarse, 0:coarse] + 0.5 - coarse / 2
    assert np.abs(coverage("circle", x, y, 8.0) - exact).max() < 0.12


def test_colours_are_drawn_as_the_ground_truth_says():
    clip = render(scene())
    x, y = (int(v) for v in clip.trajectory[0])
    assert tuple(clip.frames[0, :, y, x].tolist()) == clip.colour
    assert tuple(clip.frames[0, :, 0, 63].tolist()) == clip.background


def test_a_larger_canvas_shows_the_same_scene():
    small, large = render(scene(), size=64), render(scene(), size=128)
    torch.testing.assert_close(large.trajectory, 2 * small.trajectory)
    torch.testing.assert_close(large.size, 2 * small.size)
    shrunk = torch.nn.functional.avg_pool2d(large.frames.float(), 2)
    assert (shrunk - small.frames).abs().mean() < 1.0


def test_retimings_visit_only_places_of_the_known_motion():
    known, _ = trajectory_of(scene(motion="right"))
    for name in RETIMINGS:
        path, _ = trajectory_of(scene(motion=name))
        assert path[:, 0].min() >= known[:, 0].min() - 1e-4 and path[:, 0].max() <= known[:, 0].max() + 1e-4
        assert np.abs(path - known).max() > 3  # but not at the same times


def test_training_never_shows_a_held_out_motion():
    seen = {sample_scene(seed).motion for seed in range(200)}
    held = {sample_scene(seed, split="heldout").motion for seed in range(200)}
    assert seen == set(MOTIONS) and held == {*RETIMINGS, *PATHS}


def test_captions_are_read_back_and_held_out_motions_use_known_verbs():
    for seed in range(40):
        drawn = sample_scene(seed, decorated=0.5)
        read = parse_prompt(drawn.caption)
        assert (read["shape"], read["colour"], read["background"]) == (drawn.shape, drawn.colour, drawn.background)
        assert read["motion"] == drawn.motion and read["pattern"] == drawn.pattern
        assert bool(read["window"]) == drawn.window
    assert "moves right" in scene(motion="late_start").caption
    assert "moves up" in scene(motion="pause", direction="up").caption
    assert "wanders" in scene(motion="orbit").caption


def test_a_prompt_that_names_nothing_reads_as_nothing():
    assert set(parse_prompt("a dog runs on the beach").values()) == {None}
    free = parse_prompt("On a mint background, a ring that is black wanders.")
    assert (free["shape"], free["colour"], free["background"], free["motion"]) == ("ring", "black", "mint", "wander")


@pytest.mark.parametrize(
    ("prompt", "key", "wanted"),
    [
        ("a red circle moves right, then moves left", "motion", "right"),
        ("it grows, then moves up", "motion", "grow"),
        ("a ring moves upward", "motion", None),
        ("it outgrows a square", "motion", None),
        ("a ring that moves\nDOWN", "motion", "down"),
        ("a red circle!", "shape", "circle"),
        ("a (black) ring; then a square", "shape", "ring"),
        ("a blackish ring on mint-green", "colour", "green"),
    ],
)
def test_whole_words_are_read_and_of_several_the_first(prompt, key, wanted):
    assert parse_prompt(prompt)[key] == wanted


def test_every_caption_is_spelled_with_the_vocabulary():
    words = set(vocabulary())
    for seed in range(60):
        assert set(sample_scene(seed, split="heldout", decorated=0.5).caption.split()) <= words


def test_a_reference_clip_has_an_appearance_worth_leaking():
    for seed in range(8):
        clip = reference_clip("there_and_back", seed)
        assert clip.scene.motion == "there_and_back" and (clip.scene.pattern or clip.scene.window)
    assert reference_clip("orbit", 1, colour="blue").scene.colour == "blue"


def test_a_word_outside_the_world_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="Scene.shape: 'star' is not in the world; choose one of circle"):
        scene(shape="star")
    with pytest.raises(UserError, match="use 'train' or 'heldout'"):
        sample_scene(0, split="test")
