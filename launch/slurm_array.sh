#!/usr/bin/env bash
# The cells of a grid, or the trials of a search, as the tasks of a SLURM array; each task takes its share:
#
#   sbatch --array=0-7 --gpus=1 --cpus-per-task=8 --time=4:00:00 launch/slurm_array.sh launch/ablate.py --grid=configs/ablations/fish_table4.py \
#       --workdir=/shared/runs/table4 --config.data.images=PHOTOS --config.data.landmarks=FILE
#   sbatch --array=0-7 --gpus=1 --cpus-per-task=8 --time=4:00:00 launch/slurm_array.sh launch/tune.py --space=configs/tuning/fish.py \
#       --workdir=/shared/runs/tune --storage=mysql://HOST/STUDIES --trials=200
#
# The tables are rewritten by every task. Tasks that were killed go on when the same command is given again.
#SBATCH --job-name=jaxmarks
#SBATCH --output=jaxmarks-%A_%a.log
#SBATCH --requeue
set -euo pipefail

script=$1
shift
share=()
if [ "$(basename "$script")" = ablate.py ]; then
  place=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / ${SLURM_ARRAY_TASK_STEP:-1}))
  share=(--share="$place/$SLURM_ARRAY_TASK_COUNT")
fi
exec "${PYTHON:-.venv/bin/python}" "$script" "$@" ${share[@]+"${share[@]}"}
