"""What happens when something on the page is pressed, without the page: plain values in, plain values out.

One desk serves every tab, so that all of them see the same trainings and the same loaded model.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError, ending, printable
from configs.files import check_writable, fresh_folder
from configs.paths import locate
from scripts.studio import gallery, library, markup, takeaway, uploads
from scripts.studio.excerpt import Excerpt, choose, default_seconds, measure
from scripts.studio.places import Places
from scripts.studio.recipe import METHODS, SPEEDS, Recipe, configuration, go_on
from scripts.studio.runs import Run, find_run, find_runs
from scripts.studio.sampling import Sampler, Wish
from scripts.studio.trainings import FAILED, FINISHED, OPEN, STOPPED, Training, Trainings
from scripts.studio.watch import View, view

QUEUED = "training:"  # begins the key of a training that has no run folder yet
MOST_STEPS = 100_000


@dataclass(frozen=True)
class Choice:
    """The state of the first two steps, as the page has it."""

    clip: str
    first: float
    seconds: float
    caption: str
    method: str
    steps: int
    prompts: str
    seed: int = 0


class Desk:
    """The page's state on this machine: places, model, queue and sampler."""

    def __init__(self, root: str | Path, model: str):
        self.places, self.model = Places.below(root), model
        check_writable(self.places.root)
        self.places.prepare()
        self.trainings = Trainings(self.places.train / ".training.lock")
        self.sampler = Sampler(self.places)
        self._sampled: dict[str, list[list[str]]] = {}

    def model_problem(self) -> str:
        """Why the model folder cannot be used, in one sentence; empty when it can."""
        from models.outline import skeleton

        try:
            skeleton(str(locate(self.model)))
        except UserError as error:
            return f"The model does not load: {printable(str(error))}"
        return ""

    # step 1: the clip

    def clips(self) -> list[tuple[str, str]]:
        """(title, name) of every clip that can be chosen."""
        return [(each.title, each.name) for each in library.offers(self.places)]

    def upload(self, path: str) -> str:
        """Keep an uploaded clip; returns its name."""
        return uploads.accept(Path(path), self.places).name

    def open_clip(self, name: str) -> tuple[float, float, str, str]:
        """Length in seconds, the seconds taken by default, the proposed caption, and prompts, one a line."""
        chosen, cfg = library.offer(name, self.places), configuration(self.model)
        length = measure(chosen.path)
        taken = default_seconds(length, cfg.train_data.n_sample_frames, cfg.train_data.fps)
        return length.seconds, taken, chosen.caption, "\n".join(library.prompts(chosen, self.model))

    def excerpt(self, name: str, first: float, seconds: float) -> tuple[Path, Excerpt]:
        """The clip's file and the cut that those seconds mean for the model."""
        path = library.offer(name, self.places).path
        frames = configuration(self.model).train_data.n_sample_frames
        return path, choose(path, measure(path), float(first or 0), float(seconds or 0), frames)

    def see(self, name: str, first: float, seconds: float) -> str:
        """What training will see of those seconds, as HTML: the very frames, read by the function that trains."""
        from data.sources import load_clips
        from infer.pictures import strip
        from infer.training.plan import plan
        from models.outline import snap_of

        path, cut = self.excerpt(name, first, seconds)
        cfg = configuration(self.model, path, cut.words())
        (clip,) = load_clips(cfg, snap_of(cfg.pretrained_model_path))
        lines = [line.replace(f"{path}", path.name) for line in plan(cfg)]
        return markup.clip(self.places.film(clip.frames, clip.fps), self.places.picture(strip(clip.frames)), lines)

    # step 2: the training

    def steps(self, speed: str) -> int:
        """Optimizer steps of a speed."""
        if speed not in SPEEDS:
            raise UserError(f"speed: there is no {speed!r}; choose {' or '.join(SPEEDS)}")
        return max(1, round(SPEEDS[speed] * configuration(self.model).max_train_steps))

    def recipe(self, choice: Choice) -> Recipe:
        """The checked choices. Raises UserError with the first thing that is wrong."""
        if choice.method not in METHODS:
            raise UserError(f"method: there is no {choice.method!r}; choose one of {', '.join(METHODS)}")
        steps = uploads.whole("steps", choice.steps, 1, MOST_STEPS)
        seed = uploads.whole("seed", choice.seed, 0, 2**63 - 1)
        path, cut = self.excerpt(choice.clip, choice.first, choice.seconds)
        caption, prompts = uploads.caption(choice.caption), uploads.prompts(choice.prompts)
        return Recipe(self.model, path, caption, cut, choice.method, steps, tuple(prompts), seed)

    def folder_of(self, choice: Choice) -> Path:
        """Where a training of those choices goes: a folder that does not exist yet."""
        path = self.places.train / f"{Path(choice.clip).stem}_{choice.method}"
        numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
        return path if not path.exists() else next(folder for folder in numbered if not folder.exists())

    def command(self, choice: Choice) -> str:
        """The training's command as it is typed into a terminal, or the sentence that says what is missing."""
        try:
            return takeaway.line(self.recipe(choice).words(self.folder_of(choice), self.places.cache))
        except UserError as error:
            return f"# {printable(str(error))}"

    def train(self, choice: Choice) -> str:
        """Put a training into the queue; returns its key."""
        if problem := self.model_problem():
            raise UserError(problem)
        recipe = self.recipe(choice)
        folder = fresh_folder(self.folder_of(choice))
        words = recipe.words(folder, self.places.cache)
        takeaway.keep_command(folder, words)
        return self._key(self.trainings.submit(words, folder))

    def stop(self, key: str) -> None:
        training = self._training(key)
        if training is None or training.state not in OPEN:
            raise UserError("stop: this training does not run; choose one that does")
        self.trainings.stop(training)

    def go_on(self, key: str) -> str:
        """Continue a run after its last checkpoint, or start a training anew that has none; returns its key."""
        training = self._training(key)
        if training is not None and training.state in OPEN:
            raise UserError("go on: this training runs already")
        if training is not None and (training.run is None or not Run(training.run, self.places.train).checkpoints()):
            return self._key(self.trainings.submit(training.words, training.folder))
        run = find_run(self.places, key)
        if not run.checkpoints():
            raise UserError("go on: this run has no checkpoint yet; train it again")
        return self._key(self.trainings.submit(go_on(run.path), run.path.parent, run.path))

    # step 3: what is shown of a run

    def entries(self) -> list[tuple[str, str]]:
        """(label, key) of the trainings that have no run folder yet, and of every run, the newest first."""
        queued = [
            (f"{each.folder.name} ({each.state})", self._key(each))
            for each in reversed(self.trainings.all)
            if each.run is None and each.state not in (STOPPED, FAILED, FINISHED)
        ]
        active = {each.run: each.state for each in self.trainings.all if each.run and each.state in OPEN}
        runs = find_runs(self.places)
        states = [f" ({active[run.path]})" if run.path in active else "" for run in runs]
        return queued + [(f"{run.name}{state}", run.name) for run, state in zip(runs, states)]

    def first_key(self) -> str | None:
        """What a tab shows when it opens: the training that goes on, else the newest run."""
        if self.trainings.current:
            return self._key(self.trainings.current)
        runs = find_runs(self.places)
        return runs[0].name if runs else None

    def view(self, key: str | None) -> View:
        """Everything about one run or training. A key of a training becomes its run's once that exists.

        What cannot be read is told as the state: the page asks every second, and other runs must stay in reach.
        """
        if not key:
            return View("", markup.note("Nothing was trained yet. Press Train above."))
        training = None
        try:
            training = self._training(key)
            if training is None:
                run = find_run(self.places, key)
            else:
                whole = training.run is not None and (training.run / "config.yaml").is_file()
                run, key = (Run(training.run, self.places.train) if whole else None), self._key(training)
            return view(key, training, run, self.trainings.place(training) if training else 0, self.places)
        except UserError as error:
            opened = training is not None and training.state in OPEN
            return View(key, markup.note(sentence(error), "bad"), can_stop=opened)

    # step 4: sampling

    def own_dials(self, key: str) -> dict[str, Any]:
        """The values that a run is sampled with unless a dial says otherwise; {} where it cannot: Sample says why."""
        try:
            own = self.sampler.own_dials(find_run(self.places, key))
        except UserError:
            return {}
        return own | {"pli_threshold": own["pli_threshold"] or 0}

    def wish(
        self,
        key: str | None,
        prompts: str,
        seed: int,
        checkpoint: int | None,
        strength: float,
        dials: dict[str, Any],
        mixed: tuple[str | None, float] = (None, 0.5),
        appearance: tuple[str | None, float] = (None, 1.0),
    ) -> Wish:
        """The checked request of step 4. Raises UserError with the first thing that is wrong."""
        run = self._trained(key)
        index = run.checkpoints()[-1] if checkpoint is None else checkpoint
        if index not in run.checkpoints():
            raise UserError(f"checkpoint: there is no checkpoint-{index} any more; choose another one")
        own = self.sampler.own_dials(run, index)
        dials = dict(dials)
        if not dials.get("pli_threshold") and not own["pli_threshold"]:
            dials["pli_threshold"] = None  # 0 on the page's slider: never
        others = [(find_run(self.places, name), float(share)) if name else None for name, share in (mixed, appearance)]
        seed = uploads.whole("seed", seed, 0, 2**63 - 1)
        return Wish(run, tuple(uploads.prompts(prompts)), seed, index, float(strength), dials, *others)

    def sample(self, wish: Wish) -> Iterator[str]:
        """The wish's videos as HTML, one more prompt each time."""
        rows, own = [], self.sampler.own_dials(wish.run, wish.checkpoint)
        yield markup.note("Sampling: the base model first, then the customized one.")
        for made in self.sampler.sample(wish):
            rows.append(gallery.pair(made, gallery.reference(wish.run, self.places), self.places))
            words = wish.base_words(self.places, own), wish.customized_words(self.places, own)
            self._sampled[wish.run.name] = list(words)
            yield "".join(rows)

    # steps 5 and 6: to take away, and the gallery

    def files(self, key: str | None, kinds: list[str], checkpoint: int | None = None) -> list[str]:
        """Files to download, made now."""
        run = self._trained(key)
        if not kinds:
            raise UserError("download: nothing is ticked; choose what to take")
        index = run.checkpoints()[-1] if checkpoint is None else checkpoint
        return [str(takeaway.prepare(kind, run, index, self.places)) for kind in kinds]

    def commands(self, key: str | None) -> str:
        """The commands that do the same in a terminal."""
        try:
            run = find_run(self.places, key or "")
        except UserError:
            return "# train first"
        checkpoints = run.checkpoints()
        last = checkpoints[-1] if checkpoints else None
        return takeaway.commands(run, self._sampled.get(run.name, []), last, self.places)

    def gallery(self) -> str:
        """The newest sampled videos with their prompts, as HTML."""
        return gallery.newest(self.places)

    def close(self) -> None:
        self.trainings.close()

    def _trained(self, key: str | None) -> Run:
        if not key or key.startswith(QUEUED):
            raise UserError("run: it has no checkpoint yet; wait for the first one, or choose another run")
        run = find_run(self.places, key)
        if not run.checkpoints():
            raise UserError("run: it has no checkpoint yet; wait for the first one, or choose another run")
        return run

    def _key(self, training: Training) -> str:
        run = training.run
        if run is not None and (run / "config.yaml").is_file():
            return Run(run, self.places.train).name
        return f"{QUEUED}{self.trainings.all.index(training)}"

    def _training(self, key: str | None) -> Training | None:
        key = key or ""
        if key.startswith(QUEUED):
            number = key.removeprefix(QUEUED)
            if number.isdecimal() and int(number) < len(self.trainings.all):
                return self.trainings.all[int(number)]
            raise UserError("run: it is no longer there; choose another one")
        return self.trainings.of(self.places.train / key)


def sentence(error: BaseException) -> str | None:
    """One sentence for a person; None for a defect of this project."""
    how = ending(error) if isinstance(error, Exception) else None
    return None if how is None else how[0].removeprefix("error: ").replace("\n", " ")
