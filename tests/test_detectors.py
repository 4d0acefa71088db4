"""The analytic detectors: exact on rendered clips, honest about what is not there."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from configs.errors import UserError
from data.detectors import (
    CONTRAST,
    _border_colour,
    _colour_of_pixels,
    compare_paths,
    grown,
    name_motion,
    read_clip,
    take_apart,
)
from data.graded import ground_pixels
from data.shapes import WINDOW_FRAME, WINDOW_PANE
from data.world import (
    COLOURS,
    MOTIONS,
    RETIMINGS,
    Scene,
    known_path,
    parse_prompt,
    reference_clip,
    render,
    sample_scene,
    trajectory_of,
)


@pytest.fixture(scope="module")
def read_scenes():
    clips = [render(sample_scene(seed, decorated=0.4)) for seed in range(1000, 1060)]
    return [(clip, read_clip(clip.frames)) for clip in clips]


@pytest.mark.parametrize("name", ["background", "colour", "shape", "motion"])
def test_rendered_clips_are_read_as_their_captions_say(read_scenes, name):
    right = [reading.matches(parse_prompt(clip.prompt))[name] for clip, reading in read_scenes]
    assert np.mean(right) >= 0.95


def test_windows_are_seen_only_where_there_is_one(read_scenes):
    assert all(reading.window == clip.scene.window for clip, reading in read_scenes)


def test_paths_and_sizes_are_exact_to_a_fraction_of_a_pixel(read_scenes):
    for clip, reading in read_scenes:
        assert np.abs(reading.trajectory - clip.trajectory.numpy()).max() < 0.5
        assert np.abs(reading.size - clip.size.numpy()).max() < 1.0


def test_noise_and_blur_do_not_change_the_reading():
    clip = render(Scene("ring", "blue", "sand", "up", seed=5))
    noise = torch.randn(clip.frames.shape, generator=torch.Generator().manual_seed(0)) * 8
    blurred = torch.nn.functional.avg_pool2d(clip.frames.float(), 3, 1, 1, count_include_pad=False)
    for frames in (clip.frames + noise, blurred):
        reading = read_clip(frames.round().clamp(0, 255).byte())
        assert all(reading.matches(parse_prompt(clip.prompt)).values())


def test_the_canvas_size_does_not_matter():
    clip = render(Scene("square", "green", "pink", "left", seed=5), size=96)
    reading = read_clip(clip.frames)
    assert all(reading.matches(parse_prompt(clip.prompt)).values())
    assert np.abs(reading.trajectory - clip.trajectory.numpy() * 64 / 96).max() < 0.5


def test_an_empty_clip_has_a_background_and_nothing_else():
    frames = (
        torch.zeros(8, 3, 64, 64, dtype=torch.uint8) + torch.tensor([150, 240, 190], dtype=torch.uint8)[:, None, None]
    )
    reading = read_clip(frames)
    assert reading.background == "mint"
    assert (reading.colour, reading.shape, reading.motion, reading.window) == (None, None, None, False)


def test_a_colour_outside_the_palette_has_no_name():
    frames = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    assert read_clip(frames).background is None


def test_an_object_lost_on_the_way_has_no_motion():
    clip = render(Scene("circle", "red", "white", "right", seed=1))
    frames = clip.frames.clone()
    frames[5] = frames[5, :, :1, -1:]
    reading = read_clip(frames)
    assert reading.colour == "red" and reading.motion is None
    assert not compare_paths(reading.trajectory, clip.trajectory.numpy())["success"]


@pytest.mark.parametrize("motion", [m for m in MOTIONS if m != "wander"])
def test_every_known_motion_is_named_from_its_true_path(motion):
    for seed in range(20):
        clip = render(Scene("circle", "red", "white", motion, seed=seed), size=8)  # a tiny canvas: only the path counts
        assert name_motion(clip.trajectory.numpy() * 8, clip.size.numpy() * 8) == motion


def test_a_path_matches_itself_in_any_place_and_neither_its_mirror_nor_half_of_it():
    path = render(Scene("circle", "red", "white", "there_and_back", seed=1)).trajectory.numpy()
    same = compare_paths(path, path)
    assert same["success"] and same["rmse"] == 0 and same["correlation"] == pytest.approx(1)
    mirrored = compare_paths(path * [-1, 1] + [64, 0], path)
    assert not mirrored["success"] and mirrored["correlation"] < -0.9
    assert compare_paths(path + [7, 0], path) == pytest.approx(same, abs=1e-5)
    assert compare_paths(path * 0.5, path)["rmse"] == pytest.approx(
        np.sqrt(((path - path.mean(0)) ** 2).sum(1).mean()) / 2
    )


def test_losing_the_object_never_helps():
    going = render(Scene("circle", "red", "white", "right", seed=1)).trajectory.numpy()
    path = render(Scene("circle", "red", "white", "there_and_back", seed=2)).trajectory.numpy()
    going[4:] = np.nan  # what is left goes right, as the reference does at first
    found = compare_paths(going, path)
    assert found["correlation"] <= 0 and found["rmse"] > 40 and not found["success"]
    assert compare_paths(np.full_like(path, np.nan), path) == {"rmse": 64.0, "correlation": -1.0, "success": False}


def test_every_lost_frame_costs_its_share_and_none_more():
    path = render(Scene("circle", "red", "white", "there_and_back", seed=2)).trajectory.numpy()
    one, two = path.copy(), path.copy()
    one[3], two[[3, 4]] = np.nan, np.nan
    assert [compare_paths(found, path)["correlation"] for found in (path, one, two)] == pytest.approx([1, 0.75, 0.5])
    mirrored = 64 - path
    lost = mirrored.copy()
    lost[3] = np.nan
    worst = compare_paths(mirrored, path)["correlation"]
    assert compare_paths(lost, path)["correlation"] == pytest.approx(worst) == -1, "losing it does not help either"


@pytest.mark.parametrize("paint", [(132, 75, 20), (128, 128, 128), (190, 90, 140)])
def test_an_object_whose_colour_has_no_name_still_moves(paint):
    """What is wrong with its appearance is the appearance's measure to say, not the motion's."""
    clip = render(Scene("circle", "red", "white", "right", seed=3))
    inside = clip.mask.numpy()[:, None]
    frames = (inside * np.array(paint)[None, :, None, None] + (1 - inside) * clip.frames.numpy()).astype(np.uint8)
    seen = read_clip(frames)
    assert seen.colour is None or seen.colour != "red"
    found = compare_paths(seen.trajectory, clip.trajectory.numpy())
    assert found["success"] and found["correlation"] > 0.99 and seen.motion == "right"


@pytest.mark.parametrize("motion", RETIMINGS)
def test_no_re_timing_is_learned_by_the_known_motion_and_each_by_itself_in_any_place(motion):
    reference = render(reference_clip(motion).scene, size=8).trajectory.numpy() * 8
    for seed in range(50):
        words, true = (trajectory_of(Scene("circle", "red", "white", name, seed=seed))[0] for name in ("right", motion))
        assert not compare_paths(words, reference, known_path("right"))["success"]
        assert compare_paths(true, reference, known_path("right"))["success"]


def test_another_layout_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="give uint8"):
        read_clip(torch.zeros(8, 64, 64, 3, dtype=torch.uint8))


def test_a_mask_grows_by_the_neighbours_along_the_axes_that_are_named():
    mask = np.random.default_rng(0).random((3, 9, 9)) < 0.1
    mask[0, 0, 0] = mask[1, -1, -1] = True  # nothing comes in from the other side
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
    for found, shape in ((grown(mask, 1, 2), cross), (grown(grown(mask, 1), 2), np.ones((3, 3), bool))):
        assert np.array_equal(found, binary_dilation(mask, shape[None]))
    layers = take_apart(render(sample_scene(1000)).frames)
    assert np.array_equal(~ground_pixels(layers), binary_dilation(layers.coverage > 0.05, cross[None], 2))


def test_every_pixel_gets_the_colour_that_is_nearest():
    """Against distances, one by one; equal ones go to the first of the palette."""
    image = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.float32)
    image[:, :13, :11] = (150, 240, 190)
    ground = _border_colour(image)
    points = [*COLOURS.values(), ground, 0.89 * ground, 0.78 * ground, WINDOW_FRAME, WINDOW_PANE]
    distances = np.stack([np.linalg.norm(image - np.array(point), axis=-1) for point in points])
    nearest = distances.argmin(0)
    nearest[np.linalg.norm(image - ground, axis=-1) < CONTRAST] = len(COLOURS)
    owner, _ = _colour_of_pixels(image, ground)
    assert (owner == np.where(nearest < len(COLOURS), nearest, -1)).all() and len(np.unique(owner)) == len(COLOURS) + 1
