"""Quality over cost: the front, the cheapest variant that loses nothing, when a recipe is there, and its picture."""

import html
from dataclasses import replace
from types import SimpleNamespace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from configs.paths import ROOT
from configs.schema import load
from scripts.artefacts import plots
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.costs import VariantCost
from scripts.artefacts.page import write_page
from scripts.artefacts.report import body
from scripts.artefacts.result import Cost, Result
from scripts.artefacts.speed import RECIPE
from scripts.artefacts.testbed import WORLD_ROLES
from scripts.artefacts.tradeoff import Point, Target, cheapest, default_in_words, front, in_words, reached

POCKET, CLIP = ROOT / "configs/reproduce/pocket.yaml", "train_data.single_video_path=data/examples/pocket_orbit.mp4"


def point(name, cost, success, appearance=1.0, match=0.7, leakage=0.0):
    curve, at, _ = name.partition(" @ ")
    return Point(name, cost, success, appearance, match, leakage, curve if at else None)


POINTS = [
    point("untouched model", 0, 0.0, match=0.72),
    point("long @ 300", 90, 1.0),
    point("long @ 150", 45, 0.75),
    point("short @ 200", 60, 0.98, 0.98),
    point("short @ 100", 30, 0.85, 0.98),
    point("rash @ 60", 20, 0.9, 0.9),
    point("idle @ 60", 25, 0.5),
]
SHORTCUTS = POINTS[1:]
SPOILED = [
    dict(appearance=0.9),  # moves as well as any, and its appearance has suffered
    dict(match=0.66),  # what the yes/no measure does not see
    dict(leakage=0.04),  # shows the reference
]


def test_the_front_holds_what_no_cheaper_point_reaches():
    assert [p.name for p in front(SHORTCUTS)] == ["idle @ 60", "short @ 100", "short @ 200", "long @ 300"]
    assert front([point("a @ 1", 1, 0.2), point("b @ 1", 1, 0.4)]) == [point("b @ 1", 1, 0.4)]


def test_the_cheapest_point_loses_neither_motion_nor_appearance():
    assert cheapest(SHORTCUTS).name == "short @ 200"
    assert cheapest([*SHORTCUTS, point("as good @ 10", 10, 0.97, 0.97, 0.67, 0.03)]).name == "as good @ 10"
    assert cheapest([*SHORTCUTS, point("slow @ 10", 10, 0.96)]).name == "short @ 200"


@pytest.mark.parametrize("measures", SPOILED)
def test_a_shortcut_that_spoils_the_appearance_or_leaks_loses_something(measures):
    spoiled = point("spoiled @ 10", 10, 1.0, **measures)
    assert cheapest([*SHORTCUTS, spoiled]).name == "short @ 200"
    assert spoiled not in front([*SHORTCUTS, spoiled]) and not reached([spoiled], POINTS[0])["spoiled"]
    assert reached([point("spoiled @ 10", 10, 1.0)], POINTS[0])["spoiled"]


def test_what_does_not_move_sets_no_bar_for_the_appearance():
    unmoved = point("unmoved @ 5", 5, 0.0, match=0.75)
    assert cheapest([*SHORTCUTS, unmoved]).name == "short @ 200"
    assert cheapest([unmoved]) == unmoved


def test_where_each_loses_something_none_is_named():
    torn = [point("leaks @ 10", 10, 1.0, leakage=0.4), point("clean @ 20", 20, 0.9)]
    assert cheapest(torn) is None and front(torn) == torn[1:]
    assert in_words(torn, "sampling")[0].endswith(": none.")


def test_a_curve_is_there_at_its_first_point_with_motion_and_the_base_models_appearance():
    found = reached(SHORTCUTS, POINTS[0])
    assert {curve: point and point.cost for curve, point in found.items()} == {
        "long": 90,  # at 150 steps it moves too little
        "short": 30,
        "rash": None,
        "idle": None,
    }


def test_the_sentences_name_the_cheapest_and_when_each_recipe_is_there():
    best, on_front, there = in_words(POINTS, "training")
    assert "short @ 200, 60 CPU seconds a clip, success 0.98, appearance 0.98, match 0.70, leakage 0.00" in best
    assert on_front.endswith(": idle @ 60 (0.50), short @ 100 (0.85), short @ 200 (0.98), long @ 300 (1.00).")
    assert "short 30, long 90, rash never, idle never" in there
    assert len(in_words(POINTS, "sampling")) == 2 and "60.00 CPU seconds a video" in in_words(POINTS, "sampling")[0]
    assert in_words(POINTS[:1], "training") == []


