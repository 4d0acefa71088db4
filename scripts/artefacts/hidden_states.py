"""Figure 4: the decoder's hidden states under each customization, and how well motion can be read from them.

The same noised clips go through the untouched model, TAP, the appearance highway, both, and the spatial LoRA, whose
adapters are those of several trainings. The prompt is empty, since words would reveal the motion. A hidden state is
what a layer of an up block (its resnet with the attention behind it) gives, [(b f) c h w].
Similarity is the cosine of a clip's whole state with the untouched model's. The classifier is ridge regression onto
motions, from states averaged over a 2 x 2 grid per frame, fitted on half of the clips and tested on the other half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from data.world import MOTIONS, render, sample_scene
from infer.measure.statistics import Estimate, share_or_mean
from models.backbone import Backbone
from models.customization import customize
from models.files.checkpoint import Checkpoint
from models.highway import HighwaySettings
from scripts.artefacts.artefact import Claim
from scripts.artefacts.results_file import markdown, markdown_table
from scripts.artefacts.verdict import Role, Verdict, judge

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
    Claim("motion is read as well with AH as without", "classifier, untrained", AH, "not less", BASE, "ours"),
)
ROLES = {
    "similarity": Role("similarity", 0.01, inside="clips"),
    "classifier": Role("classifier", 0.1, inside="clips"),
    "classifier, untrained": Role("classifier", 0.1, unit="clip", inside="values"),
}
Values = list[list[float]]  # one list over clips for each training; a single one where no training is involved


@dataclass(frozen=True)
class LabelledClip:
    """Frames uint8 [f c h w] that show the motion `label`; `seed` draws the noise they are mixed with."""

    label: str
    frames: torch.Tensor
    seed: int


@dataclass(frozen=True)
class StateComparison:
    """Per model, layer and training one value a clip: cosine with the untouched model, and whether motion was read.

    `read` is empty where a motion has a single clip: recognizing a clip is not reading its motion.
    """

    source: str
    models: list[str]
    layers: list[str]
    similarity: dict[tuple[str, int], Values]
    between: torch.Tensor  # [models models], cosine averaged over trainings, clips and layers
    read: dict[tuple[str, int], Values]
    references: list[str]  # the reference clip of each training

    def verdicts(self) -> list[Verdict]:
        """Over the reference clips of the trainings, or over the clips seen where no training is involved."""
        found = judge([(claim, self.source, self._rows(claim)) for claim in CLAIMS], ROLES)
        return [
            Verdict(v.claim, v.group, "not measured", "several clips of each motion are needed")
            if v.claim.role.startswith("classifier") and not self.read
            else v
            for v in found
        ]

    def _rows(self, claim: Claim) -> dict[str, list[dict]]:
        """The values of the claim's two models, mean of the layers, as scripts/artefacts/verdict.py reads them."""
        role = ROLES[claim.role]
        values = self.similarity if role.metric == "similarity" else self.read
        if not values:
            return {}
        trainings = max(len(values[name, 0]) for name in (claim.one, claim.other))
        return {
            name: [
                {"reference": unit, "run": training, "prompt": clip, "seed": 0, role.metric: float(value)}
                for training in range(trainings)
                for clip, value in enumerate(self._mean_of_layers(values, name, training))
                for unit in [clip if role.unit == "clip" else self.references[training]]
            ]
            for name in (claim.one, claim.other)
        }

    def _mean_of_layers(self, values: dict[tuple[str, int], Values], name: str, training: int) -> np.ndarray:
        lists = [values[name, layer] for layer in range(len(self.layers))]
        return np.mean([of[training if len(of) > 1 else 0] for of in lists], axis=0)

    @property
    def caption(self) -> str:
        return (
            f"Hidden states of {self.source}, noised to timestep {TIMESTEP}, empty prompt; trainings of the adapters: "
            f"{len(self.references)}, reference clips: {len(set(self.references))}."
        )

    def measured(self) -> list[tuple[str, dict[tuple[str, int], Estimate]]]:
        """(title, estimates by model and layer) of what could be measured."""
        found = (("cosine with the untouched model", self.similarity), ("motion classifier, share right", self.read))
        return [(title, {key: self._estimate(of) for key, of in values.items()}) for title, values in found if values]

    def _estimate(self, values: Values) -> Estimate:
        """Over the clips seen; where several reference clips were learned from, over them."""
        units = [clip for clip, of in zip(self.references, values) for _ in of]
        return share_or_mean([value for of in values for value in of], units)

    def tables(self) -> list[tuple[str, list[list[str]]]]:
        """(title, rows of cells as text), the header first."""
        head, tables = ["model", *self.layers, "n"], []
        for title, values in self.measured():
            rows = [
                [name, *(str(values[name, layer]) for layer in range(len(self.layers))), str(values[name, 0].n)]
                for name in self.models
            ]
            tables.append((title, [head, *rows]))
        rows = [[name, *(f"{value:.3f}" for value in line)] for name, line in zip(self.models, self.between.tolist())]
        return [*tables, ("cosine between models, mean of clips and layers", [["", *self.models], *rows])]

    def markdown(self) -> str:
        parts = [markdown(self.caption)]
        for title, rows in self.tables():
            parts.append(f"{title[:1].upper()}{title[1:]}:\n\n{markdown_table(rows)}")
        return "\n\n".join(parts)

    def figure(self) -> Figure:
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        matrix, near, reading = figure.subplots(1, 3)
        image = matrix.imshow(self.between.numpy(), cmap="viridis", vmax=1)
        matrix.set_xticks(range(len(self.models)), self.models, rotation=30, ha="right", fontsize=8)
        matrix.set_yticks(range(len(self.models)), self.models, fontsize=8)
        matrix.set_title("cosine between models", fontsize=9)
        figure.colorbar(image, ax=matrix, shrink=0.8)
        for axes, (title, values) in zip((near, reading), self.measured()):
            for name in self.models:
                found = [values[name, layer] for layer in range(len(self.layers))]
                (line,) = axes.plot([e.value for e in found], marker="o", markersize=3, label=name)
                band = [e.low for e in found], [e.high for e in found]
                axes.fill_between(range(len(found)), *band, color=line.get_color(), alpha=0.15, linewidth=0)
            axes.set_xticks(range(len(self.layers)), self.layers, rotation=45, fontsize=7)
            axes.set_title(f"{title}, 95 % bands", fontsize=9)
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
    backbone: Backbone, adapters: Sequence[tuple[str, Checkpoint]], clips: Sequence[LabelledClip], source: str
) -> StateComparison:
    """The decoder's hidden states of `clips` under each customization of `backbone` by each of `adapters`.

    An adapter is (the reference clip that it learned from, its checkpoint).
    Motion is read from them only where every label has different clips. `source` says in words what the clips are.
    """
    unet, highway = backbone.network, HighwaySettings()
    customizations = {(BASE, 0): ([], [], None), (AH, 0): ([], [], highway)}
    for number, (_, checkpoint) in enumerate(adapters):
        motion, appearance = [(checkpoint, 1.0)], [(checkpoint, 0, 1.0)]
        customizations[TAP, number] = motion, [], None
        customizations[BOTH, number] = motion, [], highway
        customizations[SPATIAL, number] = [], appearance, None
    models, runs, layers = [BASE, TAP, AH, BOTH, SPATIAL], list(customizations), list(decoder_layers(unet))
    similarity = {(name, layer): [] for name in models for layer in range(len(layers))}
    cosines = {(run, layer): [] for run in runs for layer in range(len(layers))}
    features = {key: [] for key in cosines}
    between = torch.zeros(len(runs), len(runs))
    empty = backbone.encode_text([""])
    for batch in (clips[start : start + BATCH] for start in range(0, len(clips), BATCH)):
        noised, timestep = _noised(backbone, batch), torch.tensor(TIMESTEP, device=backbone.device)
        text = empty.expand(len(batch), -1, -1).to(backbone.device, unet.dtype)
        states = {}
        for run, customization in customizations.items():
            with customize(unet, *customization):
                states[run] = _decoder_states(unet, noised, timestep, text)
        for layer in range(len(layers)):
            flat = F.normalize(torch.stack([states[run][layer].flatten(1) for run in runs], 1), dim=-1)  # [b r d]
            pairs = torch.einsum("brd,bsd->brs", flat, flat)
            between += pairs.sum(0) / (len(clips) * len(layers))
            for number, run in enumerate(runs):
                cosines[run, layer] += pairs[:, 0, number].tolist()
                features[run, layer].append(_pooled(states[run][layer]))
    labels = [clip.label for clip in clips]
    several = all(any(a.label == b.label and not torch.equal(a.frames, b.frames) for b in clips) for a in clips)
    read = {key: [] for key in similarity} if several else {}
    for (run, layer), found in cosines.items():
        similarity[run[0], layer].append(found)
        if several:
            read[run[0], layer].append(classify(torch.cat(features[run, layer]), labels))
    references = [reference for reference, _ in adapters]
    return StateComparison(source, models, layers, similarity, _by_model(between, runs, models), read, references)


