"""What a configuration refuses in one brief sentence: values without limits, of the wrong kind, or with a trap."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs import schema
from configs.checks import no_interval
from configs.errors import UserError
from configs.fields import KEYS
from configs.key import default_of, type_words
from configs.plain import read_yaml
from configs.stored import stored_config

ROOT = Path(__file__).resolve().parents[1]
CLIP = "train_data.single_video_path=a"
DATA = {"train_data": {"single_video_path": "a"}}


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        schema.load([CLIP, *words], description="test")
    return str(caught.value)


WORDS = [
    ("seed=18446744073709551616", "at most 9223372036854775807"),
    ("seed=${nope}", "nothing is looked up"),
    ("seed=${oc.env:HOME}", "nothing is looked up"),
    ("seed=${seed}", "nothing is looked up"),
    (f"seed={'${' * 500}", "nothing is looked up"),
    ("output_dir=${oc.env:HOME}/runs", "nothing is looked up"),
    ("seed=!!int x", "tag"),
    ("seed=!!timestamp 2020-99-99", "tag"),
    ("gradient_checkpointing=!!bool nope", "tag"),
    ("lora_rank=!!python/object/apply:os.system [id]", "tag"),
    ("seed=2020-99-99", "cannot be read as int"),
    (f"seed={'9' * 5000}", "5000 digits"),
    (f"seed='{'9' * 5000}'", "5000 characters"),
    (f"learning_rate=1{'0' * 400}", "digits|cannot"),
    ("seed=true", "in place of int"),
    ("seed=1.5", "cannot be read as int"),
    ("dataset_types=[[single_video]]", "in place of a single value"),
    ("validation_data.prompt=[[a]]", "in place of a single value"),
    ("validation_data.prompt=[{A horse: running}]", "quotes"),
    ("validation_data.prompt=[no]", "quotes"),
    ("extra_train_data=5", "1 more sources"),
    ("train_batch_size=1000000000000", "whole number"),
    ("output_dir=a\0b", "NUL"),
    ("output_dir=\x1b[31mx", "acts on a terminal"),
    ("cache_dir=a\u202eb", "acts on a terminal"),
    ("cache_dir=a\0b", "NUL"),
    ("train_data.single_video_prompt=a\0b", "NUL"),
    ("train_data.single_video_prompt=\udcff", "UTF-8"),
    (f"cache_dir={'x/' * 5000}", "10000 characters"),
    ("embeddings.widths=[]", "empty"),
    ("embeddings.widths=[0]", "at least 1"),
    ("embeddings.blocks=[]", "empty"),
    ("validation_data.guidance_interval=[800, 200]", "[800.0, 200.0] is not a range of timesteps from low to high"),
    ("validation_data.guidance_interval=[1, 2, 3]", "is not a range of timesteps"),
    ("validation_data.guidance_interval=[-1, 2]", "at least 0"),
    ("validation_data.guidance_interval=[0, 1001]", "at most 1000"),
    ("validation_data.guidance_interval=[0, .nan]", "finite"),
    ("validation_data.solver=heun", "ddim | euler | unipc | dpm"),
    ("train_data.width=8000000000000000000000000000000", "at most 8192"),
    ("train_data.n_sample_frames=1e30", "cannot be read as int"),
    ("timesteps_per_step=1000000000", "at most 1000"),
    ("embeddings.max_frames=1000000000000", "at most 4096"),
    ("chosen=[seed]", "the program writes"),
]


@pytest.mark.parametrize(("word", "printed"), WORDS, ids=[word[:40] for word, _ in WORDS])
def test_a_refused_value_is_one_brief_sentence(word, printed):
    text = refusal(word)
    assert printed in text or any(part in text for part in printed.split("|"))
    assert "\n" not in text and len(text) < 400


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "inf", "-inf", "nan", "1e1000", 10**400])
@pytest.mark.parametrize("name", [name for name, entry in KEYS.items() if "float" in type_words(entry)])
def test_no_number_may_be_infinite(name, value):
    with pytest.raises(UserError, match=name):
        schema.from_dict({**DATA, name: [0, value] if "list" in type_words(KEYS[name]) else value})


@pytest.mark.parametrize("name", [name for name, entry in KEYS.items() if "int" in type_words(entry)])
def test_no_whole_number_is_without_limits(name):
    for value in (-1, 2**63, 10**12 if name != "seed" else 2**64):
        with pytest.raises(UserError, match=name):
            schema.from_dict({**DATA, name: [value] if "list" in type_words(KEYS[name]) else value})


def test_the_largest_seed_and_the_edges_of_limits_are_accepted():
    assert schema.from_dict({**DATA, "seed": 2**63 - 1}).seed == 2**63 - 1
    for name, entry in KEYS.items():
        edges = [entry.metadata[edge] for edge in ("low", "high") if edge in entry.metadata]
        for edge in edges:
            value = (
                [0, edge]
                if name == "block_range" or "guidance_interval" in name
                else [edge]
                if "list" in type_words(entry)
                else edge
            )
            others = {"max_timestep": 999} if name == "min_timestep" else {}
            if not (value == [0, 0]):
                schema.from_dict({**DATA, **others, name: value})


@pytest.mark.parametrize(
    "default", [default_of(entry) for entry in KEYS.values() if isinstance(default_of(entry), str)]
)
def test_defaults_fit_their_own_keys(default):
    assert "${" not in default and "\0" not in default


def test_a_long_value_and_a_long_key_are_shown_in_their_beginning():
    for word in ("lr_scheduler=" + "x" * 100_000, "k" * 100_000 + "=1", "x" * 100_000):
        assert len(refusal(word)) < 400


def test_a_file_of_ten_thousand_wrong_keys_is_a_short_message(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("".join(f"key_{i}: 1\n" for i in range(10_000)))
    text = refusal("--config", str(file))
    assert text.startswith("10000 things are wrong") and text.endswith("more") and len(text) < 4000


def test_control_characters_never_reach_the_terminal(tmp_path):
    file = tmp_path / "wrong.yaml"
    for text in (
        '"\\e]0;title\\a": 1',
        'lr_scheduler: "\\e[31mred"',
        'base: "\\e[31mred"',
        'dataset_types: ["\\e[31m"]',
    ):
        file.write_text(text)
        assert refusal("--config", str(file)).isprintable()
    assert refusal("\x1b[31mred=1").isprintable() and refusal("\x1b[31mred").isprintable()


@pytest.mark.parametrize(
    "text",
    ["seed: !!timestamp 2020-99-99", "gradient_checkpointing: !!bool nope", f"seed: {'9' * 5000}",
     "dataset_types: [[single_video]]", "extra_train_data: 5", 'output_dir: "a\\0b"', 'cache_dir: "a\\0b"',
     f"seed: {'${' * 500}", "learning_rate: ${seed}", "a: &a [x, x]\nb: &b [*a, *a]\nlora_rank: *b",
     "[" * 100_000, "output_dir: !!python/object/apply:os.system [id]", "? [a]\n: 1", "lora_rank: 1\nnull: 2",
     "seed: " + "1" * 2_000_000],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_refused_file_is_one_brief_sentence(tmp_path, text):
    file = tmp_path / "wrong.yaml"
    file.write_text(text + "\n")
    message = refusal("--config", str(file))
    assert "wrong.yaml" in message and len(message) < 700 and "\n" not in message


@pytest.mark.parametrize("values", [5, "a", [1], None, {5: 6}, {"train_data": 5}, {"": 1}, {"train_data": {"": {}}}])
def test_a_stored_configuration_that_is_none_is_a_sentence(values):
    with pytest.raises(UserError):
        schema.from_dict(values)


def test_the_environment_cannot_be_read_from_a_stored_configuration(monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_TEST", "hunter2")
    trap = "${oc.env:SECRET_OF_THE_TEST}"
    cfg = schema.from_dict({**DATA, "validation_data": {"negative_prompt": trap, "prompt": [trap]}})
    assert cfg.validation_data.negative_prompt == trap and list(cfg.validation_data.prompt) == [trap]
    assert "hunter2" not in schema.to_yaml(cfg)
    with pytest.raises(UserError, match="nothing is looked up"):
        schema.from_dict({**DATA, "output_dir": trap})


@given(
    st.text(st.sampled_from("\\${}ab:e.oc 'n\"#\n\t\x1b1é"), max_size=12)
    | st.sampled_from(
        ["1e3", "no", "~", "2020-01-01", "0x1f", "1:30", "null", "- a", "a: b", "1_000", ".5", "5e-4", "1_e5", "1__0e3"]
    )
    | st.sampled_from(["\\${x}", "\\\\${x}", "a\\\\\\${oc.env:HOME}\\", "${", "\\${", "$\\{a}", "${a}\\${b}\\\\"])
)
def test_any_prompt_is_stored_and_read_back_as_it_is(text):
    cfg = schema.from_dict({**DATA, "validation_data": {"negative_prompt": text, "prompt": [text, text]}})
    assert cfg.validation_data.negative_prompt == text
    for read in (read_yaml, yaml.safe_load):  # as this project and as anybody else reads it
        stored = schema.from_dict(read(schema.to_yaml(cfg)))
        assert stored == cfg and stored.validation_data.prompt[1] == text


# ---- what somebody chose ----


def test_what_a_file_or_a_word_sets_is_chosen_and_nothing_else(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("lora_rank: 32\nseed: null\nlora_alpha: null\ntrain_data: {single_video_path: a, width: 64}\n")
    cfg, _ = schema.load(["--config", str(file), "learning_rate=5e-4"], description="")
    assert list(cfg.chosen) == [
        "train_data.width", "train_data.single_video_path", "validation_data.width", "lora_rank", "lora_alpha",
        "learning_rate",
    ]  # fmt: skip
    assert cfg.seed == 0, "null stands for the default, which nobody chose"


def test_what_was_chosen_travels_in_the_stored_configuration(tmp_path):
    cfg, _ = schema.load([CLIP, "lora_rank=7"], description="")
    stored = tmp_path / "config.yaml"
    stored.write_text(schema.to_yaml(cfg))
    assert schema.from_dict(yaml.safe_load(stored.read_text())).chosen == cfg.chosen
    again, _ = schema.load(["--config", str(stored), "seed=3"], description="")
    assert set(again.chosen) == {*cfg.chosen, "seed"}


def test_a_stored_configuration_without_the_list_counts_whole():
    values = yaml.safe_load(schema.to_yaml(schema.from_dict(DATA)))
    del values["chosen"]
    assert list(schema.from_dict(values).chosen) == list(KEYS)


@pytest.mark.parametrize("text", ["chosen: [seed]", "chosen: seed", "chosen: {a: b}", "chosen: [[seed]]\nseed: 1"])
def test_nobody_else_writes_the_list(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text + "\n")
    assert "chosen: the program writes this list by itself" in refusal("--config", str(file))


def test_files_that_ask_for_low_memory_still_load_and_take_the_smallest(capsys):
    assert schema.from_dict({**DATA, "memory": "low"}).memory == "smallest"
    assert "low is smallest today" in capsys.readouterr().err


def test_a_cosine_with_restarts_which_had_none_is_the_cosine_that_it_was(capsys):
    assert schema.from_dict({**DATA, "lr_scheduler": "cosine_with_restarts"}).lr_scheduler == "cosine"
    assert "one cycle" in capsys.readouterr().err
    assert stored_config({"lr_scheduler": "cosine_with_restarts"}, "a file") == {"lr_scheduler": "cosine"}


def test_a_warm_up_that_does_nothing_is_refused_and_what_was_trained_with_it_can_still_be_read():
    assert refusal("lr_warmup_steps=20").endswith("set lr_scheduler to constant_with_warmup, or lr_warmup_steps to 0")
    for words in (["lr_warmup_steps=0"], ["lr_warmup_steps=20", "lr_scheduler=constant_with_warmup"]):
        schema.load([CLIP, *words], description="test")
    assert schema.from_dict({**DATA, "lr_warmup_steps": 20}).lr_warmup_steps == 20


@pytest.mark.parametrize(("words", "printed", "fine"), [
    (["train_temporal_lora=false", "spatial_path_probability=0"], "nothing would be learned", "dataset_types=[image]"),
    (["lr_scheduler=polynomial", "lr_warmup_steps=9", "max_train_steps=9"], "no step left", "lr_warmup_steps=8"),
])  # fmt: skip
def test_keys_that_leave_nothing_to_learn_or_no_step_are_refused_together(words, printed, fine):
    assert printed in refusal(*words)
    schema.load([CLIP, *words, fine, "train_data.image_dir=a"], description="test")


def test_a_command_ends_with_the_sentence_and_exit_code_2():
    code = (
        "import sys; from configs.errors import command; from configs.schema import load\n"
        "command(load)(sys.argv[1:], description='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, CLIP, "seed=${oc.env:HOME}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_what_an_older_version_chose_is_read_by_todays_names():
    stored = stored_config({"logger": "none", "seed": 1, "chosen": ["logger", "seed"]}, "a file")
    assert stored == {"report_to": "none", "seed": 1, "chosen": ["report_to", "seed"]}
    with pytest.raises(UserError, match="chosen is .*nonsense"):
        stored_config({"chosen": ["nonsense"]}, "a file")


@pytest.mark.parametrize(
    "words", [("--threads", "2"), ("--learning-rate", "2"), ("--seed", "--config", "a.yaml"), ("--seed", "rank=3")]
)
def test_a_flag_of_another_command_is_told_as_the_key_that_it_is(words):
    key, value = words[0][2:].replace("-", "_"), words[1] if words[1] == "2" else "VALUE"
    told = refusal(*words)
    assert f"{words[0]}: not understood; did you mean {key}={value}?" in told and told.count("not understood") == 1


def test_an_interval_of_one_timestep_is_taken_by_training_as_by_sampling():
    cfg = schema.from_dict({**DATA, "validation_data": {"guidance_interval": [500, 500]}})
    assert no_interval(cfg.validation_data.guidance_interval) is None
