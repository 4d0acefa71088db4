"""Metrics on cases with known answers, with a random CLIP small enough to be built here."""

import json
import math
import shutil
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from infer.measure import clip_scores
from infer.measure.clip_scores import MetricUnavailable, load_clip, load_viclip, temporal_consistency, text_alignment
from infer.measure.metrics import DEFINITIONS, VideoScorer


@pytest.fixture(scope="module")
def clip(clip_folder):
    return load_clip(clip_folder)


@pytest.fixture(scope="module")
def video():
    """Textured noise sliding to the right: trackable, and every frame differs."""
    image = torch.rand(3, 12, 24, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(image[None], scale_factor=8, mode="bicubic")[0].clamp(0, 1)
    return torch.stack([(255 * image[:, :, 60 - 4 * j : 156 - 4 * j]).byte() for j in range(8)])


def test_alignment_is_the_mean_cosine_in_both_scalings(clip, video):
    images, text = clip.images(video), clip.text("a cat")
    cosine, logits = text_alignment(clip, images, "a cat")
    slow = sum(float(image @ text / (image.norm() * text.norm())) for image in images) / len(images)
    assert cosine == pytest.approx(100 * slow, abs=1e-4)
    assert logits == pytest.approx(slow * math.exp(clip.model.logit_scale.item()), abs=1e-4)
    assert text_alignment(clip, images, "a dog")[0] != cosine
    text_alignment(clip, images, "a very long prompt " * 50)


def test_a_still_video_is_perfectly_consistent_and_has_no_nan(clip, video):
    still = video[:1].repeat(8, 1, 1, 1)
    assert temporal_consistency(clip.images(still)) == pytest.approx((100, 100), abs=1e-4)
    black = clip.images(torch.zeros_like(video))
    assert all(math.isfinite(x) for x in (*temporal_consistency(black), *text_alignment(clip, black, "a")))


def test_shuffling_frames_lowers_neighbours_but_not_all_pairs(clip):
    ramp = torch.stack([torch.full((3, 32, 32), 16 * j, dtype=torch.uint8) for j in range(16)])
    ramp[:, 0, ::2] = 255 - ramp[:, 0, ::2]  # a slow change of pattern, so neighbours look alike
    shuffled = ramp[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    (near, pairs), (near_shuffled, pairs_shuffled) = (
        temporal_consistency(clip.images(ramp)),
        temporal_consistency(clip.images(shuffled)),
    )
    assert near_shuffled < near
    assert pairs_shuffled == pytest.approx(pairs, abs=1e-3)


def test_one_frame_has_no_consistency(clip, video):
    with pytest.raises(MetricUnavailable, match="one frame"):
        temporal_consistency(clip.images(video[:1]))


@pytest.fixture(scope="module")
def viclip_folder(tmp_path_factory):
    """A folder with ViCLIP's interface and none of its weights: mean colour against the prompt's length."""
    folder = tmp_path_factory.mktemp("viclip")
    (folder / "modeling_tiny.py").write_text(
        "import torch\nfrom transformers import PreTrainedModel, PretrainedConfig\n\n\n"
        "class TinyConfig(PretrainedConfig):\n    model_type = 'tiny_viclip'\n\n\n"
        "class Tiny(PreTrainedModel):\n    config_class = TinyConfig\n    tokenizer = None\n\n"
        "    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.gain = torch.nn.Parameter(torch.ones(1))\n        self.post_init()\n\n"
        "    def get_vid_features(self, frames):\n        assert frames.shape[:3] == (1, 8, 3)\n"
        "        return self.gain * frames.mean(dim=(1, 3, 4))\n\n"
        "    def get_text_features(self, text, tokenizer, known):\n"
        "        return torch.tensor([[1.0, 0.0, 0.0] if text == 'red' else [0.0, 0.0, 1.0]])\n"
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "tiny_viclip",
                "architectures": ["Tiny"],
                "auto_map": {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.Tiny"},
            }
        )
    )
    save_file({"gain": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_viclip_prefers_the_prompt_that_fits(viclip_folder):
    model = load_viclip(viclip_folder)
    red = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
    red[:, 0] = 255
    assert clip_scores.viclip_score(model, red, "red") > clip_scores.viclip_score(model, red, "blue")
    with pytest.raises(MetricUnavailable, match="reads 8 frames"):
        clip_scores.viclip_score(model, red[:4], "red")


def test_without_weights_each_metric_says_how_to_get_them_and_the_others_go_on(clip_folder, video):
    nothing = VideoScorer()
    scores = nothing(video, "a cat", reference=video, reference_caption="a street")
    assert scores.keys() == {"motion_fidelity", "motion_fidelity_dmt_code"}
    assert nothing.unavailable.keys() == DEFINITIONS.keys() - scores.keys()
    assert "--clip" in nothing.unavailable["text_alignment"] and "--pickscore" in nothing.unavailable["pickscore"]

    some = VideoScorer(clip=clip_folder, pickscore=clip_folder)
    scores = some(video, "a cat", reference_caption="a street")
    assert scores.keys() == DEFINITIONS.keys() - {"viclip", "motion_fidelity", "motion_fidelity_dmt_code"}
    assert scores["pickscore"] == scores["text_alignment_logits"]
    assert some.unavailable.keys() == {"viclip"}
    assert some.models["clip"] and some.models["motion_fidelity"] == "Lucas-Kanade (OpenCV)"
    assert all(math.isfinite(score) for score in scores.values())


def test_a_model_encodes_a_video_once_for_all_its_scores(clip_folder, video, monkeypatch):
    encoded, real = [], clip_scores.ClipScorer.images
    monkeypatch.setattr(
        clip_scores.ClipScorer, "images", lambda self, frames: encoded.append(frames) or real(self, frames)
    )
    scorer = VideoScorer(clip=clip_folder, pickscore=clip_folder)
    first = scorer(video, "a cat", reference_caption="a street")
    assert len(encoded) == 2, "CLIP and PickScore, once each"
    other = scorer(video.flip(3) // 2, "a cat", reference_caption="a street")
    assert len(encoded) == 4 and other["temporal_consistency"] != first["temporal_consistency"]
    scorer(video[:1], "a cat")
    assert len(encoded) == 6 and any("one frame has no neighbour" in reason for reason in scorer.skipped)


def test_missing_and_wrong_weights_are_one_sentence(tmp_path, clip_folder, monkeypatch):
    with pytest.raises(MetricUnavailable, match="no usable model"):
        load_clip(str(tmp_path))
    with pytest.raises(MetricUnavailable, match="download"):
        load_viclip(str(tmp_path))
    wrong = tmp_path / "wrong"
    shutil.copytree(clip_folder, wrong)
    save_file({"other.weight": torch.zeros(1)}, wrong / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MetricUnavailable, match="another model or an incomplete copy"):
        load_clip(str(wrong))
    monkeypatch.setattr(clip_scores.CLIPModel, "from_pretrained", Mock(side_effect=OSError()))
    with pytest.raises(MetricUnavailable, match="no usable model in .* [(]OSError[)]"):
        load_clip(clip_folder)
    (wrong / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(MetricUnavailable, match="no usable model"):
        load_clip(str(wrong))


class StandIn:
    """A CLIP for which a bright frame fits every text, and a dark video's frames drift apart."""

    scale, name = 100.0, "stand-in"

    def images(self, frames):
        angle = torch.linspace(0.1, 1, len(frames)) * (1 - frames.float().mean() / 255)
        return torch.stack([angle.cos(), angle.sin()], 1)

    def text(self, text):
        return torch.tensor([1.0, 0.0])


def test_every_metric_rates_the_better_video_higher_and_leakage_alone_is_better_low(monkeypatch, video):
    """A bright video that is the reference itself against a dark one that plays backwards."""
    scorer = VideoScorer()
    scorer._loaded = {"clip": StandIn(), "pickscore": StandIn(), "viclip": None}
    monkeypatch.setattr(clip_scores, "ClipScorer", StandIn)
    monkeypatch.setattr(clip_scores, "viclip_score", lambda model, frames, text: frames.float().mean().item())
    bright, dark = video // 2 + 127, video.flip(0) // 2
    good, bad = (scorer(frames, "a", reference=bright, reference_caption="a") for frames in (bright, dark))
    assert good.keys() == bad.keys() == DEFINITIONS.keys()
    assert all(good[name] > bad[name] for name in DEFINITIONS)
    assert good["appearance_leakage"] == good["text_alignment"]  # the same score, of another text
    lower = {name for name, definition in DEFINITIONS.items() if definition.better == "down"}
    assert lower == {"appearance_leakage"}
    assert all(d.heading == f"{d.title} {'↓' if name in lower else '↑'}" for name, d in DEFINITIONS.items())
    titles, formulas = ({getattr(d, field) for d in DEFINITIONS.values()} for field in ("title", "formula"))
    assert len(titles) == 9 and len(formulas) == 8  # the logits of CLIP and of PickScore share a formula
