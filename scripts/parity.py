"""Compare this implementation with reference numbers: `python scripts/parity.py FOLDER [--assets FOLDER]`.

FOLDER holds reference files (scripts/reference.py), told apart by their prefix: unet_, ah_, lora_*_forward, losses,
inversion, infer_*, train_trace_*. Everything is read from the files: sizes, ranks, presets, steps, and the U-Net
itself. Pipeline, checkpoint and cache folders are looked for in FOLDER and in --assets. Prints a Markdown table; exit
code 1 when a difference is over its tolerance or a case can not be run, 2 when there is none.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: several times faster on a busy machine

import torch
from diffusers import DDIMScheduler

from configs.errors import UserError, command
from data.cache import read_cached
from infer.inversion import ddim_invert, inversion_step
from infer.noise import blend
from infer.sampler import sample
from models import methods
from models.checkpoint import load_checkpoint
from models.highway import attach_highway
from models.hooks import bypass_single_frames
from models.lora import PRESETS, active, add_adapter, merge, targets
from models.objective import Draw
from models.optimizer import DualPathOptimizer
from scripts.reference import Reference, Row
from train import training_step

LATENTS = 2e-5  # relative to the largest value, after many passes
LOSS = 2e-6
GRADIENT = 1e-4  # relative to the largest value of the tensor; the smallest gradients carry most rounding
WEIGHTS = 1e-6  # mean error of trained weights
EXACT = 1e-6  # arithmetic without a network
UNGUARDED = ("mid_block.temp_convs.0",)  # runs at one frame in the release without gradient checkpointing
NO_HIGHWAY = SimpleNamespace(use="off", scope="release", beta=1.0)
# (s1, s2, b1, b2) behind the keys of an ah_ file; the last is the only one that touches hidden states
AH_SCALES = {"ah_noscale": (1, 1, 1, 1), "ah_no_infer_kwarg": (1, 1, 1, 1), "ah_s1": (1.1, 1, 1, 1),
             "ah_s1s2": (1.1, 0.9, 1, 1), "ah_all": (1.1, 0.9, 1.2, 1.3)}
LOSS_NAMES = {"spatial": "loss_spatial", "temporal": "loss_mse", "debiased": "loss_ad"}  # ours and the files'
INFER_KEY = re.compile(r"infer_(noscale|s11)_(s1|s05)")


def unet_case(ref: Reference) -> Iterator[Row]:
    """The plain U-Net, and one frame with all, all but one, or no temporal layers bypassed."""
    unet = ref.unet()
    for key in ("out", "out_f64", "out_gradckpt", "out_stock018"):
        if key in ref.data:
            yield ref.row(key, ref.forward(unet))
    if "out_odd" in ref.data:
        with torch.no_grad():
            yield ref.row("out_odd", unet(ref.data["sample_odd"], 333, ref.data["text"][:1]).sample)
    if "out_stock018_one_frame" in ref.data:
        yield ref.row("out_stock018_one_frame", ref.forward(unet, "sample_one_frame"))
    for key, keep in ("out_one_frame_gradckpt", ()), ("out_one_frame", UNGUARDED):
        if key in ref.data:
            with bypass_single_frames(unet, keep):
                yield ref.row(key, ref.forward(unet, "sample_one_frame"))


def highway_case(ref: Reference) -> Iterator[Row]:
    """The highway in the release's scope, for each set of scales; and its wiring table, row by row."""
    unet = ref.unet()
    for key in sorted(AH_SCALES.keys() & ref.data.keys()):
        with attach_highway(unet, "release", scales=AH_SCALES[key]) as highway:
            yield ref.row(key, ref.forward(unet))
            if key == "ah_s1s2" and ref.has_settings(f"{ref.stem}_wiring"):
                wiring = ref.settings(f"{ref.stem}_wiring")
                ours = [{name: getattr(skip, name) for name in row} for skip, row in zip(highway.skips, wiring)]
                yield Row("wiring (rows that differ)", 0, sum(a != b for a, b in zip(ours, wiring, strict=True)))


