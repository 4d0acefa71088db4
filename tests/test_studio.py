"""The page of scripts/app.py without Gradio: what is accepted, what is cut, which command that is, what is served."""

import re
import shutil

import pytest
import torch
from omegaconf import OmegaConf

import train
from configs.errors import UserError
from configs.files import atomic_path
from configs.paths import locate
from configs.schema import load
from data.clips import Cut, read_video
from infer.video import write_video
from scripts.artefacts.testbed import prompt_list
from scripts.studio import gallery, library, markup, takeaway, uploads
from scripts.studio.excerpt import Length, choose, measure
from scripts.studio.places import ROUTE, Places, short
from scripts.studio.recipe import METHODS, Recipe, configuration, is_small, preset
from scripts.studio.runs import Run, find_run, find_runs
from scripts.studio.sampling import dials_of_model
from scripts.studio.server import allowed
from scripts.studio.takeaway import VIDEOS, commands, keep_command, line, prepare, train_words

from conftest import ROOT
from scenes import square

MODEL, TRANSFORMER = (str(ROOT / "models" / name) for name in ("pocketscope", "pocketscope_dit"))
CLIP = ROOT / "data/examples/pocket_there_and_back.mp4"


@pytest.fixture
def places(tmp_path):
    found = Places.below(tmp_path / "outputs")
    found.prepare()
    return found


def uploaded(places, name, content=None):
    """A file as Gradio leaves it: in a folder of its own among what is served."""
    path = places.own / "a1b2" / name
    path.parent.mkdir(exist_ok=True)
    if content is None:
        shutil.copy(CLIP, path)
    else:
        path.write_bytes(content)
    return path


def test_the_page_opens_with_the_models_own_steps_and_guidance(tmp_path):
    assert dials_of_model(MODEL) == {"solver": "ddim", "num_steps": 6, "guidance_scale": 4.0}
    assert dials_of_model(TRANSFORMER)["solver"] == "unipc"
    assert dials_of_model(str(tmp_path)) == {"solver": "ddim", "num_steps": 30, "guidance_scale": 12.0}, "ZeroScope's"


# uploads


def test_an_upload_is_kept_under_a_plain_name_in_its_folder(places):
    kept = uploads.accept(uploaded(places, "my clip; rm -rf $(x) ü.MP4"), places)
    assert kept.parent == places.uploads and kept.read_bytes() == CLIP.read_bytes()
    assert set(kept.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.")
    assert uploads.accept(uploaded(places, "my clip; rm -rf $(x) ü.MP4"), places) == kept


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("notes.txt", b"hello", "a .txt file where a video is needed"),
        ("clip", b"hello", "a file without an ending"),
        ("clip.mp4", b"", "the file is empty"),
        ("clip.mp4", b"no video at all" * 99, "not a video that can be decoded"),
        ("clip.gif", b"GIF89a", "not a gif that can be read"),
        ("..\\..\\clip.mp4", b"", "is no plain file name"),
        (".clip.mp4", b"", "is no plain file name"),
    ],
)
def test_a_bad_upload_ends_in_one_sentence_and_leaves_nothing(places, name, content, sentence):
    with pytest.raises(UserError) as error:
        uploads.accept(uploaded(places, name, content), places)
    assert sentence in str(error.value) and "\n" not in str(error.value) and str(places.own) not in str(error.value)
    assert not any(places.uploads.iterdir())


def test_names_with_slashes_are_refused():
    for name in ("../../etc/passwd.mp4", "/etc/clip.mp4", "a/b.mp4"):
        with pytest.raises(UserError, match="no plain file name"):
            uploads.check_name(name)


def test_an_upload_that_is_too_large_is_refused_before_it_is_copied(places, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="cut out the seconds"):
        uploads.accept(uploaded(places, "clip.mp4"), places)
    assert not any(places.uploads.iterdir())


