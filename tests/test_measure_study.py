"""The graded measures at their floor and ceiling, and the table of it."""

import pytest

from configs.errors import UserError
from configs.paths import POCKET
from data.world import parse_prompt
from infer.measure.world_definitions import GRADED
from scripts.artefacts.measure_study import REPEATS, TITLE, body, make, measure, scenes
from scripts.artefacts.results_file import put_section, read_sections


@pytest.fixture(scope="module")
def found():
    return measure(scenes(smoke=True), lambda frames: frames)


def test_scenes_share_no_name_with_their_reference():
    for scene, reference in scenes(smoke=False):
        wanted, there = parse_prompt(scene.caption), parse_prompt(reference.prompt)
        assert all(wanted[name] != there[name] for name in ("shape", "colour", "background"))
        assert scene.motion == reference.scene.motion


def test_drawn_clips_are_at_the_floor_and_the_references_own_at_the_ceiling(found):
    floor, ceiling, milliseconds = found
    assert set(floor) == set(GRADED) and milliseconds > 0
    assert all(len(values) == REPEATS for of in floor.values() for values in of)
    middle = {name: sum(of[0]) / len(of[0]) for name, of in floor.items() if of}
    assert middle["appearance_match"] > 0.95 and abs(middle["appearance_pull"]) < 0.05
    assert middle["correlation"] > 0.999 and middle["timing_error"] < 0.01 and middle["flicker"] == 0
    high = {name: of[0][0] for name, of in ceiling.items() if of}
    assert high["appearance_pull"] == pytest.approx(1, abs=0.05) and high["appearance_match"] < 0.5
    assert high["timing_error"] > 0.08 and high["flicker"] > 5 and high["background_noise"] > 10


def test_the_table_has_a_row_for_every_graded_measure(found):
    text = body((found, found), True, "made by a test")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(GRADED) and "SMOKE RUN" in text and "made by a test" in text
    assert all(len(row.split(" | ")) == 7 for row in rows)


def test_the_study_goes_through_the_models_vae_and_writes_its_table_and_section(tmp_path):
    """Through the VAE the floor is higher than as drawn, since what it blurs is no longer the prompt's exactly."""
    results = tmp_path / "RESULTS.md"
    put_section(results, ("table1", "pocketscope"), "Table 1", "kept\n")
    table = make(tmp_path / "measures", results, model=POCKET, smoke=True, provenance="made by a test")
    sections = read_sections(results)
    assert table == tmp_path / "measures" / "table.md" and list(sections) == [
        ("table1", "pocketscope"),
        ("measures", "world"),
    ]
    text, section = table.read_text(), sections["measures", "world"]
    assert TITLE in section and text.split("\n\n", 1)[1] in section and "SMOKE RUN" in section
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in text.splitlines() if row.startswith("| ")}
    floor, floor_vae = (float(cells["edge error ↓"][column].split()[0]) for column in (1, 2))
    assert floor < 3 < floor_vae < 30


def test_a_study_without_a_model_of_the_world_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="measures: its second half goes through the VAE of a model of the toy world"):
        make(tmp_path, tmp_path / "R.md", model=tmp_path / "nowhere", smoke=True, provenance="")
    assert list(tmp_path.iterdir()) == []
