"""Public benchmarks: their layouts in a tiny folder made here, and the command on it from reading to the table."""

import argparse
import json
import re
import shutil
from dataclasses import replace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from data.benchmarks import JOINTTUNER, MTBENCH, read_benchmark, read_mask, read_tracks
from infer.measure.metrics import VideoScorer
from infer.measure.statistics import mean
from infer.video import read_frames
from scripts import reproduce
from scripts.artefacts import public_benchmark
from scripts.artefacts.benchmark_scores import Found, source_tracks
from scripts.artefacts.public_benchmark import _text

FRAMES = 6
VAE = "diffusion_pytorch_model.safetensors"
TINY = (  # a training of two steps on frames of 64 x 64
    *("lora_rank=2", "mixed_precision=no", "train_data.width=64", "train_data.height=64"),
    *("train_data.n_sample_frames=4", "validation_data.num_frames=4"),
    *("validation_data.width=64", "validation_data.height=64"),
)


def clip(path, shift: int = 3, width: int = 64) -> None:
    """A textured square that moves right over a textured ground, in 64 rows."""
    draw = np.random.default_rng(0)
    ground, square = (draw.integers(0, 255, (size, size, 3), np.uint8).repeat(4, 0).repeat(4, 1) for size in (16, 4))
    frames = np.stack([ground] * FRAMES)
    for i, frame in enumerate(frames):
        frame[24:40, 8 + shift * i : 24 + shift * i] = square
    frames = np.pad(frames, ((0, 0), (0, 0), (0, width - 64), (0, 0)), mode="wrap")
    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, frames, plugin="FFMPEG", fps=8, quality=10, macro_block_size=2)


def mtbench_case(folder, name: str, frames: int = FRAMES):
    case = folder / name
    clip(case / "videos" / f"{name}.mp4")
    mask = np.zeros((64, 64), np.uint8)
    mask[24:40, 8:24] = 255
    (case / "masks" / name).mkdir(parents=True)
    iio.imwrite(case / "masks" / name / "00000.png", mask)
    (case / "trajectories").mkdir()
    x = (torch.tensor([12.0, 20.0])[None] + 3 * torch.arange(frames)[:, None]) / 64  # [f 2]
    tracks = torch.stack([x, torch.full_like(x, 0.5), torch.ones_like(x)], -1)
    tracks[:, 1, 2] = 0  # never visible
    torch.save(tracks, case / "trajectories" / f"{name}.pth")
    (case / "prompts.txt").write_text("a car is running\n")
    (case / "eval_prompts.txt").write_text("a horse is running \n a car on the road\n\n")
    return case


@pytest.fixture
def mtbench(tmp_path):
    folder = tmp_path / "MTBench"
    for name in ("first", "second"):
        mtbench_case(folder, name)
    return folder


def test_mtbench_is_read_with_and_without_levels(mtbench, tmp_path):
    found = read_benchmark(mtbench)
    cases = found.cases
    assert found.name == MTBENCH and not found.missing and not found.notes
    assert [case.name for case in cases] == ["first", "second"]
    assert cases[0].caption == "a car is running"
    assert cases[0].prompts == ("a horse is running", "a car on the road")
    assert cases[0].mask.is_file() and cases[0].tracks.is_file()
    levels = tmp_path / "levels"
    mtbench_case(levels / "hard", "third")
    assert [(case.name, case.group) for case in read_benchmark(levels).cases] == [("third", "hard")]


def test_a_case_that_lacks_something_is_named_and_the_others_stay(mtbench):
    (mtbench / "first" / "videos" / "first.mp4").unlink()
    mtbench_case(mtbench, "third")
    (mtbench / "third" / "eval_prompts.txt").write_text(" \n")
    found = read_benchmark(mtbench)
    problems = found.missing
    assert [case.name for case in found.cases] == ["second"] and not found.notes
    assert [problem.split(":")[0] for problem in problems] == ["first", "third"]
    assert "no videos/first.mp4" in problems[0] and "eval_prompts.txt is missing or empty" in problems[1]


