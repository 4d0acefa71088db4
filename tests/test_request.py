"""What a sampling request comes down to, without sampling: origins of values, clips, models, limits."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configs.errors import UserError
from configs.fields import KEYS
from data.cache import CachedClip
from infer import batch, choices, options, request
from infer import generate as generating
from infer.choices import CONFIG_KEYS, FLAG_KEYS, LEAST, words_of
from infer.jobs import read_jobs
from infer.noise import STRATEGIES
from infer.prompt_file import OPTIONS, read_prompt_file
from infer.sampler import FLOW_SOLVERS, SOLVERS
from infer.settings import Settings, resolve
from models.backbones import unet3d
from models.files.checkpoint import Checkpoint
from models.highway import HighwaySettings

from conftest import ROOT

STORED = {  # as a checkpoint's header holds it: every key, whoever chose it
    "pretrained_model_path": "models/pocketscope",
    "pli_threshold": None,
    "mixed_precision": "fp16",
    "train_data": {"fps": 0},
    "validation_data": {"width": 384, "height": 384, "num_inference_steps": 30, "guidance_scale": 12.0},
    "appearance_highway": {"use": "sampling", "scope": "all", "beta": 1.1},
}


def parse(*words):
    return options.parse(["-p", "x", *map(str, words)])


@pytest.fixture
def native(tmp_path):
    (tmp_path / "sampling.json").write_text(
        '{"width": 64, "num_steps": 7, "solver": "dpm", "guidance_interval": [200, 900]}'
    )
    return tmp_path


def test_a_value_that_nobody_chose_yields_to_the_models_own(native, tmp_path):
    config = STORED | {"chosen": ["validation_data.guidance_scale", "validation_data.height"]}
    found = resolve(parse(), config, native)
    assert (found.width, found.num_steps, found.solver) == (64, 7, "dpm") and found.guidance_interval == [200, 900]
    assert {found.origins[name] for name in ("width", "num_steps", "solver", "guidance_interval")} == {"model"}
    assert (found.height, found.origins["height"]) == (384, "checkpoint")
    assert (found.guidance_scale, found.origins["guidance_scale"]) == (12.0, "checkpoint")
    assert (found.precision, found.origins["precision"]) == ("fp16", "training's default")
    assert (found.num_frames, found.origins["num_frames"]) == (16, "release's default")
    assert found.fps == 8, "0 stands for every frame of a clip, and is no rate of a video"
    (native / "sampling.json").write_text('{"fps": 16}')
    every_frame = {"chosen": ["train_data.fps"], "train_data": {"fps": 0}}
    assert resolve(parse(), STORED | every_frame, native).fps == 16, "then the model's own rate"
    assert resolve(parse(), STORED | every_frame | {"train_data": {"fps": 5}}, native).fps == 5
    (native / "sampling.json").write_text('{"fps": 0}')
    with pytest.raises(UserError, match="fps"):
        resolve(parse(), STORED, native)
    with pytest.raises(UserError, match="--spatial_path_clip: belongs to --spatial_path_folder"):
        parse("--spatial_path_clip", 1)


def test_a_configuration_that_does_not_say_what_was_chosen_counts_whole(native):
    found = resolve(parse(), STORED, native)
    assert (found.width, found.num_steps) == (384, 30) and found.origins["width"] == "checkpoint"
    assert found.solver == "dpm", "older than the key: the model's own"


def test_a_batch_of_fewer_videos_than_asked_for_is_not_too_large(tiny_pipeline, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(generating, "choose_device", lambda _: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(generating, "choose_dtype", lambda *_: None)
    monkeypatch.setattr(generating.Backbone, "load", lambda *_: SimpleNamespace(network=None, kind=unet3d))
    monkeypatch.setattr(generating, "use_threads", lambda *_: None)
    monkeypatch.setattr(generating, "latent_size", lambda *_: (2, 4, 4))
    monkeypatch.setattr(generating, "check_batch", lambda batch, *_: counted.append(batch))
    monkeypatch.setattr(generating, "guide_latents", lambda *_: pytest.fail("far enough"))
    for words, videos in ((["--batch-size", "16"], 1), (["--batch-size", "2", "-rn", "3"], 2)):
        asked = parse("-m", tiny_pipeline, "-o", tmp_path, *words)
        with pytest.raises(pytest.fail.Exception):
            list(generating.generate(asked))
        assert counted.pop() == videos


def test_a_flag_wins_over_all_and_says_what_it_replaces(native):
    chosen = STORED | {"chosen": ["validation_data.width"]}
    found = resolve(parse("-W", 96, "-s", 5), chosen, native)
    assert (found.width, found.num_steps) == (96, 5)
    assert "override: width is 96 (flag), the checkpoint has 384" in found.lines()
    assert not any("num_steps is" in line for line in found.lines()), "nobody chose 30"


def test_the_highway_is_one_value(native):
    assert resolve(parse(), STORED, native).highway() == HighwaySettings("all", 1.1, None)
    assert resolve(parse("--highway", "off"), STORED, native).highway() is None
    assert resolve(parse(), STORED, native, has_motion=False).highway() is None
    assert resolve(parse("--beta", 1.4), STORED, native).highway() == HighwaySettings("all", 1.4, None)
    assert resolve(parse(), {}, native).highway() is None
    assert resolve(parse(), {}, native, published=True).highway() == HighwaySettings("release", 1.1, [1.1, 1, 1, 1])
    off = STORED | {"appearance_highway": {"use": "off", "scope": "all", "beta": 1.1}}
    assert resolve(parse(), off, native).highway() is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--solver", "unipc", "-s", 1], "unipc is of order 2 and cannot take 1 step; use 2 or more, or ddim"),
        (["--freeu", "[1,1,1,1]", "--highway", "all"], "--freeu: its four scales belong to the release's highway"),
    ],
)
def test_values_that_contradict_each_other_are_one_sentence(words, told, tmp_path):
    with pytest.raises(UserError, match=re.escape(told)):
        resolve(parse(*words), {}, tmp_path)


def test_a_stored_interval_that_is_none_is_one_sentence(tmp_path):
    for interval in ([800, 200], [1, 2, 3]):
        config = {"validation_data": {"guidance_interval": interval}}
        with pytest.raises(UserError, match="guidance_interval: .* range of timesteps"):
            resolve(parse(), config, tmp_path)


# ---- reference clips ----


def clip(frames, inversion=True):
    latents = torch.zeros(1, 4, frames, 2, 2)
    return CachedClip(latents, None, latents if inversion else None, "a car", f"{frames} frames")


def source(part="motion", strength=1.0, appearance=1, config=None):
    checkpoint = Checkpoint(Path("run/checkpoint-1"), 1, "lora", "tap", 4, 1.0, {}, [{}] * appearance, config)
    return request.Source(Path("run"), part, strength, 0, checkpoint)


def prior(monkeypatch, clips, *words, model="nowhere", **of_source):
    """(noise prior, its origin, name of the reference) of a request with these clips beside its checkpoint."""
    monkeypatch.setattr(request, "cached_clips", lambda *_: clips)
    found = request.read_request(parse("-m", model, *words), [source(**of_source)])
    return found.settings.noise_prior, found.settings.origins["noise_prior"], found.reference and found.reference.name


def test_the_noise_prior_follows_the_number_of_reference_clips(monkeypatch):
    one, several = [clip(4)], [clip(4), clip(4)]
    chosen = {"validation_data": {"noise_prior": 0.3}, "chosen": ["validation_data.noise_prior"]}
    assert prior(monkeypatch, one) == (0.2, "release's default", "4 frames")
    assert prior(monkeypatch, several)[:2] == (0.0, "number of reference clips")
    assert prior(monkeypatch, several, "-np", 0.4)[:2] == (0.4, "flag")
    assert prior(monkeypatch, several, config=chosen)[:2] == (0.3, "checkpoint")
    assert prior(monkeypatch, one, config=chosen)[:2] == (0.3, "checkpoint")
    assert prior(monkeypatch, one, strength=0.0)[:2] == (0.0, "absence of motion")
    assert prior(monkeypatch, []) == (0.0, "absence of an inversion", None)
    assert prior(monkeypatch, [clip(4, inversion=False)])[:2] == (0.0, "absence of an inversion")
    assert prior(monkeypatch, one, "-np", 0.4, strength=0.0) == (0.4, "flag", "4 frames")
    assert prior(monkeypatch, [], "-np", 0)[:2] == (0.0, "flag")


@pytest.mark.parametrize(
    ("clips", "why"),
    [
        ([], "no cached_latents lie beside the checkpoint"),
        ([clip(1)], "that clip is an image"),
        ([clip(1, inversion=False)], "that clip is an image"),
        ([clip(4, inversion=False)], "its cache holds no inversion"),
    ],
)
def test_an_inversion_that_is_missing_is_told_to_whoever_asks_for_it_and_not_used(monkeypatch, clips, why):
    with pytest.raises(UserError, match=f"^--noise_prior: 0.4 of .* was asked for, but {why}; use 0$"):
        prior(monkeypatch, clips, "-np", 0.4)
    assert prior(monkeypatch, clips) == (0.0, "absence of an inversion", None)
    assert prior(monkeypatch, clips, strength=0.0) == (0.0, "absence of an inversion", None)


def test_a_reference_is_the_primary_clip_or_the_one_that_is_named():
    clips = [clip(4), clip(8, inversion=False)]
    assert request.choose_reference([], 3) is None
    assert [request.choose_reference(clips, number) for number in (None, 0, 1)] == [clips[1], clips[0], clips[1]]
    for number in (2, -1):
        with pytest.raises(UserError, match=f"--clip: {number} does not exist, the run has reference clips 0 to 1"):
            request.choose_reference(clips, number)


def test_a_models_own_prior_does_not_hold_for_several_clips(monkeypatch, tmp_path):
    (tmp_path / "sampling.json").write_text('{"noise_prior": 0.1}')
    assert prior(monkeypatch, [clip(4)], model=tmp_path)[0] == 0.1
    assert prior(monkeypatch, [clip(4), clip(4)], model=tmp_path)[0] == 0.0


def test_inversion_and_appearance_are_those_of_the_primary_clip(monkeypatch):
    clips = [clip(1), clip(4), clip(8), clip(8)]
    assert prior(monkeypatch, clips)[2] == "8 frames"
    held = source("appearance", appearance=4)
    assert request._appearance_clip(parse(), "run", held.folder, held.checkpoint) == 2
    assert request._appearance_clip(parse("--clip", 1), "run", held.folder, held.checkpoint) == 1
    single = source("appearance", appearance=1)
    assert request._appearance_clip(parse("--clip", 3), "run", single.folder, single.checkpoint) == 0
    for number in (4, -1):
        with pytest.raises(UserError, match=f"clips 0 to 3, number {number} was asked for"):
            request._appearance_clip(parse("--clip", number), "run", held.folder, held.checkpoint)
    monkeypatch.setattr(request, "cached_clips", lambda *_: [])
    assert request._appearance_clip(parse(), "run", held.folder, held.checkpoint) == 0


# ---- the model ----


def trained_on(model):
    return [SimpleNamespace(checkpoint=SimpleNamespace(config={"pretrained_model_path": model}))]


def test_no_checkpoint_decides_what_is_fetched(tiny_pipeline):
    assert request.model_path(parse(), trained_on(str(tiny_pipeline))) == str(tiny_pipeline)
    assert request.model_path(parse("-m", "some/body"), trained_on("else/where")) == "some/body"
    for sources in (trained_on("attacker/model"), trained_on("\x1b[2Jmodel")):
        with pytest.raises(UserError, match="is no folder here; give the folder of that model, or its hub id") as error:
            request.model_path(parse(), sources)
        assert error.value.args[0].isprintable()
    with pytest.raises(UserError, match="no checkpoint names the model it belongs to"):
        request.model_path(parse(), [SimpleNamespace(checkpoint=SimpleNamespace(config={"seed": 1}))])


# ---- flags ----


def test_the_flags_choices_are_those_that_exist():
    assert set(words_of("solver")) == SOLVERS.keys() | FLOW_SOLVERS.keys()
    assert words_of("noise_strategy") == tuple(STRATEGIES)
    assert choices.RELEASE.keys() == CONFIG_KEYS.keys()


NUMBERS = [flag for flag, key in FLAG_KEYS.items() if "high" in KEYS[key].metadata]
FREE = {"prompt", "output_dir", "device"}  # flags of a key's name that may be any text


def values_at_the_limits(flag):
    """(accepted, refused): numbers on both sides of the limits of a flag's key."""
    entry = KEYS[FLAG_KEYS[flag]]
    limits, is_whole = entry.metadata, "int" in str(entry.type)
    low, step = LEAST.get(flag, limits.get("low", limits.get("above"))), 1 if is_whole else 1e-3
    accepted = [limits["high"], low + step if "above" in limits else low]
    refused = [limits["high"] + limits.get("multiple", step), low if "above" in limits else low - step]
    return accepted, refused + [low + 1] * ("multiple" in limits) + [low + 0.5] * is_whole


