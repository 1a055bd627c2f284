#!/usr/bin/env bash
# One run on several nodes of a SLURM cluster, one process a node, which uses all GPUs there; give sbatch the resources:
#
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=32 --time=12:00:00 launch/slurm.sh --config=configs/fish.py:paper --workdir=/shared/runs/fish
#
# Without --cpus-per-task most clusters give a task one core, which then decodes the photographs of all GPUs.
# The workdir lies on a file system that all nodes share. A lost node ends the job, which then is queued again and goes
# on from its last checkpoint; what was given wrongly (status 2) is not tried again. PYTHON names the environment's
# interpreter, .venv/bin/python by default.
#SBATCH --job-name=jaxmarks
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=jaxmarks-%j.log
#SBATCH --open-mode=append
set -uo pipefail

# Some versions of SLURM do not hand a job's cores on to its steps.
srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=1 --label "${PYTHON:-.venv/bin/python}" -m jaxmarks.main --processes=0 "$@"
status=$?
if [ "$status" -ne 0 ] && [ "$status" -ne 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-5}" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
