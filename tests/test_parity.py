"""Agreement with the authors' code: every reference file in tests/golden, through the command's own cases.

The numbers came from running the authors' release and MotionDirector's LoRA code on a random pipeline. The weights of
its U-Net and VAE are rebuilt from names (scripts/authors/weights.py); the copies here leave out what would only add
size.
"""

import json
import math
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.authors.comparison import compare
from scripts.authors.reference import ReferenceFile
from scripts.authors.weights import build_unet
from scripts.parity import main

from conftest import ROOT

GOLDEN = ROOT / "tests" / "golden"
CASES = {
    *("ah_tiny", "infer_s5", "inversion", "lora_infer_forward", "lora_motiondirector_forward", "lora_train_forward"),
    *("losses", "losses_gradckpt", "train_trace_fixed", "unet_plain"),
}


def some(tmp_path, *names):
    for name in names:
        for path in [*GOLDEN.glob(f"{name}.safetensors"), *GOLDEN.glob(f"{name}.json")]:
            shutil.copy(path, tmp_path)
    return tmp_path


def test_every_shipped_number_agrees_by_the_command_as_it_is_written(monkeypatch, capsys):
    """From the repository's root, by a relative path, with nothing beside them."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main(["tests/golden"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and "FAIL" not in printed
    assert {line.split("|")[1].strip() for line in printed.splitlines()[2:]} == CASES


def test_every_golden_quantity_is_compared(tmp_path):
    rows = [row.quantity for _, row in compare(some(tmp_path, "unet_plain"), GOLDEN)]
    outputs = [key for key in load_file(GOLDEN / "unet_plain.safetensors") if key.startswith("out")]
    assert sorted(rows) == sorted(outputs)


def test_a_difference_and_a_damaged_file_fail_and_the_rest_still_runs(tmp_path):
    data = load_file(GOLDEN / "unet_plain.safetensors")
    data["out"][0, 0, 0, 0, 0] += 1e-4
    save_file(data, tmp_path / "unet_plain.safetensors")
    (tmp_path / "unet_broken.safetensors").write_bytes(b"\0" * 20)
    rows = {
        (case, row.quantity.split(":")[0]): row.difference <= row.tolerance for case, row in compare(tmp_path, GOLDEN)
    }
    assert not rows["unet_plain", "out"] and not rows["unet_broken", "not run"]
    assert rows["unet_plain", "out_one_frame"]


def test_a_model_of_another_width_is_rebuilt_from_the_files_metadata(tmp_path):
    config = json.loads((GOLDEN / "tiny_zeroscope" / "unet" / "config.json").read_text())
    config |= {"block_out_channels": [32, 64, 64, 128], "layers_per_block": 1, "cross_attention_dim": 48}
    draw = torch.Generator().manual_seed(0)
    data = {
        "sample": torch.randn(1, 4, 2, 8, 8, generator=draw),
        "timestep": torch.tensor([9]),
        "text": torch.randn(1, 3, 48, generator=draw),
    }
    with torch.no_grad():
        data["out"] = build_unet(config, 5)(*data.values()).sample.contiguous()
    save_file(
        data, tmp_path / "unet_other.safetensors", metadata={"unet_config": json.dumps(config), "recipe_seed": "5"}
    )
    (row,) = [row for _, row in compare(tmp_path)]
    assert row.quantity == "out" and row.difference <= row.tolerance


def rows_without(case, key, tmp_path):
    data = {name: tensor for name, tensor in load_file(GOLDEN / f"{case}.safetensors").items() if name != key}
    save_file(data, some(tmp_path, case) / f"{case}.safetensors")
    return [row for _, row in compare(tmp_path, GOLDEN)]


@pytest.mark.parametrize(
    ("case", "key"),
    [
        ("unet_plain", "timestep"),
        ("lora_train_forward", "text"),
        ("inversion", "latents"),
        ("losses", "noise"),
        ("train_trace_fixed", "latents"),
        ("infer_s5", "prompt_embeds"),
    ],
)
def test_a_missing_tensor_fails_its_case_and_not_the_table(case, key, tmp_path):
    rows = rows_without(case, key, tmp_path)
    assert rows[-1].quantity.startswith("not run: ") and rows[-1].difference == math.inf


def test_without_initial_latents_sampling_starts_from_the_files_noise(tmp_path):
    rows = rows_without("infer_s5", "init_latents", tmp_path)
    assert "final_latents" in [row.quantity for row in rows]
    assert not [row for row in rows if not row.difference <= row.tolerance]


def test_a_batch_of_prompts_is_compared(tmp_path):
    data = load_file(GOLDEN / "infer_s5.safetensors")
    batch = {
        "prompt_embeds": data["prompt_embeds"].repeat_interleave(2, 0),
        "timesteps": data["timesteps"],
        **{key: data[key].repeat(2, 1, 1, 1, 1) for key in ("noise", "init_latents", "final_latents")},
        "frames": data["frames"].repeat(1, 1, 2, 1),
    }  # side by side, as old diffusers gives them
    save_file(batch, some(tmp_path, "infer_s5") / "infer_s5.safetensors")
    rows = [row for _, row in compare(tmp_path, GOLDEN)]
    assert len(rows) == 6 and not [row for row in rows if not row.difference <= row.tolerance]


def test_other_shapes_and_wirings_of_another_length_are_differences(tmp_path):
    data = load_file(GOLDEN / "unet_plain.safetensors")
    data["out"] = data["out"][:, :, :2].contiguous()
    save_file({key: data[key] for key in ("out", "sample", "text", "timestep")}, tmp_path / "unet_plain.safetensors")
    some(tmp_path, "ah_tiny*")
    wiring = json.loads((tmp_path / "ah_tiny_wiring.json").read_text())
    (tmp_path / "ah_tiny_wiring.json").write_text(json.dumps([wiring[0] | {"factor": 7}, *wiring[1:-1]]))
    rows = {row.quantity.split(":")[0]: row.difference for _, row in compare(tmp_path, GOLDEN)}
    assert rows["out"] == math.inf and rows["wiring (rows that differ)"] == 2


def test_a_file_with_nothing_to_compare_does_not_pass(tmp_path):
    save_file(
        {"nothing": torch.zeros(1)},
        tmp_path / "unet_nothing.safetensors",
        {"unet_config": (GOLDEN / "tiny_zeroscope" / "unet" / "config.json").read_text()},
    )
    (row,) = [row for _, row in compare(tmp_path, GOLDEN)]
    assert row.quantity.startswith("not run") and row.difference == math.inf


def test_nan_and_gradients_of_zero_are_told_apart():
    ref = ReferenceFile.__new__(ReferenceFile)
    ref.data = {"grad": torch.zeros(3)}
    assert ref.row("grad", torch.zeros(3), relative=True).difference == 0
    assert ref.row("grad", torch.tensor([0, math.nan, 0])).difference == math.inf


@pytest.mark.parametrize(
    ("files", "code", "message"),
    [((), 2, "no reference file"), (("losses_gradckpt",), 1, "FAIL"), (("ah_tiny*",), 0, "wiring")],
)
def test_the_command_ends_with_the_right_code(files, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["parity.py", str(some(tmp_path, *files))])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert message in "".join(capsys.readouterr())


def test_the_table_becomes_a_section_of_the_results(tmp_path, capsys):
    folder, results = tmp_path / "files", tmp_path / "RESULTS.md"
    folder.mkdir()
    with pytest.raises(SystemExit) as ended:
        main([str(some(folder, "ah_tiny*")), "--results", str(results)])
    printed, written = capsys.readouterr().out.strip(), results.read_text()
    assert ended.value.code == 0 and printed.count("| pass |") > 3
    assert printed in written and "<!-- begin parity release -->" in written
    assert f"`python scripts/parity.py {folder} --results {results}`" in written  # as it was given
