"""The README's table of methods: every method has a row, and its counts are METHOD's."""

import pytest
import torch

from configs.schema import load
from scripts import methods_table
from scripts.bench import MODELS, Step

from conftest import ROOT


def test_every_method_file_has_a_row():
    assert methods_table.WHEN.keys() == {file.stem for file in (ROOT / "configs" / "methods").glob("*.yaml")}


@pytest.mark.parametrize("name, motion", [("tap", "3.33"), ("tap_key", "1.66"), ("motiondirector", "12.47")])
def test_parameters_are_counted_for_zeroscope_without_its_weights(name, motion):
    cfg, _ = load(["--config", f"configs/methods/{name}.yaml", "train_data.single_video_path=random"], description="")
    step = Step(MODELS["zeroscope"], "meta", torch.bfloat16, cfg=cfg)
    assert methods_table.parameters(step)[0].startswith(f"{motion} + ")


def test_a_row_holds_every_cost(monkeypatch):
    monkeypatch.setitem(MODELS, "zeroscope", MODELS["pocket"])
    (row,) = methods_table.rows(["motion_inversion"], repeats=1)
    assert len(row) == len(methods_table.HEADER)
    assert row[1] == row[3] == "0.11 M" and row[2] == "0.4 MB" and float(row[5]) > 0 and float(row[6]) > 0
