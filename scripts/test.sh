#!/usr/bin/env bash
# The whole test suite. Words after it go to pytest, for example: bash scripts/test.sh tests/test_lora.py -x
set -euo pipefail
REQUIREMENTS="requirements-dev.txt"
. "$(dirname "$0")/setup.sh"
exec python -m pytest "$@"
