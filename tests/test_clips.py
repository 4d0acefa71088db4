"""Clips: which frames, which size, which caption, and one sentence for every file that cannot be used."""

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from configs import schema
from configs.errors import UserError
from data.clips import Cut, TooShort, bucket, pick_frames, read_image, read_video, resize
from data.sources import load_clips

FRAMES, WIDTH, HEIGHT = 20, 96, 64


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """20 frames at 8 fps whose grey level is 10 times their number."""
    path = tmp_path_factory.mktemp("clips") / "ramp.mp4"
    frames = np.stack([np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8) for number in range(FRAMES)])
    imageio.imwrite(path, frames, fps=8, macro_block_size=2)
    return path


def numbers(clip):
    return [round(level / 10) for level in clip.frames.float().mean((1, 2, 3)).tolist()]


def config(**train_data):
    kinds = train_data.pop("dataset_types", ["single_video"])
    return schema.from_dict(
        {"dataset_types": kinds, "train_data": {"width": 64, "height": 64, "n_sample_frames": 4, **train_data}}
    )


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (Cut(64, 64, 5, fps=8), [0, 1, 2, 3, 4]),
        (Cut(64, 64, 5, fps=4), [0, 2, 4, 6, 8]),
        (Cut(64, 64, 5, fps=4, step=2), [0, 4, 8, 12, 16]),
        (Cut(64, 64, 3, fps=0, step=3, start=2), [2, 5, 8]),
        (Cut(64, 64, 20, fps=100), list(range(20))),
    ],
)
def test_frames_follow_fps_step_and_start(video, cut, expected):
    clip = read_video(video, cut, "x")
    assert numbers(clip) == expected
    assert clip.fps == 8 / (expected[1] - expected[0])
    assert clip.frames.dtype == torch.uint8


def test_too_few_frames_is_an_error_with_the_count(video):
    with pytest.raises(UserError, match="20 frames where 21 are asked for"):
        read_video(video, Cut(64, 64, 21, fps=8), "x")
    with pytest.raises(UserError, match="0 frames"):
        pick_frames(video, 3, 8.0, Cut(64, 64, 1, start=7))


@pytest.mark.parametrize(("count", "fps"), [(0, 8.0), (20, 0.0), (20, float("inf")), (20, float("nan"))])
def test_a_video_without_frames_or_rate_is_an_error(count, fps, tmp_path):
    with pytest.raises(UserError, match=f"{count} frames at"):
        pick_frames(tmp_path, count, fps, Cut(64, 64, 4, fps=8))


@pytest.mark.parametrize(
    ("size", "cut", "expected"),
    [
        ((1920, 1080), Cut(384, 384, 1, snap=64), (384, 256)),  # as in the release
        ((1080, 1920), Cut(384, 384, 1, snap=64), (256, 384)),
        ((640, 480), Cut(384, 384, 1, snap=64), (384, 320)),
        ((1920, 1080), Cut(576, 320, 1, snap=64), (576, 320)),
        ((480, 480), Cut(384, 384, 1, snap=64), (384, 384)),
        ((1000, 10), Cut(384, 384, 1, snap=64), (384, 64)),
        ((1920, 1080), Cut(384, 384, 1, snap=None), (384, 384)),
    ],
)
def test_buckets_keep_the_aspect_ratio_in_steps_of_snap(size, cut, expected):
    assert bucket(*size, cut) == expected


def test_resizing_is_the_antialiased_triangle_filter():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (1, 1, 8, 8), generator=generator, dtype=torch.uint8)
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8  # half size: a triangle two pixels wide on each side
    inner = sum(weights[i] * weights[j] * frames[0, 0, 1 + i, 1 + j] for i in range(4) for j in range(4))
    assert resize(frames, 4, 4)[0, 0, 1, 1] == inner.round()
    assert resize(frames, 8, 8) is frames
    many = torch.randint(0, 256, (19, 3, 9, 7), generator=generator, dtype=torch.uint8)
    assert torch.equal(resize(many, 5, 6), torch.cat([resize(frame[None], 5, 6) for frame in many]))


def test_a_folder_of_frames_comes_with_the_command_that_makes_it_a_clip(tmp_path):
    with pytest.raises(UserError) as told:
        read_video(tmp_path, Cut(64, 64, 4), "x")
    assert "ffmpeg" not in str(told.value)
    Image.new("RGB", (8, 8)).save(tmp_path / "0001.png")
    with pytest.raises(UserError, match=r"a folder where a file is needed; .*`ffmpeg -framerate 8 -i FOLDER/%04d.png"):
        read_video(tmp_path, Cut(64, 64, 4), "x")


def test_without_bucketing_the_clip_is_stretched(video):
    clip = read_video(video, Cut(64, 64, 4, snap=None), "x")
    assert clip.frames.shape == (4, 3, 64, 64)
    assert read_video(video, Cut(96, 96, 4, snap=32), "x").frames.shape == (4, 3, 64, 96)


