"""How motion is learned: a motion LoRA (TAP and its relatives, MotionDirector) or motion embeddings (Motion Inversion).

`attach` puts a method on the frozen U-Net for training. Whatever it is, the training step sees the same things: the
parameters of each path, a `with` block for each pass, and the state to save. `customize` puts saved states on a plain
U-Net for sampling, merged where they can be. Data, cache, objective, sampler and checkpoints do not know the method.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet3DConditionModel

from configs.errors import UserError
from models import lora
from models.checkpoint import Checkpoint
from models.embeddings import attach_embeddings, mix
from models.highway import attach_highway
from models.hooks import Patch

State = dict[str, torch.Tensor]


class Method:
    """One way of learning motion, attached to a U-Net that is the pretrained one outside the `with` blocks.

    `motion` is a LoraAdapter on the temporal transformers or Motion Inversion's embeddings. `appearance` holds one
    LoRA on the spatial transformers per reference clip, parallel and never nested: clip i trains number i alone
    (METHOD section 5). `debiased` adds the appearance-debiased loss to the temporal one.
    """

    def __init__(self, unet: UNet3DConditionModel, motion, appearance: list[lora.LoraAdapter], highway, *,
                 debiased: bool = True, sampling: str = "none"):
        self.unet, self.motion, self.appearance, self.highway = unet, motion, appearance, highway
        self.kind = "lora" if isinstance(motion, lora.LoraAdapter) else "embeddings"
        self.debiased, self.embedding_sampling = debiased, sampling
        self._training_highway = _highway(unet, highway) if highway.use == "training" else Patch()

    @property
    def motion_parameters(self) -> list[torch.nn.Parameter]:
        return list(self.motion.parameters())

    @property
    def appearance_parameters(self) -> list[torch.nn.Parameter]:
        return [p for adapter in self.appearance for p in adapter.parameters()]

    def spatial_pass(self, clip: int):
        """Appearance LoRA of this clip on and trained; everything that learns motion is off."""
        adapter = self.appearance[clip]
        return lora.active(self._adapters, on=[adapter], trainable=[adapter])

    @contextmanager
    def temporal_pass(self, clip: int, with_appearance: bool) -> Iterator[None]:
        """Motion on and trained; the appearance LoRA explains the looks away but gets no gradient from here."""
        on = [self.appearance[clip]] if with_appearance and self.appearance else []
        if self.kind == "lora":
            with lora.active(self._adapters, on=[self.motion, *on], trainable=[self.motion]):
                yield
        else:
            with self.motion.at(strength=1.0, sampling="none"), lora.active(self._adapters, on=on):
                yield

    @contextmanager
    def sampling(self, appearance_scale: float = 0.0) -> Iterator[None]:
        """The model as inference will see it: motion on, appearance LoRA of the first clip at `appearance_scale`."""
        states = [adapter.state_dict() for adapter in self.appearance[:1]] if appearance_scale else []
        patches = [lora.merge(self.unet, state, appearance_scale) for state in states]
        if self.highway.use == "sampling":
            patches.append(_highway(self.unet, self.highway))
        if self.kind == "lora":
            patches.append(lora.merge(self.unet, self.motion.state_dict(), self.motion.scale))
            with _together(patches):
                yield
        else:
            with _together(patches), self.motion.at(strength=1.0, sampling=self.embedding_sampling):
                yield

    def state(self) -> tuple[State, list[State]]:
        """What a checkpoint keeps: (motion, one appearance state per clip), fp32."""
        return self.motion.state_dict(), [adapter.state_dict() for adapter in self.appearance]

    def load(self, motion: State, appearance: list[State]) -> None:
        """Put a checkpoint's state back. Raises UserError when it is another preset, rank or number of clips."""
        if len(self.appearance) != len(appearance):
            raise UserError(f"checkpoint: it holds {len(appearance)} appearance adapters and this run has "
                            f"{len(self.appearance)}; resume with the same reference clips and method")
        self.motion.load_state_dict(motion)
        for adapter, state in zip(self.appearance, appearance):
            adapter.load_state_dict(state)

    def describe(self) -> list[str]:
        """What was patched, one line each, for the log and --dry-run."""
        lines = [f"motion      {self.motion}"]
        if self.appearance:
            count = len(self.appearance)
            lines.append(f"appearance  {self.appearance[0]}" + (f", for each of {count} clips" if count > 1 else ""))
        return [*lines, f"highway     {describe_highway(self.highway)}"]

    @property
    def _adapters(self) -> list[lora.LoraAdapter]:
        return [self.motion, *self.appearance] if self.kind == "lora" else self.appearance


