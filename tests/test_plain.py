"""The gate: what is read from files is plain, bounded and of the expected type, or one sentence."""

import time

import pytest

from configs.checks import checked, either, flag, listed, maybe, real, text, whole, written
from configs.errors import UserError, printable, shown
from configs.plain import MOST_BYTES, dump_yaml, read_csv, read_json, read_text, read_yaml
from configs.schema import from_dict
from configs.schema import to_yaml as stored
from configs.stored import stored_config

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"


def refusal(function, *arguments, **named):
    with pytest.raises(UserError) as error:
        function(*arguments, **named)
    message = str(error.value)
    assert "\n" not in message and message.isprintable() and len(message) < 400
    return message


@pytest.mark.parametrize("source, reason", [
    (BOMB, "aliases"), ("seed: !!int 3", "tag"), ("a: !!python/object/apply:os.system [x]", "tag"), ("a: ! x", "tag"),
    ("[" * 5000, "40 levels"), ("- " * 5000, "40 levels"), ("{a: " * 60, "40 levels"), ("a: " + "1" * 5000, "digits"),
    ("a: 0x" + "f" * 300, "digits"), ('a: "\\ud800"', "no text"), ('a: "\\0"', "no text"), ("1: x", "keys are texts"),
    ("a: [", "not plain YAML"), ("? [1]\n: 2", "not plain YAML"), ("a: \x07", "not plain YAML"),
    ("a: 1\n---\nb: 2", "not plain YAML"), ("a: " + "x" * 300_000, "characters"),
])  # fmt: skip
def test_yaml_is_plain_data_or_one_sentence(source, reason):
    assert reason in refusal(read_yaml, source, "header")


@pytest.mark.parametrize("source, reason", [
    ("[" * 100_000, "40 levels"), ('{"a":' * 60 + "1" + "}" * 60, "40 levels"), ("1" * 5000, "digits"),
    ('"\\ud800"', "no text"), ('{"\\u0000": 1}', "no text"), ("", "not valid JSON"), ("{'a': 1}", "not valid JSON"),
])  # fmt: skip
def test_json_is_plain_data_or_one_sentence(source, reason):
    assert reason in refusal(read_json, source, "sidecar")


def test_plain_yaml_reads_as_configuration_files_do_and_comes_back_from_disk_unchanged():
    values = {"a": "1e-3", "b": 1e-3, "c": "2020-01-01", "d": "no", "e": None, "f": "${oc.env:HOME}", "g": [1, "x\ty"]}
    assert read_yaml(dump_yaml(values)) == values
    assert read_yaml("a: 5e-4\nb: 2020-01-01\nc: '<<'\n<<: x") == {"a": 5e-4, "b": "2020-01-01", "c": "<<", "<<": "x"}


@pytest.mark.parametrize(
    "line", ["[" + "a, " * 80_000 + "]", "? " * 120_000, '"' + "\\x41" * 60_000 + '"', "- a\n" * 60_000]
)
def test_the_longest_yaml_takes_seconds_at_most(line):
    began = time.process_time()
    try:
        read_yaml(line, "file")
    except UserError:
        pass
    assert time.process_time() - began < 10


def test_files_are_read_as_text_of_bounded_size(tmp_path):
    (tmp_path / "big").write_bytes(b" " * (MOST_BYTES + 1))
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "mark").write_text("\ufeff[1]")
    assert read_json(tmp_path / "mark") == [1]
    assert "more than the" in refusal(read_json, tmp_path / "big")
    assert "UTF-8" in refusal(read_text, tmp_path / "latin")
    assert "is a folder" in refusal(read_text, tmp_path)
    assert "No such file" in refusal(read_text, tmp_path / "absent")
    assert "cannot be read" in refusal(read_text, tmp_path / "a\0b")


def test_a_csv_list_drops_cells_without_a_column_and_refuses_huge_fields():
    assert read_csv("file_name,text\na.mp4,one,two\nb.mp4\n") == [
        {"file_name": "a.mp4", "text": "one"},
        {"file_name": "b.mp4"},
    ]
    assert "not valid CSV" in refusal(read_csv, "a,b\n" + "x" * 200_000 + ",y", "list")