@pytest.mark.parametrize("flag", NUMBERS)
def test_a_flag_has_the_limits_of_its_key(flag):
    accepted, refused = values_at_the_limits(flag)
    upwards = [KEYS[FLAG_KEYS[flag]].metadata["high"]] if flag == "guidance_interval" else []
    for value in accepted:
        found = getattr(parse(f"--{flag}", value, *upwards, "--checkpoint_folder", "run"), flag)
        assert found == ([value, *upwards] if upwards or flag == "seed" else value)
    for value in [*refused, "nan", "x"]:
        sentence = rf"^argument .*--{flag}.*: '{value}' is no (whole|finite) number (from|above) .*$"
        with pytest.raises(UserError, match=sentence):
            parse(f"--{flag}", value, *upwards)


@pytest.mark.parametrize("option", [option for option, flag in OPTIONS.items() if flag in NUMBERS])
def test_an_option_of_a_line_has_the_limits_of_its_flag(option, tmp_path):
    accepted, refused = values_at_the_limits(OPTIONS[option])
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a --{option} {value}\n" for value in accepted))
    assert [line.flags[OPTIONS[option]] for line in read_prompt_file(str(file))] == accepted
    for value in refused:
        file.write_text(f"a --{option} {value}")
        with pytest.raises(UserError, match=f"line 1: --{option} is .*, no (whole|finite) number from"):
            read_prompt_file(str(file))