def attach(unet: UNet3DConditionModel, cfg, *, clips: int, latent_size: tuple[int, int, int]) -> Method:
    """Attach the method that the config names; it starts as a no-op, its random parts drawn from `cfg.seed`.

    `clips` is the number of reference clips; `latent_size` their frames, height and width in latent pixels, which size
    Motion Inversion's embeddings.
    """
    options = dict(rank=cfg.lora_rank, alpha=cfg.lora_alpha, dropout=cfg.lora_unet_dropout,
                   placement=cfg.lora_dropout_placement, generator=torch.Generator().manual_seed(cfg.seed or 0))
    settings = cfg.embeddings
    if cfg.method == "lora":
        motion = lora.add_adapter(unet, "motion", cfg.temporal_preset, **options)
        has_appearance, debiased = True, True
    else:
        frames, height, width = latent_size
        motion = attach_embeddings(unet, blocks=settings.blocks, widths=settings.widths, height=height, width=width,
                                   max_frames=settings.max_frames, frames=frames)
        motion.strength = 0.0
        has_appearance, debiased = settings.loss == "hybrid", settings.loss != "base"
    adapters = 1 if cfg.single_spatial_lora else clips
    appearance = [lora.add_adapter(unet, f"appearance_{i}", "appearance", **options)
                  for i in range(adapters if has_appearance else 0)]
    return Method(unet, motion, appearance, cfg.appearance_highway, debiased=debiased, sampling=settings.sampling)


def customize(unet: UNet3DConditionModel, motions: list[tuple[Checkpoint, float]],
              appearances: list[tuple[Checkpoint, int, float]] = (), highway=None, sampling: str = "none") -> Patch:
    """Give a plain U-Net the motions of `motions`, (checkpoint, strength) pairs, until the patch is removed.

    LoRAs of any preset are added into the weights; embeddings with equal shapes are added up. Strength 0 leaves the
    U-Net untouched. `appearances` are (checkpoint, number of its clip, strength). `highway` has scope and beta, or is
    None for the plain skips. Raises UserError for checkpoints that can not act together.
    """
    kinds = {checkpoint.kind for checkpoint, _ in motions}
    if len(kinds) > 1:
        raise UserError("mixing: motion embeddings are learned against the pretrained query and key projections, which "
                        "a motion LoRA changes, so the two can not act together; mix LoRAs with LoRAs")
    patches: list[Patch] = []
    try:
        if "embeddings" in kinds:
            patches.append(_trained_embeddings(unet, motions, sampling))
        else:
            patches += [lora.merge(unet, c.motion, strength, c.scale) for c, strength in motions]
        patches += [lora.merge(unet, c.appearance[clip], strength, c.scale) for c, clip, strength in appearances]
        if highway is not None:
            patches.append(_highway(unet, highway))
    except UserError:
        _together(patches).remove()
        raise
    return _together(patches)


def _trained_embeddings(unet: UNet3DConditionModel, motions: list[tuple[Checkpoint, float]], sampling: str) -> Patch:
    """Attach saved embeddings, several of them as their weighted sum; their sizes are in the checkpoint's header."""
    first = motions[0][0]
    names = list(first.motion)
    embeddings = attach_embeddings(
        unet, blocks=list(dict.fromkeys(name.split("_")[0] for name in names)),
        widths=sorted({first.motion[name].shape[-1] for name in names}),
        height=int(first.info["latent_height"]), width=int(first.info["latent_width"]),
        max_frames=first.motion[names[0]].shape[1], frames=int(first.info["frames"]))
    if len(motions) == 1:
        embeddings.load_state_dict(first.motion)
        embeddings.strength = motions[0][1]  # strength 0 is then the untouched forward, bit for bit
    else:
        embeddings.load_state_dict(mix([c.motion for c, _ in motions], [strength for _, strength in motions]))
    embeddings.sampling = sampling
    return embeddings


def _together(patches: list[Patch]) -> Patch:
    return Patch([patch.remove for patch in patches])


def _highway(unet: UNet3DConditionModel, settings) -> Patch:
    return attach_highway(unet, settings.scope, settings.beta, getattr(settings, "scales", None))


def describe_highway(settings) -> str:
    if settings.use == "off":
        return "off"
    where = "in training and sampling" if settings.use == "training" else "in sampling only"
    return f"{where}, scope {settings.scope}, beta {settings.beta:g}"
