"""Our checkpoints: bit-exact round trips, atomic folders, readable by PEFT, and refusals in one sentence."""

import errno
import json
import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.optimization import get_scheduler
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file

from configs.archives import check_pickle
from configs.errors import UserError, ending
from configs.files import NoSpace, atomic_path
from models import outline
from models.backbones import architecture
from models.files import release
from models.files.checkpoint import list_checkpoints, load_checkpoint, prune, save_checkpoint
from models.files.tensors import read_tensors, write_tensors
from models.files.training_state import load_training_state
from models.lora import active, add_adapter
from scripts.fuzzing import ground

TINY = {
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 16,
}


def skeleton(folder, **changes):
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    return outline.skeleton(folder)


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


def training_state(step=5, **changes):
    """As models/training/optimizer.py gives it: one optimizer that has moved one parameter."""
    return ground.training_state() | {"step": step} | changes


def save(unet, run, step=5, rank=4, clips=2, **changes):
    arguments = {
        "motion": lora_state(unet, "tap", rank),
        "appearance": [lora_state(unet, "appearance", rank, seed=clip + 1) for clip in range(clips)],
        "kind": "lora",
        "config_yaml": "seed: 3\ntrain_data:\n  fps: 8\n",
        "info": {"preset": "tap", "rank": rank, "architecture": architecture(unet), "method": "lora"},
        "training_state": training_state(step),
    }
    return save_checkpoint(run, step, **arguments | changes)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_returns_every_bit_and_what_shaped_it(unet, tmp_path):
    folder = save(unet, tmp_path, info={"preset": "tap", "rank": 4, "alpha": 8, "base": None})
    checkpoint = load_checkpoint(tmp_path, network=unet)
    assert folder == tmp_path / "checkpoint-5" == checkpoint.path and checkpoint.index == 5
    assert (checkpoint.kind, checkpoint.preset, checkpoint.rank, checkpoint.scale) == ("lora", "tap", 4, 2.0)
    assert same(checkpoint.motion, lora_state(unet, "tap"))
    assert all(same(checkpoint.appearance[i], lora_state(unet, "appearance", seed=i + 1)) for i in range(2))
    assert checkpoint.config == {"seed": 3, "train_data": {"fps": 8}} and "base" not in checkpoint.info
    state = load_training_state(folder)
    moments = state["optimizer"]["optimizers"][0]["state"][0]
    assert state["step"] == 5 and torch.equal(moments["exp_avg"], torch.full((2,), 0.1))


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
    checkpoint = load_checkpoint(tmp_path, network=unet)
    assert checkpoint.kind == "embeddings" and same(checkpoint.motion, motion) and checkpoint.config is None
    with pytest.raises(UserError, match="does not fit this model"):
        load_checkpoint(tmp_path, network=outline.skeleton())


def test_the_authors_folder_is_taken_directly_and_said_to_be_assumed(unet, tmp_path):
    states = lora_state(unet, "release"), [lora_state(unet, "appearance", seed=1)]
    for step in (200, 1000):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        release.write_lora(path, step, unet, "release", *states)
    checkpoint = load_checkpoint(tmp_path, network=unet)
    assert (checkpoint.index, checkpoint.preset, checkpoint.rank) == (1000, "release", 4)
    assert same(checkpoint.motion, states[0]) and same(checkpoint.appearance[0], states[1][0])
    assert "read as the preset release" in checkpoint.info["assumed"]
    assert load_checkpoint(tmp_path / "checkpoint-200", network=unet).index == 200
    asked = load_checkpoint(tmp_path, 200, preset="tap", network=unet)
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


def test_the_folder_one_stands_in_is_a_checkpoint_of_the_run_above(tmp_path, monkeypatch):
    """As resume_from_checkpoint=. has it: the run is the folder's parent, and a single dot is its own."""
    place = tmp_path / "checkpoint-7"
    (place / "temporal").mkdir(parents=True)
    monkeypatch.chdir(place)
    assert list_checkpoints(".") == {7: place} and list_checkpoints("..") == {7: place}


