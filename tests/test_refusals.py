"""Whole commands that are refused: exit code 2, one brief sentence on a line of its own, and nothing is left behind."""

import re
import sys

import pytest
import torch

import train
from configs.schema import to_yaml
from infer import infer
from models.backbone import Backbone
from models.training import memory
from models.training.processes import Processes
from scripts import bench, parity, pretrain_pocketscope, reproduce


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


def test_a_file_of_results_that_cannot_be_written_is_named_before_the_work(refusal, tmp_path):
    for results, words in ((tmp_path, "is a folder"), ("/proc/x", "name another folder")):
        words_given = ("table4", "--smoke", "--output_dir", tmp_path / "out", "--results", results)
        assert words in refusal(reproduce.main, *words_given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["reproduce", "bench", "parity"])
def test_a_file_of_own_words_is_not_taken_for_results(command, refusal, tmp_path):
    notes = tmp_path / "NOTES.md"
    notes.write_text("# Results\n\nmy own words\n")
    main, words = {
        "reproduce": (reproduce.main, ("table4", "--smoke", "--output_dir", tmp_path / "out")),
        "bench": (bench.main, ()),
        "parity": (parity.main, (tmp_path,)),
    }[command]
    assert "NOTES.md is no file of results, and would be written anew" in refusal(main, *words, "--results", notes)
    assert notes.read_text().endswith("my own words\n") and list(tmp_path.iterdir()) == [notes]


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (reproduce.main, ["--benchmark", "x", "--model", "y", "--slurm", "a=b"], "--slurm: is for artefacts"),
        (reproduce.main, ["--benchmark", "x", "--model", "y", "--trainings", "2"], "--trainings: is for artefacts"),
        (reproduce.main, ["table4", "--method", "tap"], "--method: says how --benchmark learns"),
        (reproduce.main, ["table4", "--model", ".", "--appearances", "2"], "--appearances: only the toy world"),
        (pretrain_pocketscope.main, ["--ablate"], "--ablate: switches parts off where the model is measured"),
        (infer.main, ["--model", "x", "--prompt", "y", "-ci", "3"], "--checkpoint_index: belongs to --checkpoint_fol"),
        (infer.main, ["--model", "x", "--prompt", "y", "-lr", "3"], "--lora_rank: belongs to --checkpoint_folder"),
        (infer.main, ["--prompt", "y", "--spatial_path_scale", "1"], "--spatial_path_scale: belongs to --spatial_path"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(main, words, said, refusal):
    assert said in refusal(main, *words)


def cuda():
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity")


def cpu():
    torch.empty(2**46)  # DefaultCPUAllocator: can't allocate memory


@pytest.mark.parametrize("fail, amount", [(cuda, "2.50 GiB more"), (cpu, "281474976710656 bytes more")])
def test_exhausted_memory_is_one_sentence(fail, amount, refusal, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "training_step", lambda *_, **__: fail())
    config = tmp_path / "config.yaml"
    config.write_text(to_yaml(tiny_config(validation_data={"sample_preview": False})))
    said = []
    monkeypatch.setattr(Processes, "say", lambda self, text: said.append(text))
    line = refusal(train.main, "--config", config)
    assert amount in line and "make the frames smaller" in line
    assert not any("loss plot" in text for text in said), "no step was logged, so nothing was plotted"
    monkeypatch.setattr("infer.batch.sample", lambda *_, **__: fail())
    model, out = tiny_config().pretrained_model_path, tmp_path / "out"
    size = ["-W", 64, "-H", 64, "-T", 2]
    assert amount in refusal(infer.main, "--model", model, "--prompt", "a car", *size, "--output_dir", out)
    assert not out.exists()


def test_a_long_name_of_an_artefact_is_shown_in_its_beginning(refusal):
    assert "no artefact has this name" in refusal(reproduce.main, "x" * 100_000)


def test_a_sentence_stands_on_a_line_of_its_own_whatever_bar_was_drawn(refusal, tiny_pipeline, tmp_path):
    words = ["--model", tiny_pipeline, "--prompt", "a car", "-W", 64, "-H", 64, "-T", 2, "--output_dir", tmp_path]
    assert "not usable here" in refusal(infer.main, *words, "--xformers")


def test_a_dry_run_prints_no_character_that_acts_on_a_terminal(tiny_pipeline, clip_file, monkeypatch, capsys):
    words = [
        f"pretrained_model_path={tiny_pipeline}",
        f"train_data.single_video_path={clip_file}",
        "train_data.single_video_prompt=\u202ea\x7f",
        "train_data.n_sample_frames=4",
        "--dry-run",
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    monkeypatch.setattr(memory, "training_bytes", lambda *_: "")
    train.main()
    printed = capsys.readouterr().out
    assert "\\u202ea" in printed and all(line.isprintable() for line in printed.splitlines())


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
@pytest.mark.parametrize(("given", "sentence"), [
    ({"compile": "step", "device": "cpu"}, "compile: step replays CUDA graphs and the device is cpu"),
    ({"temporal_preset": "tap_pure"}, "temporal_preset: .*tap_pure"),
    ({"appearance_highway": {"scope": "value"}}, "appearance_highway.scope: value belongs to diffusion transformers"),
    ({"block_range": [0.0, 0.5]}, "block_range"),
    ({"include_patterns": ["nothing"]}, "include_patterns: 'nothing' matches none"),
])  # fmt: skip
def test_what_the_model_has_no_place_for_is_refused_before_it_is_loaded(
    given, sentence, words, refusal, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(Backbone, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    config = tmp_path / "c.yaml"
    config.write_text(to_yaml(tiny_config(**given)))
    assert re.match(f"error: {sentence}", refusal(train.main, "--config", config, *words))


@pytest.mark.parametrize(("flags", "sentence"), [
    (("--compile", "step", "-d", "cpu"), "compile: step replays CUDA graphs and the device is cpu"),
    (("--solver", "euler"), "solver: euler follows a flow, and this model is a diffusion"),
])  # fmt: skip
def test_a_way_of_sampling_that_cannot_work_is_refused_before_the_model_is_loaded(
    flags, sentence, refusal, tiny_pipeline, tmp_path, monkeypatch
):
    monkeypatch.setattr(Backbone, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    said = refusal(infer.main, "--model", tiny_pipeline, "--prompt", "a car", "-o", tmp_path / "out", *flags)
    assert said.startswith(f"error: {sentence}")


@pytest.mark.parametrize(("solver", "steps"), [("unipc", 1), ("euler", 2)])
@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_solver_of_the_previews_that_cannot_work_is_refused_at_the_start_as_sampling_refuses_it(
    solver, steps, words, refusal, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "prepare_clips", lambda *_, **__: pytest.fail("the training has begun"))
    cfg, config = tiny_config(validation_data={"solver": solver, "num_inference_steps": steps}), tmp_path / "c.yaml"
    config.write_text(to_yaml(cfg))
    trained = refusal(train.main, "--config", config, *words)
    asked = ["--solver", solver, "-s", steps, "-W", 64, "-H", 64, "-T", 2, "-o", tmp_path / "out"]
    assert trained == refusal(infer.main, "--model", cfg.pretrained_model_path, "--prompt", "a car", *asked)
    assert trained.startswith("error: solver: ")
