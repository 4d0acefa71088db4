"""Previews: the sampling of inference, with the weights of a training as they are."""

import pytest
import torch

from configs.errors import UserError
from data.cache import CachedClip
from infer import preview as module
from infer.generate import sample_videos
from infer.settings import of_training
from models.backbone import Backbone
from models.hooks import Patch

VALIDATION = {"prompt": ["a horse", "a car"], "num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def backbone(tiny_pipeline):
    return Backbone.load(str(tiny_pipeline))


class Untrained:
    """A method that changes nothing, and remembers what it was asked for."""

    def __init__(self):
        self.asked, self.removed = [], 0

    def sampling(self, appearance_scale, clip):
        self.asked.append((appearance_scale, clip))
        return Patch([lambda: setattr(self, "removed", self.removed + 1)])


def clip(frames, seed=0):
    latents = torch.randn(1, 4, frames, 8, 8, generator=torch.Generator().manual_seed(seed))
    return CachedClip(latents, torch.zeros(1, 5, 32), latents, "a car", "car")


def previewed(cfg, backbone, clips, folder, monkeypatch, method=None):
    """The frames of each preview and the settings they were made with."""
    used = []

    def spied(backbone, customization, settings, *rest, **options):
        used.append((settings, options["inversion"]))
        return sample_videos(backbone, customization, settings, *rest, **options)

    monkeypatch.setattr(module, "sample_videos", spied)
    sheet = module.preview(cfg, backbone, method or Untrained(), clips, folder)
    return used, sheet


def test_a_preview_is_what_inference_would_sample(tiny_config, backbone, tmp_path, monkeypatch):
    cfg = tiny_config(validation_data={**VALIDATION, "noise_prior": 0.0, "solver": "unipc", "spatial_scale": 0.5})
    method = Untrained()
    written = {}
    monkeypatch.setattr(module, "write_video", lambda path, frames, fps: written.update({path.name: (frames, fps)}))
    (first, _), sheet = previewed(cfg, backbone, [clip(1), clip(4)], tmp_path, monkeypatch, method)
    assert sheet.is_file() and list(written) == ["a_horse.mp4", "a_car.mp4"]
    assert first[0].solver == "unipc" and method.asked == [(0.5, 1)] * 2 and method.removed == 2
    assert backbone.network.training
    backbone.network.eval()
    _, text, negative = backbone.encode_text(["a horse", "a car", ""]).split(1)
    (frames,) = sample_videos(backbone, Patch(), of_training(cfg), text, negative, seeds=[cfg.seed])
    assert torch.equal(written["a_car.mp4"][0], frames) and not torch.equal(written["a_horse.mp4"][0], frames)
    assert written["a_car.mp4"][1] == 8


def test_the_prior_of_previews_is_a_half_for_one_clip_and_none_for_several(
    tiny_config, backbone, tmp_path, monkeypatch
):
    def prior_of(clips, **validation):
        cfg = tiny_config(validation_data={**VALIDATION, "prompt": ["a horse"], **validation})
        used, _ = previewed(cfg, backbone, clips, tmp_path, monkeypatch)
        return used[0][0].noise_prior

    assert prior_of([clip(4)]) == 0.5
    assert prior_of([clip(4), clip(4, seed=1)]) == 0.0
    assert prior_of([clip(4), clip(4, seed=1)], noise_prior=0.3) == 0.3
    assert prior_of([clip(4)], noise_prior=0.3) == 0.3
    assert prior_of([clip(1)], noise_prior=0.3) == 0.0


def test_phased_integration_takes_the_method_off_before_the_last_steps(tiny_config, backbone, tmp_path, monkeypatch):
    predict, method, seen = backbone.predict, Untrained(), []

    def watched(latents, timestep, text):
        seen.append((int(timestep), method.removed))
        return predict(latents, timestep, text)

    monkeypatch.setattr(Backbone, "predict", property(lambda self: watched))
    for threshold in (None, 300):
        method.removed = 0
        cfg = tiny_config(validation_data={**VALIDATION, "prompt": ["a horse"]}, pli_threshold=threshold)
        module.preview(cfg, backbone, method, [clip(4)], tmp_path)
    assert seen == [(501, 0), (1, 0), (501, 0), (1, 1)]
    backbone.network.eval()


def test_a_preview_that_overflows_is_left_out_and_the_training_goes_on(
    tiny_config, backbone, tmp_path, monkeypatch, capsys
):
    def overflowing(backbone, customization, settings, text, *rest, **options):
        if not calls:
            calls.append(1)
            raise UserError("sampling: the latents are not finite")
        return sample_videos(backbone, customization, settings, text, *rest, **options)

    calls = []
    monkeypatch.setattr(module, "sample_videos", overflowing)
    sheet = module.preview(tiny_config(validation_data=VALIDATION), backbone, Untrained(), [clip(4)], tmp_path)
    assert [p.name for p in tmp_path.glob("*.mp4")] == ["a_car.mp4"] and sheet.is_file()
    assert "note: no preview of 'a horse': sampling: the latents are not finite" in capsys.readouterr().err

    def broken(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "sample_videos", broken)
    with pytest.raises(KeyboardInterrupt):
        module.preview(tiny_config(validation_data=VALIDATION), backbone, Untrained(), [clip(4)], tmp_path)
    assert backbone.network.training, "whatever happens, training goes on in training mode"
    backbone.network.eval()
