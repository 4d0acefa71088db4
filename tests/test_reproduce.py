"""The command that makes tables and figures: planning, ruling, reporting, and one artefact from end to end.

The end-to-end runs use the toy world's model with random weights and a few steps: they exercise the pipeline, and
their numbers say nothing.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import TextToVideoSDPipeline

import train
from configs.errors import UserError
from configs.paths import POCKET
from configs.signals import Terminated
from data.world import BACKGROUNDS, COLOURS, SHAPES, Scene, parse_prompt, trajectory_of, vocabulary
from infer import generate as generating
from infer import options
from infer.measure.world_scores import ReferenceClips
from infer.video import read_frames
from models.backbone import Backbone
from models.files.checkpoint import load_checkpoint
from scripts import reproduce as command
from scripts.artefacts import production
from scripts.artefacts import testbed as beds
from scripts.artefacts.artefact import EQUAL_MOTION, Variant
from scripts.artefacts.catalogue import ARTEFACTS, PAPER
from scripts.artefacts.chain import Chain, infer_words, work
from scripts.artefacts.claims import LEARNED
from scripts.artefacts.equal_motion import curves
from scripts.artefacts.hidden_states import LabelledClip, compare_customizations, world_clips
from scripts.artefacts.plan import Plan, commands
from scripts.artefacts.plots import write_plots
from scripts.artefacts.prices import stored_prices
from scripts.artefacts.report import bring
from scripts.artefacts.result import total_cost
from scripts.artefacts.results_file import markdown, markdown_code, put_section, read_sections, write_sections
from scripts.artefacts.samples import Samples, clear_damaged, sidecars
from scripts.artefacts.testbed import prompt_list
from scripts.pocket.architecture import build, untrained_unet

NAMES = ["table1", "table2", "table3", "table4", "table5", "table6", "figure3", "figure4", "figure5", "figure6"]
FEW = ["lora_rank=2", "train_data.width=64"]


@pytest.fixture(scope="module")
def world_model(tmp_path_factory):
    """PocketScope's folder with random weights and a narrower U-Net."""
    folder = tmp_path_factory.mktemp("world") / "random_world"
    TextToVideoSDPipeline(**build(vocabulary()) | {"unet": untrained_unet((16, 32, 32, 32))}).save_pretrained(folder)
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
    loaded, load = [], generating.load_backbone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generating, "load_backbone", lambda request: loaded.append(request) or load(request))
        for chain in made.chains.values():
            work(chain)
    assert len(loaded) == len(made.chains)  # once, whatever is sampled from a training
    return made


def short(patch) -> None:
    """Table 5 without the variant that needs a training of its own."""
    artefact = ARTEFACTS["table5"]
    patch.setitem(ARTEFACTS, "table5", type(artefact)(**vars(artefact) | {"variants": artefact.variants[1:3]}))


def asked(plan, *words):
    return [*words, "--model", str(plan.testbed.model), "--world", "--smoke", "--output_dir", str(plan.folder), *FEW]


def reproduce(argv, launch=None):
    args = command.parse(argv)
    return production.reproduce(args, *command.choose(args.artefacts), argv, launch)


def refuse(chain, worker):
    raise AssertionError(f"{chain.name} is done and must not run again")


def test_the_ten_artefacts_are_named_with_their_needs():
    own = [name for name in ARTEFACTS if name not in PAPER]
    assert list(PAPER) == NAMES and {"guidance", "motions"} <= set(own)
    paper, ours = command.listing().split("This project's own:")
    assert all(f"{name}  " in paper for name in NAMES) and paper.count("needs ") == paper.count("shows ") == 10
    ours, _ = ours.split("Studies of the measures:")
    assert all(f"{name}  " in ours for name in own) and ours.count("needs ") == len(own)


def test_every_claim_compares_variants_that_exist():
    for artefact in ARTEFACTS.values():
        names = [variant.name for variant in artefact.variants]
        assert len(set(names)) == len(names)
        compared = {side for claim in artefact.claims for side in (claim.one, claim.other)}
        presets = {c.preset for c in curves(artefact.variants)} if artefact.form == EQUAL_MOTION else set()
        assert compared - set(names) - presets <= {LEARNED}