def test_what_mtbench_lacks_where_a_case_is_used_all_the_same_is_named(mtbench):
    for name in ("figures", ".git"):
        (mtbench / name).mkdir()
    (mtbench / "first" / "trajectories" / "first.pth").unlink()
    (mtbench / "second" / "masks" / "second" / "00000.png").unlink()
    found = read_benchmark(mtbench)
    assert len(found.cases) == 2 and not found.missing
    assert found.notes == [
        "figures: neither a case nor a folder of cases, left out",
        "first: no trajectories/first.pth; points are followed anew",
        "second: no masks/second/00000.png; where points are followed anew they are of the whole frame",
    ]


def test_jointtuner_is_read_with_prompts_from_files_or_configurations(tmp_path):
    clip(tmp_path / "datasets" / "motion_16f" / "person_walking" / "a.mp4")
    clip(tmp_path / "datasets" / "motion_16f" / "person_running" / "a.mp4")
    clip(tmp_path / "datasets" / "motion_16f" / "nobody" / "a.mp4")
    (tmp_path / "datasets" / "motion_16f" / "empty").mkdir()
    (tmp_path / "datasets" / "motion_16f" / "person_walking" / "prompts.txt").write_text("a bear walks\n")
    config = tmp_path / "configs" / "x.yaml"
    config.parent.mkdir()
    config.write_text(
        "train_data: {path: ../datasets/motion_16f/person_running/}\n"
        "validation_data: {prompt: [a bear runs, 7, a cat runs]}\n"
    )
    (config.parent / "broken.yaml").write_text("{")
    found = read_benchmark(tmp_path)
    cases, problems = found.cases, found.missing
    assert found.name == JOINTTUNER and len(found.notes) == 2
    assert found.notes[1] == f"{config}: of the entries of validation_data.prompt 1 is no text and left out"
    assert "broken.yaml: not plain YAML" in found.notes[0] and "its prompts are left out" in found.notes[0]
    assert {case.name: case.prompts for case in cases} == {
        "person_running": ("a bear runs", "a cat runs"),
        "person_walking": ("a bear walks",),
    }
    assert cases[0].caption == "person running" and not cases[0].others and len(problems) == 2
    assert "empty: no video" in problems[0] and "nobody: no prompts.txt" in problems[1]


def test_all_clips_of_a_motion_belong_to_its_case(tmp_path):
    folder = tmp_path / "motion_16f" / "person_walking"
    for name in ("b.mp4", "a.mp4", ".hidden.mp4", ".thumbnails/a.mp4"):
        clip(folder / name)
    (folder / "prompts.txt").write_text("a bear walks\n")
    found = read_benchmark(tmp_path)
    (case,) = found.cases
    assert case.clip == folder / "a.mp4" and case.others == (folder / "b.mp4",) and not found.notes


def test_clips_in_deeper_folders_are_left_out_with_a_sentence(tmp_path):
    group = tmp_path / "motion_16f"
    for name in (
        "walking/a.mp4",
        "walking/deeper/0.mp4",
        "running/one/a.mp4",
        "running/one/b.mp4",
        "running/two/0.mp4",
    ):
        clip(group / name)
        (group / name.split("/")[0] / "prompts.txt").write_text("a bear\n")
    clip(group / "running" / "two" / "1.mp4")
    found = read_benchmark(tmp_path)
    assert [(case.name, case.clip.name, len(case.others)) for case in found.cases] == [
        ("running", "a.mp4", 1),
        ("walking", "a.mp4", 0),
    ]
    assert found.notes == [
        "running: 2 clips in other folders left out (two/0.mp4), since a training reads one folder; to use them put "
        "them beside one/a.mp4",
        "walking: 1 clip in another folder left out (deeper/0.mp4), since a training reads one folder; to use them put "
        "them beside a.mp4",
    ]


