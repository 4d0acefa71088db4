"""The study of motion metrics: its pairs are what they are called, its statistics are right, and it goes on."""

import json
import math

import numpy as np
import pytest
import torch

from configs.errors import UserError
from data.world import Scene, render, render_path
from infer.measure.clip_scores import load_clip, temporal_consistency
from scripts.artefacts import metric_report, metric_study
from scripts.artefacts.metric_findings import advice
from scripts.artefacts.metric_report import decisions
from scripts.artefacts.metric_study import CLASSICAL, EXACT, METRICS
from scripts.artefacts.metric_worth import (
    both_ranks,
    decision,
    keys_of,
    lead,
    missed_share,
    rank,
    true_decision,
    worth,
    wrong_share,
)
from scripts.artefacts.relations import RELATIONS, pairs, truth


@pytest.fixture(scope="module")
def drawn():
    return {pair.relation: pair for pair in pairs("zigzag", 0)}


def test_a_camera_shifts_the_whole_picture_and_the_path_on_the_screen():
    scene = Scene("square", "red", "mint", "still", seed=3, pattern="dotted", window=True)
    still = render(scene, frames=2)
    centre, radius = still.trajectory.numpy(), still.size.numpy()
    moved = render_path(scene, centre, radius, camera=np.array([[0.0, 0.0], [5.0, -3.0]]))
    assert torch.equal(moved.frames[0], still.frames[0])
    assert torch.equal(moved.frames[1, :, :61, 5:], still.frames[1, :, 3:, :59])
    assert (moved.trajectory[1] - still.trajectory[1]).tolist() == pytest.approx([5, -3])


def test_every_relation_is_what_it_is_called(drawn):
    assert list(drawn) == list(RELATIONS) and len(RELATIONS) >= 9
    path = drawn["same path"].reference.path
    for name in ("same path", "shifted", "re-timed", "other speed", "reversed", "mirrored", "camera pan", "still"):
        one, other = drawn[name].reference.clip.scene, drawn[name].shown.clip.scene
        assert all(getattr(one, part) != getattr(other, part) for part in ("shape", "colour", "background"))
    assert drawn["another path"].shown.clip.scene == drawn["another path"].reference.clip.scene
    assert np.allclose(drawn["same path"].shown.path, path)
    assert np.allclose(np.abs(drawn["shifted"].shown.path - path), 6)
    assert np.allclose(drawn["reversed"].shown.path, path[::-1])
    assert np.allclose(drawn["mirrored"].shown.path[:, 0], 64 - path[:, 0])
    assert np.ptp(drawn["still"].shown.path, axis=0).max() == 0
    pan = drawn["camera pan"].shown
    assert np.ptp(pan.path, axis=0).max() == 0 and np.allclose(pan.clip.trajectory.numpy(), path, atol=1e-4)
    assert np.allclose(drawn["re-timed"].shown.path[[0, -1]], path[[0, -1]])


def test_the_truth_counts_motion_in_the_scene_alone(drawn):
    errors = {name: (pair.path_error, pair.progress_error) for name, pair in drawn.items()}
    assert errors["same path"] == errors["shifted"] == pytest.approx((0, 0), abs=1e-6)
    assert errors["camera pan"] == pytest.approx(errors["still"])
    assert errors["mirrored"][1] == pytest.approx(0, abs=1e-6) and errors["mirrored"][0] > 5
    assert errors["re-timed"][1] > 0.05 and errors["other speed"][1] > 0.2
    straight = np.stack([np.linspace(0, 14, 8), np.zeros(8)], 1)
    assert truth(straight, straight * [0.5, 1]) == pytest.approx((0.5 * straight[:, 0].std(), 0.25))


def test_exact_tracks_follow_object_and_ground(drawn):
    pair = drawn["camera pan"]
    points = np.array([pair.shown.clip.trajectory[0].numpy(), [2.0, 60.0]])
    tracks = pair.shown.tracks(points)
    centre = pair.shown.clip.trajectory
    assert torch.allclose(tracks[1] - tracks[1, :1], (centre - centre[0]).double(), atol=1e-3)
    on_ground = drawn["same path"].shown.tracks(points[1:])
    assert torch.equal(on_ground, on_ground[:, :1].expand_as(on_ground))


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_metric_gives_a_number_on_every_relation(drawn, relation):
    row = metric_study.measure(drawn[relation])
    assert {f"{name}/{tracking}" for name in METRICS for tracking in (EXACT, CLASSICAL)} == set(row["scores"])
    assert all(math.isfinite(number) for number in (*row["scores"].values(), row["path_error"], row["progress_error"]))
    assert not row["problems"] and len(METRICS) >= 8 and len(RELATIONS) >= 9


