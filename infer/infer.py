"""Sample videos with a learned motion: `python3 infer/infer.py --checkpoint_folder DIR --prompt TEXT ...`.

The command of the README; the work is in infer/generate.py. stdout carries one line a video, its path.
"""

import sys
from pathlib import Path

# Python puts this file's folder first on the path, where `infer` would mean infer/infer.py: put the root there instead
sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import command
from configs.runtime import slow_imports


@command
def main() -> None:
    from infer import jobs, options

    args = options.parse(sys.argv[1:])
    jobs.read_jobs(args)  # --help and a wrong request answer at once, before the slow imports

    with slow_imports():
        from infer.generate import generate

    for path in generate(args):
        print(path, flush=True)


if __name__ == "__main__":
    main()
