"""Training and sampling steps on models of random weights: this project's, and two to compare it with.

What train.py and the sampler run, without files. Latents are [1 4 f h w], text embeddings [1 n d].
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from omegaconf import DictConfig
from transformers import CLIPTextConfig, CLIPTextModel

from configs import schema
from infer.inversion import ddim_invert
from infer.sampler import Denoiser, classifier_free_guidance, sample
from models import lora, methods
from models.activation_checkpointing import checkpoint_activations
from models.backbone import Backbone, predictor
from models.backbones.unet3d import ZEROSCOPE
from models.compiled import compile_layers
from models.hooks import bypass_single_frames, know_dtype
from models.lean import attach_lean
from models.placement import place
from models.training import memory, objective
from models.training.optimizer import DualPathOptimizer
from train import training_step

TOKENS = 77
GUIDANCE = 12.0


@dataclass(frozen=True)
class Architecture:
    """What differs from ZeroScope's U-Net, the clip's latents, and the other parts of the pipeline."""

    unet: dict
    frames: int
    side: int  # latent height and width
    text_layers: int
    vae: tuple[int, ...]  # channels of its four levels
    checkpointing: bool  # whether activations would not fit beside the model otherwise
    recipe: dict = field(default_factory=dict)  # keys of its configuration that a step's time depends on


MODELS = {
    "pocket": Architecture(
        dict(block_out_channels=(32, 64, 128, 128), layers_per_block=1, cross_attention_dim=64, attention_head_dim=16,
             norm_num_groups=4),
        frames=8, side=8, text_layers=2, vae=(8, 16, 32, 64), checkpointing=False,
        recipe={"timesteps_per_step": 4, "lora_unet_dropout": 0.0}),
    "mid": Architecture(
        dict(block_out_channels=(64, 128, 256, 256), cross_attention_dim=256, attention_head_dim=32),
        frames=16, side=16, text_layers=6, vae=(32, 64, 128, 128), checkpointing=False),
    "zeroscope": Architecture({}, frames=16, side=48, text_layers=23, vae=(128, 256, 512, 512), checkpointing=True),
}  # fmt: skip


def settings(**values) -> DictConfig:
    """A configuration of defaults and `values`, whose clip nobody reads."""
    return schema.from_dict({"train_data": {"single_video_path": "random"}, **values})


class Step:
    """This project's training step and sampling step. `cfg` chooses the method, where the frozen model waits and what
    is compiled; its data and model are not used.

    `dtype` is the frozen model's precision; the adapters are fp32. The default method is TAP. Without `lean` the U-Net
    runs diffusers' own layers (models/lean.py).
    """

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        checkpointing: bool | None = None,
        cfg: DictConfig | None = None,
        lean: bool = True,
    ):
        self.architecture, self.device = architecture, torch.device(device)
        self.cfg = cfg or settings(**architecture.recipe)
        self.unet = _unet(architecture, self.device, dtype)
        with self.device:
            self.latents = torch.randn(1, 4, architecture.frames, architecture.side, architecture.side)
            self.text = torch.randn(1, TOKENS, self.unet.config.cross_attention_dim)
        self.unet.requires_grad_(False).train()
        self.predict = predictor(self.unet)
        self.model_bytes = place(self.unet, self.device, self.cfg.memory)  # before anything that learns is attached
        bypass_single_frames(self.unet)
        self.method = methods.attach(self.unet, self.cfg, clips=1, latent_size=tuple(self.latents.shape[2:]))
        if self.device.type != "meta":
            learned = [*self.method.motion_parameters, *self.method.appearance_parameters]
            for training in (True, False):
                compile_layers(self.unet, self.cfg.compile, self.device, training=training, learned=learned)
        if architecture.checkpointing if checkpointing is None else checkpointing:
            checkpoint_activations(self.unet)
        if lean:
            know_dtype(self.unet)
            if self.cfg.compile == "off":
                attach_lean(self.unet)
        self.scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self.optimizer = DualPathOptimizer(
            self.cfg,
            self.method.motion_parameters,
            self.method.appearance_parameters,
            motion_lr=self.cfg.learning_rate if self.cfg.method == "lora" else self.cfg.embeddings.learning_rate,
            half=dtype == torch.float16,
            device=self.device,
        )

    def repeated(self, one: torch.Tensor) -> torch.Tensor:
        """[1 ...] -> [timesteps ...], as train.py repeats a clip."""
        return one.expand(self.cfg.timesteps_per_step, *one.shape[1:])

    def gradients(self, number: int) -> None:
        """Both passes of step `number`; the spatial one always runs, so that steps can be compared."""
        latents, text = self.repeated(self.latents), self.repeated(self.text)
        if self.device.type == "meta":
            timestep = torch.empty(len(latents), dtype=torch.long, device="meta")
            draw = objective.Draw(latents, timestep, frame=0, anchor=0, spatial=True)
        else:
            draw = objective.draw_step(0, number, latents)._replace(spatial=True)
        training_step(self.predict, self.scheduler, self.method, latents, text, draw, backward=self.optimizer.backward)

    def train(self, number: int) -> None:
        self.gradients(number)
        self.optimizer.step()

    def sampling(self) -> AbstractContextManager:
        """The customized model, as inference runs it: the motion merged where that keeps its digits, the highway on."""
        return self.method.sampling()

    def denoiser(self) -> Denoiser:
        """The guided model: two videos in each forward."""
        return classifier_free_guidance(self.predict, self.text, self.text, scale=GUIDANCE)

    def sample(self, steps: int = 1) -> torch.Tensor:
        """`steps` guided denoising steps; enter `sampling()` and eval mode first. Returns latents."""
        return sample(self.denoiser(), self.scheduler, self.latents, steps=steps)

    def invert(self) -> None:
        """One step of DDIM inversion of the clip; enter eval mode first."""
        ddim_invert(classifier_free_guidance(self.predict, self.text), self.scheduler, self.latents, 1)

    def encoders(self, dtype: torch.dtype) -> Backbone:
        """A backbone around this U-Net with a VAE and a text encoder of random weights; it has no tokenizer."""
        with self.device:
            vae = AutoencoderKL(
                block_out_channels=self.architecture.vae,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                norm_num_groups=min(32, self.architecture.vae[0]),
            )
        text_encoder = random_text_encoder(self.architecture, self.unet.config.cross_attention_dim).to(self.device)
        for part in (vae, text_encoder):
            torch.nn.Module.to(part, dtype).eval().requires_grad_(False)
        return Backbone(self.unet, vae, text_encoder, None, self.scheduler, "random", self.device)


def _unet(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> UNet3DConditionModel:
    """Random weights, made in their own precision: in fp32 they might not fit the card that is asked about."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return UNet3DConditionModel.from_config({**ZEROSCOPE, **architecture.unet})
    finally:
        torch.set_default_dtype(before)


