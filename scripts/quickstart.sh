#!/usr/bin/env bash
# From nothing to a customized motion in minutes on a CPU: trains, samples, and prints the paths of the results.
set -euo pipefail
. "$(dirname "$0")/setup.sh"
exec python scripts/quickstart.py "$@"
