"""What the page shows of runs that are damaged or gone: a sentence, while every other run can still be chosen."""

import pytest

from configs.errors import UserError
from scripts.studio.desk import Desk
from scripts.studio.trainings import Training

from conftest import ROOT

WHOLE = "max_train_steps: 40\ntrain_data: {single_video_path: clip.mp4, single_video_prompt: a clip}\n"
DAMAGED = {"an unknown key": f"no_such_key: 1\n{WHOLE}", "no YAML": "train_data: [", "no text": "\0", "empty": ""}


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path, str(ROOT / "models/pocketscope"))
    desk.trainings.close()
    yield desk


def make_run(desk, number, config):
    folder = desk.places.train / f"a/train_{number}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    return f"a/train_{number}"


@pytest.mark.parametrize("config", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_newest_run_is_told_in_its_place(desk, config):
    whole, damaged = make_run(desk, 1, WHOLE), make_run(desk, 2, config)
    assert desk.first_key() == damaged
    view = desk.view(damaged)
    assert view.key == damaged and 'class="note bad"' in view.status and "\n" not in view.status
    assert not view.can_stop and not view.can_go_on and view.checkpoints == ()
    assert "Stopped after step 0 of 40" in desk.view(whole).status


def test_a_training_whose_configuration_is_damaged_can_still_be_stopped(desk):
    key = make_run(desk, 1, DAMAGED["an unknown key"])
    desk.trainings.all.append(Training([], desk.places.train / "a"))
    view = desk.view(key)
    assert "no_such_key" in view.status and view.can_stop
    desk.stop(key)
    assert not desk.view(key).can_stop


@pytest.mark.parametrize("key", ["training:99", "a/train_9"])
def test_what_an_older_tab_still_shows_is_told_as_gone(desk, key):
    """A second start of the page knows no training of the first."""
    assert "run: it is no longer there; choose another one" in desk.view(key).status


def test_dials_of_a_run_that_cannot_be_sampled_stay_as_they_are(desk):
    """The page asks for them unasked; whoever presses Sample is told."""
    key = make_run(desk, 1, WHOLE)
    (desk.places.train / key / "checkpoint-1").mkdir()
    assert desk.own_dials(key) == {}
    with pytest.raises(UserError, match="checkpoint-1"):
        desk.wish(key, "a car", 1, None, 1.0, {})


@pytest.mark.parametrize("broken", ["configuration", "checkpoint"])
def test_every_tick_of_the_clock_lists_the_other_runs(desk, broken):
    gr = pytest.importorskip("gradio", reason="the page needs Gradio: pip install -r requirements-app.txt")
    from scripts.studio.page import Page

    whole, newest = make_run(desk, 1, WHOLE), make_run(desk, 2, WHOLE if broken == "checkpoint" else "no_such_key: 1")
    if broken == "checkpoint":
        (desk.places.train / newest / "checkpoint-1").mkdir()
    with gr.Blocks():
        page = Page(desk)
    updates = page.look(None, {})
    assert updates[page.watch.run]["value"] == newest
    assert whole in [name for _, name in updates[page.watch.run]["choices"]]
    assert "of 40" in page.look(whole, updates[page.last])[page.watch.status]