def test_a_motion_whose_words_cannot_be_read_is_named_and_the_others_stay(tmp_path):
    for name in ("running", "walking", "jumping"):
        clip(tmp_path / "motion_16f" / name / "a.mp4")
        (tmp_path / "motion_16f" / name / "prompts.txt").write_text("a bear\n")
    (tmp_path / "motion_16f" / "running" / "prompts.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "motion_16f" / "jumping" / "a.txt").write_bytes("é".encode("latin-1"))
    found = read_benchmark(tmp_path)
    assert [case.name for case in found.cases] == ["walking"]
    assert [sentence.split(":")[0] for sentence in found.missing] == ["jumping", "running"]
    assert all("UTF-8" in sentence and sentence.endswith(", left out") for sentence in found.missing)


def test_a_folder_of_neither_layout_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        read_benchmark(tmp_path / "none")
    (tmp_path / "videos").mkdir()
    with pytest.raises(UserError, match="neither MTBench's layout"):
        read_benchmark(tmp_path / "videos")


def test_trajectories_are_opened_without_running_anything_and_checked(mtbench, tmp_path):
    path = mtbench / "first" / "trajectories" / "first.pth"
    tracks = read_tracks(path, FRAMES)
    assert tracks.shape == (1, FRAMES, 2) and tracks[0, 1, 0] == pytest.approx(15 / 64)

    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    broken = {
        "trajectories over 6 frames of a clip of 9": None,
        r"found \[6, 2\] where": torch.zeros(6, 2),
        "found dict where": {"tracks": 1},
        "not finite": torch.full((9, 2, 3), float("nan")),
        "no point is visible": torch.zeros(9, 2, 3),
        "more than tensors": Runs(),
        r"found \[9, 2, 3\] where": torch.zeros(9, 2, 3, dtype=torch.complex64),
        r"found \[9, 2, 3\] where ": torch.zeros(9, 2, 3).to_sparse(),
        r"found \[9, 200, 3\] where": torch.zeros(9, 1, 3).expand(9, 200, 3),  # a small file stays small
    }
    for said, value in broken.items():
        if value is not None:
            torch.save(value, path)
        with pytest.raises(UserError, match=said):
            read_tracks(path, 9)
    assert not (tmp_path / "ran").exists()
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="not trajectories .*nothing in it was run"):
        read_tracks(path, 9)


def test_source_points_come_from_trajectories_else_the_mask_else_the_frame(mtbench):
    case, *_ = read_benchmark(mtbench).cases
    frames = read_frames(case.clip)
    tracks, points, notes = source_tracks(case, frames, range(FRAMES))
    assert len(points) == 1 and not notes and tracks.shape == (1, FRAMES, 2)
    part, points, notes = source_tracks(case, frames, [1, 3])  # what a model saw of it
    assert torch.equal(part, tracks[:, [1, 3]]) and np.array_equal(points, tracks[:, 1]) and not notes
    mtbench_case(mtbench, "longer", frames=9)
    longer = next(found for found in read_benchmark(mtbench).cases if found.name == "longer")
    tracks, points, notes = source_tracks(longer, frames, range(FRAMES))
    assert "over 9 frames of a clip of 6" in notes[0]
    assert points.min() >= 8 / 64 and points[:, 0].max() < 24 / 64
    on_square = tracks[(points[:, 0] > 0.2) & (points[:, 0] < 0.3) & (points[:, 1] > 0.45) & (points[:, 1] < 0.55)]
    assert (on_square[:, -1, 0] - on_square[:, 0, 0]).median() == pytest.approx(15 / 64, abs=0.03)
    part, _, _ = source_tracks(longer, frames, [0, 1, 2])
    assert torch.equal(part, tracks[:, :3])
    assert "its mask is of frame 0" in source_tracks(longer, frames, [1, 2])[2][1]
    longer.mask.write_bytes(b"no picture")
    assert len(source_tracks(longer, frames, range(FRAMES))[1]) == 50 * 50
    with pytest.raises(UserError, match="not a mask that can be read"):
        read_mask(longer.mask)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA"])
