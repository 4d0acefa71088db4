"""Our checkpoints: bit-exact round trips, atomic folders, readable by PEFT, and refusals in one sentence."""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel

from configs.errors import UserError
from configs.files import atomic_path
from models import backbone
from models.files import release
from models.files.checkpoint import list_checkpoints, load_checkpoint, load_training_state, prune, save_checkpoint
from models.lora import active, add_adapter

TINY = {
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 16,
}


def skeleton(folder, **changes):
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    return backbone.skeleton(folder)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return skeleton(tmp_path_factory.mktemp("model"))


def lora_state(unet, preset, rank=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, (out, width) in release.layer_shapes(unet, preset).items():
        r = min(rank, out, width)
        state[f"{name}.lora_A.weight"] = torch.randn(r, width, generator=generator)
        state[f"{name}.lora_B.weight"] = torch.randn(out, r, generator=generator)
    return state


def save(unet, run, step=5, rank=4, clips=2, **changes):
    arguments = {
        "motion": lora_state(unet, "tap", rank),
        "appearance": [lora_state(unet, "appearance", rank, seed=clip + 1) for clip in range(clips)],
        "kind": "lora",
        "config_yaml": "seed: 3\ntrain_data:\n  fps: 8\n",
        "info": {"preset": "tap", "rank": rank, "architecture": release.architecture(unet), "method": "lora"},
        "training_state": {"step": step, "optimizers": [{"state": {0: {"exp_avg": torch.ones(2)}}}]},
    }
    return save_checkpoint(run, step, **arguments | changes)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_returns_every_bit_and_what_shaped_it(unet, tmp_path):
    folder = save(unet, tmp_path, info={"preset": "tap", "rank": 4, "alpha": 8, "base": None})
    checkpoint = load_checkpoint(tmp_path, unet=unet)
    assert folder == tmp_path / "checkpoint-5" == checkpoint.path and checkpoint.index == 5
    assert (checkpoint.kind, checkpoint.preset, checkpoint.rank, checkpoint.scale) == ("lora", "tap", 4, 2.0)
    assert same(checkpoint.motion, lora_state(unet, "tap"))
    assert all(same(checkpoint.appearance[i], lora_state(unet, "appearance", seed=i + 1)) for i in range(2))
    assert checkpoint.config == {"seed": 3, "train_data": {"fps": 8}} and "base" not in checkpoint.info
    state = load_training_state(folder)
    assert state["step"] == 5 and torch.equal(state["optimizers"][0]["state"][0]["exp_avg"], torch.ones(2))


def test_the_motion_folder_is_a_peft_folder_also_with_layers_narrower_than_the_rank(unet, tmp_path):
    folder = save(unet, tmp_path, rank=48, info={"preset": "tap", "rank": 48, "alpha": 24})
    real = type(unet).from_config(unet.config).eval()
    sample, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 3, 16)
    adapter = add_adapter(real, "motion", "tap", 48, alpha=24)
    adapter.load_state_dict(load_checkpoint(tmp_path).motion)
    with torch.no_grad():
        with active([adapter], on=[adapter]):
            ours = real(sample, 3, text).sample
        adapter.remove()
        theirs = PeftModel.from_pretrained(real, str(folder / "temporal"))(sample, 3, text).sample
    assert torch.equal(ours, theirs)


def test_embeddings_are_kept_by_name(unet, tmp_path):
    block = "down_blocks.2.temp_attentions.0.transformer_blocks.0"
    motion = {f"{block}.query_key": torch.randn(1, 32, 64), f"{block}.attn2.value": torch.randn(4, 32, 64)}
    save_checkpoint(tmp_path, 2, motion=motion, appearance=[], kind="embeddings", config_yaml=None, info={})
    checkpoint = load_checkpoint(tmp_path, unet=unet)
    assert checkpoint.kind == "embeddings" and same(checkpoint.motion, motion) and checkpoint.config is None
    with pytest.raises(UserError, match="does not fit this model"):
        load_checkpoint(tmp_path, unet=backbone.skeleton())


