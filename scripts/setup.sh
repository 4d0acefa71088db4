# Sourced by the other scripts: enters the repository root and a virtual environment with requirements.txt installed.
# VENV names another place for it than .venv; an environment that is already up to date is reused.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VENV:-.venv}"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is needed, $("$python" --version) was found; set PYTHON=/path/to/python3.11" >&2
  exit 2
}
if ! cmp -s requirements.txt "$VENV/installed.txt"; then
  echo "installing requirements.txt into $VENV (once)" >&2
  "$python" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --requirement requirements.txt >&2
  cp requirements.txt "$VENV/installed.txt"
fi
export PATH="$PWD/$VENV/bin:$PATH"
case "$VENV" in /*) export PATH="$VENV/bin:$PATH" ;; esac
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
