"""A motion LoRA of Wan in the files of other programs, there and back, and in the stock pipeline."""

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from models.backbone import Backbone
from models.backbones import architecture
from models.files.checkpoint import load_checkpoint, save_checkpoint
from models.files.header import read_header
from models.lora import add_adapter
from models.merge import attach_lora
from models.outline import skeleton
from models.targets import targets
from scripts.conversion.inspection import inspect
from scripts.conversion.reading import read
from scripts.conversion.writing import convert

RANK, ALPHA = 4, 6.0
LAYERS = {  # a layer's name in Wan's own code -> in diffusers
    **{f"{theirs}.{letter}": f"{ours}.{part}"
       for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
       for letter, part in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}  # fmt: skip


def random_state(network, preset, seed):
    adapter = add_adapter(network, f"a{seed}", preset, RANK, generator=torch.Generator().manual_seed(seed))
    state = adapter.state_dict()
    adapter.remove()
    generator = torch.Generator().manual_seed(seed + 1)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def run(tiny_wan, tmp_path_factory):
    """A run folder with a motion adapter of every layer, and one appearance adapter; alpha is not the rank."""
    network, folder = Backbone.load(tiny_wan).network, tmp_path_factory.mktemp("run")
    save_checkpoint(
        folder,
        7,
        motion=random_state(network, "motiondirector", 1),
        appearance=[random_state(network, "appearance", 2)],
        kind="lora",
        config_yaml=None,
        info={"preset": "motiondirector", "rank": RANK, "alpha": ALPHA, "architecture": architecture(network)},
    )
    return folder


@pytest.mark.parametrize("kind", ["diffusers", "comfyui", "musubi", "peft"])
def test_there_and_back_keeps_every_bit(kind, run, tmp_path):
    before = read(run)
    there = convert(kind, run, tmp_path / kind, None, None, None)
    back = read(convert("ours", there, tmp_path / "back", None, None, None).parent)
    for ours, theirs in zip([before.motion, *before.appearance], [back.motion, *back.appearance], strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (back.preset, back.rank, back.scale, back.index) == ("motiondirector", RANK, ALPHA / RANK, 7)
    assert back.info["architecture"] == before.info["architecture"]
    assert "preset: motiondirector, 12 layers, rank 4, scale 1.5" in inspect(there, None)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("diffusers", "transformer.blocks.0.attn1.to_q.lora_A.weight"),
        ("comfyui", "diffusion_model.blocks.0.self_attn.q.lora_A.weight"),
        ("comfyui", "diffusion_model.blocks.1.self_attn.o.alpha"),
        ("comfyui", "diffusion_model.blocks.1.ffn.0.lora_B.weight"),
        ("musubi", "lora_unet_blocks_0_self_attn_q.lora_down.weight"),
        ("musubi", "lora_unet_blocks_1_ffn_2.alpha"),
    ],
)
def test_names_are_those_of_the_other_program(kind, name, run, tmp_path):
    folder = convert(kind, run, tmp_path / kind, None, None, None)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    assert name in tensors
    assert not name.endswith("alpha") or tensors[name] == ALPHA


