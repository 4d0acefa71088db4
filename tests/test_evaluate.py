"""Folders of samples: videos with known truth get the known numbers, and what is missing gets one sentence."""

import csv
import json
import shutil
import threading
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from configs.errors import UserError
from data.world import Scene, reference_clip, render
from infer.measure.evaluation import (
    evaluate,
    find_samples,
    given_reference,
    learned_clips,
    measure_video,
    reference_of,
    summarize,
)
from infer.measure.metrics import VideoScorer
from infer.measure.statistics import mean
from infer.measure.world_scores import ReferenceClips, world_scores
from infer.video import write_video
from scripts import evaluate as command
from scripts.artefacts import measuring

REFERENCE = reference_clip("there_and_back", 3)  # a red square over sand with a window, caption "moves right"
REFERENCE_OF_WORLD = ReferenceClips((REFERENCE.frames,), (REFERENCE.prompt,))
SCENE = Scene("circle", "blue", "pink", "there_and_back", seed=3)


@pytest.fixture
def folder(tmp_path):
    """Three samples of a run on the reference: the motion in a new appearance, another motion, and one that leaks."""
    clip = write_video(tmp_path / "reference.mp4", REFERENCE.frames, fps=8, quality=10)
    config = {
        "pretrained_model_path": "x",
        "train_data": {
            "single_video_path": str(clip),
            "single_video_prompt": REFERENCE.prompt,
            "width": 64,
            "height": 64,
            "n_sample_frames": 8,
            "fps": 0,
            "use_bucketing": False,
        },
    }
    samples = tmp_path / "samples"
    leaky = replace(SCENE, colour="red", window=True)
    for name, scene in (("good", SCENE), ("other", replace(SCENE, motion="left")), ("leaky", leaky)):
        write_video(samples / f"{name}.mp4", render(scene).frames, fps=8, quality=10)
        sidecar = {"video": f"{name}.mp4", "prompt": SCENE.caption, "seed": 0, "config": config}
        (samples / f"{name}.json").write_text(json.dumps(sidecar))
    return samples


def test_every_sample_gets_its_known_numbers(folder):
    found = evaluate(folder, VideoScorer())
    rows = {row["video"]: row for row in found.rows}
    assert rows["good.mp4"]["motion_success"] and rows["good.mp4"]["appearance_accuracy"]
    assert rows["good.mp4"]["correlation"] > 0.99 and rows["good.mp4"]["rmse"] < 3 and not rows["good.mp4"]["leakage"]
    assert not rows["other.mp4"]["motion_success"] and rows["other.mp4"]["appearance_accuracy"]
    assert rows["leaky.mp4"]["leakage"] and not rows["leaky.mp4"]["colour_accuracy"]
    assert rows["leaky.mp4"]["background_accuracy"]
    assert found.problems == []
    assert found.caveat == (
        "the videos are of 1 reference clip (1 training): their intervals cover other prompts and seeds, not another "
        "clip, for which 3 or more are needed; more trainings on a clip do not make it two"
    )
    good, other, leaky = (rows[f"{name}.mp4"] for name in ("good", "other", "leaky"))
    assert good["appearance_match"] > 0.95 and good["timing_error"] < 0.02 and abs(good["appearance_pull"]) < 0.05
    assert good["motion_quality"] > 99 > 20 > other["motion_quality"] and other["timing_error"] > 0.2
    assert leaky["appearance_pull"] > 0.3 and leaky["colour_pull"] == pytest.approx(1, abs=0.05)
    assert leaky["window_pull"] > 0.9 and leaky["appearance_match"] < 0.8 and "pattern_pull" not in leaky
    summary = found.summary()
    assert summary["motion_success"].value == pytest.approx(2 / 3) and summary["leakage"].n == 3


def test_mirrored_reversed_and_still_motions_are_no_success():
    late = replace(SCENE, motion="late_start")
    reference = ReferenceClips((render(late).frames,), (late.caption,))
    assert world_scores(render(late).frames, late.caption, reference)["motion_success"]
    assert not world_scores(render(late).frames.flip(0), late.caption, reference)["motion_success"]
    forwards = world_scores(render(SCENE).frames, SCENE.caption, REFERENCE_OF_WORLD)
    mirrored = world_scores(render(SCENE).frames.flip(3), SCENE.caption, REFERENCE_OF_WORLD)
    still = world_scores(render(SCENE).frames[:1].expand(8, -1, -1, -1), SCENE.caption, REFERENCE_OF_WORLD)
    assert forwards["correlation"] > 0.99 > -0.99 > mirrored["correlation"]
    assert still["correlation"] == 0 and not still["motion_success"]


