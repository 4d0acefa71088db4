"""Metrics that any video can have: the definition of each, and `VideoScorer`, which computes those it has weights for.

A metric without weights is reported with the reason and what to do; the others continue. Numbers are per video, the
caller averages them. The exact scores of the toy world are in infer/measure/world_scores.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial

import torch

from infer.measure import clip_scores, motion_fidelity
from infer.measure.clip_scores import MetricUnavailable


@dataclass(frozen=True)
class Definition:
    """What a number means: the model it comes from, its formula, who defined it, and which way is better."""

    title: str
    model: str
    formula: str
    source: str
    better: str

    @property
    def heading(self) -> str:
        """The title with an arrow to the better side."""
        return f"{self.title} {'↑' if self.better == 'up' else '↓'}"


DEFINITIONS = {
    "text_alignment": Definition(
        "text alignment",
        "CLIP",
        "mean over frames of cos(image, prompt) x 100",
        "Hessel et al. 2021 (CLIPScore), unclipped",
        "up",
    ),
    "text_alignment_logits": Definition(
        "text alignment (logits)",
        "CLIP",
        "mean over frames of cos(image, prompt) x exp(logit_scale)",
        "TGVE 2023 (with ViT-L/14)",
        "up",
    ),
    "temporal_consistency": Definition(
        "temporal consistency", "CLIP", "mean of cos(frame j, frame j+1) x 100", "Wu et al. 2023 (Tune-A-Video)", "up"
    ),
    "temporal_consistency_all_pairs": Definition(
        "temporal consistency (all pairs)",
        "CLIP",
        "mean of cos(frame i, frame j) x 100 over all i < j",
        "TGVE 2023",
        "up",
    ),
    "appearance_leakage": Definition(
        "appearance leakage",
        "CLIP",
        "mean over frames of cos(image, caption of the reference's appearance) x 100",
        "this project",
        "down",
    ),
    "pickscore": Definition(
        "PickScore",
        "PickScore_v1",
        "mean over frames of cos(image, prompt) x exp(logit_scale)",
        "Kirstain et al. 2023",
        "up",
    ),
    "viclip": Definition(
        "ViCLIP score", "ViCLIP-L", "cos(video, prompt) x 100, eight frames", "Wang et al. 2023 (InternVid)", "up"
    ),
    "motion_fidelity": Definition(
        "motion fidelity",
        "point tracker",
        "mean over generated tracklets of the best correlation with the reference's + the same the other way round; "
        "correlation = mean cosine of unit displacements; at most 2",
        "Yatim et al. 2023 (DMT), section 5",
        "up",
    ),
    "motion_fidelity_dmt_code": Definition(
        "motion fidelity (DMT code)",
        "point tracker",
        "the first term of motion fidelity alone; at most 1",
        "Yatim et al. 2023 (DMT), published script",
        "up",
    ),
}


class VideoScorer:
    """Scores videos by every metric whose weights are given; each model is loaded once, on first use.

    `clip`, `pickscore`, `viclip` and `cotracker` are folders (the first two also hub ids) or None. `models` names the
    model behind each number, `unavailable` holds one sentence per metric that cannot be computed at all, `skipped` one
    per metric that the last video does not allow.
    """

    def __init__(
        self,
        clip: str | None = None,
        pickscore: str | None = None,
        viclip: str | None = None,
        cotracker: str | None = None,
        device: str = "cpu",
    ):
        self.models: dict[str, str] = {"motion_fidelity": "CoTracker 3" if cotracker else "Lucas-Kanade (OpenCV)"}
        self.unavailable: dict[str, str] = {}
        self.skipped: list[str] = []
        self._load = {
            "clip": partial(_clip, clip, device),
            "pickscore": partial(_pickscore, pickscore, device),
            "viclip": partial(_viclip, viclip, device),
            "tracker": lambda: (
                motion_fidelity.load_cotracker(cotracker, device) if cotracker else motion_fidelity.lucas_kanade
            ),
        }
        self._loaded: dict[str, object] = {}
        self._reference: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(
        self,
        frames: torch.Tensor,
        prompt: str,
        reference: torch.Tensor | None = None,
        reference_caption: str | None = None,
    ) -> dict[str, float]:
        """Scores of one video, uint8 [f c h w], by their names in `DEFINITIONS`; metrics without weights are left out.

        `reference` is the clip whose motion was learned, uint8 [f c h w], for motion fidelity;
        `reference_caption` describes its appearance, for appearance leakage.
        """
        scores: dict[str, float] = {}
        self.skipped = []
        images = cache(lambda model: self._model(model).images(frames))  # each CLIP encodes the video once

        def score(names: Iterable[str], compute: Callable[[], Iterable[float]]) -> None:
            try:
                scores.update(zip(names, compute(), strict=True))
            except MetricUnavailable as error:
                if any(error is failed for failed in self._loaded.values()):
                    self.unavailable.update(dict.fromkeys(names, str(error)))
                else:
                    self.skipped.append(str(error))

        score(
            ("text_alignment", "text_alignment_logits"),
            lambda: clip_scores.text_alignment(self._model("clip"), images("clip"), prompt),
        )
        score(
            ("temporal_consistency", "temporal_consistency_all_pairs"),
            lambda: clip_scores.temporal_consistency(images("clip")),
        )
        score(
            ("pickscore",),
            lambda: clip_scores.text_alignment(self._model("pickscore"), images("pickscore"), prompt)[1:],
        )
        score(("viclip",), lambda: [clip_scores.viclip_score(self._model("viclip"), frames, prompt)])
        if reference_caption:
            score(
                ("appearance_leakage",),
                lambda: clip_scores.text_alignment(self._model("clip"), images("clip"), reference_caption)[:1],
            )
        if reference is not None:
            score(("motion_fidelity", "motion_fidelity_dmt_code"), lambda: self._fidelity(frames, reference))
        return scores

    def _fidelity(self, frames: torch.Tensor, reference: torch.Tensor) -> list[float]:
        tracker = self._model("tracker")
        if self._reference is None or self._reference[0] is not reference:  # one reference, many videos: track it once
            self._reference = reference, tracker(reference)
        pair = self._reference[1], tracker(frames)
        return [motion_fidelity.motion_fidelity(*pair, definition) for definition in ("paper", "dmt_code")]

    def _model(self, name: str):
        if name not in self._loaded:
            try:
                self._loaded[name] = self._load[name]()
            except MetricUnavailable as error:
                self._loaded[name] = error  # tried once, not once a video
        if isinstance(self._loaded[name], MetricUnavailable):
            raise self._loaded[name]
        if isinstance(self._loaded[name], clip_scores.ClipScorer):
            self.models[name] = self._loaded[name].name
        return self._loaded[name]


def _clip(path: str | None, device: str) -> clip_scores.ClipScorer:
    if path is None:
        raise MetricUnavailable(f"CLIP: no weights given; pass a folder or the hub id {clip_scores.CLIP} with --clip")
    return clip_scores.load_clip(path, device)


def _pickscore(path: str | None, device: str) -> clip_scores.ClipScorer:
    if path is None:
        raise MetricUnavailable(
            f"PickScore: no weights given; pass a folder or the hub id {clip_scores.PICKSCORE} with --pickscore"
        )
    return clip_scores.load_clip(path, device, tokenizer=clip_scores.PICKSCORE_TOKENIZER, metric="PickScore")


def _viclip(path: str | None, device: str) -> torch.nn.Module:
    if path is None:
        raise MetricUnavailable(
            f"ViCLIP: no weights given; download {clip_scores.VICLIP} and pass its folder with --viclip"
        )
    return clip_scores.load_viclip(path, device)