def refusals(unet, run, **arguments):
    with pytest.raises(UserError) as error:
        load_checkpoint(run, network=unet, **arguments)
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
    assert "has the temporal preset tap, release was asked" in refusals(unet, tmp_path, preset="release")
    message = refusals(outline.skeleton(), tmp_path)
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


def adapter_of(folder):
    return folder / "temporal" / "adapter_model.safetensors"


def with_header(file, **changes):
    """Write other texts into the header of a safetensors file; None takes a key out."""
    with safe_open(file, "pt") as opened:
        tensors, header = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()
    header = {key: value for key, value in (header | changes).items() if value is not None}
    save_file(tensors, file, metadata=header)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize("key, value", [
    ("rank", "abc"), ("rank", "0"), ("rank", "-4"), ("rank", "4.5"), ("rank", "1e999"), ("rank", "9" * 5000),
    ("rank", "2"), ("rank", None), ("alpha", "abc"), ("alpha", "nan"), ("alpha", "inf"), ("alpha", "1e300"),
    ("alpha", "0"), ("clips", "x"), ("clips", "-1"), ("clips", "99999999999"), ("step", "../../x"), ("step", "-7"),
    ("layout", "2"), ("kind", "code"), ("preset", "all"), ("preset", None), ("config", "{a: ["), ("config", "5"),
    ("config", "[1]"), ("config", "{seed: x}"), ("config", "{train_data: {width: -64}}"), ("config", BOMB),
    ("config", "!!python/object/apply:os.system ['touch x']"), ("config", "validation_data: {guidance_scale: .nan}"),
])  # fmt: skip
def test_a_header_outside_its_schema_is_one_sentence(unet, tmp_path, key, value):
    with_header(adapter_of(save(unet, tmp_path, clips=0)), **{key: value})
    assert "\n" not in refusals(unet, tmp_path)


def test_a_header_reads_no_environment(unet, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "swordfish")
    folder = save(unet, tmp_path, clips=0)
    with_header(adapter_of(folder), config='validation_data: {negative_prompt: "${oc.env:SECRET}"}')
    config = load_checkpoint(tmp_path, network=unet).config
    assert config == {"validation_data": {"negative_prompt": "${oc.env:SECRET}"}}


@pytest.mark.parametrize("spoil", [
    lambda t: torch.full_like(t, float("nan")), lambda t: t.index_fill(0, torch.tensor([0]), float("inf")),
    lambda t: t.to(torch.complex64), lambda t: t.to(torch.int32), lambda t: t[:, 0], lambda t: t[:, :0],
    lambda t: t[None], lambda t: t.sum(), lambda t: t.to(torch.float8_e4m3fn),
])  # fmt: skip
def test_matrices_that_are_not_finite_real_and_flat_are_refused_on_reading(unet, tmp_path, spoil):
    file = adapter_of(save(unet, tmp_path, clips=0))
    with safe_open(file, "pt") as opened:
        tensors, header = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()
    name = sorted(tensors)[3]
    tensors[name] = spoil(tensors[name]).contiguous()
    save_file(tensors, file, metadata=header)
    assert name in refusals(unet, tmp_path) or "pair" in refusals(unet, tmp_path)


@pytest.mark.parametrize("part", ["motion", "appearance"])
def test_weights_that_are_not_finite_are_never_written_as_a_checkpoint(unet, tmp_path, part):
    broken = lora_state(unet, "tap" if part == "motion" else "appearance")
    name = sorted(broken)[-1]
    broken[name][0, 0] = float("nan")
    save(unet, tmp_path, 3)
    with pytest.raises(UserError, match=f"{name} of the {part}.*not saved"):
        save(unet, tmp_path, 5, clips=1, **{part: broken if part == "motion" else [broken]})
    assert list(list_checkpoints(tmp_path)) == [3]


def embeddings(folder, **sizes):
    block = "down_blocks.2.temp_attentions.0.transformer_blocks.0"
    motion = {f"{block}.query_key": torch.randn(1, 32, 64), f"{block}.attn2.value": torch.randn(4, 32, 64)}
    info = {"frames": 4, "latent_height": 8, "latent_width": 8, **sizes}
    save_checkpoint(folder, 2, motion=motion, appearance=[], kind="embeddings", config_yaml=None, info=info)


