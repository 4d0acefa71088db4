"""Prompt files: plain lines, lines with options, and what is said of a wrong one."""

import json

import pytest
import torch

from configs.errors import UserError
from infer import options
from infer.generate import generate, load_backbone
from infer.jobs import read_parts
from infer.prompt_file import OPTIONS, Line, grouped, read_prompt_file
from infer.video import read_frames


@pytest.fixture
def lines(tmp_path):
    """A function of the text of a prompt file: its lines."""

    def read(text):
        path = tmp_path / "prompts.txt"
        path.write_text(text)
        return read_prompt_file(str(path))

    return read


def test_plain_lines_and_lines_with_options(lines):
    text = '# a comment\n\na car\na boat --w 64 --h 32 --f 8 --d 42 --s 20 --g 3.5 --n "bad, dark"\n'
    everything = dict(width=64, height=32, num_frames=8, seed=42, num_steps=20, guidance_scale=3.5)
    assert lines(text) == [Line("a car"), Line("a boat", {**everything, "negative_prompt": "bad, dark"})]
    assert lines("x --n low quality --d=7") == [Line("x", {"negative_prompt": "low quality", "seed": 7})]
    assert set(OPTIONS.values()) <= vars(options.parse([])).keys()


def test_only_the_end_of_a_line_ends_a_prompt(lines, tmp_path):
    """Pasted text holds other signs that Python counts as ends of lines."""
    assert [line.prompt for line in lines("a red car\u2028drives away\x85\na boat")] == [
        "a red car\u2028drives away",
        "a boat",
    ]
    (tmp_path / "windows.txt").write_bytes(b"a car\r\na boat\ra bicycle\r\n")
    found = read_prompt_file(str(tmp_path / "windows.txt"))
    assert [line.prompt for line in found] == ["a car", "a boat", "a bicycle"]


def test_a_prompt_may_hold_the_signs_of_an_option(lines):
    assert lines(r"a sign that says \--w 64 --d 3") == [Line("a sign that says --w 64", {"seed": 3})]
    assert lines(r"a --n a \--d b") == [Line("a", {"negative_prompt": "a --d b"})]
    assert lines("a car -- red, a--b, -w 3 and --5") == [Line("a car -- red, a--b, -w 3 and --5")]


@pytest.mark.parametrize(
    "line, words",
    [
        ("a --width 3", "--width is no option; did you mean --w"),
        ("a --zz 3", "there are --w, --h, --f, --d, --s, --g, --n"),
        ("a --w", "--w is '', no whole number"),
        ("a --w 3.5", "--w is '3.5', no whole number"),
        ("a --s 1000", "--s is '1000', no whole number from 1 to 999"),
        ("a --g nan", "--g is 'nan', no finite number"),
        ("a --d -1", "--d is '-1', no whole number from 0"),
        ("a --w 8 --w 16", "--w is given twice"),
        ("--w 64", "options without a prompt"),
        ("a --d " + "9" * 5000, "no whole number"),
    ],
)
def test_a_wrong_option_is_one_sentence_with_file_and_line(lines, line, words):
    with pytest.raises(UserError) as refused:
        lines(f"a car\n\n{line}\n")
    assert "prompts.txt, line 3: " in str(refused.value) and words in str(refused.value)
    assert len(str(refused.value)) < 400


def test_neighbours_with_the_same_options_are_sampled_together():
    same, other = [Line("a", {"width": 8, "seed": 1}), Line("b", {"width": 8})], Line("c", {"width": 16})
    assert list(grouped([*same, other, *same])) == [
        ({"width": 8}, same),
        ({"width": 16}, [other]),
        ({"width": 8}, same),
    ]


def test_a_line_stands_over_the_flags_and_repeats_and_seeds_are_counted(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a --d 7\nb --w 16\nc\n")
    words = ["--prompt_file", str(path), "--prompt", "x", "-W", "8", "-r", "1", "2", "-rn", "2"]
    parts = read_parts(options.parse(words))
    assert [part.args.width for part in parts] == [8, 16, 8]
    assert parts[0].jobs == [("x", 1), ("x", 2), ("x", 2), ("x", 3), ("a", 7), ("a", 8)]
    drawn = read_parts(options.parse(["--prompt_file", str(path)]))
    assert drawn[1].jobs[0][1] == drawn[2].jobs[0][1], "one random seed for a command"


def test_lines_with_options_give_the_videos_that_flags_give(tiny_pipeline, tmp_path, capsys):
    path = tmp_path / "p.txt"
    path.write_text("a car --d 4\na horse --w 32 --f 3 --s 3 --g 5 --n red\n")
    common = ["--model", str(tiny_pipeline), "--device", "cpu", "-W", "64", "-H", "32", "-T", "2", "-s", "2", "-r", "1"]
    args = options.parse([*common, "--prompt_file", str(path), "-o", str(tmp_path / "file")])
    backbone = load_backbone(args)
    car, horse = generate(args, backbone)
    assert "for the next 1 videos: width 32, num_frames 3, num_steps 3, guidance_scale 5" in capsys.readouterr().err
    flags = ["-p", "a horse", "-W", "32", "-T", "3", "-s", "3", "-g", "5", "-n", "red", "-o", str(tmp_path / "flags")]
    (alone,) = generate(options.parse([*common, *flags]), backbone)
    assert torch.equal(read_frames(horse), read_frames(alone)) and horse.name == alone.name
    assert tuple(read_frames(car).shape) == (2, 3, 32, 64) and car.name == "a_car_seed4.mp4"
    one, other = (json.loads(video.with_suffix(".json").read_text()) for video in (horse, alone))
    assert one["settings"] == other["settings"] and len(list((tmp_path / "file").glob("sheet_*.png"))) == 1


def test_a_wrong_line_is_found_before_anything_is_sampled(tiny_pipeline, tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("a car\na horse --w 33\n")
    words = ["--model", str(tiny_pipeline), "--device", "cpu", "-H", "32", "--prompt_file", str(path)]
    with pytest.raises(UserError, match="line 2: --w is '33', no whole number from 8 to 8192 in steps of 8"):
        next(generate(options.parse([*words, "-o", str(tmp_path / "out")])))
    assert not (tmp_path / "out").exists()