def test_only_what_was_uploaded_here_is_accepted(places, tmp_path):
    outside = tmp_path / "clip.mp4"
    shutil.copy(CLIP, outside)
    link = places.own / "link.mp4"
    link.symlink_to(outside)
    for path in (outside, link, places.own / ".." / ".." / "clip.mp4"):
        with pytest.raises(UserError, match="was not uploaded here"):
            uploads.accept(path, places)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "it is empty"),
        ("   \n ", "it is empty"),
        ("a <b>car</b>", "found HTML"),
        ("<script>alert(1)</script>", "found HTML"),
        ("<img src=x onerror=alert(1)>", "found HTML"),
        ("a\0b", "no text"),
        ("a \ud800", "no text"),
        ("car " * 500, "letters, more than"),
    ],
)
def test_a_bad_caption_ends_in_one_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence):
        uploads.caption(text)


def test_captions_are_plain_text_on_one_line():
    assert uploads.caption("  a car,\n 3 < 4 & so on ") == "a car, 3 < 4 & so on"


def test_prompts_are_lines():
    assert uploads.prompts("a car\n\n a dog \na car") == ["a car", "a dog"]
    for text, sentence in (("", "none was given"), ("x\n" * 9, "more than 8"), ("--model /x", "begins with a dash")):
        with pytest.raises(UserError, match=sentence):
            uploads.prompts(text)


# what is served


def test_only_files_of_the_own_folder_are_served(places, tmp_path):
    mine = places.files / "a.zip"
    mine.write_bytes(b"x")
    (places.own / "link").symlink_to("/etc/passwd")
    assert allowed(f"/{ROUTE}{mine}", places) and allowed("/", places) and allowed("/gradio_api/upload", places)
    for path in (
        "/etc/passwd",
        ROOT / "train.py",
        places.own / ".." / "train" / "config.yaml",
        places.own / "link",
        "../../../../etc/passwd",
        "relative.mp4",
        "http://example.org/x.mp4",
        f"{places.own}-other/x.mp4",
    ):
        assert not allowed(f"/{ROUTE}{path}", places), path
    assert not allowed("/gradio_api/file%3D/etc/passwd", places) and not allowed("/gradio_api/file/etc/passwd", places)
    assert not allowed("/gradio_api/proxy=http://example.org", places)


def test_what_is_shown_is_a_copy_named_by_its_content(places, tmp_path):
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(CLIP, tmp_path / name)
    first, second = places.show(tmp_path / "a.mp4"), places.show(tmp_path / "b.mp4")
    assert first == second and allowed(f"/{first}", places)
    for name in ("config.yaml", "passwd"):
        (tmp_path / name).write_text("secret")
        with pytest.raises(UserError, match="is not shown"):
            places.show(tmp_path / name)
    with pytest.raises(UserError, match="outside the page's own folder"):
        places.address(tmp_path / "a.mp4")


def test_texts_of_others_are_escaped():
    assert "<b>" not in markup.note("<b>") + markup.video("x", "<b>", download='"><b>') + markup.in_step([], "<b>")


# the cut


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    """Four seconds at 24 frames a second."""
    return write_video(
        tmp_path_factory.mktemp("clips") / "long.mp4", torch.from_numpy(square(96)).permute(0, 3, 1, 2), fps=24
    )


@pytest.mark.parametrize("first, seconds", [(0, 2), (1, 1), (1.5, 2.5), (0.3, 0.4), (3, 1)])
def test_trimming_takes_frames_inside_the_chosen_seconds(long_clip, first, seconds):
    cut = choose(long_clip, measure(long_clip), first, seconds, 8)
    assert len(cut.taken) == 8 and cut.taken[0] == round(first * 24)
    assert cut.taken[-1] < (first + seconds) * 24 + 1e-6
    wider = (cut.taken[1] - cut.taken[0] + 1) * 7 + cut.taken[0]
    assert wider >= (first + seconds) * 24 - 1e-6, "a wider spacing would have fitted"


def test_the_keys_of_a_cut_give_its_frames(long_clip):
    """The words of the command cut what the page shows."""
    cut = choose(long_clip, measure(long_clip), 1.2, 1.5, 8)
    cfg = configuration(MODEL, long_clip, cut.words())
    read = read_video(long_clip, Cut(64, 64, 8, cfg.train_data.fps, 1, cfg.train_data.sample_start_idx - 1, None), "")
    whole = read_video(long_clip, Cut(64, 64, 96, 0, 1, 0, None), "")
    assert (read.frames == whole.frames[list(cut.taken)]).all()