def test_a_colour_that_the_prompt_asks_for_is_no_leak():
    red = replace(SCENE, colour="red")
    assert not world_scores(render(red).frames, red.caption, REFERENCE_OF_WORLD)["leakage"]
    assert world_scores(render(red).frames, SCENE.caption, REFERENCE_OF_WORLD)["leakage"]


def test_without_a_reference_the_motion_is_the_prompts():
    left = replace(SCENE, motion="left")
    assert world_scores(render(left).frames, left.caption, None)["motion_success"]
    assert "leakage" not in world_scores(render(left).frames, left.caption, None)
    assert "motion_success" not in world_scores(
        torch.full_like(render(left).frames, 200), "a red circle over sand", None
    )


def test_frame_consistency_counts_neighbours_that_show_the_same_object():
    one, other = render(SCENE).frames, render(replace(SCENE, background="mint", shape="square")).frames
    switched = torch.cat([one[:3], other[3:]])  # one of seven neighbouring pairs differs
    shuffled = torch.stack([one[0], other[1]] * 4)
    found = [world_scores(clip, SCENE.caption, None)["frame_consistency"] for clip in (one, switched, shuffled)]
    assert found == pytest.approx([1, 6 / 7, 0])
    assert (
        world_scores(torch.full_like(one, 200), SCENE.caption, None)["frame_consistency"] == 0
    )  # nothing is no agreement


def test_a_lost_object_gives_numbers_and_no_nan():
    scores = world_scores(torch.full((8, 3, 64, 64), 200, dtype=torch.uint8), SCENE.caption, REFERENCE_OF_WORLD)
    assert scores["rmse"] == 64 and scores["correlation"] == -1 and not scores["appearance_accuracy"]


def test_real_videos_get_the_metrics_that_need_no_weights(folder, clip_file):
    for path in folder.glob("*.json"):
        notes = json.loads(path.read_text())
        notes["prompt"] = "a horse runs"
        path.write_text(json.dumps(notes))
    found = evaluate(folder, VideoScorer())
    assert {"motion_fidelity", "motion_fidelity_dmt_code"} <= found.summary().keys()
    assert any(problem.startswith("CLIP: no weights given") for problem in found.problems)


def test_no_name_inside_a_sidecar_decides_what_is_fetched(folder, monkeypatch):
    """With rounded sizes the model's own numbers are needed: they are read from a folder of this machine alone."""
    sidecar = json.loads((folder / "good.json").read_text())
    data = sidecar["config"]["train_data"] | {"use_bucketing": True}
    monkeypatch.setattr("infer.measure.evaluation.snap_of", lambda model: pytest.fail(f"{model} was asked for"))
    with pytest.raises(UserError, match="for 'somebody/model', which is no folder here; give --reference"):
        reference_of({**sidecar["config"], "pretrained_model_path": "somebody/model", "train_data": data})


def test_a_video_without_a_sidecar_is_said_and_the_rest_is_measured(folder):
    (folder / "other.json").unlink()
    (folder / "leaky.json").write_text("{")
    found = evaluate(folder, VideoScorer())
    assert [row["video"] for row in found.rows] == ["good.mp4"]
    assert found.problems == [
        "leaky.mp4: its sidecar leaky.json is damaged, left out; sample it again",
        "other.mp4: no sidecar other.json beside it, left out; sample it with infer/infer.py",
    ]


def test_a_damaged_video_and_a_lost_reference_are_said(folder):
    (folder / "other.mp4").write_bytes(b"not a video")
    (folder.parent / "reference.mp4").unlink()
    found = evaluate(folder, VideoScorer())
    assert len(found.rows) == 2 and not {"leakage", "motion_success"} & found.summary().keys()
    assert any("other.mp4: " in problem for problem in found.problems)
    assert any("the reference clip" in problem for problem in found.problems)