def lora_case(ref: Reference) -> Iterator[Row]:
    """LoRA files: module names in order, forwards with adapters switched on, merged, and under the highway."""
    name = ref.stem.removesuffix("_forward")
    folder, preset = ref.find(name, "lora_train", "infer_run"), None
    unet = ref.unet_for(folder)
    if ref.has_settings(f"{name}_targets"):
        listed = ref.settings(f"{name}_targets")
        names = {side: [layer["name"] for layer in listed[side]] for side in ("temporal", "spatial")}
        preset = next((p for p in PRESETS if targets(unet, p) == names["temporal"]), None)
        wrong = (preset is None) + (targets(unet, "appearance") != names["spatial"])
        yield Row("module names (lists that differ)", 0, wrong)
    checkpoint = load_checkpoint(folder, preset=preset, unet=unet)
    for key in ref.data:
        if match := INFER_KEY.fullmatch(key):
            scales = (1.1 if match[1] == "s11" else 1.0, 1.0, 1.0, 1.0)
            with methods.customize(unet, [(checkpoint, 1.0 if match[2] == "s1" else 0.5)],
                                   highway=SimpleNamespace(scope="release", beta=1.0, scales=scales)):
                yield ref.row(key, ref.forward(unet))
    if "temporal_half" in ref.data:
        with merge(unet, checkpoint.motion, 0.5):
            yield ref.row("temporal_half", ref.forward(unet))
    if "both" not in ref.data:
        return
    adapters = adapt(unet, checkpoint.preset, checkpoint.motion, checkpoint.appearance[0])
    yield ref.row("off", ref.forward(unet))
    with active(adapters, on=adapters[:1]):
        yield ref.row("temporal_only", ref.forward(unet))
    with active(adapters, on=adapters):
        yield ref.row("both", ref.forward(unet))
        ref.data["first_frame"] = ref.data["sample"][:, :, :1]
        with bypass_single_frames(unet, UNGUARDED):
            yield ref.row("spatial_one_frame", ref.forward(unet, "first_frame"))


def adapt(unet, preset: str, *states: dict[str, torch.Tensor]):
    """A motion and an appearance adapter that hold `states`."""
    adapters = []
    for name, kind, state in zip(("motion", "appearance_0"), (preset, "appearance"), states):
        rank = max(matrix.shape[0] for key, matrix in state.items() if "lora_A" in key)
        adapters.append(add_adapter(unet, name, kind, rank))
        adapters[-1].load_state_dict(state)
    return adapters


def losses_case(ref: Reference) -> Iterator[Row]:
    """Losses and gradients of one training step, through train.training_step.

    A file NAME_gradckpt holds the losses of NAME's inputs with every temporal layer bypassed at one frame.
    """
    checkpointed = ref.stem.endswith("_gradckpt")
    base = Reference(ref.find(f"{ref.stem.removesuffix('_gradckpt')}.safetensors"), ref.places) if checkpointed else ref
    folder = base.find(base.stem.replace("losses", "lora_train", 1), "lora_train")
    unet, data = base.unet_for(folder), base.data
    checkpoint = load_checkpoint(folder, unet=unet)
    motion, appearance = adapt(unet, checkpoint.preset, checkpoint.motion, checkpoint.appearance[0])
    method = methods.Method(unet, motion, [appearance], NO_HIGHWAY)
    plain = DDIMScheduler.from_pretrained(base.pipeline(), subfolder="scheduler")
    bypass_single_frames(unet, () if checkpointed else UNGUARDED)
    runs = [""] if checkpointed else sorted({key.split(".")[0] + "." for key in data if ".loss_" in key})
    for run in runs:
        kind = "v_prediction" if run.startswith("vpred") else "epsilon"
        scheduler = DDIMScheduler.from_config(plain.config, prediction_type=kind)
        draw = Draw(data["noise"], data["timesteps"], int(data["frame_spatial"]), int(data["frame_ad"]),
                    spatial=f"{run}loss_spatial" in ref.data)
        for parameter in (*motion.parameters(), *appearance.parameters()):
            parameter.grad = None
        losses = training_step(unet, scheduler, method, data["latents"], data["text"], draw)
        losses = {LOSS_NAMES[name]: torch.as_tensor(value).detach() for name, value in losses.items()}
        losses["loss_temporal"] = losses["loss_mse"] + losses["loss_ad"]
        for name, value in losses.items():
            if f"{run}{name}" in ref.data:
                yield ref.row(f"{run}{name}", value, LOSS)
        yield from gradients(ref, run, {"temporal": motion, "spatial": appearance})


