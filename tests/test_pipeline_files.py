"""Model folders: any setting that no model of this family has is one sentence, before anything is loaded."""

import json
import shutil

import pytest

from configs.errors import UserError
from configs.plain import MOST_BYTES
from models import backbones
from models.backbone import Backbone
from models.files import pipeline
from models.files.pipeline import check_pipeline, settings_of
from models.outline import sides_of, skeleton, snap_of

from conftest import PUBLISHED, ROOT

POCKET = ROOT / "models" / "pocketscope"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(POCKET, tmp_path / "model")
    return tmp_path / "model"


def test_the_models_of_this_repository_pass(folder, tiny_pipeline):
    for model in (folder, tiny_pipeline):
        check_pipeline(model)
        assert skeleton(model) is not None and snap_of(model) > 0


@pytest.mark.parametrize("name", ["pocketscope", "pocketscope_dit", "tiny_pipeline", "tiny_wan", "without"])
def test_sizes_are_those_of_the_network_and_no_network_is_built_for_them(name, request, tmp_path, monkeypatch):
    model = ROOT / "models" / name if name.startswith("pocket") else tmp_path
    if name.startswith("tiny"):
        model = request.getfixturevalue(name)
    if name == "without":  # of a value that the file leaves out the class's default counts
        for part, settings in PUBLISHED.items():
            (model / part).mkdir()
            (model / part / "config.json").write_text(
                json.dumps({k: v for k, v in settings.items() if k != "patch_size"})
            )
        (model / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    kind, network = backbones.kind_of_model(model), skeleton(model)
    vae = settings_of(str(model), "vae")
    wanted = kind.snap(network.config, vae), kind.sides(network.config, vae)
    monkeypatch.setattr(kind.NETWORK, "from_config", None)
    assert (snap_of(model), sides_of(model)) == wanted and min(wanted) > 0


CHANGES = [
    ("unet", {"block_out_channels": "abc"}), ("unet", {"block_out_channels": []}),
    ("unet", {"block_out_channels": [32]}),
    ("unet", {"attention_head_dim": 0}), ("unet", {"attention_head_dim": 4096}),
    ("unet", {"layers_per_block": -1}), ("unet", {"layers_per_block": 10**9}),
    ("unet", {"down_block_types": ["X"] * 4}), ("unet", {"norm_num_groups": 0}), ("unet", {"norm_num_groups": 5}),
    ("unet", {"in_channels": "x"}), ("unet", {"act_fn": "exec"}), ("unet", {"cross_attention_dim": None}),
    ("vae", {"scaling_factor": "x"}), ("vae", {"scaling_factor": 0}), ("vae", {"in_channels": 4}),
    ("scheduler", {"prediction_type": "sample"}), ("scheduler", {"timestep_spacing": "x"}),
    ("scheduler", {"num_train_timesteps": 10}), ("scheduler", {"beta_start": 1e999}),
    ("scheduler", {"beta_schedule": "x"}), ("tokenizer", {"model_max_length": "x"}),
    ("tokenizer", {"model_max_length": 1}),
    ("tokenizer", {"model_max_length": 10**30}), ("text_encoder", {"num_hidden_layers": -3}),
]  # fmt: skip
NAMES = {"tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}


@pytest.mark.parametrize("part, change", CHANGES, ids=lambda value: str(value)[:50])
def test_a_setting_outside_the_family_is_one_sentence(folder, part, change):
    file = folder / part / NAMES.get(part, "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError) as error:
        Backbone.load(folder)
    assert part in str(error.value) and "\n" not in str(error.value) and "huggingface" not in str(error.value)
    if part == "unet":
        with pytest.raises(UserError):
            skeleton(folder)


PLACES = ["unet/config.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"]


@pytest.mark.parametrize("content", ["[]", "", "5", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a": "\\ud800"}'])
@pytest.mark.parametrize(
    "name", ["unet/config.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"]
)
def test_a_file_of_settings_that_is_no_plain_object_is_one_sentence(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(UserError) as error:
        Backbone.load(folder)
    assert "\n" not in str(error.value)


def test_a_folder_without_the_vaes_settings_is_one_sentence(folder):
    (folder / "vae" / "config.json").unlink()
    for read in (snap_of, Backbone.load):
        with pytest.raises(UserError, match="vae"):
            read(folder)


def test_a_tokenizer_larger_than_other_files_passes_and_an_endless_one_does_not(folder, monkeypatch):
    """Wan's published tokenizer/tokenizer.json has 16,837,459 bytes."""
    file = folder / "tokenizer" / "tokenizer.json"
    file.write_text(json.dumps({"vocabulary": "x" * (MOST_BYTES + 1)}))
    check_pipeline(folder)
    monkeypatch.setattr(pipeline, "MOST_JSON", MOST_BYTES)
    with pytest.raises(UserError, match="tokenizer.json: has 16,777,.* more than the 16,777,216"):
        check_pipeline(folder)


def test_a_hub_that_cannot_be_reached_is_no_missing_file():
    """Tests are offline (conftest.py), as a person without a network is."""
    for load in (lambda: settings_of("somebody/on_the_hub", "unet"), lambda: Backbone.load("somebody/on_the_hub")):
        with pytest.raises(
            UserError, match="the hub cannot be reached, and its cache on this machine does not have it"
        ):
            load()