@pytest.mark.parametrize("notes", [{"prompt": None}, {"seed": "1"}, {"config": "car.yaml"}])
def test_a_sidecar_of_another_kind_is_said(folder, notes):
    path = folder / "other.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | notes))
    found = evaluate(folder, VideoScorer())
    assert len(found.rows) == 2
    assert found.problems[0] == "other.mp4: its sidecar other.json is damaged, left out; sample it again"


def test_frames_of_two_sizes_and_a_video_without_texture_are_said(folder):
    (folder / "other.mp4").unlink()
    write_video(folder / "other", render(SCENE).frames, fps=8)
    write_video(folder / "more", render(SCENE).frames[:, :, :32, :32], fps=8)
    (folder / "more" / "0003.png").rename(folder / "other" / "0008.png")
    assert any("other: its frames cannot be read" in problem for problem in evaluate(folder, VideoScorer()).problems)
    write_video(folder / "good.mp4", torch.full((8, 3, 64, 64), 90, dtype=torch.uint8), fps=8)
    for path in folder.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prompt": "a horse runs"}))
    found = evaluate(folder, measure := VideoScorer())
    assert any(problem.startswith("good.mp4: motion fidelity: no point") for problem in found.problems)
    assert "motion_fidelity" not in measure.unavailable  # the other videos have it


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no video in it"):
        find_samples(tmp_path)


def test_weights_that_were_asked_for_and_are_not_there_end_in_an_error_after_the_rest(folder, capsys, tmp_path):
    for path in folder.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prompt": "a horse runs"}))
    with pytest.raises(SystemExit) as stop:
        command.main([str(folder), "--viclip", str(tmp_path / "nowhere")])
    told = capsys.readouterr()
    assert stop.value.code == 2 and "--viclip: asked for and could not be used" in told.err
    assert "motion_fidelity" in json.loads(told.out.splitlines()[-1])


def test_the_commands_last_line_is_json(folder, capsys):
    command.main([str(folder), "--csv", str(folder / "deep" / "videos.csv")])
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["n"] == 3 and facts["motion_success"] == 0.6667 and facts["leakage"] == 0.3333
    assert facts["appearance_accuracy"] == 0.6667 and 0 < facts["appearance_pull"] < 1 and facts["flicker"] < 5
    rows = list(csv.DictReader((folder / "deep" / "videos.csv").open()))
    assert [row["video"] for row in rows] == ["good.mp4", "leaky.mp4", "other.mp4"]
    assert rows[0]["training"] == rows[0]["reference"] == "1"
    mean = sum(float(row["appearance_match"]) for row in rows) / 3
    assert mean == pytest.approx(facts["appearance_match"], abs=1e-4)


def retrained(folder, change):
    """Every sample as if of a training of its own, whose configuration `change` makes another by its number."""
    for number, path in enumerate(sorted(folder.glob("*.json"))):
        notes = json.loads(path.read_text())
        change(notes["config"], number)
        path.write_text(json.dumps(notes))
    return evaluate(folder, VideoScorer())


def test_more_trainings_on_a_clip_buy_no_interval_over_clips(folder):
    one = evaluate(folder, VideoScorer())
    several = retrained(folder, lambda config, number: config.update(seed=number))
    assert [(row["training"], row["reference"]) for row in several.rows] == [(1, 1), (2, 1), (3, 1)]
    assert several.summary() == one.summary() and "1 reference clip (3 trainings)" in several.caveat

    def another_cut(config, number):
        config["train_data"].update(sample_start_idx=1 + number % 2, n_sample_frames=4 + number)
        config["train_data"]["single_video_path"] = f"{folder}/.{'./' * number}./reference.mp4"

    assert {row["reference"] for row in retrained(folder, another_cut).rows} == {1}  # however it is cut and spelled


def test_from_three_clips_on_the_interval_is_over_clips(folder):
    one = evaluate(folder, VideoScorer()).summary()["appearance_match"]

    def another_clip(config, number):
        clip = folder.parent / f"{number}.mp4"
        clip.write_bytes((folder.parent / "reference.mp4").read_bytes())
        config["train_data"]["single_video_path"] = str(clip)

    found = retrained(folder, another_clip)
    assert [row["reference"] for row in found.rows] == [1, 2, 3] and found.caveat is None
    wide, values = found.summary()["appearance_match"], [row["appearance_match"] for row in found.rows]
    assert (wide.low, wide.high) == pytest.approx((mean(values).low, mean(values).high)) and wide.value == one.value
    for path in folder.parent.glob("?.mp4"):
        path.unlink()
    assert [row["reference"] for row in evaluate(folder, VideoScorer()).rows] == [1, 2, 3]  # by what is said of them