class StockStep(Step):
    """This project's step on diffusers' own layers, neither lean (models/lean.py) nor compiled."""

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device | str,
        *,
        checkpointing: bool | None = None,
        memory: str = "default",
    ):
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        recomputes = architecture.checkpointing if checkpointing is None else checkpointing
        cfg = settings(memory=memory, gradient_checkpointing=bool(recomputes), **architecture.recipe)
        super().__init__(architecture, device, dtype, checkpointing=checkpointing, cfg=cfg, lean=False)


class PlainStep(Step):
    """The dual-path step as MotionDirector describes it: fp32, text encoder in every step, activations recomputed.

    Every adapter gathers gradients in both passes, and both passes run before any weight moves. It samples without
    the highway, its motion LoRA beside the layers, in the precision of its training.
    """

    def __init__(self, architecture: Architecture, device: torch.device | str):
        super().__init__(architecture, device, torch.float32, checkpointing=True, lean=False)
        encoder = random_text_encoder(architecture, self.unet.config.cross_attention_dim)
        self.text_encoder = encoder.to(self.device).requires_grad_(False)
        self.tokens = torch.zeros(1, TOKENS, dtype=torch.long, device=self.device)
        for adapter in (self.method.motion, *self.method.appearance):
            _drop_by_torch(adapter)
        parameters = (self.method.motion_parameters, self.method.appearance_parameters)
        self.optimizers = [torch.optim.AdamW(group, lr=5e-4, weight_decay=1e-2) for group in parameters]
        self.autocast = torch.autocast(self.device.type, enabled=False)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=False)

    def train(self, number: int) -> None:
        latents = self.repeated(self.latents)
        draw = objective.draw_step(0, number, latents)
        motion, appearance = self.method.motion, self.method.appearance[0]
        adapters, frame = [motion, appearance], slice(draw.frame, draw.frame + 1)
        z_t = self.scheduler.add_noise(latents, draw.noise, draw.timestep)
        with self.autocast:
            text = self.repeated(self.text_encoder(self.tokens)[0])
        with lora.active(adapters, on=[appearance], trainable=adapters):
            with self.autocast:
                prediction = self.predict(z_t[:, :, frame], draw.timestep, text)
            self.scaler.scale(objective.spatial_loss(prediction, draw.noise[:, :, frame])).backward()
        with lora.active(adapters, on=adapters, trainable=adapters):
            with self.autocast:
                prediction = self.predict(z_t, draw.timestep, text)
            self.scaler.scale(sum(objective.temporal_loss(prediction, draw.noise, draw.anchor))).backward()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        motion = [self.method.motion]
        with self.autocast, lora.active(motion, on=motion):
            yield