def test_guidance_needs_no_training_of_its_own_in_any_artefact():
    seen = set()
    for name, artefact in ARTEFACTS.items():
        guided = {variant.train for variant in artefact.variants if "--guide" in variant.flags}
        assert guided <= {variant.train for variant in artefact.variants if "--guide" not in variant.flags}
        seen |= {name} if guided else set()
    assert seen >= {"guidance", "motions", "dit"}
    predicted = next(variant for variant in ARTEFACTS["guidance"].variants if variant.name == "guidance, predicted")
    assert options.parse(["-p", "x", "-cf", "run", *predicted.flags]).guide_target == "predicted"
    little = next(variant for variant in ARTEFACTS["guidance"].variants if variant.name == "TAP + a little guidance")
    assert little.uses_training and options.parse(["-p", "x", "-cf", "run", *little.flags]).guide_steps == 2


@pytest.mark.parametrize("name", ["table2", "motions"])
def test_guidance_alone_and_with_training_stand_among_the_methods_with_their_costs(name):
    artefact = ARTEFACTS[name]
    rows = {variant.name: variant for variant in artefact.variants}
    assert {"untouched model", "MotionDirector", "guidance", "TAP + guidance"} <= rows.keys()
    assert rows["guidance"].flags == ("--lora_scale", "0", "--guide") and not rows["guidance"].uses_training
    assert rows["TAP + guidance"].flags == ("--guide",) and rows["TAP + guidance"].uses_training
    assert artefact.compares_costs


def test_an_unknown_artefact_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean table4"):
        command.choose(["tabel4"])
    assert command.choose(["figure3", "table1", "lora_rank=4"]) == (["table1", "figure3"], ["lora_rank=4"])
    assert command.choose(["all"])[0] == NAMES
    assert command.parse(["--slurm", "slurm_partition=gpu", "table4"]).artefacts == ["table4"]


def test_prompts_ask_for_a_new_appearance_under_the_references_verb(world_model, tmp_path):
    bed = beds.Testbed(world_model, True, tmp_path)
    for motion, verb in (("pause", "moves right"), ("zigzag", "wanders")):
        (task,) = bed.tasks([motion], several=False)
        assert len(task.prompts) == len(set(task.prompts)) == 16
        assert all(verb in prompt for prompt in task.prompts)
        assert verb in task.clip.with_suffix(".txt").read_text()
    wanted = [parse_prompt(prompt) for prompt in prompt_list("pocket.txt")]
    for name, words in (("shape", SHAPES), ("colour", COLOURS), ("background", BACKGROUNDS)):
        assert all(sum(scene[name] == word for scene in wanted) >= 2 for word in words)
    assert len(prompt_list("real.txt", "camera dolly zoom")) == 8


def test_trainings_from_several_seeds_are_runs_of_their_own(world_model, tmp_path):
    bed = beds.Testbed(world_model, True, tmp_path)
    several = Plan(bed, tmp_path, FEW, references=1, prompts=4, appearances=2, trainings=2)
    several.add("table5")
    cells = several.cells["table5"]
    assert len(several.chains) == 8 and len({cell.samples.folder for cell in cells}) == len(cells) == 16
    seeds = [next(word for word in chain.train if word.startswith("seed=")) for chain in several.chains.values()]
    assert list(dict.fromkeys(seeds)) == ["seed=0", "seed=1", "seed=1000", "seed=1001"]
    assert list(dict.fromkeys(cell.run for cell in cells)) == [
        "there_and_back",
        "there_and_back, clip 2",
        "there_and_back, training 2",
        "there_and_back, clip 2, training 2",
    ]


def test_every_clip_of_a_motion_has_another_look_other_prompts_and_other_noise(world_model, tmp_path):
    bed = beds.Testbed(world_model, True, tmp_path)
    clips = bed.tasks(["late_start"], several=False, appearances=8)
    captions = [task.clip.with_suffix(".txt").read_text() for task in clips]
    assert len(set(captions)) == 8 and all("moves right" in caption for caption in captions)
    assert len({task.prompts[:8] for task in clips}) == 8 and {len(set(task.prompts)) for task in clips} == {16}
    drawn = trajectory_of(Scene("circle", "red", "mint", "late_start"))[0]
    for task in clips:
        seen = ReferenceClips((read_frames(task.clip),), (task.clip.with_suffix(".txt").read_text(),))
        assert np.corrcoef(seen.path[:, 0], drawn[:, 0])[0, 1] > 0.99
    plan = Plan(bed, tmp_path, FEW, references=1, appearances=3, prompts=4)
    plan.add("figure4")
    seeds = [{seed for seed, _ in cell.samples.missing()} for cell in plan.cells["figure4"][::2]]
    assert seeds == [{0}, {4}, {8}]