def gradients(ref: Reference, run: str, adapters: dict) -> Iterator[Row]:
    for side, adapter in adapters.items():
        down, up = ([p.grad for p in adapter.parameters()[i::2]] for i in (0, 1))
        rows = []
        for key in ref.data:
            if match := re.fullmatch(rf"{re.escape(run)}grad_{side}\.(\d+)\.(up|down)", key):
                gradient = {"up": up, "down": down}[match[2]][int(match[1])]
                rows.append(ref.row(key, gradient, GRADIENT, relative=True))
        for kind, matrices in (("down", down), ("up", up)):
            if (key := f"{run}{side}_{kind}_gradnorm") in ref.data:
                norms = torch.stack([gradient.norm() for gradient in matrices])
                rows.append(ref.row(key, norms, GRADIENT, relative=True))
        if rows:
            yield Row(f"{run}gradients, {side} ({len(rows)} tensors)", GRADIENT, max(row.difference for row in rows))


def inversion_case(ref: Reference) -> Iterator[Row]:
    """DDIM inversion with the empty prompt: end points, trajectory, single steps, the mix with noise."""
    backbone, data = ref.backbone(ref.pipeline()), ref.data
    empty = backbone.encode_text([""]).expand(data["latents"].shape[0], -1, -1)

    def invert(steps: int, trajectory: bool = False) -> torch.Tensor:
        return ddim_invert(backbone.unet, backbone.scheduler, data["latents"], empty, steps, trajectory=trajectory)

    lengths = sorted(int(key.removeprefix("inv")) for key in data if re.fullmatch(r"inv\d+", key))
    for steps in lengths:
        yield ref.row(f"inv{steps}", invert(steps), LATENTS, relative=True)
    for key in data:
        if match := re.fullmatch(r"trajectory(\d+)", key):
            yield ref.row(key, invert(int(match[1]), trajectory=True), LATENTS, relative=True)
        elif match := re.fullmatch(r"timesteps(\d+)", key):
            backbone.scheduler.set_timesteps(int(match[1]))
            yield ref.row(key, backbone.scheduler.timesteps.flip(0), 0)
        elif match := re.fullmatch(r"step_t(\d+)", key):
            stride = backbone.scheduler.config.num_train_timesteps // lengths[-1]
            ours = inversion_step(backbone.scheduler, data["eps"], int(match[1]), data["latents"], stride)
            yield ref.row(key, ours, EXACT, relative=True)
        elif match := re.fullmatch(r"mix_([\d.]+)", key):
            ours = blend(data[f"inv{lengths[-1]}"], data["mix_noise"], prior=float(match[1]))
            yield ref.row(key, ours, EXACT, relative=True)
        elif match := re.fullmatch(r"inv(\d+)_infer_unet_ah", key):
            with attach_highway(backbone.unet, "release", beta=1.0):
                yield ref.row(key, invert(int(match[1])), LATENTS, relative=True)


