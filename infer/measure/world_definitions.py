"""What the scores of a video of the toy world mean (infer/measure/world_scores.py computes them).

`YES_NO` names what a video has or lacks, `GRADED` what is a number: motion, appearance and the pull towards the
reference. A claim is decided by the graded ones; the others stand beside them.
"""

from data.detectors import SUCCESS_CORRELATION, SUCCESS_RMSE
from infer.measure.metrics import Definition

WORLD = "analytic detectors"


def _read(title: str, formula: str, better: str) -> Definition:
    return Definition(title, WORLD, formula, "data/detectors.py", better)


def _graded(title: str, formula: str, better: str) -> Definition:
    return Definition(title, WORLD, formula, "data/graded.py", better)


WORLD_DEFINITIONS = {
    "motion_success": _read(
        "motion success",
        f"share of videos whose object's path is within {SUCCESS_RMSE:g} pixels of 64 (root "
        f"mean square, {SUCCESS_RMSE / 0.64:.1f} % of the canvas) of the reference's, each path around its own mean, "
        f"correlates with it above {SUCCESS_CORRELATION:g}, and is nearer to it than to the motion that its caption "
        "names; without a reference, whose motion is the prompt's",
        "up",
    ),
    "correlation": _read(
        "path correlation",
        "correlation of the object's path with the reference's, both axes together; a frame without the object counts "
        "as -1",
        "up",
    ),
    "rmse": _read(
        "path error",
        "root mean square distance to the reference's path in pixels of 64, each path around its own "
        "mean; a frame without the object counts as 64",
        "down",
    ),
    "motion_quality": _graded(
        "motion quality",
        "100 x mean cosine between the displacements of the object and of the reference's from frame to frame, over "
        "the frames in which the reference moves; a frame without the object counts as -100",
        "up",
    ),
    "timing_error": _graded(
        "timing error",
        "mean distance of the two paths, each centred and divided by its widest extent: on a straight line the error "
        "of the clock as a share of the travel; 1 where the object is lost",
        "down",
    ),
    "speed_error": _graded(
        "speed profile error",
        "half the summed difference of the shares of the travel between two frames: 0 for the same profile of speed",
        "down",
    ),
    "appearance_match": _graded(
        "appearance match",
        "1 - mean of (1 - shape overlap), colour error and background error, each divided by its mean between two "
        "different shapes, colours or grounds: 1 is what the prompt names, 0 as far away as another scene",
        "up",
    ),
    "appearance_accuracy": _read(
        "appearance accuracy", "share of videos with the prompt's shape, colour and background", "up"
    ),
    "shape_accuracy": _read("shape", "share with the prompt's shape", "up"),
    "colour_accuracy": _read("colour", "share with the prompt's colour", "up"),
    "background_accuracy": _read("background", "share with the prompt's background", "up"),
    "shape_overlap": _graded(
        "shape overlap",
        "soft intersection over union of the object's coverage with the prompt's shape of best radius in its place",
        "up",
    ),
    "colour_error": _graded(
        "colour error",
        "RGB distance of the object's mean colour from the prompt's, 0..441; the largest where a frame lacks it",
        "down",
    ),
    "background_error": _graded(
        "background error", "mean RGB distance of the ground's pixels from the prompt's background, 0..441", "down"
    ),
    "background_noise": _graded(
        "background noise", "root mean square RGB distance of the ground's pixels from their frame's median", "down"
    ),
    "edge_error": _graded(
        "edge error",
        "root mean square of the fine detail (less than 3 pixels) around the object's edge that a clean drawing of it "
        "does not have, in levels of 0..255; the whole step of the prompt's colour where a frame lacks the object",
        "down",
    ),
    "flicker": _graded(
        "flicker", "mean absolute change of the ground's pixels from frame to frame, in levels of 0..255", "down"
    ),
    "appearance_pull": _graded(
        "graded leakage",
        "share of the way from the prompt's appearance (0) to the reference's (1): mean of the pulls of colour, "
        "ground, pattern and window that prompt and reference do not share; negative is away from it",
        "down",
    ),
    "leakage": _read(
        "leakage",
        "share of videos that show the reference's colour, background or window where the prompt asks for another",
        "down",
    ),
    "colour_pull": _graded(
        "colour pull", "share of the way in RGB, of the object's colour; 1 where a frame lacks the object", "down"
    ),
    "ground_pull": _graded("ground pull", "share of the way in RGB, of the ground's colour", "down"),
    "pattern_pull": _graded("pattern pull", "strength of the reference's pattern in the ground, its own is 1", "down"),
    "window_pull": _graded("window pull", "share of the way to the reference's window, over its pixels", "down"),
    "frame_consistency": _read(
        "frame consistency",
        "share of neighbouring frames that, each read alone, show the same shape, colour and background",
        "up",
    ),
}
YES_NO = (
    "motion_success",
    "appearance_accuracy",
    "shape_accuracy",
    "colour_accuracy",
    "background_accuracy",
    "leakage",
)
GRADED = tuple(name for name in WORLD_DEFINITIONS if name not in YES_NO)
