"""Every command of every page, run as written on the embedded model; only the amount of work is cut."""

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest

from models.files.checkpoint import list_checkpoints
from scripts.artefacts.results_file import VERDICT, read_sections

from conftest import ROOT

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "configs/README.md",
    "configs/methods/README.md",
    "models/README.md",
]
TEXT = {page: (ROOT / page).read_text() for page in PAGES}
BLOCKS = [block for text in TEXT.values() for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line]
COMMANDS = [shlex.split(line, comments=True) for line in dict.fromkeys(LINES)]
MOST_README_LINES = 170  # what a newcomer finishes
LESS = ["max_train_steps=2", "inversion_steps=2", "validation_data.sample_preview=false"]


def run(words: list[str]) -> list[str]:
    """Run a Python command in this process (the imports are already paid for); returns stdout's lines."""
    argv, path = sys.argv, list(sys.path)
    sys.argv, printed = words, io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as end:
        assert not end.code, printed.getvalue()
    finally:
        sys.argv, sys.path[:] = argv, path
    return printed.getvalue().splitlines()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two short runs that stand for the RUN and OTHER_RUN of the README; no command changes them."""
    runs, tmp_path = {}, tmp_path_factory.mktemp("readme")
    for name in ("RUN", "OTHER_RUN"):
        words = [
            "train.py",
            "--config",
            str(ROOT / "configs/car.yaml"),
            *LESS,
            f"output_dir={tmp_path / name}",
            f"cache_dir={tmp_path / 'cache'}",
            "pretrained_model_path=" + str(ROOT / "models/pocketscope"),
            "--config",
            str(ROOT / "configs/pocket.yaml"),
        ]
        (runs[name],) = run(words)
    return runs


def python_words(words: list[str]) -> list[str] | None:
    return words[1:] if words[0] in ("python", "python3") else None


def test_every_command_is_of_a_kind_that_is_run_here():
    kinds = {words[0] if not python_words(words) else python_words(words)[0] for words in COMMANDS}
    assert [".", ".venv/bin/activate"] in COMMANDS  # the environment that scripts/setup.sh makes
    assert kinds <= {
        "bash",
        "hf",
        ".",
        "torchrun",
        "ruff",  # run by .ci/run
        "-m",  # pytest on single files: this run holds them
        "train.py",
        "infer/infer.py",
        "scripts/convert.py",
        "scripts/evaluate.py",
        "scripts/reproduce.py",
    }


def test_the_readme_is_short_enough_to_be_finished():
    assert len(TEXT["README.md"].splitlines()) <= MOST_README_LINES


CLAIMS = {  # a row of its table -> where RESULTS.md rules on it, and on which motions
    "purified adaptation keeps the appearance better than all layers": (
        "table4", "TAP improves appearance over the baseline", "re-timing"),
    "the full method leaks less than adapting all layers": (
        "table4", "the full method leaks less than the baseline", "re-timing"),
    "TAP with AH moves no worse, for a re-timing": (
        "motions", "TAP + AH (default) moves no worse than MotionDirector", "re-timing"),
    "the full method moves no worse, for a re-timing": (
        "table4", "the full method moves no worse than the baseline", "re-timing"),
    "TAP with AH moves no worse, for a new path": (
        "motions", "TAP + AH (default) moves no worse than MotionDirector", "path"),
    "feed-forward layers move better than Key": ("table1", "feed-forward layers move better than keys", "re-timing"),
    "the appearance highway improves the appearance": ("table4", "AH improves appearance over TAP", "re-timing"),
    "phased integration improves the appearance": ("table4", "PLI improves appearance over AH", "re-timing"),
}  # fmt: skip


def test_its_claims_are_ruled_as_in_the_results_and_with_their_figures():
    table = TEXT["README.md"].partition("| claim of the paper |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE))
    assert rows.keys() == CLAIMS.keys()
    sections = read_sections(ROOT / "RESULTS.md")
    for row, (name, claim, group) in CLAIMS.items():
        lines = sections[name, "pocketscope"].splitlines()
        (line,) = (line for line in lines if VERDICT.match(line) and f"{group}): {claim}. " in line)
        ruling, told = re.fullmatch(r"\*\*(.+?)\*\*: (.*)", rows[row]).groups()
        assert ruling == VERDICT.match(line)["ruling"], row
        for measure, *pair in re.findall(r"([a-z ]+?) (-?\d\.\d\d) against (-?\d\.\d\d)", told):
            found = re.search(rf"(?i)[;.] {measure.strip()} (-?\d\.\d+) against (-?\d\.\d+)", line)
            assert found and [f"{float(value):.2f}" for value in found.groups()] == pair, (row, measure)


def test_it_counts_the_decided_comparisons_as_the_results_do():
    testable, decided = re.search(
        r"Of the paper's (\d+) comparisons that could be tested, (\d+) are decided", (ROOT / "RESULTS.md").read_text()
    ).groups()
    assert (
        f"RESULTS.md decides {decided} of the paper's {testable} comparisons that can be tested here"
        in TEXT["README.md"]
    )


def test_the_shares_of_its_methods_are_those_of_table_2():
    section = read_sections(ROOT / "RESULTS.md")["table2", "pocketscope"]
    first = section[section.index("| re-timing |") :].partition("\n\n")[0]  # the table of the re-timed clips
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in first.splitlines())
    columns = [header.index("motion success ↑"), header.index("appearance accuracy ↑")]
    measured = {row[0]: " / ".join(row[column].split()[0] for column in columns) for row in rows}
    table = TEXT["README.md"].partition("| method |")[2].partition("\n\n")[0]
    shown = dict(re.findall(r"^\| `(\w+)`.*\| (\d\.\d\d / \d\.\d\d) \|", table, re.MULTILINE))
    assert shown == {
        "tap": measured["TAP"],
        "release": measured["release (k + out)"],
        "motiondirector": measured["MotionDirector"],
        "motion_inversion": measured["Motion Inversion"],
    }


def ruled(section: str, claim: str) -> tuple[str, str, str, str]:
    """(ruling, its figure, the one that it is held against, the whole line) of a claim of a section of RESULTS.md."""
    (line,) = (line for line in section.splitlines() if f"{claim}. " in line)
    one, other = re.search(r"\. [A-Z][\w ]+ (\S+) against (\S+),", line).groups()
    return VERDICT.match(line)["ruling"], one, other, line


def success_of(section: str, group: str) -> dict[str, int]:
    """Row -> motion success in per cent, of the first table of a group."""
    table = section[section.index(f"| {group} |") :].partition("\n\n")[0].splitlines()[2:]
    return {cells[1].strip(): round(100 * float(cells[2].split()[0])) for cells in (line.split("|") for line in table)}


def test_what_is_said_of_a_transformer_is_measured():
    sections = read_sections(ROOT / "RESULTS.md")
    ladder, sweep = sections["dit", "pocketscope_dit"], sections["dit_sweep", "pocketscope_dit"]
    path, retimed = success_of(ladder, "path"), success_of(ladder, "re-timing")
    told = TEXT["README.md"].partition("On a diffusion transformer new paths")[2].partition("\n\n")[0]
    rows = "q + k (TAP)", "Motion Inversion", "q + k, temporal heads", "guidance"
    assert [int(share) for share in re.findall(r"(\d+) %", told)] == [path[row] for row in rows]
    words = " ".join(told.split()), " ".join(TEXT["models/README.md"].split())
    ruling, purified, layers, line = ruled(ladder, "q + k leaks less than all layers")
    assert ruling == "refuted" and "less than 0.05 that way" in line, "it buys nothing that counts"
    assert (
        f"to count: {purified} against {layers}, and " in words[0] and f"leak {purified} against {layers}" in words[1]
    )
    ruling, layers, purified, line = ruled(ladder, "without the dual path all layers leak more than q + k")
    assert ruling == "confirmed" and "smaller than 0.05, the least that counts" in line
    assert f"{purified} against {layers} without the dual path." in words[0]
    assert f"without the dual path {purified} against {layers}, where a difference of 0.05 would count" in words[1]
    for setting in ("with the dual path", "no dual path"):
        ruling, *_, line = ruled(sweep, f"{setting}, at equal motion, q + k leaks less than all layers")
        assert ruling == "not testable" and "neither leaks" in line
    beyond = "trained far beyond the recipe, q + k"
    ruling, purified, layers, line = ruled(sweep, f"no dual path, {beyond} leaks less than all layers")
    assert ruling == "confirmed" and "the least that counts" not in line
    assert ruled(sweep, f"no dual path, {beyond} moves no worse than all layers")[0] == "confirmed"
    assert f"without the dual path: {purified} against {layers}, with no less motion" in words[0]
    assert f"all layers leak {layers}, and Query and Key {purified} and move no worse" in words[1]
    ruling, purified, layers, _ = ruled(sweep, f"with the dual path, {beyond} leaks less than all layers")
    assert ruling == "not decided" and f"it is not decided ({purified} against {layers})" in words[1]
    assert ruled(ladder, "q + k learns new paths: at least every second video")[0] == "not decided"
    assert "18 clips of nine motions" in words[1] and "over 18 reference clips of 9 motions" in ladder
    ruling, after, before, _ = ruled(ladder, "PLI improves the appearance")
    assert ruling == "confirmed" and f"from {before} to {after}" in words[1]
    ruling, after, before, line = ruled(ladder, "PLI costs no motion")
    assert ruling == "confirmed" and f"path correlation from {before} to {after}" in words[1]
    after, before = re.search(r"motion success (\S+) against (\S+);", line).groups()
    assert f"motion success from {before} to {after}" in words[1]
    assert ruled(ladder, "the value highway keeps the appearance no worse")[0] == "refuted"
    assert f"follows {path['guidance']} % of the new paths and {retimed['guidance']} % of the re-timings" in words[1]
    assert ruled(ladder, "guidance improves the motion of TAP")[0] == "refuted"
    assert ruled(ladder, "TAP with guidance leaks no more than TAP")[0] == "refuted"
    assert f"Temporal heads alone learn {path['q + k, temporal heads']} % of the new paths" in words[1]


def test_files_that_single_commands_name_exist():
    named = [word for words in COMMANDS if words[:2] == ["python", "-m"] or words[0] == "bash" for word in words]
    files = [word for word in named if "/" in word]
    assert files and not [file for file in files if not (ROOT / file).is_file()]


def test_several_processes_train_together(tmp_path):
    (words,) = [words for words in COMMANDS if words[0] == "torchrun"]
    less = [*LESS, f"output_dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}", "timesteps_per_step=1", "device=cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run([*launcher, *words[1:], *less], cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(list_checkpoints(done.stdout.strip())) == [2] and len(list(tmp_path.glob("train_*"))) == 1


@pytest.mark.parametrize("words", [w for w in COMMANDS if "train.py" in w and w[0] != "torchrun"], ids=" ".join)
def test_training_commands(words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (folder,) = run([*python_words(words), *LESS, f"output_dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}"])
    assert list(list_checkpoints(folder)) == [2]


@pytest.mark.parametrize("words", [w for w in COMMANDS if "infer/infer.py" in w], ids=" ".join)
def test_sampling_commands(words, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {"outputs/train/car/train_TIME": folders["RUN"], **folders}
    words = [names.get(word, word) for word in python_words(words)]
    if "--checkpoint_index" in words:
        words[words.index("--checkpoint_index") + 1] = "2"  # the only one that the short training has
    if "--prompt_file" in words:
        few = tmp_path / "few.txt"
        few.write_text("\n".join((ROOT / words[words.index("--prompt_file") + 1]).read_text().splitlines()[-2:]))
        words[words.index("--prompt_file") + 1] = str(few)
    videos = run([*words, "-s", "2", "--output_dir", str(tmp_path / "out")])
    assert videos and all((tmp_path / "out").joinpath(video.split("/")[-1]).stat().st_size for video in videos)


@pytest.mark.parametrize("words", [w for w in COMMANDS if "scripts/convert.py" in w], ids=" ".join)
def test_file_commands(words, folders, tmp_path):
    words = [folders.get(word, word).replace("outputs/", f"{tmp_path}/") for word in python_words(words)]
    assert run(words) or any(tmp_path.rglob("*.safetensors"))


def test_measuring_commands(tmp_path):
    """Videos of a training on the toy world are measured exactly by the command of the README."""
    (evaluate,) = [python_words(words) for words in COMMANDS if "scripts/evaluate.py" in words]
    less = [*LESS, f"output_dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    (trained,) = run(["train.py", "--config", str(ROOT / "configs/quickstart.yaml"), *less])
    few, videos = tmp_path / "few.txt", str(tmp_path / "videos")
    few.write_text("\n".join((ROOT / "data/prompts/pocket.txt").read_text().splitlines()[-2:]))
    run(["infer/infer.py", "-cf", trained, "--prompt_file", str(few), "-s", "2", "-o", videos])
    found = json.loads(run([evaluate[0], videos])[-1])
    assert {"motion_success", "appearance_accuracy", "leakage"} <= set(found) and found["n"] == 2


def test_the_list_of_artefacts():
    assert len(run(["scripts/reproduce.py", "--list"])) >= 10


def test_the_quickstart(tmp_path):
    """scripts/quickstart.sh is the environment of scripts/setup.sh and then this."""
    assert ["bash", "scripts/quickstart.sh"] in COMMANDS
    told = run(
        [
            "scripts/quickstart.py",
            *LESS,
            f"output_dir={tmp_path}",
            f"cache_dir={tmp_path / 'cache'}",
            "validation_data.num_inference_steps=2",
            "validation_data.sample_preview=true",
        ]
    )
    named = dict(line.split(": ", 1) for line in told)
    assert list(named) == ["video", "side by side", "loss plot"]
    assert all((ROOT / path).stat().st_size for path in named.values())


def test_the_test_command_is_what_ci_runs():
    assert ["bash", "scripts/test.sh"] in COMMANDS
    assert "bash scripts/test.sh" in (ROOT / ".ci/run").read_text()


def test_the_shell_scripts_reuse_an_environment_that_is_up_to_date(tmp_path):
    """setup.sh installs only when requirements.txt changed: with a current marker it goes straight on."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(sys.executable)
    (venv / "installed").mkdir()
    shutil.copy(ROOT / "requirements.txt", venv / "installed")
    done = subprocess.run(
        ["bash", "-c", ". scripts/setup.sh && command -v python"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={"VENV": str(venv), "PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    assert done.returncode == 0 and done.stdout.strip() == str(venv / "bin/python") and "installing" not in done.stderr


def test_the_download_command_exists():
    (words,) = [words for words in COMMANDS if words[0] == "hf"]
    told = subprocess.run(
        [shutil.which("hf") or "hf", "download", "--help"], capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0 and "--local-dir" in told.stdout and "--local-dir" in words


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    """Paths are written from the repository's root or from the page's own folder."""
    here = (ROOT / page).parent
    code = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|sh|yaml|md|txt|mp4))[`: ]", TEXT[page])
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT[page]) if "://" not in link]
    named = {name for name in [*code, *links] if not name.startswith(("outputs/", "./"))}
    missing = {name for name in named if not (ROOT / name).exists() and not (here / name).exists()}
    assert not missing
    assert named or page == "configs/methods/README.md"  # which names presets, not files
