"""Scores of videos by image-text and video-text models: CLIP, PickScore (a CLIP as well) and ViCLIP.

Frames are uint8 [f c h w]; CLIP's scores take their embeddings [f d], so that a video is encoded once. Models come from
a folder or a hub id. When one cannot be loaded, MetricUnavailable says in one sentence how to get it, and the caller
continues with its other metrics.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from transformers import AutoModel, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from configs.errors import UserError
from configs.plain import shown_error

CLIP = "openai/clip-vit-large-patch14"  # TGVE's model
PICKSCORE = "yuvalkirstain/PickScore_v1"
PICKSCORE_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
VICLIP = "OpenGVLab/ViCLIP-L-14-hf"
# what the libraries raise for a missing, foreign or damaged folder
LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)
VICLIP_FRAMES, VICLIP_SIZE = 8, 224
VICLIP_MEAN, VICLIP_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MetricUnavailable(UserError):
    """One metric cannot be computed, with the reason and what to do; other metrics are not affected."""


@dataclass(frozen=True)
class ClipScorer:
    """A CLIP model with its own preprocessing. `name` is what results should state; `scale` is exp(logit_scale)."""

    name: str
    model: CLIPModel
    tokenizer: CLIPTokenizer
    processor: CLIPImageProcessorPil

    @property
    def scale(self) -> float:
        return self.model.logit_scale.exp().item()

    @torch.no_grad()
    def images(self, frames: torch.Tensor) -> torch.Tensor:
        """Unit embeddings [f d] of uint8 frames [f c h w]."""
        pixels = self.processor(images=list(frames.permute(0, 2, 3, 1).cpu().numpy()), return_tensors="pt").pixel_values
        pooled = self.model.get_image_features(pixel_values=pixels.to(self.model.device, self.model.dtype))
        return F.normalize(pooled.pooler_output.float().cpu(), dim=-1)

    @torch.no_grad()
    def text(self, text: str) -> torch.Tensor:
        """Unit embedding [d]; a text longer than the model reads is cut at its last token."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer([text], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        pooled = self.model.get_text_features(**tokens.to(self.model.device))
        return F.normalize(pooled.pooler_output.float().cpu(), dim=-1)[0]


def load_clip(path: str, device: str = "cpu", tokenizer: str | None = None, metric: str = "CLIP") -> ClipScorer:
    """A CLIP from a folder or hub id in transformers' layout; `tokenizer` is where to find one if the folder has none.

    Preprocessing is CLIP's own at the model's image size (bicubic, centre crop), the same for every CLIP here. Raises
    MetricUnavailable when weights or tokenizer cannot be loaded.
    """
    folder = Path(path)
    # weights published without their tokenizer (PickScore) borrow the one they were trained with
    own = any((folder / name).exists() for name in ("vocab.json", "tokenizer.json")) or tokenizer is None
    try:
        model, report = CLIPModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        words = CLIPTokenizer.from_pretrained(path if own else tokenizer)
        edge = model.config.vision_config.image_size
        processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})
    except LOADING_ERRORS as error:
        raise MetricUnavailable(
            f"{metric}: no usable model in {path} ({shown_error(error)}); give a folder in transformers' layout "
            "or a hub id that this machine can reach"
        ) from error
    if missing := report["missing_keys"]:
        raise MetricUnavailable(
            f"{metric}: {path} lacks {len(missing)} of CLIP's weights, such as "
            f"{sorted(missing)[0]}; it is another model or an incomplete copy, download it again"
        )
    model = model.to(device).eval()
    return ClipScorer(Path(path).name if folder.is_dir() else path, model, words, processor)


def text_alignment(clip: ClipScorer, images: torch.Tensor, text: str) -> tuple[float, float]:
    """Mean over frames of the image-text cosine, as cosine x 100 and as logits (cosine x exp(logit_scale)).

    `images` are the frames' embeddings [f d] by this `clip`, which `ClipScorer.images` makes once for all scores.
    CLIPScore without its clipping; TGVE's leaderboard uses the logits of ViT-L/14. With a caption of the
    reference's appearance in place of the prompt the first number is appearance leakage; with PickScore's weights the
    second is PickScore (Kirstain et al. 2023, section 3).
    """
    cosine = (images @ clip.text(text)).mean().item()
    return 100 * cosine, clip.scale * cosine


def temporal_consistency(images: torch.Tensor) -> tuple[float, float]:
    """Mean cosine x 100 between CLIP embeddings [f d] of frames: of neighbouring frames, and of all pairs (TGVE).

    Neighbours as in Tune-A-Video, all pairs as in TGVE. Raises MetricUnavailable on fewer than two frames.
    """
    if len(images) < 2:
        raise MetricUnavailable(
            "temporal consistency: one frame has no neighbour; measure videos of two frames or more"
        )
    neighbours = (images[1:] * images[:-1]).sum(-1).mean().item()
    rows, columns = torch.triu_indices(len(images), len(images), offset=1)
    all_pairs = (images @ images.T)[rows, columns].mean().item()
    return 100 * neighbours, 100 * all_pairs


def load_viclip(path: str, device: str = "cpu") -> torch.nn.Module:
    """ViCLIP from its published folder, whose own Python code is executed: give a folder you trust.

    Raises MetricUnavailable when the folder is missing, incomplete or needs packages that are not installed.
    """
    if not (Path(path) / "config.json").is_file():
        raise MetricUnavailable(f"ViCLIP: {path} has no config.json; download {VICLIP} and give its folder")
    try:
        model = AutoModel.from_pretrained(path, trust_remote_code=True, local_files_only=True)
    except (*LOADING_ERRORS, ImportError, AttributeError) as error:
        raise MetricUnavailable(
            f"ViCLIP: {path} does not load ({shown_error(error)}); give a complete copy of {VICLIP}"
        ) from error
    return model.to(device).eval()


@torch.no_grad()
def viclip_score(model: torch.nn.Module, frames: torch.Tensor, text: str) -> float:
    """Video-text cosine x 100 on eight evenly spaced frames (Wang et al. 2023, InternVid).

    Raises MetricUnavailable on fewer than eight frames.
    """
    if len(frames) < VICLIP_FRAMES:
        raise MetricUnavailable(
            f"ViCLIP: it reads {VICLIP_FRAMES} frames and the video has {len(frames)}; make it longer"
        )
    picked = frames[:: len(frames) // VICLIP_FRAMES][:VICLIP_FRAMES].float() / 255
    pixels = F.interpolate(picked, size=(VICLIP_SIZE, VICLIP_SIZE), mode="bilinear", antialias=True)
    pixels = (pixels - torch.tensor(VICLIP_MEAN)[:, None, None]) / torch.tensor(VICLIP_STD)[:, None, None]
    parameter = next(model.parameters())
    video = model.get_vid_features(pixels[None].to(parameter.device, parameter.dtype))
    words = model.get_text_features(text, model.tokenizer, {})
    return 100 * F.cosine_similarity(video.float().flatten(), words.float().flatten(), dim=0).item()
