"""What an artefact needs and costs before it is made: from measured prices and spreads, less where things are there."""

import csv
import json
import re
from itertools import product
from types import SimpleNamespace

import pytest
from scipy.stats import t

from configs.paths import POCKET, ROOT
from infer.measure.paired import clips_needed
from scripts import reproduce as command
from scripts.artefacts import budget, production, public_benchmark
from scripts.artefacts import testbed as beds
from scripts.artefacts.artefact import Artefact, Bound, Claim, Variant
from scripts.artefacts.budget import bill, describe, measured_spread
from scripts.artefacts.catalogue import ARTEFACTS, PAPER, STUDIES
from scripts.artefacts.chain import Chain
from scripts.artefacts.plan import Plan
from scripts.artefacts.prices import Prices, measured_prices, stored_prices, stored_spread
from scripts.artefacts.result import Cost, Result
from scripts.artefacts.results_file import read_sections
from scripts.artefacts.samples import Samples
from scripts.artefacts.verdict import Role

PRICES = Prices(start=10, training=100, video=2, guided=3, measuring=0.5, unit="a card", source="a test")
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
    assert str(found).endswith("; 2 min of a card to go")
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
    assert measured_prices(True, tmp_path, "pocket", {3}) == stored_prices(True)
    for name, seconds, steps, wanted in (
        ("one", 20, 3, 3),
        ("two", 40, 3, 3),
        ("longer", 99, 4, 4),
        ("of another model", 99, 3, 3),
        ("stopped at a checkpoint", 1, 2, 3),
        ("smoke", 1, 2, 2),
        ("without its configuration", 1, 3, None),
    ):
        folder = runs / name / "train_1"
        (folder / "checkpoint-1").mkdir(parents=True)
        lines = [json.dumps({"step": step, "seconds": seconds}) for step in range(1, steps + 1)]
        (folder / "log.jsonl").write_text(
            "\n".join([lines[0], '{"step": 1, "sec', *lines[1:]])
        )  # a crash, then resumed
        if wanted:
            model = "./models/large" if "another" in name else "/where/it/was/pocket"
            (folder / "config.yaml").write_text(f"max_train_steps: {wanted}\npretrained_model_path: {model}\n")
    folder = samples / "s"
    folder.mkdir(parents=True)
    guided = {"cpu_seconds": 100.0, "settings": {"guide": "clip.mp4"}}  # another price
    smoke = {"cpu_seconds": 0.1, "config": {"max_train_steps": 2}}
    other = {"cpu_seconds": 99.0, "model": "large"}
    for number, notes in enumerate(({"cpu_seconds": 1.0}, {"cpu_seconds": 3.0}, {}, guided, smoke, other)):
        (folder / f"{number}.mp4").write_bytes(b"x")
        notes = {"video": f"{number}.mp4", "prompt": "a", "seed": number, "model": "models/pocket", **notes}
        (folder / f"{number}.json").write_text(json.dumps(notes))
    (folder / "damaged.json").write_text("{")
    found = measured_prices(True, tmp_path, "pocket", {3})
    assert (found.training, found.video, found.source) == (90, 2.0, "2 trainings and 2 videos made before")


def test_what_a_card_makes_is_priced_by_the_clock_and_said_to_be_of_a_card(tmp_path, monkeypatch):
    """CPU seconds say nothing about a card, and its seconds nothing about a CPU; in every sentence about costs."""
    plan = Plan(beds.Testbed(POCKET, False, tmp_path), tmp_path, [], references=1, prompts=1)
    plan.add("table1")
    first, *rest = describe(plan, ["table1"], jobs=2).splitlines()
    assert first.startswith("A training takes 900 s of a 24 GB card and a video 30.00 s, by the stored table; ")
    assert "min of a 24 GB card to go" in rest[-1] and rest[-1].endswith("with --jobs 2 on as many cards.")
    assert not any("CPU" in line for line in (first, *rest))
    result = Result("table1", plan.testbed, False, "", "", "", [], Cost(0, 0, 0, 0, ()), [], foreseen=90)
    assert "were to take 90 s of a 24 GB card; they took" in result.provenance

    monkeypatch.setattr(
        "scripts.artefacts.prices.sidecars", lambda _: [({"seconds": 4.0, "cpu_seconds": 1.0, "model": "m"}, "p", 0)]
    )
    (tmp_path / "runs" / "one" / "train_1").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "train_1" / "log.jsonl").write_text('{"step": 1, "seconds": 30, "cpu_seconds": 2}\n')
    (tmp_path / "runs" / "one" / "train_1" / "config.yaml").write_text("max_train_steps: 1\npretrained_model_path: m\n")
    (tmp_path / "samples" / "s").mkdir(parents=True)
    for world, unit, training, video in ((False, "a card", 30, 4), (True, "CPU", 2, 1)):
        found = measured_prices(world, tmp_path, "m", {1})
        assert (found.unit, found.training, found.video) == (unit, training, video)


ADAPTED, UNTRAINED = Variant("a", ("x=1",), ("--beta", "1")), Variant("zero", ("x=1",), ("--lora_scale", "0"))
KINDS = Artefact(
    "x",
    "x",
    (ADAPTED, Variant("again", ("x=1",)), Variant("other", ("x=2",)), UNTRAINED),
    tuple(Claim("c", "motion", "a", "more", other) for other in ("again", "other", Bound("correlation", 0.5))),
)


def test_the_spread_is_that_over_the_clips_of_a_table_made_before_for_each_kind_of_claim(tmp_path, monkeypatch):
    monkeypatch.setitem(ARTEFACTS, "x", KINDS)
    table, bed = tmp_path / "videos.csv", SimpleNamespace(name="m", roles=ROLES)
    assert measured_spread("x", table, bed) == {}
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "group", "reference", "run", "variant", "prompt", "seed", "correlation"])
        for clip, gain in enumerate((0.1, 0.2, 0.3)):
            for run in (f"{clip}, 1", f"{clip}, 2"):
                for prompt in "pq":
                    writer.writerow(["m", "g", clip, run, "a", prompt, 0, 0.5 + gain])
                    writer.writerow(["m", "g", clip, run, "again", prompt, 0, 0.5 + gain / 2])
                    writer.writerow(["m", "g", clip, run, "other", prompt, 0, 0.5])
                    writer.writerow(["large", "g", clip, run, "other", prompt, 0, clip])
    found = measured_spread("x", table, bed)
    assert found == {("motion", True): pytest.approx(0.05), ("motion", False): pytest.approx(0.1)}


def test_two_samplings_share_a_training_only_where_both_use_it():
    """The untouched model stands beside TAP in the same run; their difference is still what the training brings."""
    shared = [KINDS.share_training(Claim("c", "motion", "a", "more", name)) for name in ("again", "other", "zero")]
    assert shared == [True, False, False]
    table4 = ARTEFACTS["table4"]
    kinds = {claim.text: table4.share_training(claim) for claim in table4.claims}
    assert kinds["AH improves appearance over TAP"] and not kinds["TAP improves appearance over the baseline"]


@pytest.mark.parametrize("trainings", [1, 2])
def test_the_plan_prints_what_a_small_example_needs_counted_by_hand(trainings, tmp_path, monkeypatch):
    """Table 5 has four rows of two trainings on five motions, Figure 4 two rows of one of these on one motion."""
    plan = Plan(beds.Testbed(POCKET, True, tmp_path), tmp_path, [], prompts=3, appearances=2, trainings=trainings)
    for name in ("table5", "figure4"):
        plan.add(name)
    prices, spreads = stored_prices(True), {"motion": 0.058, "appearance": 0.192}
    monkeypatch.setattr(budget, "stored_spread", lambda one_training: spreads)

    def costs(made: int, videos: int) -> str:
        minutes = (made * (prices.start + prices.training) + videos * (prices.video + prices.measuring)) / 60
        return f"{made} trainings (0 there already), {videos} videos (0); {minutes:.0f} min of CPU to go"

    first, title, *lines, whole = describe(plan, ["table5", "figure4"], jobs=2).splitlines()
    repeated = "2 trainings x " if trainings == 2 else ""
    assert f"{prices.training:.0f} s of CPU" in first and "the stored table" in first and title.startswith("table5: ")
    assert lines[0].strip() == f"4 variants x 5 motions x 2 clips x {repeated}3 prompts"
    assert lines[1].strip().startswith(costs(20 * trainings, 120 * trainings))
    needed = [line for line in lines if " a difference of " in line]
    level = 1 - 0.05 / 2  # of two claims; each motion has a mean of its own
    assert len(needed) == 2
    for line, role, least in zip(needed, ("appearance", "motion"), (0.02, 0.1)):
        count = clips_needed(spreads[role], least, level, blocks=5)
        assert line.startswith(f"    {role}, two trainings: a difference of {least:g} counts; at a spread of ")
        assert f" {spreads[role]:.3f} (stored)" in line
        assert line.endswith(f" reference clips: {count or 'more than 1000'} (re-timing, 10 planned)")  # not trainings
    assert clips_needed(spreads["motion"], 0.1, level, blocks=5) > clips_needed(spreads["motion"], 0.1, level)
    assert lines[-2].strip() == f"2 variants x 1 motions x 2 clips x {repeated}3 prompts"
    assert lines[-1].strip().startswith(costs(2 * trainings, 12 * trainings))
    seconds = 20 * trainings * (prices.start + prices.training) + 120 * trainings * (prices.video + prices.measuring)
    half = f"about {seconds / 60 / 2:.0f} min with --jobs 2"
    assert whole.startswith(f"Together: {costs(20 * trainings, 120 * trainings)}") and half in whole  # nothing twice


@pytest.mark.parametrize("flag", ["--plan", "--dry-run"])
def test_a_study_that_is_only_planned_prints_what_it_needs_and_makes_nothing(flag, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(production, "study", lambda *words: pytest.fail("it must not run"))
    command.main(["metrics", "measures", flag, "--output_dir", str(tmp_path / "out")])
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: {title}. It trains nothing and needs {needs}." for name, (title, needs) in STUDIES.items()
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--plan", "--dry-run"])
def test_a_benchmark_that_is_only_planned_is_counted_and_nothing_is_sampled(flag, tmp_path, capsys, monkeypatch):
    """Three cases: of three prompts, of one, and one without a clip."""
    monkeypatch.setattr(public_benchmark, "sample_case", lambda *words: pytest.fail("it must not run"))
    for case, prompts in (("first", "a\nb\nc\n"), ("second", "a\n"), ("third", "a\n")):
        (tmp_path / "MTBench" / case / "videos").mkdir(parents=True)
        (tmp_path / "MTBench" / case / "prompts.txt").write_text("a car is running\n")
        (tmp_path / "MTBench" / case / "eval_prompts.txt").write_text(prompts)
        if case != "third":
            (tmp_path / "MTBench" / case / "videos" / f"{case}.mp4").touch()
    asked = ["--benchmark", str(tmp_path / "MTBench"), "--model", "real", "--output_dir", str(tmp_path / "out"), flag]
    prices = stored_prices(False)
    for words, trainings, videos, each in (
        (["--method", "tap"], 2, 4, prices.video),
        (["--method", "tap", "--prompts", "2"], 2, 3, prices.video),
        (["--method", "guidance", "--references", "1"], 0, 3, prices.video * prices.guided),
    ):
        command.main([*asked, *words])
        first, *rest = capsys.readouterr().out.splitlines()
        lacks, notes = ([line for line in rest if word in line] for word in ("lacks: ", "note: "))
        minutes = (trainings * (prices.start + prices.training) + videos * (each + prices.measuring)) / 60
        assert first.startswith(f"MTBench with {words[1]} would take {trainings} trainings and {videos} videos of ")
        assert f"about {minutes:.0f} min of a 24 GB card" in first and len(lacks) == 1 and "lacks: third" in lacks[0]
        assert len(notes) == len(rest) - 1 == 4, "no trajectories and no mask of the two cases that are there"
    assert not (tmp_path / "out").exists()


def test_the_default_plan_of_the_paper_fits_in_four_hours_on_two_cores():
    """By the stored prices; equal trainings counted once (tests/test_reproduce.py counts them)."""
    prices = stored_prices(True)
    trainings, videos = {}, {}  # what is made -> its seconds for as many clips as the artefact with most of them has
    for artefact in PAPER.values():
        training = artefact.appearances * (prices.start + prices.training)
        for motion, variant in product(artefact.motions, artefact.variants):
            where = motion, artefact.several, variant.train
            trainings[where] = max(trainings.get(where, 0), training)
            sampling = artefact.appearances * prices.of_videos(artefact.prompts, variant.flags)
            videos[*where, variant.flags] = max(videos.get((*where, variant.flags), 0), sampling)
    seconds = sum(trainings.values()) + sum(videos.values())
    assert seconds / 2 < 4 * 3600


def test_the_stored_spread_knows_every_role_of_a_claim_and_is_larger_between_two_trainings():
    roles = {claim.role for artefact in ARTEFACTS.values() for claim in artefact.claims}
    inside, between = stored_spread(one_training=True), stored_spread(one_training=False)
    assert roles == set(inside) == set(between) and all(inside[role] < between[role] for role in roles)
    assert all(clips_needed(spread, 0.1) for spread in (*inside.values(), *between.values()))


def test_the_spread_between_two_trainings_is_what_table_1_says():
    """Half the width of an interval over n clips of m motions is t(0.975, n - m) x the spread / the root of n."""
    section = read_sections(ROOT / "RESULTS.md")["table1", "pocketscope"]
    found = {}
    for words, role in (("keep the appearance better", "appearance"), ("leak less", "leakage"), ("no worse", "motion")):
        numbers = r"difference \S+ \[(\S+), (\S+)\] over (\d+) reference clips of (\d+) motions"
        said = re.search(rf"keys alone .*{words}.* {numbers}", section)
        assert said, f"Table 1 says nothing about {role} in the words that this test knows; put its new words here"
        low, high, clips, motions = map(float, said.groups())
        found[role] = round((high - low) / 2 * clips**0.5 / float(t.ppf(0.975, clips - motions)), 3)
    stored = {role: stored_spread(one_training=False)[role] for role in found}
    assert stored == pytest.approx(found, rel=0.05), f"Table 1 was made again: put {found} into measured.yaml"
