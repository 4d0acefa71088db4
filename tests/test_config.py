"""Configuration: merging, typing, every error at once, older files, and what --help costs."""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from configs import schema
from configs.errors import UserError
from configs.paths import locate

ROOT = Path(__file__).resolve().parents[1]
CLIP = {"train_data": {"single_video_path": "a.mp4"}}
RELEASE = """
# a comment, and another order than ours
learning_rate: 5.0e-4
mixed_precision: fp16
enable_xformers_memory_efficient_attention: true
enable_torch_2_attn: true
gradient_checkpointing: true
text_encoder_gradient_checkpointing: true
train_data: {width: 384, height: 384, use_bucketing: true, sample_start_idx: 1, fps: 8, frame_step: 1, n_sample_frames:
16,
             single_video_path: ./test/carturn/car-turn.mp4, single_video_prompt: "A car is running on the road."}
validation_data:
  prompt: A horse is running in the forest.
  sample_preview: true
  num_frames: 16
  num_inference_steps: 30
  guidance_scale: 12
  spatial_scale: 0
  noise_prior: 0.5
dataset_types: [single_video]
pretrained_model_path: ./models/zeroscope_v2_576w/
output_dir: ./outputs/train/car
cache_latents: true
cached_latent_dir: null
use_unet_lora: true
lora_unet_dropout: 0.1
save_pretrained_model: false
lora_rank: 32
lora_path: ""
extra_train_data:
trainable_modules: null
train_batch_size: 1
use_offset_noise: false
offset_noise_strength: 0.1
rescale_schedule: false
extend_dataset: false
logger_type: tensorboard
resume_step: null
random_hflip_img: -1
eval_train: false
"""


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def load(*argv: str):
    return schema.load(list(argv), description="test")


def test_files_merge_in_order_and_words_win(tmp_path):
    first = write(
        tmp_path, "a.yaml", "lora_rank: 4\nmax_train_steps: 5\ntrain_data: {single_video_path: a.mp4, fps: 4}\n"
    )
    second = write(tmp_path, "b.yaml", "lora_rank: 8\ntrain_data: {fps: 6}\n")
    cfg, dry_run = load("--config", first, f"--config={second}", "train_data.fps=2", "--dry-run")
    assert dry_run
    assert (cfg.lora_rank, cfg.max_train_steps, cfg.train_data.fps, cfg.train_data.single_video_path) == (
        8,
        5,
        2,
        "a.mp4",
    )


def test_release_files_run_unchanged_and_each_obsolete_key_is_explained_once(tmp_path, capsys):
    cfg, _ = load("--config", write(tmp_path, "car.yaml", RELEASE))
    assert cfg.validation_data.prompt == ["A horse is running in the forest."]
    assert (cfg.learning_rate, cfg.lora_rank, cfg.train_data.n_sample_frames) == (5e-4, 32, 16)
    notes = capsys.readouterr().err.splitlines()
    assert sum("enable_xformers" in line for line in notes) == 1
    assert all(line.startswith("note: ") for line in notes)


@pytest.mark.parametrize(("old", "acts"), [("true", False), ("false", True), ("null", True)])
def test_the_old_switch_of_the_training_mode_still_silences_the_frozen_models_dropout(old, acts, tmp_path):
    cfg, _ = load(
        "--config", write(tmp_path, "old.yaml", f"eval_train: {old}\ntrain_data: {{single_video_path: a.mp4}}\n")
    )
    assert cfg.frozen_dropout is acts


def test_every_error_is_reported_at_once_with_a_suggestion(tmp_path):
    file = write(
        tmp_path, "bad.yaml", "lora_rnk: 4\nmethod: lora2\ntrain_data: {widht: 3, height: 100, single_video_path: a}\n"
    )
    with pytest.raises(UserError) as caught:
        load("--config", file, "learning_rate=fast", "embeddings.blocks=[dwn]", "width=64")
    text = str(caught.value)
    for part in (
        "lora_rank?",
        "lora2",
        "train_data.width?",
        "100 must be a multiple of 8",
        "learning_rate",
        "dwn",
        "train_data.width or validation_data.width?",
        "bad.yaml",
    ):
        assert part in text


