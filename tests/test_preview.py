"""Previews: the sampling of inference, with the weights of a training as they are."""

import sys

import imageio.v3 as iio
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from configs.files import NoSpace
from data.cache import CachedClip
from infer.batch import sample_videos
from infer.settings import of_training
from infer.training import preview as module
from infer.video import read_frames
from models.backbone import Backbone
from models.hooks import Patch

VALIDATION = {"prompt": ["a horse", "a car"], "num_inference_steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def backbone(tiny_pipeline):
    return Backbone.load(str(tiny_pipeline))


def say(line):
    print(line, file=sys.stderr)


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
    sheet = module.preview(cfg, backbone, method or Untrained(), clips, folder, say)
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
        module.preview(cfg, backbone, method, [clip(4)], tmp_path, say)
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
    sheet = module.preview(tiny_config(validation_data=VALIDATION), backbone, Untrained(), [clip(4)], tmp_path, say)
    assert [p.name for p in tmp_path.glob("*.mp4")] == ["a_car.mp4"] and sheet.is_file()
    assert "note: no preview of 'a horse': sampling: the latents are not finite" in capsys.readouterr().err

    def broken(error):
        def raising(*_, **__):
            raise error

        monkeypatch.setattr(module, "sample_videos", raising)
        return module.preview(tiny_config(validation_data=VALIDATION), backbone, Untrained(), [clip(4)], tmp_path, say)

    assert broken(torch.OutOfMemoryError("CUDA out of memory")) is None
    assert "note: no preview of 'a horse': out of memory" in capsys.readouterr().err
    for error in (KeyboardInterrupt(), RuntimeError("a fault of the code")):
        with pytest.raises(type(error)):
            broken(error)
    assert backbone.network.training, "whatever happens, training goes on in training mode"
    backbone.network.eval()


# ---- around a whole training ----


@pytest.fixture
def ran(tiny_config, tmp_path):
    """A function of further validation keys giving the run folder of one step, with previews at both ends."""
    import train

    def run(**validation):
        wanted = {"sample_at_first": True, "side_by_side": True, "prompt": ["a horse", "a car"], **validation}
        return train.run(tiny_config(max_train_steps=1, validation_data=wanted))

    return run


def test_a_run_begins_with_the_base_model_and_ends_with_everything_side_by_side(ran, backbone, tiny_config, capfd):
    run = ran()
    names = {path.relative_to(run).as_posix() for path in run.rglob("*.*") if "step-" in path.as_posix()}
    videos = {f"previews/{step}/{name}.mp4" for step in ("step-0", "step-1") for name in ("a_horse", "a_car")}
    assert names == videos | {"previews/step-0/sheet.png", "previews/step-1/sheet.png"}
    said = capfd.readouterr().err
    assert "Does it know this motion already?" in said and said.index("step-0/sheet.png") < said.index("side by side:")
    plain = of_training(tiny_config(validation_data={"noise_prior": 0.0}))
    backbone.network.eval()
    _, text, negative = backbone.encode_text(["a horse", "a car", ""]).split(1)
    (frames,) = sample_videos(backbone, Patch(), plain, text, negative, seeds=[0])
    shown = read_frames(run / "previews/step-0/a_car.mp4")
    assert (shown.float() - frames.float()).abs().mean() < 12, "only compression stands between them"
    picture = Image.open(run / "side_by_side.webp")
    assert picture.n_frames == 4 and picture.is_animated
    content = (run / "side_by_side.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat"), "a page plays it before it is loaded"
    assert iio.immeta(run / "side_by_side.mp4", plugin="FFMPEG")["pix_fmt"].startswith("yuv420p")


def test_what_is_not_wanted_is_not_sampled(tiny_config, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "preview", lambda *_, **__: pytest.fail("a preview"))
    for unwanted in ({"sample_preview": False}, {"prompt": []}):
        cfg = tiny_config(max_train_steps=1, validation_data={"sample_at_first": True, "side_by_side": True} | unwanted)
        previews = module.Previews(cfg, backbone, Untrained(), [clip(4)], tmp_path, print)
        previews.at_first()
        assert previews.after(1) == {} and previews.at_last() is None
    previews = module.Previews(tiny_config(max_train_steps=1), backbone, Untrained(), [clip(4)], tmp_path, print)
    previews.at_first()
    assert previews.after(1) == {} and previews.at_last() is None, "the tests' own configuration asks for neither"


def test_the_base_model_is_sampled_once_whenever_it_is(tiny_config, backbone, tmp_path, monkeypatch):
    bases, said = [], []

    def counted(cfg, backbone, method, clips, folder, say, *, base=False):
        bases.append(base)
        return preview(cfg, backbone, method, clips, folder, say, base=base)

    preview = module.preview
    monkeypatch.setattr(module, "preview", counted)
    cfg = tiny_config(max_train_steps=3, validation_data={**VALIDATION, "sample_at_first": False, "side_by_side": True})
    method = Untrained()
    late = module.Previews(cfg, backbone, method, [clip(4)], tmp_path / "late", said.append)
    late.at_first()
    assert bases == [] and late.after(2) == {} and list(late.after(3)) == ["a horse", "a car"]
    assert late.at_last() == tmp_path / "late" / "side_by_side.webp" and bases == [False, True]
    assert len(method.asked) == 2, "of the four videos the method acts in the customized two"
    cfg.validation_data.sample_at_first = True
    module.Previews(cfg, backbone, Untrained(), [clip(4)], tmp_path / "late", said.append).at_first()
    assert bases == [False, True] and len(said) == 1
    backbone.network.eval()


def test_cached_clips_are_shown_as_their_latents_decode(tiny_config, backbone, tmp_path):
    cfg = tiny_config(max_train_steps=1, validation_data={**VALIDATION, "side_by_side": True}, cached_latent_dir="kept")
    previews = module.Previews(cfg, backbone, Untrained(), [clip(1), clip(4)], tmp_path, lambda line: None)
    previews.after(1)
    assert previews.at_last().is_file() and previews.clips == 1, "an image has no motion"
    backbone.network.eval()


def test_a_picture_that_is_too_large_ends_no_training(tiny_config, backbone, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UserError("side_by_side.webp: too large")

    said = []
    monkeypatch.setattr(module, "write_side_by_side", refuse)
    cfg = tiny_config(max_train_steps=1, validation_data={**VALIDATION, "side_by_side": True})
    previews = module.Previews(cfg, backbone, Untrained(), [clip(4)], tmp_path, said.append)
    previews.after(1)
    assert previews.at_last() is None and said == ["note: no picture side by side: side_by_side.webp: too large"]
    backbone.network.eval()


def test_prompts_that_cannot_be_encoded_end_no_training(tiny_config, backbone, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(backbone), "encode_text", full)
    cfg = tiny_config(validation_data=VALIDATION)
    assert module.preview(cfg, backbone, Untrained(), [clip(4)], tmp_path, say) is None
    assert "note: no previews: out of memory" in capsys.readouterr().err


def test_a_preview_that_cannot_be_read_leaves_a_checkpoint_without_its_picture(tiny_config, backbone, tmp_path):
    said, cfg = [], tiny_config(validation_data=VALIDATION)
    previews = module.Previews(cfg, backbone, Untrained(), [clip(4)], tmp_path, said.append)
    previews.of(2).mkdir(parents=True)
    (previews.of(2) / "a_car.mp4").write_bytes(b"cut off")
    assert previews.thumbnail(2) is None and said[0].startswith("note: no thumbnail in the checkpoint's header: ")


def test_a_clip_that_is_gone_ends_no_training(tiny_config, backbone, tmp_path):
    said, cfg = [], tiny_config(max_train_steps=1, validation_data={**VALIDATION, "side_by_side": True})
    previews = module.Previews(cfg, backbone, Untrained(), [clip(4)], tmp_path, said.append)
    previews.after(1)
    cfg.train_data.single_video_path = str(tmp_path / "moved.mp4")
    assert previews.at_last() is None
    assert said == [f"note: no picture side by side: {tmp_path}/moved.mp4: no such file; point it at a clip"]
    backbone.network.eval()


@pytest.mark.parametrize("name", ["write_video", "contact_sheet"])
def test_a_preview_that_cannot_be_written_ends_no_training(name, tiny_config, backbone, tmp_path, monkeypatch, capsys):
    def full(path, *_, **__):
        raise NoSpace(path)

    monkeypatch.setattr(module, name, full)
    cfg = tiny_config(validation_data={**VALIDATION, "prompt": ["a horse"]})
    assert module.preview(cfg, backbone, Untrained(), [clip(4)], tmp_path, say) is None
    assert "No space left on device" in capsys.readouterr().err and backbone.network.training
    backbone.network.eval()


def test_what_a_preview_says_goes_where_its_training_prints(backbone, tiny_config, tmp_path, monkeypatch, capsys):
    told = []

    def failing(*_, **__):
        raise UserError("too dark")

    monkeypatch.setattr(module, "sample_videos", failing)
    module.preview(tiny_config(validation_data=VALIDATION), backbone, Untrained(), [clip(4)], tmp_path, told.append)
    assert told == ["note: no preview of 'a horse': too dark", "note: no preview of 'a car': too dark"]
    assert capsys.readouterr().err == ""
