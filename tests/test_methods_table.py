"""The table of methods: every method has a row, and its counts are the paper's."""

import pytest
import torch

from configs.schema import load
from scripts import methods_table
from scripts.benchmark import method_costs
from scripts.benchmark.steps import MODELS, Step, count_bytes

from conftest import ROOT


def test_every_method_file_has_a_row():
    assert method_costs.WHEN.keys() == {file.stem for file in (ROOT / "configs" / "methods").glob("*.yaml")}
    assert sorted([*method_costs.WHEN, *method_costs.TRANSFORMER_WHEN]) == methods_table.METHODS


def test_the_page_has_the_memory_that_is_counted_for_zeroscope():
    page = (ROOT / "configs/methods/README.md").read_text().splitlines()
    name = "motiondirector"
    (row,) = (line.split(" | ") for line in page if line.startswith(f"| `{name}` | ") and line.count("|") > 9)
    cfg, _ = load(["--config", f"configs/methods/{name}.yaml", "train_data.single_video_path=random"], description="")
    assert row[6] == f"{count_bytes(MODELS['zeroscope'], checkpointing=None, cfg=cfg) / 1e9:.2f}"


@pytest.mark.parametrize("name, motion", [("tap", "3.33"), ("tap_key", "1.66"), ("motiondirector", "12.47")])
def test_parameters_are_counted_for_zeroscope_without_its_weights(name, motion):
    cfg, _ = load(["--config", f"configs/methods/{name}.yaml", "train_data.single_video_path=random"], description="")
    step = Step(MODELS["zeroscope"], "meta", torch.bfloat16, cfg=cfg)
    assert method_costs.parameters(step.method)[0].startswith(f"{motion} + ")


def test_a_row_holds_every_cost(monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "zeroscope", MODELS["pocket"])
    methods_table.main(["--methods", "motion_inversion", "--repeats", "1"])
    header, rule, line = capsys.readouterr().out.splitlines()
    row = line.strip("| ").split(" | ")
    assert len(row) == len(method_costs.HEADER) == header.count("|") - 1 == rule.count("|") - 1
    assert row[1] == row[3] == "0.11 M" and row[2] == "0.4 MB" and float(row[5]) > 0 and float(row[6]) > 0


def test_what_only_a_transformer_has_is_counted_and_the_page_shows_it(capsys):
    """Embeddings of 30 blocks of width 1536: 32 frames, and 17 x 30 tokens of a frame."""
    methods_table.main(["--methods", *method_costs.TRANSFORMER_WHEN])
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "transformer/motion_inversion" in line).strip("| ").split(" | ")
    assert row[1] == f"{30 * 1536 * (32 + 17 * 30) / 1e6:.2f} M" and row[3] == f"{6 * 192 * (32 + 16) / 1e6:.2f} M"
    assert printed in (ROOT / "configs/methods/README.md").read_text()
