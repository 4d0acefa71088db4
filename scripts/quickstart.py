"""The two-command start's second half: train configs/quickstart.yaml, then show base and customized model.

Run by scripts/quickstart.sh. Words after it are `key=value` overrides of the configuration. The last three lines of
stdout name a video, the picture that plays reference clip, base model and customized model side by side, and the loss
plot; a contact sheet of the same videos lies beside the picture.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import command
from configs.runtime import quiet_threads

SEED = 1
MOST_ROWS = 2  # of the playing picture


@command
def main(argv: list[str] | None = None) -> None:
    from configs.schema import ROOT, load

    words = sys.argv[1:] if argv is None else argv
    cfg, dry_run = load(["--config", str(ROOT / "configs/quickstart.yaml"), *words], description=__doc__)
    cfg.validation_data.side_by_side = False  # this command makes a picture of its own, from new noise
    quiet_threads()
    import train
    from infer.pictures import contact_sheet, strip
    from infer.side_by_side import write_side_by_side
    from scripts.showcase.samples import clip_of, sample_run

    if dry_run:
        print(train.dry_run(cfg))
        return
    run, prompts = train.run(cfg), list(cfg.validation_data.prompt)
    base = sample_run(run, prompts, SEED, run / "samples/base", strength=0.0)
    customized = sample_run(run, prompts, SEED, run / "samples/customized")
    reference = clip_of(cfg)
    rows = [(prompt, plain, new) for prompt, (_, plain), (_, new) in zip(prompts, base, customized)]
    lines = [(f"reference: {reference.prompt}", strip(reference.frames))]
    for prompt, plain, new in rows:
        lines += [(f"base model: {prompt}", strip(plain)), (f"customized: {prompt}", strip(new))]
    print(f"contact sheet: {contact_sheet(run / 'side_by_side.png', lines)}", file=sys.stderr)
    playing = write_side_by_side(run / "side_by_side.webp", rows[:MOST_ROWS], reference, fps=reference.fps)
    print(f"video: {customized[0][0]}", f"side by side: {playing}", f"loss plot: {run / 'loss.png'}", sep="\n")


if __name__ == "__main__":
    main()
