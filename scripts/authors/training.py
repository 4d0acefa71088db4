"""Reference files of training: losses and gradients of one step, and short runs. Read by scripts/parity.py.

Every case is a generator of rows over one file (scripts/authors/reference.py), and goes through train.training_step.
"""

import re
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from diffusers import DDIMScheduler

from configs.errors import UserError
from models import methods
from models.backbone import predictor
from models.backbones.unet3d import PRESETS
from models.files.checkpoint import load_checkpoint
from models.hooks import bypass_single_frames
from models.lora import add_adapter
from models.targets import targets
from models.training.objective import Draw
from models.training.optimizer import DualPathOptimizer
from scripts.authors.cases import UNGUARDED, adapt
from scripts.authors.reference import ReferenceFile, Row
from train import training_step

LOSS = 2e-6
GRADIENT = 1e-4  # relative to the largest value of the tensor; the smallest gradients carry most rounding
WEIGHTS = 1e-6  # mean error of trained weights
LOSS_NAMES = {"spatial": "loss_spatial", "temporal": "loss_mse", "debiased": "loss_ad"}  # ours and the files'


def losses_case(ref: ReferenceFile) -> Iterator[Row]:
    """Losses and gradients of one training step, through train.training_step.

    A file NAME_gradckpt holds the losses of NAME's inputs with every temporal layer bypassed at one frame.
    """
    checkpointed = ref.stem.endswith("_gradckpt")
    base = (
        ReferenceFile(ref.find(f"{ref.stem.removesuffix('_gradckpt')}.safetensors"), ref.places)
        if checkpointed
        else ref
    )
    folder = base.find(base.stem.replace("losses", "lora_train", 1), "lora_train")
    unet, data = base.unet_for(folder), base.data
    checkpoint = load_checkpoint(folder, network=unet)
    motion, appearance = adapt(unet, checkpoint.preset, checkpoint.motion, checkpoint.appearance[0])
    method = methods.Method(unet, motion, [appearance])
    plain = DDIMScheduler.from_pretrained(base.pipeline(), subfolder="scheduler")
    bypass_single_frames(unet, () if checkpointed else UNGUARDED)
    runs = [""] if checkpointed else sorted({key.split(".")[0] + "." for key in data if ".loss_" in key})
    for run in runs:
        kind = "v_prediction" if run.startswith("vpred") else "epsilon"
        scheduler = DDIMScheduler.from_config(plain.config, prediction_type=kind)
        draw = Draw(
            data["noise"],
            data["timesteps"],
            int(data["frame_spatial"]),
            int(data["frame_ad"]),
            spatial=f"{run}loss_spatial" in ref.data,
        )
        for parameter in (*motion.parameters(), *appearance.parameters()):
            parameter.grad = None
        losses = training_step(predictor(unet), scheduler, method, data["latents"], data["text"], draw)
        losses = {LOSS_NAMES[name]: torch.as_tensor(value).detach() for name, value in losses.items()}
        losses["loss_temporal"] = losses["loss_mse"] + losses["loss_ad"]
        for name, value in losses.items():
            if f"{run}{name}" in ref.data:
                yield ref.row(f"{run}{name}", value, LOSS)
        yield from gradient_rows(ref, run, {"temporal": motion, "spatial": appearance})


def gradient_rows(ref: ReferenceFile, run: str, adapters: dict) -> Iterator[Row]:
    for side, adapter in adapters.items():
        # a path that did not run leaves no gradients, where the release keeps zeros
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in adapter.parameters()]
        down, up = gradients[::2], gradients[1::2]
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


