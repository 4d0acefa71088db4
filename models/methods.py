"""How motion is learned: a motion LoRA (TAP and its relatives, MotionDirector) or motion embeddings (Motion Inversion).

`attach` puts a method on the frozen U-Net for training. Whatever it is, the training step sees the same things: the
parameters of each path, a `with` block for each pass, and the state to save. `customize` puts saved states on a plain
U-Net for sampling, merged where they can be. Data, cache, objective, sampler and checkpoints do not know the method.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from diffusers import UNet3DConditionModel

from configs.errors import UserError
from models import lora
from models.embeddings import MotionEmbeddings, attach_embeddings, attach_trained, mix
from models.files import release
from models.files.checkpoint import Checkpoint
from models.highway import HighwaySettings, attach_highway
from models.hooks import Patch

State = dict[str, torch.Tensor]


class Method:
    """One way of learning motion, attached to a U-Net that is the pretrained one outside the `with` blocks.

    `motion` is a LoraAdapter on the temporal transformers or Motion Inversion's embeddings. `appearance` holds one
    LoRA on the spatial transformers per reference clip, parallel and never nested: clip i trains number i alone
    (dual path). `debiased` adds the appearance-debiased loss to the temporal one.
    """

    def __init__(
        self,
        unet: UNet3DConditionModel,
        motion,
        appearance: list[lora.LoraAdapter],
        highway: HighwaySettings | None = None,
        *,
        highway_in_training: bool = False,
        debiased: bool = True,
        sampling: str = "none",
    ):
        self.unet, self.motion, self.appearance = unet, motion, appearance
        self.highway, self.highway_in_training = highway, highway_in_training
        self.kind = "lora" if isinstance(motion, lora.LoraAdapter) else "embeddings"
        self.debiased, self.embedding_sampling = debiased, sampling

    @property
    def motion_parameters(self) -> list[torch.nn.Parameter]:
        return list(self.motion.parameters())

    @property
    def appearance_parameters(self) -> list[torch.nn.Parameter]:
        return [p for adapter in self.appearance for p in adapter.parameters()]

    @contextmanager
    def spatial_pass(self, clip: int) -> Iterator[None]:
        """Appearance LoRA of this clip on and trained; everything that learns motion is off."""
        adapter = self.appearance[clip]
        with self._highway_of_a_pass(), lora.active(self._adapters, on=[adapter], trainable=[adapter]):
            yield

    @contextmanager
    def temporal_pass(self, clip: int, with_appearance: bool) -> Iterator[None]:
        """Motion on and trained; the appearance LoRA explains the looks away but gets no gradient from here."""
        on = [self.appearance[clip]] if with_appearance and self.appearance else []
        with ExitStack() as patches:
            patches.enter_context(self._highway_of_a_pass())
            if self.kind == "lora":
                patches.enter_context(lora.active(self._adapters, on=[self.motion, *on], trainable=[self.motion]))
            else:
                patches.enter_context(self.motion.at(strength=1.0, sampling="none"))
                patches.enter_context(lora.active(self._adapters, on=on))
            yield

    @contextmanager
    def sampling(self, appearance_scale: float = 0.0, clip: int = 0) -> Iterator[Patch]:
        """The model as inference will see it: motion on, appearance LoRA of this clip at `appearance_scale`.

        The patch it gives takes all of this off before the block ends (phased LoRA integration).
        """
        with ExitStack() as patches:
            if appearance_scale and self.appearance:
                adapter = self.appearance[min(clip, len(self.appearance) - 1)]  # a single one belongs to every clip
                patches.enter_context(lora.merge(self.unet, adapter.state_dict(), appearance_scale, adapter.scale))
            if self.highway:
                patches.enter_context(attach_highway(self.unet, *self.highway))
            if self.kind == "lora":
                patches.enter_context(lora.merge(self.unet, self.motion.state_dict(), self.motion.scale))
            else:
                patches.enter_context(self.motion.at(strength=1.0, sampling=self.embedding_sampling))
            yield Patch([patches.close])

    def state(self) -> tuple[State, list[State]]:
        """What a checkpoint keeps: (motion, one appearance state per clip), fp32."""
        return self.motion.state_dict(), [adapter.state_dict() for adapter in self.appearance]

    def info(self) -> dict[str, str | int | float]:
        """What a checkpoint's header must say for these states to be read: rank and alpha of its LoRAs, preset,
        sizes.
        """
        facts = {"architecture": release.architecture(self.unet)}
        for adapter in self._adapters[:1]:
            facts |= {"rank": adapter.rank, "alpha": adapter.alpha}
        if self.kind == "lora":
            return facts | {"preset": self.motion.preset}
        return facts | {
            "frames": self.motion.frames,
            "latent_height": self.motion.height,
            "latent_width": self.motion.width,
        }

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
        lines = [f"motion      {self.motion}"]
        if self.appearance:
            count = len(self.appearance)
            lines.append(f"appearance  {self.appearance[0]}" + (f", for each of {count} clips" if count > 1 else ""))
        return [*lines, f"highway     {self._describe_highway()}"]

    def _describe_highway(self) -> str:
        if not self.highway:
            return "off"
        where = "in training and sampling" if self.highway_in_training else "in sampling only"
        return f"{where}, scope {self.highway.scope}, beta {self.highway.beta:g}"

    def _highway_of_a_pass(self) -> Patch:
        """The highway for one training pass, where it belongs to training too; nothing of it stands in between."""
        return attach_highway(self.unet, *self.highway) if self.highway and self.highway_in_training else Patch()

    @property
    def _adapters(self) -> list[lora.LoraAdapter]:
        return [self.motion, *self.appearance] if self.kind == "lora" else self.appearance


def attach(unet: UNet3DConditionModel, cfg, *, clips: int, latent_size: tuple[int, int, int]) -> Method:
    """Attach the method that the config names; it starts as a no-op, its random parts drawn from `cfg.seed`.

    `clips` is the number of reference clips; `latent_size` their frames, height and width in latent pixels, which size
    Motion Inversion's embeddings. Raises UserError when nothing could be learned from these clips.
    """
    options = dict(
        rank=cfg.lora_rank,
        alpha=cfg.lora_alpha,
        dropout=cfg.lora_unet_dropout,
        placement=cfg.lora_dropout_placement,
        generator=torch.Generator().manual_seed(cfg.seed or 0),
    )
    settings = cfg.embeddings
    if cfg.method == "lora":
        motion = lora.add_adapter(unet, "motion", cfg.temporal_preset, **options)
        has_appearance, debiased = True, True
    else:
        frames, height, width = latent_size
        if settings.loss != "hybrid" and (frames == 1 or not cfg.train_temporal_lora):
            why = "every clip is an image, which has none" if frames == 1 else "train_temporal_lora is off"
            raise UserError(
                f"embeddings.loss: {settings.loss} learns motion alone and {why}; change that, or use hybrid "
                "or method=lora to learn looks"
            )
        motion = attach_embeddings(
            unet,
            blocks=settings.blocks,
            widths=settings.widths,
            height=height,
            width=width,
            max_frames=settings.max_frames,
            frames=frames,
        )
        motion.strength = 0.0
        has_appearance, debiased = settings.loss == "hybrid", settings.loss != "base"
    adapters = 1 if cfg.single_spatial_lora else clips
    appearance = [
        lora.add_adapter(unet, f"appearance_{i}", "appearance", **options)
        for i in range(adapters if has_appearance else 0)
    ]
    use, scope, beta = (cfg.appearance_highway[key] for key in ("use", "scope", "beta"))
    return Method(
        unet,
        motion,
        appearance,
        None if use == "off" else HighwaySettings(scope, beta),
        highway_in_training=use == "training",
        debiased=debiased,
        sampling=settings.sampling,
    )


class Customization(Patch):
    """What sampling put on a U-Net, until `remove()`. `notes` say what acts and what is interpolated, a line each."""

    def __init__(self, undo: Callable[[], None], notes: list[str]):
        super().__init__([undo])
        self.notes = notes


def customize(
    unet: UNet3DConditionModel,
    motions: Sequence[tuple[Checkpoint, float]],
    appearances: Sequence[tuple[Checkpoint, int, float]] = (),
    highway: HighwaySettings | None = None,
    sampling: str = "none",
    latent_size: tuple[int, int, int] | None = None,
) -> Customization:
    """Give a plain U-Net the motions of `motions`, (checkpoint, strength) pairs, until the patch is removed.

    LoRAs of any preset are added into the weights; embeddings with equal shapes are added up. A strength of 0 leaves
    the U-Net untouched, above 1 exaggerates. `appearances` are (checkpoint, number of its clip, strength). `highway`
    is None for the plain skips. `latent_size` (frames, height, width in latent pixels) is what
    will be sampled. Raises UserError for checkpoints that can not act together; after any exception, Ctrl-C
    included, the U-Net is as it was (MotionDirector's mixing of two paths).
    """
    if len({checkpoint.kind for checkpoint, _ in motions}) > 1:
        raise UserError(
            "mixing: motion embeddings are learned against the pretrained query and key projections, which "
            "a motion LoRA changes, so the two can not act together; mix LoRAs with LoRAs"
        )
    acting = [(checkpoint, strength) for checkpoint, strength in motions if strength]
    notes = []
    with ExitStack() as patches:
        if acting and acting[0][0].kind == "embeddings":
            embeddings = patches.enter_context(_trained_embeddings(unet, acting, sampling, latent_size))
            notes.append(str(embeddings))
            if latent_size and (interpolated := embeddings.interpolation(*latent_size)):
                notes.append(interpolated)
        else:
            for checkpoint, strength in acting:
                patches.enter_context(lora.merge(unet, checkpoint.motion, strength, checkpoint.scale))
                notes.append(
                    f"motion LoRA {checkpoint.preset}: {len(checkpoint.motion) // 2} layers, merged at {strength:g}"
                )
        for checkpoint, clip, strength in appearances:
            patches.enter_context(lora.merge(unet, checkpoint.appearance[clip], strength, checkpoint.scale))
            notes.append(f"appearance LoRA: {len(checkpoint.appearance[clip]) // 2} layers, merged at {strength:g}")
        if highway is not None:
            notes.append(str(patches.enter_context(attach_highway(unet, *highway))))
        return Customization(patches.pop_all().close, notes)


def _trained_embeddings(
    unet: UNet3DConditionModel,
    motions: list[tuple[Checkpoint, float]],
    sampling: str,
    latent_size: tuple[int, int, int] | None,
) -> MotionEmbeddings:
    """Attach saved embeddings, several of them as their weighted sum; their sizes are in the checkpoint's header."""
    sizes = [_trained_size(checkpoint) for checkpoint, _ in motions]
    if different := next((size for size in sizes if size != sizes[0]), None):
        raise UserError(
            f"mixing: these embeddings were trained on {_in_words(sizes[0])} and on {_in_words(different)}; "
            "only those of one size and length can be added up"
        )
    frames, height, width = sizes[0]
    state = mix([checkpoint.motion for checkpoint, _ in motions], [strength for _, strength in motions])
    embeddings = attach_trained(
        unet, state, size=height and (height, width), frames=frames, sampled=latent_size and latent_size[1:]
    )
    embeddings.sampling = sampling
    return embeddings


def _trained_size(checkpoint: Checkpoint) -> tuple[int | None, ...]:
    """(frames, height, width) in latent pixels; all None for a file of Motion Inversion's authors, which has no
    header.
    """
    header = (checkpoint.info.get(name) for name in ("frames", "latent_height", "latent_width"))
    return tuple(value and int(value) for value in header)


def _in_words(size: tuple[int | None, ...]) -> str:
    return "an unknown size" if size[1] is None else f"{size[0]} frames of {size[2]}x{size[1]} latents"