def _by_model(between: torch.Tensor, runs: list[tuple[str, int]], models: list[str]) -> torch.Tensor:
    """[models models] from [runs runs]: the mean over trainings, two models of the same one."""
    places = {name: [place for place, run in enumerate(runs) if run[0] == name] for name in models}

    def cosine(one: str, other: str) -> float:
        mine, theirs = np.broadcast_arrays(places[one], places[other])  # a model without training meets all
        return between[mine, theirs].mean().item()

    return torch.tensor([[cosine(one, other) for other in models] for one in models])


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


def decoder_layers(unet) -> dict[str, torch.nn.Module]:
    """The last module of every layer of the decoder, by a name such as "up 1.2": block 1, layer 2."""
    layers = {}
    for number, block in enumerate(unet.up_blocks):
        last = getattr(block, "temp_attentions", None) or block.temp_convs
        layers |= {f"up {number}.{layer}": module for layer, module in enumerate(last)}
    return layers


def _decoder_states(unet, noised, timestep, text) -> list[torch.Tensor]:
    """The output of every layer, fp32 [b f c h w] on the CPU."""
    found: list[torch.Tensor] = []

    def keep(_, __, output) -> None:
        found.append(output if torch.is_tensor(output) else output[0])  # a transformer gives a tuple

    hooks = [module.register_forward_hook(keep) for module in decoder_layers(unet).values()]
    try:
        unet(noised, timestep, text)
    finally:
        for hook in hooks:
            hook.remove()
    return [state.float().cpu().unflatten(0, (len(noised), -1)) for state in found]  # [(b f) c h w] -> [b f c h w]


def _pooled(state: torch.Tensor) -> torch.Tensor:
    pooled = F.adaptive_avg_pool2d(state.flatten(0, 1), 2)  # [(b f) c 2 2]
    return pooled.unflatten(0, state.shape[:2]).flatten(1)
