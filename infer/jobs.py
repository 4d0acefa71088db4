"""Which videos a command asks for: its prompts and seeds, and the options that lines of a prompt file bring along."""

import argparse
import secrets
from dataclasses import dataclass

from configs.errors import UserError, shown
from configs.plain import NO_TEXT
from infer.prompt_file import Line, grouped, read_prompt_file

MOST_VIDEOS = 100_000  # of one command


@dataclass(frozen=True)
class Part:
    """Videos of one command that share all choices: `args` are the flags with those of a prompt file's lines."""

    args: argparse.Namespace
    jobs: list[tuple[str, int]]  # (prompt, seed) of each video


def read_parts(args: argparse.Namespace) -> list[Part]:
    """What is asked for, in order: lines of a prompt file with the same options are one part, all else is the first.

    Raises UserError for prompts that are missing, empty or no text, and for more videos than `MOST_VIDEOS`.
    """
    lines = read_lines(args)
    seeds = [secrets.randbelow(2**31)] if args.seed is None else args.seed
    if (count := len(lines) * len(seeds) * args.repeat_num) > MOST_VIDEOS:
        raise UserError(
            f"--repeat_num: {len(lines)} x {len(seeds)} x {args.repeat_num} (prompts, seeds, repeats) are {count:,} "
            f"videos, more than {MOST_VIDEOS:,}; ask for fewer at a time"
        )
    parts = []
    for flags, group in grouped(lines):
        jobs = [
            (line.prompt, seed + i)
            for line in group
            for seed in ([line.flags["seed"]] if "seed" in line.flags else seeds)
            for i in range(args.repeat_num)
        ]
        parts.append(Part(argparse.Namespace(**{**vars(args), **flags}), jobs))
    return parts


def read_jobs(args: argparse.Namespace) -> list[tuple[str, int]]:
    """(prompt, seed) of every video that is asked for, prompt by prompt. Raises UserError as `read_parts` does."""
    return [job for part in read_parts(args) for job in part.jobs]


def read_lines(args: argparse.Namespace) -> list[Line]:
    """The prompts of --prompt and --prompt_file together. Raises UserError without any, and for one that is no text."""
    lines = [Line(prompt) for prompt in args.prompt]
    if args.prompt_file:
        lines += read_prompt_file(args.prompt_file)
    if not lines:
        raise UserError("no prompt was given; use --prompt TEXT or --prompt_file FILE")
    if not all(line.prompt.strip() for line in lines):
        raise UserError("--prompt: one is empty; say what the video shows")
    texts = [text for line in lines for text in (line.prompt, line.flags.get("negative_prompt", ""))]
    if wrong := [text for text in (*texts, args.negative_prompt or "") if NO_TEXT.search(text)]:
        raise UserError(f"--prompt: {shown(wrong[0])} holds a character that is no text; write it in UTF-8")
    return lines