def test_the_untouched_models_videos_are_of_the_given_clip_or_of_none(folder):
    for path in folder.glob("*.json"):
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "config"}))
    alone, against = (evaluate(folder, VideoScorer(), reference) for reference in (None, REFERENCE_OF_WORLD))
    assert {row["reference"] for row in alone.rows} == {None} and alone.caveat is None
    assert {(row["training"], row["reference"]) for row in against.rows} == {(None, 1)}
    assert against.caveat.startswith("the videos are of 1 reference clip: their intervals")


def test_trainings_on_one_clip_are_one_unit_of_an_artefacts_table():
    levels = {"clip 1": (0.5, 0.5), "clip 2": (0.7, 0.7), "clip 3": (0.9, 0.9)}
    runs = [
        {"reference": clip, "run": f"{clip}, {number}", "training": number, "correlation": level + 0.001 * video}
        for clip, trained in levels.items()
        for number, level in enumerate(trained)
        for video in range(8)
    ]
    found, split = (
        summarize(rows)["correlation"] for rows in (runs, [row | {"reference": row["run"]} for row in runs])
    )
    assert found.value == split.value and found.high - found.low > 1.5 * (split.high - split.low)


def test_of_several_reference_clips_the_strongest_pull_counts():
    both = ReferenceClips((render(SCENE).frames, REFERENCE.frames), (SCENE.caption, REFERENCE.prompt))
    leaky = render(replace(SCENE, colour="red", window=True)).frames
    one, two = (world_scores(leaky, SCENE.caption, reference) for reference in (REFERENCE_OF_WORLD, both))
    assert one["appearance_pull"] == two["appearance_pull"] > 0.3


@pytest.mark.parametrize("text", [
    "[" * 100_000, "5", '{"prompt": "\\ud800", "seed": 1}', '{"prompt": "x", "seed": ' + "1" * 5000 + "}",
    '{"prompt": "x", "seed": -1}', '{"prompt": "x", "seed": 1, "config": {"seed": "${nope}"}}',
    '{"prompt": "x", "seed": 1, "config": {"train_data": {"width": -8}}}', '{"prompt": "x", "seed": 1, "config": [1]}',
])  # fmt: skip
def test_a_sidecar_that_is_not_plain_or_not_of_its_schema_is_left_out(folder, text):
    (folder / "other.json").write_text(text)
    assert "its sidecar other.json is damaged" in "".join(find_samples(folder)[1])