def infer_case(ref: Reference) -> Iterator[Row]:
    """One sampling command: prompt embeddings, initial noise, timesteps, latents, frames."""
    wanted, data = SimpleNamespace(**ref.settings()["defaults"]), ref.data
    backbone = ref.backbone(ref.pipeline(wanted.model))
    folder = ref.find(wanted.checkpoint_folder, Path(wanted.checkpoint_folder).name)
    checkpoint = load_checkpoint(folder, wanted.checkpoint_index, unet=backbone.unet)
    negative, text = data["prompt_embeds"].chunk(2)
    prompts = [wanted.prompt] if isinstance(wanted.prompt, str) else wanted.prompt
    prompts = (prompts * len(text))[: len(text)]
    ours = backbone.encode_text([wanted.negative_prompt or ""] * len(text) + prompts)
    yield ref.row("prompt_embeds", ours)
    if wanted.noise_prior and "noise" in data:
        cached = ref.find(str(folder / "cached_latents"), "cached_latents")
        inversion = read_cached(min(cached.iterdir())).inversion
        if inversion.shape[1:] == data["noise"].shape[1:]:  # resizing loses variance in the release, not here
            ours = blend(inversion, data["noise"], prior=wanted.noise_prior)
            yield ref.row("init_latents", ours, EXACT, relative=True)
    seen, first = [], []
    freeu = tuple(float(s) for s in wanted.freeu.strip("[]").split(","))
    with methods.customize(backbone.unet, [(checkpoint, wanted.lora_scale)],
                           highway=SimpleNamespace(scope="release", beta=1.0, scales=freeu)):
        options = {"guidance_scale": wanted.guidance_scale, "steps": wanted.num_steps, "on_timestep": seen.append}
        hook = backbone.unet.register_forward_pre_hook(lambda _, args: first.append(args[0]))
        latents = sample(backbone.unet, backbone.scheduler, data["init_latents"], text, negative, **options)
        hook.remove()
    yield ref.row("timesteps", torch.tensor(seen), 0)
    if "traj_first" in data:
        after_first = (first[1] if len(first) > 1 else latents)[: len(text)]
        yield ref.row("traj_first", after_first.transpose(1, 2).flatten(0, 1), LATENTS, relative=True)
    yield ref.row("final_latents", latents, LATENTS, relative=True)
    frames = torch.stack([backbone.decode_video(clean[None]) for clean in latents]).permute(0, 1, 3, 4, 2)
    error = (frames.reshape(data["frames"].shape).int() - data["frames"].int()).abs()
    yield Row("frames, largest difference", 1, error.max().item())
    yield Row("frames, share that differs", 1e-3, (error > 0).float().mean().item())


def trace_case(ref: Reference) -> Iterator[Row]:
    """A short training run: the losses of every step, then the weights at the stored checkpoints."""
    wanted, data = ref.settings(), ref.data
    backbone = ref.backbone(ref.pipeline(fits=lambda unet: bool(fitting_presets(ref, unet, "temporal"))))
    unet = backbone.unet.train(not wanted["eval_train"])
    bypass_single_frames(unet, () if wanted["gradient_checkpointing"] else UNGUARDED)
    method = methods.Method(unet, starting_adapter(ref, unet, "temporal"), [starting_adapter(ref, unet, "spatial")],
                            NO_HIGHWAY)
    beta1, beta2 = wanted["betas"]
    options = SimpleNamespace(
        learning_rate=wanted["lr"], adam_weight_decay=wanted["weight_decay"], adam_beta1=beta1, adam_beta2=beta2,
        adam_epsilon=wanted["eps"], use_8bit_adam=False, lr_scheduler="constant", lr_warmup_steps=0,
        max_train_steps=len(wanted["steps"]), max_grad_norm=None, gradient_accumulation_steps=1)
    optimizer = DualPathOptimizer(options, method.motion_parameters, method.appearance_parameters,
                                  motion_lr=wanted["lr"], half=False, device=backbone.device)
    with torch.no_grad():
        text = backbone.text_encoder(torch.atleast_2d(data["prompt_ids"]))[0]
    for done, step in enumerate(wanted["steps"], start=1):
        timesteps = torch.tensor(step["timestep"]).reshape(-1).expand(len(data["latents"]))
        draw = Draw(data[f"step{step['step']}.noise"], timesteps, step["frame_spatial"], step["frame_ad"],
                    spatial=not step["mask_spatial"])
        losses = training_step(unet, backbone.scheduler, method, data["latents"], text, draw,
                               backward=optimizer.backward)
        optimizer.step()
        errors = [abs(float(losses[ours]) - step[theirs]) for ours, theirs in LOSS_NAMES.items()
                  if step[theirs] is not None]
        yield Row(f"step {step['step']}, losses", LOSS, max(errors))
        for side, adapter in ("temporal", method.motion), ("spatial", method.appearance[0]):
            errors = [(p - data[key]).detach().abs().flatten() for i, p in enumerate(adapter.parameters())
                      if (key := f"ckpt{done}.{side}.{i // 2}.{('down', 'up')[i % 2]}") in data]
            if errors:
                yield Row(f"ckpt{done}, {side} weights, mean error", WEIGHTS, torch.cat(errors).mean().item())


