"""The rendered example clips: the tracer against geometry, and the shipped files against what configs expect."""

import numpy as np
import pytest

from configs.signals import Terminated
from data.clips import Cut, read_video
from data.world import reference_clip
from scripts.pocket.scenes import CLIPS, render_clip
from scripts.pocket.tracer import FAR, SUN, Solid, View, trace
from scripts.render_clips import FOLDER, main, toys, write_toy

TOYS = toys()


def rays(*directions):
    unit = np.array(directions, np.float32)
    return unit / np.linalg.norm(unit, axis=1, keepdims=True)


@pytest.mark.parametrize(("shape", "distance"), [("sphere", 8.0), ("box", 8.0), ("cylinder", 8.0), ("cone", 9.0)])
def test_a_ray_along_z_meets_each_shape_where_geometry_says(shape, distance):
    solid = Solid(shape, (0, 0, 10), (2, 2, 2), (1, 0, 0))  # at half height a cone is half as wide
    hits = solid.hit(np.zeros((2, 3), np.float32), rays((0, 0, 1), (1, 0, 0)))
    assert hits[0] == pytest.approx(distance, abs=1e-4)
    assert hits[1] == FAR
    normals, colours = solid.surface(np.array([[0, 0, distance]], np.float32))
    expected = rays((0, 0.447214, -0.894427)) if shape == "cone" else rays((0, 0, -1))
    np.testing.assert_allclose(normals, expected, atol=1e-3)
    assert colours.tolist() == [[1, 0, 0]]


def test_heading_turns_a_solid_towards_x():
    long = Solid("box", (0, 0, 10), (1, 1, 3), (1, 0, 0), heading=np.pi / 2)
    assert long.hit(np.zeros((1, 3), np.float32), rays((0, 0, 1)))[0] == pytest.approx(9.0, abs=1e-4)


def test_the_sun_is_a_unit_vector():
    assert np.linalg.norm(SUN) == pytest.approx(1, abs=0.01)


def test_a_shadow_darkens_the_ground_behind_a_solid():
    view, white = View((0, 20, -0.1), (0, 0, 0), 1.5), (0.5, 0.5, 0.5)
    bare = trace([], white, view, 16, 1).astype(int)
    shadowed = trace([Solid("sphere", (0, 4, 0), (2, 2, 2), white)], white, view, 16, 1).astype(int)
    assert (bare - shadowed).max() > 40


@pytest.mark.parametrize("name", CLIPS)
def test_rendering_is_deterministic_and_moves(name):
    one, two = render_clip(name, 2, 24, 1), render_clip(name, 2, 24, 1)
    assert np.array_equal(one, two)
    assert np.abs(one[0].astype(int) - one[1]).mean() > 1


@pytest.mark.parametrize("name", CLIPS)
def test_shipped_clips_hold_what_the_configs_ask_for(name):
    path = FOLDER / f"{name}.mp4"
    assert read_video(path, Cut(384, 384, 16, fps=8, snap=64), name).frames.shape == (16, 3, 384, 384)
    assert read_video(path, Cut(480, 272, 33, fps=16, snap=16), name).frames.shape == (33, 3, 272, 272)  # for Wan
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("name", TOYS)
def test_the_toys_are_the_worlds_references_to_a_grey_level(name):
    toy = reference_clip(TOYS[name])
    clip = read_video(FOLDER / f"{name}.mp4", Cut(64, 64, 8, fps=8, snap=64), "")
    assert (clip.frames.int() - toy.frames.int()).abs().max() <= 3
    assert (FOLDER / f"{name}.txt").read_text().strip() == toy.prompt


def test_a_toy_in_another_appearance_and_a_name_that_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["render_clips.py", "pocket_orbit", "--seed", "6", "--output_dir", str(tmp_path)])
    main()
    assert (tmp_path / "pocket_orbit.mp4").exists()
    assert (tmp_path / "pocket_orbit.txt").read_text().strip() == reference_clip("orbit", seed=6).prompt
    monkeypatch.setattr("sys.argv", ["render_clips.py", "pocket_circle"])
    with pytest.raises(SystemExit):
        main()
    assert "pocket_circle: no such clip; there are" in capsys.readouterr().err


def test_a_clip_that_is_broken_off_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    main(["pocket_orbit", "--output_dir", str(tmp_path)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken_off(path, *_, **__):
        path.write_bytes(b"half")
        raise Terminated

    monkeypatch.setattr("imageio.v3.imwrite", broken_off)
    with pytest.raises(Terminated):
        write_toy(tmp_path / "pocket_orbit.mp4", "orbit", seed=6)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
