"""The page itself: one column of numbered steps in Gradio, wired to the desk."""

import functools
from collections.abc import Callable
from html import escape

import gradio as gr

from scripts.studio.desk import QUEUED, Choice, Desk, sentence
from scripts.studio.recipe import METHODS, SPEEDS
from scripts.studio.takeaway import KINDS, LORAS

TICK = 1.0  # seconds between looks at a training
DIALS = ("noise_prior", "pli_threshold", "highway", "beta", "solver", "num_steps", "guidance_scale")
NOBODY = ""  # of a list of other runs: none
QUIET = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
SHELL = {"interactive": False, "lines": 3, "max_lines": 40, "buttons": ["copy"]}
GROWING = {"interactive": True, "allow_custom_value": True}  # a list that grows: the desk checks what is chosen
PRIVATE = {"api_visibility": "private"}


def told(handler: Callable) -> Callable:
    """What a person can mend ends in one sentence on the page, as text; a defect stays an error."""

    def raised(error: Exception):
        text = sentence(error)
        return error if text is None else gr.Error(escape(text), duration=30, print_exception=False)

    if handler.__code__.co_flags & 0x20:  # a generator

        @functools.wraps(handler)
        def run(*args):
            try:
                yield from handler(*args)
            except Exception as error:
                raise raised(error) from None
    else:

        @functools.wraps(handler)
        def run(*args):
            try:
                return handler(*args)
            except Exception as error:
                raise raised(error) from None

    return run


def heading(number: int, title: str, hint: str) -> None:
    gr.HTML(f'<h2><b>{number}</b>{escape(title)}</h2><p class="hint">{escape(hint)}</p>')