@pytest.mark.parametrize(
    "first, seconds, count, sentence",
    [(0, 0.2, 96, "take 0.4 seconds or more"), (3.9, 1, 96, "begin earlier"), (0, 1, 5, "give a longer clip")],
)
def test_too_few_frames_are_one_sentence(long_clip, first, seconds, count, sentence):
    with pytest.raises(UserError, match=sentence):
        choose(long_clip, Length(count, 24), first, seconds, 8)


# the command


def recipe(**changed):
    values = dict(model=MODEL, clip=CLIP, caption="a car", method="tap", steps=20, prompts=("a", "b"), seed=3)
    cut = choose(CLIP, measure(CLIP), 0, 1, 8)
    return Recipe(excerpt=cut, **(values | changed))


@pytest.mark.parametrize(
    "text",
    ["a car", "'quoted'", '"quoted"', "null", "[a, b]", "a: b, {c}", "${oc.env:HOME}", "5", "yes", "ü 'n' \"x\""],
)
def test_every_text_reaches_the_configuration_as_it_is(text, tmp_path):
    words = recipe(caption=text, prompts=(text, "second")).words(tmp_path / "run", tmp_path / "cache")
    cfg, _ = load(words[1:], description="")
    found = OmegaConf.to_container(cfg, resolve=True)
    assert found["train_data"]["single_video_prompt"] == text
    assert found["validation_data"]["prompt"] == [text, "second"]


def test_the_choices_reach_the_configuration(tmp_path):
    words = recipe(method="motiondirector").words(tmp_path / "run", tmp_path / "cache")
    cfg, _ = load(words[1:], description="")
    assert (cfg.temporal_preset, cfg.max_train_steps, cfg.seed) == ("motiondirector", 20, 3)
    assert cfg.output_dir == str(tmp_path / "run") and locate(cfg.pretrained_model_path).samefile(MODEL)
    assert cfg.validation_steps == cfg.checkpointing_steps == 7 and cfg.train_data.fps == 8


def test_a_model_of_its_own_size_takes_the_defaults_of_the_keys(tiny_pipeline, tmp_path):
    assert is_small(MODEL) and not is_small(str(tiny_pipeline))
    cfg = configuration(str(tiny_pipeline))
    assert cfg.pretrained_model_path == str(tiny_pipeline) and cfg.max_train_steps == 1000
    shutil.copytree(MODEL, tmp_path / "copy")
    assert configuration(str(tmp_path / "copy")).max_train_steps == 200


def test_a_transformer_takes_its_own_recipe_and_its_own_files_of_methods(tmp_path):
    words = recipe(model=TRANSFORMER, method="motion_inversion").words(tmp_path / "run", tmp_path / "cache")
    cfg, _ = load(words[1:], description="")
    assert locate(cfg.pretrained_model_path).samefile(TRANSFORMER) and cfg.validation_data.solver == "unipc"
    assert preset(TRANSFORMER, "motion_inversion") == "configs/methods/transformer/motion_inversion.yaml" in words
    assert preset(MODEL, "motion_inversion") == "configs/methods/motion_inversion.yaml"
    assert preset(TRANSFORMER, "tap") == "configs/methods/tap.yaml"  # one file serves both


@pytest.mark.parametrize("model", [MODEL, TRANSFORMER])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_the_page_offers_can_be_planned(model, method, tmp_path, monkeypatch):
    monkeypatch.setattr("models.training.memory.training_bytes", lambda *_: "not counted, which takes seconds")
    cfg, _ = load(recipe(model=model, method=method).words(tmp_path / "run", tmp_path / "cache")[1:], description="")
    assert "highway" in train.dry_run(cfg)


def test_every_example_has_a_caption_and_prompts(places):
    found = library.offers(places)
    assert len(found) >= 10 and found[0].path == CLIP and all(each.caption for each in found)
    assert all(library.prompts(each, MODEL) for each in found)
    assert library.prompts(found[0], MODEL) == list(prompt_list("pocket.txt")[2:4])
    with pytest.raises(UserError, match="no longer there"):
        library.offer("../../../etc/passwd", places)