@pytest.mark.parametrize("check, good, bad", [
    (whole(1, 8), [1, 8], [0, 9, 1.0, True, "1", None, [1], 10**40]),
    (whole(8, 64, 8), [8, 64], [12]),
    (real(0, 2), [0, 1.5, 2], [-0.1, float("nan"), float("inf"), 10**200, True, "1"]),
    (real(above=0), [1e-30], [0, -1]),
    (text(3, ()), ["abc"], ["abcd", 5, None]),
    (text(choices=("a", "b")), ["a"], ["c", ["a"], None]),
    (flag, [True, False], [0, "true", None]),
    (maybe(whole(1)), [None, 1], [0]),
    (listed(whole(1), 1, 2), [[1], [1, 2]], [[], [1, 2, 3], [0], 1, "1"]),
    (either(whole(1), listed(whole(1))), [1, [1]], ["x", 0]),
    (written(whole(1, 8)), ["3"], ["", "x", "3.0", "9", "1" * 5000, 3, None]),
    (written(real(0, 8)), ["3", "3.5", "1e0"], ["nan", "inf", "1e999", "x"]),
])  # fmt: skip
def test_a_check_lets_through_what_is_of_its_type_finite_and_within_limits(check, good, bad):
    for value in good:
        assert checked({"k": value}, {"k": check}, "f")["k"] is not False or value is False
    for value in bad:
        assert "k is " in refusal(checked, {"k": value}, {"k": check}, "f")


def test_checked_keeps_the_schemas_keys_and_asks_for_those_that_are_needed():
    assert checked({"a": 1, "b": "x"}, {"a": real()}, "f") == {"a": 1.0}
    assert "has no c" in refusal(checked, {"a": 1}, {"a": real()}, "f", needed=("a", "c"))
    assert "holds a list" in refusal(checked, [1], {}, "f")


def test_a_stored_configuration_returns_what_was_chosen_and_nothing_else():
    cfg = from_dict({"train_data": {"single_video_path": "a.mp4"}, "validation_data": {"prompt": ["1e-3", "yes"]}})
    assert from_dict(stored_config(stored(cfg), "header")) == cfg
    assert stored_config("seed: 3\ntrain_data:\n  fps: 8\n", "header") == {"seed": 3, "train_data": {"fps": 8}}
    assert stored_config("use_text_lora: false\ntrain_data:\n", "header") == {}


def test_nothing_in_a_stored_configuration_is_looked_up(monkeypatch):
    monkeypatch.setenv("SECRET", "swordfish")
    for reference in ("${oc.env:SECRET}", "${seed}", "\\${oc.env:SECRET}", "${nope}", "${" * 500):
        values = {"validation_data": {"negative_prompt": reference}}
        assert stored_config(dump_yaml(values), "header") == values
    assert "swordfish" not in refusal(stored_config, "seed: ${oc.env:SECRET}", "header")


@pytest.mark.parametrize("source", [
    "5", "[1]", "", "{a: [", "seed: abc", "nope: 1", "validation_data: 5", "train_data: {width: -64}",
    "train_data: {width: [64]}", "train_data: {width: 12}", "train_data: {fps: -3}", "lora_rank: 0",
    "validation_data: {num_frames: 0}", "validation_data: {num_inference_steps: 0}", "pli_threshold: x",
    "validation_data: {guidance_scale: .nan}", "validation_data: {guidance_scale: x}", "learning_rate: .inf",
    "validation_data: {negative_prompt: 5}", "appearance_highway: 5", "dataset_types: [[single_video]]",
    "validation_data: {prompt: [[a]]}", "method: none", BOMB, "seed: 2020-01-01", "extra_train_data: 5",
])  # fmt: skip
def test_a_stored_configuration_outside_the_schema_is_one_sentence(source):
    assert "header" in refusal(stored_config, source, "header")


def test_a_message_repeats_a_value_short_and_without_control_characters():
    assert shown("a\x1b[31m\u202e\ud800") == r"'a\x1b[31m\u202e\ud800'"
    for value in ("x" * 1_000_000, list(range(10**5)), 10**5000, {"a": "y" * 500}, object()):
        assert len(shown(value)) <= 80 and shown(value).isprintable()
    assert printable("été\n\x1b[0m") == "été\\n\\x1b[0m"
