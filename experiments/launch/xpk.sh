#!/usr/bin/env bash
# Runs a recipe on TPU slices of GKE by xpk: one process a host, which JAX detects.
#
#   export CLUSTER=my-cluster TPU_TYPE=v5litepod-32 SLICES=1
#   export IMAGE=gcr.io/my-project/xpo_jax         # has this checkout in /xpo_jax
#   xpk.sh create
#   xpk.sh run WORKLOAD RUN RECIPE [ARGUMENT...]   # starts the run, or goes on with it
#   xpk.sh delete WORKLOAD
#
# RUN is a directory that every host sees: a volume of `xpk storage attach`; with
# --loop.checkpoints gs://BUCKET/NAME it needs no room for checkpoints.
set -euo pipefail

command=$1
shift
case "$command" in
  create)
    xpk cluster create --cluster="$CLUSTER" --tpu-type="$TPU_TYPE" \
      --num-slices="$SLICES"
    ;;
  run)
    workload=$1
    shift
    # A workload that ends by a signal or with a dead host is started again.
    xpk workload create --cluster="$CLUSTER" --workload="$workload" \
      --tpu-type="$TPU_TYPE" --num-slices="$SLICES" --docker-image="$IMAGE" \
      --max-restarts=10 --restart-on-exit-codes=75 \
      --command="cd /xpo_jax && experiments/launch/start_or_resume.sh $(printf '%q ' "$@")"
    ;;
  delete)
    xpk workload delete --cluster="$CLUSTER" --workload="$1"
    ;;
  *)
    echo "xpk.sh: create, run or delete; not $command" >&2
    exit 2
    ;;
esac