def test_files_that_are_no_video_get_one_sentence(video, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all")
    whole = video.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.gif").write_text("GIF?")
    for name in ("missing.mp4", "empty.mp4", "text.mp4", "cut.mp4", "text.gif", "."):
        with pytest.raises(UserError) as caught:
            read_video(tmp_path / name, Cut(64, 64, 4), "x")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not an image"):
        read_image(tmp_path / "text.mp4", Cut(64, 64, 1), "x")


def test_a_name_that_acts_on_a_terminal_reaches_no_decoder(tmp_path, capfd):
    path = tmp_path / "a\u202eb\x1b[31m.mp4"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="acts on a terminal; rename"):
        read_video(path, Cut(64, 64, 8, fps=8, snap=64), "")
    assert capfd.readouterr() == ("", "")


def test_gif_and_image_are_clips_too(tmp_path):
    frames = np.stack([np.full((16, 16, 3), 40 * number, np.uint8) for number in range(6)])
    imageio.imwrite(tmp_path / "a.gif", frames, duration=125, loop=0)
    assert numbers(read_video(tmp_path / "a.gif", Cut(16, 16, 3, fps=4), "x")) == [0, 8, 16]
    imageio.imwrite(tmp_path / "a.png", frames[1])
    assert read_image(tmp_path / "a.png", Cut(16, 16, 8), "x").frames.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_its_exif_says(tmp_path, orientation, mode):
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:4, :8] = 255  # upright, a light patch is at the top left
    stored = {  # how a camera that was held so stores it, by EXIF's table
        1: picture, 2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1], 5: picture.swapaxes(0, 1),
        6: np.rot90(picture), 7: np.rot90(picture, 2).swapaxes(0, 1), 8: np.rot90(picture, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).convert(mode).save(tmp_path / "a.png", exif=exif)
    frames = read_image(tmp_path / "a.png", Cut(24, 24, 1, snap=1), "x").frames
    assert torch.equal(frames[0].permute(1, 2, 0), torch.from_numpy(picture))


def test_single_video_takes_the_prompt_then_the_text_beside_it(video):
    (clip,) = load_clips(config(single_video_path=str(video), single_video_prompt="a ramp"), 32)
    assert (clip.prompt, clip.name) == ("a ramp", "ramp")
    assert "4 frames 0..3 by 1 of 20, the 16 after them dropped" in clip.source
    with pytest.raises(UserError, match="no caption"):
        load_clips(config(single_video_path=str(video)), 32)


@pytest.fixture
def folder(video, tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(video.read_bytes())
    (tmp_path / "a.txt").write_text("from the text\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.mp4", "text": "hidden"}\n{"file_name": "b.mp4", "text": "from metadata"}\n',
        ),
        ("metadata.csv", "file_name,prompt\nb.mp4,from metadata\n"),
    ],
)
def test_folder_captions_come_from_text_then_metadata_then_config(folder, name, text):
    (folder / name).write_text(text)
    clips = load_clips(config(dataset_types=["folder"], path=str(folder), fallback_prompt="from config"), 32)
    assert [clip.prompt for clip in clips] == ["from the text", "from metadata", "from config"]


def test_json_in_motiondirectors_layout_and_as_a_list(folder):
    nested = {
        "name": "set",
        "data": [
            {
                "video_path": "a.mp4",
                "data": [{"frame_index": 3, "prompt": "third"}, {"frame_index": 0, "prompt": "first"}],
            }
        ],
    }
    (folder / "nested.json").write_text(json.dumps(nested))
    clips = load_clips(config(dataset_types=["json"], json_path=str(folder / "nested.json")), 32)
    assert [(clip.prompt, numbers(clip)[0]) for clip in clips] == [("third", 3), ("first", 0)]
    plain = [{"video": "b.mp4", "caption": "plain"}, {"video": "b.mp4", "caption": "later", "frame_index": 2}]
    (folder / "list.json").write_text(json.dumps(plain))
    clips = load_clips(config(dataset_types=["json"], json_path=str(folder / "list.json")), 32)
    assert [(clip.prompt, numbers(clip)[0]) for clip in clips] == [("plain", 0), ("later", 2)]


@pytest.mark.parametrize(
    "text",
    [
        '{"data": []}',
        "[3]",
        '[{"prompt": "x"}]',
        '[{"video": "a.mp4"}]',
        "{",
        '[{"video": "a.mp4", "prompt": "x", "data": [{"frame_index": "b"}]}]',
    ],
)
def test_bad_json_gets_one_sentence(folder, text):
    (folder / "bad.json").write_text(text)
    with pytest.raises(UserError, match="bad.json"):
        load_clips(config(dataset_types=["json"], json_path=str(folder / "bad.json")), 32)


def test_several_sources_at_once(video, tmp_path):
    imageio.imwrite(tmp_path / "look.png", np.zeros((32, 32, 3), np.uint8))
    clips = load_clips(
        config(
            dataset_types=["single_video", "image"],
            single_video_path=str(video),
            single_video_prompt="a",
            image_dir=str(tmp_path),
            single_img_prompt="b",
        ),
        32,
    )
    assert [(len(clip.frames), clip.prompt) for clip in clips] == [(4, "a"), (1, "b")]