def test_a_sidecar_reads_no_environment(folder, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", "swordfish")
    notes = json.loads((folder / "other.json").read_text())
    config = {"train_data": {"single_video_path": "${oc.env:SECRET}", "single_video_prompt": "${oc.env:SECRET}"}}
    (folder / "other.json").write_text(json.dumps(notes | {"config": config}))
    problems = evaluate(folder, VideoScorer()).problems
    assert "${oc.env:SECRET}" in "".join(problems) and "swordfish" not in "".join(problems)


def test_a_reference_that_is_no_video_or_has_no_caption_is_one_sentence(folder, tmp_path):
    imageio.imwrite(tmp_path / "picture.png", np.zeros((8, 8, 3), np.uint8))
    clip = write_video(tmp_path / "clip.mp4", render(SCENE).frames, fps=8)
    with pytest.raises(UserError, match="is an image"):
        given_reference(str(tmp_path / "picture.png"), "x")
    for caption in (None, ""):
        with pytest.raises(UserError, match="no caption"):
            given_reference(str(clip), caption)
    (tmp_path / "clip.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        given_reference(str(clip), None)


def test_an_empty_configuration_is_none(folder):
    """As of a video of the untouched model; the table still says of how few trainings it is."""
    for notes in folder.glob("*.json"):
        notes.write_text(json.dumps({**json.loads(notes.read_text()), "config": {}}))
    found = evaluate(folder, VideoScorer(), REFERENCE_OF_WORLD)
    assert [row["training"] for row in found.rows] == [None] * 3 and found.caveat


def test_what_one_video_lacks_is_not_said_of_the_next(folder):
    scorer = VideoScorer()
    still = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    measure_video(still, "a cat", ReferenceClips((REFERENCE.frames,), ("a cat",)), scorer)
    assert scorer.skipped
    measure_video(REFERENCE.frames, REFERENCE.prompt, REFERENCE_OF_WORLD, scorer)
    assert not scorer.skipped


@pytest.mark.parametrize(
    ("prompt", "told"),
    [(SCENE.caption, "motion success is that of the prompt's own words"), ("a cat", "motion was not measured")],
)
def test_without_a_reference_it_says_what_was_not_measured(folder, prompt, told):
    for notes in folder.glob("*.json"):
        sidecar = json.loads(notes.read_text()) | {"prompt": prompt}
        sidecar.pop("config")
        notes.write_text(json.dumps(sidecar))
    problems = evaluate(folder, VideoScorer()).problems
    assert any(
        f"no sidecar names a reference clip, so leakage was not measured and {told}; give" in p for p in problems
    )


def test_the_toy_worlds_words_for_a_wide_video_are_measured_by_the_metrics():
    seen = []
    wide = torch.zeros(3, 3, 32, 64, dtype=torch.uint8)
    for reference in (None, REFERENCE_OF_WORLD):
        measure_video(wide, REFERENCE.prompt, reference, lambda *given: seen.append(given) or {})
    assert len(seen) == 2 and all(frames is wide for frames, *_ in seen)


def test_a_table_over_a_folder_is_refused_and_the_folder_kept(folder, capsys):
    with pytest.raises(SystemExit):
        command.main([str(folder), "--csv", str(folder)])
    assert "--csv: " in capsys.readouterr().err and len(list(folder.glob("*.mp4"))) == 3


def test_a_training_from_cached_latents_has_no_clip_to_compare_with(folder, tmp_path):
    """Whatever clip its configuration names besides: the run never saw it."""
    for notes in folder.glob("*.json"):
        sidecar = json.loads(notes.read_text())
        sidecar["config"]["cached_latent_dir"] = str(tmp_path / "cached")
        notes.write_text(json.dumps(sidecar))
    found = evaluate(folder, VideoScorer())
    assert any("holds latents and no clip; give --reference CLIP" in problem for problem in found.problems)
    assert len(found.rows) == 3 and not any("leakage" in row or "motion_success" in row for row in found.rows)
    assert {row["reference"] for row in found.rows} == {1}
    learned = [learned_clips(sidecar["config"] | {"cached_latent_dir": name}) for name in ("one", "other", None)]
    assert len(set(learned)) == 3, "what was learned is not the clip that the configuration names besides"
    assert evaluate(folder, VideoScorer(), REFERENCE_OF_WORLD).rows[0]["motion_success"] is not None


def test_a_still_beside_the_clip_is_not_what_motion_is_compared_with():
    seen = []

    def scorer(frames, prompt, clip, caption):
        return seen.append((len(clip), caption)) or {}

    still = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    both = ReferenceClips((still, still.expand(5, -1, -1, -1)), ("a still", "a car"))
    measure_video(still.expand(3, -1, -1, -1), "a cat", both, scorer)
    assert seen == [(5, "a car")]


def test_an_artefacts_folders_are_measured_at_once_and_each_once(folder, tmp_path, monkeypatch):
    other, empty = shutil.copytree(folder, tmp_path / "other"), tmp_path / "empty"
    empty.mkdir()
    alone, together = measuring.Measurer(VideoScorer()), measuring.Measurer(VideoScorer(), jobs=2)
    expected = [alone(place).rows for place in (folder, other)]
    both, measure = threading.Barrier(2, timeout=60), measuring.evaluate

    def meet(place, scorer):
        if place != empty:
            both.wait()  # until the other one is there too
        return measure(place, scorer)

    monkeypatch.setattr(measuring, "evaluate", meet)
    together.ahead([folder, other, empty, folder])
    monkeypatch.setattr(measuring, "evaluate", lambda *_: pytest.fail("it is measured already"))
    together.ahead([other, empty])
    assert [together(place).rows for place in (folder, other)] == expected
    with pytest.raises(UserError, match="no video in it"):
        together(empty)