def test_artefacts_share_trainings_and_videos(tmp_path):
    """Trainings on one clip of each of Table 1's two re-timings, of the other three, of the paths, and on several."""
    plan = Plan(beds.Testbed(POCKET, True, tmp_path), tmp_path, [], appearances=1)
    for name in PAPER:
        plan.add(name)
    assert len(plan.chains) == 2 * 10 + 3 * 5 + 4 * 4 + 3
    folders = [samples.folder for chain in plan.chains.values() for samples in chain.samples]
    assert len(folders) == len(set(folders)) < sum(map(len, plan.cells.values()))
    before = [chain.name for chain in plan.chains.values()]
    other = Plan(beds.Testbed(POCKET, True, tmp_path), tmp_path, [], appearances=1, prompts=2)
    other.add("figure3")
    assert set(other.chains) <= set(before)  # alone, with fewer prompts: the same trainings


def test_only_videos_of_todays_prompts_and_seeds_are_there(tmp_path):
    """A line more in front gives every fourth prompt other noise: its video of before is not counted beside the new."""
    prompts = list("abcdefgh")

    def make(samples):
        for seed, missing in samples.missing():
            for prompt in missing:
                (tmp_path / f"{prompt}{seed}.mp4").touch()
                notes = {"video": f"{prompt}{seed}.mp4", "prompt": prompt, "seed": seed}
                (tmp_path / f"{prompt}{seed}.json").write_text(json.dumps(notes))

    make(Samples(str(tmp_path), [], prompts))
    longer = Samples(str(tmp_path), [], ["new", *prompts[:7]])
    assert dict(longer.missing()) == {0: ["new"], 1: ["d"]}
    make(longer)
    there = {(prompt, seed) for _, prompt, seed in sidecars(tmp_path)}
    assert len(there) == 10 and longer.wanted() == there - {("d", 0), ("h", 1)} and len(longer.wanted()) == 8


