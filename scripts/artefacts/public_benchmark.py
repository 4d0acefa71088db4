"""A public benchmark (data/benchmarks.py) with one method on a real model: sample every case, measure, one table.

Guidance needs no training; the other methods train on each case as the tables do. Videos have the shape of their clip,
as a training cuts it, and are measured against those of its frames that were learned or guided by. A case that fails is
one sentence and the others go on; started again, only missing videos are made. Points are followed by Lucas-Kanade, so
motion fidelity can be compared between methods here, and not with numbers that were published with CoTracker.
"""

import argparse
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from configs.errors import UserError, ending, printable
from configs.files import atomic_path
from configs.schema import load
from data.benchmarks import JOINTTUNER, MTBENCH, Case, read_benchmark
from data.clips import Cut, bucket, decodable, open_video, pick_frames
from data.sources import plan_clips
from infer import options
from infer.generate import generate, load_backbone
from infer.measure.metrics import VideoScorer
from infer.measure.statistics import share_or_mean
from infer.request import read_request
from models.backbone import Backbone, choose_device
from models.outline import snap_of
from scripts.artefacts.artefact import PROMPTS, SMOKE_PROMPTS, Variant
from scripts.artefacts.benchmark_scores import Found, measure_case
from scripts.artefacts.chain import work
from scripts.artefacts.plan import Plan, digest
from scripts.artefacts.prices import stored_prices
from scripts.artefacts.provenance import note_commit
from scripts.artefacts.results_file import markdown, markdown_table
from scripts.artefacts.samples import Samples
from scripts.artefacts.testbed import MotionTask, Testbed
from scripts.artefacts.variants import DIRECTOR, INVERSION, TAP, TAP_GUIDANCE

GUIDANCE = "guidance"
METHODS = {
    "tap": Variant("TAP", TAP),
    "tap_guidance": TAP_GUIDANCE,
    "motiondirector": DIRECTOR,
    "motion_inversion": INVERSION,
}
COLUMNS = {  # the benchmark's own, by its own names -> (score, factor)
    MTBENCH: {
        "EF": ("text_alignment_logits", 1),
        "TC (CLIP for DINO)": ("temporal_consistency", 1),
        "MF": ("mtbench_code", 100),
        "MF (as the paper has it)": ("mtbench_paper", 100),
    },
    JOINTTUNER: {
        "CLIP-Text": ("text_alignment", 1),
        "Temporal-Consistency": ("temporal_consistency", 1),
        "Pick-Score": ("pickscore", 1),
        "Motion-Fidelity": ("motion_fidelity_dmt_code", 100),
    },
}


def describe_benchmark(args: argparse.Namespace) -> str:
    """What --plan and --dry-run print in place of making a benchmark: its size, its cost, and the cases it lacks.

    Raises UserError when the folder is no benchmark.
    """
    benchmark = read_benchmark(args.benchmark)
    cases = benchmark.cases[: args.references]
    videos = sum(len(case.prompts[: most_prompts(args)]) for case in cases)
    trainings, flags = (0, ("--guide",)) if args.method == GUIDANCE else (len(cases), METHODS[args.method].flags)
    prices = stored_prices(world=False)
    seconds = trainings * (prices.start + prices.training) + prices.of_videos(videos, flags)
    lines = [
        f"{benchmark.name} with {args.method} would take {trainings} trainings and {videos} videos of {len(cases)} "
        f"cases, about {seconds / 60:.0f} min of {prices.unit} (an estimate); nothing is made or written"
    ]
    lines += [f"    lacks: {problem}" for problem in benchmark.missing]
    return "\n".join([*lines, *(f"    note: {note}" for note in benchmark.notes)])


def most_prompts(args: argparse.Namespace) -> int:
    """How many of its prompts every case is sampled with, at most."""
    return args.prompts or (SMOKE_PROMPTS if args.smoke else PROMPTS)


