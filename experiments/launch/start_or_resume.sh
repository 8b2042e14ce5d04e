#!/usr/bin/env bash
# Starts a run, or goes on with it where it was stopped: the command of each process.
#
#   start_or_resume.sh RUN RECIPE [ARGUMENT...]
#
# RUN is a directory that every host sees. PROCESS_FLAGS holds --coordinator, --processes
# and --process-index where JAX does not detect them.
set -euo pipefail

run_dir=$1
recipe=$2
shift 2
if [[ -e "$run_dir/config.yaml" ]]; then
  exec xpo resume "$run_dir" --distributed ${PROCESS_FLAGS:-}
fi
exec xpo train "$recipe" "$@" --run-dir "$run_dir" --distributed ${PROCESS_FLAGS:-}