def test_what_is_still_being_written_is_not_shown(places):
    """A clip that is uploaded, a video with its note: hidden until they are whole (configs/files.py)."""
    run = Run(places.train / "train_1", places.train)
    samples = places.infer / run.name / "customized"
    samples.mkdir(parents=True)
    (samples / "whole.mp4").write_bytes(b"whole")
    with (
        atomic_path(places.uploads / "clip ab12cd34.mp4") as upload,
        atomic_path(samples / "a.mp4") as video,
        atomic_path(samples / "a.json") as note,
    ):
        for path, content in (
            (upload, "half"),
            (video, "half"),
            (note, '{"video": "whole.mp4", "prompt": "a", "seed": 1}'),
        ):
            path.write_text(content)
        assert upload.parent not in {each.path.parent for each in library.offers(places)}
        assert gallery.newest(places) == gallery.gallery([])
        (samples / "whole.mp4").unlink()
        with pytest.raises(UserError, match="none was sampled"):
            prepare(VIDEOS, run, 1, places)
    assert upload.parent in {each.path.parent for each in library.offers(places)}


@pytest.mark.parametrize(("model", "kinds"), [(MODEL, {"release"}), (TRANSFORMER, {"comfyui", "musubi"})])
def test_commands_write_the_files_that_a_network_can_have(places, model, kinds):
    run = places.train / "train_1"
    run.mkdir(parents=True)
    data = "train_data: {single_video_path: clip.mp4, single_video_prompt: a clip}"
    (run / "config.yaml").write_text(f"pretrained_model_path: {model}\n{data}\n")
    told = commands(Run(run, places.train), [], 7, places)
    assert set(re.findall(r"convert\.py (\w+)", told)) == kinds | {"ours", "diffusers"}


@pytest.mark.parametrize("config", ["pretrained_model_path: somebody/elses", "no_such_key: 1"])
def test_commands_ask_no_hub_and_survive_a_damaged_configuration(places, config, monkeypatch):
    run = places.train / "train_1"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"{config}\ntrain_data: {{single_video_path: a.mp4, single_video_prompt: a}}\n")
    monkeypatch.setattr(takeaway, "kind_of_model", lambda model: pytest.fail(f"it asked for {model}"))
    assert takeaway._loras_of(Run(run, places.train)) == [*takeaway.LORAS]


# runs


def test_a_run_says_its_checkpoints_and_the_median_of_its_latest_steps(places):
    run = places.train / "train_1"
    for name in ("checkpoint-20", "checkpoint-3", "checkpoint-new"):
        (run / name).mkdir(parents=True)
    config = "max_train_steps: 40\ntrain_data: {single_video_path: clip.mp4, single_video_prompt: a clip}\n"
    (run / "config.yaml").write_text(config)
    seconds = [100.0] * 9 + [1.0] * 15 + [2.0] * 15
    (run / "log.jsonl").write_text("".join(f'{{"step": {n}, "seconds": {s}}}\n' for n, s in enumerate(seconds, 1)))
    (found,) = find_runs(places)
    assert found.checkpoints() == [3, 20]
    assert (found.progress().done, found.progress().seconds) == (39, 1.5)  # of the last 30


def test_only_runs_of_the_list_are_found(places):
    run = places.train / "a" / "train_1"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    assert [each.name for each in find_runs(places)] == ["a/train_1"]
    assert find_run(places, "a/train_1").path == run
    for name in ("/etc", "../..", "a/../a/train_1", str(run), ""):
        with pytest.raises(UserError, match="no longer there"):
            find_run(places, name)


def test_the_command_that_made_a_run_is_kept(places):
    run = places.train / "a" / "train_1"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    (found,) = find_runs(places)
    assert train_words(found)[1:] == ["--config", short(run / "config.yaml")]
    words = recipe(caption="it's a 'car'").words(run.parent, places.cache)
    keep_command(run.parent, words)
    assert train_words(found) == words and line(words).startswith("python ")
