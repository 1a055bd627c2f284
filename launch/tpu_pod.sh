#!/usr/bin/env bash
# One run on all hosts of a TPU pod slice; jaxmarks is installed there, in .venv of the folder JAXMARKS (by default jaxmarks):
#
#   launch/tpu_pod.sh NAME ZONE --config=configs/fish.py:paper --workdir=/mnt/shared/runs/fish
#
# The workdir lies on a file system that all hosts share. Give the same command again after a host was lost.
set -euo pipefail

if [ "$#" -lt 3 ]; then
  sed -n '2,6p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
printf -v arguments ' %q' "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ${JAXMARKS:-jaxmarks} && .venv/bin/python -m jaxmarks.main --processes=0$arguments"
