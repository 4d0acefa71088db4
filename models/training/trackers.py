"""Trackers by the ecosystem's names: TensorBoard, Weights & Biases, Trackio, each through accelerate's own class.

Nothing leaves the machine unless somebody asks for it: wandb runs offline where WANDB_MODE does not say otherwise, and
trackio keeps its runs on the disk. One that is not installed is refused before anything is loaded.
"""

import importlib.util
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import tracking
from PIL import Image

from configs.errors import UserError
from configs.plain import shown_error
from configs.runtime import note

PROJECT = "motion-customization"


def check_tracker(name: str) -> None:
    """Raise UserError when the tracker `name`, a value of report_to, is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"report_to: {name} is not installed; `pip install {name}`, or report_to=none")


def start_tracker(name: str, folder: Path, config: dict[str, Any], done: int) -> "Tracker | None":
    """The tracker `name` for the run in `folder`, after `done` steps; None for "none". Raises UserError."""
    check_tracker(name)
    return None if name == "none" else Tracker(name, folder, config, done)


class Tracker:
    """Scalars and videos of a run, one tracker's way of keeping them hidden.

    One that fails under way is not asked again: the training goes on, and log.jsonl holds every step.
    """

    def __init__(self, name: str, folder: Path, config: dict[str, Any], done: int):
        self.name, self._failed = name, False
        try:
            self._tracker = _made(name, folder, done)
            self._tracker.start()
            if name != "tensorboard":  # which writes another folder for it, named by the time
                self._tracker.store_init_configuration(config)
        except Exception as error:  # a tracker has a hundred ways to fail: no account, no network, another version
            raise UserError(
                f"report_to: {name} cannot be started ({shown_error(error)}); set it up, or use report_to=none"
            ) from error

    def log(self, step: int, values: dict[str, float]) -> None:
        """Keep `values` of a step."""
        self._try(lambda: self._tracker.log(values, step=step), "stopped")

    def videos(self, step: int, videos: dict[str, Path]) -> None:
        """Keep the video files `videos`, by prompt."""
        self._try(lambda: self._keep(step, videos), "stopped")

    def close(self) -> None:
        """Have the tracker finish."""
        self._try(lambda: self._tracker.finish(), "did not finish")

    def _keep(self, step: int, videos: dict[str, Path]) -> None:
        if self.name == "tensorboard":
            for prompt, path in videos.items():
                self._tracker.tracker._get_file_writer().add_summary(_playing(prompt, path), step)
        else:
            video = sys.modules[self.name].Video
            self._tracker.log(
                {f"preview/{prompt}": video(str(path), format="mp4") for prompt, path in videos.items()}, step=step
            )

    def _try(self, work: Callable[[], None], otherwise: str) -> None:
        """Do `work`, unless the tracker has failed before; its error is a note that says what happened `otherwise`."""
        if self._failed:
            return
        try:
            work()
        except Exception as error:  # as many ways to fail as at the start
            self._failed = True
            note(f"note: report_to: {self.name} {otherwise} ({shown_error(error)}); log.jsonl holds every step")


def _made(name: str, folder: Path, done: int) -> tracking.GeneralTracker:
    if name == "tensorboard":
        return tracking.TensorBoardTracker("tensorboard", folder, purge_step=done + 1)
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE", "offline")
        return tracking.WandBTracker(PROJECT, name=folder.name, dir=str(folder), mode=mode)
    return tracking.TrackioTracker(PROJECT, name=folder.name, resume="allow")


def _playing(prompt: str, path: Path):
    """A video as TensorBoard plays it among its images: a gif."""
    import imageio.v3 as iio
    from tensorboard.compat.proto.summary_pb2 import Summary

    frames, rate = iio.imread(path, plugin="FFMPEG"), iio.immeta(path, plugin="FFMPEG")["fps"]  # [f h w c]
    first, *others = map(Image.fromarray, np.asarray(frames))
    content = io.BytesIO()
    first.save(content, format="GIF", save_all=True, append_images=others, duration=round(1000 / rate), loop=0)
    image = Summary.Image(height=first.height, width=first.width, colorspace=3, encoded_image_string=content.getvalue())
    return Summary(value=[Summary.Value(tag=f"preview/{prompt}", image=image)])
