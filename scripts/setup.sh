# Sourced by the other scripts: enters the repository root and a virtual environment with requirements.txt installed, and
# with the files that REQUIREMENTS names besides. VENV names another place for it than .venv. A file that is installed as
# it is now is not installed again.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${VENV:-.venv}"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is needed, $("$python" --version) was found; set PYTHON=/path/to/python3.11" >&2
  exit 2
}
missing=()
for file in requirements.txt ${REQUIREMENTS:-}; do
  cmp -s "$file" "$VENV/installed/$file" || missing+=("$file")
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "installing ${missing[*]} into $VENV (once)" >&2
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet "${missing[@]/#/--requirement=}" >&2
  mkdir -p "$VENV/installed"
  cp "${missing[@]}" "$VENV/installed/"
fi
export PATH="$PWD/$VENV/bin:$PATH"
case "$VENV" in /*) export PATH="$VENV/bin:$PATH" ;; esac
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