@pytest.mark.parametrize("name", METRICS)
def test_points_that_stand_still_give_a_number_and_not_nan(name):
    moving = torch.stack([torch.arange(6.0), torch.full((6,), 8.0)], -1).expand(3, 6, 2)
    still = moving[:, :1].expand(3, 6, 2)
    for reference, shown in ((moving, still), (still, moving), (still, still)):
        assert math.isfinite(METRICS[name].score(reference, shown))


def rows_of(scores: list[float | None], errors: list[float]) -> list[dict]:
    return [
        {
            "motion": "orbit",
            "reference": "orbit-0",
            "relation": name,
            "path_error": error,
            "progress_error": error,
            "scores": {} if score is None else {f"paper/{EXACT}": score},
            "problems": [],
        }
        for name, score, error in zip(RELATIONS, scores, errors)
    ]


def test_order_rank_and_misses_on_rows_whose_answer_is_known():
    key = ("paper", EXACT)
    right = rows_of([0.9, 0.8, 0.4, 0.1], [0, 2, 5, 9])
    assert wrong_share(right, key) == 0 and rank(right, key, "path_error") == pytest.approx(1)
    backwards = rows_of([0.1, 0.4, 0.8, 0.9], [0, 2, 5, 9])
    assert wrong_share(backwards, key) == 1 and rank(backwards, key, "path_error") == pytest.approx(-1)
    flat = rows_of([0.5] * 4, [0, 2, 5, 9])
    assert wrong_share(flat, key) == 0.5 and rank(flat, key, "path_error") == 0
    assert wrong_share(rows_of([0.9, None, 0.1], [0, 2, 5]), key) == pytest.approx(1 / 3)  # two of three are guesses
    near = rows_of([0.1, 0.9, 0.5], [0, 0.5, 9])
    assert wrong_share(near, key) == 0.5  # the first two are not put in order; one of the others is wrong
    missed = {"orbit-0": rows_of([0.5, 0.6, 0.4], [0, 3, 3])}
    assert missed_share(missed, key, "shifted").value == 1 and missed_share(missed, key, "re-timed").value == 0
    near = {"orbit-0": rows_of([0.5, 0.5, 0.6], [0, 0.5, 0.5])}
    assert missed_share(near, key, "re-timed") is None and missed_share(near, key, "shifted").value == 1


def test_a_cell_is_decided_by_the_whole_interval_of_how_often_the_partner_reaches_the_same_path():
    scores = {
        "same path": [0.5] * 5,
        "shifted": [0.5] * 5,  # a tie is no reward
        "re-timed": [0.9, 0.9, 0.1, 0.1, 0.1],
        "other speed": [0.9, 0.9, 0.9, 0.1, 0.1],
        "mirrored": [0.1] * 5,
        "camera pan": [0.9] * 5,
    }
    rows = []
    for number in range(5):
        errors = [0.0 if name in ("same path", "shifted") else 9.0 for name in RELATIONS]
        for row in rows_of([scores.get(name, [None] * 5)[number] for name in RELATIONS], errors):
            rows.append(row | {"motion": f"motion {number}", "reference": f"motion {number}-0"})
    found = worth(rows, ("paper", EXACT)).missed
    assert {name: decision(share) for name, share in found.items()} == {
        "same path": "blind",  # a camera pan reaches it
        "shifted": "blind",
        "re-timed": "undecided",
        "other speed": "undecided",
        "mirrored": "rewarded",
        "camera pan": "blind",
    }
    assert true_decision("shifted") == "blind" and true_decision("camera pan") == "rewarded"
    text = str(decisions({("paper", EXACT): worth(rows, ("paper", EXACT))}))
    assert "**4 of 9 cells (1 metrics with their tracks, 9 relations) are decided**" in text
    assert "all 9 of a metric for 0 of 1; 2 are decided as the truth does" in text
    assert "| blind 1.00 | blind 1.00 | undecided 0.40 | undecided 0.60 | – | rewarded 0.00 | – | blind 1.00 |" in text


def with_scores(metrics: dict[str, list[float]]) -> list[dict]:
    """Rows of five motions with four partners each, whose true order the metrics follow in so many of them."""
    rows = []
    for number in range(5):
        found = rows_of([0.0] * 4, [0, 2, 5, 9])
        for place, row in enumerate(found):
            right = [0.9, 0.8, 0.4, 0.1]
            row |= {"motion": f"motion {number}", "reference": f"motion {number}-0"}
            row["scores"] = {
                f"{name}/{tracking}": right[place] if hits[number] else right[::-1][place]
                for name, hits in metrics.items()
                for tracking in (EXACT, CLASSICAL)
            }
        rows += found
    return rows


