"""Which commits made what lies in a folder: noted beside runs and samples, read back for a result's provenance."""

import subprocess
from pathlib import Path

from configs.files import atomic_path
from configs.paths import ROOT

COMMITS = "commit.txt"  # in the folder of a run and of its samples


def commit() -> str:
    """The commit this tree stands on, and whether its code or prompts differ from it."""

    def git(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)

    try:
        head = git("rev-parse", "--short", "HEAD")
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    changed = git("diff", "--quiet", "HEAD", "--", "*.py", "*.yaml", "data", "models").returncode
    return head.stdout.strip() + (" with local changes" if changed else "")


def note_commit(folder: Path) -> None:
    """Write into `folder` which commit is about to make something there."""
    path, now = folder / COMMITS, commit()
    known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if now not in known:
        with atomic_path(path) as unfinished:
            unfinished.write_text("\n".join([*known, now]) + "\n", encoding="utf-8")
