#!/usr/bin/env bash
# Runs a recipe on a Cloud TPU slice: one process a host, which JAX detects.
#
#   export TPU_NAME=my-slice ZONE=europe-west4-b
#   export ACCELERATOR_TYPE=v5litepod-32 RUNTIME_VERSION=v2-alpha-tpuv5-lite
#   tpu_pod.sh create
#   tpu_pod.sh install                             # this checkout, on all hosts
#   tpu_pod.sh run RUN RECIPE [ARGUMENT...]        # starts the run, or goes on with it
#   tpu_pod.sh stop                                # SIGTERM: all save a checkpoint
#   tpu_pod.sh delete
#
# RUN is a directory that every host sees, such as a mounted Filestore (NFS); with
# --loop.checkpoints gs://BUCKET/NAME it needs no room for checkpoints.
set -euo pipefail

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$1"
}

command=$1
shift
case "$command" in
  create)
    gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" \
      --accelerator-type="$ACCELERATOR_TYPE" --version="$RUNTIME_VERSION"
    ;;
  install)
    gcloud compute tpus tpu-vm scp --recurse . "$TPU_NAME:xpo_jax" --zone="$ZONE" \
      --worker=all
    on_all_hosts "pip install -e './xpo_jax[tpu,bucket]'"
    ;;
  run)
    on_all_hosts "cd xpo_jax && experiments/launch/start_or_resume.sh $(printf '%q ' "$@")"
    ;;
  stop)
    on_all_hosts "pkill -TERM -x xpo"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$ZONE" --quiet
    ;;
  *)
    echo "tpu_pod.sh: create, install, run, stop or delete; not $command" >&2
    exit 2
    ;;
esac
