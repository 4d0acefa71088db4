"""Previews of a training: the validation prompts, through the sampling that inference uses.

The base model's come before the first step, the customized model's every validation_steps; when a training ends, the
last ones are put beside the reference clip in a video that plays everywhere and in a picture for a README. What goes
wrong with a preview is printed as a note and ends no training; what no preview could ever do is refused at the start.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import UserError, is_out_of_memory
from data.cache import CachedClip, primary
from data.clips import Clip
from data.sources import plan_clips
from infer.batch import sample_videos
from infer.pictures import contact_sheet, strip, thumbnail
from infer.request import no_inversion, settle_noise_prior
from infer.sampler import make_solver
from infer.settings import of_training
from infer.side_by_side import write_side_by_side
from infer.video import read_frames, safe_name, write_video
from models.backbone import Backbone
from models.files.card import PICTURE
from models.hooks import Patch, training_mode
from models.methods import Method
from models.outline import scheduler_of

SHEET, ROWS = "sheet.png", 2  # of each step; rows of the picture side by side


class Previews:
    """The previews of one run, in `folder`/previews/step-N; `say` prints a line for the person who waits."""

    def __init__(
        self, cfg, backbone: Backbone, method: Method, clips: list[CachedClip], folder: Path, say: Callable[[str], None]
    ):
        self.cfg, self.wanted, self.say = cfg, cfg.validation_data, say
        self.model = backbone, method, clips
        self.run, self.on = folder, bool(self.wanted.sample_preview and self.wanted.prompt)

    def at_first(self) -> None:
        """The base model's videos, where they are asked for and not there yet."""
        if self.on and self.wanted.sample_at_first and not (self.of(0) / SHEET).is_file():
            if sheet := preview(self.cfg, *self.model, self.of(0), self.say, base=True):
                self.say(
                    f"the base model, before the first step: {sheet}\nDoes it know this motion already? Then there is "
                    "little to learn: look before you wait (validation_data.sample_at_first=false leaves this out)"
                )

    def after(self, step: int) -> dict[str, Path]:
        """The videos made after `step`, by prompt: every validation_steps, and for the picture at the end."""
        last = self.wanted.side_by_side and step == self.cfg.max_train_steps
        if not self.on or (step % self.cfg.validation_steps and not last):
            return {}
        preview(self.cfg, *self.model, self.of(step), self.say)
        return self.videos(step)

    def at_last(self) -> Path | None:
        """Reference clip, base model and customized model side by side, playing: a picture, and an mp4 beside it."""
        step = self.cfg.max_train_steps
        if not (self.on and self.wanted.side_by_side and (customized := self.videos(step))):
            return None
        with noted("picture side by side", self.say):
            if not (self.of(0) / SHEET).is_file():
                preview(self.cfg, *self.model, self.of(0), self.say, base=True)
            base, reference = self.videos(0), self._reference()
            rows = [(p, read_frames(base[p]), read_frames(customized[p])) for p in customized if p in base][:ROWS]
            if not rows:
                return None
            path = write_side_by_side(self.run / PICTURE, rows, reference, fps=of_training(self.cfg).fps)
            self.say(f"side by side: {path.with_suffix('.mp4')} and, for a README, {path.name}")
            return path
        return None

    def thumbnail(self, step: int) -> str | None:
        """A frame of the latest customized preview up to `step`, for the header of a checkpoint; None without any."""
        with noted("thumbnail in the checkpoint's header", self.say):
            made = (path.name.removeprefix("step-") for path in (self.run / "previews").glob("step-*"))
            numbers = (int(name) for name in made if name.isdecimal() and 0 < int(name) <= step)
            for number in sorted(numbers, reverse=True):
                for path in self.videos(number).values():
                    return thumbnail(read_frames(path))
        return None

    def of(self, step: int) -> Path:
        """The folder of the previews after `step`."""
        return self.run / "previews" / f"step-{step}"

    def videos(self, step: int) -> dict[str, Path]:
        """Prompt -> video of those that were made after `step`."""
        named = {prompt: self.of(step) / f"{safe_name(prompt)}.mp4" for prompt in self.wanted.prompt}
        return {prompt: path for prompt, path in named.items() if path.is_file()}

    @property
    def caption(self) -> str:
        """The caption of the representative reference clip (data/cache.py: primary)."""
        clips = self.model[2]
        return clips[primary(clips)].prompt

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels that the representative reference clip was cut to, where they are known."""
        clips = self.model[2]
        return clips[primary(clips)].size

    @property
    def clips(self) -> int:
        """How many reference clips have a motion; of images alone, how many there are."""
        clips = self.model[2]
        return sum(clip.latents.shape[2] > 1 for clip in clips) or len(clips)

    def _reference(self) -> Clip:
        """The representative reference clip as its file has it, else as its latents decode."""
        backbone, _, clips = self.model
        number = primary(clips)
        if self.cfg.cached_latent_dir:
            frames = backbone.decode_video(clips[number].latents.to(backbone.device))
            return Clip(frames, clips[number].prompt, clips[number].name, of_training(self.cfg).fps)
        return plan_clips(self.cfg, backbone.snap)[number].read()


def check_solver_of_previews(cfg) -> None:
    """Raise UserError, as sampling does, where the previews' solver cannot work with this model. Reads no weights."""
    wanted = cfg.validation_data
    make_solver(scheduler_of(cfg.pretrained_model_path), wanted.solver, wanted.num_inference_steps)


@contextmanager
def noted(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """What sampling, reading or writing raises inside the block becomes a note: no preview must end a training.

    Nor must one that needs more memory than a training step: guidance sees every video twice.
    """
    try:
        yield
    except (UserError, OSError) as error:
        say(f"note: no {what}: {error}")
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        say(f"note: no {what}: out of memory; leave previews out with validation_data.sample_preview=false")


def preview(
    cfg,
    backbone: Backbone,
    method: Method,
    clips: list[CachedClip],
    folder: Path,
    say: Callable[[str], None],
    *,
    base: bool = False,
) -> Path | None:
    """Sample `cfg.validation_data` with the weights as they are; writes the videos and a sheet, whose path it returns.

    Highway, phased integration and solver are those that `infer/infer.py` would use; the noise prior is the release's
    0.5 unless it was chosen, and 0 with several reference clips or without an inversion. With `base` nothing of the
    method acts: no adapter, no highway, no noise prior. A preview that overflows or cannot be written is left out, with
    a note, which `say` prints. The network is left in training mode.
    """
    wanted, settings, number = cfg.validation_data, of_training(cfg), primary(clips)
    inversion = clips[number].inversion
    settle_noise_prior(settings, no_inversion(clips[number]), moves=not base, clips=len(clips))
    rows, texts = [], None
    with noted("previews", say):
        texts = backbone.encode_text([*wanted.prompt, settings.negative_prompt]).split(1)
    if texts is None:
        return None
    *texts, negative = texts
    backbone.network.eval()
    try:
        for prompt, text in zip(wanted.prompt, texts, strict=True):
            customization = Patch() if base else method.sampling(wanted.spatial_scale, number)
            with noted(f"preview of {prompt!r}", say), backbone.both_experts():
                (frames,) = sample_videos(
                    backbone, customization, settings, text, negative, seeds=[cfg.seed], inversion=inversion
                )
                write_video(folder / f"{safe_name(prompt)}.mp4", frames, fps=settings.fps)
                rows.append((prompt, strip(frames)))
    finally:
        training_mode(backbone.network, cfg.frozen_dropout)
    with noted("sheet of the previews", say):
        return contact_sheet(folder / SHEET, rows) if rows else None
    return None
