#!/usr/bin/env bash
# The whole test suite, in as many processes as there are cores (at most 4) with one thread each. Words after it go to
# pytest; single files run in one process, for example: bash scripts/test.sh tests/test_lora.py -x
set -euo pipefail
REQUIREMENTS="requirements-dev.txt"
. "$(dirname "$0")/setup.sh"
case " $* " in
*" tests/"*) ;;
*)
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  set -- -n "$(python -c 'import os; print(min(4, os.cpu_count() or 1))')" --dist loadfile "$@"
  ;;
esac
exec python -m pytest "$@"
