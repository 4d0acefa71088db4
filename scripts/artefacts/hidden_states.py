"""Figure 4: the decoder's hidden states under each customization, and how well motion can be read from them.

The same noised clips go through the untouched model, TAP, the appearance highway, both, and the spatial LoRA. The
prompt is empty, since words would reveal the motion. A hidden state is the output of an up block, [(b f) c h w].
Similarity is the cosine of a clip's whole state with the untouched model's. The classifier is ridge regression onto
motions, from states averaged over a 2 x 2 grid per frame, fitted on half of the clips and tested on the other half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from data.world import MOTIONS, render, sample_scene
from infer.measure.statistics import Estimate, difference, mean, share
from models import methods
from models.backbone import Backbone
from models.files.checkpoint import Checkpoint
from models.highway import HighwaySettings
from scripts.artefacts.artefact import Claim
from scripts.artefacts.results_file import markdown, markdown_table
from scripts.artefacts.verdict import Verdict, rule

TIMESTEP = 500
BATCH = 8
RIDGE = 0.01  # of the kernel's mean diagonal
BASE, TAP, AH, BOTH, SPATIAL = "untouched model", "TAP", "AH", "TAP + AH", "spatial LoRA"
CLAIMS = (
    Claim(
        "TAP leaves the decoder nearer to the untouched model than the spatial LoRA does",
        "similarity",
        TAP,
        "more",
        SPATIAL,
        "ours",
    ),
    Claim(
        "AH leaves the decoder nearer to the untouched model than the spatial LoRA does",
        "similarity",
        AH,
        "more",
        SPATIAL,
        "ours",
    ),
    Claim(
        "motion is read as well from TAP's decoder as from the untouched one",
        "classifier",
        TAP,
        "not less",
        BASE,
        "ours",
    ),
    Claim("motion is read as well with AH as without", "classifier", AH, "not less", BASE, "ours"),
)
MARGIN = 0.1


@dataclass(frozen=True)
class LabelledClip:
    """Frames uint8 [f c h w] that show the motion `label`; `seed` draws the noise they are mixed with."""

    label: str
    frames: torch.Tensor
    seed: int


@dataclass(frozen=True)
class StateComparison:
    """Per model and up block, one value per clip: cosine with the untouched model, and whether its motion was read.

    `read` is empty where a motion has a single clip: recognizing a clip is not reading its motion.
    """

    source: str
    models: list[str]
    blocks: int
    similarity: dict[tuple[str, int], list[float]]
    between: torch.Tensor  # [models models], cosine averaged over clips and blocks
    read: dict[tuple[str, int], list[bool]]

    def verdicts(self) -> list[Verdict]:
        return [self._judge(claim) for claim in CLAIMS]

    def _judge(self, claim: Claim) -> Verdict:
        values = self.similarity if claim.role == "similarity" else self.read
        if not values:
            return Verdict(claim, self.source, "not measured", "several clips of each motion are needed")
        one, other = (
            {
                clip: sum(column) / self.blocks
                for clip, column in enumerate(zip(*(values[name, block] for block in range(self.blocks))))
            }
            for name in (claim.one, claim.other)
        )
        found = difference(one, other)
        means = [sum(side.values()) / len(side) for side in (one, other)]
        words = (
            f"{claim.role} {means[0]:.3f} against {means[1]:.3f}, difference {found.value:+.3f} "
            f"[{found.low:+.3f}, {found.high:+.3f}] over {found.n} clips, mean of the up blocks"
        )
        if claim.expect.startswith("not"):
            words += f", allowing {MARGIN:g}"
        return Verdict(claim, self.source, rule(claim.expect, found, MARGIN), words)

    @property
    def caption(self) -> str:
        return f"Hidden states of {self.source}, noised to timestep {TIMESTEP}, empty prompt."

    def tables(self) -> list[tuple[str, list[list[str]]]]:
        """(title, rows of cells as text), the header first."""
        head = ["model", *(f"up block {block}" for block in range(self.blocks)), "n"]
        tables = []
        for title, values, kind in (
            ("cosine with the untouched model", self.similarity, mean),
            ("motion classifier, share right", self.read, share),
        ):
            if not values:
                continue
            rows = [
                [name, *(str(kind(values[name, b])) for b in range(self.blocks)), str(len(values[name, 0]))]
                for name in self.models
            ]
            tables.append((title, [head, *rows]))
        rows = [[name, *(f"{value:.3f}" for value in line)] for name, line in zip(self.models, self.between.tolist())]
        return [*tables, ("cosine between models, mean of clips and blocks", [["", *self.models], *rows])]

    def markdown(self) -> str:
        parts = [markdown(self.caption)]
        for title, rows in self.tables():
            parts.append(f"{title[:1].upper()}{title[1:]}:\n\n{markdown_table(rows)}")
        return "\n\n".join(parts)

    def figure(self) -> Figure:
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        matrix, near, reading = figure.subplots(1, 3)
        image = matrix.imshow(self.between, cmap="viridis", vmax=1)
        matrix.set_xticks(range(len(self.models)), self.models, rotation=30, ha="right", fontsize=8)
        matrix.set_yticks(range(len(self.models)), self.models, fontsize=8)
        matrix.set_title("cosine between models", fontsize=9)
        figure.colorbar(image, ax=matrix, shrink=0.8)
        for axes, values, kind, title in (
            (near, self.similarity, mean, "cosine with the untouched model"),
            (reading, self.read, share, "motion classifier, share right"),
        ):
            for name in self.models if values else ():
                found: list[Estimate] = [kind(values[name, block]) for block in range(self.blocks)]
                error = [[max(0, e.value - e.low) for e in found], [max(0, e.high - e.value) for e in found]]
                axes.errorbar(
                    range(self.blocks),
                    [e.value for e in found],
                    yerr=error,
                    marker="o",
                    markersize=3,
                    capsize=2,
                    label=name,
                )
            axes.set_xticks(range(self.blocks), [f"up {block}" for block in range(self.blocks)])
            axes.set_title(title, fontsize=9)
            axes.grid(alpha=0.3)
        near.legend(frameon=False, fontsize=8)
        return figure


def world_clips(each: int) -> list[LabelledClip]:
    """`each` clips of every motion the toy model knows, in appearances that pretraining did not draw."""
    clips = []
    for seed in range(each):
        for number, motion in enumerate(MOTIONS):
            place = 90_000_000 + seed * len(MOTIONS) + number  # far from what pretraining drew
            clips.append(LabelledClip(motion, render(replace(sample_scene(place), motion=motion)).frames, place))
    return clips


@torch.no_grad()
def compare_customizations(
    backbone: Backbone, checkpoint: Checkpoint, clips: Sequence[LabelledClip], source: str
) -> StateComparison:
    """The decoder's hidden states of `clips` under each customization of `backbone` by `checkpoint`.

    Motion is read from them only where every label has different clips. `source` says in words what the clips are.
    """
    unet, highway = backbone.network, HighwaySettings()
    motion, appearance = [(checkpoint, 1.0)], [(checkpoint, 0, 1.0)]
    customizations = {
        BASE: ([], [], None),
        TAP: (motion, [], None),
        AH: ([], [], highway),
        BOTH: (motion, [], highway),
        SPATIAL: ([], appearance, None),
    }
    models, blocks = list(customizations), len(unet.up_blocks)
    similarity = {(name, block): [] for name in models for block in range(blocks)}
    features = {key: [] for key in similarity}
    between = torch.zeros(len(models), len(models))
    empty = backbone.encode_text([""])
    for batch in (clips[start : start + BATCH] for start in range(0, len(clips), BATCH)):
        noised, timestep = _noised(backbone, batch), torch.tensor(TIMESTEP, device=backbone.device)
        text = empty.expand(len(batch), -1, -1).to(backbone.device, unet.dtype)
        states = {}
        for name, customization in customizations.items():
            with methods.customize(unet, *customization):
                states[name] = _decoder_states(unet, noised, timestep, text)
        for block in range(blocks):
            flat = F.normalize(torch.stack([states[name][block].flatten(1) for name in models], 1), dim=-1)  # [b m d]
            cosines = torch.einsum("bmd,bnd->bmn", flat, flat)
            between += cosines.sum(0) / (len(clips) * blocks)
            for number, name in enumerate(models):
                similarity[name, block] += cosines[:, 0, number].tolist()
                features[name, block].append(_pooled(states[name][block]))
    labels = [clip.label for clip in clips]
    several = all(any(a.label == b.label and not torch.equal(a.frames, b.frames) for b in clips) for a in clips)
    read = {key: classify(torch.cat(parts), labels) for key, parts in features.items()} if several else {}
    return StateComparison(source, models, blocks, similarity, between, read)


def classify(features: torch.Tensor, labels: Sequence[str]) -> list[bool]:
    """Whether each test clip's motion was read from `features` [n d]; every second clip of a label is for testing."""
    names = sorted(set(labels))
    seen = dict.fromkeys(names, 0)
    fit, test = [], []
    for index, label in enumerate(labels):
        (test if seen[label] % 2 else fit).append(index)
        seen[label] += 1
    centre, spread = features[fit].mean(0), features[fit].std(0) + 1e-6
    x, y = ((features[part] - centre) / spread for part in (fit, test))
    wanted = torch.tensor([[float(labels[index] == name) for name in names] for index in fit])
    kernel = x @ x.T
    weights = torch.linalg.solve(kernel + RIDGE * kernel.diagonal().mean() * torch.eye(len(fit)), wanted)
    guesses = (y @ x.T @ weights).argmax(1).tolist()
    return [names[guess] == labels[index] for guess, index in zip(guesses, test)]


def _noised(backbone: Backbone, batch: Sequence[LabelledClip]) -> torch.Tensor:
    """z_t [b c f h w] of the clips, each with the noise of its own seed."""
    latents = torch.cat([backbone.encode_video(clip.frames) for clip in batch]).cpu()
    noise = torch.cat(
        [torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(clip.seed)) for clip in batch]
    )
    timesteps = torch.full((len(batch),), TIMESTEP)
    return backbone.scheduler.add_noise(latents, noise, timesteps).to(backbone.device, backbone.network.dtype)


def _decoder_states(unet, noised, timestep, text) -> list[torch.Tensor]:
    """The output of every up block, fp32 [b f c h w] on the CPU."""
    found: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: found.append(output)) for block in unet.up_blocks]
    try:
        unet(noised, timestep, text)
    finally:
        for hook in hooks:
            hook.remove()
    return [state.float().cpu().unflatten(0, (len(noised), -1)) for state in found]  # [(b f) c h w] -> [b f c h w]


def _pooled(state: torch.Tensor) -> torch.Tensor:
    pooled = F.adaptive_avg_pool2d(state.flatten(0, 1), 2)  # [(b f) c 2 2]
    return pooled.unflatten(0, state.shape[:2]).flatten(1)