def trace_case(ref: ReferenceFile) -> Iterator[Row]:
    """A short training run: the losses of every step, then the weights at the stored checkpoints."""
    wanted, data = ref.settings(), ref.data
    backbone = ref.backbone(ref.pipeline(fits=lambda unet: bool(fitting_presets(ref, unet, "temporal"))))
    unet = backbone.network.train(not wanted.get("eval_train", True))
    bypass_single_frames(unet, () if wanted.get("gradient_checkpointing", False) else UNGUARDED)
    method = methods.Method(unet, starting_adapter(ref, unet, "temporal"), [starting_adapter(ref, unet, "spatial")])
    beta1, beta2 = wanted["betas"]
    options = SimpleNamespace(
        learning_rate=wanted["lr"],
        adam_weight_decay=wanted["weight_decay"],
        adam_beta1=beta1,
        adam_beta2=beta2,
        lora_plus_ratio=1.0,
        optimizer="adamw",
        adam_epsilon=wanted["eps"],
        use_8bit_adam=False,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        max_train_steps=len(wanted["steps"]),
        max_grad_norm=None,
        gradient_accumulation_steps=1,
    )
    optimizer = DualPathOptimizer(
        options,
        method.motion_parameters,
        method.appearance_parameters,
        motion_lr=wanted["lr"],
        half=False,
        device=backbone.device,
    )
    with torch.no_grad():
        text = backbone.text_encoder(torch.atleast_2d(data["prompt_ids"]))[0]
        text = text if len(text) == len(data["latents"]) else text.expand(len(data["latents"]), -1, -1)
    for done, step in enumerate(wanted["steps"], start=1):
        timesteps = torch.tensor(step["timestep"]).reshape(-1).expand(len(data["latents"]))
        draw = Draw(
            data[f"step{step['step']}.noise"],
            timesteps,
            step["frame_spatial"],
            step["frame_ad"],
            spatial=not step["mask_spatial"],
        )
        losses = training_step(
            backbone.predict, backbone.scheduler, method, data["latents"], text, draw, backward=optimizer.backward
        )
        optimizer.step()
        errors = [
            abs(float(losses[ours]) - step[theirs])
            for ours, theirs in LOSS_NAMES.items()
            if step.get(theirs) is not None
        ]
        if errors:
            yield Row(f"step {step['step']}, losses", LOSS, torch.tensor(errors).max().item())  # NaN stays NaN
        for side, adapter in ("temporal", method.motion), ("spatial", method.appearance[0]):
            errors = [
                (p - data[key]).detach().abs().flatten()
                for i, p in enumerate(adapter.parameters())
                if (key := f"ckpt{done}.{side}.{i // 2}.{('down', 'up')[i % 2]}") in data
            ]
            if errors:
                yield Row(f"ckpt{done}, {side} weights, mean error", WEIGHTS, torch.cat(errors).mean().item())


def starting_adapter(ref: ReferenceFile, unet, side: str):
    """The adapter of one side at step 0: down from the file, up zero unless the file says otherwise.

    Where shapes fit both release and tap, release is taken.
    """
    presets, downs = fitting_presets(ref, unet, side), initial_downs(ref, side)
    if not presets:
        raise UserError(f"{ref.path.name}: its {side} adapter fits no preset on this model")
    preset = "release" if "release" in presets else presets[0]
    adapter = add_adapter(unet, side, preset, max(len(down) for down in downs))
    with torch.no_grad():
        for i, down in enumerate(downs):
            matrices = adapter.parameters()[2 * i : 2 * i + 2]
            matrices[0].copy_(down)
            matrices[1].copy_(ref.data.get(f"init.{side}.{i}.up", torch.zeros_like(matrices[1])))
    return adapter


def fitting_presets(ref: ReferenceFile, unet, side: str) -> list[str]:
    widths = [down.shape[1] for down in initial_downs(ref, side)]
    presets = [preset for preset in PRESETS if (preset == "appearance") == (side == "spatial")]
    return [p for p in presets if [unet.get_submodule(name).in_features for name in targets(unet, p)] == widths]


def initial_downs(ref: ReferenceFile, side: str) -> list[torch.Tensor]:
    count = sum(bool(re.fullmatch(rf"init\.{side}\.\d+\.down", key)) for key in ref.data)
    return [ref.data[f"init.{side}.{i}.down"] for i in range(count)]
