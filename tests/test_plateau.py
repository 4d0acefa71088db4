"""A training that is stopped early: where, from which checkpoint it is sampled, and what watching it costs."""

import json
from pathlib import Path

import pytest
from diffusers import TextToVideoSDPipeline

from data.world import vocabulary
from infer.measure import world_scores
from scripts.artefacts import testbed as beds
from scripts.artefacts.artefact import Variant
from scripts.artefacts.chain import Chain, work
from scripts.artefacts.costs import variant_costs
from scripts.artefacts.plan import Plan, commands
from scripts.artefacts.plateau import SEEDS, previews_of, stop_at, watching_seconds
from scripts.artefacts.samples import Samples, sidecars
from scripts.artefacts.speed import RECIPES
from scripts.pocket.architecture import build, untrained_unet


def endless(errors):
    yield from errors
    raise AssertionError("a checkpoint after the one that it stops at was asked for")


@pytest.mark.parametrize(
    ("errors", "step"),
    [
        ([(50, 7.0), (100, 3.0), (150, 2.8)], 150),  # 7 % better: a plateau
        ([(50, 7.0), (100, 7.5)], 100),
        ([(50, 7.0), (100, 6.3), (150, 6.0)], 150),  # 10 % are enough to go on
        ([(50, 0.0), (100, 0.1)], 100),
    ],
)
def test_a_training_stops_at_the_first_checkpoint_that_is_hardly_better(errors, step):
    assert stop_at(endless(errors)) == step


def test_a_training_that_gets_better_to_the_end_is_not_stopped():
    assert stop_at([(50, 7.0), (100, 3.0), (150, 2.0), (200, 1.0)]) == 200
    assert stop_at([(200, 7.0)]) == 200


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """A watched training of three steps on the toy world's model with random weights, and the same one to its end."""
    folder = tmp_path_factory.mktemp("watched")
    TextToVideoSDPipeline(**build(vocabulary()) | {"unet": untrained_unet((16, 32, 32, 32))}).save_pretrained(
        folder / "random_world"
    )
    few = ["lora_rank=2", "max_train_steps=3", "checkpoints_total_limit=3"]
    plan = Plan(beds.Testbed(folder / "random_world", True, folder), folder, few, smoke=True)
    (task,) = plan.testbed.tasks(["pause"], several=False)
    rows = Variant("whole @ 200", flags=("--checkpoint_index", "200")), Variant("watched @ plateau", watched=True)
    plan.cells["x"] = [plan.cell(row, task, 0, prompts=2) for row in rows]
    return plan


def test_a_watched_training_is_sampled_where_it_stops_and_pays_for_its_previews(plan, monkeypatch):
    errors = iter([9.0] * SEEDS + [8.5] * SEEDS)
    monkeypatch.setattr(world_scores, "world_scores", lambda *_: {"rmse": next(errors)})
    (chain,) = plan.chains.values()
    assert "--checkpoint_index WATCHED" in commands(chain)
    work(Chain.read(chain.write(plan.folder / "chain.json")))
    whole, watched = plan.cells["x"]
    indices = [
        {n["sources"][0]["index"] for n, *_ in sidecars(plan.folder / c.samples.folder)} for c in (whole, watched)
    ]
    assert indices == [{3}, {2}] and chain.is_done
    previews = previews_of(plan.folder / watched.samples.folder)
    assert sorted(path.name for path in previews.iterdir()) == ["1", "2"]
    notes = [json.loads(path.read_text()) for path in previews.glob("*/*.json")]
    assert len(notes) == 2 * SEEDS and {n["prompt"] for n in notes} == {
        watched.task.clip.with_suffix(".txt").read_text()
    }
    log = [json.loads(line)["cpu_seconds"] for line in (chain.run_folder / "log.jsonl").read_text().splitlines()]
    costs = variant_costs(plan.cells["x"], str(plan.testbed.model))
    spent = sum(note["cpu_seconds"] for note in notes)
    assert spent > 0 and watching_seconds(Path(watched.samples.folder)) == pytest.approx(spent)
    assert costs["watched @ plateau"].training == pytest.approx(sum(log[:2]) + spent)
    assert costs["whole @ 200"].training == pytest.approx(sum(log))


def test_a_damaged_sidecar_of_a_preview_is_asked_for_again_and_the_model_is_where_it_lies_now(plan, monkeypatch):
    monkeypatch.setattr(world_scores, "world_scores", lambda *_: {"rmse": 9.0})
    (chain,) = plan.chains.values()
    work(chain)  # what is not there yet
    asked, watched = [], plan.cells["x"][1]
    previews = previews_of(Path(watched.samples.folder))
    broken = next(previews.glob("1/*.json"))
    broken.write_text("{")
    assert watching_seconds(Path(watched.samples.folder)) > 0  # of those that can be read
    monkeypatch.setattr(Samples, "missing", lambda self: iter([(0, self.prompts)] if self.watched else []))
    monkeypatch.setattr("infer.generate.generate", lambda request, backbone: asked.append(request) or ())
    work(chain)
    assert not broken.exists()
    assert {request.model for request in asked} == {str(plan.testbed.model)} and len(asked) == 2


def test_a_watched_row_shares_the_training_of_the_recipe_that_it_stops():
    (watched,) = (row for row in RECIPES if row.watched)
    assert watched.train == next(row.train for row in RECIPES if row.name == "4 timesteps @ 200")
    assert {"checkpointing_steps=50", "checkpoints_total_limit=4"} <= set(watched.train)