def test_the_sizes_of_embeddings_are_believed_only_where_the_embeddings_have_them(unet, tmp_path):
    embeddings(tmp_path)
    assert load_checkpoint(tmp_path, network=unet).info["latent_height"] == "8"
    for sizes in ({"frames": "x"}, {"frames": 33}, {"frames": 0}, {"latent_height": 10**9}, {"latent_height": "x"},
                  {"latent_height": 4096, "latent_width": 4096}, {"latent_height": 1, "latent_width": 1}):  # fmt: skip
        embeddings(tmp_path, **sizes)
        refusals(unet, tmp_path)


@pytest.mark.parametrize("state", [
    [], {}, {"step": 5}, {"step": "x", "optimizer": {}}, training_state(-7), training_state("x"),
    {"step": 5, "optimizer": []}, {"step": 5, "optimizer": {"optimizers": [1], "schedules": [1], "scaler": {}}},
])  # fmt: skip
def test_a_damaged_training_state_is_one_sentence(unet, tmp_path, state):
    folder = save(unet, tmp_path, clips=0, training_state=state)
    with pytest.raises(UserError, match="training_state.pt"):
        load_training_state(folder)


def test_the_moments_of_another_training_are_one_sentence(unet, tmp_path):
    folder, weights = save(unet, tmp_path, clips=0), [torch.ones(2)]
    assert load_training_state(folder, [[weights]])["step"] == 5
    for others in ([], [[[]]], [[[torch.ones(3)]]], [[weights], [weights]], [[weights * 2]], [[weights, weights]]):
        with pytest.raises(UserError, match="training_state.pt"):
            load_training_state(folder, others)
    for name, value in (("exp_avg", float("nan")), ("exp_avg_sq", -1.0), ("step", -1.0)):
        state = training_state()
        state["optimizer"]["optimizers"][0]["state"][0][name].fill_(value)
        with pytest.raises(UserError, match=name):
            load_training_state(save(unet, tmp_path, clips=0, training_state=state))


def test_adamw_goes_on_from_moments_in_the_bits_that_it_keeps_them_in(unet, tmp_path):
    weights, state = [[[torch.ones(2)]]], training_state()
    plain = save(unet, tmp_path / "plain", clips=0, training_state=state)
    moments, of_all = {"state1": torch.ones(2), "state2": torch.ones(2)}, state["optimizer"]["optimizers"][0]["state"]
    of_all[0] = {"step": 5, **moments}
    small = save(unet, tmp_path / "small", clips=0, training_state=state)
    of_all[0] = {"step": 5, "__bnb_optimizer_quant_state__": moments}  # as bitsandbytes 0.50 writes them
    wrapped = save(unet, tmp_path / "wrapped", clips=0, training_state=state)
    for folder, written in ((plain, False), (small, True), (wrapped, True)):
        assert load_training_state(folder, weights, "adamw", written)["step"] == 5
        with pytest.raises(UserError, match=f"^use_8bit_adam: .*resume with use_8bit_adam={str(written).lower()}$"):
            load_training_state(folder, weights, "adamw", not written)
    del moments["state2"]
    with pytest.raises(UserError, match="has no state2"):
        load_training_state(save(unet, tmp_path / "cut", clips=0, training_state=state), weights)


def test_a_schedules_methods_are_not_replaced_by_what_a_file_says(unet, tmp_path):
    state = training_state()
    state["optimizer"]["schedules"][0]["step"] = 3
    folder = save(unet, tmp_path, clips=0, training_state=state)
    assert "step" not in load_training_state(folder)["optimizer"]["schedules"][0]