def test_guidance_is_no_training_and_one_sentence_says_what_to_run(tmp_path):
    file = write(tmp_path, "guided.yaml", "method: guidance\n")
    for words in (["method=guidance"], ["--config", file]):
        with pytest.raises(UserError, match="^[^\n]*guidance needs no training; sample with .*--guide CLIP[^\n]*$"):
            load(*words)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "list"),
        ("a: [1\n", "not plain YAML"),
        ("train_data: 3\n", "section"),
        ("output_dir: ${nowhere}\n", "nothing is looked up"),
    ],
)
def test_files_that_are_no_configuration_are_errors(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        load("--config", write(tmp_path, "x.yaml", text), "train_data.single_video_path=a")


def test_a_missing_file_and_a_wrong_flag_are_errors():
    with pytest.raises(UserError, match="no such configuration file"):
        load("--config", "configs/caar.yaml")
    with pytest.raises(UserError, match="did you mean --dry-run"):
        load("--dryrun")
    with pytest.raises(UserError, match="--config: no file"):
        load("--config")


@pytest.mark.parametrize(
    "change",
    [
        {"lora_rank": 0},
        {"lora_unet_dropout": 1.5},
        {"train_data.fps": -1},
        {"min_timestep": 500, "max_timestep": 100},
        {"pli_threshold": 1000},
        {"dataset_types": ["folder"]},
        {"dataset_types": ["vidoes"]},
        {"dataset_types": []},
        {"extra_train_data": [{"path": "x"}]},
        {"train_batch_size": 0},
        {"train_batch_size": 2, "gradient_accumulation_steps": [1]},
        {"train_batch_size": 2, "gradient_accumulation_steps": "two"},
        {"inversion_steps": 1000},
        {"validation_data.num_inference_steps": 1000},
        {"appearance_highway.beta": 0},
    ],
)
def test_impossible_values_are_errors(change):
    with pytest.raises(UserError):
        schema.from_dict({**CLIP, **change})


def test_yaml_words_that_mean_false_are_read_as_choices():
    cfg = schema.from_dict({**CLIP, "mixed_precision": False, "appearance_highway": {"use": False}})
    assert (cfg.mixed_precision, cfg.appearance_highway.use) == ("no", "off")


def test_null_means_the_default_and_previews_follow_the_training_size():
    cfg = schema.from_dict(
        {"seed": None, "train_data": {"single_video_path": "a", "width": 64, "height": 32, "n_sample_frames": 8}}
    )
    assert cfg.seed == 0
    assert (cfg.validation_data.width, cfg.validation_data.height, cfg.validation_data.num_frames) == (64, 32, 8)


def test_old_batch_size_becomes_accumulation(capsys):
    cfg = schema.from_dict({**CLIP, "train_batch_size": 2, "gradient_accumulation_steps": 3})
    assert cfg.gradient_accumulation_steps == 6
    assert "gradient_accumulation_steps is 6" in capsys.readouterr().err


def test_old_batch_size_multiplies_what_any_other_origin_accumulates(tmp_path):
    file = write(tmp_path, "a.yaml", "gradient_accumulation_steps: 3\ntrain_data: {single_video_path: a}\n")
    old = write(tmp_path, "old.yaml", "train_batch_size: 2\n")
    words = ("train_batch_size=2", "gradient_accumulation_steps=4")
    assert load("--config", file, words[0])[0].gradient_accumulation_steps == 6
    assert load("--config", file, *words)[0].gradient_accumulation_steps == 8
    assert load("--config", file, *reversed(words))[0].gradient_accumulation_steps == 8
    assert load("--config", file, "--config", old, "train_batch_size=1")[0].gradient_accumulation_steps == 3


def test_old_keys_that_ask_for_what_is_not_done_here_say_so_and_the_file_runs(capsys):
    keys = ("use_offset_noise", "train_text_encoder", "rescale_schedule")
    schema.from_dict({**CLIP, **dict.fromkeys(keys, True)})
    said = capsys.readouterr().err
    assert all(f"note: {key} " in said for key in keys)


def test_a_tilde_in_output_folders_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = schema.from_dict({**CLIP, "output_dir": "~/runs", "cache_dir": "~/cache"})
    assert (cfg.output_dir, cfg.cache_dir) == (f"{tmp_path}/runs", f"{tmp_path}/cache")
    assert schema.from_dict(CLIP).output_dir == "./outputs/train"


def test_yaml_round_trip_is_exact():
    cfg = schema.from_dict({**CLIP, "lora_rank": 7, "embeddings.widths": [64], "initial_noise.strategy": "fft"})
    assert schema.from_dict(yaml.safe_load(schema.to_yaml(cfg))) == cfg


def test_fallback_is_used_only_without_the_model_and_only_when_none_was_asked_for(tmp_path, capsys):
    small = write(tmp_path, "small.yaml", "pretrained_model_path: tiny\nlora_rank: 2\n")
    big = write(
        tmp_path,
        "big.yaml",
        f"pretrained_model_path: {tmp_path}/big\nfallback: {small}\ntrain_data: {{single_video_path: a}}\n",
    )
    cfg, _ = load("--config", big, "max_train_steps=3")
    assert (cfg.pretrained_model_path, cfg.lora_rank, cfg.max_train_steps) == ("tiny", 2, 3)
    assert "falling back" in capsys.readouterr().err
    asked, _ = load("--config", big, "pretrained_model_path=elsewhere")
    assert (asked.pretrained_model_path, asked.lora_rank) == ("elsewhere", 32)
    (tmp_path / "big").mkdir()
    assert load("--config", big)[0].lora_rank == 32


def test_files_after_the_one_with_a_fallback_still_win(tmp_path, capsys):
    small = write(tmp_path, "small.yaml", "pretrained_model_path: tiny\nlora_rank: 2\nlearning_rate: 0.1\n")
    big = write(
        tmp_path,
        "big.yaml",
        f"pretrained_model_path: {tmp_path}/big\nfallback: {small}\nlearning_rate: 0.3\n"
        "train_data: {single_video_path: a}\n",
    )
    method = write(tmp_path, "method.yaml", "learning_rate: 0.2\n")
    cfg, _ = load("--config", big, "--config", method)
    assert (cfg.pretrained_model_path, cfg.lora_rank, cfg.learning_rate) == ("tiny", 2, 0.2)


@pytest.mark.parametrize(
    "caption",
    [
        "A car with the number #7",
        "A red car: top view",
        "[wide shot] a dog",
        "'Hello' he said",
        "a ${x} b",
        "no",
        "2024_01_05",
    ],
)
def test_a_caption_on_the_command_line_is_taken_as_it_is(caption):
    word = f"train_data.single_video_prompt={caption}"
    cfg, _ = load("train_data.single_video_path=a", word, f"validation_data.prompt={caption} again")
    assert cfg.train_data.single_video_prompt == caption and list(cfg.validation_data.prompt) == [f"{caption} again"]
    stored = schema.from_dict(yaml.safe_load(schema.to_yaml(cfg)))
    assert stored.train_data.single_video_prompt == caption


def test_quoted_text_lists_and_null_are_still_yaml():
    cfg, _ = load(
        "train_data.single_video_path=a",
        "train_data.single_video_prompt='a: b'",
        "validation_data.prompt=[a, b]",
        "resume_from_checkpoint=null",
    )
    assert cfg.train_data.single_video_prompt == "a: b" and list(cfg.validation_data.prompt) == ["a", "b"]
    assert cfg.resume_from_checkpoint is None


def test_paths_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("configs/schema.py") == ROOT / "configs/schema.py"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/schema.py").touch()
    assert locate("configs/schema.py") == Path("configs/schema.py")


def test_help_names_every_key_within_half_a_second_without_torch():
    code = (
        "import sys; from configs import schema\n"
        "try: schema.load(['--help'], description='Trains.')\n"
        "finally: assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 2  # half a second on a quiet machine; tests share theirs
    assert done.stdout.startswith("Trains.")
    assert all(f"  {name}: " in done.stdout for name in schema.KEYS)


def test_every_key_has_a_line_of_help_and_a_row_in_the_table():
    assert all(entry.metadata["help"] for entry in schema.KEYS.values())
    page = (ROOT / "configs/README.md").read_text()
    assert schema.markdown_tables() in page, "write it anew: python -m configs.schema"
    assert all(page.count(f"\n| `{name}` | ") == 1 for name in schema.KEYS)


SHIPPED = sorted((ROOT / "configs").glob("**/*.yaml"))


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in SHIPPED])
def test_shipped_files_load_and_open_with_their_command(name):
    text = (ROOT / name).read_text()
    assert text.startswith("# ")
    head = "".join(line for line in text.splitlines() if line.startswith("#"))
    assert ("scripts/reproduce.py" if "/reproduce/" in name else "python train.py --config") in head
    base = (
        []
        if Path(name).parent.name == "configs" and Path(name).name not in ("pocket.yaml", "wan.yaml")
        else ["train_data.single_video_path=a.mp4"]
    )
    load("--config", name, *base)


PAGES = [*SHIPPED, *sorted((ROOT / "configs").glob("**/README.md"))]


@pytest.mark.parametrize("name", [str(path.relative_to(ROOT)) for path in PAGES])
def test_the_commands_that_a_page_or_a_file_names_are_understood(name):
    for line in (ROOT / name).read_text().splitlines():
        if found := re.search(r"^(?:#\s+)?python train.py (.*)$", line):
            schema.load([*shlex.split(found[1])], description="")


def test_the_page_of_methods_names_every_method_and_no_other():
    page = (ROOT / "configs/methods/README.md").read_text()
    advice, costs = (set(re.findall(r"`([a-z_]+)`", part)) for part in page.split("## What each costs"))
    files = {path.stem for path in (ROOT / "configs/methods").glob("*.yaml")}
    assert files - advice == {"motion_inversion_debiased", "motion_inversion_hybrid"}, "variants of one that it names"
    assert advice <= files and costs == files


def test_every_preset_that_can_be_asked_for_exists():
    from typing import get_args

    from models.backbones import PRESETS

    assert set(get_args(schema.KEYS["temporal_preset"].type)) == set(PRESETS) - {"appearance"}
