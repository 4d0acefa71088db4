"""The command that makes tables and figures: planning, ruling, reporting, and one artefact from end to end.

The end-to-end runs use the toy world's model with random weights and a few steps: the road, not the numbers.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess

import pytest
import torch
from diffusers import TextToVideoSDPipeline

import train
from configs.errors import UserError
from data.world import BACKGROUNDS, COLOURS, SHAPES, parse_prompt, vocabulary
from models.backbone import Backbone
from models.files.checkpoint import load_checkpoint
from scripts import reproduce
from scripts.artefacts import testbed as beds
from scripts.artefacts.catalogue import ARTEFACTS, PAPER, Variant
from scripts.artefacts.chain import work
from scripts.artefacts.hidden_states import LabelledClip, compare, world_clips
from scripts.artefacts.plan import Plan, commands
from scripts.artefacts.testbed import read_list
from scripts.pocket.architecture import build, build_unet

NAMES = ["table1", "table2", "table3", "table4", "table5", "table6", "figure3", "figure4", "figure5", "figure6"]
FEW = ["lora_rank=2", "train_data.width=64"]


@pytest.fixture(scope="module")
def world_model(tmp_path_factory):
    """PocketScope's folder with random weights and a narrower U-Net."""
    folder = tmp_path_factory.mktemp("world") / "random_world"
    TextToVideoSDPipeline(**build(vocabulary()) | {"unet": build_unet((16, 32, 32, 32))}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plan(world_model, tmp_path_factory):
    """Two smoke artefacts that stand on one training, trained and sampled."""
    folder = tmp_path_factory.mktemp("reproduced")
    made = Plan(beds.Testbed(world_model, True, folder), folder, FEW, smoke=True)
    with pytest.MonkeyPatch.context() as patch:
        short(patch)
        for name in ("table5", "figure4"):
            made.add(name)
    for chain in made.chains.values():
        work(chain)
    return made


def short(patch) -> None:
    """Table 5 without the variant that needs a training of its own."""
    artefact = ARTEFACTS["table5"]
    patch.setitem(ARTEFACTS, "table5", type(artefact)(**vars(artefact) | {"variants": artefact.variants[:2]}))


def asked(plan, *words):
    argv = [*words, "--model", str(plan.testbed.model), "--world", "--smoke", "--output_dir", str(plan.folder), *FEW]
    return reproduce.parse(argv), argv


def refuse(chain, worker):
    raise AssertionError(f"{chain.name} is done and must not run again")


def test_the_ten_artefacts_are_named_with_their_needs():
    assert list(PAPER) == NAMES and list(ARTEFACTS) == [*NAMES, "motions"]
    paper, ours = reproduce.listing().split("This project's own:")
    assert all(f"{name}  " in paper for name in NAMES) and paper.count("needs ") == paper.count("shows ") == 10
    assert ours.count("needs ") == 1


def test_every_claim_compares_variants_that_exist():
    for artefact in ARTEFACTS.values():
        names = [variant.name for variant in artefact.variants]
        assert len(set(names)) == len(names)
        assert all({claim.one, claim.other} <= set(names) for claim in artefact.claims)


def test_an_unknown_artefact_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean table4"):
        reproduce.choose(["tabel4"])
    assert reproduce.choose(["figure3", "table1", "lora_rank=4"]) == (["table1", "figure3"], ["lora_rank=4"])
    assert reproduce.choose(["all"])[0] == NAMES
    assert reproduce.parse(["--slurm", "slurm_partition=gpu", "table4"]).artefacts == ["table4"]


def test_prompts_ask_for_new_looks_under_the_references_verb(world_model, tmp_path):
    bed = beds.Testbed(world_model, True, tmp_path)
    for motion, verb in (("pause", "moves right"), ("zigzag", "wanders")):
        (reference,) = bed.references([motion], several=False)
        assert len(reference.prompts) == len(set(reference.prompts)) == 16
        assert all(verb in prompt for prompt in reference.prompts)
        assert verb in reference.clip.with_suffix(".txt").read_text()
    looks = [parse_prompt(prompt) for prompt in read_list("pocket.txt")]
    for name, words in (("shape", SHAPES), ("colour", COLOURS), ("background", BACKGROUNDS)):
        assert all(sum(look[name] == word for look in looks) >= 2 for word in words)
    assert len(read_list("real.txt", "camera dolly zoom")) == 8


def test_trainings_from_several_seeds_are_runs_of_their_own(world_model, tmp_path):
    several = Plan(beds.Testbed(world_model, True, tmp_path), tmp_path, FEW, references=2, prompts=4, trainings=2)
    several.add("table5")
    places = several.places["table5"]
    assert len(several.chains) == 8 and len({place.samples.folder for place in places}) == len(places) == 12
    assert [chain.train.count("seed=1") for chain in several.chains.values()] == [0] * 4 + [1] * 4
    assert list(dict.fromkeys(place.run for place in places)) == [
        "there_and_back",
        "late_start",
        "there_and_back, training 2",
        "late_start, training 2",
    ]


def test_motions_need_a_model_of_the_world(world_model, tmp_path):
    real = Plan(beds.Testbed(world_model, False, tmp_path), tmp_path, FEW)
    real.add("motions")
    assert not real.chains and "--world" in real.problems["motions"][0]


def test_equal_trainings_are_planned_once(plan):
    assert len(plan.chains) == 1
    (chain,) = plan.chains.values()
    assert len(chain.samples) == 3  # plain TAP serves both artefacts
    assert {place.chain.name for places in plan.places.values() for place in places} == {chain.name}


def test_a_plan_knows_its_runs_by_what_shapes_them(plan, world_model, tmp_path):
    def name(folder, words=FEW, model=world_model):
        other = Plan(beds.Testbed(model, True, folder), folder, words, smoke=True)
        other.add("figure4")
        return list(other.chains)

    assert name(tmp_path) == list(plan.chains)  # another place, the same runs
    assert name(tmp_path, [*FEW, "lora_rank=3"]) != list(plan.chains)
    changed = shutil.copytree(world_model, tmp_path / "changed")
    weights = changed / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    assert name(tmp_path, model=changed) != list(plan.chains)


def test_an_artefact_from_end_to_end_is_marked_as_smoke_and_asks_the_network_for_nothing(plan, monkeypatch, capsys):
    short(monkeypatch)
    args, argv = asked(plan, "table5", "figure4")
    pages, incomplete = reproduce.reproduce(args, argv, launch=refuse)
    assert incomplete == 0
    assert [page.parent.name for page in pages] == ["table5-smoke", "figure4-smoke"]
    for page in pages:
        html, folder = page.read_text(), page.parent
        sources = re.findall(r"(?:src|href)='([^']*)'", html)
        assert sources and all(source.startswith("data:") for source in sources)
        assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]*", "", html))
        assert html.count("<video") == 5 and "Smoke run" in html  # two variants of two prompts, and the reference
        assert "SMOKE RUN" in (folder / "table.md").read_text()
        assert {path.name for path in folder.glob("plot.*")} == {"plot.png", "plot.svg"}
        rows = list(csv.DictReader((folder / "videos.csv").open()))
        assert len(rows) == 4 and {row["smoke"] for row in rows} == {"True"}
        assert all((folder / "videos" / row["file"]).exists() for row in rows)
        assert len({(row["prompt"], row["seed"]) for row in rows}) == 2  # every variant starts from the same noise
    results = (plan.folder / "RESULTS.md").read_text()
    assert results.index("## Table 5") < results.index("## Figure 4") and "Which claims held" not in results
    assert "cosine with the untouched model" in results.lower()


PROBE = """<script>setTimeout(() => { const all = [...document.querySelectorAll('video')];
const told = document.body.appendChild(document.createElement('pre')); told.id = 'probe';
told.textContent = [all.length, all.filter(v => v.readyState >= 2 && v.videoWidth).length, all.filter(v =>
!v.paused).length, [...document.images].filter(i => !i.naturalWidth).length].join(' ') }, 3000)</script></body>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here: the page is not looked at in a browser")
def test_a_browser_plays_every_video_of_a_page(plan, monkeypatch, tmp_path):
    short(monkeypatch)
    args, argv = asked(plan, "table5")
    (page,), _ = reproduce.reproduce(args, argv, launch=refuse)
    probed = tmp_path / "page.html"
    probed.write_text(page.read_text().replace("</body>", PROBE))
    shown = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--autoplay-policy=no-user-gesture-required",
            "--virtual-time-budget=10000",
            "--dump-dom",
            probed.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    videos, ready, playing, broken = map(int, re.search(r'id="probe">([\d ]+)<', shown.stdout)[1].split())
    assert videos == ready == playing == 5 and broken == 0


def test_results_are_replaced_section_by_section(plan, monkeypatch, tmp_path):
    short(monkeypatch)
    results = tmp_path / "RESULTS.md"
    other = (
        "<!-- begin table6 pocketscope -->\n## Table 6\n\n- **holds** (paper; g): 1.1 is best. X 1 against 0.\n"
        "<!-- end table6 pocketscope -->\n"
    )
    former = "<!-- begin table5 random_world -->\nformer\n<!-- end table5 random_world -->\n"
    results.write_text(f"former words\n{other}{former}")
    args, argv = asked(plan, "table5", "--results", str(results))
    reproduce.reproduce(args, argv, launch=refuse)
    text = results.read_text()
    assert text.count("<!-- begin table5 random_world -->") == 1 and "former" not in text and other in text
    assert "**Holds:**\n\n- Table 6 (pocketscope): 1.1 is best (g)\n" in text
    assert "commit" in text and "Cost: 1 trainings" in text


def test_noise_draws_of_one_clip_are_not_taken_for_clips_of_one_motion(plan, world_model):
    (chain,) = plan.chains.values()
    backbone, clips = Backbone.load(str(world_model), torch.float32, torch.device("cpu")), world_clips(2)[:2]
    draws = [LabelledClip(clip.label, clip.frames, seed) for clip in clips for seed in (1, 2)]
    found = compare(backbone, load_checkpoint(chain.run_folder), draws, "two clips")
    assert not found.read and found.similarity["untouched model", 0] == pytest.approx([1] * 4)


def test_a_failed_training_is_said_on_the_page_and_the_rest_is_done(plan, monkeypatch):
    artefact = ARTEFACTS["table5"]
    bad = Variant("another rank", ("temporal_preset=ff",))
    monkeypatch.setitem(
        ARTEFACTS, "table5", type(artefact)(**vars(artefact) | {"variants": (*artefact.variants[:2], bad)})
    )
    args, argv = asked(plan, "table5")
    (page,), incomplete = reproduce.reproduce(args, argv, lambda chain, worker: "training: the loss is nan at step 1")
    assert incomplete == 1
    html = page.read_text()
    assert "another rank on there_and_back: training: the loss is nan at step 1" in html
    assert html.count("<video") == 5 and html.count("missing</td>") == 2


def test_what_an_artefact_lacks_is_said_on_its_page(tiny_pipeline, tmp_path):
    argv = ["table3", "--model", str(tiny_pipeline), "--smoke", "--output_dir", str(tmp_path)]
    former = "<!-- begin table3 tiny -->\nwhat was found before\n<!-- end table3 tiny -->\n"
    (tmp_path / "RESULTS.md").write_text(former.replace("tiny", tiny_pipeline.name))
    (page,), incomplete = reproduce.reproduce(reproduce.parse(argv), argv, launch=refuse)
    assert "several clips of one motion are needed" in page.read_text() and incomplete == 1
    assert "what was found before" in (tmp_path / "RESULTS.md").read_text()  # nothing replaces it


def test_a_reference_clip_that_can_not_be_read_costs_only_its_artefact(plan, monkeypatch, tmp_path):
    short(monkeypatch)
    args, argv = asked(plan, "figure4", "table5")

    def unreadable(cfg, snap):
        raise UserError("frames: found 3; give more")

    monkeypatch.setattr(reproduce, "load_clips", unreadable)
    pages, _ = reproduce.reproduce(args, argv, launch=refuse)
    assert len(pages) == 2 and all("the clip of there_and_back: frames: found 3" in page.read_text() for page in pages)


def test_a_folder_without_weights_is_one_sentence(tmp_path):
    argv = ["table4", "--model", str(tmp_path), "--output_dir", str(tmp_path)]
    with pytest.raises(UserError, match="no weights in"):
        reproduce.reproduce(reproduce.parse(argv), argv)


def test_a_stopped_chain_goes_on_where_it_was(world_model, tmp_path, monkeypatch):
    plan = Plan(beds.Testbed(world_model, True, tmp_path), tmp_path, FEW, smoke=True)
    plan.add("figure4")
    (chain,) = plan.chains.values()
    whole, step = train.training_step, []

    def stop_in_the_first_step(*args, **kwargs):
        step.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args, **kwargs)

    monkeypatch.setattr(train, "training_step", stop_in_the_first_step)
    with pytest.raises(SystemExit):
        work(chain)
    assert chain.run_folder is None and len(step) == 1
    monkeypatch.setattr(train, "training_step", lambda *a, **k: step.append(1) or whole(*a, **k))
    work(chain)
    assert len(step) == 2 and chain.is_done  # the first of the two steps was not made again
    log = [json.loads(line)["step"] for line in (chain.run_folder / "log.jsonl").read_text().splitlines()]
    assert log == [1, 2] and commands(chain) == ""
    video = next(path for path in sorted(tmp_path.glob("samples/*/*.mp4")))
    video.unlink()
    assert not chain.is_done and commands(chain).count("infer.py") == 1  # only what is missing
