"""The authors' positional files: naming, order, what fits, and files that mean harm or are damaged."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from configs.errors import UserError
from models.backbones.unet3d import PRESETS
from models.files import release
from models.outline import skeleton
from models.targets import targets

GOLDEN = Path(__file__).parent / "golden" / "lora_train" / "checkpoint-200"
TINY = {
    "block_out_channels": (32, 64, 96, 96),
    "layers_per_block": 2,
    "cross_attention_dim": 32,
    "attention_head_dim": 16,
}


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(TINY))
    return skeleton(folder)


def positional(unet, preset, rank=4, clips=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for out, width in release.layer_shapes(unet, preset).values():
        r = min(rank, out, width)
        for _ in range(clips):
            tensors += [torch.randn(out, r, generator=generator), torch.randn(r, width, generator=generator)]
    return tensors


class Malicious:
    """Unpickled the ordinary way, this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_the_authors_file_gets_its_names_in_module_order(unet):
    preset, motion, (appearance,) = release.read_lora(GOLDEN, unet, None)
    tensors = torch.load(GOLDEN / "temporal" / "lora" / "200_unet.pt", weights_only=True)
    names = targets(unet, "release")
    assert preset == "release" and len(motion) == 136 and len(appearance) == 192
    assert names[0] == "transformer_in.transformer_blocks.0.attn1.to_k" and names[-1].startswith("mid_block.")
    for layer, name in enumerate(names):
        assert torch.equal(motion[f"{name}.lora_B.weight"], tensors[2 * layer])
        assert torch.equal(motion[f"{name}.lora_A.weight"], tensors[2 * layer + 1])


def test_a_written_file_is_what_the_authors_code_pickles(unet, tmp_path):
    preset, motion, appearance = release.read_lora(GOLDEN, unet, None)
    release.write_lora(tmp_path, 200, unet, preset, motion, appearance)
    for side in ("temporal", "spatial"):
        theirs = torch.load(GOLDEN / side / "lora" / "200_unet.pt", weights_only=True)
        ours = torch.load(tmp_path / side / "lora" / "200_unet.pt", weights_only=True)
        assert type(ours) is list and [type(t) for t in ours] == [type(t) for t in theirs]
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))


def test_several_clips_are_interleaved_layer_by_layer_and_come_apart_again(unet):
    clips = [
        release.name_tensors(positional(unet, "appearance", seed=i), targets(unet, "appearance"))[0] for i in (1, 2, 3)
    ]
    tensors = release.list_tensors(clips, targets(unet, "appearance"))
    first = targets(unet, "appearance")[0]
    assert all(torch.equal(tensors[2 * i], clips[i][f"{first}.lora_B.weight"]) for i in range(3))
    assert release.identify(tensors, unet) == {"appearance": 3}
    again = release.name_tensors(tensors, targets(unet, "appearance"), 3)
    assert all(torch.equal(again[i][name], clips[i][name]) for i in range(3) for name in clips[i])


def test_shapes_name_the_preset_wherever_they_can(unet):
    motion = [preset for preset in PRESETS if preset != "appearance"]
    for preset in motion:
        shapes = [*release.layer_shapes(unet, preset).values()]
        alike = {other for other in motion if [*release.layer_shapes(unet, other).values()] == shapes}
        assert set(release.identify(positional(unet, preset), unet)) == alike
    assert release.choose_preset(Path("f.pt"), positional(unet, "motiondirector"), unet, None) == ("motiondirector", 1)
    assert release.choose_preset(Path("f.pt"), positional(unet, "tap"), unet, "tap") == ("tap", 1)


def test_a_rank_beyond_a_layers_width_is_read_as_the_release_clips_it(unet):
    assert "motiondirector" in release.identify(positional(unet, "motiondirector", rank=48), unet)


def test_presets_that_shapes_can_not_tell_apart_are_asked_for(unet):
    with pytest.raises(UserError, match="tap_key, query, value, out.* name one of them"):
        release.choose_preset(Path("f.pt"), positional(unet, "tap_key"), unet, None)


def test_a_mismatch_says_what_the_file_looks_like(unet):
    with pytest.raises(UserError, match="do not fit the preset tap; they look like motiondirector"):
        release.choose_preset(Path("f.pt"), positional(unet, "motiondirector"), unet, "tap")
    full = positional(skeleton(), "release", rank=1)
    with pytest.raises(UserError, match="look like tap or release on ZeroScope"):
        release.choose_preset(Path("f.pt"), full, unet, None)
    with pytest.raises(UserError, match="tensors are missing, left over, or of another model"):
        release.choose_preset(Path("f.pt"), positional(unet, "release")[:-2], unet, None)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_execute_is_refused_and_does_not(tmp_path, protocol):
    proof, file = tmp_path / "executed", tmp_path / "1_unet.pt"
    with open(file, "wb") as out:
        pickle.dump([Malicious(proof)], out, protocol=protocol)
    with pytest.raises(UserError, match="nothing in it was executed"):
        release.read_list(file)
    torch.save([torch.zeros(2, 2), Malicious(proof)], file)
    with pytest.raises(UserError, match="nothing in it was executed"):
        release.read_list(file)
    assert not proof.exists()


def test_damaged_files_are_refused_in_a_sentence(tmp_path):
    whole = (GOLDEN / "temporal" / "lora" / "200_unet.pt").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-100], whole[:10], b"", b"hello"):
        (tmp_path / "f.pt").write_bytes(content)
        with pytest.raises(UserError, match="truncated|refused"):
            release.read_list(tmp_path / "f.pt")


def test_a_list_with_one_tensor_too_many_is_refused(unet, tmp_path):
    torch.save([*positional(unet, "release"), torch.zeros(4, 4)], tmp_path / "f.pt")
    with pytest.raises(UserError, match="137 tensors do not pair up"):
        release.read_list(tmp_path / "f.pt")
    torch.save([1, 2], tmp_path / "f.pt")
    with pytest.raises(UserError, match="expected a list of LoRA matrices"):
        release.read_list(tmp_path / "f.pt")


def test_motion_inversions_embeddings_go_there_and_back(tmp_path):
    block = "down_blocks.2.temp_attentions.0.transformer_blocks.0"
    state = {f"{block}.query_key": torch.randn(1, 32, 96), f"{block}.attn1.value": torch.randn(4, 32, 96)}
    release.write_embeddings(state, tmp_path / "motion_embed.pt")
    theirs = torch.load(tmp_path / "motion_embed.pt", weights_only=True)
    assert list(theirs) == [f"{block}.pos_embed", f"{block}.attn1.vSpatial"]
    again = release.read_embeddings(tmp_path / "motion_embed.pt")
    assert all(torch.equal(again[name], state[name]) for name in state)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "motion_embed.pt")
    with pytest.raises(UserError, match="no embedding"):
        release.read_embeddings(tmp_path / "motion_embed.pt")


def test_a_model_folder_without_a_unet_is_said(tmp_path):
    with pytest.raises(UserError, match="no unet/config.json"):
        skeleton(tmp_path)
