"""The whole road on one page in a browser: a clip, training, sampling, files to take away.

    python scripts/app.py
    python scripts/app.py --model models/zeroscope_v2_576w --port 7861

The page is served on this machine only and needs no network; Gradio must be installed (requirements-app.txt).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import command
from configs.runtime import slow_imports


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", "-m", default="models/pocketscope", help="model folder (default: %(default)s)")
    parser.add_argument("--port", type=int, help="of the page (default: the first free one from 7860 on)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--output_dir", "-o", default="outputs", help="folder of all outputs (default: %(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    args = parser.parse_args(argv)
    with slow_imports():
        from scripts.studio.server import serve

    serve(args.output_dir, args.model, args.host, args.port, not args.no_browser)


if __name__ == "__main__":
    main()
