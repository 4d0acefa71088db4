"""The flags of infer/infer.py: the release's with their short forms, then ours. Imports nothing slow.

A flag left out takes its value from the checkpoint's own configuration where that has one, else the release's default
(`RELEASE`). `infer/generate.py` resolves and prints this.
"""

import argparse
import ast
import difflib

from configs.errors import UserError

# what the release's infer.py assumes when a checkpoint does not say otherwise
RELEASE = {
    "width": 384,
    "height": 384,
    "num_frames": 16,
    "num_steps": 30,
    "guidance_scale": 12.0,
    "fps": 8,
    "noise_prior": 0.2,
    "precision": "fp16",
    "guidance_rescale": 0.0,
    "negative_prompt": "",
    "noise_strategy": "blend",
    "noise_cutoff": 0.25,
    "embedding_sampling": "none",
    "pli_threshold": None,
}
RELEASE_FREEU = [1.1, 1.0, 1.0, 1.0]

DESCRIPTION = "infer/infer.py: sample videos with the motion of a checkpoint (or of the plain model without one)."


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags as given, None where left out. Wrong ones exit with code 2 and argparse's one line."""
    parser = _Parser("infer.py", description=DESCRIPTION, allow_abbrev=False)
    add = parser.add_argument
    add("--model", "-m", help="model folder in ZeroScope's layout (default: the one the checkpoint was trained on)")
    add("--prompt", "-p", nargs="+", action="extend", default=[], help="one or several prompts")
    add("--prompt_file", "--prompt-file", help="text file, one prompt a line; empty lines and # comments are skipped")
    add("--negative-prompt", "--negative_prompt", "-n", help="what to steer away from")
    add("--output_dir", "--output-dir", "-o", default="outputs/infer", help="where videos go (default %(default)s)")
    add("--batch-size", "--batch_size", "-B", type=_count, default=1, help="videos denoised together")
    add("--width", "-W", type=_count, help="pixels (default: as trained, else 384)")
    add("--height", "-H", type=_count, help="pixels (default: as trained, else 384)")
    add("--num-frames", "--num_frames", "-T", type=_count, help="frames (default: as trained, else 16)")
    add("--num-steps", "--num_steps", "-s", type=_between(int, 1, 999), help="DDIM steps (default 30)")
    add(
        "--guidance-scale",
        "--guidance_scale",
        "-g",
        type=_between(float, 0, 1000),
        help="classifier-free guidance (default 12)",
    )
    add(
        "--guidance_rescale",
        "--guidance-rescale",
        type=_between(float, 0, 1),
        help="share of guidance rescaling (default 0)",
    )
    add("--fps", "-f", type=_count, help="frames a second of the file (default 8)")
    add("--device", "-d", default="auto", help="auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps or cpu")
    add("--precision", choices=["fp16", "bf16", "no"], help="default: as trained; a CPU computes in fp32")
    add("--xformers", "-x", action="store_true", help="attention through xformers, which must be installed")
    add("--sdp", "-S", action="store_true", help="attention through PyTorch's SDPA (the default)")
    add("--checkpoint_folder", "--checkpoint-folder", "-cf", help="run folder of train.py, or of the authors' release")
    add("--checkpoint_index", "--checkpoint-index", "-ci", type=int, help="N of checkpoint-N (default: the latest)")
    add("--temporal_preset", help="layers of a file without names, where shapes can not tell: release or tap")
    add("--lora_rank", "-lr", type=_count, help="only checked: the rank is in the checkpoint")
    add(
        "--lora_scale",
        "-ls",
        type=_strength,
        default=1.0,
        help="strength of the motion; 0 is the plain model (default 1)",
    )
    add(
        "--motion",
        nargs=2,
        action="append",
        default=[],
        metavar=("FOLDER", "STRENGTH"),
        help="mix in the motion of another checkpoint; may be repeated",
    )
    add("--spatial_path_folder", help="take the looks of this checkpoint (MotionDirector's mixing)")
    add("--spatial_path_scale", type=_strength, default=1.0, help="strength of those looks (default 1)")
    add("--temporal_path_folder", help="take the motion of this checkpoint (same as --checkpoint_folder)")
    add("--temporal_path_scale", type=_strength, help="same as --lora_scale")
    add("--clip", type=int, help="which reference clip's inversion and looks to use (default: the first video, else 0)")
    add(
        "--seed",
        "-r",
        type=_between(int, 0, 2**63 - 1),
        nargs="+",
        help="one or several seeds (default: a random one, told in the sidecar)",
    )
    add("--repeat_num", "--repeat-num", "-rn", type=_count, default=1, help="videos a prompt: seed, seed+1, ...")
    add(
        "--noise_prior",
        "--noise-prior",
        "-np",
        type=_between(float, 0, 1),
        help="share of the inversion in the initial noise",
    )
    add("--noise_strategy", choices=["blend", "frequency", "blend_frequency", "fft"], help="how they are mixed")
    add(
        "--noise_cutoff",
        type=_between(float, 0.01, 1),
        help="edge of the low band for the frequency strategies (default 0.25)",
    )
    add("--highway", choices=["off", "all", "release", "plain"], help="appearance highway (default: as trained)")
    add("--beta", type=_between(float, 0.01, 100), help="scale of the highway's skips (default: as trained)")
    add("--freeu", type=_four, help="s1,s2,b1,b2 as '[1.1,1.,1,1]': the release's highway with these scales")
    add(
        "--pli_threshold",
        "--earlystep",
        type=_between(int, 0, 1000),
        help="phased LoRA integration: the plain model from this timestep down",
    )
    add("--embedding_sampling", choices=["none", "difference", "drop_value"], help="Motion Inversion's value embedding")
    add("--format", choices=["mp4", "gif", "frames"], default="mp4", help="default %(default)s")
    add(
        "--quality",
        type=_between(float, 1, 10),
        default=8,
        help="of the mp4, 1 to 10; 10 is lossless (default %(default)s)",
    )
    return parser.parse_args(argv)


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of --prompt and --prompt_file together. Raises UserError when there are none."""
    prompts = list(args.prompt)
    if args.prompt_file:
        try:
            with open(args.prompt_file, encoding="utf-8") as file:
                lines = [line.strip() for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompt_file: {args.prompt_file} can not be read ({error}); give a UTF-8 text file"
            ) from None
        prompts += [line for line in lines if line and not line.startswith("#")]
        if not any(line and not line.startswith("#") for line in lines):
            raise UserError(
                f"--prompt_file: {args.prompt_file} holds no prompt ({len(lines)} lines, empty or with #); write one "
                "a line"
            )
    if not prompts:
        raise UserError("no prompt was given; use --prompt TEXT or --prompt_file FILE")
    if not all(prompt.strip() for prompt in prompts):
        raise UserError("--prompt: one is empty; say what the video shows")
    return prompts


class _Parser(argparse.ArgumentParser):
    """Wrong flags end in one line with the nearest right one, not in the list of all."""

    def error(self, message: str):
        wrong = [word for word in message.split() if word.startswith("-")] if "unrecognized" in message else []
        near = difflib.get_close_matches(wrong[0], self._option_string_actions, 1) if wrong else []
        hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
        self.exit(2, f"error: {message}; {hint}\n")


def _between(kind: type, low: float, high: float):
    def number(text: str):
        value = kind(text)
        if not low <= value <= high:  # NaN fails as well
            limits = f"between {low} and {high}" if high < 2**31 else f"{low} or more"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    number.__name__ = {int: "whole number", float: "number"}[kind]  # for argparse's "invalid ... value"
    return number


_count, _strength = _between(int, 1, 2**31), _between(float, -100, 100)


def _four(text: str) -> list[float]:
    try:
        values = [float(value) for value in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError):
        values = []
    if len(values) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers such as '[1.1,1.,1,1]'")
    return values