@pytest.mark.parametrize("second, said", [((0, 0, 0, 0, 0), "decided"), ((1, 1, 1, 1, 0), "not decided")])
def test_the_recommended_metric_is_held_against_the_runner_up(second, said):
    """A lead that chance could give is called so, with its interval paired over motions."""
    worst = dict.fromkeys(METRICS, (0,) * 5)
    rows = with_scores(worst | {"agreement": (1,) * 5, "mtbench_paper": second})
    gap = lead(rows, ("agreement", EXACT), ("mtbench_paper", EXACT), both_ranks)
    assert gap.clips == 5 and gap.value == pytest.approx(np.mean([4.0 * (not hit) for hit in second]))
    advised = advice(rows)
    assert "should report displacement agreement (ours)" in advised
    assert f"in the sum of both ranks is {said}: {gap.value:+.2f} [" in advised
    assert f"leads {9 if said == 'decided' else 8} of the 9 other metrics" in advised
    assert f"is {said} (" in advised  # the lead in ordering as well


def test_a_smoke_run_has_too_few_motions_for_an_interval():
    rows = [row for row in with_scores(dict.fromkeys(METRICS, (1,) * 5)) if row["motion"] in ("motion 0", "motion 1")]
    assert "nan" not in advice(rows) and "not decided: +0.00, paired over 2 motions" in advice(rows)


def test_clip_consistency_is_measured_where_weights_are_given(clip_folder, tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(metric_study, "SMOKE_MOTIONS", 1)
    monkeypatch.setattr(metric_study, "pairs", lambda motion, seed: list(drawn.values())[:2])
    monkeypatch.setattr(metric_study, "METRICS", {"agreement": METRICS["agreement"]})
    rows = metric_study.collect(tmp_path / "rows", True, clip_folder, "cpu", print)
    plain = metric_study.collect(tmp_path / "rows", True, None, "cpu", print)  # kept apart from those with a CLIP
    shown = [pair.shown.frames for pair in list(drawn.values())[:2]]
    wanted = [temporal_consistency(load_clip(clip_folder).images(frames))[0] for frames in shown]
    assert [row["scores"]["clip_consistency/pixels"] for row in rows] == pytest.approx(wanted)
    assert 0 < min(wanted) < 100 and not any("clip_consistency/pixels" in row["scores"] for row in plain)
    found = metric_report.main_table({key: worth(rows, key) for key in keys_of(rows)})
    assert found[-1][:2] == ["CLIP consistency", "pixels"]


def test_the_study_goes_on_where_it_stopped_and_reports_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_study, "SMOKE_MOTIONS", 1)
    told, results = [], tmp_path / "RESULTS.md"
    made = dict(smoke=True, clip=None, device="cpu", provenance="Command: here", say=told.append)
    page = metric_report.make(tmp_path / "metrics", results, **made)
    assert len(told) == 1 and page.read_text().count("<table>") == 3
    assert "<b>Which metric should a paper use?</b> With exact tracks" in page.read_text()
    for name in ("table.md", "pairs.csv", "plot.png", "plot.svg"):
        assert (tmp_path / "metrics" / name).stat().st_size
    text = results.read_text()
    assert "<!-- begin metrics world -->" in text and "nan" not in text.lower().replace("finance", "")
    assert "progress error" in text and "timing error" not in text, "which is a graded measure's name"
    assert "SMOKE RUN" in text and "Which metric should a paper use?" in text
    assert "of 180 cells (20 metrics with their tracks, 9 relations) are decided" in text
    (kept,) = (tmp_path / "metrics" / "rows").glob("*.json")
    rows = json.loads(kept.read_text())
    rows[0]["path_error"] = 0.25  # what is kept is read, not made again
    rows[0]["problems"] = ["CLIP: no model in <img src=x>|"]  # as somebody may call a folder
    kept.write_text(json.dumps(rows))
    metric_report.make(tmp_path / "metrics", results, **made)
    assert len(told) == 1 and "0.25" in (tmp_path / "metrics" / "pairs.csv").read_text()
    assert worth(rows, ("paper", EXACT)).unmeasured == 0
    for file in (results, tmp_path / "metrics" / "table.md"):
        assert "- CLIP: no model in &lt;img src=x&gt;\\|\n" in file.read_text()
    assert "<li>CLIP: no model in &lt;img src=x&gt;|</li>" in page.read_text()


def test_a_clip_that_is_not_there_is_named_before_anything_is_measured(tmp_path):
    with pytest.raises(UserError, match="CLIP: no usable model in"):
        metric_study.collect(tmp_path / "rows", True, str(tmp_path / "none"), "cpu", print)