def starting_adapter(ref: Reference, unet, side: str):
    """The adapter of one side at step 0: down from the file, up zero. Shapes can not tell release from tap."""
    presets, downs = fitting_presets(ref, unet, side), initial_downs(ref, side)
    preset = "release" if "release" in presets else presets[0]
    adapter = add_adapter(unet, side, preset, max(len(down) for down in downs))
    with torch.no_grad():
        for parameter, down in zip(adapter.parameters()[::2], downs, strict=True):
            parameter.copy_(down)
    return adapter


def fitting_presets(ref: Reference, unet, side: str) -> list[str]:
    widths = [down.shape[1] for down in initial_downs(ref, side)]
    presets = [preset for preset in PRESETS if (preset == "appearance") == (side == "spatial")]
    return [p for p in presets if [unet.get_submodule(name).in_features for name in targets(unet, p)] == widths]


def initial_downs(ref: Reference, side: str) -> list[torch.Tensor]:
    return [ref.data[f"init.{side}.{i}.down"] for i in range(sum(key.startswith(f"init.{side}.") for key in ref.data))]


CASES: dict[str, Callable[[Reference], Iterator[Row]]] = {
    r"unet_.*": unet_case, r"ah_.*": highway_case, r"lora_.*_forward": lora_case, r"losses.*": losses_case,
    r"inversion.*": inversion_case, r"infer_.*": infer_case, r"train_trace_.*": trace_case}


def compare(folder: Path, assets: Path | None = None) -> Iterator[tuple[str, Row]]:
    """(name of the reference file, row) for everything in `folder` that a case knows how to compare.

    A case that lacks something yields one row with an infinite difference that says so.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the reference files")
    places = [folder, *([assets] if assets else [])]
    for path in sorted(folder.glob("*.safetensors")):
        for pattern, case in CASES.items():
            if re.fullmatch(pattern, path.stem):
                try:
                    for row in case(Reference(path, places)):
                        yield path.stem, row
                except UserError as error:
                    yield path.stem, Row(f"not run: {error}", 0, math.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="reference files")
    parser.add_argument("--assets", type=Path, help="pipeline, checkpoint and cache folders, where not beside them")
    args = parser.parse_args()
    failed = total = 0
    for case, row in compare(args.folder, args.assets):
        if not total:
            print("| case | quantity | tolerance | difference | |\n|---|---|---|---|---|")
        passed = row.difference <= row.tolerance  # NaN fails
        total, failed = total + 1, failed + (not passed)
        verdict = "pass" if passed else "FAIL"
        print(f"| {case} | {row.quantity} | {row.tolerance:.0e} | {row.difference:.1e} | {verdict} |", flush=True)
    if not total:
        raise UserError(f"{args.folder}: no reference file there (unet_*, ah_*, lora_*_forward, losses*, inversion*,"
                        " infer_*, train_trace_* .safetensors)")
    print(f"{total - failed} of {total} pass", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    command(main)()