class ReleaseStep(PlainStep):
    """The authors' step as they release it, but for the order of its passes: fp32 weights under fp16 autocast.

    The release steps the appearance LoRA between the passes, which falsifies the motion gradients; here it does not.
    A CPU, where fp16 is emulated, autocasts to bf16.
    """

    def __init__(self, architecture: Architecture, device: torch.device | str):
        super().__init__(architecture, device)
        cuda = self.device.type == "cuda"
        self.autocast = torch.autocast(self.device.type, torch.float16 if cuda else torch.bfloat16)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=cuda)


def _drop_by_torch(adapter: lora.LoraAdapter) -> None:
    """Dropout as those codes have it, without this project's quicker masks (models/dropout.py)."""
    for layer in adapter.layers.values():
        up = layer.lora_B[adapter.name]
        up.register_forward_hook(partial(_torch_dropout, up.dropout))
        up.dropout = 0.0


def _torch_dropout(probability: float, up: torch.nn.Module, args: tuple, product: torch.Tensor) -> torch.Tensor:
    return F.dropout(product, probability, up.training)


BASELINES: dict[str, type[Step]] = {"stock": StockStep, "plain": PlainStep, "release": ReleaseStep}


def random_text_encoder(architecture: Architecture, width: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=architecture.text_layers,
        num_attention_heads=max(1, width // 64),
    )
    return CLIPTextModel(config)


def count_flop(architecture: Architecture, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """Operations by precision of (a training step without recomputation, a guided sampling step)."""
    step = Step(architecture, "meta", dtype, checkpointing=False)
    training = memory.count_flop_by_dtype(lambda: step.gradients(0))
    step.unet.eval()
    with torch.no_grad(), step.sampling():
        denoise, timestep = step.denoiser(), torch.tensor(0)
        return training, memory.count_flop_by_dtype(lambda: denoise(step.latents, timestep))


def count_bytes(
    architecture: Architecture,
    *,
    checkpointing: bool | None = True,
    dtype: torch.dtype = torch.bfloat16,
    cfg: DictConfig | None = None,
) -> int:
    """Peak bytes of a training step, counted on the meta device."""
    step = Step(architecture, "meta", dtype, checkpointing=checkpointing, cfg=cfg)
    learned = (*step.method.motion_parameters, *step.method.appearance_parameters)
    return memory.training_bytes(step.model_bytes, learned, lambda: step.gradients(0)).total
