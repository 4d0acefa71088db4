"""The table of costs: what it says of a variant follows from its runs' logs, its videos' sidecars and the model."""

import json
from pathlib import Path

import pytest

from scripts.artefacts.artefact import Variant
from scripts.artefacts.chain import Chain, infer_words
from scripts.artefacts.costs import HEADER, cost_table, variant_costs
from scripts.artefacts.plan import Cell
from scripts.artefacts.result import total_cost
from scripts.artefacts.samples import Samples
from scripts.artefacts.testbed import MotionTask

SETTINGS = {"num_frames": 5, "height": 64, "width": 64, "guidance_scale": 3.0}
GUIDED = SETTINGS | {"guide": "clip.mp4", "guide_updates": 3, "guide_target": "predicted"}


def cell(folder: Path, name: str, strength: float, settings: dict, costs: list[dict], index: int = 2) -> Cell:
    """A variant's cell with one run of three steps and a video for each of `costs`, sampled at step `index`."""
    run, samples = folder / "run" / "train_1", folder / name
    (run / "checkpoint-2").mkdir(parents=True, exist_ok=True)
    log = [{"step": 1, "seconds": 9, "cpu_seconds": 3}, {"step": 2, "seconds": 4}, {"step": 3, "seconds": 100}]
    broken_off = '{"step": 2, "seco\n'
    (run / "log.jsonl").write_text(broken_off.join(json.dumps(record) + "\n" for record in log))
    samples.mkdir()
    for number, cost in enumerate(costs):
        (samples / f"{number}.mp4").write_bytes(b"x")
        notes = {
            "video": f"{number}.mp4",
            "prompt": "a",
            "seed": number,
            "model": "where it was then",
            "settings": settings,
        }
        notes["sources"] = [{"strength": strength, "index": index}]
        (samples / f"{number}.json").write_text(json.dumps(notes | cost))
    chain = Chain("run", [], str(folder / "run"), 2, [])
    return Cell(Variant(name), MotionTask("m", "g", (), (), folder), "m", chain, Samples(str(samples), [], ["a"]))


def test_a_line_of_a_log_that_was_broken_off_counts_for_nothing_in_the_whole_cost(tmp_path):
    made = cell(tmp_path, "trained", 1, SETTINGS, [{"cpu_seconds": 5.0, "seconds": 6.0, "device": "cpu"}])
    cost = total_cost([made])
    assert (cost.trainings, cost.train_seconds, cost.sample_seconds, cost.spent) == (1, 113, 6.0, 3 + 4 + 100 + 5.0)


def test_videos_of_prompts_that_are_not_shown_cost_an_artefact_nothing(tmp_path):
    """They lie in the same folder, from a time when more prompts were asked for."""
    noted = {"cpu_seconds": 5.0, "seconds": 6.0, "device": "cpu"}
    made = cell(tmp_path, "trained", 1, SETTINGS, [noted, noted | {"prompt": "b"}])
    assert (total_cost([made]).videos, total_cost([made]).sample_seconds) == (1, 6.0)


@pytest.mark.parametrize("model", ["tiny_pipeline", "tiny_wan"])
def test_training_counts_where_the_adapter_acts_and_memory_grows_little(model, request, tmp_path):
    tiny = request.getfixturevalue(model)
    noted = [{"cpu_seconds": 1.0, "forwards": 40}, {"cpu_seconds": 2.0, "forwards": 40}]
    costs = variant_costs(
        [
            cell(tmp_path, "plain", 0, SETTINGS, [{}]),
            cell(tmp_path, "guided", 0, GUIDED, noted),
            cell(tmp_path, "trained", 1, SETTINGS, noted),
            cell(tmp_path, "earlier", 1, SETTINGS, noted, index=1),
            cell(tmp_path, "without videos", 1, SETTINGS, []),
        ],
        str(tiny),
    )
    rows = cost_table(costs)
    assert rows[0] == HEADER and [row[0] for row in rows[1:]] == ["plain", "guided", "trained", "earlier"]
    assert rows[1][1:4] == ["none", "–", "–"]
    assert rows[2][1:4] == ["none", "40", "1.50"] and rows[3][1:4] == ["7", "40", "1.50"]
    assert rows[4][1] == "3" and cost_table({}) == []  # CPU seconds until the checkpoint that was sampled
    plain, guided, trained, _ = (float(row[4]) for row in rows[1:])
    assert plain == trained <= guided < 1.05 * plain


def test_videos_are_sampled_with_the_model_where_it_lies_now():
    """A run's own checkpoint names the folder of its day, which may have moved since."""
    train = ["--config", "a.yaml", "pretrained_model_path=models/pocketscope", "seed=0"]
    chain = Chain("run", train, "run", 2, [])
    words = infer_words(chain, Samples("out", ["--lora_scale", "0"], ["a"]), 3, ["a", "b"])
    assert words[words.index("--model") + 1] == "models/pocketscope" and words[-2:] == ["--prompt=a", "--prompt=b"]
