"""What the project aims at in the speed of a step, and whether a measurement reached it.

What it aims at for a whole video and a whole training stands at the artefacts that measure these, in
scripts/artefacts/speed.py.
"""

TRAINING = {("pocket", "stock"): 0.6, ("mid", "plain"): 0.5, ("mid", "release"): 0.5}  # most of the baseline's time
# on a CUDA card, of any model: (what, key of the JSON document, least)
RELEASE = (
    ("a training step {:.2f} times as fast as the release's", "baseline_ratio", 3.0),
    ("a sampling step {:.2f} times as fast as the release's", "sample_ratio", 1.5),
)
SHARES = (
    ("a training step at {:.2f} of the card's matmul rate", "train_share", 0.4),
    ("a sampling step at {:.2f} of the card's matmul rate", "sample_share", 0.5),
)
CUSTOMIZED = 1.01  # most that a sampling step with LoRA and highway may take of the plain model's


def judged(numbers: dict) -> list[str]:
    """A sentence for each target that belongs to `numbers` (the JSON document of scripts/bench.py)."""
    if numbers.get("memory", "default") != "default":  # these modes give time for memory
        return []
    on_card = not numbers["device"].startswith(("cpu", "mps"))  # as device_name words it
    against_release = on_card and numbers.get("baseline") == "release"
    found = []
    most = TRAINING.get((numbers["model"], numbers.get("baseline")))
    if most is not None and not against_release:
        what = f"a training step in {{:.2f}} of {numbers['baseline']}'s time"
        found.append(_sentence(what, 1 / numbers["baseline_ratio"], most=most))
    for what, key, least in (*(RELEASE if against_release else ()), *(SHARES if on_card else ())):
        if numbers.get(key) is not None:
            found.append(_sentence(what, numbers[key], least=least))
    if on_card and numbers.get("customized_ratio") is not None:
        what = "LoRA and highway sample in {:.3f} of the plain model's time"
        found.append(_sentence(what, numbers["customized_ratio"], most=CUSTOMIZED))
    return found


def _sentence(what: str, found: float, *, least: float = 0.0, most: float = float("inf")) -> str:
    target = f"at least {least:g}" if least else f"{most}"
    return f"{what.format(found)}, target {target}: {'reached' if least <= found <= most else 'missed'}"
