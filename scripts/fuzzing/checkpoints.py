"""Checkpoints of ours that are not as we wrote them: headers, configurations, tensors, bytes, training states."""

import json
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from configs.fields import KEYS, SECTIONS
from configs.plain import dump_yaml, read_yaml
from data import cache
from data.clips import Cut, read_image, read_video
from infer import options, video
from infer.request import read_request
from models.files.checkpoint import load_checkpoint
from models.files.pipeline import check_pipeline
from models.files.training_state import load_training_state
from models.outline import skeleton
from scripts.conversion.reading import read
from scripts.fuzzing.ground import Ground, rewrite, training_state
from scripts.fuzzing.values import changes, damage, damaged, plain, texts, values

ADAPTER = "checkpoint-2/temporal/adapter_model.safetensors"


def finite(*states: dict[str, torch.Tensor]) -> bool:
    """Is every number of these adapters finite?"""
    return all(tensor.isfinite().all() for state in states for tensor in state.values())


def _texts(case: dict[str, Any]) -> dict[str, str | None]:
    """As the header of a safetensors file holds it: texts that UTF-8 can write, None where a key is taken out."""
    found = {
        key: value if isinstance(value, str) or value is None else json.dumps(value) for key, value in case.items()
    }
    return {key: value and value.encode("utf-8", "replace").decode() for key, value in found.items()}


whole_texts = texts | st.integers(-2, 70).map(str)
header_keys = ("rank", "alpha", "clips", "step", "kind", "preset", "layout", "config", "architecture")
header = changes(**{key: whole_texts for key in header_keys}).map(_texts)
size_keys = ("frames", "latent_height", "latent_width")
sizes = changes(**{key: whole_texts for key in size_keys}).map(_texts)
stored = changes(**{name: plain for name in KEYS if "." not in name}, **{name: values for name in SECTIONS})


def checkpoint_header(ground: Ground, case: dict[str, str]) -> None:
    rewrite(ground.copy("run") / ADAPTER, header=case)
    _sample(ground)


def stored_configuration(ground: Ground, case: dict[str, Any]) -> None:
    text = dump_yaml(read_yaml(json.dumps(case), "case"))
    rewrite(ground.copy("run") / ADAPTER, header={"config": text})
    _sample(ground)


def _sample(ground: Ground) -> None:
    """Everything that infer.py does with a checkpoint before the model is loaded."""
    run = ground.work / "inputs" / "run"
    args = options.parse(["--checkpoint_folder", str(run), "--prompt", "x", "--model", ground.model])
    request = read_request(args)
    request.report(torch.device("cpu"))
    checkpoint, settings = request.sources[0].checkpoint, request.settings
    assert finite(checkpoint.motion, *checkpoint.appearance) and 0 < checkpoint.scale < 1e9
    assert 0 < settings.width <= 65_536 and 1 <= settings.num_steps <= 999 and 0 <= settings.guidance_scale <= 1000
    (ground.out / "sidecar.json").write_text(json.dumps([settings.values, checkpoint.config]), encoding="utf-8")


def embeddings_header(ground: Ground, case: dict[str, str]) -> None:
    rewrite(ground.copy("embeddings") / "checkpoint-2" / "embeddings.safetensors", header=case)
    checkpoint = load_checkpoint(ground.work / "inputs" / "embeddings", network=ground.unet)
    assert int(checkpoint.info.get("latent_height", 8)) <= 4096


SPOILS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda t: t * float("nan"),
    "inf": lambda t: t + float("inf"),
    "one inf": lambda t: t.clone().index_fill_(0, torch.tensor([0]), float("inf")),
    "huge": lambda t: t * 1e30,
    "complex": lambda t: t.to(torch.complex64),
    "int": lambda t: t.to(torch.int64),
    "bool": lambda t: t > 0,
    "half": lambda t: t.half(),
    "bfloat": lambda t: t.bfloat16(),
    "double": lambda t: t.double(),
    "float8": lambda t: t.to(torch.float8_e5m2),
    "flat": lambda t: t.flatten(),
    "deep": lambda t: t[None],
    "empty": lambda t: t[:0],
    "scalar": lambda t: t.sum(),
    "turned": lambda t: t.transpose(0, -1),
    "wide": lambda t: torch.cat([t, t], -1),
    "tall": lambda t: torch.cat([t, t]),
}
tensor_cases = st.tuples(
    st.sampled_from(["run", "embeddings", "cached"]),
    st.sampled_from(sorted(SPOILS)),
    st.integers(0, 400),
    st.booleans(),
)