def test_whatever_is_not_zero_in_a_mask_is_object_and_alpha_is_no_part_of_it(tmp_path, mode):
    values = np.zeros((4, 6), np.uint8)
    values[1:3, 2:4] = 1
    if mode == "P":
        image = Image.fromarray(values, "P")
        image.putpalette([9, 9, 9, 0, 0, 0])  # the ground is drawn lighter than the object
    else:
        bands = [
            values if number == 0 else np.full_like(values, 255 * (band == "A")) for number, band in enumerate(mode)
        ]
        image = Image.merge(mode, [Image.fromarray(band) for band in bands])
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), values > 0)


@pytest.fixture
def command(tiny_pipeline, tmp_path, capsys, monkeypatch):
    """A function of a folder and words -> (exit code, table, stderr) of the command, on random weights."""

    model = tmp_path / "model"
    shutil.copytree(tiny_pipeline, model)
    (model / "sampling.json").write_text('{"width": 64, "height": 64, "num_frames": 4, "noise_prior": 0.0}')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(folder, *words):
        argv = ["--benchmark", str(folder), "--model", str(model), "--smoke", "--output_dir", str(tmp_path / "out")]
        code = 0
        try:
            reproduce.main([*argv, *words])
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        tables = [line for line in told.out.splitlines() if line.endswith("table.md")]
        return code, open(tables[0]).read() if tables else "", told.err

    return run


@pytest.fixture
def jointtuner(tmp_path):
    """One motion's name in both groups, with other clips; two clips of it in the first."""
    folder = tmp_path / "JointTuner"
    for group, clips in (("motion_16f", {"a": 3, "b": 2}), ("motion_49f", {"a": -1})):
        for name, shift in clips.items():
            clip(folder / group / "person_walking" / f"{name}.mp4", shift)
        (folder / group / "person_walking" / "prompts.txt").write_text("a horse is running\n")
    return folder


def rows_of(table: str) -> dict[str, list[str]]:
    return {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in table.splitlines()
        if line.startswith("| ")
    }


