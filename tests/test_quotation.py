"""Rows of another model's section of RESULTS.md beside an artefact: which, for which motions, and where none are."""

import html
from types import SimpleNamespace

import pytest

from scripts import reproduce as command
from scripts.artefacts import production
from scripts.artefacts.artefact import Beside
from scripts.artefacts.catalogue import ARTEFACTS
from scripts.artefacts.page import write_page
from scripts.artefacts.production import ROOT, reproduce
from scripts.artefacts.quotation import quote
from scripts.artefacts.report import body
from scripts.artefacts.result import Cost, Result
from scripts.artefacts.results_file import markdown, markdown_table, put_section, read_sections
from scripts.artefacts.testbed import WORLD_ROLES

WANTED = Beside("the other model", "motions", "other", ("a | b", "c"))
TABLE = [
    ["each motion", "pause", "orbit", "zigzag"],
    ["a | b", "1", "2", "3"],
    ["no", "4", "5", "6"],
    ["c", "7", "8", "9"],
]


@pytest.fixture
def results(tmp_path):
    text = f"Shows x.\n\n{markdown('Motion * / b')}:\n\n{markdown_table(TABLE)}\n\nWhat they are made of:\n\n"
    text += "| x |\n|---|\n\n2026-01-02, commit abc1234, trained at 0. Cost: 1."
    put_section(tmp_path / "RESULTS.md", ("motions", "other"), "Motions", f"{text}\n")
    return tmp_path / "RESULTS.md"


def test_rows_are_quoted_for_the_motions_that_both_have(results):
    found = quote(results, WANTED, ["orbit", "spiral", "pause"])
    assert found.rows == [["each motion", "pause", "orbit"], ["a | b", "1", "2"], ["c", "7", "8"]]
    assert found.source == (
        "Beside it the other model, on the same motions, as the section motions other of RESULTS.md has it "
        "(2026-01-02, commit abc1234). Motion * / b:"
    )


def test_nothing_is_quoted_where_there_is_nothing(results, tmp_path):
    assert quote(results, None, ["orbit"]) is None
    assert quote(results, WANTED, ["spiral"]) is None
    assert quote(results, Beside("w", "motions", "other", ("z",)), ["orbit"]) is None
    assert quote(results, Beside("w", "motions", "another", ("c",)), ["orbit"]) is None
    assert quote(tmp_path / "none.md", WANTED, ["orbit"]) is None


def transformer(folder):
    """A result of `dit`: a video of one variant on every motion."""
    bed = SimpleNamespace(name="x", world=True, columns=("motion_success",), details=(), roles=WORLD_ROLES)
    key = {"group": "g", "run": "r", "prompt": "a", "seed": 0, "motion_success": 1.0, "path": folder / "none.mp4"}
    rows = [{**key, "variant": "q", "motion": name, "reference": name} for name in ARTEFACTS["dit"].motions]
    return Result("dit", bed, False, "", "", "", [], Cost(0, 0, 0, 0, ()), rows)


def test_the_command_quotes_from_the_file_of_results_that_it_updates(tmp_path, monkeypatch):
    results, seen = tmp_path / "R.md", []
    shipped = read_sections(ROOT / "RESULTS.md")["motions", "pocketscope"]
    results.write_text(shipped)
    monkeypatch.setattr(production, "make_result", lambda *given: transformer(tmp_path))
    monkeypatch.setattr(production, "run_all", lambda *given: {})
    monkeypatch.setattr(production, "write_artefact", lambda result, *given: seen.append(result) or tmp_path)
    model = str(ROOT / "models" / "pocketscope_dit")
    argv = ["dit", "--model", model, "--world", "--smoke", "--output_dir", str(tmp_path), "--results", str(results)]
    reproduce(command.parse(argv), ["dit"], [], argv)
    assert "section motions pocketscope of R.md" in seen[0].quoted.source
    assert "section motions pocketscope of R.md" in results.read_text()


def test_the_transformers_page_has_the_u_nets_rows_of_its_motions(tmp_path):
    """From the file that this repository ships: both names that are asked for are rows there, on every motion."""
    artefact, found = ARTEFACTS["dit"], transformer(tmp_path)
    assert set(artefact.beside.rows) <= {variant.name for variant in ARTEFACTS[artefact.beside.artefact].variants}
    assert "the U-Net (PocketScope)" not in body(found)
    found.quoted = quote(ROOT / "RESULTS.md", artefact.beside, artefact.motions)
    assert sorted(found.quoted.rows[0][1:]) == sorted(artefact.motions)
    assert {row[0] for row in found.quoted.rows[1:]} == set(artefact.beside.rows)
    for text in (body(found), html.unescape(write_page(found, tmp_path).read_text())):
        assert "Beside it the U-Net (PocketScope), on the same motions" in text
        assert all(cell in text for row in found.quoted.rows for cell in row)