def test_unreadable_missing_and_truncated_are_told_apart(unet, tmp_path):
    file = adapter_of(save(unet, tmp_path, clips=0))
    content = file.read_bytes()
    for cut in (0, 4, 100, len(content) - 1):
        file.write_bytes(content[:cut])
        assert "truncated" in refusals(unet, tmp_path)
    file.write_bytes((2**40).to_bytes(8, "little") + content[8:])
    assert "truncated" in refusals(unet, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_tensors(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        read_tensors(tmp_path)


def test_too_little_room_is_found_before_a_checkpoint_is_begun(unet, tmp_path, monkeypatch):
    monkeypatch.setattr("configs.files.shutil.disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(NoSpace) as error:
        save(unet, tmp_path)
    assert "are needed and 100,000 bytes are free" in ending(error.value)[0] and not list(tmp_path.iterdir())


def test_a_file_that_may_not_be_read_is_not_called_damaged(unet, tmp_path, monkeypatch):
    folder, real = save(unet, tmp_path, clips=0), open

    def forbidden(path, *arguments, **named):
        if str(path).endswith((".safetensors", ".pt")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr("builtins.open", forbidden)
    assert "cannot be read (Permission denied)" in refusals(unet, tmp_path)
    with pytest.raises(UserError, match="cannot be read .Permission denied"):
        load_training_state(folder)


def test_a_pickle_that_claims_more_memory_than_there_is_is_refused(tmp_path, monkeypatch):
    def huge(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")

    torch.save([torch.zeros(2, 2)], tmp_path / "1_unet.pt")
    monkeypatch.setattr(torch, "load", huge)
    with pytest.raises(UserError, match="more memory than there is"):
        release.read_list(tmp_path / "1_unet.pt")


@pytest.mark.parametrize("tensor", [
    torch.ones(1, 1).expand(2**21, 2**21), torch.zeros(2, 2, device="meta"), torch.eye(3).to_sparse(),
    torch.ones(1000).as_strided((400, 400), (1, 1)),
])  # fmt: skip
def test_tensors_that_the_file_does_not_hold_are_refused(tmp_path, tensor):
    torch.save([tensor, torch.zeros(2, 2)], tmp_path / "1_unet.pt")
    with pytest.raises(UserError, match="not held whole"):
        release.read_list(tmp_path / "1_unet.pt")
    shared = torch.ones(2000)
    torch.save([shared.view(20, 100)] * 2 + [shared.view(100, 20)[:, :10]] * 20, tmp_path / "1_unet.pt")
    with pytest.raises(UserError, match="share their numbers"):
        release.read_list(tmp_path / "1_unet.pt")


SCHEDULES = ["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_state_of_every_schedule_is_taken_over(unet, tmp_path, name):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=1e-2)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=10)
    for _ in range(4):
        weight.grad = torch.ones(2)
        optimizer.step()
        schedule.step()
    parts = {"optimizers": [optimizer.state_dict()], "schedules": [schedule.state_dict()], "scaler": {}}
    folder = save(unet, tmp_path, clips=0, training_state={"step": 4, "optimizer": parts})
    loaded = load_training_state(folder, [[[weight]]])["optimizer"]
    assert loaded["schedules"][0] == schedule.state_dict()
    assert torch.equal(loaded["optimizers"][0]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_checkpoint_that_names_a_norm_does_not_fit(unet, tmp_path):
    """A norm has a weight of one axis."""
    folder = save(unet, tmp_path)
    adapter = folder / "temporal" / "adapter_model.safetensors"
    tensors, header = read_tensors(adapter)
    (layer,) = {name.rsplit(".lora_", 1)[0] for name in list(tensors)[:1]}
    norm = next(name for name, module in unet.named_modules() if isinstance(module, torch.nn.GroupNorm))
    renamed = {name.replace(layer + ".lora_", norm + ".lora_"): tensor for name, tensor in tensors.items()}
    write_tensors(renamed, adapter, header)
    assert "does not fit this model" in refusals(unet, tmp_path)


@pytest.mark.parametrize("damage", ["encrypted", "broken stream"])
def test_an_archive_that_cannot_be_unpacked_is_one_sentence(damage, tmp_path):
    path = tmp_path / "state.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", os.urandom(200))
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    if damage == "encrypted":
        for flags in (6, central + 8):
            content[flags] |= 1
    else:
        content[30 + len("archive/data.pkl")] = 0xFF  # a block of a kind that deflate does not have
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated, or not a PyTorch file"):
        check_pickle(path)
