"""The two-command start's second half: train configs/quickstart.yaml, sample base and customized model, make the sheet.

Run by scripts/quickstart.sh. Words after it are `key=value` overrides of the configuration. The last three lines of
stdout name the video, the side-by-side sheet (reference, base model, customized model) and the loss plot.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import train
from configs.errors import command
from configs.schema import ROOT, load
from data.sources import load_clips
from infer import options
from infer.generate import generate
from infer.pictures import contact_sheet, strip
from infer.video import read_video

SEED = 1


@command
def main() -> None:
    cfg, dry_run = load(["--config", str(ROOT / "configs/quickstart.yaml"), *sys.argv[1:]], description=__doc__)
    if dry_run:
        print(train.dry_run(cfg))
        return
    folder = train.run(cfg)

    def sampled(place: str, strength: float) -> list[Path]:
        words = [
            "--checkpoint_folder",
            str(folder),
            "--prompt",
            *cfg.validation_data.prompt,
            "--seed",
            str(SEED),
            "--output_dir",
            str(folder / place),
            "--lora_scale",
            str(strength),
        ]
        return list(generate(options.parse(words)))

    base, customized = sampled("samples/base", 0.0), sampled("samples/customized", 1.0)
    reference = load_clips(cfg, snap=64)[0]
    rows = [(f"reference: {reference.prompt}", strip(reference.frames))]
    for prompt, plain, new in zip(cfg.validation_data.prompt, base, customized):
        rows += [(f"base model: {prompt}", strip(read_video(plain))), (f"customized: {prompt}", strip(read_video(new)))]
    sheet = contact_sheet(folder / "side_by_side.png", rows)
    print(f"video: {customized[0]}", f"side by side: {sheet}", f"loss plot: {folder / 'loss.png'}", sep="\n")


if __name__ == "__main__":
    main()
