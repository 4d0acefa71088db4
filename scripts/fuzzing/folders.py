"""Other people's folders: adapters of PEFT, converted to every kind, and model folders with wrong settings."""

import json
from typing import Any

from hypothesis import strategies as st

from infer.settings import read_native
from models.files.pipeline import check_pipeline
from models.outline import skeleton
from scripts.conversion.inspection import inspect
from scripts.conversion.reading import read
from scripts.conversion.writing import convert
from scripts.fuzzing.checkpoints import finite
from scripts.fuzzing.ground import Ground
from scripts.fuzzing.values import changes, json_text, numbers, plain, texts, values

PATTERNS = ["to_q", "attn1.to_k", "down.*to_v", "(a+)+$", ".*.*.*.*x", "[", "(?:x"]
adapter = changes(
    r=numbers,
    lora_alpha=numbers,
    use_rslora=plain,
    use_dora=plain,
    peft_type=texts,
    alpha_pattern=st.dictionaries(st.sampled_from(PATTERNS) | texts, numbers, max_size=3),
)
conversion_cases = st.tuples(adapter, st.sampled_from(["ours", "peft", "diffusers", "release"]))


def conversion(ground: Ground, case: tuple[dict[str, Any], str]) -> None:
    change, kind = case
    folder = ground.copy("peft")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")) | change
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    print("\n".join(inspect(folder, None)))
    made = convert(kind, folder, ground.out / "made", None, ground.model, None)
    back = read(made, None, ground.model, "tap" if kind == "release" else None)
    assert finite(back.motion, *back.appearance)


def model_folder(ground: Ground, case: tuple[str, Any]) -> None:
    name, change = case
    folder = ground.copy("model")
    file = folder / name
    try:
        content = json.loads(file.read_text(encoding="utf-8")) | json.loads(change)
        file.write_text(json.dumps(content), encoding="utf-8")
    except (ValueError, TypeError, RecursionError):
        file.write_bytes(change.encode("utf-8", "surrogatepass"))
    check_pipeline(folder)
    read_native(folder)
    assert skeleton(folder).config.in_channels > 0


def settings_of(name: str, **keys: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, str]]:
    """A file of settings in which some keys have other values, as JSON or as text that is none."""
    return st.tuples(st.just(name), json_text(changes(**keys)))


SHAPES = ("block_out_channels", "layers_per_block", "attention_head_dim", "cross_attention_dim", "down_block_types")
NATIVE = ("width", "height", "num_frames", "num_steps", "guidance_scale", "negative_prompt", "fps", "noise_prior")
model_cases = st.one_of(
    settings_of("unet/config.json", **{key: values for key in (*SHAPES, "norm_num_groups", "act_fn")}),
    settings_of(
        "scheduler/scheduler_config.json", prediction_type=texts, num_train_timesteps=numbers, beta_start=numbers
    ),
    settings_of("vae/config.json", scaling_factor=numbers, block_out_channels=values),
    settings_of("tokenizer/tokenizer_config.json", model_max_length=numbers),
    settings_of("sampling.json", **{key: plain for key in NATIVE}),
)
