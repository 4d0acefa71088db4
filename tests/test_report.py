"""What a table, page and picture show of a result: only columns that hold something, all of them legible."""

import html
from types import SimpleNamespace

import pytest

from scripts.artefacts import plots
from scripts.artefacts.artefact import REPORTED
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.page import write_page
from scripts.artefacts.report import body
from scripts.artefacts.result import Cost, Result
from scripts.artefacts.results_file import CHANGES, put_section, read_sections, write_sections
from scripts.artefacts.testbed import WORLD_COLUMNS, WORLD_DETAILS, WORLD_ROLES

from conftest import ROOT


def result(name, columns=WORLD_COLUMNS):
    """One video of each variant, with every measure at 0.5."""
    bed = SimpleNamespace(name="x", world=True, columns=columns, details=WORLD_DETAILS, roles=WORLD_ROLES)
    key = {"group": "g", "run": "r", "prompt": "a", "seed": 0, "motion": "m", "reference": "m", "path": "none.mp4"}
    rows = [
        {**key, "variant": variant.name, **dict.fromkeys((*columns, *WORLD_DETAILS), 0.5)}
        for variant in ARTEFACTS[name].variants
    ]
    return Result(name, bed, False, "", "", "", [], Cost(0, 0, 0, 0, ()), rows)


@pytest.mark.parametrize(("name", "times"), [("table1", 1), ("guidance", 0)])
def test_what_the_paper_reports_has_a_column_where_it_reports_something(name, times, tmp_path, monkeypatch):
    """In the first table alone: what the graded measures are made of is no measure of the paper's."""
    monkeypatch.setattr("scripts.artefacts.page._references", lambda result: [])
    found = result(name)
    headers = [line for line in body(found).splitlines() if line.startswith("| g |")]
    assert len(headers) == 2 and [REPORTED in header for header in headers] == [bool(times), False]
    page = html.unescape(write_page(found, tmp_path).read_text())
    assert page.count(f"<th>paper, {REPORTED}</th>") == times
    for text in (body(found), page):
        for reported in {variant.reported for variant in ARTEFACTS[name].variants} - {""}:
            assert reported in text


@pytest.mark.parametrize("count", [1, 5, 6, len(WORLD_COLUMNS)])
def test_a_picture_has_a_panel_for_each_measure_and_at_most_five_beside_each_other(count, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, folder: seen.append(figure) or [])
    plots.write_plots(result("guidance", WORLD_COLUMNS[:count]), tmp_path)
    panels = [axes for axes in seen[0].axes if axes.get_title()]
    assert len(panels) == count
    grid = panels[0].get_subplotspec().get_gridspec()
    assert grid.ncols <= 5 and grid.nrows * grid.ncols - count < grid.ncols
    assert all(len(axes.lines) + len(axes.containers) for axes in panels)


def test_a_section_says_what_has_changed_since_it_was_made_until_it_is_made_again(tmp_path):
    path, made = tmp_path / "RESULTS.md", {"table3": "", "table4": " 1", "dit": " 2"}
    old = {(name, "x"): f"<!-- begin {name} x{on} -->\nold\n<!-- end {name} x -->\n" for name, on in made.items()}
    write_sections(path, old)
    lines = [line for line in path.read_text().splitlines() if line.startswith("- ")]
    said = {change.before: [line for line in lines if change.before in line] for change in CHANGES}
    assert said[CHANGES[0].before] == [f"- Table 3: {CHANGES[0].before}."]
    assert said[CHANGES[1].before] == [f"- Table 3, Table 4: {CHANGES[1].before}."]
    assert said[CHANGES[2].before] == [f"- Transformer: {CHANGES[2].before}."], "it concerns no other"
    put_section(path, ("table3", "x"), "Table 3", "new\n")
    assert all("Table 3" not in line for line in path.read_text().splitlines() if line.startswith("- "))
    assert read_sections(path).keys() == old.keys() and "## Tried, and not taken" in path.read_text()


def test_what_surrounds_the_sections_of_the_file_of_results_is_of_today(tmp_path):
    """Its opening, its lists and its end are templates and gathered from the sections."""
    results = ROOT / "RESULTS.md"
    write_sections(tmp_path / "again.md", read_sections(results))
    assert (tmp_path / "again.md").read_text() == results.read_text(), (
        "write it again: write_sections(RESULTS.md, read_sections(RESULTS.md))"
    )