def test_jointtuners_columns_hold_its_own_measures_and_equal_names_stay_apart(
    command, jointtuner, clip_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(public_benchmark, "digest", lambda shaped_by: "known")
    scorer, wanted = VideoScorer(clip_folder, clip_folder), {}
    for group, shift in (("motion_16f", 3), ("motion_49f", 2)):
        video = tmp_path / "out/benchmarks/jointtuner-guidance-smoke" / group / "person_walking-known" / "there.mp4"
        clip(video, shift)  # as if it had been sampled: what random weights give has no points to follow
        notes = {"video": video.name, "prompt": "a horse is running", "seed": 0}
        video.with_suffix(".json").write_text(json.dumps(notes))
        reference = read_frames(jointtuner / group / "person_walking" / "a.mp4")[:4]  # the frames that it is guided by
        scores = scorer(read_frames(video), notes["prompt"], reference)
        found = [scores[name] for name in ("text_alignment", "temporal_consistency", "pickscore")]
        wanted[f"{group}, person_walking"] = [*found, 100 * scores["motion_fidelity_dmt_code"]]
    code, table, _ = command(jointtuner, "--clip", clip_folder, "--pickscore", clip_folder)
    rows = rows_of(table)
    assert code == 0 and list(rows) == ["case", *wanted, "motion_16f", "motion_49f", "All"]
    assert rows["case"] == ["CLIP-Text", "Temporal-Consistency", "Pick-Score", "Motion-Fidelity", "n"]
    for name, values in wanted.items():
        assert [float(cell) for cell in rows[name]] == pytest.approx([*values, 1], abs=0.06)
    assert rows["All"][-1] == "2" and len(set(map(tuple, wanted.values()))) == 2
    assert "motion_16f, person_walking: guided by a.mp4 alone, of all 2 clips; measured against a.mp4." in table
    assert table.count("measured against") == 1  # the other motion has one clip


def test_a_method_that_trains_learns_from_all_clips_of_a_motion(command, jointtuner):
    code, table, told = command(jointtuner, *TINY, "--method", "tap", "--references", "1", "--prompts", "1")
    assert code == 0 and "learned from all 2 clips; measured against a.mp4." in table
    assert re.findall(r'clip (\d): .*/(\w)\.mp4.*"person walking"', told) == [("0", "a"), ("1", "b")]


def test_guidance_on_mtbench_gives_its_table_and_goes_on(command, mtbench, monkeypatch):
    loaded, load = [], public_benchmark.load_backbone
    monkeypatch.setattr(public_benchmark, "load_backbone", lambda args: loaded.append(load(args)) or loaded[-1])
    code, table, told = command(mtbench)
    assert code == 0 and "| case | EF | TC (CLIP for DINO) | MF |" in table and "SMOKE RUN" in table
    rows = rows_of(table)
    assert list(rows) == ["case", "first", "second", "All"]
    assert rows["All"][-1] == "4" and "–" not in rows["first"][2] and "nan" not in table
    assert "CLIP: no weights given" in table  # EF and TC need them; the rest is measured
    assert command(mtbench)[2].count("sample:") == 0  # nothing is made twice
    assert len(loaded) == 1  # one model for both cases, and none where nothing is missing


@pytest.mark.parametrize("method", ["guidance", "tap_guidance"])
def test_videos_have_the_shape_of_their_clip_as_a_training_cuts_it(command, tmp_path, method):
    case = mtbench_case(tmp_path / "MTBench", "wide")
    clip(case / "videos" / "wide.mp4", width=96)
    model = tmp_path / "model" / "sampling.json"
    model.write_text('{"width": 192, "height": 192, "num_frames": 4, "noise_prior": 0.0}')
    words = [word for word in TINY if "width" not in word and "height" not in word]
    words += ["train_data.width=192", "train_data.height=192"]
    code, table, told = command(case.parent, *words, "--method", method, "--prompts", "1")
    assert code == 0 and rows_of(table)["wide"][-1] == "1", told
    (video,) = (path for path in (tmp_path / "out").rglob("a_horse*.mp4"))
    assert read_frames(video).shape == (4, 3, 128, 192)


def test_videos_of_another_model_clip_or_setting_are_not_taken_for_this_ones(command, mtbench, tmp_path):
    weights, settings = tmp_path / "model" / "vae" / VAE, tmp_path / "model" / "sampling.json"
    few = ("--prompts", "1", "--references", "1")
    assert command(mtbench, *few)[2].count("sample:")
    tensors = load_file(weights)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, weights)
    assert command(mtbench, *few)[2].count("sample:")
    clip(mtbench / "first" / "videos" / "first.mp4", shift=2)
    assert command(mtbench, *few)[2].count("sample:")
    settings.write_text(settings.read_text().replace("}", ', "guidance_scale": 3.0}'))
    assert command(mtbench, *few)[2].count("sample:")
    assert command(mtbench, *few)[2].count("sample:") == 0
    assert len(list((tmp_path / "out" / "benchmarks").rglob("*.mp4"))) == 4


def test_a_case_that_ends_in_any_error_is_one_sentence_and_the_others_are_measured(command, mtbench, monkeypatch):
    sample = public_benchmark.generate
    errors = {"first": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "third": KeyError("x")}

    def generate(args, backbone):
        if error := errors.get(args.guide.split("/")[-1].removesuffix(".mp4")):
            raise error
        return sample(args, backbone)

    mtbench_case(mtbench, "third")
    monkeypatch.setattr(public_benchmark, "generate", generate)
    code, table, told = command(mtbench, "--prompts", "1")
    assert code == 2 and list(rows_of(table)) == ["case", "second", "All"] and "2 cases are missing" in told
    assert "first: out of memory (2.00 GiB more were needed at once)" in table and "third: KeyError: 'x'" in table
    errors["first"] = KeyboardInterrupt()
    assert command(mtbench, "--prompts", "1")[0] == 130


