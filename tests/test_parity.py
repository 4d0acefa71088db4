"""Agreement with the authors' code: every reference file in tests/golden, through the command's own cases.

The numbers came from running the authors' release and MotionDirector's LoRA code on a random pipeline. The weights of
its U-Net and VAE are rebuilt from names (models/recipe.py); the copies here leave out what would only add size.
"""

import json
import shutil
import sys

import pytest
import torch
from conftest import ROOT
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from configs.errors import command
from models.recipe import build_unet, fill
from scripts.parity import compare, main

GOLDEN = ROOT / "tests" / "golden"
FILES = ["ah_tiny*", "infer_s5", "inversion", "lora_train_forward", "losses*", "train_trace_fixed", "unet_plain"]
VAE_SEED = 2


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """The pipeline and checkpoint folders of tests/golden, with the VAE's weights filled in."""
    folder = tmp_path_factory.mktemp("assets")
    for name in ("tiny_zeroscope", "lora_train", "infer_run"):
        shutil.copytree(GOLDEN / name, folder / name)
    vae = folder / "tiny_zeroscope" / "vae"
    fill(AutoencoderKL.from_config(json.loads((vae / "config.json").read_text())), VAE_SEED).save_pretrained(vae)
    return folder


def some(tmp_path, *names):
    for name in names:
        for path in [*GOLDEN.glob(f"{name}.safetensors"), *GOLDEN.glob(f"{name}.json")]:
            shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_golden(name, assets, tmp_path):
    rows = [row for _, row in compare(some(tmp_path, name), assets)]
    assert rows and not [row for row in rows if not row.difference <= row.tolerance]


def test_every_golden_quantity_is_compared(assets, tmp_path):
    rows = [row.quantity for _, row in compare(some(tmp_path, "unet_plain"), assets)]
    outputs = [key for key in load_file(GOLDEN / "unet_plain.safetensors") if key.startswith("out")]
    assert sorted(rows) == sorted(outputs)


def test_a_difference_and_a_damaged_file_fail_and_the_rest_still_runs(assets, tmp_path):
    data = load_file(GOLDEN / "unet_plain.safetensors")
    data["out"][0, 0, 0, 0, 0] += 1e-4
    save_file(data, tmp_path / "unet_plain.safetensors")
    (tmp_path / "unet_broken.safetensors").write_bytes(b"\0" * 20)
    rows = {(case, row.quantity.split(":")[0]): row.difference <= row.tolerance
            for case, row in compare(tmp_path, assets)}
    assert not rows["unet_plain", "out"] and not rows["unet_broken", "not run"]
    assert rows["unet_plain", "out_one_frame"]


def test_a_model_of_another_width_is_rebuilt_from_the_files_metadata(assets, tmp_path):
    config = json.loads((GOLDEN / "tiny_zeroscope" / "unet" / "config.json").read_text())
    config |= {"block_out_channels": [32, 64, 64, 128], "layers_per_block": 1, "cross_attention_dim": 48}
    draw = torch.Generator().manual_seed(0)
    data = {"sample": torch.randn(1, 4, 2, 8, 8, generator=draw), "timestep": torch.tensor([9]),
            "text": torch.randn(1, 3, 48, generator=draw)}
    with torch.no_grad():
        data["out"] = build_unet(config, 5)(*data.values()).sample.contiguous()
    save_file(data, tmp_path / "unet_other.safetensors", metadata={"unet_config": json.dumps(config), "recipe_seed": "5"})
    (row,) = [row for _, row in compare(tmp_path)]
    assert row.quantity == "out" and row.difference <= row.tolerance


@pytest.mark.parametrize(("files", "code", "message"), [((), 2, "no reference file"), (("losses_gradckpt",), 1, "FAIL"),
                                                        (("ah_tiny*",), 0, "wiring")])
def test_the_command_ends_with_the_right_code(files, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["parity.py", str(some(tmp_path, *files))])
    with pytest.raises(SystemExit) as ended:
        command(main)()
    assert ended.value.code == code
    assert message in "".join(capsys.readouterr())
