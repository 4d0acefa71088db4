"""Whole commands that are refused: exit code 2, one brief sentence on a line of its own, and nothing is left behind."""

import sys

import pytest

import train
from infer import infer
from models.training import memory
from scripts import reproduce


@pytest.fixture
def refusal(monkeypatch, capfd):
    """A function of a command's main and its words: the one line that it ends with."""

    def ended(main, *words):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        (line,) = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
        assert end.value.code == 2 and line.startswith("error: ") and len(line) < 600 and line.isprintable()
        return line

    return ended


def test_reproducing_into_a_place_where_nothing_can_be_written(refusal):
    for name in ("table4", "metrics"):
        assert "name another folder" in refusal(reproduce.main, name, "--smoke", "--output_dir", "/proc/x")


def test_a_long_name_of_an_artefact_is_shown_in_its_beginning(refusal):
    assert "no artefact has this name" in refusal(reproduce.main, "x" * 100_000)


def test_a_sentence_stands_on_a_line_of_its_own_whatever_bar_was_drawn(refusal, tiny_pipeline, tmp_path):
    words = ["--model", tiny_pipeline, "--prompt", "a car", "-W", 64, "-H", 64, "-T", 2, "--output_dir", tmp_path]
    assert "not usable here" in refusal(infer.main, *words, "--xformers")


def test_a_dry_run_prints_no_character_that_acts_on_a_terminal(tiny_pipeline, monkeypatch, capsys):
    words = [f"pretrained_model_path={tiny_pipeline}", "train_data.single_video_path=\u202ea\x7f", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    monkeypatch.setattr(memory, "training_bytes", lambda *_: "")
    train.main()
    printed = capsys.readouterr().out
    assert "\\u202ea" in printed and all(line.isprintable() for line in printed.splitlines())
