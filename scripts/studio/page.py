"""The page itself: one column of numbered steps in Gradio (steps.py), wired to the desk."""

import functools
import inspect
from collections.abc import Callable
from html import escape

import gradio as gr

from scripts.studio.desk import QUEUED, Choice, Desk, sentence
from scripts.studio.steps import NOBODY, ClipStep, GalleryStep, LearnStep, SampleStep, TakeStep, WatchStep

TICK = 1.0  # seconds between looks at a training
PRIVATE = {"api_visibility": "private"}
QUIET = {**PRIVATE, "show_progress": "hidden", "queue": False}
MODEL = {**PRIVATE, "concurrency_id": "model"}  # one at a time: the model is loaded once


def told(handler: Callable) -> Callable:
    """What a person can mend ends in one sentence on the page, as text; a defect stays an error."""

    def raised(error: Exception):
        text = sentence(error)
        return error if text is None else gr.Error(escape(text), duration=30, print_exception=False)

    if inspect.isgeneratorfunction(handler):

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


def build(desk: Desk) -> gr.Blocks:
    """The page of a desk, not yet served."""
    with gr.Blocks(title="Motion customization", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as blocks:
        page = Page(desk)
        page.wire_clip()
        page.wire_training(blocks)
        page.wire_sampling(blocks)
    return blocks


class Page:
    """The steps of one page and what happens in them; made inside its Blocks.

    A handler takes the values of its inputs and returns those of its outputs, or a dictionary of the outputs that
    change.
    """

    def __init__(self, desk: Desk):
        self.desk, problem = desk, desk.model_problem()
        gr.HTML(
            '<div class="title"><h1>Give a video model your motion</h1><p class="lead">One clip of a motion in, new '
            "videos with that motion out, without the clip's appearance. Everything runs on this machine, and every "
            f"step is a command that you can take along. Model: <code>{escape(desk.model)}</code></p></div>"
        )
        gr.HTML(f'<p class="note bad">{escape(problem)}</p>' if problem else "", visible=bool(problem))
        self.clip, self.learn, self.watch = ClipStep(desk), LearnStep(desk, can_train=not problem), WatchStep()
        self.draw, self.take, self.shown = SampleStep(desk), TakeStep(), GalleryStep()
        self.last = gr.State({})  # what the last look saw
        clip = self.clip  # what opening a clip fills in:
        self.opened = [clip.first, clip.seconds, clip.caption, self.learn.previewed, self.draw.prompts, clip.seen]

    def wire_clip(self) -> None:
        """Step 1: a chosen or uploaded clip is opened, and a moved slider shows its part of the clip."""
        step = self.clip
        step.clip.input(self.open_clip, step.clip, self.opened, **PRIVATE)
        uploaded = step.upload.upload(self.keep_upload, step.upload, step.clip, **PRIVATE)
        uploaded.success(self.open_clip, step.clip, self.opened, **PRIVATE)
        for slider in (step.first, step.seconds):
            slider.release(told(self.desk.see), [step.clip, step.first, step.seconds], step.seen, **PRIVATE)

    def wire_training(self, blocks: gr.Blocks) -> None:
        """Steps 2 and 3: every choice is told as a command, and a clock looks at the training."""
        clip, learn, watch, draw = self.clip, self.learn, self.watch, self.draw
        choices = [clip.clip, clip.first, clip.seconds, clip.caption]
        choices += [learn.method, learn.steps, learn.previewed, learn.seed]
        learn.speed.input(told(self.desk.steps), learn.speed, learn.steps, **PRIVATE)
        gr.on([each.change for each in choices], self.command_of, choices, learn.command, **QUIET)
        learn.train.click(self.start, choices, watch.run, **PRIVATE)
        watch.stop.click(self.stop, watch.run, None, **PRIVATE)
        watch.go_on.click(self.go_on, watch.run, watch.run, **PRIVATE)

        changing = [watch.run, watch.status, watch.curve, watch.previews, watch.stop, watch.go_on]
        changing += [draw.checkpoint, draw.mixed, draw.other, *draw.dials.values(), self.take.commands, self.last]
        blocks.load(lambda: gr.update(choices=self.desk.clips()), None, clip.clip, **QUIET)
        blocks.load(self.open_clip, clip.clip, self.opened, **QUIET)
        blocks.load(self.look, [watch.run, self.last], changing, **QUIET)
        gr.Timer(TICK).tick(self.look, [watch.run, self.last], changing, **QUIET)

    def wire_sampling(self, blocks: gr.Blocks) -> None:
        """Steps 4 to 6."""
        run, draw, take = self.watch.run, self.draw, self.take
        asked = [run, draw.prompts, draw.noise, draw.checkpoint, draw.strength]
        asked += [draw.mixed, draw.share, draw.other, draw.likeness, *draw.dials.values()]
        draw.sample.click(
            self.sample, asked, [draw.result, take.commands, self.shown.gallery], concurrency_limit=1, **MODEL
        )
        take.prepare.click(self.make_files, [run, take.kinds, draw.checkpoint], take.files, **MODEL)
        blocks.load(self.desk.gallery, None, self.shown.gallery, **QUIET)

    @told
    def open_clip(self, name):
        length, taken, proposed, lines = self.desk.open_clip(name)
        length = round(length, 1)
        return (
            gr.update(maximum=max(0.1, length), value=0),
            gr.update(maximum=max(0.2, length), value=round(taken, 1)),
            proposed,
            lines,
            lines,
            self.desk.see(name, 0, taken),
        )

    @told
    def keep_upload(self, path):
        return gr.update(choices=self.desk.clips(), value=self.desk.upload(path))

    def command_of(self, *values):
        return self.desk.command(Choice(*values))

    @told
    def start(self, *values):
        key = self.desk.train(Choice(*values))
        return gr.update(choices=self.desk.entries(), value=key)

    @told
    def stop(self, key):
        self.desk.stop(key)

    @told
    def go_on(self, key):
        key = self.desk.go_on(key)
        return gr.update(choices=self.desk.entries(), value=key)

    @told
    def look(self, key, last):
        """Everything that a tick of the clock may change; what is as it was is left alone."""
        desk, watch, draw = self.desk, self.watch, self.draw
        entries = desk.entries()
        if not key or not (key.startswith(QUEUED) or key in [name for _, name in entries]):
            key = desk.first_key()
        view = desk.view(key)
        trained = [NOBODY, *(entry for entry in entries if not entry[1].startswith(QUEUED))]
        now = {
            "run": (entries, view.key),
            "status": view.status,
            "curve": view.curve,
            "previews": view.previews,
            "buttons": (view.can_stop, view.can_go_on),
            "checkpoints": (view.key, view.checkpoints),
            "others": trained,
        }
        changed = {name for name in now if now[name] != last.get(name)}
        updates = {self.last: now}
        updates |= {getattr(watch, name): now[name] for name in changed & {"status", "curve", "previews"}}
        if "run" in changed:
            updates[watch.run] = gr.update(choices=entries, value=view.key or None)
        if "buttons" in changed:
            updates[watch.stop] = gr.update(interactive=view.can_stop)
            updates[watch.go_on] = gr.update(interactive=view.can_go_on)
        if "others" in changed:
            updates |= {draw.mixed: gr.update(choices=trained), draw.other: gr.update(choices=trained)}
        if "checkpoints" in changed:
            numbers = [(str(number), number) for number in view.checkpoints]
            updates[draw.checkpoint] = gr.update(choices=numbers, value=max(view.checkpoints, default=None))
            updates[self.take.commands] = desk.commands(view.key)
            before, had = last.get("checkpoints", ("", ()))
            if view.checkpoints and (view.key != before or not had):  # a run's own values, once it can be sampled
                own = desk.own_dials(view.key)
                updates |= {dial: own[name] for name, dial in draw.dials.items() if name in own}
        return updates

    @told
    def sample(self, key, lines, noise, index, strength, mixed, share, other, likeness, *dials):
        dials = dict(zip(self.draw.dials, dials, strict=True))
        wish = self.desk.wish(key, lines, noise, index, strength, dials, (mixed, share), (other, likeness))
        for html in self.desk.sample(wish):
            yield html, gr.skip(), gr.skip()
        yield html, self.desk.commands(key), self.desk.gallery()

    @told
    def make_files(self, key, wanted, index):
        return self.desk.files(key, wanted, index)
