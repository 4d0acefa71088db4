"""Curves of training at equal motion: where a curve is read, what is paired, the artefact's plan, page and picture."""

import html
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

import train
from data.world import PATHS, RETIMINGS
from scripts.artefacts import plan as planning
from scripts.artefacts import plots
from scripts.artefacts import testbed as beds
from scripts.artefacts.artefact import Bound
from scripts.artefacts.budget import describe
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.equal_motion import FORMULA, at_level, curves
from scripts.artefacts.page import write_page
from scripts.artefacts.plan import Plan
from scripts.artefacts.report import body
from scripts.artefacts.result import Cost, Result
from scripts.artefacts.testbed import WORLD_ROLES
from scripts.artefacts.transformer_sweep import QUERY_KEY, RATES, SETTINGS, STEPS
from scripts.artefacts.variants import UNTOUCHED

from conftest import config_of

LEVEL = Bound("motion_success", 0.5)
SWEEP = ARTEFACTS["dit_sweep"]
CLIPS = ("pause", "orbit", "zigzag", "late_start")
MODEL = beds.ROOT / "models" / "pocketscope_dit"


def point(motion, leak, step=0):
    return {"motion_success": motion, "appearance_pull": leak, "step": step}


@pytest.mark.parametrize(
    ("points", "step", "leak"),
    [
        ([point(0, 0), point(0.25, 0.1, 50), point(0.75, 0.3, 100), point(1, 0.9, 200)], 75, 0.2),
        ([point(0, 0), point(1, 0.2, 50)], 25, 0.1),
        ([point(0, 0), point(0.5, 0.3, 50), point(1, 0.9, 100)], 50, 0.3),  # reached exactly: nothing is interpolated
        ([point(0, 0), point(1, 0.4, 50), point(0.25, 0.8, 100), point(1, 0.9, 200)], 25, 0.2),  # the first time counts
    ],
)
def test_a_curve_is_read_where_it_first_reaches_the_motion(points, step, leak):
    found = at_level(points, LEVEL)
    assert found == {k: pytest.approx(v) for k, v in point(0.5, leak, step).items()}


@pytest.mark.parametrize("motions", [(0, 0.25, 0.375), (0.5, 1.0), (0.75, 0.25, 1.0)])
def test_a_curve_that_never_gets_there_or_starts_there_is_not_read(motions):
    assert at_level([point(motion, 0.1) for motion in motions], LEVEL) is None


def videos(motion_of, leak_of, clips=CLIPS):
    """A video for each variant and clip: success and leakage by preset, rate, step and the number of the clip."""
    where = {curve.points[i][1]: (curve, STEPS[i]) for curve in curves(SWEEP.variants) for i in range(len(STEPS))}
    rows = []
    for number, clip in enumerate(clips):
        for variant in SWEEP.variants:
            curve, step = where.get(variant.name, (None, 0))
            moved = motion_of(curve.preset, float(curve.rate), step, number) if curve else 0.0
            leaked = leak_of(curve.preset, moved, number) if curve else 0.0
            follows = {"motion_success": moved, "correlation": moved}
            measured = {**follows, "appearance_pull": leaked, "appearance_match": 0.7 - leaked}
            key = {
                "group": f"kind {number % 2}",
                "motion": clip.partition(",")[0],
                "reference": clip,
                "run": clip,
                "variant": variant.name,
            }
            rows.append({**key, "prompt": "a", "seed": 0, "path": beds.ROOT / "none.mp4", **measured})
    return rows


def result(rows):
    columns = ("motion_success", "appearance_match", "appearance_pull")
    bed = SimpleNamespace(name="x", world=True, columns=columns, details=(), roles=WORLD_ROLES)
    return Result("dit_sweep", bed, False, "", "", "", [], Cost(0, 0, 0, 0, ()), rows)


def faster(preset, rate, step, number):
    """All layers learn twice as fast as Query and Key, at every rate."""
    return min(1.0, step / 400 * rate / RATES[0] * (1 if preset.startswith(QUERY_KEY) else 2))


def rulings(found):
    return {(v.claim.role, v.claim.one.partition(", ")[2]): v for v in found.verdicts}


def test_what_leaks_more_only_because_it_moves_more_does_not_leak_more_at_equal_motion():
    """Leakage is one function of motion for both, so at equal length all layers leak more and at equal motion none."""
    rows = videos(faster, lambda preset, moved, number: moved * (0.3 + 0.01 * number))
    at_100 = [
        r["appearance_pull"] for r in rows if "dual path, rate 0.0015 @ 100" in r["variant"] and r["run"] == "pause"
    ]
    assert at_100[1] == 2 * at_100[0] > 0
    found = rulings(result(rows))
    assert len(found) == 5 * len(SETTINGS)
    for setting in SETTINGS:
        verdict = found["leakage", setting]
        assert verdict.ruling == "refuted" and "difference +0.000" in verdict.words
        assert "over 4 reference clips (12 trainings of each) with 12 pairs of curves" in verdict.words