def tensors(ground: Ground, case: tuple[str, str, int, bool]) -> None:
    where, spoil, number, drop = case
    names = {"run": f"run/{ADAPTER}", "embeddings": "embeddings/checkpoint-2/embeddings.safetensors"}
    root = ground.copy("embeddings" if where == "embeddings" else "run")
    file = root.parent / names.get(where, "run/cached_latents/cached_0.safetensors")

    def change(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = sorted(state)[number % len(state)]
        state[name] = SPOILS[spoil](state[name]).contiguous()
        if drop:
            del state[sorted(state)[(number + 1) % len(state)]]
        return state

    rewrite(file, tensors=change)
    if where == "cached":
        clip = cache.read_cached(file)
        assert clip.latents.ndim == 5 and clip.latents.isfinite().all()
    else:
        checkpoint = load_checkpoint(root, network=ground.unet)
        assert finite(checkpoint.motion, *checkpoint.appearance)


SPOILED = {  # file -> how it is read
    f"run/{ADAPTER}": lambda ground, path: load_checkpoint(path.parents[2], network=ground.unet),
    "run/cached_latents/cached_0.safetensors": lambda ground, path: cache.read_cached(path),
    "run/checkpoint-2/training_state.pt": lambda ground, path: load_training_state(path.parent, [[[torch.ones(2)]]]),
    "theirs/checkpoint-2/temporal/lora/2_unet.pt": lambda ground, path: read(path, None, ground.model, "tap"),
    "cached_0.pt": lambda ground, path: cache.read_cached(path),
    "peft/adapter_model.safetensors": lambda ground, path: read(path),
    "peft/adapter_config.json": lambda ground, path: read(path.parent),
    "diffusers/pytorch_lora_weights.safetensors": lambda ground, path: read(path),
    "clip.gif": lambda ground, path: (read_video(path, Cut(16, 16, 4), "x"), video.read_frames(path)),
    "clip.mp4": lambda ground, path: read_video(path, Cut(16, 16, 4), "x"),
    "picture.png": lambda ground, path: read_image(path, Cut(16, 16, 1), "x"),
    "frames/0003.png": lambda ground, path: video.read_frames(path.parent),
    "model/unet/config.json": lambda ground, path: skeleton(path.parents[1]),
    "model/tokenizer/tokenizer.json": lambda ground, path: check_pipeline(path.parents[1]),
}


def damaged_files(ground: Ground, case: tuple[str, tuple]) -> None:
    name, how = case
    root = ground.copy(name.split("/")[0])
    path = root.parent / name
    path.write_bytes(damaged(path.read_bytes(), how))
    SPOILED[name](ground, path)


def state_file(ground: Ground, case: list[tuple[list[Any], Any]]) -> None:
    """A training state in which values at some paths were replaced."""
    state: Any = training_state()
    for path, value in case:
        place = state
        for step in path[:-1]:
            place = place[step] if isinstance(place, (dict, list)) and _has(place, step) else {}
        if isinstance(place, (dict, list)) and _has(place, path[-1]):
            place[path[-1]] = value
    torch.save(state, ground.inputs() / "training_state.pt")
    loaded = load_training_state(ground.inputs(), [[[torch.ones(2)]]])
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    optimizer.load_state_dict(loaded["optimizer"]["optimizers"][0])
    schedule.load_state_dict(loaded["optimizer"]["schedules"][0])
    assert loaded["step"] >= 0


def _has(place: dict | list, step: Any) -> bool:
    return step in place if isinstance(place, dict) else isinstance(step, int) and step < len(place)


damage_cases = st.tuples(st.sampled_from(sorted(SPOILED)), damage)
first = ["optimizer", "optimizers", 0]
state_paths = st.sampled_from([
    ["step"], ["optimizer"], ["optimizer", "optimizers"], first, [*first, "state"], [*first, "state", 0],
    [*first, "state", 0, "exp_avg"], [*first, "state", 0, "exp_avg_sq"], [*first, "state", 0, "step"],
    [*first, "param_groups"], [*first, "param_groups", 0], [*first, "param_groups", 0, "params"],
    ["optimizer", "schedules"], ["optimizer", "schedules", 0], ["optimizer", "schedules", 0, "last_epoch"],
    ["optimizer", "schedules", 0, "lr_lambdas"], ["optimizer", "scaler"],
])  # fmt: skip
writable = values.filter(lambda value: "\\ud800" not in repr(value))  # what a pickle can hold
state_cases = st.lists(st.tuples(state_paths, writable), max_size=2)