def test_a_default_follows_from_the_points_where_it_is_the_cheapest_that_loses_nothing():
    (sentence,) = default_in_words(POINTS, "short @ 200")
    assert "short @ 200; it follows from this" in sentence
    (sentence,) = default_in_words(POINTS, "long @ 300")
    assert "long @ 300, and it does not follow" in sentence and "loses nothing is short @ 200." in sentence
    torn = [point("leaks @ 10", 10, 1.0, leakage=0.4), point("clean @ 20", 20, 0.9)]
    assert default_in_words(torn, "clean @ 20")[0].endswith("each of the variants loses something.")
    assert default_in_words(POINTS, "never made @ 1") == []


def test_success_is_of_the_motions_that_anything_learns(tmp_path):
    result = measured("speed", tmp_path)
    before = {point.name: (point.success, point.match) for point in result.points}
    path = {"group": "path", "motion": "orbit", "reference": "orbit", "run": "orbit"}
    result.rows += [{**row, **path, "motion_success": 0.0, "appearance_match": 0.5} for row in result.rows]
    assert {point.name: (point.success, point.match) for point in result.points} == {
        name: (success, pytest.approx(0.6)) for name, (success, _) in before.items()
    }
    told = "Success is over the motions of the kind re-timing: ddim @ 20 does not learn the others."
    assert result.tradeoff[0] == told
    drawn = plots._costs(result).axes[0]
    assert drawn.get_title().endswith("(re-timing)")
    heights = {round(float(y), 6) for bars in drawn.containers for y in bars.lines[0].get_ydata()}
    assert heights == {round(point.success, 6) for point in result.points if point.curve}
    for row in result.rows:
        row["motion_success"] = float(row["variant"] == "ddim @ 20" or row["group"] == "re-timing")
    assert min(point.success for point in result.points) == 0.5 and "Success is over" not in result.tradeoff[0]
    result.rows = [row for row in result.rows if row["variant"] != "unipc @ 4" or row["group"] == "path"]
    for row in result.rows:
        row["motion_success"] *= row["group"] == "re-timing"
    assert "unipc @ 4" not in {point.name for point in result.points}, "it was not measured on what is learned"


def test_a_target_is_judged_by_its_share_of_the_cost_and_by_success():
    target = Target("short @ 100", "long @ 300", 0.5, success=0.85)
    assert target.judged(POINTS) == [
        "short @ 100 takes 0.33 of the CPU seconds of long @ 300, target 0.5 and success 0.85, target 0.85: reached."
    ]
    assert replace(target, most=0.3).judged(POINTS)[0].endswith("missed.")
    assert replace(target, success=0.9).judged(POINTS)[0].endswith("missed.")
    assert replace(target, other="never made").judged(POINTS) == []

    def judged(*rulings, one=target.one):
        claims = [SimpleNamespace(claim=SimpleNamespace(one=one, other="long @ 300"), ruling=r) for r in rulings]
        return target.judged(POINTS, claims)[0]

    assert judged("confirmed", "not testable").endswith("with 1 of 1 claims of equal quality confirmed: reached.")
    assert judged("confirmed", "not decided").endswith("with 1 of 2 claims of equal quality confirmed: not decided.")
    assert judged("not testable", "not testable").endswith("not decided."), "its cost alone says nothing"
    assert judged("confirmed", "refuted").endswith("missed.") and judged("refuted", one="idle @ 60").endswith(
        "reached."
    )
    assert "success" not in Target("short @ 100", "long @ 300", 0.5).judged(POINTS)[0]


@pytest.mark.parametrize("name", ["speed", "time_to_motion"])
def test_the_targets_are_about_variants_that_exist(name):
    target = ARTEFACTS[name].target
    assert {target.one, target.other} <= {variant.name for variant in ARTEFACTS[name].variants}
    pocket = load(["--config", str(POCKET), CLIP], description="")[0]
    steps = pocket.validation_data.num_inference_steps if name == "speed" else pocket.max_train_steps
    assert target.one.endswith(f" @ {steps}"), "what the recipe does today"