def test_the_authors_folder_is_taken_directly_and_said_to_be_assumed(unet, tmp_path):
    states = lora_state(unet, "release"), [lora_state(unet, "appearance", seed=1)]
    for step in (200, 1000):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        release.write_lora(path, step, unet, "release", *states)
    checkpoint = load_checkpoint(tmp_path, unet=unet)
    assert (checkpoint.index, checkpoint.preset, checkpoint.rank) == (1000, "release", 4)
    assert same(checkpoint.motion, states[0]) and same(checkpoint.appearance[0], states[1][0])
    assert "read as the preset release" in checkpoint.info["assumed"]
    assert load_checkpoint(tmp_path / "checkpoint-200", unet=unet).index == 200
    asked = load_checkpoint(tmp_path, 200, preset="tap", unet=unet)
    assert asked.preset == "tap" and "assumed" not in asked.info
    with pytest.raises(UserError, match="hold no layer names"):
        load_checkpoint(tmp_path)


def test_writing_is_all_or_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a" / "b" / "video.mp4") as part:
        part.write_text("half")
        assert part.suffix == ".mp4"
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    for content in ("one", "two"):
        with atomic_path(tmp_path / "folder") as part:
            part.mkdir()
            (part / content).touch()
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two"]


def test_a_folder_that_can_not_be_replaced_stays_as_it_was(tmp_path, monkeypatch):
    folder, rename = tmp_path / "folder", Path.rename
    folder.mkdir()
    (folder / "old").touch()

    def fail(path, target):
        if ".part" in path.name:
            raise OSError(errno.EACCES, "not allowed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="not allowed"), atomic_path(folder) as part:
        part.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]


def test_the_limit_keeps_the_newest(unet, tmp_path):
    for step in (2, 10, 4):
        save(unet, tmp_path, step, clips=0, limit=None)
    prune(tmp_path, 2)
    assert list(list_checkpoints(tmp_path)) == [4, 10]
    save(unet, tmp_path, 12, clips=0, limit=1)
    assert list(list_checkpoints(tmp_path)) == [12]


def refusals(unet, run, **arguments):
    with pytest.raises(UserError) as error:
        load_checkpoint(run, unet=unet, **arguments)
    return str(error.value)


def test_an_index_that_does_not_exist_lists_those_that_do(unet, tmp_path):
    save(unet, tmp_path, 5, clips=0)
    save(unet, tmp_path, 10, clips=0)
    assert "there are 5, 10" in refusals(unet, tmp_path, index=7)
    assert "no such checkpoint folder" in refusals(unet, tmp_path / "elsewhere")
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint-N folder" in refusals(unet, tmp_path / "empty")


def test_another_rank_preset_or_architecture_is_named(unet, tmp_path):
    save(unet, tmp_path)
    assert "has rank 4, rank 32 was asked" in refusals(unet, tmp_path, rank=32)
    assert "trained with the temporal preset tap, release was asked" in refusals(unet, tmp_path, preset="release")
    message = refusals(backbone.skeleton(), tmp_path)
    assert "32/64/64/64" in message and "320/640/1280/1280" in message
    deeper = skeleton(tmp_path, layers_per_block=2)
    save(deeper, tmp_path / "deeper", clips=0)
    assert "does not fit this model" in refusals(unet, tmp_path / "deeper")
    assert "does not fit this model" in refusals(deeper, tmp_path)


def test_half_a_checkpoint_is_refused(unet, tmp_path):
    folder = save(unet, tmp_path)
    adapter = folder / "temporal" / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refusals(unet, tmp_path)
    shutil.rmtree(folder / "temporal")
    assert "incomplete" in refusals(unet, tmp_path)
    (folder / "temporal").mkdir()
    assert "incomplete" in refusals(unet, tmp_path)
    shutil.rmtree(save(unet, tmp_path) / "spatial" / "0")
    assert "1 appearance adapters, 2 were written" in refusals(unet, tmp_path)


def test_a_pair_with_one_matrix_missing_is_refused(unet, tmp_path):
    motion = lora_state(unet, "tap")
    motion.popitem()
    save(unet, tmp_path, motion=motion)
    assert "no complete pair" in refusals(unet, tmp_path)


def test_a_checkpoint_without_training_state_says_so(unet, tmp_path):
    with pytest.raises(UserError, match="training cannot go on"):
        load_training_state(save(unet, tmp_path, clips=0, training_state=None))


def test_a_full_disk_leaves_nothing_and_says_so(monkeypatch, tmp_path):
    """torch, safetensors and ffmpeg each word a full disk in their own way; people get one error for all."""
    monkeypatch.setattr("configs.files.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OSError) as error, atomic_path(tmp_path / "folder" / "file") as part:
        part.write_bytes(b"half of it")
        raise RuntimeError("file write failed")
    assert error.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
