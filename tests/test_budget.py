"""What an artefact needs and costs before it is made: from measured prices and spreads, less where things are there."""

import csv
import json

import pytest

from infer.measure.paired import trainings_needed
from scripts.artefacts.artefact import Artefact, Claim, Variant
from scripts.artefacts.budget import bill, measured_spread
from scripts.artefacts.catalogue import ARTEFACTS, PAPER
from scripts.artefacts.chain import Chain, Samples
from scripts.artefacts.prices import Prices, measured_prices, stored_prices, stored_spread
from scripts.artefacts.verdict import Role

PRICES = Prices(start=10, training=100, video=2, guided=3, measuring=0.5, source="a test")
ROLES = {"motion": Role("correlation", 0.1), "appearance": Role("appearance_match", 0.02)}


def chain(folder, trained, videos):
    run = folder / "run"
    if trained:
        (run / "train_1" / "checkpoint-3").mkdir(parents=True)
    samples = [Samples(str(folder / "plain"), [], ["a", "b"]), Samples(str(folder / "guided"), ["--guide"], ["a", "b"])]
    for prompt in videos:
        (folder / "plain").mkdir(exist_ok=True)
        (folder / "plain" / f"{prompt}.mp4").write_bytes(b"x")
        notes = {"video": f"{prompt}.mp4", "prompt": prompt, "seed": 0}
        (folder / "plain" / f"{prompt}.json").write_text(json.dumps(notes))
    return Chain("c", [], str(run), 3, samples)


def test_a_bill_counts_what_is_missing_and_nothing_twice(tmp_path):
    new = chain(tmp_path / "new", trained=False, videos="")
    found = bill([(new, new.samples)], PRICES)
    assert (found.trainings, found.trained, found.videos, found.sampled) == (1, 0, 4, 0)
    assert found.seconds == 100 + 10 + 2 * (2 + 0.5) + 2 * (2 * 3 + 0.5)
    (tmp_path / "half").mkdir()
    half = chain(tmp_path / "half", trained=True, videos="a")
    found = bill([(half, half.samples)], PRICES)
    assert (found.trained, found.sampled) == (1, 1)
    assert found.seconds == 10 + 0.5 + (2 + 0.5) + 2 * (2 * 3 + 0.5)
    alone = bill([(half, half.samples[:1])], PRICES)
    assert alone.videos == 2 and alone.seconds == 10 + 0.5 + 2.5  # an artefact that shows half of a training's videos


def test_prices_come_from_what_was_made_before(tmp_path):
    runs, samples = tmp_path / "runs", tmp_path / "samples"
    assert measured_prices(True, runs, samples) == stored_prices(True)
    for name, seconds, done in (("one", 20, True), ("two", 40, True), ("cut off", 1, False)):
        folder = runs / name / "train_1"
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text(f'{{"seconds": {seconds}}}\n{{"seconds": {seconds}}}\n')
        if done:
            (folder / "checkpoint-2").mkdir()
    folder = samples / "s"
    folder.mkdir(parents=True)
    for number, notes in enumerate(({"cpu_seconds": 1.0}, {"cpu_seconds": 3.0}, {})):
        (folder / f"{number}.json").write_text(json.dumps(notes))
    (folder / "damaged.json").write_text("{")
    guided = {"cpu_seconds": 100.0, "settings": {"guide": "clip.mp4"}}
    (folder / "guided.json").write_text(json.dumps(guided))  # another price
    found = measured_prices(True, runs, samples)
    assert (found.training, found.video, found.source) == (60, 2.0, "2 trainings and 2 videos made before")


def test_the_spread_is_that_of_the_trainings_of_a_table_made_before(tmp_path, monkeypatch):
    claim = Claim("a moves better", "motion", "a", "more", "b")
    monkeypatch.setitem(ARTEFACTS, "x", Artefact("x", "x", (Variant("a"), Variant("b")), (claim,)))
    table = tmp_path / "videos.csv"
    assert measured_spread("x", table, ROLES) == {}
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "run", "variant", "prompt", "seed", "correlation"])
        for run, gain in enumerate((0.1, 0.2, 0.3)):
            for prompt in "pq":
                writer.writerow(["g", run, "a", prompt, 0, 0.5 + gain])
                writer.writerow(["g", run, "b", prompt, 0, 0.5])
    assert measured_spread("x", table, ROLES) == {"motion": pytest.approx(0.1)}


def test_the_default_plan_of_the_paper_fits_in_four_hours_on_two_cores():
    """By the stored prices; equal trainings counted once (tests/test_reproduce.py counts them)."""
    prices = stored_prices(True)
    seen, seconds = set(), 0.0
    for artefact in PAPER.values():
        for motion in artefact.motions:
            for variant in artefact.variants:
                where = motion, artefact.several, variant.train
                if where not in seen:
                    seconds += artefact.appearances * (prices.start + prices.training)
                if (*where, variant.flags) not in seen:
                    seconds += artefact.appearances * prices.of_videos(artefact.prompts, variant.flags)
                seen |= {where, (*where, variant.flags)}
    assert seconds / 2 < 4 * 3600


def test_the_stored_spread_knows_every_role_of_a_claim():
    roles = {claim.role for artefact in ARTEFACTS.values() for claim in artefact.claims}
    assert roles == set(stored_spread()) and all(trainings_needed(spread, 0.1) for spread in stored_spread().values())