def run_benchmark(args: argparse.Namespace, words: list[str], say: Callable[[str], None]) -> tuple[Path, int]:
    """Make and measure every case of `args.benchmark` with `args.method`; returns the table's file and the failures.

    Raises UserError when the folder is no benchmark; whatever a case lacks becomes a sentence in the table's file.
    """
    benchmark = read_benchmark(args.benchmark)
    cases, failed = benchmark.cases[: args.references], len(benchmark.missing)
    for problem in benchmark.missing:
        say(f"missing: {problem}")
    for note in benchmark.notes:
        say(f"note: {note}")
    problems = [*benchmark.missing, *benchmark.notes]
    name = f"{benchmark.name.lower()}-{args.method}{'-smoke' if args.smoke else ''}"
    output = args.output_dir.resolve()
    testbed = Testbed(Path(args.model).resolve(), False, output)
    plan = Plan(testbed, output, words, smoke=args.smoke, prompts=args.prompts)
    scorer = VideoScorer(args.clip, args.pickscore, args.viclip, args.cotracker, str(choose_device()))
    model = cache(lambda: load_backbone(options.parse(["--model", args.model, "--prompt", ""])))
    found: list[Found] = []
    clips: list[str] = []
    for number, case in enumerate(cases, 1):
        try:
            samples, seen = sample_case(case, args, plan, output / "benchmarks" / name / case.group, model)
            rows, notes = measure_case(case, samples, seen, scorer)
            problems += notes
            for note in notes:
                say(f"note: {note}")
            if not rows:
                raise UserError("none of its videos could be measured")
            found += rows
            clips += which_clips(case, args.method)
            say(f"[{number}/{len(cases)}] {case.name}: {len(rows)} videos")
        except Exception as error:  # whatever a case ends with, the others go on
            problems.append(f"{case.name}: {_sentence(error)}")
            failed += 1
            say(f"[{number}/{len(cases)}] {problems[-1]}")
    problems += scorer.unavailable.values()
    table = output / name / "table.md"
    table.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(table) as temporary:
        temporary.write_text(_text(benchmark.name, args, found, clips, list(dict.fromkeys(problems))), encoding="utf-8")
    return table, failed


def sample_case(
    case: Case, args: argparse.Namespace, plan: Plan, place: Path, model: Callable[[], Backbone]
) -> tuple[Samples, list[int]]:
    """(a case's videos, made where they are missing; the frames of its clip that the method saw)."""
    return _guided(case, args, plan, place, model) if args.method == GUIDANCE else _trained(case, args, plan)


def _trained(case: Case, args: argparse.Namespace, plan: Plan) -> tuple[Samples, list[int]]:
    """`sample_case` by a training on the case's clips, which is one of the plan's."""
    data = (f"train_data.single_video_path={case.clip}", f"train_data.single_video_prompt={case.caption}")
    if case.others:
        words = case.name.replace("_", " ")  # for the clips without a caption of their own
        folder_of = f"train_data.path={case.clip.parent}"
        data = ("dataset_types=[folder]", folder_of, f"train_data.fallback_prompt={words}")
    given = ["--config", str(plan.testbed.config), f"pretrained_model_path={plan.testbed.model}"]
    cfg = load([*given, *data, *plan.words], description="")[0]
    (width, height), seen = _seen(case.clip, plan_clips(cfg, snap_of(plan.testbed.model))[0].cut)
    data += (f"validation_data.width={width}", f"validation_data.height={height}")
    task = MotionTask(case.name, case.group, data, case.prompts, case.clip, several=bool(case.others))
    cell = plan.cell(METHODS[args.method], task, 0, most_prompts(args))
    work(cell.chain)
    return cell.samples, seen


