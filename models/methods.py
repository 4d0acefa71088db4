"""How motion is learned: a motion LoRA (TAP and its relatives, MotionDirector) or motion embeddings (Motion Inversion).

`attach` puts a method on the frozen network for training. Whatever it is, the training step sees the same things: the
parameters of each path, a `with` block for each pass, and the state to save. Data, cache, objective and sampler do not
know the method; a checkpoint keeps its `kind`, which says how its file is laid out. models/customization.py puts saved
states on a plain network for sampling.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import torch
from torch import nn

from configs.errors import UserError
from models import backbones, lora
from models.embeddings import MotionEmbeddings, attach_embeddings
from models.heads import Heads, restrict
from models.highway import HighwaySettings, attach_highway, check_highway
from models.hooks import Patch
from models.targets import choose_layers

State = dict[str, torch.Tensor]


class Motion(Protocol):
    """What learns motion, off and out of the way except inside its two blocks: LoraAdapter or MotionEmbeddings."""

    kind: str  # of the checkpoint it is saved as

    def parameters(self): ...

    def training(self) -> AbstractContextManager: ...  # acts, and collects gradients

    def sampling(self) -> AbstractContextManager: ...  # acts as inference will run it

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...

    def info(self) -> dict[str, str | int | float | None]: ...  # for the checkpoint's header


class Method:
    """One way of learning motion, attached to a network that is the pretrained one outside the `with` blocks.

    `motion` is a LoraAdapter on the temporal transformers or Motion Inversion's embeddings. `appearance` holds one
    LoRA on the spatial transformers per reference clip, parallel and never nested: clip i trains number i alone
    (dual path). `extra_loss` is added to the temporal one: "debiased", "difference", or None. `heads`, see `keep_to`,
    are those of a transformer's self-attention where the preset tells temporal ones from the others.
    """

    def __init__(
        self,
        network: nn.Module,
        motion: Motion,
        appearance: list[lora.LoraAdapter],
        highway: HighwaySettings | None = None,
        *,
        highway_in_training: bool = False,
        extra_loss: str | None = "debiased",
        notes: Sequence[str] = (),
    ):
        self.network, self.motion, self.appearance = network, motion, appearance
        self.highway, self.highway_in_training = highway, highway_in_training
        self.extra_loss, self.notes, self.heads = extra_loss, notes, None

    @property
    def kind(self) -> str:
        """Of the checkpoint: "lora" or "embeddings"."""
        return self.motion.kind

    @property
    def motion_parameters(self) -> list[torch.nn.Parameter]:
        return list(self.motion.parameters())

    @property
    def appearance_parameters(self) -> list[torch.nn.Parameter]:
        return [p for adapter in self.appearance for p in adapter.parameters()]

    @property
    def second_factors(self) -> list[torch.nn.Parameter]:
        """B of every LoRA, whose learning rate `lora_plus_ratio` raises."""
        loras = [adapter for adapter in (self.motion, *self.appearance) if adapter.kind == "lora"]
        return [p for adapter in loras for p in adapter.second_factors()]

    @contextmanager
    def spatial_pass(self, clip: int) -> Iterator[None]:
        """The appearance LoRA of this clip acts and is trained; everything that learns motion is off."""
        with self._highway_of_a_pass(), self.appearance[clip].training():
            yield

    @contextmanager
    def temporal_pass(self, clip: int, with_appearance: bool) -> Iterator[None]:
        """The motion adapter acts and is trained.

        With `with_appearance` the clip's appearance LoRA acts too, so that the motion adapter need not learn the
        appearance; it gets no gradient here.
        """
        with ExitStack() as patches:
            patches.enter_context(self._highway_of_a_pass())
            if with_appearance and self.appearance:
                patches.enter_context(self.appearance[clip].acting())
            patches.enter_context(self.motion.training())
            yield

    @contextmanager
    def sampling(self, appearance_scale: float = 0.0, clip: int = 0) -> Iterator[Patch]:
        """The model as inference will see it: motion on, appearance LoRA of this clip at `appearance_scale`.

        The patch it gives takes all of this off before the block ends (phased LoRA integration).
        """
        with ExitStack() as patches:
            if appearance_scale and self.appearance:
                adapter = self.appearance[min(clip, len(self.appearance) - 1)]  # a single one belongs to every clip
                patches.enter_context(adapter.sampling(appearance_scale, beside=self.motion))
            patches.enter_context(self.motion.sampling())
            if self.highway:
                patches.enter_context(attach_highway(self.network, *self.highway))
            yield Patch([patches.close])

    def state(self) -> tuple[State, list[State]]:
        """What a checkpoint keeps: (motion, one appearance state per clip), fp32."""
        return self.motion.state_dict(), [adapter.state_dict() for adapter in self.appearance]

    def info(self) -> dict[str, str | int | float | None]:
        """What a checkpoint's header must hold for these states to be read."""
        carriers = backbones.kind_of(self.network).carriers(self.network)
        facts = {"architecture": backbones.architecture(self.network), "carriers": len(carriers)}
        for adapter in self.appearance[:1]:
            facts |= {"rank": adapter.rank, "alpha": adapter.alpha}
        if self.heads:
            facts |= self.heads.info()
        return facts | self.motion.info()

    def keep_to(self, heads: Heads) -> None:
        """Let the motion be learned in the temporal ones of `heads` alone (EffiVMT: the appearance in the others)."""
        self.heads = heads
        restrict(self.motion, self.network, heads.is_temporal)
        if self.motion.preset in backbones.kind_of(self.network).SPATIAL_APPEARANCE:
            for adapter in self.appearance:
                restrict(adapter, self.network, ~heads.is_temporal)

    def load(self, motion: State, appearance: list[State]) -> None:
        """Put a checkpoint's state back. Raises UserError when it is another preset, rank or number of clips."""
        if len(self.appearance) != len(appearance):
            raise UserError(
                f"checkpoint: it holds {len(appearance)} appearance adapters and this run has "
                f"{len(self.appearance)}; resume with the same reference clips and method"
            )
        self.motion.load_state_dict(motion)
        for adapter, state in zip(self.appearance, appearance):
            adapter.load_state_dict(state)

    def describe(self) -> list[str]:
        """What was patched, one line each, for the log and --dry-run."""
        lines = [f"motion      {self.motion}", *self.notes]
        if self.appearance:
            count = len(self.appearance)
            lines.append(f"appearance  {self.appearance[0]}" + (f", for each of {count} clips" if count > 1 else ""))
        if self.heads:
            lines.append(f"heads       {self.heads}")
        return [*lines, f"highway     {self._describe_highway()}"]

    def _describe_highway(self) -> str:
        if not self.highway:
            return "off"
        where = "in training and sampling" if self.highway_in_training else "in sampling only"
        return f"{where}, scope {self.highway.scope}, beta {self.highway.beta:g}"

    def _highway_of_a_pass(self) -> Patch:
        """The highway for one training pass if it acts in training, else an empty patch; leaving it takes it off."""
        return attach_highway(self.network, *self.highway) if self.highway and self.highway_in_training else Patch()


