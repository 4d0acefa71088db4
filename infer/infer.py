"""Sample videos with a learned motion: `python3 infer/infer.py --checkpoint_folder DIR --prompt TEXT ...`.

The command of the README; the work is in infer/generate.py. stdout carries one line a video, its path.
"""

import os
import sys
from pathlib import Path

# Python puts this file's folder first on the path, where `infer` would mean infer/infer.py: put the root there instead
sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import command
from infer import options

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a step several times slower on a busy CPU

if __name__ == "__main__":  # before the slow imports, so that --help and a wrong request answer at once
    ARGUMENTS = options.parse(sys.argv[1:])
    command(options.read_prompts)(ARGUMENTS)

from infer.generate import generate


@command
def main() -> None:
    for path in generate(ARGUMENTS):
        print(path, flush=True)


if __name__ == "__main__":
    main()