def _guided(
    case: Case, args: argparse.Namespace, plan: Plan, place: Path, model: Callable[[], Backbone]
) -> tuple[Samples, list[int]]:
    """`sample_case` by guidance, in a folder of `place` that is named by the case and a digest of all that shapes it.

    `model` gives the loaded model, for which it is asked only where a video is missing.
    """
    prompts, flags = list(case.prompts[: most_prompts(args)]), ["--num-steps", "2"] if args.smoke else []
    flags += ["--model", args.model, "--guide", str(case.clip)]
    settings = read_request(options.parse([*flags, *options.prompt_words(prompts)])).settings
    snap = snap_of(plan.testbed.model)
    cut = Cut(settings.width, settings.height, settings.num_frames, settings.fps, snap=snap)
    (width, height), seen = _seen(case.clip, cut)
    flags += ["--width", str(width), "--height", str(height)]
    content = hashlib.sha256(case.clip.read_bytes()).hexdigest()
    shaped_by = {name: value for name, value in settings.values.items() if name != "guide"}  # its path
    folder = place / f"{case.name}-{digest([plan.model_key, content, shaped_by, width, height])}"
    samples = Samples(str(folder), flags, prompts)
    for seed, missing in list(samples.missing()):
        note_commit(folder)
        asked = [*flags, "--seed", str(seed), "--output_dir", str(folder), *options.prompt_words(missing)]
        for _ in generate(options.parse(asked), model()):
            pass
    return samples, seen


def _seen(path: Path, cut: Cut) -> tuple[tuple[int, int], list[int]]:
    """((width, height) of videos in the shape of a clip, the numbers of its frames that are taken) for this cut."""
    with decodable(path):
        video = open_video(path)
        return bucket(*video.size, cut), pick_frames(path, video.count, video.fps, cut)[0]


def _sentence(error: Exception) -> str:
    """What a case ended with, in one sentence."""
    if known := ending(error):
        return known[0].removeprefix("error: ")
    return f"{type(error).__name__}: {printable(str(error))[:200]}; a defect of this project or of a library"


def which_clips(case: Case, method: str) -> list[str]:
    """A sentence about which clips of a motion were used for what; none where it has a single one."""
    if not case.others:
        return []
    every, first = f"all {1 + len(case.others)} clips", case.clip.name
    how = {GUIDANCE: f"guided by {first} alone, of {every}", "tap_guidance": f"learned from {every}, guided by {first}"}
    return [f"{case.group}, {case.name}: {how.get(method, f'learned from {every}')}; measured against {first}."]


def _text(kind: str, args: argparse.Namespace, found: list[Found], clips: list[str], problems: list[str]) -> str:
    columns = COLUMNS[kind]
    rows = [["case", *columns, "n"]]
    groups = list(dict.fromkeys(f.case.group for f in found))
    cases = list(dict.fromkeys((f.case.group, f.case.name) for f in found))
    names = [name for _, name in cases]
    parts = [
        (
            name if names.count(name) == 1 else f"{group}, {name}",
            [f for f in found if (f.case.group, f.case.name) == (group, name)],
        )
        for group, name in cases
    ]
    parts += [(group, [f for f in found if f.case.group == group]) for group in groups if len(groups) > 1]
    for name, part in [*parts, ("All", found)]:
        cells = []
        for score, factor in columns.values():
            having = [f for f in part if score in f.scores]
            values, units = [factor * f.scores[score] for f in having], [(f.case.group, f.case.name) for f in having]
            cells.append(str(share_or_mean(values, units)) if values else "–")
        rows.append([name, *cells, str(len(part))])
    lines = [
        f"# {kind}: {args.method} on {markdown(Path(args.model).name)}",
        "SMOKE RUN, the numbers mean nothing." if args.smoke else "",
        markdown_table(rows),
        "Brackets are 95 % intervals: over the videos of up to two cases; from three on over the cases, with their "
        f"videos inside. Prompts sampled of a case: at most {most_prompts(args)}. Points are followed by "
        "Lucas-Kanade.",
        "Motions of several clips:\n\n" + "\n".join(f"- {markdown(one)}" for one in clips) if clips else "",
        "Missing:\n\n" + "\n".join(f"- {markdown(problem)}" for problem in problems) if problems else "",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"