def build(desk: Desk) -> gr.Blocks:
    """The page of a desk, not yet served."""
    problem = desk.model_problem()
    with gr.Blocks(title="Motion customization", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.HTML(
            '<div class="title"><h1>Give a video model your motion</h1><p class="lead">One clip of a motion in, new '
            "videos with that motion out, without the clip's appearance. Everything runs on this machine, and every "
            f"step is a command that you can take along. Model: <code>{escape(desk.model)}</code></p></div>"
        )
        gr.HTML(f'<p class="note bad">{escape(problem)}</p>' if problem else "", visible=bool(problem))

        with gr.Column(elem_classes="step"):
            heading(1, "Choose a clip", "Two seconds of one clear motion are enough. Take an example, or your own.")
            with gr.Row():
                clip = gr.Dropdown(
                    desk.clips(), value=desk.clips()[0][1], label="Clip", elem_id="clip", scale=2, **GROWING
                )
                upload = gr.UploadButton(
                    "Upload your own clip", file_count="single", elem_id="upload", scale=1, min_width=200
                )
            with gr.Row():
                first = gr.Slider(0, 10, 0, step=0.1, label="From second", elem_id="first")
                seconds = gr.Slider(0.1, 10, 1, step=0.1, label="Seconds taken", elem_id="seconds")
            seen = gr.HTML(elem_id="seen", min_height=200)
            caption = gr.Textbox(
                label="Caption: what is seen in the clip (the motion itself needs no words)",
                placeholder="A car is driving on a road.",
                elem_id="caption",
            )

        with gr.Column(elem_classes="step"):
            heading(2, "Choose how to learn", "The first method is right for most clips. Quick shows where it goes.")
            method = gr.Radio(
                [(f"{title}: {advice}", name) for name, (title, advice) in METHODS.items()],
                value="tap",
                label="Method",
                elem_id="method",
            )
            speed = gr.Radio(
                [(f"{name} ({desk.steps(name)} steps)", name) for name in SPEEDS],
                value="quick",
                label="Speed",
                elem_id="speed",
            )
            previewed = gr.Textbox(
                label="Prompts of the previews, one a line (the first two are drawn while it learns)",
                lines=2,
                elem_id="previewed",
            )
            with gr.Accordion("More, and the command", open=False, elem_id="more"):
                with gr.Row():
                    steps = gr.Number(desk.steps("quick"), label="Steps", precision=0, elem_id="steps")
                    seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                command = gr.Textbox(label="The command of this training", elem_id="command", **SHELL)
            train = gr.Button("Train", variant="primary", interactive=not problem, elem_id="train")

        with gr.Column(elem_classes="step"):
            heading(
                3, "Watch it learn", "A closed tab harms nothing. Stop keeps a checkpoint, Go on continues from it."
            )
            run = gr.Dropdown([], label="Training or run (all of outputs/train)", elem_id="run", **GROWING)
            status = gr.HTML(elem_id="status")
            curve = gr.HTML(elem_id="curve")
            previews = gr.HTML(elem_id="previews")
            with gr.Row():
                stop = gr.Button("Stop", interactive=False, elem_id="stop")
                go_on = gr.Button("Go on", interactive=False, elem_id="go_on")

        with gr.Column(elem_classes="step"):
            heading(4, "Sample", "New prompts, with the motion. The dials act at once, without training again.")
            prompts = gr.Textbox(label="Prompts, one a line", lines=3, elem_id="prompts")
            with gr.Row():
                strength = gr.Slider(
                    0, 2, 1, step=0.05, label="Motion strength", info="0 is the base model", elem_id="strength"
                )
                prior = gr.Slider(0, 1, 0, step=0.05, label="Noise prior", info="start nearer to the clip's layout")
            with gr.Accordion("More dials", open=False, elem_id="dials"):
                with gr.Row():
                    pli = gr.Slider(
                        0, 1000, 0, step=10, label="Phased integration", info="the base model below this timestep"
                    )
                    highway = gr.Radio(["off", "all", "release", "plain"], value="all", label="Appearance highway")
                    beta = gr.Slider(0.5, 2, 1.1, step=0.05, label="Its scale")
                with gr.Row():
                    solver = gr.Dropdown(["ddim", "unipc", "dpm"], value="ddim", label="Solver")
                    number = gr.Slider(1, 100, 20, step=1, label="Its steps")
                    guidance = gr.Slider(0, 20, 4, step=0.5, label="Guidance scale")
                with gr.Row():
                    noise = gr.Number(1, label="Seed", precision=0, elem_id="noise")
                    checkpoint = gr.Dropdown([], label="Checkpoint", elem_id="checkpoint", **GROWING)
            with gr.Accordion("Mix with another run", open=False, elem_id="mix"):
                with gr.Row():
                    mixed = gr.Dropdown([("none", NOBODY)], value=NOBODY, label="Second motion", **GROWING)
                    share = gr.Slider(0, 2, 0.5, step=0.05, label="Its strength")
                with gr.Row():
                    other = gr.Dropdown([("none", NOBODY)], value=NOBODY, label="Appearance of", **GROWING)
                    likeness = gr.Slider(0, 2, 1, step=0.05, label="Its strength")
            sample = gr.Button("Sample", variant="primary", elem_id="sample")
            result = gr.HTML(elem_id="result")

        with gr.Column(elem_classes="step"):
            heading(5, "Take it with you", "Files for other programs, and the commands that do the same in a terminal.")
            kinds = gr.CheckboxGroup(
                [(title, kind) for kind, title in KINDS.items()], value=[*LORAS][:1], label="Files", elem_id="kinds"
            )
            prepare = gr.Button("Prepare the files", elem_id="prepare")
            files = gr.File(label="Ready to download", file_count="multiple", interactive=False, elem_id="files")
            commands = gr.Textbox(label="The commands", elem_id="commands", **SHELL)

        with gr.Column(elem_classes="step"):
            heading(6, "Gallery", "What was sampled here, the newest first.")
            gallery = gr.HTML(elem_id="gallery")

        state, dials = gr.State({}), [prior, pli, highway, beta, solver, number, guidance]
        choices = [clip, first, seconds, caption, method, steps, previewed, seed]

        @told
        def open_clip(name):
            length, taken, proposed, lines = desk.open_clip(name)
            length = round(length, 1)
            return (
                gr.update(maximum=max(0.1, length), value=0),
                gr.update(maximum=max(0.2, length), value=round(taken, 1)),
                proposed,
                lines,
                lines,
                desk.see(name, 0, taken),
            )

        @told
        def keep_upload(path):
            return gr.update(choices=desk.clips(), value=desk.upload(path))

        def command_of(*values):
            return desk.command(Choice(*values))

        @told
        def start(*values):
            key = desk.train(Choice(*values))
            return gr.update(choices=desk.entries(), value=key)

        @told
        def end(key):
            desk.stop(key)

        @told
        def continue_run(key):
            key = desk.go_on(key)
            return gr.update(choices=desk.entries(), value=key)

        @told
        def look(key, last):
            """Everything that a tick may change; what is as it was is left alone."""
            entries = desk.entries()
            keys = [name for _, name in entries]
            if not key or not (key in keys or key.startswith(QUEUED)):
                key = desk.first_key()
            view = desk.view(key)
            trained = [("none", NOBODY), *(entry for entry in entries if not entry[1].startswith(QUEUED))]
            now = {
                "run": (entries, view.key),
                "status": view.status,
                "curve": view.curve,
                "previews": view.previews,
                "buttons": (view.can_stop, view.can_go_on),
                "checkpoints": (view.key, view.checkpoints),
                "dials": (view.key, bool(view.checkpoints)),
                "others": trained,
            }

            def changed(*names):
                return any(now[name] != last.get(name) for name in names)

            own = desk.own_dials(view.key) if changed("dials") and view.checkpoints else None
            return [
                gr.update(choices=entries, value=view.key or None) if changed("run") else gr.skip(),
                view.status if changed("status") else gr.skip(),
                view.curve if changed("curve") else gr.skip(),
                view.previews if changed("previews") else gr.skip(),
                gr.update(interactive=view.can_stop) if changed("buttons") else gr.skip(),
                gr.update(interactive=view.can_go_on) if changed("buttons") else gr.skip(),
                gr.update(choices=[(str(n), n) for n in view.checkpoints], value=max(view.checkpoints, default=None))
                if changed("checkpoints")
                else gr.skip(),
                *(gr.update(choices=trained) if changed("others") else gr.skip() for _ in range(2)),
                *([own[name] for name in DIALS] if own else [gr.skip()] * len(DIALS)),
                desk.commands(view.key) if changed("checkpoints") else gr.skip(),
                now,
            ]

        @told
        def draw(key, lines, noise, index, strength, mixed, share, other, likeness, *values):
            wish = desk.wish(
                key, lines, noise, index, strength, dict(zip(DIALS, values)), (mixed, share), (other, likeness)
            )
            for html in desk.sample(wish):
                yield html, gr.skip(), gr.skip()
            yield html, desk.commands(key), desk.gallery()

        @told
        def make_files(key, wanted, index):
            return desk.files(key, wanted, index)

        watched = [run, status, curve, previews, stop, go_on, checkpoint, mixed, other, *dials, commands, state]
        opened = [first, seconds, caption, previewed, prompts, seen]
        page.load(lambda: gr.update(choices=desk.clips()), None, clip, **QUIET)
        page.load(open_clip, clip, opened, **QUIET)
        page.load(look, [run, state], watched, **QUIET)
        page.load(desk.gallery, None, gallery, **QUIET)
        gr.Timer(TICK).tick(look, [run, state], watched, **QUIET)
        clip.input(open_clip, clip, opened, **PRIVATE)
        upload.upload(keep_upload, upload, clip, **PRIVATE).success(open_clip, clip, opened, **PRIVATE)
        for slider in (first, seconds):
            slider.release(told(desk.see), [clip, first, seconds], seen, **PRIVATE)
        speed.input(told(desk.steps), speed, steps, **PRIVATE)
        gr.on([each.change for each in choices], command_of, choices, command, **QUIET)
        train.click(start, choices, run, **PRIVATE)
        stop.click(end, run, None, **PRIVATE)
        go_on.click(continue_run, run, run, **PRIVATE)
        sample.click(
            draw,
            [run, prompts, noise, checkpoint, strength, mixed, share, other, likeness, *dials],
            [result, commands, gallery],
            concurrency_limit=1,
            concurrency_id="model",
            **PRIVATE,
        )
        prepare.click(make_files, [run, kinds, checkpoint], files, concurrency_id="model", **PRIVATE)
    return page