def test_costs_are_compared_where_the_form_is_one_and_beside_guidance_without_training():
    assert [name for name in ("speed", "time_to_motion", "guidance", "table1") if ARTEFACTS[name].compares_costs] == [
        "speed",
        "time_to_motion",
        "guidance",
    ]


def measured(name: str, folder) -> Result:
    """An artefact of costs with a video of each variant: every variant moves but the first, the untouched model."""
    rows, costs = [], {}
    for number, variant in enumerate(variant.name for variant in ARTEFACTS[name].variants):
        found = {"motion_success": float(number > 0), "appearance_accuracy": 1.0}
        found |= {"appearance_match": 0.7, "leakage": 0.0}
        where = {"group": "re-timing", "motion": "pause", "reference": "pause", "run": "pause"}
        rows += [{"variant": variant, "prompt": "a", "seed": 0, "path": folder / "none.mp4", **where, **found}]
        costs[variant] = VariantCost(10.0 * number, 20.0, 2.0 * number, 10**6)
    bed = SimpleNamespace(name="x", world=True, columns=("motion_success",), details=(), roles=WORLD_ROLES)
    return Result(name, bed, False, "", "", "", [], Cost(0, 0, 0, 0, ()), rows, costs=costs)


@pytest.mark.parametrize(("name", "form"), [("speed", "sampling"), ("time_to_motion", "training")])
def test_an_artefact_of_costs_draws_its_points_and_says_what_they_mean(tmp_path, name, form):
    """From videos' measures and costs: a variant's place, the sentences, and a picture with every curve."""
    variants, result = [variant.name for variant in ARTEFACTS[name].variants], measured(name, tmp_path)
    per = {"training": 10.0, "sampling": 2.0}[form]
    assert [(p.name, p.cost, p.success) for p in result.points[:2]] == [(variants[0], 0, 0), (variants[1], per, 1)]
    assert variants[1] in result.tradeoff[0] and result.tradeoff[-1].startswith(ARTEFACTS[name].target.one)
    page = html.unescape(write_page(result, tmp_path).read_text())
    for text in (body(result), page):
        assert all(sentence in text for sentence in result.tradeoff) and "forwards a video" in text
    figure = plots._costs(result)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "untouched model",
        *(point.curve for point in result.points[1:]),
    }
    FigureCanvasAgg(figure).draw()
    labels = [axes.xaxis.label for axes in figure.axes[2:]]
    assert [label.get_text() for label in labels] == 2 * [f"CPU seconds of {form}"]
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(label.get_window_extent()) for label in labels)
    assert f"The default on the toy world is {ARTEFACTS[name].target.one}" in result.tradeoff[-2]
    result.rows.append({**result.rows[1], "reference": "another", "run": "another", "motion_success": 0.0})
    drawn = plots._costs(result).axes[0].containers
    assert len(drawn) == len(result.points) - 1  # each has its interval, the untouched model its line
    assert max(len(bars.lines[2]) for bars in drawn) == 1 and sum(bool(bars.lines[2]) for bars in drawn) == 1


@pytest.mark.parametrize(("name", "form"), [("speed", "sampling"), ("time_to_motion", "training")])
def test_a_cost_that_was_not_noted_is_not_taken_for_none(name, form, tmp_path):
    result, target = measured(name, tmp_path), ARTEFACTS[name].target
    assert any("target" in sentence for sentence in result.tradeoff)
    for lacking in (result.variants[0].name, target.one):
        result.costs[lacking] = replace(result.costs[lacking], **{form: None})
    costs = {point.name: point.cost for point in result.points}
    # without an adapter no training takes part, which is known; what a video took is not
    assert costs.get(result.variants[0].name) == (0.0 if form == "training" else None)
    assert target.one not in costs and costs.keys() <= result.costs.keys() and len(costs) > 5
    assert not any(target.one in sentence for sentence in result.tradeoff)


def test_the_recipe_that_samplings_are_compared_with_is_the_toys():
    recipe, ours = (load(["--config", str(POCKET), CLIP, *words], description="")[0] for words in (RECIPE, ()))
    keys = [word.partition("=")[0] for word in RECIPE]
    assert {"timesteps_per_step", "learning_rate", "adam_beta2", "max_train_steps"} <= set(keys)
    keys = set(keys) - {"checkpoints_total_limit", "checkpointing_steps"}  # a curve's points are all kept
    assert {key: recipe[key] for key in keys} == {key: ours[key] for key in keys}
