#!/usr/bin/env bash
# From nothing to a customized motion in minutes on a CPU: trains, samples, and names what to look at.
set -euo pipefail
. "$(dirname "$0")/setup.sh"
exec python scripts/quickstart.py "$@"