def test_what_leaks_more_at_equal_motion_is_found_where_it_does():
    """All layers leak 0.2 x 0.5 more at success 0.5, without the dual path alone."""

    def leak(preset, moved, number):
        return moved * (
            0.1 + 0.001 * number * (1 if "all" in preset else 2) + 0.2 * (preset == "all layers, no dual path")
        )

    found = rulings(result(videos(faster, leak)))
    assert found["leakage", "no dual path"].ruling == "confirmed"
    assert "difference -0.099" in found["leakage", "no dual path"].words  # 0.1, less half of 0.0015, the clips' average
    assert found["appearance", "no dual path"].ruling == "confirmed"
    assert found["leakage", "dual path"].ruling != "confirmed"


def test_what_begins_to_leak_long_after_the_motion_is_found_at_the_end_of_the_training():
    """Nothing leaks by the time the motion is learned; all layers leak 0.3 at the end of the longest and fastest."""

    def rows(ends):
        found = videos(faster, lambda preset, moved, number: 0.0001 * number)
        for row in found:
            if row["variant"].startswith("all layers, no dual path, rate 0.006") and row["variant"].endswith(ends):
                row["appearance_pull"] += 0.3
        return found

    end = "no dual path, rate 0.006 @ 400"
    found = rulings(result(rows(" @ 400")))
    assert found["leakage", end].ruling == found["motion", end].ruling == "confirmed"
    assert "against 0.300" in found["leakage", end].words and "pairs of videos" in found["leakage", end].words
    assert found["leakage", "no dual path"].ruling == "not testable"
    assert rulings(result(rows(" @ 200")))["leakage", end].ruling == "not testable"


def test_where_neither_leaks_at_equal_motion_leakage_is_not_testable():
    found = rulings(result(videos(faster, lambda preset, moved, number: 0.04 * moved + 0.0001 * number)))
    assert found["leakage", "dual path"].ruling == "not testable"


def test_a_pair_of_which_one_never_learns_is_left_out_and_the_table_says_so():
    def slow(preset, rate, step, number):
        stuck = number == 1 and preset == "q + k, dual path" and rate < RATES[-1]
        return 0.25 if stuck else faster(preset, rate, step, number)

    rows = videos(slow, lambda preset, moved, number: 0.3 * moved)
    gone = "all layers, no dual path, rate 0.006 @ 50"
    found = result([r for r in rows if not (r["variant"] == gone and r["run"] == "pause")])
    assert "with 10 pairs of curves" in rulings(found)["leakage", "dual path"].words
    assert "with 11 pairs of curves" in rulings(found)["leakage", "no dual path"].words
    header, *lines = found.at_equal_motion()
    cells = {line[0]: dict(zip(header[1:], line[1:])) for line in lines}
    assert header[1:] == list(CLIPS) and len(cells) == 18
    assert cells["q + k, dual path, rate 0.0015"]["orbit"] == "never, at most 0.25"
    assert cells["q + k, dual path, rate 0.0015"]["pause"] == "step 200: 0.150 / 0.550"
    assert cells["all layers, no dual path, rate 0.006"]["pause"] == "missing"  # no line is drawn across a gap
    assert cells["q + k, dual path, rate 0.006"]["orbit"].startswith("step 50: ")


def test_a_training_that_failed_is_missing_in_table_and_picture():
    first = SWEEP.variants[1].name.partition(" @ ")[0]  # the untouched model was to be sampled beside it

    def failed(row):
        return row["variant"].startswith(("untouched", first))

    found = result([row for row in videos(faster, lambda *given: 0.3) if not failed(row)])
    assert {cell for line in found.at_equal_motion()[1:] for cell in line[1:]} == {"missing"}
    at_equal_motion = [verdict for verdict in found.verdicts if "at equal motion" in verdict.claim.text]
    assert {verdict.ruling for verdict in at_equal_motion} == {"not measured"} and len(at_equal_motion) == 6
    empty, other, *_ = plots._over_motion(found).axes[0].lines
    assert len(empty.get_xdata()) == 0 and len(other.get_xdata()) == len(STEPS)


def test_the_page_shows_formula_table_and_a_curve_for_each_preset_and_rate(tmp_path):
    found = result(videos(faster, lambda preset, moved, number: 0.3 * moved))
    page = html.unescape(write_page(found, tmp_path).read_text())
    for text in (body(found), page):
        assert "step 200: 0.150 / 0.550" in text and "q + k, no dual path, rate 0.003" in text
    assert FORMULA in page
    figure = plots._over_motion(found)
    assert [axes.get_title() for axes in figure.axes[:3]] == list(SETTINGS)
    for axes in figure.axes:
        drawn = [line for line in axes.lines if line.get_marker() == "o"]
        assert len(drawn) == 6 and all(len(line.get_xdata()) == 1 + len(STEPS) for line in drawn)
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == pytest.approx([0, 0.125, 0.25, 0.5, 1])
    assert list(line.get_ydata()) == pytest.approx([0, 0.0375, 0.075, 0.15, 0.3])
    plots.write_plots(found, tmp_path)
    assert (tmp_path / "plot.png").exists()


