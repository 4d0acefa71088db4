"""The page on a port of this machine: what it answers, and what it refuses.

Only files of the page's own folder are served, whatever Gradio's routes would find; nothing is fetched from other
machines, neither by the page nor through it.
"""

import os
import socket
from pathlib import Path
from urllib.parse import unquote

from configs.errors import UserError, printable, shown
from scripts.studio.places import ROUTE, Places
from scripts.studio.uploads import MOST_BYTES

FIRST_PORT, MOST_PORTS, LAST_PORT = 7860, 100, 65535
LOCAL = "127.0.0.1"
REFUSED = ("/gradio_api/proxy", "/gradio_api/file/", "/gradio_api/vibe", "/gradio_api/runs", "/gradio_api/deep_link")
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self'; frame-ancestors 'self'; "
    "form-action 'self'"
)


def choose_port(host: str, asked: int | None) -> int:
    """The port asked for, else the first free one from FIRST_PORT on.

    Raises UserError naming the next free one, and for a port or a host that there is not.
    """
    if asked is not None and not 1 <= asked <= LAST_PORT:
        raise UserError(f"--port: {shown(asked)} is not from 1 to {LAST_PORT}; give such a number, or leave it out")
    _check_host(host)
    if asked is not None and _is_free(host, asked):
        return asked
    start = FIRST_PORT if asked is None else asked
    free = next((port for port in range(start, min(start + MOST_PORTS, LAST_PORT + 1)) if _is_free(host, port)), None)
    if free is None:
        raise UserError(f"--port: no port from {start} on is free; close another program, or give --port")
    if asked is not None:
        raise UserError(f"--port: {asked} is in use; {free} is free: give --port {free}")
    return free


def _check_host(host: str) -> None:
    """Raises UserError where nothing can listen on `host`, whatever the port: 0 stands for any free one."""
    try:
        _bind(host, 0)
    except (OSError, TypeError) as error:  # the latter for letters that no name can have
        reason = printable(getattr(error, "strerror", None) or "no name of a host")
        raise UserError(
            f"--host: nothing can listen on {shown(host)} here ({reason}); give {LOCAL} for this machine alone, "
            "0.0.0.0 for all of its addresses, or one of them"
        ) from None


def _is_free(host: str, port: int) -> bool:
    try:
        _bind(host, port)
    except OSError:
        return False
    return True


def _bind(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


class Guard:
    """ASGI middleware: refuses what the page does not need, and tells browsers to fetch nothing from elsewhere."""

    def __init__(self, app, places: Places):
        self.app, self.places = app, places

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if not allowed(scope["path"], self.places):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            return await send({"type": "http.response.body", "body": b"not a file of this page\n"})

        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": headers}
            await send(message)

        return await self.app(scope, receive, send_with_policy)


def allowed(path: str, places: Places) -> bool:
    """Whether the page answers this path of an address: of files only its own."""
    path = unquote(path)
    if path.startswith(REFUSED):
        return False
    if path.startswith(f"/{ROUTE}"):
        name = path.removeprefix(f"/{ROUTE}")
        return name.startswith("/") and places.serves(name)
    return True


def serve(root: str, model: str, host: str, port: int | None, browser: bool) -> None:
    """Serve the page until Ctrl-C or SIGTERM; a training then saves a checkpoint and ends."""
    port = choose_port(host, port)
    places = Places.below(root)
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(places.own)}
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(places.own / "examples")
    try:
        import gradio as gr
    except ImportError:
        raise UserError("the page needs Gradio: pip install -r requirements-app.txt") from None
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from scripts.studio.desk import Desk
    from scripts.studio.page import build

    here = Path(__file__).parent
    desk = Desk(root, model)
    hosts = [LOCAL, "localhost", "[::1]", "::1", host] if host in (LOCAL, "localhost", "::1") else ["*"]
    try:
        build(desk).queue(default_concurrency_limit=4).launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            allowed_paths=[],
            max_file_size=MOST_BYTES,
            quiet=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            ssr_mode=False,
            prevent_thread_lock=True,
            theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=(here / "page.css").read_text(encoding="utf-8"),
            head=f"<script>{(here / 'page.js').read_text(encoding='utf-8')}</script>",
            app_kwargs={
                "middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Guard, places=places)]
            },
        )
        print(f"the page is at http://{host}:{port} (Ctrl-C ends it)", flush=True)
        _wait()
    finally:
        desk.close()


def _wait() -> None:
    import threading

    threading.Event().wait()
