"""The flags of infer/infer.py: the release's with their short forms, then ours. Imports nothing slow.

A flag that is left out takes its value from what was chosen in the checkpoint's configuration, else from the model
folder's sampling.json, else it is the release's default. `infer/settings.py` resolves this and prints it.
"""

import argparse
import ast
from collections.abc import Iterable

from configs.checks import Check, no_interval, real, whole, written
from configs.commandline import Parser
from configs.errors import shown
from infer.choices import GUIDANCE, GUIDE_CHECKS, GUIDE_WEIGHT, RELEASE, STRENGTH, TARGETS, check_of, words_of
from infer.prompt_file import OPTIONS

BELONGING = {  # flags that mean nothing alone -> those of which one must be given
    ("checkpoint_index", "temporal_preset", "lora_rank"): ("checkpoint_folder", "temporal_path_folder"),
    ("spatial_path_scale", "spatial_path_clip"): ("spatial_path_folder",),
    tuple(GUIDE_CHECKS): ("guide",),
}

DESCRIPTION = "infer/infer.py: sample videos with the motion of a checkpoint (or of the plain model without one)."


def _ends() -> str:
    """The options that may stand behind a prompt in a file, each with the flag that it means."""
    return ", ".join(f"--{option} ({flag})" for option, flag in OPTIONS.items())


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags as given, None where left out. Raises UserError for wrong ones; --help prints and exits."""
    parser = Parser("infer.py", description=DESCRIPTION)
    add = parser.add_argument
    attention, motion, strength, skips = (parser.add_mutually_exclusive_group().add_argument for _ in range(4))
    add("--model", "-m", help="folder of ZeroScope, ModelScope or Wan, or a hub id (default: the folder trained on)")
    add("--prompt", "-p", nargs="+", action="extend", default=[], help="one or several prompts")
    add("--prompt_file", "--prompt-file", help=f"a prompt a line, which may end in {_ends()}")
    add("--negative-prompt", "--negative_prompt", "-n", help=f"what to steer away from ({_else('nothing')})")
    add("--output_dir", "--output-dir", "-o", default="outputs/infer", help="where videos go (default: %(default)s)")
    add("--batch-size", "--batch_size", "-B", type=_count, default=1, help="videos denoised together (default: 1)")
    add("--width", "-W", type=_of_key("width"), help=f"pixels ({_release('width')})")
    add("--height", "-H", type=_of_key("height"), help=f"pixels ({_release('height')})")
    add("--num-frames", "--num_frames", "-T", type=_of_key("num_frames"), help=f"frames ({_release('num_frames')})")
    add(
        "--num-steps",
        "--num_steps",
        "-s",
        type=_of_key("num_steps"),
        help=f"steps of the solver ({_release('num_steps')})",
    )
    add("--solver", choices=words_of("solver"), help=f"unipc and dpm need fewer steps ({_release('solver')})")
    add(
        "--guidance-scale",
        "--guidance_scale",
        "-g",
        type=_of_key("guidance_scale"),
        help=f"classifier-free guidance ({_release('guidance_scale')})",
    )
    add(
        "--guidance_rescale",
        "--guidance-rescale",
        type=_of_key("guidance_rescale"),
        help=f"share of guidance rescaling ({_release('guidance_rescale')})",
    )
    add(
        "--guidance_interval",
        "--guidance-interval",
        nargs=2,
        type=_of_key("guidance_interval"),
        metavar=("LOW", "HIGH"),
        help=f"guide only at timesteps from LOW to HIGH, 0 to 1000 ({_else('at every one')})",
    )
    add("--fps", "-f", type=_of_key("fps"), help=f"frames a second of the file ({_release('fps')})")
    add(
        "--device",
        "-d",
        default="auto",
        help="cuda, cuda:1, mps or cpu (default: auto, which is CUDA, else MPS, else CPU)",
    )
    add("--threads", type=_of_key("threads"), help="CPU threads (default: OMP_NUM_THREADS, else by the model's size)")
    add(
        "--memory",
        choices=words_of("memory"),
        default="default",
        help="where the frozen model waits: on the device, there in 8 bits, or on the host (default: %(default)s)",
    )
    add(
        "--compile",
        choices=words_of("compile"),
        default="off",
        help="torch.compile for the network's layers; step also replays them as CUDA graphs; the first step takes "
        "minutes then (default: %(default)s)",
    )
    add("--precision", choices=words_of("precision"), help=f"a CPU always computes in fp32 ({_release('precision')})")
    attention("--xformers", "-x", action="store_true", help="attention through xformers, which must be installed")
    attention("--sdp", "-S", action="store_true", help="attention through PyTorch's SDPA (the default)")
    motion(
        "--checkpoint_folder", "--checkpoint-folder", "-cf", help="run folder of train.py, or the authors' release's"
    )
    add("--checkpoint_index", "--checkpoint-index", "-ci", type=int, help="N of checkpoint-N (default: the latest)")
    add("--temporal_preset", help="layers of a file without names, where shapes cannot tell: release or tap")
    add("--lora_rank", "-lr", type=_of_key("lora_rank"), help="only checked: the rank is in the checkpoint")
    strength(
        "--lora_scale",
        "-ls",
        type=_strength,
        default=1.0,
        help="strength of the motion; 0 is the plain model (default: 1)",
    )
    add(
        "--motion",
        nargs=2,
        action="append",
        default=[],
        metavar=("FOLDER", "STRENGTH"),
        help="mix in the motion of another checkpoint; may be repeated",
    )
    add("--spatial_path_folder", help="take the appearance of this checkpoint (MotionDirector's mixing)")
    add("--spatial_path_scale", type=_strength, help="strength of that appearance (default: 1)")
    add("--spatial_path_clip", type=int, help="number of the clip whose appearance that is (default: --clip)")
    motion("--temporal_path_folder", help="take the motion of this checkpoint (same as --checkpoint_folder)")
    strength("--temporal_path_scale", type=_strength, help="same as --lora_scale")
    add(
        "--clip",
        type=int,
        help="number of the reference clip whose inversion and appearance are used (default: the first of those with "
        "the most frames)",
    )
    add(
        "--seed",
        "-r",
        type=_of_key("seed"),
        nargs="+",
        help="one or several seeds (default: a random one, which the sidecar holds)",
    )
    add("--repeat_num", "--repeat-num", "-rn", type=_count, default=1, help="videos a prompt: seed, seed+1, ...")
    add(
        "--noise_prior",
        "--noise-prior",
        "-np",
        type=_of_key("noise_prior"),
        help="share of the reference clip's inversion in the initial noise "
        f"({_release('noise_prior')} with one reference clip; 0 with several)",
    )
    add(
        "--noise_strategy",
        choices=words_of("noise_strategy"),
        help=f"how inversion and noise are mixed ({_release('noise_strategy')})",
    )
    add(
        "--noise_cutoff",
        type=_of_key("noise_cutoff"),
        help=f"edge of the low band for the frequency strategies ({_release('noise_cutoff')})",
    )
    add("--highway", choices=["off", *words_of("highway")], help="appearance highway (default: as trained)")
    skips("--beta", type=_of_key("beta"), help="scale of the highway's skip connections (default: as trained)")
    skips("--freeu", type=_four, help="s1,s2,b1,b2 as '[1.1,1.,1,1]': the release's highway with these scales")
    add(
        "--pli_threshold",
        "--earlystep",
        type=_of_key("pli_threshold"),
        help=f"phased LoRA integration: the plain model from this timestep down ({_else('never')})",
    )
    add(
        "--embedding_sampling",
        choices=words_of("embedding_sampling"),
        help=f"Motion Inversion's value embedding ({_release('embedding_sampling')})",
    )
    add(
        "--guide",
        nargs="?",
        const="",
        metavar="CLIP",
        help="motion guidance: steer the first steps towards the motion of this clip, without training (no CLIP: the "
        "reference clip of the run)",
    )
    add(
        "--guide_steps",
        type=_typed(GUIDE_CHECKS["guide_steps"]),
        help=f"steps that are guided ({_own('a fifth of --num-steps')})",
    )
    add(
        "--guide_rate",
        type=_typed(GUIDE_CHECKS["guide_rate"]),
        help=f"how far an update moves the latents ({_own(GUIDANCE['rate'])})",
    )
    add(
        "--guide_updates",
        type=_typed(GUIDE_CHECKS["guide_updates"]),
        help=f"updates in each guided step ({_own(GUIDANCE['updates'])})",
    )
    add(
        "--guide_weights",
        nargs=2,
        type=_typed(GUIDE_WEIGHT),
        metavar=("LATENTS", "MOTION"),
        help="weights of the clip's clean latents and of their frame differences "
        f"({_own('{:g} {:g}'.format(*GUIDANCE['weights']))})",
    )
    add(
        "--guide_across",
        type=_typed(GUIDE_CHECKS["guide_across"]),
        help=f"share that is kept of the velocity across the mean velocity so far ({_own(GUIDANCE['across'])})",
    )
    add(
        "--guide_target",
        choices=TARGETS,
        help="what the clip's clean latents are: predicted by the model, or its own, which is quicker "
        f"({_own(GUIDANCE['target'])}; PocketScope's is clean_latent)",
    )
    add("--format", choices=["mp4", "gif", "frames"], default="mp4", help="of the files (default: %(default)s)")
    add(
        "--quality",
        type=_typed(real(1, 10)),
        default=8,
        help="of the mp4, 1 to 10; 10 is lossless (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    for names, hosts in BELONGING.items():
        alone = [name for name in names if getattr(args, name) is not None]
        if alone and all(getattr(args, host) is None for host in hosts):
            parser.error(f"argument --{alone[0]}: belongs to --{hosts[0]}, which is not given")
    if not args.output_dir:
        parser.error("argument --output_dir: is empty, name a folder (a single dot is this one)")
    if args.compile != "off" and args.memory != "default":
        parser.error(f"argument --compile: needs the frozen model as it is, and --memory is {args.memory}")
    if args.guidance_interval and (reason := no_interval(args.guidance_interval)):
        parser.error(f"argument --guidance_interval: {reason}")
    return args


def prompt_words(prompts: Iterable[str]) -> list[str]:
    """The words that hand these prompts to `parse`; one that begins with a hyphen would be taken for a flag."""
    return [f"--prompt={prompt}" for prompt in prompts]


def _else(value: object) -> str:
    return f"default: as chosen for the training, else the model's own, else {value}"


def _release(name: str) -> str:
    value = RELEASE[name]
    return _else(f"{value:g}" if isinstance(value, float) else value)


def _own(value: object) -> str:
    return f"default: the model's own in its sampling.json, else {value}"


def _typed(check: Check):
    """argparse's `type` for a number that must pass `check`."""

    def number(text: str):
        try:
            return written(check)(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{shown(text)} is {error}") from None

    return number


def _of_key(flag: str):
    """argparse's `type` for a flag with the limits of the configuration key that it stands for."""
    return _typed(check_of(flag))


_count, _strength = _typed(whole(1, 2**31)), _typed(STRENGTH)


def _four(text: str) -> list[float]:
    try:
        values = [STRENGTH(value) for value in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError, OverflowError):
        values = []
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers such as '[1.1,1.,1,1]'")
    return values
