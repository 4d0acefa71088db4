"""Claims that several artefacts make in the same words, each about rows or a model of its own."""

from scripts.artefacts.artefact import Bound, Claim

LEARNED = Bound("motion_success", 0.5)  # what counts as learning a path: every second video at least


def against_director(one: str) -> tuple[Claim, ...]:
    """The paper's three claims about its method and MotionDirector, for the row `one`."""
    return (
        Claim(
            f"{one} follows the prompt's appearance better than MotionDirector",
            "appearance",
            one,
            "more",
            "MotionDirector",
        ),
        Claim(f"{one} leaks less of the reference than MotionDirector", "leakage", one, "less", "MotionDirector"),
        Claim(f"{one} moves no worse than MotionDirector", "motion", one, "not less", "MotionDirector"),
    )


def about_guidance(tap: str) -> tuple[Claim, ...]:
    """What guidance without training does against the rows of the untouched model and of `tap`."""
    return (
        Claim(
            "guidance moves more like the reference than the untouched model",
            "motion",
            "guidance",
            "more",
            "untouched model",
            "ours",
        ),
        Claim("TAP moves better than guidance without training", "motion", tap, "more", "guidance", "ours"),
        Claim("guidance improves the motion of TAP", "motion", "TAP + guidance", "more", tap, "ours"),
        Claim("TAP with guidance leaks no more than TAP", "leakage", "TAP + guidance", "not more", tap, "ours"),
    )