def test_what_a_killed_process_left_is_no_video_and_is_made_again(tmp_path):
    for name in ("whole", "lonely", "broken"):
        (tmp_path / f"{name}.mp4").touch()
    notes = {"video": "whole.mp4", "prompt": "a", "seed": 0}
    (tmp_path / "whole.json").write_text(json.dumps(notes))
    (tmp_path / ".lonely.abcdef-1.part.json").write_text(json.dumps(notes | {"video": "lonely.mp4", "prompt": "b"}))
    (tmp_path / "broken.json").write_text("{")
    samples = Samples(str(tmp_path), [], ["a", "b"])
    assert list(samples.missing()) == [(0, ["b"])]
    clear_damaged(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["whole.json", "whole.mp4"]


def test_a_prompt_may_look_like_a_flag():
    prompts = ["-man", "-n o", "a = b", "--prompt"]
    chain = Chain("c", ["pretrained_model_path=m"], "run", 1, [])
    assert options.parse(infer_words(chain, Samples("f", [], prompts), 0, prompts)).prompt == prompts


def test_motions_need_a_model_of_the_world(world_model, tmp_path):
    real = Plan(beds.Testbed(world_model, False, tmp_path), tmp_path, FEW)
    real.add("motions")
    assert not real.chains and "--world" in real.problems["motions"][0]


@pytest.mark.parametrize("name", ["dit", "dit_sweep"])
def test_an_artefact_of_the_transformer_refuses_the_u_net(name, tmp_path):
    argv = [name, "--plan", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match=f"{name}: is about a transformer, .* --model models/pocketscope_dit --world"):
        command.main.__wrapped__(argv)
    assert not (tmp_path / "out").exists()


def test_the_figure_of_a_decoder_refuses_the_transformer_before_anything_is_trained(tmp_path):
    model = str(production.ROOT / "models/pocketscope_dit")
    argv = ["figure4", "--plan", "--model", model, "--world", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(
        UserError, match="figure4: is about a unet, and pocketscope_dit is a diffusion transformer; it needs a U-Net"
    ):
        command.main.__wrapped__(argv)
    assert not (tmp_path / "out").exists()


def test_equal_trainings_are_planned_once(plan):
    assert len(plan.chains) == 1
    (chain,) = plan.chains.values()
    assert len(chain.samples) == 3  # plain TAP serves both artefacts
    assert {cell.chain.name for cells in plan.cells.values() for cell in cells} == {chain.name}


def test_a_plan_knows_its_runs_by_what_shapes_them(plan, world_model, tmp_path):
    def name(folder, words=FEW, model=world_model):
        other = Plan(beds.Testbed(model, True, folder), folder, words, smoke=True)
        other.add("figure4")
        return list(other.chains)

    assert name(tmp_path) == list(plan.chains)  # another place, the same runs
    assert name(tmp_path, [*FEW, "lora_rank=3"]) != list(plan.chains)
    assert name(tmp_path, [*FEW, "validation_data.solver=ddim"]) != list(plan.chains)  # the default, chosen: it binds
    changed = shutil.copytree(world_model, tmp_path / "changed")
    assert name(tmp_path, model=changed) == list(plan.chains)
    for part, place in (("unet/diffusion_pytorch_model.safetensors", 0.5), ("scheduler/scheduler_config.json", 1)):
        path = changed / part
        content = path.read_bytes()
        at = int(place * len(content)) - 4
        path.write_bytes(content[:at] + b"\1\2\3\4" + content[at + 4 :])
        assert name(tmp_path, model=changed) != list(plan.chains)
        path.write_bytes(content)


def test_of_a_large_file_of_weights_some_of_every_stretch_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(beds, "BLOCK", 4)
    monkeypatch.setattr(beds, "WHOLE", 64)
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(range(64)))
    assert b"".join(beds._blocks(path)) == bytes(range(64))
    path.write_bytes(bytes(range(136)))
    assert b"".join(beds._blocks(path)) == bytes((*range(4), *range(64, 68), *range(128, 132)))


def test_the_models_own_sampling_settings_make_other_videos_of_the_same_training(
    plan, world_model, tmp_path, monkeypatch
):
    short(monkeypatch)
    changed = shutil.copytree(world_model, tmp_path / "changed")
    (changed / "sampling.json").write_text('{"num_steps": 3}')
    other = Plan(beds.Testbed(changed, True, tmp_path), tmp_path, FEW, smoke=True)
    other.add("table5")
    assert list(other.chains) == list(plan.chains)
    folders = [{Path(cell.samples.folder).name for cell in made.cells["table5"]} for made in (plan, other)]
    assert folders[0].isdisjoint(folders[1])


def test_repeated_trainings_have_seeds_of_their_own(world_model, tmp_path):
    bed = beds.Testbed(world_model, True, tmp_path)
    with pytest.raises(UserError, match="seed: every training on a clip has its own"):
        Plan(bed, tmp_path, ["seed=3"], trainings=2)
    Plan(bed, tmp_path, ["seed=3"])


def test_clips_of_a_world_that_draws_otherwise_now_are_rendered_again(world_model, tmp_path, monkeypatch):
    bed = beds.Testbed(world_model, True, tmp_path)

    def made() -> dict[str, bytes]:
        (task,) = bed.tasks(["pause"], several=False)
        bed.rendered("pause", task.prompts[:1])
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*.mp4")}

    first, times = made(), [path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")]
    assert made() == first and [path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")] == times
    drawn, shown = beds.reference_clip, beds.render
    brighter = lambda clip: replace(clip, frames=255 - clip.frames)
    monkeypatch.setattr(beds, "reference_clip", lambda *asked: brighter(drawn(*asked)))
    monkeypatch.setattr(beds, "render", lambda scene: brighter(shown(scene)))
    other = made()
    assert len(other) == 3 and other.keys() == first.keys() and all(other[path] != first[path] for path in first)
    (caption,) = (path for path in tmp_path.rglob("pause_*.txt"))
    old = caption.read_text()
    caption.write_text("a former caption")
    bed.discard()  # as where a plan is only printed
    (clip,) = (path for path in first if Path(path).name.startswith("pause_"))
    assert Path(clip).read_bytes() == first[clip] and caption.read_text() == old
    monkeypatch.undo()
    caption.write_text("a former caption")
    made()
    assert caption.read_text() == old


def test_an_artefact_from_end_to_end_is_marked_as_smoke_and_asks_the_network_for_nothing(plan, monkeypatch, capsys):
    short(monkeypatch)
    argv = asked(plan, "table5", "figure4")
    pages, incomplete = reproduce(argv, launch=refuse)
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
        assert all(row["reference"] == row["motion"] for row in rows)  # by name, not by its number in a folder
        assert all((folder / "videos" / row["file"]).exists() for row in rows)
        assert len({(row["prompt"], row["seed"]) for row in rows}) == 2  # every variant starts from the same noise
    results = (plan.folder / "RESULTS.md").read_text()
    assert results.index("## Table 5") < results.index("## Figure 4") and "## Claims" not in results
    assert "cosine with the untouched model" in results.lower()


def test_the_video_of_another_recipe_gives_way_to_the_one_that_is_shown_now(tmp_path):
    """The older one of the same name: its own time, not that of copying, tells it from the other."""
    one, other, copy = (tmp_path / name / "a.mp4" for name in ("one", "other", "videos"))
    for age, path in enumerate((one, other)):
        path.parent.mkdir()
        path.write_bytes(path.parent.name[:3].encode())
        os.utime(path, ns=(age, age))
    for shown in (one, other, one):
        bring(shown, copy)
        assert copy.read_bytes() == shown.read_bytes()


def test_nothing_is_left_of_the_plot_of_another_time(tmp_path):
    for name in ("plot.png", "plot.svg"):
        (tmp_path / name).touch()
    empty = SimpleNamespace(artefact=SimpleNamespace(form="rows"), states=None, rows=[], metrics=[])
    assert write_plots(empty, tmp_path) == [] and not list(tmp_path.iterdir())


def test_a_copy_of_a_video_that_was_broken_off_is_not_taken_for_the_video(tmp_path, monkeypatch):
    source, copy = tmp_path / "a.mp4", tmp_path / "videos" / "a.mp4"
    source.write_bytes(b"whole")

    def broken_off(_, target, **options):
        target.write_bytes(b"wh")
        raise Terminated

    with monkeypatch.context() as patched, pytest.raises(Terminated):
        patched.setattr("shutil.copyfile", broken_off)
        bring(source, copy)
    assert not copy.parent.exists()
    bring(source, copy)
    assert copy.read_bytes() == b"whole"


# tells what it sees as soon as every video plays, and at the latest after nine seconds
PROBE = """<script>const all = [...document.querySelectorAll('video')], began = Date.now();
const looking = setInterval(() => { const ready = all.filter(v => v.readyState >= 2 && v.videoWidth).length;
const playing = all.filter(v => !v.paused).length, broken = [...document.images].filter(i => !i.naturalWidth).length;
if ((ready < all.length || playing < all.length) && Date.now() - began < 9000) return;
clearInterval(looking); const told = document.body.appendChild(document.createElement('pre')); told.id = 'probe';
told.textContent = [all.length, ready, playing, broken].join(' ') }, 200)</script></body>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here: the page is not looked at in a browser")
def test_a_browser_plays_every_video_of_a_page(plan, monkeypatch, tmp_path):
    short(monkeypatch)
    argv = asked(plan, "table5")
    (page,), _ = reproduce(argv, launch=refuse)
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
    told = re.search(r'id="probe">([\d ]+)<', shown.stdout)
    assert told, shown.stderr
    videos, ready, playing, broken = map(int, told[1].split())
    assert videos == ready == playing == 5 and broken == 0


def test_results_are_replaced_section_by_section(plan, monkeypatch, tmp_path):
    short(monkeypatch)
    results = tmp_path / "RESULTS.md"
    other = (
        "<!-- begin table6 pocketscope -->\n## Table 6\n\n- **confirmed** (paper; g): 1.1 is best. X 1 against 0.\n"
        "<!-- end table6 pocketscope -->\n"
    )
    stale = "<!-- begin table5 random_world -->\nstale\n<!-- end table5 random_world -->\n"
    results.write_text(f"stale words\n{other}{stale}")
    argv = asked(plan, "table5", "--results", str(results))
    reproduce(argv, launch=refuse)
    text = results.read_text()
    assert text.count("<!-- begin table5 random_world ") == 1 and "stale" not in text and other in text
    assert "**Confirmed:**\n\n- Table 6 (pocketscope): 1.1 is best (g)\n" in text
    assert "commit" in text and "Cost: 1 trainings" in text


def test_a_page_says_what_the_plan_foresaw_and_what_was_spent(plan, monkeypatch):
    """By the stored prices a training of any length; of the log and the sidecars, the CPU seconds."""
    short(monkeypatch)
    (page,), _ = reproduce(asked(plan, "table5"), launch=refuse)
    (chain,), prices, cells = plan.chains.values(), stored_prices(True), plan.cells["table5"]
    priced = prices.training + 4 * prices.video  # two variants of two prompts
    steps = [json.loads(line) for line in (chain.run_folder / "log.jsonl").read_text().splitlines()]
    notes = [found for folder in {cell.samples.folder for cell in cells} for found, *_ in sidecars(Path(folder))]
    spent = sum(found["cpu_seconds"] for found in (*steps, *notes))
    assert len(steps) == 2 and len(notes) == 4
    sentence = f"training and sampling were to take {priced:.0f} s of CPU; they took {spent:.0f} s."
    assert sentence in page.read_text() and sentence in (page.parent / "table.md").read_text()


def test_what_a_graphics_card_made_is_held_against_the_plan_by_the_clock(plan, monkeypatch):
    """CPU seconds say nothing about a card; prices of a real model are the card's."""
    cells = plan.cells["table5"]
    prompt = cells[0].samples.prompts[0]
    notes = [({"seconds": 7.0, "cpu_seconds": 1.0, "device": "cuda:0"}, prompt, 0)]
    monkeypatch.setattr("scripts.artefacts.result.sidecars", lambda folder: notes)
    found = total_cost(cells)
    assert found.spent == pytest.approx(found.train_seconds + found.sample_seconds) and found.spent > 7


def test_noise_draws_of_one_clip_are_not_taken_for_clips_of_one_motion(plan, world_model):
    (chain,) = plan.chains.values()
    backbone, clips = Backbone.load(str(world_model), torch.float32, torch.device("cpu")), world_clips(2)[:2]
    draws = [LabelledClip(clip.label, clip.frames, seed) for clip in clips for seed in (1, 2)]
    found = compare_customizations(backbone, [("clip", load_checkpoint(chain.run_folder))] * 2, draws, "two clips")
    assert not found.read and found.similarity["untouched model", 0] == [pytest.approx([1] * 4)]
    first, second = found.similarity["TAP", 0]
    assert first == second and len(first) == 4 and torch.allclose(found.between, found.between.T)


def test_a_failed_training_is_reported_on_the_page_and_the_rest_is_done(plan, monkeypatch):
    artefact = ARTEFACTS["table5"]
    bad = Variant("another rank", ("temporal_preset=ff",))
    monkeypatch.setitem(
        ARTEFACTS, "table5", type(artefact)(**vars(artefact) | {"variants": (*artefact.variants[1:3], bad)})
    )
    argv = asked(plan, "table5")
    (page,), incomplete = reproduce(argv, lambda chain, worker: "training: the loss is nan at step 1")
    assert incomplete == 1
    html = page.read_text()
    assert "another rank on there_and_back: training: the loss is nan at step 1" in html
    assert html.count("<video") == 5 and html.count("missing</td>") == 2


def test_what_an_artefact_lacks_is_reported_on_its_page(tiny_pipeline, tmp_path):
    argv = ["table3", "--model", str(tiny_pipeline), "--smoke", "--output_dir", str(tmp_path)]
    former = "<!-- begin table3 tiny -->\nwhat was found before\n<!-- end table3 tiny -->\n"
    (tmp_path / "RESULTS.md").write_text(former.replace("tiny", tiny_pipeline.name))
    (page,), incomplete = reproduce(argv, launch=refuse)
    assert "several clips of one motion are needed" in page.read_text() and incomplete == 1
    assert "what was found before" in (tmp_path / "RESULTS.md").read_text()  # nothing replaces it


def test_a_reference_clip_that_cannot_be_read_costs_only_its_artefact(plan, monkeypatch, tmp_path):
    short(monkeypatch)
    argv = asked(plan, "figure4", "table5")

    def unreadable(cfg, snap):
        raise UserError("frames: found 3; give more")

    monkeypatch.setattr(production, "load_clips", unreadable)
    pages, _ = reproduce(argv, launch=refuse)
    assert len(pages) == 2 and all("the clip of there_and_back: frames: found 3" in page.read_text() for page in pages)


def test_a_folder_without_weights_is_one_sentence(tmp_path):
    argv = ["table4", "--model", str(tmp_path), "--output_dir", str(tmp_path)]
    with pytest.raises(UserError, match="no weights in"):
        reproduce(argv)


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


def tree(folder):
    return sorted(path for path in folder.rglob("*"))


@pytest.mark.parametrize("words", [["--dry-run"], ["lora_rank=many"], ["--slurm", "cluster=nowhere"]], ids=" ".join)
def test_a_request_that_is_only_printed_or_refused_leaves_nothing_behind(words, world_model, tmp_path, capsys):
    argv = ["figure4", "--model", str(world_model), "--world", "--output_dir", str(tmp_path / "out" / "deep"), *words]
    if words == ["--dry-run"]:
        assert reproduce(argv) == ([], 0) and "train.py" in capsys.readouterr().out
    else:
        with pytest.raises(UserError, match="lora_rank|submitit|--slurm"):
            reproduce(argv)
    assert tree(tmp_path) == []


def test_a_dry_run_keeps_the_references_that_were_there(world_model, tmp_path, capsys):
    beds.Testbed(world_model, True, tmp_path).tasks(["pause"], several=False)
    before = tree(tmp_path)
    reproduce(["figure4", "--model", str(world_model), "--world", "--output_dir", str(tmp_path), "--dry-run"])
    assert tree(tmp_path) == before and len(before) == 4


def test_names_of_others_are_escaped_in_markdown_as_they_are_in_html(tiny_pipeline, tmp_path):
    """A folder of clips may be called anything; Markdown shows HTML unless it is escaped."""
    clips = tmp_path / "<img src=x onerror=alert(1)>`|[a](b)"
    clips.mkdir()
    shutil.copy(beds.EXAMPLES / "car_turn.mp4", clips / "a.mp4")
    (clips / "a.txt").write_text("a car")
    (clips / "prompts.txt").write_text("a <script>alert(2)</script> car\n")
    argv = ["table3", "--model", str(tiny_pipeline), "--smoke", "--output_dir", str(tmp_path / "out")]
    argv += ["--clips", str(clips), "train_data.fps=0"]
    (page,), incomplete = reproduce(argv, lambda chain, worker: f"broke on {clips.name}")
    assert incomplete == 1
    for file in (page, page.parent / "table.md"):
        text = file.read_text()
        assert "broke on" in text and "&lt;img src=x" in text
        assert "<script>alert(2)" not in text
        outside_code = re.sub(r"(`+) .*? \1(?!`)", "", text)
        assert "<img src=x" not in outside_code


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("<b>&", "&lt;b&gt;&amp;"),
        ("a|b `c`", r"a\|b \`c\`"),
        ("[a](b)", r"[a\](b)"),
        ("0.5 [0.1, 0.9]", "0.5 [0.1, 0.9]"),
        ("two\nlines", "two lines"),
        ("there_and_back", "there_and_back"),
    ],
)
def test_markdown_is_escaped_no_more_than_needed(text, escaped):
    assert markdown(text) == escaped


def test_a_code_span_cannot_be_left():
    assert markdown_code("python a.py") == "`python a.py`"
    assert markdown_code("echo `b` ``c``") == "``` echo `b` ``c`` ```"


def test_the_shipped_results_are_written_as_the_command_writes_them(tmp_path):
    """Header and list of claims follow from the sections, so nothing in RESULTS.md is edited by hand."""
    shipped = production.ROOT / "RESULTS.md"
    write_sections(tmp_path / "RESULTS.md", read_sections(shipped))
    assert (tmp_path / "RESULTS.md").read_text() == shipped.read_text()
    claims = {claim.text for artefact in ARTEFACTS.values() for claim in artefact.claims}
    text = shipped.read_text()
    listed = re.findall(r"^- (?:Table|Figure [36]|Motions).*?\): (.*?) \(\S+\)$", text, re.MULTILINE)
    assert len(listed) > 50 and set(listed) <= claims


def test_a_section_is_named_by_words_that_cannot_end_its_marker(tmp_path):
    put_section(tmp_path / "R.md", ("bench", "card --> <b>"), "T", "body\n")
    assert list(read_sections(tmp_path / "R.md")) == [("bench", "card_--_b_")]