def attach(
    network: nn.Module, cfg, *, clips: int, latent_size: tuple[int, int, int], heads: Heads | None = None
) -> Method:
    """Attach the method that the config names; it starts as a no-op, its random parts drawn from `cfg.seed`.

    `clips` is the number of reference clips; `latent_size` their frames, height and width in latent pixels, which size
    Motion Inversion's embeddings; `heads` what a preset of temporal heads keeps to (None: all). Raises UserError when
    nothing could be learned from these clips.
    """
    options = dict(
        rank=cfg.lora_rank,
        alpha=cfg.lora_alpha,
        dropout=cfg.lora_unet_dropout,
        placement=cfg.lora_dropout_placement,
        generator=torch.Generator().manual_seed(cfg.seed),
    )
    if cfg.method == "lora":
        shares = cfg.block_range
        names, notes = choose_layers(
            network, cfg.temporal_preset, cfg.include_patterns, cfg.exclude_patterns, block_range=shares
        )
        motion = lora.add_adapter(network, "motion", cfg.temporal_preset, names=names, block_range=shares, **options)
        has_appearance, extra = True, "debiased"
        if cfg.temporal_preset in backbones.kind_of(network).DIFFERENCE_LOSS:
            extra = "difference"
            if latent_size[0] == 2:
                raise UserError(
                    f"temporal_preset: {cfg.temporal_preset} learns from how differences of frames change in time, and "
                    "two latent frames have one difference; give a longer clip, or use tap_temporal"
                )
    else:
        motion, notes = _motion_inversion(network, cfg, latent_size), []
        has_appearance = cfg.embeddings.loss == "hybrid"
        extra = None if cfg.embeddings.loss == "base" else "debiased"
    adapters = 1 if cfg.single_spatial_lora else clips
    appearance = [
        lora.add_adapter(network, f"appearance_{i}", "appearance", **options)
        for i in range(adapters if has_appearance else 0)
    ]
    use, scope, beta = (cfg.appearance_highway[key] for key in ("use", "scope", "beta"))
    highway = None if use == "off" else HighwaySettings(scope, beta)
    in_training = use == "training"
    if highway:
        check_highway(network, scope, in_training, motion.kind)
    method = Method(
        network, motion, appearance, highway, highway_in_training=in_training, extra_loss=extra, notes=notes
    )
    if heads:
        method.keep_to(heads)
    return method


def _motion_inversion(network: nn.Module, cfg, latent_size: tuple[int, int, int]) -> MotionEmbeddings:
    """Zero embeddings for clips of this size, off until a pass."""
    settings, (frames, height, width) = cfg.embeddings, latent_size
    if settings.loss != "hybrid" and (frames == 1 or not cfg.train_temporal_lora):
        why = "every clip is an image, which has none" if frames == 1 else "train_temporal_lora is off"
        raise UserError(
            f"embeddings.loss: {settings.loss} learns motion alone and {why}; change that, or use hybrid "
            "or method=lora to learn appearance"
        )
    motion = attach_embeddings(
        network,
        blocks=settings.blocks if "embeddings.blocks" in cfg.chosen else None,  # each kind has its own default
        widths=settings.widths,
        height=height,
        width=width,
        max_frames=settings.max_frames,
        frames=frames,
        block_range=cfg.block_range,
        sampling=settings.sampling,
    )
    motion.strength = 0.0
    return motion
