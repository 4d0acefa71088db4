"""The six numbered steps of the page: of which Gradio components each is made and what it says. No step knows another.

Each is made inside the page's Blocks; its components are its attributes. What they do is wired in page.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr

from configs.fields import KEYS
from infer.choices import words_of
from scripts.studio.desk import Desk
from scripts.studio.recipe import METHODS, SPEEDS
from scripts.studio.sampling import dials_of_model
from scripts.studio.takeaway import KINDS, LORAS

NOBODY = ("none", "")  # an entry of a list of other runs: no run
SHELL = {"interactive": False, "lines": 3, "max_lines": 40, "buttons": ["copy"]}
LATEST = KEYS["pli_threshold"].metadata["high"]  # timestep of phased integration
GROWING = {"interactive": True, "allow_custom_value": True}  # a list that grows: the desk checks what is chosen


@contextmanager
def numbered(number: int, title: str, hint: str) -> Iterator[None]:
    """A box of the page with a heading."""
    with gr.Column(elem_classes="step"):
        gr.HTML(f'<h2><b>{number}</b>{escape(title)}</h2><p class="hint">{escape(hint)}</p>')
        yield


class ClipStep:
    """Which clip, which part of it, and its caption."""

    def __init__(self, desk: Desk):
        with numbered(1, "Choose a clip", "Two seconds of one clear motion are enough. Take an example, or your own."):
            with gr.Row():
                self.clip = gr.Dropdown(
                    desk.clips(), value=desk.clips()[0][1], label="Clip", elem_id="clip", scale=2, **GROWING
                )
                self.upload = gr.UploadButton(
                    "Upload your own clip", file_count="single", elem_id="upload", scale=1, min_width=200
                )
            with gr.Row():
                self.first = gr.Slider(0, 10, 0, step=0.1, label="From second", elem_id="first")
                self.seconds = gr.Slider(0.1, 10, 1, step=0.1, label="Seconds taken", elem_id="seconds")
            self.seen = gr.HTML(elem_id="seen", min_height=200)
            self.caption = gr.Textbox(
                label="Caption: what is seen in the clip (the motion itself needs no words)",
                placeholder="A car is driving on a road.",
                elem_id="caption",
            )


class LearnStep:
    """The method, how long, and the command of the training; it cannot start without a model."""

    def __init__(self, desk: Desk, can_train: bool):
        hint = "The first method is right for most clips. Quick shows where it goes."
        with numbered(2, "Choose how to learn", hint):
            self.method = gr.Radio(
                [(f"{title}: {advice}", name) for name, (title, advice) in METHODS.items()],
                value="tap",
                label="Method",
                elem_id="method",
            )
            self.speed = gr.Radio(
                [(f"{name} ({desk.steps(name)} steps)", name) for name in SPEEDS],
                value="quick",
                label="Speed",
                elem_id="speed",
            )
            self.previewed = gr.Textbox(
                label="Prompts of the previews, one a line (the first two are drawn while it learns)",
                lines=2,
                elem_id="previewed",
            )
            with gr.Accordion("More, and the command", open=False, elem_id="more"):
                with gr.Row():
                    self.steps = gr.Number(desk.steps("quick"), label="Steps", precision=0, elem_id="steps")
                    self.seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                self.command = gr.Textbox(label="The command of this training", elem_id="command", **SHELL)
            self.train = gr.Button("Train", variant="primary", interactive=can_train, elem_id="train")


class WatchStep:
    """A training or a run: its state, its loss and its previews."""

    def __init__(self):
        hint = "A closed tab harms nothing. Stop keeps a checkpoint, Go on continues from it."
        with numbered(3, "Watch it learn", hint):
            self.run = gr.Dropdown([], label="Training or run (all of outputs/train)", elem_id="run", **GROWING)
            self.status = gr.HTML(elem_id="status")
            self.curve = gr.HTML(elem_id="curve")
            self.previews = gr.HTML(elem_id="previews")
            with gr.Row():
                self.stop = gr.Button("Stop", interactive=False, elem_id="stop")
                self.go_on = gr.Button("Go on", interactive=False, elem_id="go_on")


class SampleStep:
    """New prompts under the chosen run, and all dials; `dials` are by their names in infer/infer.py."""

    def __init__(self, desk: Desk):
        own = dials_of_model(desk.model)
        with numbered(4, "Sample", "New prompts, with the motion. The dials act at once, without training again."):
            self.prompts = gr.Textbox(label="Prompts, one a line", lines=3, elem_id="prompts")
            with gr.Row():
                self.strength = gr.Slider(
                    0, 2, 1, step=0.05, label="Motion strength", info="0 is the base model", elem_id="strength"
                )
                prior = gr.Slider(0, 1, 0, step=0.05, label="Noise prior", info="start nearer to the clip's layout")
            with gr.Accordion("More dials", open=False, elem_id="dials"):
                with gr.Row():
                    pli = gr.Slider(
                        0, LATEST, 0, step=10, label="Phased integration", info="the base model below this timestep"
                    )
                    highway = gr.Radio(["off", *words_of("highway")], value="all", label="Appearance highway")
                    beta = gr.Slider(0.5, 2, 1.1, step=0.05, label="Its scale")
                with gr.Row():
                    solver = gr.Dropdown(list(words_of("solver")), value=own["solver"], label="Solver")
                    num_steps = gr.Slider(1, 100, own["num_steps"], step=1, label="Its steps")
                    guidance = gr.Slider(0, 20, own["guidance_scale"], step=0.5, label="Guidance scale")
                with gr.Row():
                    self.noise = gr.Number(1, label="Seed", precision=0, elem_id="noise")
                    self.checkpoint = gr.Dropdown([], label="Checkpoint", elem_id="checkpoint", **GROWING)
            with gr.Accordion("Mix with another run", open=False, elem_id="mix"):
                with gr.Row():
                    self.mixed = gr.Dropdown([NOBODY], value=NOBODY[1], label="Second motion", **GROWING)
                    self.share = gr.Slider(0, 2, 0.5, step=0.05, label="Its strength")
                with gr.Row():
                    self.other = gr.Dropdown([NOBODY], value=NOBODY[1], label="Appearance of", **GROWING)
                    self.likeness = gr.Slider(0, 2, 1, step=0.05, label="Its strength")
            self.sample = gr.Button("Sample", variant="primary", elem_id="sample")
            self.result = gr.HTML(elem_id="result")
        self.dials = {
            "noise_prior": prior,
            "pli_threshold": pli,
            "highway": highway,
            "beta": beta,
            "solver": solver,
            "num_steps": num_steps,
            "guidance_scale": guidance,
        }


class TakeStep:
    """Files for other programs, and the commands that do the same."""

    def __init__(self):
        hint = "Files for other programs, and the commands that do the same in a terminal."
        with numbered(5, "Take it with you", hint):
            self.kinds = gr.CheckboxGroup(
                [(title, kind) for kind, title in KINDS.items()], value=[*LORAS][:1], label="Files", elem_id="kinds"
            )
            self.prepare = gr.Button("Prepare the files", elem_id="prepare")
            self.files = gr.File(label="Ready to download", file_count="multiple", interactive=False, elem_id="files")
            self.commands = gr.Textbox(label="The commands", elem_id="commands", **SHELL)


class GalleryStep:
    """The newest videos."""

    def __init__(self):
        with numbered(6, "Gallery", "What was sampled here, the newest first."):
            self.gallery = gr.HTML(elem_id="gallery")
