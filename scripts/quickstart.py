"""The two-command start's second half: train configs/quickstart.yaml, and say where its pictures are.

Run by scripts/quickstart.sh. Words after it are `key=value` overrides of the configuration. The last three lines of
stdout name a video, the picture that plays reference clip, base model and customized model side by side, and the loss
plot; a line is left out where an override leaves out its file. How long it took stands on stderr, beside the aim.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import command
from configs.runtime import slow_imports

BEGAN = time.perf_counter()
AIM = "45 s and 80 CPU seconds on two quiet cores"


@command
def main(argv: list[str] | None = None) -> None:
    from configs.paths import ROOT
    from configs.schema import load

    words = sys.argv[1:] if argv is None else argv
    cfg, dry_run = load(["--config", str(ROOT / "configs/quickstart.yaml"), *words], description=__doc__)
    with slow_imports():
        import train
        from models.files.card import PICTURE

    if dry_run:
        print(train.dry_run(cfg))
        return
    run = train.run(cfg)
    videos = sorted((run / "previews" / f"step-{cfg.max_train_steps}").glob("*.mp4"))
    named = {"video": videos[:1], "side by side": [run / PICTURE], "loss plot": [run / "loss.png"]}
    for what, paths in named.items():
        for path in filter(Path.is_file, paths):
            print(f"{what}: {path}")
    spent = sum(os.times()[:4])  # of this process and of those that it waited for
    print(f"took {time.perf_counter() - BEGAN:.0f} s and {spent:.0f} CPU seconds (aim: {AIM})", file=sys.stderr)


if __name__ == "__main__":
    main()