def test_a_folder_without_clips_says_what_it_holds(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"no video in .* \(found .png\)"):
        load_clips(config(dataset_types=["folder"], path=str(tmp_path)), 32)
    with pytest.raises(UserError, match="no folder"):
        load_clips(config(dataset_types=["folder"], path=str(tmp_path / "nowhere")), 32)


@pytest.mark.parametrize("rate", [24, 25, 30, 50, 60])
def test_two_seconds_are_enough_at_every_usual_rate(rate):
    indices, fps = pick_frames(Path("phone.mp4"), 2 * rate, rate, Cut(64, 64, 16, fps=8))
    assert len(indices) == 16 and 8 <= fps <= 10


@pytest.mark.parametrize(
    ("count", "start", "advice"),
    [
        (40, 0, "train_data.fps=15 would do"),
        (10, 0, "take a longer clip"),
        (60, 99, "lower train_data.sample_start_idx"),
    ],
)
def test_a_clip_too_short_is_told_what_would_do(count, start, advice):
    with pytest.raises(TooShort, match=advice) as refused:
        pick_frames(Path("phone.mp4"), count, 30, Cut(64, 64, 16, fps=8, start=start))
    found = len(range(start, count, 3))  # 30 fps to no less than 8
    assert (refused.value.found, refused.value.asked) == (found, 16)
    assert str(refused.value).startswith(f"phone.mp4: {found} frames where 16 are asked for")


@pytest.mark.parametrize("number, words", [
    (1, "frame"), (2, "2nd frame"), (3, "3rd frame"), (4, "4th frame"), (12, "12th frame"), (21, "21st frame"),
    (111, "111th frame"),
])  # fmt: skip
def test_the_frames_of_a_clip_too_short_are_counted_in_words(number, words):
    with pytest.raises(UserError, match=f"taking every {words} from frame 7[)]"):
        pick_frames(Path("phone.mp4"), 8, 30, Cut(64, 64, 16, step=number, start=7))


def test_an_image_in_place_of_a_clip_is_told_where_it_belongs(tmp_path):
    with pytest.raises(UserError, match="dataset_types=.image."):
        (tmp_path / "look.png").write_bytes(b"x")
        read_video(tmp_path / "look.png", Cut(64, 64, 16), "")


def test_damaged_gifs_and_pictures_are_one_sentence_wherever_they_are_cut(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3)).astype(np.uint8)
    imageio.imwrite(tmp_path / "a.gif", frames, duration=125, loop=0)
    imageio.imwrite(tmp_path / "a.png", frames[1])
    gif, png = (tmp_path / "a.gif").read_bytes(), (tmp_path / "a.png").read_bytes()
    for share in range(1, 40):
        (tmp_path / "cut.gif").write_bytes(gif[: len(gif) * share // 40])
        (tmp_path / "cut.png").write_bytes(png[: len(png) * share // 40])
        for read in (
            lambda: read_video(tmp_path / "cut.gif", Cut(16, 16, 6), "x"),
            lambda: read_image(tmp_path / "cut.gif", Cut(16, 16, 1), "x"),
            lambda: read_image(tmp_path / "cut.png", Cut(16, 16, 1), "x"),
        ):
            try:
                read()
            except UserError as error:
                assert "\n" not in str(error)
    assert read_image(tmp_path / "a.gif", Cut(16, 16, 1), "x").frames.shape == (1, 3, 16, 16)  # its first frame


def test_a_picture_of_more_pixels_than_any_is_one_sentence(tmp_path, monkeypatch):
    imageio.imwrite(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="not an image that can be read"):
        read_image(tmp_path / "a.png", Cut(16, 16, 1), "x")


@pytest.mark.parametrize("name, text", [
    ("list.json", "[" * 100_000), ("list.json", '[{"video": "a.mp4", "prompt": "x", "data": ' + "1" * 5000 + "}]"),
    ("list.json", '[{"video": "a.mp4", "prompt": "\\ud800"}]'), ("list.json", '[{"video": ["a.mp4"], "prompt": "x"}]'),
    ("list.json", '[{"video": "a.mp4", "prompt": {"a": 1}}]'),
    ("list.json", '[{"video": "a\\u0000.mp4", "prompt": "x"}]'),
    ("list.json", '[{"video": "a.mp4", "prompt": "x", "data": []}]'),
    ("metadata.jsonl", "[" * 100_000), ("metadata.jsonl", "1" * 5000), ("metadata.jsonl", "[1]"),
    ("metadata.csv", "file_name,text\n" + "x" * 200_000 + ",y\n"), ("metadata.csv", "file_name,text\na.mp4\n"),
])  # fmt: skip
def test_lists_of_clips_are_plain_data_or_one_sentence(folder, name, text):
    (folder / name).write_text(text)
    asked = {"dataset_types": ["json"], "json_path": str(folder / name)} if name == "list.json" else {
        "dataset_types": ["folder"], "path": str(folder), "fallback_prompt": "x"}  # fmt: skip
    with pytest.raises(UserError, match=name):
        load_clips(config(**asked), 32)