@pytest.mark.parametrize("flag", [flag for flag in FLAG_KEYS if words_of(flag)])
def test_a_word_is_one_of_its_keys(flag):
    for word in words_of(flag):
        assert getattr(parse(f"--{flag}", word), flag) == word
    with pytest.raises(UserError, match=f"--{flag}.*: invalid choice: 'other'"):
        parse(f"--{flag}", "other")


def test_no_flag_with_the_name_of_a_key_has_limits_of_its_own():
    named = {key.rpartition(".")[2] for key in KEYS} & vars(parse()).keys()
    refused_by_the_model = {"temporal_preset"}  # which names the presets of its kind
    assert named - FREE - refused_by_the_model <= FLAG_KEYS.keys() <= vars(parse()).keys()


def test_a_rate_of_no_frames_is_refused_although_its_key_takes_it():
    with pytest.raises(UserError, match="'0' is no whole number from 1 to 1000"):
        parse("--fps", 0)


def test_help_states_the_defaults_that_act(capsys):
    with pytest.raises(SystemExit):
        options.parse(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name in ("num_steps", "guidance_scale", "width", "fps", "solver", "noise_strategy"):
        value = choices.RELEASE[name]
        last = f"{value:g}" if isinstance(value, float) else value
        assert f"(default: as chosen for the training, else the model's own, else {last})" in told, name
    assert "else 0.2 with one reference clip; 0 with several" in told
    assert "the first of those with the most frames" in told


def test_an_interval_upside_down_is_refused():
    with pytest.raises(UserError, match=re.escape("[700.0, 300.0] is not a range of timesteps")):
        parse("--guidance_interval", 700, 300)
    assert parse("--guidance_interval", 0, 1000).guidance_interval == [0, 1000]
    assert parse("--guidance_interval", 500, 500).guidance_interval == [500, 500]


def test_videos_are_counted_before_they_are_listed():
    began = time.process_time()
    with pytest.raises(UserError, match="2,147,483,648 videos, more than 100,000; ask for fewer at a time"):
        read_jobs(parse("--repeat_num", 2**31))
    assert time.process_time() - began < 1
    assert read_jobs(parse("y", "-r", 3, 9, "-rn", 2)) == [(p, s) for p in "xy" for s in (3, 4, 9, 10)]


def test_a_prompt_that_is_no_text_is_one_sentence(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xff\xfe a cat")
    for words in (["-p", "\udcff"], ["-p", "x", "-n", "\udcff"], ["--prompt_file", str(file)]):
        with pytest.raises(UserError, match="UTF-8"):
            read_jobs(options.parse(words))


# ---- attention ----


def sized(width, height, guidance=12.0):
    settings = Settings()
    for name, value in (("width", width), ("height", height), ("guidance_scale", guidance)):
        settings.choose(name, ("flag", value))
    return settings


def test_the_largest_batch_is_the_one_whose_sequences_fit():
    at_384, each = sized(384, 384), unet3d.sequences(48, 48)
    batch.check_batch(14, at_384, each)  # 14 x 2 x 2304 = 64,512
    with pytest.raises(UserError, match="15 of 384 x 384 are 69,120 sequences .* use --batch-size 14"):
        batch.check_batch(15, at_384, each)
    batch.check_batch(28, sized(384, 384, guidance=1), each)  # one half
    batch.check_batch(1, sized(2040, 1024), unet3d.sequences(255, 128))  # 65,280
    with pytest.raises(UserError, match="use a smaller --width and --height"):
        batch.check_batch(1, sized(2056, 1024), unet3d.sequences(257, 128))  # 65,792


# ---- the command ----


def test_ctrl_c_in_the_imports_is_one_word():
    code = (
        "import sys, runpy\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        f"sys.argv = ['infer.py', '-p', 'x']; runpy.run_path({str(ROOT / 'infer/infer.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ}
    )
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr
