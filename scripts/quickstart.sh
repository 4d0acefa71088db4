#!/usr/bin/env bash
# From nothing to a customized motion, in less than a minute on two CPU cores after the installation: trains, samples,
# and prints the paths of the results.
set -euo pipefail
. "$(dirname "$0")/setup.sh"
exec python scripts/quickstart.py "$@"