def test_lengths_cost_no_trainings_and_motions_of_both_kinds_are_one_group(tmp_path, monkeypatch):
    read, load = [], planning.load
    monkeypatch.setattr(planning, "load", lambda words, **named: read.append(words) or load(words, **named))
    plan = Plan(beds.Testbed(MODEL, True, tmp_path), tmp_path, [], references=2)
    plan.add("dit_sweep")
    assert len(read) == len(plan.chains) < len(plan.cells["dit_sweep"]), "the words of a training are read once"
    assert len(plan.chains) == 2 * 18 and len(SWEEP.motions) == 4 and SWEEP.appearances == 1  # 72 where all are made
    assert len(set(SWEEP.motions) & set(RETIMINGS)) == len(set(SWEEP.motions) & set(PATHS)) == 2
    cells = plan.cells["dit_sweep"]
    assert {cell.task.group for cell in cells} == {"re-timing", "path"} and len({cell.task.name for cell in cells}) == 2
    assert "(every motion, 2 planned)" in describe(plan, ["dit_sweep"], jobs=1)
    for chain in plan.chains.values():  # every length is a checkpoint that the training keeps
        words = dict(word.split("=", 1) for word in chain.train if "=" in word)
        every, most = int(words["checkpointing_steps"]), int(words["checkpoints_total_limit"])
        assert set(STEPS) <= set(range(every, chain.steps + 1, every)) and most * every >= chain.steps


@pytest.mark.parametrize("name", ["dit_sweep", "time_to_motion"])
def test_a_smoke_run_asks_for_no_checkpoint_that_its_two_steps_do_not_make(name, tmp_path):
    few = {"references": 1, "appearances": 1}
    plans = [Plan(beds.Testbed(MODEL, True, tmp_path), tmp_path, [], smoke=smoke, **few) for smoke in (True, False)]
    for plan in plans:
        plan.add(name)
    smoke, whole = (plan.cells[name] for plan in plans)
    assert not any("--checkpoint_index" in cell.samples.flags for cell in smoke)
    theirs = [c.variant.name for c in whole if "--checkpoint_index" in c.samples.flags]
    chosen = [c.variant.name for c in whole if c.variant.name == UNTOUCHED.name or c.variant.watched]
    assert sorted(theirs + chosen) == sorted(c.variant.name for c in whole)


@pytest.mark.parametrize("name", ["dit_sweep", "time_to_motion"])
def test_a_row_is_sampled_from_the_checkpoint_that_its_name_says(name):
    rows = [variant for variant in ARTEFACTS[name].variants if variant.name.rpartition(" @ ")[2].isdigit()]
    assert len(rows) > 10
    for row in rows:
        assert row.flags == ("--checkpoint_index", row.name.rpartition(" @ ")[2])


def test_a_checkpoint_of_the_sweep_is_the_training_that_ends_there(tiny_wan, clip_file, tmp_path):
    """The rate does not know how long the training will be; under a cosine the same checkpoint is another."""
    curve = dict(word.split("=", 1) for word in SWEEP.variants[1].train)

    def weights(steps, schedule):
        given = {"max_train_steps": steps, "checkpointing_steps": 3, "lr_scheduler": schedule, "lr_warmup_steps": 1}
        folder = tmp_path / f"{schedule}-{steps}"
        run = train.run(config_of(tiny_wan, clip_file, folder, {"train_data": {"n_sample_frames": 5}, **given}))
        return load_file(run / "checkpoint-3" / "temporal" / "adapter_model.safetensors")

    whole, cut = (weights(steps, curve["lr_scheduler"]) for steps in (3, 6))
    assert all((whole[name] == cut[name]).all() for name in whole)
    whole, cut = (weights(steps, "cosine") for steps in (3, 6))
    assert any((whole[name] != cut[name]).any() for name in whole)


def test_clips_of_one_motion_are_a_block_at_equal_motion_too():
    """What differs between motions is no noise between clips, so it does not widen the interval."""
    clips = [f"{motion}, clip {number}" for motion in ("pause", "zigzag", "orbit") for number in range(3)]
    leak = lambda preset, moved, number: moved * (0.4 if "all" in preset else 0.1) * (1 + number // 3)
    verdict = rulings(result(videos(faster, leak, clips)))["leakage", "dual path"]
    assert verdict.ruling == "confirmed" and "over 9 reference clips of 3 motions" in verdict.words