@pytest.mark.parametrize("kind", ["diffusers", "comfyui"])
def test_the_stock_pipeline_loads_it_and_predicts_the_same(kind, run, tiny_wan, tmp_path):
    (file,) = convert(kind, run, tmp_path / kind, None, None, None).glob("*.safetensors")
    pipe, network, checkpoint = WanPipeline.from_pretrained(tiny_wan), Backbone.load(tiny_wan).network, read(run)
    given = torch.ones(1, 4, 2, 4, 4), torch.tensor([500.0]), torch.ones(1, 5, 64)
    plain = pipe.transformer(*given).sample
    pipe.load_lora_weights(file)
    with torch.no_grad(), attach_lora(network, checkpoint.motion, 1.0, checkpoint.scale):
        ours, theirs = network(*given).sample, pipe.transformer(*given).sample
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(ours, plain, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("alpha", [6.0, 4.1])
@pytest.mark.parametrize("kind", ["comfyui", "musubi"])
def test_a_trainers_file_of_all_layers_can_be_sampled_and_goes_back_to_the_bit(kind, dtype, alpha, tiny_wan, tmp_path):
    """Trainers adapt self-attention, cross-attention and feed-forward, which is no preset of ours."""
    alpha = torch.tensor(alpha).to(dtype)
    matrices = (
        ("lora_A", "lora_B", "diffusion_model.", ".")
        if kind == "comfyui"
        else ("lora_down", "lora_up", "lora_unet_", "_")
    )
    down, up, prefix, dot = matrices
    attention = [f"{which}_attn.{part}" for which in ("self", "cross") for part in "qkvo"]
    sizes = {part: (24, 24) for part in attention} | {"ffn.0": (32, 24), "ffn.2": (24, 32)}
    generator, tensors = torch.Generator().manual_seed(5), {}
    for block in (0, 1):
        for part, (outs, ins) in sizes.items():
            name = prefix + f"blocks.{block}.{part}".replace(".", dot)
            tensors[f"{name}.{down}.weight"] = torch.randn(RANK, ins, generator=generator).to(dtype)
            tensors[f"{name}.{up}.weight"] = torch.randn(outs, RANK, generator=generator).to(dtype)
            tensors[f"{name}.alpha"] = alpha.clone()
    save_file(tensors, tmp_path / "somebody.safetensors")
    run = convert("ours", tmp_path / "somebody.safetensors", tmp_path / "ours", None, None, None).parent
    network = Backbone.load(tiny_wan).network
    checkpoint = load_checkpoint(run, network=network)
    assert checkpoint.preset is None and len(checkpoint.motion) == 2 * len(sizes) * 2
    (file,) = convert(kind, run, tmp_path / "back", None, None, None).glob("*.safetensors")
    back = load_file(file)
    assert back.keys() == tensors.keys()
    assert all(back[name].dtype == dtype and torch.equal(back[name], tensors[name]) for name in tensors)
    given = torch.ones(1, 4, 2, 4, 4), torch.tensor([500.0]), torch.ones(1, 5, 64)
    with torch.no_grad():
        plain = network(*given).sample
        with attach_lora(network, checkpoint.motion, 1.0, checkpoint.scale):
            ours = network(*given).sample
        for block in (0, 1):
            for theirs, layer in LAYERS.items():
                name, weight = prefix + f"blocks.{block}.{theirs}".replace(".", dot), network.blocks[block]
                weight = weight.get_submodule(layer).weight
                up_matrix, down_matrix = (tensors[f"{name}.{part}.weight"].float() for part in (up, down))
                weight += alpha.float() / RANK * up_matrix @ down_matrix
        theirs = network(*given).sample
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(ours, plain, atol=1e-2)


def test_a_file_without_alpha_and_of_single_layers_is_read_at_scale_one(tiny_wan, tmp_path):
    name = "diffusion_model.blocks.{}.self_attn.{}.lora_{}.weight"
    tensors = {
        name.format(block, part, matrix): torch.ones((2, 24) if matrix == "down" else (24, 2))
        for block in (0, 1)
        for part in "qk"
        for matrix in ("down", "up")
    }
    save_file(tensors, tmp_path / "somebody.safetensors")
    checkpoint = read(tmp_path / "somebody.safetensors")
    assert (checkpoint.preset, checkpoint.rank, checkpoint.scale) == ("tap", 2, 1.0)
    layers = {key.rsplit(".lora_", 1)[0] for key in checkpoint.motion}
    assert layers == set(targets(skeleton(tiny_wan), "tap"))


def test_alphas_that_differ_between_layers_keep_their_effect(tmp_path):
    tensors = {}
    for part, alpha in (("q", 2.0), ("k", 4.0)):
        tensors[f"lora_unet_blocks_0_self_attn_{part}.lora_down.weight"] = torch.ones(2, 24)
        tensors[f"lora_unet_blocks_0_self_attn_{part}.lora_up.weight"] = torch.ones(24, 2)
        tensors[f"lora_unet_blocks_0_self_attn_{part}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "mixed.safetensors")
    checkpoint = read(tmp_path / "mixed.safetensors")
    strengths = {
        part: checkpoint.scale * checkpoint.motion[f"blocks.0.attn1.to_{part}.lora_B.weight"][0, 0].item()
        for part in "qk"
    }
    assert strengths == {"q": 1.0, "k": 2.0}


def test_what_has_no_place_in_a_dialect_is_one_sentence(trained, tmp_path):
    with pytest.raises(UserError, match="which no Wan transformer has, so it has no place in a musubi file"):
        convert("musubi", trained(), tmp_path / "out", None, None, None)
    assert not (tmp_path / "out").exists()
    file = tmp_path / "strange.safetensors"
    save_file({"diffusion_model.blocks.0.norm_q.diff": torch.ones(2)}, file)
    with pytest.raises(UserError, match=r"norm_q\.diff' is no LoRA matrix of a Wan transformer's block"):
        read(file)
    save_file({"other": torch.ones(2)}, file)
    with pytest.raises(UserError, match="expected a .pt, .* or a LoRA file of diffusers, ComfyUI or musubi-tuner"):
        read(file)


def test_a_whole_number_is_an_alpha_and_two_numbers_are_none(tmp_path):
    """musubi-tuner's converter stores the rank as it is."""
    key, file = "lora_unet_blocks_0_self_attn_q", tmp_path / "theirs.safetensors"
    matrices = {f"{key}.lora_down.weight": torch.ones(2, 24), f"{key}.lora_up.weight": torch.ones(24, 2)}
    save_file({**matrices, f"{key}.alpha": torch.tensor(4)}, file)
    assert read(file).scale == 2.0
    save_file({**matrices, f"{key}.alpha": torch.tensor([4.0, 4.0])}, file)
    with pytest.raises(UserError, match="q.alpha' holds 2 numbers where one is needed"):
        read(file)


def test_a_file_of_diffusers_may_have_any_name(run, tmp_path):
    (file,) = convert("diffusers", run, tmp_path / "made", None, None, None).glob("*.safetensors")
    renamed = file.rename(file.with_name("my_motion.safetensors"))
    assert read(renamed).motion.keys() == read(run).motion.keys()


@pytest.mark.parametrize("shares", ["", "0.5", "0 0.5 1"])
def test_a_range_of_blocks_is_two_shares(shares, tmp_path):
    with pytest.raises(UserError, match="block_range.* no two shares such as '0.0 0.5'"):
        read_header({"block_range": shares}, tmp_path)
    assert read_header({"block_range": "0.0 0.5"}, tmp_path).block_range == [0.0, 0.5]