def test_a_case_that_cannot_be_sampled_is_named_and_the_others_are_measured(command, mtbench):
    (mtbench / "first" / "videos" / "first.mp4").write_bytes(b"no video")
    (mtbench / "second" / "trajectories" / "second.pth").unlink()
    mtbench_case(mtbench, "third")
    (mtbench / "third" / "prompts.txt").unlink()
    code, table, told = command(mtbench)
    assert code == 2 and "2 cases are missing from the table" in told
    assert (
        "| second |" in table
        and "first.mp4: not a video that can be decoded" in table
        and "third: prompts.txt is missing" in table
    )


def test_a_damaged_video_is_named_and_the_others_of_its_case_are_measured(command, mtbench, tmp_path):
    command(mtbench)
    places = {case: sorted((tmp_path / "out").rglob(f"all/{case}-*/*.mp4")) for case in ("first", "second")}
    for video in (places["first"][0], *places["second"]):
        video.write_bytes(b"no video")
    code, table, told = command(mtbench)
    rows = rows_of(table)
    assert len(places["first"]) == 2 and rows["first"][-1] == "1" and "second" not in rows
    assert (
        f"{places['first'][0].name}: not a video that can be read" in told.replace("\n", " ") and "delete it" in table
    )
    assert code == 2 and "1 case is missing" in told and "second: none of its videos could be measured" in table


def test_fewer_prompts_than_before_measure_fewer_videos(command, mtbench):
    command(mtbench)
    code, table, _ = command(mtbench, "--prompts", "1", "--references", "1")
    assert code == 0 and rows_of(table)["first"][-1] == "1" and "Prompts sampled of a case: at most 1." in table


def test_a_case_is_the_unit_of_an_interval(mtbench):
    """Three cases of two equal videos each: the interval over all is that of the cases' own three numbers."""
    args = argparse.Namespace(method="guidance", model="m", smoke=False, prompts=None)
    cases = [replace(read_benchmark(mtbench).cases[0], name=name) for name in ("a", "b", "c")]
    found = [
        Found(case, prompt, {"mtbench_code": value})
        for case, value in zip(cases, (0.1, 0.2, 0.6))
        for prompt in case.prompts
    ]
    rows = rows_of(_text(MTBENCH, args, found, [], []))
    assert rows["All"][2] == str(mean([10.0, 20.0, 60.0])) and rows["All"][-1] == "6"


def test_the_plan_names_what_is_left_out(command, mtbench, capsys, tmp_path):
    (mtbench / "first" / "prompts.txt").unlink()
    (mtbench / "second" / "trajectories" / "second.pth").unlink()
    words = ["--benchmark", str(mtbench), "--model", str(tmp_path / "model"), "--plan"]
    reproduce.main(words)
    told = capsys.readouterr().out
    assert "lacks: first: prompts.txt is missing" in told and "note: second: no trajectories" in told


def test_a_method_that_trains_runs_on_each_case(command, mtbench):
    code, table, _ = command(mtbench, *TINY, "--method", "tap", "--references", "1", "--prompts", "1")
    assert code == 0 and "| first |" in table and "tap on" in table


def test_what_cannot_work_is_refused_at_once(command, mtbench, capsys):
    assert command(mtbench, "table2")[0] == 2
    assert command(mtbench / "none")[2].startswith("error: --benchmark: no folder")
    with pytest.raises(SystemExit):
        reproduce.main(["--benchmark", str(mtbench)])
    assert "pocket knows the toy world alone" in capsys.readouterr().err
