"""What the project aims at in the speed of a step, and whether a measurement reached it.

What it aims at for a whole video and a whole training stands at the artefacts that measure these, in
scripts/artefacts/speed.py.
"""

TRAINING = {("pocket", "stock"): 0.6, ("mid", "plain"): 0.5, ("mid", "release"): 0.5}  # most of the baseline's time
CUSTOMIZED = 1.01  # most that a sampling step with LoRA and highway may take of the plain model's, on a GPU


def judged(numbers: dict) -> list[str]:
    """A sentence for each target that belongs to `numbers` (the JSON document of scripts/bench.py)."""
    found = []
    most = TRAINING.get((numbers["model"], numbers.get("baseline")))
    if most is not None:
        what = f"a training step in {{:.2f}} of {numbers['baseline']}'s time"
        found.append(_sentence(what, 1 / numbers["baseline_ratio"], most))
    if numbers.get("customized_ratio") is not None and not numbers["device"].startswith("cpu"):
        what = "LoRA and highway sample in {:.3f} of the plain model's time"
        found.append(_sentence(what, numbers["customized_ratio"], CUSTOMIZED))
    return found


def _sentence(what: str, found: float, most: float) -> str:
    return f"{what.format(found)}, target {most}: {'reached' if found <= most else 'missed'}"
